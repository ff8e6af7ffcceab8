"""Features in few numbers: one fixed random matrix, the same on every machine."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drip.types import FloatArray

N_NUMBERS = 64
N_FINE = 256


@lru_cache(maxsize=4)
def projection(n_features: int, n_numbers: int = N_NUMBERS) -> NDArray[np.float32]:
    """The matrix that takes ``n_features`` features to fewer numbers, shape (n_features, n_numbers).

    Signs drawn column by column with PCG64 from seed 0, times the square root of 1 / n_features, so that the
    first numbers of many are those of few; as few features as 64 stay themselves. Distances survive such a
    projection, to an eighth with 64 numbers and to a sixteenth with 256 (Achlioptas 2003, Database-friendly
    random projections).
    """
    if n_features <= N_NUMBERS:
        return np.eye(n_features, dtype=np.float32)
    bits = np.random.Generator(np.random.PCG64(0)).random((n_numbers, n_features)).T < 0.5
    return np.where(bits, 1.0, -1.0).astype(np.float32) / np.float32(np.sqrt(n_features))


def project(features: NDArray[np.floating[Any]], n_numbers: int = N_NUMBERS) -> FloatArray:
    r"""Rows of features in few numbers, shape (n, n_numbers); one row gives what it gives among others.

    Before the projection every feature x becomes :math:`\operatorname{sign}(x) \sqrt{|x|}` and every row unit
    length: activations are skewed and differ in strength from sample to sample; distances should not see it.

    >>> project(np.ones((2, 4))).tolist()[0]
    [0.5, 0.5, 0.5, 0.5]
    """
    rows = np.ascontiguousarray(features, np.float64)
    rows = np.sign(rows) * np.sqrt(np.abs(rows))
    matrix = projection(rows.shape[1], n_numbers).astype(np.float64)
    if not len(rows):
        return np.empty((0, matrix.shape[1]))
    lengths = np.sqrt([row @ row for row in rows])
    rows = rows / np.where(lengths > 0, lengths, 1.0)[:, None]
    # Row by row: a product of matrices rounds differently for batches of different sizes.
    return np.stack([row @ matrix for row in rows])
