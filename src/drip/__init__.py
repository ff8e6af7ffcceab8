"""DRIP: decide on the device, sample by sample, what is worth keeping for retraining.

This module gives the public nouns of the core. It imports neither torch nor onnxruntime.
"""

from drip.errors import (
    DripError,
    ExportError,
    InputError,
    ModelError,
    PolicyError,
    StoreError,
    StreamError,
)
from drip.media import InputContract
from drip.pipeline import Tally, observe, run
from drip.policy import Policy, Provenance
from drip.thresholds import Window
from drip.types import Decision, Decisions, Observation, Observations, Sample

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "Decisions",
    "DripError",
    "ExportError",
    "InputContract",
    "InputError",
    "ModelError",
    "Observation",
    "Observations",
    "Policy",
    "PolicyError",
    "Provenance",
    "Sample",
    "StoreError",
    "StreamError",
    "Tally",
    "Window",
    "__version__",
    "observe",
    "run",
]
