"""Numerosity reduction by matrix decomposition (NRMD): rows that deviate from the main directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drip.reduction.base import ScoredReducer, Table
from drip.types import FloatArray, IntArray

_MIN_COSINE = 1e-3  # of the published score, which would be infinite for a right angle


@dataclass(eq=False, repr=False)
class MatrixDecomposition(ScoredReducer):
    r"""Keep the rows with the largest product of two scores from singular vectors.

    For rows Z, not centred, :math:`Z^T = U S V^T`. With weights :math:`v_i = s_i^{-1} / \sum_j s_j^{-1}`
    (the smallest singular value weighs most) and rows scaled to unit length, :math:`z_n`,
    :math:`score(z) = \sum_i v_i \, (-\ln \max(|\langle z_n, u_i \rangle|, 10^{-3}))`. One score is computed
    within each class from its features, the other from all rows with the one-hot labels appended (a column
    of ones without labels). Ties: the lower row. Deterministic.

    Singular values that are zero up to rounding are omitted with their vectors: the published code divides by
    them. A row of zeros has no direction; its inner products are zero, which is the largest score of its
    class. ``stratify="global"`` is the published cut, which loses classes; the default cuts each class.

    Parameters and attributes: :class:`~drip.reduction.base.BaseReducer`,
    :class:`~drip.reduction.base.RankedReducer`. Complexity: O(n d^2).

    References:
        Ghojogh and Crowley (2019), Instance ranking and numerosity reduction using matrix decomposition
        and subspace learning.

    >>> X = [[1.0, 0.0], [2.0, 0.1], [3.0, 0.2], [0.0, 1.0]]
    >>> MatrixDecomposition(n_samples=2).fit(X).scores_.argmin()
    np.int64(3)
    """

    name: ClassVar[str] = "matrix-decomposition"
    abbreviation: ClassVar[str] = "NRMD"

    def _score(self, table: Table, sizes: IntArray | None) -> FloatArray:  # noqa: ARG002  # the same for every size
        values, classes = table.values, table.classes
        n, d = values.shape
        parts = [values[rows] for rows in classes.rows]
        # The stacked R factors of the classes have the same R as [X | one-hot], which is never built.
        triangles = [_triangle(np.hstack([part, np.ones((len(part), 1))])) for part in parts]
        stacked = np.zeros((sum(len(triangle) for triangle in triangles), d + len(parts)))
        end = 0
        for label, triangle in enumerate(triangles):
            start, end = end, end + len(triangle)
            stacked[start:end, :d] = triangle[:, :d]
            stacked[start:end, d + label] = triangle[:, d]
        whole, whole_weights = _directions(stacked, n)
        scores = np.empty(n)
        for label, (rows, part, triangle) in enumerate(zip(classes.rows, parts, triangles, strict=True)):
            squares = np.einsum("ij,ij->i", part, part)
            own, own_weights = _directions(triangle[:, :d], len(part))
            scores[rows] = _scores(part @ own, squares, own_weights)
            inner = part @ whole[:d]
            inner += whole[d + label]
            scores[rows] *= _scores(inner, squares + 1.0, whole_weights)
        return scores


def direction_scores(rows: FloatArray) -> FloatArray:
    """Score of every row against the singular vectors of all rows, shape (n,); see the class.

    >>> direction_scores(np.array([[2.0, 0.0], [0.0, 1.0]])).round(3).tolist()
    [4.605, 2.303]
    """
    directions, weights = _directions(_triangle(rows), len(rows))
    return _scores(rows @ directions, np.einsum("ij,ij->i", rows, rows), weights)


def _triangle(rows: FloatArray) -> FloatArray:
    """R of the QR decomposition: it has the singular values and right singular vectors of the rows."""
    return np.asarray(np.linalg.qr(rows, mode="r"))


def _directions(triangle: FloatArray, n: int) -> tuple[FloatArray, FloatArray]:
    """Singular vectors as columns, and their weights; for rows of zeros one zero vector of weight 1."""
    _, singular, vectors = np.linalg.svd(triangle, full_matrices=False)
    real = singular > np.finfo(np.float64).eps * max(n, triangle.shape[1]) * singular[0]
    if not real.any():
        return np.zeros((triangle.shape[1], 1)), np.ones(1)
    weights = 1.0 / singular[real]
    return vectors[real].T, weights / weights.sum()


def _scores(inner: FloatArray, squares: FloatArray, weights: FloatArray) -> FloatArray:
    """Scores from the products of rows and directions, ``inner``, which is overwritten."""
    lengths = np.sqrt(squares)
    lengths[lengths == 0.0] = 1.0
    np.abs(inner, out=inner)
    inner /= lengths[:, None]
    np.maximum(inner, _MIN_COSINE, out=inner)
    np.log(inner, out=inner)
    return np.asarray(-(inner @ weights))
