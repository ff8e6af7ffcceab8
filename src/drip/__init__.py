"""DRIP: decide on the device, sample by sample, what is worth keeping for retraining.

This module exports the public nouns of the core. It imports neither torch nor onnxruntime.
"""

from drip.errors import (
    DripError,
    ExportError,
    InputError,
    ModelError,
    PolicyError,
    SourceError,
    StoreError,
)
from drip.media import InputSpec
from drip.pipeline import Tally, observe, run
from drip.policy import Policy, Provenance
from drip.types import Decision, Decisions, Observation, Observations, Sample
from drip.windows import Window

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "Decisions",
    "DripError",
    "ExportError",
    "InputError",
    "InputSpec",
    "ModelError",
    "Observation",
    "Observations",
    "Policy",
    "PolicyError",
    "Provenance",
    "Sample",
    "SourceError",
    "StoreError",
    "Tally",
    "Window",
    "__version__",
    "observe",
    "run",
]
