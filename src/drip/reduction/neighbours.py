"""Exact nearest neighbours in bounded memory: a k-d tree in few dimensions, blocks of distances in many."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
from joblib import effective_n_jobs
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from drip.errors import InputError
from drip.types import FloatArray, IntArray

Metric = Literal["euclidean", "chebyshev"]

MAX_TREE_DIMENSIONS = 20
"""Up to this number of features a k-d tree is faster than computing all distances."""

BLOCK_BYTES = 1 << 26
"""Memory for the distances that are held at once: 64 MiB."""

POWER = {"euclidean": 2.0, "chebyshev": np.inf}
"""The p of the p-norm, as SciPy names it."""

# Allowance for the rounding of matrix products, in units of the machine epsilon: a wide margin only costs a
# few more exact distances, a narrow one would make the result inexact.
_GEMM_SLACK = 64.0


def check_metric(metric: Any) -> None:
    """Check for a metric that all methods can compute.

    Raises:
        InputError: anything else.
    """
    if metric not in POWER:
        raise InputError(f"metric must be one of {', '.join(POWER)}, not {metric!r}")


def distances_to(points: FloatArray, centre: FloatArray, metric: Metric) -> FloatArray:
    """Distance of every row to one point, shape (n,); squared if the metric is Euclidean.

    >>> distances_to(np.array([[0.0, 0.0], [3.0, 4.0]]), np.zeros(2), "euclidean").tolist()
    [0.0, 25.0]
    """
    differences = points - centre
    if metric == "euclidean":
        return cast("FloatArray", np.einsum("ij,ij->i", differences, differences))
    return cast("FloatArray", np.abs(differences, out=differences).max(axis=1))


def nearest(
    queries: FloatArray,
    points: FloatArray,
    metric: Metric,
    *,
    n_jobs: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[FloatArray, IntArray]:
    """Distance and row of the nearest point for every query; shapes (n,) and (n,).

    A k-d tree is used up to 20 dimensions; in more, all distances are computed in blocks of at most
    ``block_bytes``. Both are exact. On ties, any of the nearest points is returned.

    Args:
        queries: Shape (n, d).
        points: Shape (m, d), m >= 1.
        metric: ``euclidean`` or ``chebyshev`` (L-infinity).
        n_jobs: Threads of the tree; None is one, -1 all.
        block_bytes: Memory for the distances that are held at once.

    >>> nearest(np.array([[0.9], [3.0]]), np.array([[0.0], [1.0]]), "euclidean")[1].tolist()
    [1, 1]
    """
    if points.shape[1] <= MAX_TREE_DIMENSIONS:
        tree = cKDTree(
            points, balanced_tree=False
        )  # medians recurse endlessly on repeated rows, and are slower
        distances, rows = tree.query(queries, p=POWER[metric], workers=effective_n_jobs(n_jobs))
        return distances, rows.astype(np.int64)
    found = np.empty(len(queries)), np.empty(len(queries), dtype=np.int64)
    step = max(1, block_bytes // (8 * len(points)))
    block = _euclidean_block if metric == "euclidean" else _chebyshev_block
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        found[0][part], found[1][part] = block(queries[part], points)
    return found


def radius(queries: FloatArray, points: FloatArray, metric: Metric, *, n_jobs: int | None = None) -> float:
    """Largest distance from a query to its nearest point: the directed Hausdorff distance.

    >>> radius(np.array([[0.0], [5.0]]), np.array([[1.0]]), "chebyshev")
    4.0
    """
    return float(nearest(queries, points, metric, n_jobs=n_jobs)[0].max())


def _chebyshev_block(queries: FloatArray, points: FloatArray) -> tuple[FloatArray, IntArray]:
    distances = cdist(queries, points, "chebyshev")
    rows = distances.argmin(axis=1)
    return distances[np.arange(len(queries)), rows], rows


def _euclidean_block(queries: FloatArray, points: FloatArray) -> tuple[FloatArray, IntArray]:
    """The fast |q|^2 - 2qp + |p|^2 finds the candidates; their exact distances come from differences."""
    centre = points.mean(axis=0)  # shorter vectors have smaller errors
    near_queries, near_points = queries - centre, points - centre
    query_squares = np.einsum("ij,ij->i", near_queries, near_queries)
    point_squares = np.einsum("ij,ij->i", near_points, near_points)
    squares = near_queries @ near_points.T
    squares *= -2.0
    squares += point_squares
    error = np.finfo(np.float64).eps * _GEMM_SLACK * points.shape[1] ** 0.5
    largest = point_squares.max()
    shift = np.abs(centre).max() * (np.sqrt(query_squares) + largest**0.5)
    slack = error * (query_squares + largest + shift)
    likely = squares <= (squares.min(axis=1) + slack)[:, None]
    query_rows, point_rows = np.nonzero(likely)
    step = max(1, len(queries) * len(points) // points.shape[1])  # as much memory as the block itself
    exact = np.concatenate(
        [
            np.einsum("ij,ij->i", differences, differences)
            for start in range(0, len(query_rows), step)
            for differences in [
                queries[query_rows[start : start + step]] - points[point_rows[start : start + step]]
            ]
        ]
    )
    order = np.lexsort((point_rows, exact, query_rows))
    first = order[np.searchsorted(query_rows[order], np.arange(len(queries)))]
    return np.sqrt(exact[first]), point_rows[first]
