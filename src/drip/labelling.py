"""The order in which kept samples are labelled: what is learned from few labels depends on which ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError
from drip.rules.parts.populations import KNOWN
from drip.types import IntArray, Observations

_MOST_COVERED = 2_000  # samples that the order must cover; bounds memory at 8 kB per kept sample
_TURNS_OF_NEW = 2


def labelling_order(
    observations: Observations, populations: Sequence[int], count: int | None = None
) -> IntArray:
    r"""Rows of kept samples, the one to label first at the start.

    Populations take turns, since only labels show what a new one is: two samples of each new population, the newest
    first, then one of the known population. Within a population V, greedy facility location chooses the next sample
    so that :math:`\sum_{i \in V} \max_{j \in A} s(i, j)` grows most: every sample should have a similar one among
    the labelled ones, A. s is the cosine similarity of the features. (Wei, Iyer, Bilmes: Submodularity in data subset
    selection and active learning, ICML 2015.) Of a population with more than 2,000 samples, evenly spaced ones stand
    in V.

    Uncertain samples need no preference here: a rule such as ``margin`` has already kept them.

    Complexity: n |V| similarities per population of n; then, because the gain of a sample can only shrink, few are
    computed again per chosen sample.

    Args:
        observations: What the model says of the n kept samples, with features.
        populations: Number of the population of each sample; 1 is what calibration contained.
        count: How many rows to return; all if None.

    Returns:
        Rows, shape (count,).

    Raises:
        InputError: there are no features, or not one population per sample.
    """
    if observations.features is None:
        raise InputError("the order of labelling needs features; score with a model file that outputs them")
    numbers = np.asarray(populations, np.int64)
    if numbers.shape != (len(observations),):
        raise InputError(f"there must be one population for each of {len(observations)} samples")
    count = len(numbers) if count is None else min(count, len(numbers))
    lengths = np.linalg.norm(observations.features, axis=1, keepdims=True)
    rows = (observations.features / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    turns = []
    for number in np.unique(numbers)[::-1].tolist():
        mine = np.flatnonzero(numbers == number)
        turn = iter(mine[_representatives(rows[mine], count)].tolist())
        turns += [turn] * (1 if number == KNOWN else _TURNS_OF_NEW)
    order: list[int] = []
    while len(order) < count:
        order += [row for turn in turns if (row := next(turn, None)) is not None]
    return np.array(order[:count], np.int64)


def _representatives(rows: NDArray[np.float32], count: int) -> IntArray:
    """The first rows of one population by greedy facility location."""
    n = len(rows)
    covered = np.linspace(0, n - 1, min(n, _MOST_COVERED)).round().astype(np.int64)
    similarity = rows @ rows[covered].T
    nearest = np.full(len(covered), -1.0, np.float32)  # the lowest cosine
    gains = similarity.sum(axis=1, dtype=np.float64) + len(covered)
    order: list[int] = []
    for _ in range(min(count, n)):
        is_current = np.zeros(n, np.bool_)
        while not is_current[best := int(np.argmax(gains))]:
            gains[best] = np.maximum(similarity[best] - nearest, 0).sum(dtype=np.float64)
            is_current[best] = True
        order.append(best)
        nearest = np.maximum(nearest, similarity[best])
        gains[order] = -1
    return np.array(order, np.int64)
