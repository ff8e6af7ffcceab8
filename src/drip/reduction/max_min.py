"""Farthest-point sampling (MMS): keeps adding the row that is farthest from all kept rows."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from drip.reduction.base import Counter, RankedReducer, Table
from drip.reduction.neighbours import Metric, distances_to
from drip.types import FloatArray, IntArray

_BLOCK_ROWS = 8192  # the differences of one block stay in the processor's cache
_SLACK = 1e-9  # relative rounding error of projections, on the safe side: it only costs a few more rows
_POWER_STEPS = 8


@dataclass(eq=False, repr=False)
class MaxMin(RankedReducer):
    r"""Start at a random row of the class, then add :math:`\arg\max_i \min_{s \in S} \|x_i - x_s\|`.

    The largest distance to a kept row (the covering radius, the class's epsilon) is at most twice the
    smallest that any choice of the same number of rows reaches. The order is nested and the radius after
    every pick is known, so one fit provides the whole curve. Ties: the lower row. Only the start is random.
    Outliers are kept first, so classifiers may learn more from other methods at equal size.

    Parameters and other attributes: :class:`~drip.reduction.base.BaseReducer` and
    :class:`~drip.reduction.base.RankedReducer`. With ``epsilon`` it stops at the first pick that reaches
    it; any two picks are then more than ``epsilon`` apart. ``stratify="global"`` covers all rows as one
    class. Complexity: at most O(n m d) time for m picks of n rows, O(n d) memory.

    Attributes:
        radii_: Covering radius after each pick, one array per group in the order of the labels.
        sample_weight_: Number of rows of the group that are nearest to each kept row (on ties to the
            earlier pick).

    References:
        Gonzalez (1985), Clustering to minimize the maximum intercluster distance; de Silva and Carlsson
        (2004), Topological estimation using witness complexes.

    >>> sampler = MaxMin(n_samples=3, random_state=0).fit([[0.0], [1.0], [5.0], [9.0], [10.0]])
    >>> sampler.sample_indices_.tolist(), sampler.radii_[0].tolist()
    ([1, 2, 4], [9.0, 4.0, 1.0])
    """

    name: ClassVar[str] = "maxmin"
    abbreviation: ClassVar[str] = "MMS"

    def _orders(self, table: Table, sizes: IntArray | None) -> list[IntArray]:
        stop = -1.0 if sizes is not None else float(self.epsilon or 0.0)
        limits = [len(rows) for rows in table.groups] if sizes is None else sizes.tolist()
        counter = self._counter(sum(limits))

        def cover(rows: IntArray, limit: int, seed: int) -> Cover:
            start = int(np.random.default_rng(seed).integers(len(rows)))
            least = min(self.min_per_class, len(rows))
            points = table.values[rows]
            return farthest_first(points, limit, start, self.metric, stop=stop, least=least, counter=counter)

        covers = self._each(cover, table.groups, limits, table.seeds)
        self.radii_ = [found.radii for found in covers]
        self._n_nearest = [np.bincount(found.owner, minlength=len(found.order)) for found in covers]
        return [rows[found.order] for rows, found in zip(table.groups, covers, strict=True)]

    def _sizes_within(self, table: Table, orders: list[IntArray]) -> IntArray:  # noqa: ARG002  # the orders stop at epsilon
        return np.array([len(order) for order in orders])

    def _weights(self, table: Table, kept: IntArray) -> FloatArray:  # noqa: ARG002  # counted while picking
        groups = self._group_codes()[self.sample_indices_].tolist()
        places = self.ranking_[self.sample_indices_].tolist()
        return np.array(
            [self._n_nearest[g][k] for g, k in zip(groups, places, strict=True)], dtype=np.float64
        )


class Cover(NamedTuple):
    """Result of :func:`farthest_first`.

    Attributes:
        order: The picks, int64, shape (m,).
        radii: Covering radius after every pick, shape (m,).
        owner: Index of the pick nearest to every row, shape (n,).
    """

    order: IntArray
    radii: FloatArray
    owner: IntArray


def farthest_first(
    points: FloatArray,
    count: int,
    start: int,
    metric: Metric,
    *,
    stop: float = -1.0,
    least: int = 1,
    counter: Counter | None = None,
) -> Cover:
    """Farthest-point order of rows.

    A pick at distance r from the earlier picks can only be the nearest pick of rows within r. Rows are
    sorted by a projection that never enlarges distances, so those rows are one contiguous range:
    later picks look at ever fewer rows.

    Args:
        points: Shape (n, d).
        count: Maximum number of picks, in [1, n].
        start: The first pick.
        metric: ``euclidean`` or ``chebyshev``.
        stop: Stop when the covering radius is at most this, after at least ``least`` picks.
        least: See ``stop``.
        counter: Advanced at every pick.

    >>> farthest_first(np.array([[0.0], [1.0], [4.0]]), 2, 0, "chebyshev").order.tolist()
    [0, 2]
    """
    n = len(points)
    places = points @ _direction(points, metric)
    original = np.argsort(places, kind="stable")
    rows, places = points[original], places[original]
    slack = _SLACK * float(np.abs(places).max())
    gap = np.full(n, np.inf)  # distance to the nearest pick; squared where Euclidean; -1 for picks
    owner = np.zeros(n, dtype=np.int64)
    order, radii = np.empty(count, dtype=np.int64), np.empty(count)
    ladder = places.data  # bisect on the buffer is faster than the call overhead of np.searchsorted
    pick, reach = int(np.flatnonzero(original == start)[0]), np.inf
    for k in range(count):
        order[k] = original[pick]
        begin, end = bisect_left(ladder, places[pick] - reach), bisect_left(ladder, places[pick] + reach) + 1
        for low in range(begin, min(end, n), _BLOCK_ROWS):
            part = slice(low, min(low + _BLOCK_ROWS, end))
            distances = distances_to(rows[part], rows[pick], metric)
            nearer = distances < gap[part]
            np.copyto(gap[part], distances, where=nearer)
            np.copyto(owner[part], k, where=nearer)
        gap[pick], owner[pick] = -1.0, k
        pick = int(gap.argmax())
        largest = max(float(gap[pick]), 0.0)
        radii[k] = largest**0.5 if metric == "euclidean" else largest
        ties = (gap == gap[pick]).nonzero()[0]
        if len(ties) > 1:
            pick = int(ties[original[ties].argmin()])
        reach = float(radii[k]) * (1.0 + _SLACK) + slack
        if counter is not None:
            counter.advance()
        if radii[k] <= stop and k + 1 >= least:
            order, radii = order[: k + 1], radii[: k + 1]
            break
    unsorted = np.empty_like(owner)
    unsorted[original] = owner
    return Cover(order, radii, unsorted)


def _direction(points: FloatArray, metric: Metric) -> FloatArray:
    """A unit direction along which rows spread: near the first principal axis, or a coordinate.

    Only the speed depends on it, not the result, so a few steps of the power method are enough.
    """
    axis: FloatArray = np.zeros(points.shape[1])
    axis[points.std(axis=0).argmax()] = 1.0
    if metric == "euclidean":
        centred = points - points.mean(axis=0)
        for _ in range(_POWER_STEPS):
            turned = (centred @ axis) @ centred
            largest = np.abs(turned).max()
            if largest == 0.0:  # equal rows
                break
            turned /= largest  # else the squares in the norm could overflow
            axis = turned / np.linalg.norm(turned)
    return axis
