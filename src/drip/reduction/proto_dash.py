"""ProtoDash (PRD): rows and non-negative weights whose kernel mean is closest to the mean of the class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from scipy.linalg import qr_delete, solve_triangular
from scipy.spatial.distance import cdist, pdist

from drip.errors import InputError
from drip.reduction.base import Counter, RankedReducer, Table
from drip.reduction.inputs import LARGEST, check_divisor, check_real
from drip.reduction.neighbours import BLOCK_BYTES
from drip.types import FloatArray, IntArray

_MIN_PIVOT = 1e-12  # relative: below it a row depends linearly on the picks, up to rounding
_MEDIAN_ROWS = 1000  # enough for a median of distances; all pairs of 10,000 rows would need 400 MB


class GrowingProgramme:
    r"""Maximise :math:`w^T \mu_S - \frac12 w^T K_{SS} w` over :math:`w \ge 0` while S grows.

    Lawson and Hanson's active-set method, started at the previous solution: from scratch every pick would
    cost O(k^3). The Cholesky factor of the columns with positive weight gains a row when a column enters,
    and is made triangular again by rotations when one leaves; both in O(k^2).

    Args:
        target: mu, shape (n,).
        tolerance: Gradients up to this are treated as zero.

    Attributes:
        members: S in the order of growth.
        gradient: mu - K_S w of every candidate, shape (n,).
    """

    def __init__(self, target: FloatArray, tolerance: float) -> None:
        self._target, self._tolerance = target, tolerance
        self.gradient = target.copy()
        self.members: list[int] = []
        self._columns = np.empty((16, len(target)))  # kernel columns of S, in rows
        self._weights = np.zeros(16)  # of S
        self._positive: list[int] = []  # places in S of the weights above zero, in the order of the factor
        self._factor = np.zeros((0, 0))

    @property
    def weights(self) -> FloatArray:
        """The optimal weights of S, shape (k,)."""
        return self._weights[: len(self.members)].copy()

    def grow(self, candidate: int, column: FloatArray) -> None:
        """Add a candidate with its kernel column, shape (n,), to S and solve."""
        place = len(self.members)
        if place == len(self._columns):
            self._columns = np.concatenate([self._columns, np.empty_like(self._columns)])
            self._weights = np.concatenate([self._weights, np.zeros_like(self._weights)])
        self._columns[place] = column
        self.members.append(candidate)
        rejected: set[int] = set()
        entering: int | None = place
        while entering is not None:
            if not self._enter(entering):
                rejected.add(entering)
            else:
                self._settle()
                if self._weights[entering] == 0.0:
                    rejected.add(entering)
                self.gradient = self._target - self._weights[: place + 1] @ self._columns[: place + 1]
            entering = self._improving(rejected)

    def _improving(self, rejected: set[int]) -> int | None:
        """The member of weight zero with the largest gradient, or None if no increase gains anything."""
        gradient = self.gradient[self.members]
        gradient[self._positive] = -np.inf
        gradient[list(rejected)] = -np.inf
        best = int(gradient.argmax())
        return best if gradient[best] > self._tolerance else None

    def _enter(self, place: int) -> bool:
        """Extend the factor by a member; False if the member depends on the others up to rounding."""
        member = self.members[place]
        own = float(self._columns[place, member])
        k = len(self._positive)
        row = np.zeros(k + 1)
        if k:
            inner = self._columns[self._positive, member]
            row[:k] = solve_triangular(self._factor, inner, lower=True, check_finite=False)
        pivot = own - float(row[:k] @ row[:k])
        if pivot <= _MIN_PIVOT * own:
            return False
        row[k] = pivot**0.5
        factor = np.zeros((k + 1, k + 1))
        factor[:k, :k] = self._factor
        factor[k] = row
        self._factor = factor
        self._positive.append(place)
        return True

    def _settle(self) -> None:
        """Move to the optimum of the positive set; a weight that reaches zero on the way leaves the set."""
        while True:
            wanted = self._target[[self.members[place] for place in self._positive]]
            half = solve_triangular(self._factor, wanted, lower=True, check_finite=False)
            best = solve_triangular(self._factor, half, lower=True, trans=1, check_finite=False)
            here = self._weights[self._positive]
            falling = best <= 0.0
            if not falling.any():
                self._weights[self._positive] = best
                return
            steps = np.full(len(best), np.inf)
            steps[falling] = here[falling] / (here[falling] - best[falling])
            leaving = int(steps.argmin())
            moved = here + steps[leaving] * (best - here)
            self._weights[self._positive] = np.maximum(moved, 0.0)
            self._leave(leaving)
            if not self._positive:
                return

    def _leave(self, index: int) -> None:
        self._weights[self._positive.pop(index)] = 0.0
        k = len(self._positive)
        _, triangle = qr_delete(np.eye(k + 1), self._factor.T, index, which="col", check_finite=False)
        self._factor = np.ascontiguousarray(triangle[:k].T)


def order_by_gradient(gradient: FloatArray, free: IntArray) -> IntArray:
    """The free candidates, largest gradient first, ties by row."""
    return free[np.argsort(-gradient[free], kind="stable")]


@dataclass(eq=False, repr=False)
class ProtoDash(RankedReducer):
    r"""Greedily choose rows and non-negative weights whose kernel mean is closest to that of the class.

    With :math:`\mu_j = \frac1n \sum_i k(x_i, x_j)` and :math:`f(S) = \max_{w \ge 0} w^T \mu_S - \frac12
    w^T K_{SS} w`, the first pick has the largest gain alone, :math:`\max(\mu_j, 0)^2 / 2 k(x_j, x_j)`; every
    later pick is the row with the largest gradient :math:`g = \mu - K_{:S} w`. The weights of all picks are
    solved again after each. Maximising f minimises the squared maximum mean discrepancy. Once no gradient
    exceeds ``tolerance`` times the largest of mu, the picks represent the class fully; the other rows
    follow by gradient, with weight zero. Ties: the lower row.

    The published code uses the inner product as kernel. With it, ten to twenty picks represent the
    class fully, and the noise of a solver ranks the rest. It also discards the weights. Here the kernel is
    Gaussian, :math:`\exp(-\|x - x'\|^2 / 2 \sigma^2)`.

    Args:
        kernel: ``gaussian``, or ``linear`` for the inner product.
        sigma: Width of the Gaussian; None uses the median distance between rows of the class (of at most
            1,000 random rows).
        tolerance: Relative gradient that is treated as zero, in (0, 1).

    Other parameters and attributes: :class:`~drip.reduction.base.BaseReducer`,
    :class:`~drip.reduction.base.RankedReducer`; ``metric`` only applies to ``epsilon``. Complexity for k
    picks up to the tolerance: O(n^2 d) for mu in blocks, O(k n d + k^2 n) time and O(k n) memory.

    Attributes:
        sample_weight_: Weights w times the rows of the class, shape (n_kept,).
        sigmas_: The widths, one per group; 0 for the linear kernel.

    References:
        Gurumoorthy, Dhurandhar, Cecchi and Aggarwal (2019), Efficient data representation by selecting
        prototypes with importance weights, arXiv:1707.01212.

    >>> X = [[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [5.3]]
    >>> sampler = ProtoDash(n_samples=2, sigma=1.0).fit(X)
    >>> sampler.sample_indices_.tolist(), sampler.sample_weight_.round(1).tolist()
    ([1, 4], [3.0, 4.0])
    """

    name: ClassVar[str] = "protodash"
    abbreviation: ClassVar[str] = "PRD"

    kernel: Literal["gaussian", "linear"] = "gaussian"
    sigma: float | None = None
    tolerance: float = 1e-6

    def check_parameters(self) -> None:
        """Check the parameters of every reducer and of this method."""
        super().check_parameters()
        if self.kernel not in ("gaussian", "linear"):
            raise InputError(f"kernel must be gaussian or linear, not {self.kernel!r}")
        if self.sigma is not None:
            check_divisor("sigma", self.sigma)
        check_real("tolerance", self.tolerance, upper=1.0)

    def _orders(self, table: Table, sizes: IntArray | None) -> list[IntArray]:
        limits = [len(rows) for rows in table.groups] if sizes is None else sizes.tolist()
        counter = self._counter(sum(limits))
        self.sigmas_ = [
            self._sigma(table.values[r], s) for r, s in zip(table.groups, table.seeds, strict=True)
        ]

        def prototypes(rows: IntArray, limit: int, sigma: float) -> Prototypes:
            return greedy_prototypes(table.values[rows], limit, sigma, float(self.tolerance), counter)

        found = self._each(prototypes, table.groups, limits, self.sigmas_)
        self._row_weights = np.zeros(len(table.values))
        for rows, part in zip(table.groups, found, strict=True):
            self._row_weights[rows[part.order]] = part.weights * len(rows)
        return [rows[part.order] for rows, part in zip(table.groups, found, strict=True)]

    def _weights(self, table: Table, kept: IntArray) -> FloatArray:  # noqa: ARG002  # known from the picks
        return self._row_weights[self.sample_indices_]

    def _sigma(self, points: FloatArray, seed: int) -> float:
        if self.kernel == "linear":
            return 0.0
        if self.sigma is not None:
            return float(self.sigma)
        return max(median_distance(points, np.random.default_rng(seed)), 1.0 / LARGEST)


class Prototypes(NamedTuple):
    """Result of :func:`greedy_prototypes`.

    Attributes:
        order: The picks, shape (m,).
        weights: Their optimal weights, summing to about one, shape (m,).
    """

    order: IntArray
    weights: FloatArray


def greedy_prototypes(
    points: FloatArray, count: int, sigma: float, tolerance: float, counter: Counter | None = None
) -> Prototypes:
    """ProtoDash on the rows of one class.

    Args:
        points: Shape (n, d).
        count: Number of picks, in [1, n].
        sigma: Width of the Gaussian kernel; 0 for the inner product.
        tolerance: Gradients up to this fraction of the largest mu are treated as zero.
        counter: Advanced at every pick.
    """
    column = _kernel(points, sigma)
    target, own = _mean_kernel(points, sigma)
    scale = float(target.max())
    programme = GrowingProgramme(target, tolerance * max(scale, 0.0))
    free = np.ones(len(points), dtype=bool)
    gain = _gains(target, own)
    while len(programme.members) < count:
        ranked = np.where(free, programme.gradient if programme.members else gain, -np.inf)
        pick = int(ranked.argmax())
        if programme.gradient[pick] <= tolerance * max(scale, 0.0):
            break
        free[pick] = False
        programme.grow(pick, column(pick))
        if counter is not None:
            counter.advance()
    n_picked = len(programme.members)
    rest = order_by_gradient(programme.gradient, np.flatnonzero(free))[: count - n_picked]
    if counter is not None and len(rest):
        counter.advance(len(rest))
    order = np.concatenate([np.array(programme.members, dtype=np.int64), rest])
    return Prototypes(order, np.concatenate([programme.weights, np.zeros(len(rest))]))


def _gains(target: FloatArray, own: FloatArray) -> FloatArray:
    """Twice the gain of every row alone, times a power of two that keeps the squares from overflowing."""
    unit = 2.0 ** -np.frexp(own.max())[1]
    target, own = np.maximum(target * unit, 0.0), own * unit
    return np.where(own > 0.0, target**2 / np.where(own > 0.0, own, 1.0), 0.0)


def median_distance(points: FloatArray, rng: np.random.Generator) -> float:
    """Median distance between rows (of 1,000 at random); 1 if all rows are equal.

    If more than half of the pairs are equal rows, the median of the other distances.

    >>> median_distance(np.array([[0.0], [1.0], [3.0]]), np.random.default_rng(0))
    2.0
    """
    some = points if len(points) <= _MEDIAN_ROWS else rng.choice(points, _MEDIAN_ROWS, replace=False)
    distances = pdist(some)
    apart = distances[distances > 0.0]
    if not len(apart):
        return 1.0
    return float(np.median(distances)) or float(np.median(apart))


def _kernel(points: FloatArray, sigma: float) -> Callable[[int], FloatArray]:
    def column(row: int) -> FloatArray:
        return _kernel_rows(points[row : row + 1], points, sigma).ravel()

    return column


def _kernel_rows(rows: FloatArray, points: FloatArray, sigma: float) -> FloatArray:
    if sigma == 0.0:
        return np.asarray(rows @ points.T)
    squares: FloatArray = cdist(rows, points, "sqeuclidean")
    with np.errstate(over="ignore"):  # infinity is fine: the kernel is then zero
        squares *= -0.5 / sigma**2
    np.exp(squares, out=squares)
    return squares


def _mean_kernel(points: FloatArray, sigma: float) -> tuple[FloatArray, FloatArray]:
    """The mean kernel, mu, and k(x, x) of every row."""
    if sigma == 0.0:
        return points @ points.mean(axis=0), np.einsum("ij,ij->i", points, points)
    total = np.zeros(len(points))
    step = max(1, BLOCK_BYTES // (8 * len(points)))
    for start in range(0, len(points), step):
        total += _kernel_rows(points[start : start + step], points, sigma).sum(axis=0)
    total /= len(points)
    return total, np.ones(len(points))
