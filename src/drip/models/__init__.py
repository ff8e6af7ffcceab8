"""The papers' networks, with random weights; nothing is downloaded.

EfficientNet-B0 and MobileNetV2 have torchvision's ``state_dict`` key names, so that its weights load.
"""

from __future__ import annotations

import importlib.util

from drip.errors import DripError

if importlib.util.find_spec("torch") is None:
    _MESSAGE = 'drip.models needs torch, which is not installed; run: pip install "drip-edge[torch]"'
    raise DripError(_MESSAGE)

from drip.models.loading import load_model
from drip.models.small import AudioCNN, SmallCNN

__all__ = ["AudioCNN", "SmallCNN", "load_model"]
