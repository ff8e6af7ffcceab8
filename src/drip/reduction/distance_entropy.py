"""Distance-entropy selection (DES): rows that are about as far from all class prototypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.spatial.distance import cdist

from drip.errors import InputError
from drip.reduction.base import ScoredReducer, Table, class_sizes, kept_total
from drip.reduction.containers import check_divisor, check_real
from drip.reduction.neighbours import BLOCK_BYTES, Metric
from drip.types import FloatArray, IntArray

_EPSILON_BASE = 0.05


@dataclass(eq=False, repr=False)
class DistanceEntropy(ScoredReducer):
    r"""A stratified random base, then the rows whose distances to the class prototypes have most entropy.

    The prototype :math:`m_c` is the mean of the base rows of class c. For every other row,
    :math:`d_c = \|x - m_c\| / T`, :math:`q = \mathrm{softmax}(+d)` over all classes and
    :math:`H = -\sum_c q_c \log_2 q_c`, its score. Base rows score infinity and come in random order; rows
    are then kept in order of falling score, ties by the lower row, within each class. With
    ``stratify="global"`` the base is still drawn by class and the others are kept whatever their class,
    as published. Without labels all entropies are zero, and rows behind the base come in their order.

    The published code fills classes unevenly, keeps duplicates of a row in place of their equals, drops a
    class without a base row and divides by zero on unscaled data; none of it is done here.

    Args:
        base_fraction: Share of all rows in the base, in (0, 1], at most what is kept; None for half of what
            is kept (with ``epsilon``: 0.05). :meth:`at` keeps the base of the fit.
        temperature: T, in units of distance; on scaled features small values spread the entropies.

    Other parameters and attributes: :class:`~drip.reduction.base.BaseReducer`,
    :class:`~drip.reduction.base.RankedReducer`. Complexity: O(n C d + n log n).

    Attributes:
        base_indices_: Rows of the base, ascending.
        prototypes_: The prototypes in the order of the labels, shape (n_classes, d).
        scores_: H in bits, infinite for the base, shape (n,).

    References:
        Li and Chao (2022), Distance-Entropy: an effective indicator for selecting informative data.

    >>> X = [[0.0], [0.1], [4.9], [9.9], [10.0], [5.1]]
    >>> sampler = DistanceEntropy(n_samples=4, random_state=1).fit(X, [0, 0, 0, 1, 1, 1])
    >>> len(sampler.base_indices_), bool(np.isinf(sampler.scores_[sampler.base_indices_]).all())
    (2, True)
    """

    name: ClassVar[str] = "distance-entropy"
    abbreviation: ClassVar[str] = "DES"

    base_fraction: float | None = None
    temperature: float = 1.0

    def check_parameters(self) -> None:
        """As for every reducer, and those of this method."""
        super().check_parameters()
        check_divisor("temperature", self.temperature)
        if self.base_fraction is not None:
            check_real("base_fraction", self.base_fraction, upper=1.0)

    def _score(self, table: Table, sizes: IntArray | None) -> FloatArray:
        classes = table.classes
        rng = np.random.default_rng(table.seeds[0])
        wanted = self._base_sizes(classes.counts, sizes)
        base = [rng.permutation(rows)[:size] for rows, size in zip(classes.rows, wanted, strict=True)]
        self.base_indices_ = np.sort(np.concatenate(base))
        self.prototypes_ = np.stack([table.values[rows].mean(axis=0) for rows in base])
        scores = distance_entropies(table.values, self.prototypes_, self.metric, float(self.temperature))
        scores[self.base_indices_] = np.inf
        return scores

    def _base_sizes(self, counts: IntArray, sizes: IntArray | None) -> IntArray:
        n = int(counts.sum())
        if sizes is None:
            total = kept_total(n, self.base_fraction or _EPSILON_BASE)
        else:
            kept = int(sizes.sum())
            total = max(1, kept // 2) if self.base_fraction is None else kept_total(n, self.base_fraction)
            if total > kept:
                raise InputError(
                    f"base_fraction must be at most the share that is kept, got {self.base_fraction!r}, "
                    f"{total} rows, where {kept} rows are kept; lower it or keep more"
                )
        base = class_sizes(counts, total, "proportional")
        return base if sizes is None or self.stratify == "global" else np.minimum(base, sizes)

    def _orders(self, table: Table, sizes: IntArray | None) -> list[IntArray]:
        orders = super()._orders(table, sizes)
        for order, seed in zip(orders, table.seeds, strict=True):
            n_base = int(np.isinf(self.scores_[order]).sum())
            np.random.default_rng(seed).shuffle(order[:n_base])
        return orders


def distance_entropies(
    points: FloatArray,
    prototypes: FloatArray,
    metric: Metric,
    temperature: float = 1.0,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> FloatArray:
    """Entropy in bits of the softmax of the distances to the prototypes, shape (n,).

    Args:
        points: Shape (n, d).
        prototypes: Shape (n_classes, d).
        metric: ``euclidean`` or ``chebyshev``.
        temperature: Distances are divided by it.
        block_bytes: Memory for the distances that are held at once.

    >>> distance_entropies(np.array([[0.0], [1e9]]), np.array([[-1.0], [1.0]]), "euclidean").round(2).tolist()
    [1.0, 0.53]
    """
    found = np.empty(len(points))
    step = max(1, block_bytes // (8 * len(prototypes)))
    for start in range(0, len(points), step):
        gaps = cdist(points[start : start + step], prototypes, metric) / temperature
        gaps -= gaps.max(axis=1, keepdims=True)
        ratios = np.exp(gaps)
        sums = ratios.sum(axis=1)
        # H = log Z - sum q d: no logarithm of a probability that underflows.
        found[start : start + step] = np.log(sums) - np.einsum("ij,ij->i", ratios, gaps) / sums
    found /= np.log(2.0)
    return found
