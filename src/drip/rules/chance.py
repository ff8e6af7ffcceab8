"""Random rules and rules that fill quotas: what every other rule is compared with.

Also here: :func:`match_count`, which lets two rules keep the same number of samples, as every fair comparison
requires.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from drip.errors import InputError
from drip.rules.base import BaseRule, ChanceRule, ThresholdRule, deterministic
from drip.rules.state import numbers, packed, unpacked
from drip.rules.uncertainty import MarginRule
from drip.types import BoolArray, Decisions, FloatArray, IntArray, JsonObject, Observations
from drip.windows import sort_by_class


class RandomRule(ChanceRule):
    """Keep each sample with the same probability; all have priority 0, so a full store evicts the oldest."""

    name: ClassVar[str] = "random"

    def _decide(self, observations: Observations) -> Decisions:
        n = len(observations)
        # One draw per observation whatever is decided, so batches and single decisions use equal draws.
        retain = self._draw(observations) < self._retention
        return Decisions(retain, np.zeros(n), np.full(n, float(self._retention)), ["random"] * n)


class ReservoirRule(ChanceRule):
    """Give each sample a uniform random priority and keep those above 1 - retention.

    A full store evicts the lowest priorities, so it always holds a uniform sample without replacement of
    everything that arrived (the default keep rate is 1).

    References:
        Vitter (1985), Random sampling with a reservoir; Li (1994), random priorities.
    """

    name: ClassVar[str] = "reservoir"

    def __init__(self, retention: float = 1.0, seed: int = 0) -> None:
        super().__init__(retention, seed)

    def _decide(self, observations: Observations) -> Decisions:
        n = len(observations)
        priority = self._draw(observations)
        return Decisions(
            priority >= 1.0 - self._retention, priority, np.full(n, float(self._retention)), ["reservoir"] * n
        )


class ClassBalancedRandomRule(ChanceRule):
    """Keep at random so that every predicted class fills the same quota, as far as it has samples.

    The quota m solves sum_c min(n_c, m) = retention * n on the calibration counts n_c; a sample of
    class c is kept with probability min(1, m / n_c). A class that calibration never saw is kept. The
    priority is 1 - draw / probability: uniform in [0, 1] among the kept samples of every class, so a
    full store evicts from all classes equally, and negative for discarded samples.
    """

    name: ClassVar[str] = "class-balanced-random"

    def __init__(self, retention: float = 0.6, seed: int = 0) -> None:
        super().__init__(retention, seed)
        self._probabilities: FloatArray | None = None

    def state(self) -> JsonObject:
        """The keep probability of every class, and the generator."""
        if self._probabilities is None:
            raise self._uncalibrated()
        return {**super().state(), "probabilities": self._probabilities.tolist()}

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        counts = np.bincount(observations.classes, minlength=n_classes)
        quota = equal_quota(counts, self._retention)
        # A class without calibration samples gets probability 1 through the tiny divisor: it is rare, so keep it.
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
    # If the i smallest classes are kept entirely, the others share the rest of the budget equally.
    whole = np.concatenate([[0.0], np.cumsum(ascending)[:-1]])
    shares = (wanted - whole) / np.arange(len(counts), 0, -1)
    # The first share that its class can fill; for smaller classes the share exceeds what they have.
    return float(shares[int(np.argmax(shares <= ascending))])


class KeepAllRule(BaseRule):
    """Keep every sample, all with priority 0: a full store evicts the oldest."""

    name: ClassVar[str] = "keep-all"

    @classmethod
    def for_retention(cls, retention: float, **params: Any) -> Self:  # noqa: ARG003  # keeps everything
        """Keep everything; the keep rate is ignored."""
        return cls(**params)

    @property
    def params(self) -> JsonObject:
        """None."""
        return {}

    def _decide(self, observations: Observations) -> Decisions:
        n = len(observations)
        return deterministic(np.ones(n, dtype=np.bool_), np.zeros(n), "keep-all", "")


_POINTS = 101
_FEWEST = 3
_ALL_POINTS = 5000


class MixedMarginRule(ThresholdRule):
    """Keep the samples whose margin is small among all and among those of their predicted class.

    The score is the mean of two ranks in [0, 1] of 1 - (p_1 - p_2): among all calibration samples and
    among those of the same predicted class (percentiles, linear in between). The first alone spends the
    whole budget on the two or three classes that the model confuses; the second alone keeps even the
    clearest samples of the classes that it knows best. A class that calibration never saw has rank 1.

    State: 101 numbers per class, 1.1 kB of text each. From 50 classes on there are fewer, 5,000 for all
    classes together but at least 3 each, so the state stays small with a thousand classes.
    """

    name: ClassVar[str] = "mixed-margin"

    def __init__(self, retention: float = 0.6) -> None:
        super().__init__(retention)
        self._margin = MarginRule(retention)
        self._overall: FloatArray | None = None
        self._within: FloatArray

    def score(self, observations: Observations) -> FloatArray:
        """Shape (n,): mean of the two ranks.

        Raises:
            PolicyError: the rule was not calibrated.
        """
        if self._overall is None:
            raise self._uncalibrated()
        self._check_classes(observations, len(self._within))
        values = self._margin.score(observations)
        overall = _ranks(values, self._overall)
        # A class without calibration samples counts as most uncertain.
        within = np.ones(len(values))
        for label in np.unique(observations.classes).tolist():
            mine = observations.classes == label
            if np.isfinite(self._within[label, 0]):
                within[mine] = _ranks(values[mine], self._within[label])
        return (overall + within) / 2

    def state(self) -> JsonObject:
        """The threshold, and the percentiles of every class (null without samples) and of all samples."""
        state = super().state()
        assert self._overall is not None  # noqa: S101  # calibration sets both together
        rows = [packed(row, "<f8") if np.isfinite(row[0]) else None for row in self._within]
        return {**state, "percentiles": [*rows, packed(self._overall, "<f8")]}

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        values = self._margin.score(observations)
        # Both ranks come from the same calibration scores, so their mean is comparable between classes.
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
        raise ValueError(f"there must be at least {_FEWEST} percentiles in ascending order")
    return points


def _ranks(values: FloatArray, percentiles: FloatArray) -> FloatArray:
    """Part of the calibration samples below each value; the middle of a tie of percentiles."""
    shares = np.linspace(0, 1, len(percentiles))
    low = np.interp(values, *_unique(percentiles, shares, last=False))
    high = np.interp(values, *_unique(percentiles, shares, last=True))
    return (low + high) / 2


def _unique(percentiles: FloatArray, shares: FloatArray, *, last: bool) -> tuple[FloatArray, FloatArray]:
    """Percentiles without repeats, each with its first or its last rank."""
    if last:
        values, rows = np.unique(percentiles[::-1], return_index=True)
        return values, shares[::-1][rows]
    values, rows = np.unique(percentiles, return_index=True)
    return values, shares[rows]


def match_count(retain: BoolArray, count: int, seed: int) -> IntArray:
    """Rows that a rule keeps when it may keep exactly ``count``.

    A surplus is removed at random; a shortfall is filled at random from the discarded samples.

    Args:
        retain: The rule's decisions on the whole stream, shape (n,).
        count: Samples to keep, in [0, n].
        seed: Seed of the draws.

    Returns:
        Sorted rows, shape (count,).

    Raises:
        InputError: ``count`` is outside its range.

    >>> match_count(np.array([True, False, True, True]), 3, seed=0).tolist()
    [0, 2, 3]
    """
    if not 0 <= count <= len(retain):
        raise InputError(f"count must be in [0, {len(retain)}], got {count!r}")
    # One permutation for surplus and shortfall: rules compared with equal seeds share their luck.
    draw = np.random.default_rng(seed).permutation(len(retain))
    # Kept rows first, each group in random order.
    chosen = draw[np.argsort(~retain[draw], kind="stable")][:count]
    return np.sort(chosen).astype(np.int64)
