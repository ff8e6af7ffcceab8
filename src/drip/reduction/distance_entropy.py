"""Distance-entropy selection (DES): rows that are about equally far from all class prototypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.spatial.distance import cdist

from drip.errors import InputError
from drip.reduction.base import ScoredReducer, Table, class_sizes, kept_total
from drip.reduction.inputs import check_divisor, check_real
from drip.reduction.neighbours import BLOCK_BYTES, Metric
from drip.types import FloatArray, IntArray

_EPSILON_BASE = 0.05  # base with epsilon, when the number of kept rows is not known yet


@dataclass(eq=False, repr=False)
class DistanceEntropy(ScoredReducer):
    r"""Keep a stratified random base, then rows whose distances to the class prototypes have high entropy.

    The prototype :math:`m_c` is the mean of the base rows of class c. For every other row,
    :math:`d_c = \|x - m_c\| / T`, :math:`q = \mathrm{softmax}(+d)` over all classes and
    :math:`H = -\sum_c q_c \log_2 q_c`, its score. Base rows score infinity, in random order; other rows
    follow by decreasing score within each class, ties by the lower row. ``stratify="global"`` also draws
    the base by class, but keeps the other rows regardless of class, as published. Without labels all
    entropies are zero, and the rows after the base keep their order.

    The published code fills classes unevenly, keeps one of several equal rows repeatedly, loses a class
    without a base row and divides by zero on unscaled data. This implementation does not.

    Args:
        base_fraction: Part of all rows in the base, in (0, 1], at most the part kept; None uses half of the
            kept rows (with ``epsilon``: 0.05 of all). :meth:`at` keeps the base of the fit.
        temperature: T, in units of distance; on scaled features, small values spread the entropies.

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
        """Check the parameters of every reducer and of this method."""
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
                    f"base_fraction={self.base_fraction!r} is {total} rows, but only {kept} rows are kept; "
                    "lower base_fraction or keep more rows"
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
        temperature: Divisor of the distances.
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
        # H = log Z - sum q d avoids the logarithm of a probability that underflows.
        found[start : start + step] = np.log(sums) - np.einsum("ij,ij->i", ratios, gaps) / sums
    found /= np.log(2.0)
    return found
