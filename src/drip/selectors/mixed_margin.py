"""Mixed margin: close calls, judged over the whole stream and within the predicted class alike."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from drip.selectors.base import ThresholdSelector
from drip.selectors.margin import MarginSelector
from drip.selectors.states import packed, unpacked
from drip.thresholds import sort_by_class
from drip.types import FloatArray, JsonObject, Observations

_POINTS = 101


class MixedMarginSelector(ThresholdSelector):
    """Keep the samples whose margin is small among all and among those of their predicted class.

    The utility is the mean of two ranks in [0, 1] of 1 - (p_1 - p_2): among all calibration samples and
    among those of the same predicted class (percentiles, linear between them). The first alone spends the
    whole budget on the two or three classes that the model confuses; the second alone keeps the clearest
    samples of the classes that it knows best. A class that calibration never saw has rank 1. State: 101
    numbers for every class, 1.1 kB of text each.
    """

    name: ClassVar[str] = "mixed-margin"

    def __init__(self, retention: float = 0.6) -> None:
        super().__init__(retention)
        self._margin = MarginSelector(retention)
        self._points: FloatArray | None = None

    def utility(self, observations: Observations) -> FloatArray:
        """Shape (n,): mean of the two ranks.

        Raises:
            PolicyError: the rule was not calibrated.
        """
        if self._points is None:
            raise self._uncalibrated()
        self._check_classes(observations, len(self._points) - 1)
        values = self._margin.utility(observations)
        overall = _ranks(values, self._points[-1])
        within = np.ones(len(values))
        for label in np.unique(observations.classes).tolist():
            mine = observations.classes == label
            if np.isfinite(self._points[label, 0]):
                within[mine] = _ranks(values[mine], self._points[label])
        return (overall + within) / 2

    def state(self) -> JsonObject:
        """The limit, and 101 percentiles of every class and of all (null for a class without samples)."""
        state = super().state()
        assert self._points is not None  # noqa: S101  # a limit comes from them
        rows = [packed(row, "<f8") if np.isfinite(row[0]) else None for row in self._points]
        return {**state, "percentiles": rows}

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        values = self._margin.utility(observations)
        parts = [*sort_by_class(values, observations.classes, n_classes), np.sort(values)]
        shares = np.linspace(0, 1, _POINTS)
        nothing = np.full(_POINTS, np.nan)
        self._points = np.stack([np.quantile(part, shares) if len(part) else nothing for part in parts])
        super()._calibrate(observations)

    def _restore(self, state: JsonObject) -> None:
        *rows, everything = state["percentiles"]
        nothing = np.full(_POINTS, np.nan)
        points = [nothing if row is None else _percentiles(row) for row in rows]
        self._points = np.stack([*points, _percentiles(everything)])
        if (np.diff(self._points) < 0).any():
            raise ValueError("percentiles must ascend")
        super()._restore(state)


def _percentiles(text: Any) -> FloatArray:
    return unpacked("percentiles", text, _POINTS, dtype="<f8")


def _ranks(values: FloatArray, percentiles: FloatArray) -> FloatArray:
    """Shares of the calibration samples below; where percentiles tie, the middle of the tie."""
    shares = np.linspace(0, 1, len(percentiles))
    low = np.interp(values, *_unique(percentiles, shares, last=False))
    high = np.interp(values, *_unique(percentiles, shares, last=True))
    return (low + high) / 2


def _unique(percentiles: FloatArray, shares: FloatArray, *, last: bool) -> tuple[FloatArray, FloatArray]:
    """Percentiles without repeats, each with the first or last of its shares."""
    if last:
        values, rows = np.unique(percentiles[::-1], return_index=True)
        return values, shares[::-1][rows]
    values, rows = np.unique(percentiles, return_index=True)
    return values, shares[rows]
