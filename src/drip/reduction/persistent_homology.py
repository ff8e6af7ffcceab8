"""Persistent-homology landmarks (PHL): ranks rows by the shape of their neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from drip.errors import InputError, missing_extra
from drip.reduction.base import Counter, ScoredReducer, Table
from drip.reduction.inputs import check_real, check_whole
from drip.reduction.neighbours import POWER, Metric
from drip.types import FloatArray, IntArray

_BATCH = 512  # rows whose neighbourhoods are held at once


@dataclass(eq=False, repr=False)
class PersistentHomologyLandmarks(ScoredReducer):
    r"""Rank the rows of a class by the longest bar in the homology of their neighbours.

    For row x, :math:`N = \{z \ne x : \|z - x\| \le \delta\}` within its class (equal rows are neighbours).
    With fewer than two neighbours x is a super-outlier. Otherwise its score is the longest finite bar (death
    minus birth) of the Vietoris-Rips persistence of N in one dimension, or in all dimensions up to it; zero
    without a bar. ``representative`` keeps short bars first, ``vital`` long ones. Ties, often at zero, are in
    random order; super-outliers are last, also in random order. (The published code confuses ordinary rows
    of score zero with super-outliers, which makes it almost random.)

    Args:
        radius: delta; None uses each class's median distance to the ``typical_neighbours``-th neighbour.
        dimension: Homology dimension q, 0 or more; a hole of dimension 2 needs at least six neighbours.
        mode: ``restricted`` to the dimension, or ``multi`` for the longest bar in dimensions 0 to q.
        landmarks: ``representative`` or ``vital``.
        typical_neighbours: See ``radius``.
        max_neighbours: Use only so many of the nearest neighbours: the cost grows with up to the power
            3q + 3 of their number.

    Other parameters and attributes: :class:`~drip.reduction.base.BaseReducer`,
    :class:`~drip.reduction.base.RankedReducer`. ``progress`` counts rows.

    Attributes:
        scores_: The bar if ``vital``, else minus the bar; -inf for super-outliers, shape (n,).
        radii_: delta of every class, in the order of the labels.

    References:
        Stolz (2023), Outlier-robust subsampling techniques for persistent homology, JMLR 24(90).

    >>> turn = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    >>> X = np.vstack([[[0.0, 0.0]], np.column_stack([np.cos(turn), np.sin(turn)]), [[9.0, 9.0]]])
    >>> sampler = PersistentHomologyLandmarks(n_samples=5, radius=1.5, random_state=0).fit(X)
    >>> sampler.scores_.round(2).tolist()[0], sampler.scores_.tolist()[-1]
    (-1.08, -inf)
    """

    name: ClassVar[str] = "persistent-homology"
    abbreviation: ClassVar[str] = "PHL"
    random_ties: ClassVar[bool] = True

    radius: float | None = None
    dimension: int = 1
    mode: Literal["restricted", "multi"] = "restricted"
    landmarks: Literal["representative", "vital"] = "representative"
    typical_neighbours: int = 10
    max_neighbours: int = 30

    def check_parameters(self) -> None:
        """Check the parameters of every reducer and of this method."""
        super().check_parameters()
        if self.radius is not None:
            check_real("radius", self.radius)
        check_whole("dimension", self.dimension, least=0)
        check_whole("typical_neighbours", self.typical_neighbours)
        check_whole("max_neighbours", self.max_neighbours, least=2)
        for name, words in (("mode", ("restricted", "multi")), ("landmarks", ("representative", "vital"))):
            if getattr(self, name) not in words:
                raise InputError(f"{name} must be {words[0]} or {words[1]}, not {getattr(self, name)!r}")

    def _score(self, table: Table, sizes: IntArray | None) -> FloatArray:  # noqa: ARG002  # one for every size
        counter = self._counter(len(table.values))
        dimensions = range(self.dimension + 1) if self.mode == "multi" else [self.dimension]

        def bars(rows: IntArray) -> tuple[FloatArray, float]:
            points = table.values[rows]
            radius = self._radius(points)
            return neighbourhood_bars(
                points, radius, list(dimensions), self.metric, self.max_neighbours, counter
            ), radius

        found = self._each(bars, table.classes.rows)
        self.radii_ = [radius for _, radius in found]
        scores = np.empty(len(table.values))
        for rows, (longest, _) in zip(table.classes.rows, found, strict=True):
            signed = -longest if self.landmarks == "representative" else longest
            scores[rows] = np.where(np.isnan(longest), -np.inf, signed)
        return scores

    def _radius(self, points: FloatArray) -> float:
        if self.radius is not None:
            return float(self.radius)
        place = min(self.typical_neighbours, len(points) - 1)
        tree = cKDTree(points, balanced_tree=False)
        distances, _ = tree.query(points, k=[place + 1], p=POWER[self.metric])
        return float(np.median(distances))


def neighbourhood_bars(
    points: FloatArray,
    radius: float,
    dimensions: list[int],
    metric: Metric,
    max_neighbours: int,
    counter: Counter | None = None,
) -> FloatArray:
    """Longest finite bar of every row's neighbourhood, shape (n,); NaN with fewer than two neighbours.

    Args:
        points: Rows of one class, shape (n, d).
        radius: Largest distance of a neighbour.
        dimensions: Homology dimensions; the longest bar of all is returned.
        metric: ``euclidean`` or ``chebyshev``.
        max_neighbours: Use only so many of the nearest neighbours.
        counter: Advanced at every row.
    """
    tree = cKDTree(points, balanced_tree=False)
    longest = np.full(len(points), np.nan)
    least = max(2, 2 * min(dimensions) + 2)  # vertices of the smallest flag complex with a hole
    k = min(max_neighbours + 1, len(points))
    within = np.nextafter(radius, np.inf)  # SciPy's distance bound is exclusive
    for start in range(0, len(points), _BATCH):
        batch = np.arange(start, min(start + _BATCH, len(points)))
        _, found = tree.query(
            points[batch], list(range(1, k + 1)), p=POWER[metric], distance_upper_bound=within
        )
        others = (found < len(points)) & (found != batch[:, None])
        counts = others.sum(axis=1)
        longest[batch[counts >= 2]] = 0.0
        distances = []
        for near, other in zip(found[counts >= least], others[counts >= least], strict=True):
            # If more rows are equal than neighbours are searched, a row may be missing from its own nearest
            # rows.
            points_near = points[near[other][:max_neighbours]]
            distances.append(cdist(points_near, points_near, metric))
        bars = [longest_bars(distances, dimension) for dimension in dimensions]
        longest[batch[counts >= least]] = np.max(bars, axis=0)
        if counter is not None:
            counter.advance(len(batch))
    return longest


def longest_bars(matrices: list[FloatArray], dimension: int) -> FloatArray:
    """Longest finite bar of the Vietoris-Rips persistence of each set of points, 0 without a bar.

    Args:
        matrices: Distances within each set, symmetric, each of shape (k, k), k >= 1.
        dimension: Homology dimension q.

    >>> square = np.array([[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]], dtype=float)
    >>> longest_bars([square], 1).tolist(), longest_bars([square], 0).tolist()
    ([1.0], [1.0])
    """
    longest = np.zeros(len(matrices))
    cores = [_core(distances, dimension) for distances in matrices]
    kept = [place for place, core in enumerate(cores) if len(core)]
    if kept:
        persistence = _rips_persistence()(
            homology_dimensions=dimension, input_type="full distance matrix", num_collapses=0
        )
        for place, bars in zip(kept, persistence.fit_transform([cores[k] for k in kept]), strict=True):
            lengths = bars[:, 1] - bars[:, 0]
            longest[place] = lengths[np.isfinite(lengths)].max(initial=0.0)
    return longest


def _core(distances: FloatArray, dimension: int) -> FloatArray:
    """Distances between the vertices that can affect one dimension; empty if there cannot be a bar.

    This is what makes the method fast: gudhi then sees a fraction of the vertices. At the distance at which
    one vertex is joined to all others the complex becomes a cone, without homology, so longer distances
    are cut to this one. Below it, a vertex with fewer than 2q neighbours has a link without homology in the
    dimensions q - 1 and q (a flag complex needs 2q + 2 vertices for a hole of dimension q), so removing
    it changes no bar in dimension q.
    """
    if dimension == 0:
        return distances
    if len(distances) < 2 * dimension + 2:
        return distances[:0, :0]
    cone = distances.max(axis=0).min()
    joined = distances < cone
    while len(joined) and (weak := joined.sum(axis=0) <= 2 * dimension).any():  # the diagonal counts too
        distances, joined = distances[~weak][:, ~weak], joined[~weak][:, ~weak]
    return np.asarray(np.minimum(distances, cone))


def _rips_persistence() -> Any:
    try:
        from gudhi.sklearn.rips_persistence import RipsPersistence  # noqa: PLC0415  # only this method needs it
    except ImportError as error:
        raise missing_extra("PersistentHomologyLandmarks", "gudhi", "reduction") from error
    return RipsPersistence
