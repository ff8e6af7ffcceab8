"""Random rules and rules that fill quotas: what every other rule is compared with.

Also here: :func:`match_count`, which lets two rules keep the same number of samples, as every fair comparison
requires.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from drip.errors import InputError
from drip.rules.base import BaseRule, ChanceRule, deterministic
from drip.rules.state import numbers
from drip.types import BoolArray, Decisions, FloatArray, IntArray, JsonObject, Observations


class RandomRule(ChanceRule):
    """Keep each sample with the same probability; all have priority 0, so a full store evicts the oldest."""

    name: ClassVar[str] = "random"

    def _decide(self, observations: Observations) -> Decisions:
        n = len(observations)
        # One draw per observation whatever is decided, so batches and single decisions use equal draws.
        retain = self._draw(observations) < self._retention
        return Decisions(retain, np.zeros(n), np.full(n, float(self._retention)), ["random"] * n)


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
