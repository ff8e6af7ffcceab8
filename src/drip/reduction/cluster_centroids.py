"""Cluster centroids (CLC): the k-means centroids of every class, or the rows nearest to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from drip.errors import InputError
from drip.reduction.base import BaseReducer, Table
from drip.reduction.inputs import check_whole, new_points, take_rows
from drip.reduction.kmeans import Clusters, cluster, threads
from drip.reduction.neighbours import radius
from drip.types import FloatArray, IntArray


@dataclass(eq=False, repr=False)
class ClusterCentroids(BaseReducer):
    """Run k-means in every class, with one cluster per row to keep, and return the centroids.

    From a class with fewer distinct rows than clusters, each distinct row is returned once. ``voting="hard"``
    keeps the row nearest to every centroid instead (ties: the lower row) and always keeps the full number:
    the lowest other rows fill it up. k-means is Euclidean; ``metric`` only applies to ``epsilon``. With
    ``epsilon`` the number of clusters is doubled, then bisected: k-means is not monotonic, so fewer
    might do. ``stratify="global"`` needs ``voting="hard"``: a centroid across classes has no label.

    Args:
        voting: ``soft`` for centroids, ``hard`` for rows.
        max_iter: Maximum number of iterations of Lloyd's algorithm.
        batch_size: Rows of a mini-batch for large tables; None for Lloyd's algorithm on all rows.

    Other parameters: :class:`~drip.reduction.base.BaseReducer`; ``n_jobs`` threads run inside k-means.
    Complexity: O(n_c k_c d) for each iteration of each class.

    Attributes:
        points_: The centroids, float64, shape (n_kept, d), class by class; with ``hard`` the kept rows.
        sample_weight_: Number of rows of every cluster, shape (n_kept,), in the order returned; rows that
            only fill up the number have 0.
        sample_indices_: Kept rows, ascending; only with ``voting="hard"``.
        sampling_strategy_: Number of points kept, by label.

    References:
        Yen and Lee (2009), Cluster-based under-sampling approaches for imbalanced data distributions;
        Lin, Tsai, Hu and Jhang (2017), Clustering-based undersampling in class-imbalanced data; Arthur and
        Vassilvitskii (2007), k-means++.

    >>> X, y = [[0.0], [1.0], [10.0], [11.0], [5.0], [6.0]], [0, 0, 0, 0, 1, 1]
    >>> points, labels = ClusterCentroids(0.5, random_state=0).fit_resample(X, y)
    >>> sorted(points), labels
    ([[0.5], [5.5], [10.5]], [0, 0, 1])
    """

    name: ClassVar[str] = "cluster-centroids"
    abbreviation: ClassVar[str] = "CLC"

    voting: Literal["soft", "hard"] = "soft"
    max_iter: int = 50
    batch_size: int | None = None

    def check_parameters(self) -> None:
        """Check the parameters of every reducer and of this method."""
        super().check_parameters()
        if self.voting not in ("soft", "hard"):
            raise InputError(f"voting must be soft or hard, not {self.voting!r}")
        if self.stratify == "global" and self.voting == "soft":
            raise InputError(
                "stratify='global' does not work with voting='soft', because a centroid across classes has "
                "no label; use voting='hard'"
            )
        check_whole("max_iter", self.max_iter)
        if self.batch_size is not None:
            check_whole("batch_size", self.batch_size)

    def __sklearn_tags__(self) -> Any:
        """Properties that scikit-learn's and imbalanced-learn's checks rely on."""
        tags = super().__sklearn_tags__()
        tags.sampler_tags.sample_indices = self.voting == "hard"
        return tags

    def _reduce(self, table: Table, sizes: IntArray | None) -> None:
        counter = self._counter(len(table.groups))
        found: list[Clusters] = []
        with threads(self.n_jobs):
            for g, (rows, seed) in enumerate(zip(table.groups, table.seeds, strict=True)):
                points = table.values[rows]
                found.append(
                    self._cluster(points, int(sizes[g]), seed)
                    if sizes is not None
                    else self._cluster_within(points, seed)
                )
                counter.advance()
        if self.voting == "hard":
            asked = [len(part.sizes) for part in found] if sizes is None else sizes.tolist()
            self._keep_rows(table, found, asked)
        else:
            self._keep_centroids(table, found)

    def _cluster(self, points: FloatArray, k: int, seed: int) -> Clusters:
        return cluster(points, k, seed, max_iter=self.max_iter, batch_size=self.batch_size)

    def _cluster_within(self, points: FloatArray, seed: int) -> Clusters:
        """A small number of clusters whose points cover the class within ``epsilon``."""

        def attempt(k: int) -> tuple[bool, Clusters]:
            made = self._cluster(points, k, seed)
            cover = points[_representatives(made)] if self.voting == "hard" else made.centroids
            return radius(points, cover, self.metric, n_jobs=self.n_jobs) <= float(self.epsilon or 0.0), made

        n = len(points)
        low, high = 0, min(self.min_per_class, n)
        reached, best = attempt(high)
        while not reached and high < n:
            low, high = high, min(2 * high, n)
            reached, best = attempt(high)
        while reached and high - low > 1 and low > 0:
            middle = (low + high) // 2
            enough, made = attempt(middle)
            low, high, best = (low, middle, made) if enough else (middle, high, best)
        return best

    def _keep_centroids(self, table: Table, found: list[Clusters]) -> None:
        self.points_ = np.concatenate([part.centroids for part in found])
        self.sample_weight_ = np.concatenate([part.sizes for part in found]).astype(np.float64)
        kept = [len(part.sizes) for part in found]
        self.sampling_strategy_ = dict(zip(table.classes.names, kept, strict=True))
        self._label_rows = np.repeat([rows[0] for rows in table.groups], kept)

    def _keep_rows(self, table: Table, found: list[Clusters], asked: list[int]) -> None:
        kept, weights = [], []
        for rows, part, size in zip(table.groups, found, asked, strict=True):
            chosen = _representatives(part)
            others = np.setdiff1d(np.arange(len(rows)), chosen)[: size - len(chosen)]
            kept.append(rows[np.concatenate([chosen, others])])
            weights.append(np.concatenate([part.sizes, np.zeros(len(others))]))
        unsorted = np.concatenate(kept)
        order = np.argsort(unsorted)
        self.sample_indices_ = unsorted[order]
        self.sample_weight_ = np.concatenate(weights)[order].astype(np.float64)
        self.points_ = table.values[self.sample_indices_]
        counts = np.bincount(table.classes.codes[self.sample_indices_], minlength=len(table.classes.labels))
        self.sampling_strategy_ = dict(zip(table.classes.names, counts.tolist(), strict=True))

    def _fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:  # noqa: N803
        if self.voting == "hard":
            kept: tuple[Any, Any] = super()._fit_resample(X, y)
            return kept
        labels = take_rows(y, self._label_rows)
        if hasattr(labels, "reset_index"):
            labels = labels.reset_index(drop=True)
        return new_points(X, self.points_), labels


def _representatives(part: Clusters) -> IntArray:
    """The member of every cluster that is nearest to its centroid, the lower row on ties."""
    order = np.lexsort((part.distances, part.members))
    starts = np.concatenate([[0], np.cumsum(part.sizes)[:-1]])
    return np.asarray(order[starts])
