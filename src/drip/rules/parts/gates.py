"""Gates that reject near-duplicates and outliers."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError
from drip.rules.parts.rates import RunningQuantile
from drip.rules.state import count, number, packed, unpacked
from drip.types import FloatArray, JsonObject
from drip.windows import check_fraction

_MEMORY = 256
_WINDOW = 500
_HIGH = 0.9
_LEAST = 1 / 400  # of squared distances: a twentieth of the distance
_BLOCK = 512
_STEPS = 127  # one signed byte
_BYTE = "|i1"


class DuplicateGate:
    r"""Rejects a sample that is closer to a recently kept one than independent samples are to each other.

    The threshold is a quantile of the calibration samples' distances to their nearest neighbours. Where all
    distances shrink, as in fog, the threshold shrinks with them: by the nine-tenths quantile of the last 500
    arrivals' distances to the kept samples, divided by that of calibration samples to ``memory`` others. As
    long as less than nine tenths of the arrivals are near-duplicates, they hardly influence it. The threshold
    never shrinks below a twentieth of its calibrated value. A scene that only repeats, with less noise than
    that, therefore stays a near-duplicate forever; so does whatever remains visible in very thick fog. A
    repeated scene with more noise than that looks like fog, and is kept.

    Args:
        quantile: Part of the calibration samples that would be rejected, in (0, 1).
        memory: Number of kept samples to remember, at least 1.

    Rows are stored in steps of a 127th of the largest calibration value, one byte per number, so their
    squared distances are whole numbers and exact in any order of summation. Where the common mean of all rows
    is many times larger than their differences, the threshold is only a few steps and rounding acts as noise.

    Complexity: ``memory`` times d multiplications for d features, at most 512. State: as many bytes and 503
    numbers; as text 90 kB for 256 rows of 256.
    """

    def __init__(self, quantile: float = 0.02, memory: int = _MEMORY) -> None:
        check_fraction("quantile", quantile)
        if memory < 1:
            raise InputError(f"memory must be at least 1, got {memory!r}")
        self._quantile, self._memory = quantile, memory
        self._next = 0
        self._recent = RunningQuantile(_WINDOW)

    def calibrate(self, features: FloatArray) -> Self:
        """Set the threshold from calibration features, shape (n, d); nothing is remembered.

        Raises:
            InputError: fewer than two rows.
        """
        if len(features) < 2:  # a nearest neighbour needs another sample
            raise InputError(
                f"the near-duplicate gate needs at least 2 calibration samples, got {len(features)}"
            )
        # Zero features have no step; any value works for them.
        self._step = float(np.abs(features).max()) / _STEPS or 1.0
        self._kept = np.empty((0, features.shape[1]), np.float32)
        self._next = 0
        rows = np.stack([self._in_steps(row) for row in features])
        self._limit = float(np.quantile(nearest_distances(rows), self._quantile))
        n_kept = min(self._memory, len(rows) // 2)
        # Mixed: calibration samples of one scene follow each other and would be too close to be typical.
        shuffled = np.random.Generator(np.random.PCG64(0)).permutation(rows)
        # As in operation: new samples against a memory of others, with as many rows as half the set allows.
        to_kept = [_nearest(shuffled[:n_kept], row) for row in shuffled[n_kept:]]
        self._usual = float(np.quantile(to_kept, _HIGH))
        return self

    @property
    def n_features(self) -> int:
        """Length of a row."""
        return int(self._kept.shape[1])

    def passes(self, features: FloatArray, *, frozen: bool = False) -> bool:
        """Whether one row, shape (d,), is farther than the threshold from all remembered rows.

        Args:
            features: The row.
            frozen: Use the calibrated threshold, however small all distances are.
        """
        # Nothing was kept yet, so nothing can repeat it.
        if not len(self._kept):
            return True
        distance, limit = _nearest(self._kept, self._in_steps(features)), self._limit
        if not frozen:
            if self._has_shrunk:
                limit *= min(max(self._recent.limit(1 - _HIGH) / self._usual, _LEAST), 1.0)
            self._recent.add(distance)
        return distance > limit

    @property
    def _has_shrunk(self) -> bool:
        """Whether the last distances may be compared with those of calibration.

        Distances to fewer remembered samples are larger. Until the memory is full the comparison is therefore
        only made when nearly everything is being rejected.
        """
        if len(self._recent) < _WINDOW or not self._usual:
            return False
        return len(self._kept) == self._memory or self._recent.limit(1 - _HIGH) <= self._limit

    def kept(self, features: FloatArray) -> None:
        """Remember one row, shape (d,); it replaces the oldest."""
        row = self._in_steps(features)
        if len(self._kept) < self._memory:
            shrunk = self._has_shrunk
            self._kept = np.concatenate([self._kept, row[None]])
            if len(self._kept) == self._memory and not shrunk:
                self._recent = RunningQuantile(_WINDOW)  # distances to fewer samples were larger: start over
        else:
            self._kept[self._next] = row
        self._next = (self._next + 1) % self._memory

    def _in_steps(self, row: FloatArray) -> NDArray[np.float32]:
        return np.clip(np.rint(row / self._step), -_STEPS, _STEPS).astype(np.float32)

    def state(self) -> JsonObject:
        """The thresholds and the remembered rows."""
        return {
            "limit": self._limit,
            "usual": self._usual,
            "recent": self._recent.state(),
            "step": self._step,
            "kept": packed(self._kept, _BYTE),
            "next": self._next,
            "n_features": self.n_features,
        }

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`."""
        kept = unpacked("kept", state["kept"], None, state["n_features"], dtype=_BYTE)
        self._step = number("step", state["step"])
        if self._step <= 0:
            raise ValueError(f"step must be above 0, got {self._step}")
        self._limit, self._usual = number("limit", state["limit"]), number("usual", state["usual"])
        self._recent = RunningQuantile.restored(_WINDOW, state["recent"])
        self._kept, self._next = kept.astype(np.float32), count("next", state["next"])
        places = range(self._memory) if len(kept) == self._memory else (len(kept),)
        if len(kept) > self._memory or self._next not in places:
            raise ValueError(
                f"the gate remembers at most {self._memory} rows, got {len(kept)} rows and next={self._next}"
            )


