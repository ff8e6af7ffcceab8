"""The command line. A command parses, calls one function and prints; torch loads inside commands only."""

from drip.cli.app import main

__all__ = ["main"]
