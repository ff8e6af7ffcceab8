"""The order in which kept samples are labelled: what is learned from few labels depends on which ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drip.errors import InputError
from drip.rules.parts.gates import nearest_distances
from drip.rules.parts.gaussians import N_NUMBERS, project
from drip.rules.uncertainty import MarginRule
from drip.types import FloatArray, IntArray, Observations


def labelling_order(
    observations: Observations, populations: Sequence[int], count: int | None = None
) -> IntArray:
    r"""Rows of kept samples, the one to label first at the start.

    The populations take turns, since only labels show what a new one is. Within a population the next sample is
    the one with the largest :math:`u \min(d, c)`: its margin 1 - u between the two largest softmax probabilities is
    small, and it is far from everything chosen before. d is the Euclidean distance to the nearest chosen sample in 64
    projected features. Beyond the cap c, the median distance of a sample to its nearest neighbour, more distance
    does not count, so outliers do not come first.

    Complexity: 64 operations per sample and chosen sample.

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
    rows = project(observations.features, N_NUMBERS)
    closeness = MarginRule().score(observations)
    # Where more than half of the samples are repeats, the median is 0, and any cap will do.
    cap = (float(np.sqrt(np.median(nearest_distances(rows)))) if len(rows) > 1 else 0.0) or 1.0
    mine = [np.flatnonzero(numbers == number) for number in np.unique(numbers)[::-1].tolist()]
    turns = [iter(part[_spread(closeness[part], rows[part], cap, count)].tolist()) for part in mine]
    order: list[int] = []
    while len(order) < count:
        order += [row for turn in turns if (row := next(turn, None)) is not None]
    return np.array(order[:count], np.int64)


def _spread(closeness: FloatArray, rows: FloatArray, cap: float, count: int) -> IntArray:
    """The first rows of one population, each the best after those before it."""
    distance, left = np.full(len(rows), cap), np.ones(len(rows), np.bool_)
    order = []
    for _ in range(min(count, len(rows))):
        # Repeats of chosen samples have the value 0; the closest call among them comes next.
        value = np.where(left, closeness * (distance + 1e-9 * cap), -1.0)
        chosen = int(np.argmax(value))
        left[chosen] = False
        order.append(chosen)
        distance = np.minimum(distance, np.sqrt(((rows - rows[chosen]) ** 2).sum(axis=1)))
    return np.array(order, np.int64)
