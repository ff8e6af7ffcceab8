"""Soft margin: the smaller the margin, the more probably a sample is kept."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import ChanceSelector
from drip.selectors.draws import drawn
from drip.selectors.margin import MarginSelector
from drip.selectors.states import numbers
from drip.types import Decisions, FloatArray, JsonObject, Observations

_POINTS = 500


class SoftMarginSelector(ChanceSelector):
    r"""Keep with probability :math:`u^{(1-r)/r}` for the rank u of 1 - (p_1 - p_2) among calibration samples.

    Ranks of fresh samples are uniform in [0, 1], so that the retention r is the mean probability,
    :math:`\int_0^1 u^{(1-r)/r} du = r`; samples that tie share the mean of their ranks' probabilities.
    Every probability is known, and zero only for what is clearer than the clearest of up to 500 calibration
    samples that stand for all: weights of one over the probability make what is kept stand for the stream.
    State: the generator and those numbers.

    References:
        Horvitz and Thompson (1952), A generalization of sampling without replacement from a finite
        universe: the weights; Beygelzimer, Dasgupta and Langford (2009), Importance weighted active
        learning: probabilities that follow the uncertainty. The power is the one with mean r.
    """

    name: ClassVar[str] = "soft-margin"

    def __init__(self, retention: float = 0.6, seed: int = 0) -> None:
        super().__init__(retention, seed)
        self._points: FloatArray | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({"logits"})

    def state(self) -> JsonObject:
        """The generator, and evenly ranked calibration utilities in ascending order."""
        if self._points is None:
            raise self._uncalibrated()
        return {**super().state(), "points": self._points.tolist()}

    def _calibrate(self, observations: Observations) -> None:
        ascending = np.sort(MarginSelector().utility(observations))
        n_points = min(len(ascending), _POINTS)
        middles = (np.arange(n_points) + 0.5) / n_points
        self._points = ascending[(middles * len(ascending)).astype(np.int64)]

    def _restore(self, state: JsonObject) -> None:
        super()._restore(state)
        points = numbers("points", state["points"], None)
        if not len(points) or (np.diff(points) < 0).any():
            raise ValueError("points must be numbers in ascending order, at least one")
        self._points = points

    def _decide(self, observations: Observations) -> Decisions:
        if self._points is None:
            raise self._uncalibrated()
        probability = self._probability(MarginSelector().utility(observations), self._points)
        return drawn(self._draw(observations), probability, self.name)

    def _probability(self, utility: FloatArray, points: FloatArray) -> FloatArray:
        """The mean of u^((1-r)/r) over the ranks u of a tie; of one rank for a utility between two points."""
        r = self._retention
        below = np.searchsorted(points, utility, "left") / len(points)
        up_to = np.searchsorted(points, utility, "right") / len(points)
        width = up_to - below
        tie = r * (up_to ** (1 / r) - below ** (1 / r)) / np.where(width > 0, width, 1.0)
        return np.asarray(np.clip(np.where(width > 0, tie, below ** ((1 - r) / r)), 0.0, 1.0))
