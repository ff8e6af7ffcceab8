"""Margin: keep where the two largest probabilities are close."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import ThresholdSelector, softmax_ratios
from drip.types import FloatArray, Observations


class MarginSelector(ThresholdSelector):
    """Keep the samples with the largest 1 - (p_1 - p_2); that number is the priority.

    References:
        Scheffer, Decomain and Wrobel (2001), Active hidden Markov models for information extraction.
    """

    name: ClassVar[str] = "margin"

    def utility(self, observations: Observations) -> FloatArray:
        """Shape (n,): 1 - (p_1 - p_2) of the softmax probabilities."""
        ratios = softmax_ratios(observations.logits)
        others = ratios[:, 1:].sum(axis=1)
        second = ratios[:, 1:2].sum(axis=1)  # zero where the network has one class
        return np.asarray((others + second) / (1.0 + others))
