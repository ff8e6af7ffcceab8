"""Maximum-logit window: the paper's rule on the plain logit, without a heatmap."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import WindowSelector
from drip.types import FloatArray, Observations


class MaxLogitWindowSelector(WindowSelector):
    """Discard inside the per-class window of the largest logit, keep outside.

    On a head of global average pooling and one linear layer the DRIP score is nearly this logit, so
    this rule tells what the heatmap adds.
    """

    name: ClassVar[str] = "max-logit-window"
    windows_key: ClassVar[str] = "logit_windows"

    @property
    def needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({"logits"})

    def score(self, observations: Observations) -> FloatArray:
        """The largest logit, shape (n,)."""
        return np.asarray(observations.logits.max(axis=1))
