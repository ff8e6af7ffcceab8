"""Numerosity reduction by matrix decomposition (NRMD): rows that differ from the main directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drip.reduction.base import ScoredReducer, Table
from drip.types import FloatArray, IntArray

_LEAST_COSINE = 1e-3
_BLOCK_ROWS = 1 << 15


@dataclass(eq=False, repr=False)
class MatrixDecomposition(ScoredReducer):
    r"""Keep the rows with the largest product of two scores from singular vectors.

    For rows Z, not centred, :math:`Z^T = U S V^T`. With weights :math:`v_i = s_i^{-1} / \sum_j s_j^{-1}`
    (the smallest singular value weighs most) and rows scaled to unit length, :math:`z_n`,
    :math:`score(z) = \sum_i v_i \, (-\ln \max(|\langle z_n, u_i \rangle|, 10^{-3}))`. One score is computed
    within each class from its features, the other from all rows with the one-hot labels appended (a column
    of ones without labels). Ties: the lower row. Deterministic.

    Singular values that are zero to rounding are left out with their vectors. A row of zeros has no
    direction: its inner products count as zero, the largest score within its class.
    ``stratify="global"`` is the published cut, which loses classes; the default cuts within each class.

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

    def _score(self, table: Table, sizes: IntArray | None) -> FloatArray:  # noqa: ARG002  # one for every size
        classes = table.classes
        scores = np.empty(len(table.values))
        for rows in classes.rows:
            scores[rows] = direction_scores(table.values[rows])
        one_hot = np.zeros((len(scores), len(classes.labels)))
        one_hot[np.arange(len(scores)), classes.codes] = 1.0
        return scores * direction_scores(np.hstack([table.values, one_hot]))


def direction_scores(rows: FloatArray) -> FloatArray:
    """The score of every row against the singular vectors of all, shape (n,); see the class.

    >>> direction_scores(np.array([[2.0, 0.0], [0.0, 1.0]])).round(3).tolist()
    [4.605, 2.303]
    """
    # The singular values and right vectors of R are those of the rows, in d x d.
    triangle = np.linalg.qr(rows, mode="r")
    _, singular, vectors = np.linalg.svd(triangle, full_matrices=False)
    real = singular > np.finfo(np.float64).eps * max(rows.shape) * singular[0]
    if not real.any():  # nothing but zeros: no direction, all rows alike
        return np.full(len(rows), -np.log(_LEAST_COSINE))
    weights = 1.0 / singular[real]
    weights /= weights.sum()
    directions = vectors[real].T
    scores = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = rows[start : start + _BLOCK_ROWS]
        lengths = np.sqrt(np.einsum("ij,ij->i", part, part))
        lengths[lengths == 0.0] = 1.0
        cosines = np.abs(part @ directions) / lengths[:, None]
        scores[start : start + _BLOCK_ROWS] = -np.log(np.maximum(cosines, _LEAST_COSINE)) @ weights
    return scores
