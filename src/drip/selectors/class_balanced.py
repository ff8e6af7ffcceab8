"""Class-balanced random: rare predicted classes are kept more often."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import ChanceSelector
from drip.selectors.states import numbers
from drip.types import Decisions, FloatArray, IntArray, JsonObject, Observations


class ClassBalancedRandomSelector(ChanceSelector):
    """Keep at random, so that every predicted class fills the same quota as far as it can.

    The quota m solves sum_c min(n_c, m) = retention * n on the calibration counts n_c; a sample of
    class c is kept with probability min(1, m / n_c). A class that calibration never saw is kept.
    The priority is 1 - draw / probability: uniform in [0, 1] among the kept samples of every class, so
    that a store over budget evicts from all classes alike, and below 0 for what is discarded.
    """

    name: ClassVar[str] = "class-balanced-random"

    def __init__(self, retention: float = 0.6, seed: int = 0) -> None:
        super().__init__(retention, seed)
        self._probabilities: FloatArray | None = None

    def state(self) -> JsonObject:
        """The keep-probability of every class, and the generator."""
        if self._probabilities is None:
            raise self._uncalibrated()
        return {**super().state(), "probabilities": self._probabilities.tolist()}

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        counts = np.bincount(observations.classes, minlength=n_classes)
        quota = equal_quota(counts, self._retention)
        self._probabilities = np.minimum(1.0, quota / np.maximum(counts, 1e-9))

    def _restore(self, state: JsonObject) -> None:
        super()._restore(state)
        probabilities = numbers("probabilities", state["probabilities"], None)
        if not len(probabilities) or not ((probabilities > 0) & (probabilities <= 1)).all():
            raise ValueError(f"probabilities must be one number in (0, 1] per class, got {probabilities}")
        self._probabilities = probabilities

    def _decide(self, observations: Observations) -> Decisions:
        if self._probabilities is None:
            raise self._uncalibrated()
        self._check_classes(observations, len(self._probabilities))
        draw = self._draw(observations)
        probability = self._probabilities[observations.classes]
        priority = 1.0 - draw / probability
        return Decisions(draw < probability, priority, probability, [self.name] * len(observations))


def equal_quota(counts: IntArray, retention: float) -> float:
    """The m with sum_c min(counts_c, m) = retention * sum_c counts_c.

    >>> equal_quota(np.array([10, 90]), 0.5)
    40.0
    """
    wanted = retention * float(counts.sum())
    ascending = np.sort(counts).astype(np.float64)
    # With the i smallest classes kept whole, the others share the rest.
    whole = np.concatenate([[0.0], np.cumsum(ascending)[:-1]])
    shares = (wanted - whole) / np.arange(len(counts), 0, -1)
    return float(shares[int(np.argmax(shares <= ascending))])
