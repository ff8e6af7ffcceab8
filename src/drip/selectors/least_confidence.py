"""Least confidence: keep where the largest probability is small."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import ThresholdSelector, softmax_ratios
from drip.types import FloatArray, Observations


class LeastConfidenceSelector(ThresholdSelector):
    """Keep the samples with the largest 1 - p_1; that number is the priority.

    References:
        Lewis and Gale (1994), A sequential algorithm for training text classifiers.
    """

    name: ClassVar[str] = "least-confidence"

    def utility(self, observations: Observations) -> FloatArray:
        """Shape (n,): 1 - p_1, the probability that is not on the predicted class."""
        others = softmax_ratios(observations.logits)[:, 1:].sum(axis=1)
        return np.asarray(others / (1.0 + others))
