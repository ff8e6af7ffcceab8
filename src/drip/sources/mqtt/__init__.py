"""MQTT 5: samples in, decisions out."""
