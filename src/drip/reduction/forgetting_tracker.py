"""Counts how often a model in training forgets a row; knows no framework."""

from __future__ import annotations

from typing import Any

import numpy as np

from drip.errors import InputError
from drip.reduction.checks import check_whole
from drip.types import IntArray


class ForgettingTracker:
    """Forgetting events: a row that was right when it was last shown is wrong now.

    Args:
        n_rows: Rows of the training set.

    Call :meth:`update` after every epoch with all rows, or after every batch with the rows of the batch.

    References:
        Toneva et al. (2019), An empirical study of example forgetting during deep neural network learning.

    >>> tracker = ForgettingTracker(3)
    >>> tracker.update([0, 1, 2], [True, True, False])
    >>> tracker.update([0, 1, 2], [True, False, False])
    >>> tracker.counts().tolist()  # never forgotten, forgotten once, never learned in two updates
    [0, 1, 2]
    """

    def __init__(self, n_rows: int) -> None:
        check_whole("n_rows", n_rows)
        self._right = np.zeros(n_rows, dtype=bool)
        self._learned = np.zeros(n_rows, dtype=bool)
        self._shown = np.zeros(n_rows, dtype=np.int64)
        self._events = np.zeros(n_rows, dtype=np.int64)

    def update(self, rows: Any, correct: Any) -> None:
        """Say which of the rows the model classifies rightly now.

        Args:
            rows: Distinct row numbers, shape (k,).
            correct: True where right, shape (k,).

        Raises:
            InputError: different lengths, a row twice, or a row that does not exist.
        """
        shown = np.asarray(rows)
        right = np.asarray(correct, dtype=bool)
        if shown.ndim != 1 or shown.shape != right.shape:
            raise InputError(f"rows and correct must be as long, got shapes {shown.shape} and {right.shape}")
        if not len(shown):
            return
        needed = f"rows must be distinct numbers in [0, {len(self._right)})"
        if shown.dtype.kind not in "iu":
            raise InputError(f"{needed}, got {shown.dtype}")
        if shown.min() < 0 or shown.max() >= len(self._right) or len(np.unique(shown)) < len(shown):
            raise InputError(f"{needed}, got {shown.min()} to {shown.max()} in {len(shown)} entries")
        self._events[shown] += self._right[shown] & ~right
        self._right[shown] = right
        self._learned[shown] |= right
        self._shown[shown] += 1

    def counts(self) -> IntArray:
        """Forgetting events of every row; a row that was never right counts as often as it was shown."""
        return np.where(self._learned, self._events, self._shown)

    @property
    def learned(self) -> IntArray:
        """Rows that were right at least once, ascending."""
        return np.flatnonzero(self._learned)
