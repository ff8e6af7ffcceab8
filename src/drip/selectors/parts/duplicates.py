"""A gate for what looks like something that was kept lately."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError
from drip.selectors.parts.quantiles import RunningQuantile
from drip.selectors.states import number, packed, unpacked
from drip.thresholds import check_fraction
from drip.types import FloatArray, JsonObject

_MEMORY = 256
_WINDOW = 500
_HIGH = 0.9
_BLOCK = 512


class DuplicateGate:
    r"""Distance to the nearest of the last kept samples, against what is usual between calibration samples.

    The limit is a quantile of the calibration samples' distances to their nearest neighbours: what is nearer
    to a kept sample than almost all independent samples are to each other is a near-duplicate. Where all
    distances shrink, as in fog, the limit shrinks alike: by the nine-tenths quantile of the last 500
    arrivals' distances to what was kept, over that of calibration samples to ``memory`` others. Up to four
    of five arrivals may be near-duplicates before they move it.

    Args:
        quantile: Share of the calibration samples that would count as near-duplicates, in (0, 1).
        memory: Number of kept samples that are remembered, at least 1.

    Complexity: ``memory`` times d multiplications for d features. State: as many numbers and 502 more, in
    single precision and as text, 90 kB for 256 rows of 64.
    """

    def __init__(self, quantile: float = 0.02, memory: int = _MEMORY) -> None:
        check_fraction("quantile", quantile)
        if memory < 1:
            raise InputError(f"memory must be at least 1, got {memory!r}")
        self._quantile, self._memory = quantile, memory
        self._next = 0
        self._recent = RunningQuantile(_WINDOW)

    def calibrate(self, features: FloatArray) -> Self:
        """Take the limit from calibration features, shape (n, d); nothing is remembered.

        Raises:
            InputError: fewer than two rows.
        """
        if len(features) < 2:  # a neighbour is another sample
            raise InputError(f"a duplicate gate needs at least 2 calibration samples, got {len(features)}")
        self._limit = float(np.quantile(nearest_distances(features), self._quantile))
        n_kept = min(self._memory, len(features) // 2)
        shuffled = np.random.Generator(np.random.PCG64(0)).permutation(features)
        to_kept = [_nearest(shuffled[:n_kept], row) for row in shuffled[n_kept:]]
        self._usual = float(np.quantile(to_kept, _HIGH))
        self._kept = np.empty((0, features.shape[1]), "<f4")
        self._next = 0
        return self

    @property
    def n_features(self) -> int:
        """Length of the rows that the gate was calibrated for."""
        return int(self._kept.shape[1])

    def passes(self, features: FloatArray, *, frozen: bool = False) -> bool:
        """Whether one row, shape (d,), is farther than the limit from all that is remembered.

        Args:
            features: The row.
            frozen: Hold the calibrated limit, however small all distances are.
        """
        if not len(self._kept):
            return True
        distance, limit = _nearest(self._kept, features), self._limit
        if not frozen and len(self._kept) == self._memory:
            if len(self._recent) == _WINDOW and self._usual:
                limit *= min(self._recent.limit(1 - _HIGH) / self._usual, 1.0)
            self._recent.add(distance)
        return distance > limit

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
        return {
            "limit": self._limit,
            "usual": self._usual,
            "recent": packed(np.array(self._recent.values)),
            "kept": packed(oldest_first),
            "n_features": self.n_features,
        }

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`."""
        kept = unpacked("kept", state["kept"], None, state["n_features"])
        self._limit, self._usual = number("limit", state["limit"]), number("usual", state["usual"])
        self._recent = RunningQuantile(_WINDOW, unpacked("recent", state["recent"], None).tolist())
        self._kept = kept[-self._memory :].astype("<f4")
        self._next = len(self._kept) % self._memory


def _nearest(rows: NDArray[np.floating[Any]], row: FloatArray) -> float:
    """Squared distance to the nearest of some rows, in single precision, as a saved state holds it."""
    away = rows - row
    return float(np.float32(np.einsum("ij,ij->i", away, away).min()))


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
