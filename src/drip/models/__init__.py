"""The papers' networks, with random weights; nothing is downloaded.

EfficientNet-B0 and MobileNetV2 have torchvision's ``state_dict`` key names, so that its weights load.
"""

from __future__ import annotations

import importlib.util

from drip.errors import DripError

if importlib.util.find_spec("torch") is None:
    _MESSAGE = 'drip.models needs torch, which is not installed; run: pip install "drip-edge[torch]"'
    raise DripError(_MESSAGE)

from drip.models.efficientnet import EfficientNetB0, freeze_all_but_last_seven
from drip.models.loading import load_model
from drip.models.mobilenet import MobileNetV2, load_features
from drip.models.small import AudioCNN, SmallCNN

__all__ = [
    "AudioCNN",
    "EfficientNetB0",
    "MobileNetV2",
    "SmallCNN",
    "freeze_all_but_last_seven",
    "load_features",
    "load_model",
]
