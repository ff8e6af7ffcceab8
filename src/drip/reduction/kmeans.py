"""k-means for two of the methods: one seeded run, without warnings about repeated rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from joblib import effective_n_jobs
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from drip.types import FloatArray, IntArray


class Clusters(NamedTuple):
    """Clusters, each with at least one row.

    Attributes:
        centroids: Their means, shape (k, d).
        members: Cluster of every row, shape (n,).
        sizes: Number of rows of every cluster, each at least 1, shape (k,).
        distances: Distance of every row to its centroid, shape (n,).
    """

    centroids: FloatArray
    members: IntArray
    sizes: IntArray
    distances: FloatArray


def cluster(
    points: FloatArray, k: int, seed: int, *, max_iter: int, batch_size: int | None = None
) -> Clusters:
    """k-means from one k-means++ start; with fewer than k distinct rows, one cluster for each of them.

    Args:
        points: Shape (n, d).
        k: Number of clusters, in [1, n].
        seed: Seed of the start.
        max_iter: Maximum number of iterations of Lloyd's algorithm.
        batch_size: Rows of a mini-batch; None for Lloyd's algorithm on all rows.

    >>> sorted(cluster(np.array([[0.0], [1.0], [9.0]]), 2, 0, max_iter=10).centroids.ravel().tolist())
    [0.5, 9.0]
    """
    distinct, members = np.unique(points, axis=0, return_inverse=True)
    if k >= len(distinct):
        centroids, members = distinct, members.reshape(-1)
    else:
        shared = {"n_clusters": k, "n_init": 1, "max_iter": max_iter, "random_state": seed}
        model = KMeans(**shared) if batch_size is None else MiniBatchKMeans(batch_size=batch_size, **shared)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # for rows that differ only by rounding
            model.fit(points)
        centroids, members = model.cluster_centers_.astype(np.float64), model.labels_
    sizes = np.bincount(members, minlength=len(centroids))
    filled = np.flatnonzero(sizes)
    members = np.searchsorted(filled, members)
    centroids = centroids[filled]
    differences = points - centroids[members]
    distances = np.sqrt(np.einsum("ij,ij->i", differences, differences))
    return Clusters(centroids, members.astype(np.int64), sizes[filled], distances)


@contextmanager
def threads(n_jobs: int | None) -> Iterator[None]:
    """Run k-means in this many threads; None is one, -1 all. scikit-learn's k-means has no such argument."""
    with threadpool_limits(limits=effective_n_jobs(n_jobs)):
        yield
