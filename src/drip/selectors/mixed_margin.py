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
_FEWEST = 3
_ALL_POINTS = 5000


class MixedMarginSelector(ThresholdSelector):
    """Keep the samples whose margin is small among all and among those of their predicted class.

    The utility is the mean of two ranks in [0, 1] of 1 - (p_1 - p_2): among all calibration samples and
    among those of the same predicted class (percentiles, linear between them). The first alone spends the
    whole budget on the two or three classes that the model confuses; the second alone keeps the clearest
    samples of the classes that it knows best. A class that calibration never saw has rank 1.

    State: 101 numbers for every class, 1.1 kB of text each; from 50 classes on fewer, 5,000 over all classes
    together, but at least 3 for each. A thousand classes have their quartiles and extremes.
    """

    name: ClassVar[str] = "mixed-margin"

    def __init__(self, retention: float = 0.6) -> None:
        super().__init__(retention)
        self._margin = MarginSelector(retention)
        self._overall: FloatArray | None = None
        self._within: FloatArray

    def utility(self, observations: Observations) -> FloatArray:
        """Shape (n,): mean of the two ranks.

        Raises:
            PolicyError: the rule was not calibrated.
        """
        if self._overall is None:
            raise self._uncalibrated()
        self._check_classes(observations, len(self._within))
        values = self._margin.utility(observations)
        overall = _ranks(values, self._overall)
        within = np.ones(len(values))
        for label in np.unique(observations.classes).tolist():
            mine = observations.classes == label
            if np.isfinite(self._within[label, 0]):
                within[mine] = _ranks(values[mine], self._within[label])
        return (overall + within) / 2

    def state(self) -> JsonObject:
        """The limit, and percentiles of every class (null for one without samples) and of all."""
        state = super().state()
        assert self._overall is not None  # noqa: S101  # a limit comes from them
        rows = [packed(row, "<f8") if np.isfinite(row[0]) else None for row in self._within]
        return {**state, "percentiles": [*rows, packed(self._overall, "<f8")]}

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        values = self._margin.utility(observations)
        self._overall = np.quantile(values, np.linspace(0, 1, _POINTS))
        shares = np.linspace(0, 1, min(_POINTS, max(_FEWEST, _ALL_POINTS // n_classes)))
        self._within = np.full((n_classes, len(shares)), np.nan)
        for label, mine in enumerate(sort_by_class(values, observations.classes, n_classes)):
            if len(mine):
                self._within[label] = np.quantile(mine, shares)
        super()._calibrate(observations)

    def _restore(self, state: JsonObject) -> None:
        *texts, everything = state["percentiles"]
        self._overall = _percentiles(everything)
        rows = [None if text is None else _percentiles(text) for text in texts]
        length = next((len(row) for row in rows if row is not None), 1)
        nothing = np.full(length, np.nan)
        self._within = np.stack([nothing if row is None else row for row in rows])
        super()._restore(state)


def _percentiles(text: Any) -> FloatArray:
    points = unpacked("percentiles", text, None, dtype="<f8")
    if len(points) < _FEWEST or (np.diff(points) < 0).any():
        raise ValueError(f"percentiles must ascend, at least {_FEWEST} of them")
    return points


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
