"""Scores PyTorch classifiers: the mean of a class activation map, computed the cheapest exact way.

``scorer`` is the public class, ``target`` finds the layer, ``gradient`` computes its gradient, ``cam`` has
the formulas, ``model`` runs the user's model and leaves it as it was, ``digest`` identifies its weights.

>>> from drip.models import SmallCNN
>>> scorer = TorchScorer(SmallCNN(in_channels=1, n_classes=10))
>>> scorer.score(np.zeros((2, 1, 28, 28), dtype=np.float32)).scores.shape
(2,)
"""

from __future__ import annotations

import numpy as np  # noqa: F401  # used by the doctest

from drip.errors import missing_extra

try:
    import torch  # noqa: F401  # checked here, so the error names the command that installs it
except ImportError as error:
    raise missing_extra("drip.scoring", "torch", "torch") from error

from drip.scoring.digest import model_digest
from drip.scoring.scorer import TorchScorer

__all__ = ["TorchScorer", "model_digest"]
