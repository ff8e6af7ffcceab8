"""A quadratic programme over non-negative weights that grows one variable at a time."""

from __future__ import annotations

import numpy as np
from scipy.linalg import qr_delete, solve_triangular

from drip.types import FloatArray, IntArray

_LEAST_PIVOT = 1e-12


class GrowingProgramme:
    r"""Maximise :math:`w^T \mu_S - \frac12 w^T K_{SS} w` over :math:`w \ge 0` while S grows.

    Lawson and Hanson's active-set method, started at the solution before. The Cholesky factor of the
    columns with positive weight is extended when one comes in and, when one goes, brought back to a
    triangle by rotations; both in O(k^2).

    Args:
        target: mu, shape (n,).
        tolerance: Gradients up to this count as zero.

    Attributes:
        members: S in the order of its growth.
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
        """Take a candidate with its kernel column, shape (n,), into S and solve."""
        place = len(self.members)
        if place == len(self._columns):
            self._columns = np.concatenate([self._columns, np.empty_like(self._columns)])
            self._weights = np.concatenate([self._weights, np.zeros_like(self._weights)])
        self._columns[place] = column
        self.members.append(candidate)
        refused: set[int] = set()
        entering: int | None = place
        while entering is not None:
            if not self._enter(entering):
                refused.add(entering)
            else:
                self._settle()
                if self._weights[entering] == 0.0:
                    refused.add(entering)
                self.gradient = self._target - self._weights[: place + 1] @ self._columns[: place + 1]
            entering = self._improving(refused)

    def _improving(self, refused: set[int]) -> int | None:
        """The member with weight zero whose increase gains most, or None."""
        gradient = self.gradient[self.members]
        gradient[self._positive] = -np.inf
        gradient[list(refused)] = -np.inf
        best = int(gradient.argmax())
        return best if gradient[best] > self._tolerance else None

    def _enter(self, place: int) -> bool:
        """Extend the factor by a member; False where it depends on the others to rounding."""
        member = self.members[place]
        own = float(self._columns[place, member])
        k = len(self._positive)
        row = np.zeros(k + 1)
        if k:
            inner = self._columns[self._positive, member]
            row[:k] = solve_triangular(self._factor, inner, lower=True, check_finite=False)
        pivot = own - float(row[:k] @ row[:k])
        if pivot <= _LEAST_PIVOT * own:
            return False
        row[k] = pivot**0.5
        factor = np.zeros((k + 1, k + 1))
        factor[:k, :k] = self._factor
        factor[k] = row
        self._factor = factor
        self._positive.append(place)
        return True

    def _settle(self) -> None:
        """Go to the optimum of the positive set; what reaches zero on the way leaves the set."""
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
    """The free candidates, steepest first, ties by number."""
    return free[np.argsort(-gradient[free], kind="stable")]
