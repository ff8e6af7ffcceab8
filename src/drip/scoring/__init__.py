"""Scores a torch classifier: the only room besides export and retraining that needs torch.

>>> from drip.models import SmallCNN
>>> scorer = TorchScorer(SmallCNN(in_channels=1, n_classes=10))
>>> scorer.score(np.zeros((2, 1, 28, 28), dtype=np.float32)).scores.shape
(2,)
"""

from __future__ import annotations

import importlib.util

import numpy as np  # noqa: F401  # used by the doctest

from drip.errors import DripError

if importlib.util.find_spec("torch") is None:
    _MESSAGE = 'drip.scoring needs torch, which is not installed; run: pip install "drip-edge[torch]"'
    raise DripError(_MESSAGE)

from drip.scoring.digest import model_digest
from drip.scoring.scorer import TorchScorer

__all__ = ["TorchScorer", "model_digest"]
