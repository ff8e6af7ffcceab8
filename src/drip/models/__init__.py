"""The papers' networks with random weights, and loading of a user's own model; nothing is downloaded.

EfficientNet-B0 and MobileNetV2 have torchvision's ``state_dict`` key names, so its weights load.
"""

from __future__ import annotations

from drip.errors import missing_extra

try:
    import torch  # noqa: F401  # checked here, so the error names the command that installs it
except ImportError as error:
    raise missing_extra("drip.models", "torch", "torch") from error

from drip.models.efficientnet import EfficientNetB0, freeze_all_but_last_seven
from drip.models.loading import Tail, cut_before_last_seven, load_model
from drip.models.mobilenet import MobileNetV2, load_features
from drip.models.small import AudioCNN, SmallCNN

__all__ = [
    "AudioCNN",
    "EfficientNetB0",
    "MobileNetV2",
    "SmallCNN",
    "Tail",
    "cut_before_last_seven",
    "freeze_all_but_last_seven",
    "load_features",
    "load_model",
]