def _nearest(rows: NDArray[np.float32], row: NDArray[np.float32]) -> float:
    """Squared distance to the nearest row; rows hold whole numbers, so the result is exact."""
    return float((np.einsum("ij,ij->i", rows, rows) - 2 * (rows @ row)).min() + row @ row)


def nearest_distances(features: NDArray[np.floating[Any]]) -> FloatArray:
    """Squared distance of every row to the nearest other row, shape (n,), in blocks of 512 rows."""
    squares = np.einsum("ij,ij->i", features, features)
    nearest = np.empty(len(features))
    for start in range(0, len(features), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(features)))
        distances = squares[rows, None] + squares - 2 * features[rows] @ features.T
        # A row is not its own neighbour.
        distances[np.arange(len(rows)), rows] = np.inf
        # The expanded square may round below zero for equal rows.
        nearest[rows] = np.maximum(distances.min(axis=1), 0.0)
    return nearest


_MOST = 0.3  # if more arrivals are outliers, the threshold is outdated


class OutlierGate:
    """Rejects samples farther than a quantile of the calibration samples' distances.

    It rejects as long as fewer than three tenths of about the last 500 arrivals are outliers. Where everything
    looks strange the distribution has shifted, and everything passes.

    Args:
        quantile: Part of the calibration samples that pass, in (0, 1).
    """

    def __init__(self, quantile: float = 0.97) -> None:
        check_fraction("quantile", quantile)
        self._quantile = quantile
        self._share = 0.0

    def calibrate(self, distances: FloatArray) -> Self:
        """Set the threshold from the distances of calibration samples, shape (n,), n at least 1."""
        self._limit = float(np.quantile(distances, self._quantile))
        return self

    def passes(self, distance: float, *, frozen: bool = False) -> bool:
        """Whether a sample at this distance passes.

        Args:
            distance: Distance of the sample.
            frozen: Reject outliers however many there are.
        """
        # The part of outliers is updated also while everything passes, or the gate could never close again.
        is_far = distance > self._limit
        is_shifted = not frozen and self._share >= _MOST
        self._share += (is_far - self._share) / _WINDOW
        return not is_far or is_shifted

    def state(self) -> JsonObject:
        """The threshold and the part of outliers among the last arrivals."""
        return {"limit": self._limit, "share": self._share}

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`."""
        self._limit, self._share = number("limit", state["limit"]), number("share", state["share"])
        if not 0 <= self._share <= 1:
            raise ValueError(f"share must be in [0, 1], got {self._share!r}")
