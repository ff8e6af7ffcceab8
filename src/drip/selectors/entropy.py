"""Entropy: keep where the probabilities are spread over many classes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import ThresholdSelector, softmax_ratios
from drip.types import FloatArray, Observations


class EntropySelector(ThresholdSelector):
    """Keep the samples with the largest H = -sum_c p_c log p_c; that number is the priority.

    References:
        Shannon (1948); Settles (2009), Active learning literature survey.
    """

    name: ClassVar[str] = "entropy"

    def utility(self, observations: Observations) -> FloatArray:
        """Shape (n,): the entropy of the softmax probabilities in nats."""
        ratios = softmax_ratios(observations.logits)
        total = ratios.sum(axis=1)
        # H = log S - sum r log r / S; log1p keeps the digits of a nearly certain prediction.
        tail = ratios[:, 1:]
        spread = (tail * np.log(np.maximum(tail, np.finfo(np.float64).tiny))).sum(axis=1)
        return np.asarray(np.log1p(tail.sum(axis=1)) - spread / total)
