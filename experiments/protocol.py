"""Section IV's protocol: the 40/20/40 split, selection at equal counts, and what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from drip.datasets import split_rows
from drip.errors import InputError
from drip.types import BoolArray, FloatArray, IntArray
from experiments.regimes import probabilities

SHARES = (0.4, 0.2, 0.4)
_HELD_OUT = 0.2
_ECE_BINS = 15


class Split:
    """Rows of data sets 1, 2 and 3 of one run, and of D1c, a fifth of data set 1 held out from training (A7).

    Data set 2 can only be read inside :meth:`scoring`, or by the paper's own arms, which calibrate on it.

    Args:
        labels: Classes of the rows, shape (n,).
        seed: Number of the run.
        groups: Rows of one group are never on both sides; None if every row is a group. Where a group
            has one class only, the groups of each class are dealt apart, or a class of few groups (a leaf
            photographed thirty times) would be missing from some part.
    """

    def __init__(self, labels: IntArray, seed: int, groups: IntArray | None = None) -> None:
        everything = np.arange(len(labels))
        self.d1, self._d2, self.d3 = _deal(everything, SHARES, labels, seed, groups)
        self.d1_fit, self.d1c = _deal(self.d1, (1 - _HELD_OUT, _HELD_OUT), labels, seed, groups)
        self._scoring = False

    @property
    def d2(self) -> IntArray:
        """The test rows.

        Raises:
            InputError: outside :meth:`scoring`.
        """
        if not self._scoring:
            raise InputError("data set 2 is for scoring only; nothing may be chosen or calibrated on it")
        return self._d2

    @property
    def d2_for_calibration(self) -> IntArray:
        """Data set 2 as the paper's calibration set (III-A, IV-A.1), although accuracy is reported on it."""
        return self._d2

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Inside, data set 2 may be read."""
        self._scoring = True
        try:
            yield
        finally:
            self._scoring = False


def _deal(
    rows: IntArray, shares: Sequence[float], labels: IntArray, seed: int, groups: IntArray | None
) -> list[IntArray]:
    """The rows in parts of these shares, each in random order."""
    if groups is None or not groups_have_one_class(labels, groups):
        own = None if groups is None else groups[rows]
        return [rows[part] for part in split_rows(len(rows), shares, seed, groups=own)]
    by_class = []
    for label in np.unique(labels[rows]).tolist():
        mine = rows[labels[rows] == label]
        drawn = int(np.random.SeedSequence([seed, label]).generate_state(1)[0])
        by_class.append([mine[part] for part in split_rows(len(mine), shares, drawn, groups=groups[mine])])
    shuffle = np.random.default_rng(seed)
    return [shuffle.permutation(np.concatenate(parts)) for parts in zip(*by_class, strict=True)]


def groups_have_one_class(labels: IntArray, groups: IntArray | None) -> bool:
    """Whether no group has rows of two classes.

    >>> groups_have_one_class(np.array([0, 0, 1]), np.array([5, 5, 6]))
    True
    """
    if groups is None:
        return False
    return len(np.unique(np.stack([labels, groups]), axis=1).T) == len(np.unique(groups))


@dataclass(frozen=True)
class Selection:
    """What an arm keeps of the stream.

    Attributes:
        kept: Positions in the stream, ascending, shape (count,).
        native: How many the rule itself would have kept.
    """

    kept: IntArray
    native: int


def at_count(retain: BoolArray, count: int, rng: np.random.Generator) -> Selection:
    """A one-pass decision brought to an exact count: excess dropped, shortfall filled, both at random.

    >>> at_count(np.array([True, True, False, False]), 3, np.random.default_rng(0)).native
    2
    """
    kept, dropped = np.flatnonzero(retain), np.flatnonzero(~retain)
    native = len(kept)
    if native > count:
        kept = rng.choice(kept, count, replace=False)
    elif native < count:
        kept = np.concatenate([kept, rng.choice(dropped, count - native, replace=False)])
    return Selection(np.sort(kept), native)


def ranked(priority: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
    """The positions of the highest priorities, ties broken at random: a look ahead at the whole stream."""
    order = np.lexsort((rng.random(len(priority)), -priority))
    return np.sort(order[:count])


def evaluate(logits: FloatArray, labels: IntArray, n_classes: int) -> dict[str, float]:
    """Accuracy, macro F1, worst-class accuracy, expected calibration error (15 bins); shares in [0, 1].

    Classes without a test row count for none of them.

    References:
        Guo et al. 2017, arXiv:1706.04599, eq. 3, for the calibration error.
    """
    predicted = logits.argmax(axis=1)
    table = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(table, (labels, predicted), 1)
    hits, truths, guesses = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    present = truths > 0
    confidence = probabilities(logits).max(axis=1)
    bins = np.minimum((confidence * _ECE_BINS).astype(np.int64), _ECE_BINS - 1)
    gaps = np.bincount(bins, (predicted == labels) - confidence, _ECE_BINS)
    return {
        "accuracy": float(hits.sum() / len(labels)),
        "macro_f1": float((2 * hits[present] / (truths + guesses)[present]).mean()),
        "worst_class_accuracy": float((hits[present] / truths[present]).min()),
        "ece": float(np.abs(gaps).sum() / len(labels)),
        "n_test": len(labels),
    }
