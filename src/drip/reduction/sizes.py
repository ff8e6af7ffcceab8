"""How many rows every class keeps: the house rule. Counts in, counts out."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError
from drip.reduction.checks import check_number
from drip.types import IntArray

Stratify = Literal["proportional", "balanced", "global"]

DEFAULT_FRACTION = 0.1
"""Kept where neither a fraction, a number nor an epsilon is given."""


def kept_total(n: int, fraction: float) -> int:
    r"""Rows that a fraction means: :math:`\lfloor pn + 1/2 \rfloor`, at least 1.

    ``fraction`` is read as the decimal number that prints, so that halves round up as on paper.

    Args:
        n: Number of rows, at least 1.
        fraction: Share to keep p, in (0, 1].

    >>> kept_total(10, 0.25), kept_total(100, 0.29), kept_total(3, 0.01)
    (3, 29, 1)
    """
    return max(1, int(Fraction(str(fraction)) * n + Fraction(1, 2)))


def largest_remainder(shares: list[Fraction], total: int, first: NDArray[Any]) -> IntArray:
    """Whole numbers that sum to ``total`` and lie within one of the shares, which sum to it too.

    Every share is rounded down; what is missing goes to the largest remainders, on ties to the larger
    entry of ``first``, then to the earlier one.

    >>> largest_remainder([Fraction(5, 2), Fraction(1, 2), Fraction(1)], 4, np.array([1, 9, 0])).tolist()
    [2, 1, 1]
    """
    whole = np.array([int(share) for share in shares], dtype=np.int64)
    missing = total - int(whole.sum())
    order = sorted(range(len(shares)), key=lambda c: (int(whole[c]) - shares[c], -first[c], c))
    whole[order[:missing]] += 1
    return whole


def class_sizes(counts: IntArray, total: int, stratify: Stratify, min_per_class: int = 1) -> IntArray:
    """Rows that every class keeps, shape (n_classes,).

    ``proportional``: the largest-remainder share of ``total`` by class size. ``balanced``: equal shares;
    a class that is smaller than its share is kept whole and the others share what it leaves. Then every
    class is raised to ``min_per_class`` rows, or to all that it has: the sum may exceed ``total`` by what
    small classes needed.

    Args:
        counts: Rows of every class, each at least 1, shape (n_classes,).
        total: Rows to keep, in [1, sum(counts)].
        stratify: ``proportional`` or ``balanced``.
        min_per_class: Least rows of a class.

    >>> class_sizes(np.array([90, 9, 1]), 10, "proportional").tolist()
    [9, 1, 1]
    >>> class_sizes(np.array([90, 9, 1]), 13, "balanced").tolist()
    [6, 6, 1]
    """
    if stratify == "balanced":
        sizes = _balanced(counts, total)
    else:
        n = int(counts.sum())
        sizes = largest_remainder([Fraction(total * int(count), n) for count in counts], total, counts)
    return np.maximum(sizes, np.minimum(counts, min_per_class))


def _balanced(counts: IntArray, total: int) -> IntArray:
    sizes = np.zeros_like(counts)
    left = total
    open_classes = np.arange(len(counts))
    while True:
        share = Fraction(left, len(open_classes))
        whole = np.array([int(counts[c]) <= share for c in open_classes])
        if not whole.any():
            sizes[open_classes] = largest_remainder([share] * len(open_classes), left, counts[open_classes])
            return sizes
        sizes[open_classes[whole]] = counts[open_classes[whole]]
        left -= int(counts[open_classes[whole]].sum())
        open_classes = open_classes[~whole]
        if not len(open_classes):
            return sizes


def sizes_from_mapping(n_samples: Mapping[Any, int], labels: list[Any], counts: IntArray) -> IntArray:
    """Rows of every class as a mapping names them, shape (n_classes,).

    Raises:
        InputError: a class is missing or unknown, or a number is not in [1, rows of the class].

    >>> sizes_from_mapping({"a": 2, "b": 1}, ["a", "b"], np.array([5, 5])).tolist()
    [2, 1]
    """
    if set(n_samples) != set(labels):
        raise InputError(f"n_samples must name every class of {labels}, got {sorted(n_samples, key=str)}")
    for label, count in zip(labels, counts.tolist(), strict=True):
        check_number(f"n_samples of class {label!r}", n_samples[label], count)
    return np.array([int(n_samples[label]) for label in labels], dtype=np.int64)
