"""DRIP: decide on the device, sample by sample, what is worth keeping for retraining.

This module gives the public nouns of the core. It imports neither torch nor onnxruntime.
"""

__version__ = "0.1.0"
