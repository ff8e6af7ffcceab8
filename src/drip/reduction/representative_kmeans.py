"""Representative k-means (RKMEANS): the same number of rows from each cluster, those nearest to its centroid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drip.errors import InputError
from drip.reduction.base import RankedReducer, Table
from drip.reduction.inputs import check_whole
from drip.reduction.kmeans import Clusters, cluster, threads
from drip.types import IntArray

_MAX_ITER = 50


@dataclass(eq=False, repr=False)
class RepresentativeKMeans(RankedReducer):
    """Cluster all rows regardless of class; keep the rows nearest to the centroids, cluster by cluster.

    A row's place is its rank by distance to the centroid among the rows of its class in its cluster. Rows
    are kept by place, then by distance, then by row number, so every cluster contributes the same number of
    rows until it is exhausted. ``stratify="global"`` ranks all rows together, which is the published method
    and may lose classes.

    Args:
        n_clusters: Number of clusters; None uses the number of classes.

    Other parameters and attributes: :class:`~drip.reduction.base.BaseReducer`,
    :class:`~drip.reduction.base.RankedReducer`; ``n_jobs`` threads run inside k-means, which is
    Euclidean; ``metric`` only applies to ``epsilon``.

    Attributes:
        clusters_: Cluster of every row, shape (n,).

    >>> X = [[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]]
    >>> RepresentativeKMeans(n_samples=2, n_clusters=2, random_state=0).fit(X).sample_indices_.tolist()
    [1, 4]
    """

    name: ClassVar[str] = "representative-kmeans"
    abbreviation: ClassVar[str] = "RKMEANS"

    n_clusters: int | None = None

    def _orders(self, table: Table, sizes: IntArray | None) -> list[IntArray]:  # noqa: ARG002  # orders all rows
        k = len(table.classes.labels) if self.n_clusters is None else self.n_clusters
        check_whole("n_clusters", k)
        if k > len(table.values):
            raise InputError(
                f"n_clusters={k} is more than the {len(table.values)} rows of X; choose a smaller number"
            )
        with threads(self.n_jobs):
            found = cluster(table.values, k, table.seeds[0], max_iter=_MAX_ITER)
        self.clusters_ = found.members
        return [_by_place(rows, found) for rows in table.groups]


def _by_place(rows: IntArray, found: Clusters) -> IntArray:
    members, distances = found.members[rows], found.distances[rows]
    order = np.lexsort((distances, members))
    starts = np.searchsorted(members[order], np.arange(len(found.sizes)))
    places = np.empty(len(rows), dtype=np.int64)
    places[order] = np.arange(len(rows)) - starts[members[order]]
    return rows[np.lexsort((distances, places))]
