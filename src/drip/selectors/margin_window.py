"""Margin window: hard samples, but not the hardest."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

import numpy as np

from drip.selectors.base import ThresholdSelector, count_to_keep, deterministic
from drip.selectors.margin import MarginSelector
from drip.selectors.states import number
from drip.types import Decisions, FloatArray, JsonObject, Observations


class MarginWindowSelector(ThresholdSelector):
    r"""Keep a window of ranks of 1 - (p_1 - p_2) that begins below the hardest :math:`(1 - r) / 4`.

    The hardest samples are often mislabelled, foreign or beyond the network; the window keeps the next
    share r of the calibration samples, so that the start moves down as less is kept. The priority is the
    distance to the nearer end of the window, negative outside; ties at the ends are all kept. State: two
    numbers.

    References:
        Choi, Ki and Chung (2024), BWS: best window selection based on sample scores for data pruning across
        broad ranges; there the start is searched with the labels of the samples.
    """

    name: ClassVar[str] = "margin-window"

    def __init__(self, retention: float = 0.6) -> None:
        super().__init__(retention)
        self._upper = 0.0

    def utility(self, observations: Observations) -> FloatArray:
        """Shape (n,): 1 - (p_1 - p_2)."""
        return MarginSelector().utility(observations)

    def state(self) -> JsonObject:
        """The two ends of the window; ``limit`` is the lower one."""
        return {**super().state(), "upper": self._upper}

    def _calibrate(self, observations: Observations) -> None:
        descending = np.sort(self.utility(observations))[::-1]
        n = len(descending)
        start = int((1 - Fraction(str(self._retention))) / 4 * n)
        self._upper = float(descending[start])
        self._limit = float(descending[start + count_to_keep(n, self._retention) - 1])

    def _restore(self, state: JsonObject) -> None:
        super()._restore(state)
        self._upper = number("upper", state["upper"])
        if self._upper < number("limit", state["limit"]):
            raise ValueError(f"the upper end must not be below the lower one, got {self._upper}")

    def _decide(self, observations: Observations) -> Decisions:
        if self._limit is None:
            raise self._uncalibrated()
        utility = self.utility(observations)
        inside = np.minimum(utility - self._limit, self._upper - utility)
        return deterministic(inside >= 0, inside, self.name, "outside-window")
