"""A gate for what looks like something that was kept lately."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Self

import numpy as np

from drip.errors import InputError
from drip.selectors.states import number
from drip.thresholds import check_fraction
from drip.types import FloatArray, JsonObject

_MEMORY = 256
_BLOCK = 512


class DuplicateGate:
    r"""Distance to the nearest of the last kept samples, against what is usual between calibration samples.

    The limit is a quantile of the calibration samples' distances to their nearest neighbours: what is nearer
    to a kept sample than almost all independent samples are to each other is a near-duplicate.

    Args:
        quantile: Share of the calibration samples that would count as near-duplicates, in (0, 1).
        memory: Number of kept samples that are remembered, at least 1.

    Complexity: ``memory`` times d multiplications for d features. State: as many numbers, in single precision
    and as text, 87 kB for 256 rows of 64; a run saves it with every batch.
    """

    def __init__(self, quantile: float = 0.02, memory: int = _MEMORY) -> None:
        check_fraction("quantile", quantile)
        if memory < 1:
            raise InputError(f"memory must be at least 1, got {memory!r}")
        self._quantile, self._memory = quantile, memory
        self._next = 0

    def calibrate(self, features: FloatArray) -> Self:
        """Take the limit from calibration features, shape (n, d); nothing is remembered.

        Raises:
            InputError: fewer than two rows.
        """
        if len(features) < 2:  # a neighbour is another sample
            raise InputError(f"a duplicate gate needs at least 2 calibration samples, got {len(features)}")
        self._limit = float(np.quantile(nearest_distances(features), self._quantile))
        self._kept = np.empty((0, features.shape[1]), "<f4")
        self._next = 0
        return self

    @property
    def n_features(self) -> int:
        """Length of the rows that the gate was calibrated for."""
        return int(self._kept.shape[1])

    def passes(self, features: FloatArray) -> bool:
        """Whether one row, shape (d,), is farther than the limit from all that is remembered."""
        if not len(self._kept):
            return True
        away = self._kept - features
        return bool(np.einsum("ij,ij->i", away, away).min() > self._limit)

    def kept(self, features: FloatArray) -> None:
        """Remember one row, shape (d,), in the place of the oldest."""
        if len(self._kept) < self._memory:
            self._kept = np.concatenate([self._kept, features[None].astype("<f4")])
        else:
            self._kept[self._next] = features
        self._next = (self._next + 1) % self._memory

    def state(self) -> JsonObject:
        """The limit and what is remembered, the oldest first."""
        full = len(self._kept) == self._memory
        oldest_first = np.roll(self._kept, -self._next, axis=0) if full else self._kept
        kept = b64encode(oldest_first.tobytes()).decode()
        return {"limit": self._limit, "kept": kept, "n_features": self._kept.shape[1]}

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`."""
        n_features = state["n_features"]
        if type(n_features) is not int or n_features < 1:
            raise ValueError(f"n_features must be an integer of at least 1, got {n_features!r}")
        self._limit = number("limit", state["limit"])
        kept = np.frombuffer(b64decode(state["kept"], validate=True), "<f4").reshape(-1, n_features)
        if not np.isfinite(kept).all():
            raise ValueError("kept must be finite, got NaN or infinity")
        self._kept = kept[-self._memory :].copy()
        self._next = len(self._kept) % self._memory


def nearest_distances(features: FloatArray) -> FloatArray:
    """Squared distance of every row to the nearest other row, shape (n,); memory for 512 rows at a time."""
    squares = np.einsum("ij,ij->i", features, features)
    nearest = np.empty(len(features))
    for start in range(0, len(features), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(features)))
        distances = squares[rows, None] + squares - 2 * features[rows] @ features.T
        distances[np.arange(len(rows)), rows] = np.inf
        nearest[rows] = np.maximum(distances.min(axis=1), 0.0)
    return nearest
