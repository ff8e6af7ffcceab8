"""Scores a torch classifier: the only room besides export and retraining that needs torch.

>>> from drip.models import SmallCNN
>>> scorer = TorchScorer(SmallCNN(in_channels=1, n_classes=10))
>>> scorer.score(np.zeros((2, 1, 28, 28), dtype=np.float32)).scores.shape
(2,)
"""

from __future__ import annotations

import numpy as np  # noqa: F401  # used by the doctest

from drip.errors import missing_extra

try:
    import torch  # noqa: F401  # only to say early how to install it
except ImportError as error:
    raise missing_extra("drip.scoring", "torch", "torch") from error

from drip.scoring.digest import model_digest
from drip.scoring.scorer import TorchScorer

__all__ = ["TorchScorer", "model_digest"]
