"""Reproduction of the papers and comparison of rules; imports drip, is not part of it."""
