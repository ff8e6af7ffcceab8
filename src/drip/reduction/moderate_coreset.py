"""Moderate coreset: rows at the median distance from the centre of their class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drip.reduction.base import ScoredReducer, Table
from drip.reduction.neighbours import distances_to
from drip.types import FloatArray, IntArray


@dataclass(eq=False, repr=False)
class ModerateCoreset(ScoredReducer):
    r"""Keep the rows whose distance to the class mean is closest to the median of these distances.

    The score is :math:`-|d_i - \mathrm{median}_{j \in c}(d_j)|` with
    :math:`d_i = \|x_i - \bar x_c\|`. Neither typical nor extreme rows are preferred. Ties: the lower
    row. Deterministic, O(n d).

    Parameters and attributes: :class:`~drip.reduction.base.BaseReducer`,
    :class:`~drip.reduction.base.RankedReducer`.

    References:
        Xia, Liu, Yu, Shen, Han and Liu (2023), Moderate coreset: a universal method of data selection for
        real-world data-efficient deep learning.

    >>> ModerateCoreset(n_samples=1).fit([[0.0], [1.0], [1.0], [10.0]]).sample_indices_.tolist()
    [0]
    """

    name: ClassVar[str] = "moderate-coreset"
    abbreviation: ClassVar[str] = "MOD"

    def _score(self, table: Table, sizes: IntArray | None) -> FloatArray:  # noqa: ARG002  # the same for every size
        scores = np.empty(len(table.values))
        for rows in table.classes.rows:
            points = table.values[rows]
            distances = distances_to(points, points.mean(axis=0), self.metric)
            if self.metric == "euclidean":
                distances = np.sqrt(distances)
            scores[rows] = -np.abs(distances - np.median(distances))
        return scores
