"""Stratified random sampling (SRS): the baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drip.reduction.base import RankedReducer, Table
from drip.types import IntArray


@dataclass(eq=False, repr=False)
class StratifiedRandom(RankedReducer):
    """Keep random rows from each class, without replacement, in proportion to its size.

    Features are ignored unless ``epsilon`` is given, so text and NaN are accepted.
    ``stratify="global"`` is simple random sampling.

    Parameters and attributes: :class:`~drip.reduction.base.BaseReducer` and
    :class:`~drip.reduction.base.RankedReducer`. O(n).

    References:
        Neyman (1934), On the two different aspects of the representative method.

    >>> import numpy as np
    >>> X, y = np.arange(20.0).reshape(10, 2), ["a"] * 6 + ["b"] * 4
    >>> StratifiedRandom(0.5, random_state=0).fit_resample(X, y)[1]
    ['a', 'a', 'a', 'b', 'b']
    """

    name: ClassVar[str] = "stratified-random"
    abbreviation: ClassVar[str] = "SRS"
    reads_values: ClassVar[bool] = False

    def _orders(self, table: Table, sizes: IntArray | None) -> list[IntArray]:  # noqa: ARG002  # orders all rows
        return [
            np.random.default_rng(seed).permutation(rows)
            for rows, seed in zip(table.groups, table.seeds, strict=True)
        ]
