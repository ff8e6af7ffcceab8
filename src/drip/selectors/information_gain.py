"""Information gain: keep uncertain samples in directions that what is kept does not cover yet."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import BaseSelector, deterministic
from drip.selectors.margin import MarginSelector
from drip.selectors.parts import RateController, RunningQuantile, Target
from drip.selectors.projected import fixed_order, projected
from drip.selectors.states import number, numbers, packed, unpacked
from drip.types import Decisions, FloatArray, JsonObject, Observations

_WINDOW = 500


class InformationGainSelector(BaseSelector):
    r"""Keep what tells most beyond what was kept: :math:`\log(1 + h\, z^T A z)` with uncertainty h.

    h is 1 - (p_1 - p_2); z are the 64 projected features minus their calibration mean, over one scale that
    makes the mean of :math:`z^T z` one in calibration. :math:`A = (I + \sum h z z^T)^{-1}` sums over what is
    kept: of the calibration samples the share r with the largest h, then every sample that the rule keeps
    (a rank-one update). For a Bayesian linear model the utility is twice the information that a label with
    noise 1 / h gives. A sample is kept when its utility is among the highest of the last 500; which share
    of them, :class:`drip.selectors.parts.RateController` says. The priority is the utility's rank among
    them. State: A in double precision, 44 kB of text, and 570 numbers.

    Args:
        retention: Share of the stream to keep, in (0, 1).

    Complexity: 2 d squared multiplications per sample for d = 64.

    References:
        MacKay (1992), Information-based objective functions for active data selection; Sun,
        Calandriello, Hu, Li and Titsias (2022), Information-theoretic online memory selection for continual
        learning.
    """

    name: ClassVar[str] = "information-gain"

    def __init__(self, retention: float = 0.6) -> None:
        self._target = Target(retention)
        self._rate = RateController(self._target)
        self._inverse: FloatArray | None = None

    @property
    def params(self) -> JsonObject:
        """Retention."""
        return self._target.params

    @property
    def needs(self) -> frozenset[str]:
        """Logits and features."""
        return frozenset({"logits", "features"})

    def state(self) -> JsonObject:
        """Mean and scale of the features, A, the last utilities and the rate."""
        if self._inverse is None:
            raise self._uncalibrated()
        return {
            "mean": self._mean.tolist(),
            "scale": self._scale,
            "inverse": packed(self._inverse, "<f8"),
            "recent": self._recent.state(),
            "rate": self._rate.state(),
        }

    def _calibrate(self, observations: Observations) -> None:
        features, uncertainty = projected(observations, self.name), MarginSelector().utility(observations)
        order = fixed_order(features, uncertainty)
        features, uncertainty = features[order], uncertainty[order]
        self._mean = features.mean(axis=0)
        self._scale = float(np.sqrt(((features - self._mean) ** 2).sum(axis=1).mean())) or 1.0
        rows = (features - self._mean) / self._scale
        first = MarginSelector(self._target.retention or 0.5)
        kept = first.calibrate(observations).decide_many(observations[order]).retain
        information = np.eye(rows.shape[1]) + (rows[kept] * uncertainty[kept, None]).T @ rows[kept]
        inverse = np.linalg.inv(information)
        self._inverse = np.ascontiguousarray((inverse + inverse.T) / 2)
        gains = [self._gain(row, h)[0] for row, h in zip(rows, uncertainty.tolist(), strict=True)]
        self._recent = RunningQuantile.spread(_WINDOW, np.array(gains))
        self._rate = RateController(self._target)

    def _restore(self, state: JsonObject) -> None:
        self._mean, self._scale = numbers("mean", state["mean"], None), number("scale", state["scale"])
        n = len(self._mean)
        inverse = unpacked("inverse", state["inverse"], n, n, dtype="<f8")
        if self._scale <= 0 or not np.array_equal(inverse, inverse.T):
            raise ValueError("scale must be above 0 and inverse symmetric")
        self._recent = RunningQuantile.restored(_WINDOW, state["recent"], n_values=_WINDOW)
        self._rate.restore(state["rate"])
        self._inverse = inverse

    def _gain(self, row: FloatArray, uncertainty: float) -> tuple[float, FloatArray, float]:
        """Utility of a row z, A z, and h z'A z."""
        assert self._inverse is not None  # noqa: S101  # calibrated
        direction = self._inverse @ row
        leverage = max(uncertainty * float(row @ direction), 0.0)
        return float(np.log1p(leverage)), direction, leverage

    def _decide(self, observations: Observations) -> Decisions:
        if self._inverse is None:
            raise self._uncalibrated()
        features = projected(observations, self.name, len(self._mean))
        uncertainty = MarginSelector().utility(observations).tolist()
        n = len(observations)
        retain, priority = np.zeros(n, np.bool_), np.zeros(n)
        for i, row in enumerate((features - self._mean) / self._scale):
            value, direction, leverage = self._gain(row, uncertainty[i])
            retain[i] = value >= self._recent.limit(self._rate.share())
            priority[i] = self._recent.rank(value)
            self._recent.add(value)
            if retain[i]:
                self._rate.kept()
                # Sherman and Morrison; an outer product of a row with itself leaves A exactly symmetric.
                self._inverse -= np.outer(direction, direction) * (uncertainty[i] / (1 + leverage))
        return deterministic(retain, priority, self.name, "below-limit")
