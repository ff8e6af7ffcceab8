"""Coverage: without the hardest samples, as many of every difficulty as there are."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import ChanceSelector
from drip.selectors.class_balanced import equal_quota
from drip.selectors.draws import drawn
from drip.selectors.margin import MarginSelector
from drip.selectors.states import number, numbers
from drip.types import Decisions, FloatArray, IntArray, JsonObject, Observations

_HARDEST = 0.1
_STRATA = 20


class CoverageSelector(ChanceSelector):
    r"""Drop the hardest tenth, then keep at random so that all strata of difficulty fill the same quota.

    The difficulty is 1 - (p_1 - p_2). What is harder than nine tenths of the calibration samples is
    discarded (than the share r, where the retention r is above 0.9); the range of the others is cut into 20
    strata of equal width. The quota m solves :math:`\sum_i \min(n_i, m) = r n` on the calibration
    counts :math:`n_i`, and a sample of stratum i is kept with probability
    :math:`\min(1, m / n_i)`. A stratum that calibration never saw is kept. State: the generator and 22
    numbers.

    References:
        Zheng, Liu, Lai and Prakash (2023), Coverage-centric coreset selection for high pruning rates;
        with the margin for a score and one share of hardest samples for all rates.
    """

    name: ClassVar[str] = "coverage"

    def __init__(self, retention: float = 0.6, seed: int = 0) -> None:
        super().__init__(retention, seed)
        self._probabilities: FloatArray | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({"logits"})

    def state(self) -> JsonObject:
        """The generator, the range of difficulties and the keep-probability of every stratum."""
        if self._probabilities is None:
            raise self._uncalibrated()
        return {
            **super().state(),
            "easiest": self._easiest,
            "hardest": self._hardest,
            "probabilities": self._probabilities.tolist(),
        }

    def _calibrate(self, observations: Observations) -> None:
        ascending = np.sort(MarginSelector().utility(observations))
        n = len(ascending)
        n_dropped = int(min(_HARDEST, 1 - self._retention) * n)
        self._easiest, self._hardest = float(ascending[0]), float(ascending[n - n_dropped - 1])
        kept = ascending[ascending <= self._hardest]
        counts = np.bincount(self._strata(kept), minlength=_STRATA)
        quota = equal_quota(counts, min(self._retention * n / len(kept), 1.0))
        self._probabilities = np.minimum(1.0, quota / np.maximum(counts, 1e-9))

    def _restore(self, state: JsonObject) -> None:
        super()._restore(state)
        self._easiest, self._hardest = (number(name, state[name]) for name in ("easiest", "hardest"))
        probabilities = numbers("probabilities", state["probabilities"], _STRATA)
        if self._easiest > self._hardest or not ((probabilities > 0) & (probabilities <= 1)).all():
            raise ValueError(
                f"probabilities must be in (0, 1] from the easiest to the hardest, got {probabilities} from "
                f"{self._easiest} to {self._hardest}"
            )
        self._probabilities = probabilities

    def _decide(self, observations: Observations) -> Decisions:
        if self._probabilities is None:
            raise self._uncalibrated()
        difficulty = MarginSelector().utility(observations)
        probability = self._probabilities[self._strata(difficulty)]
        probability[difficulty > self._hardest] = 0.0
        return drawn(self._draw(observations), probability, self.name)

    def _strata(self, difficulty: FloatArray) -> IntArray:
        inner_edges = np.linspace(self._easiest, self._hardest, _STRATA + 1)[1:-1]
        return np.searchsorted(inner_edges, difficulty, "left")
