"""A gate for what looks like something that was kept lately."""

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
_LEAST = 1 / 400
_BLOCK = 512
_STEPS = 127
_BYTE = "|i1"


class DuplicateGate:
    r"""Distance to the nearest of the last kept samples, against what is usual between calibration samples.

    The limit is a quantile of the calibration samples' distances to their nearest neighbours: what is nearer
    to a kept sample than almost all independent samples are to each other is a near-duplicate. Where all
    distances shrink, as in fog, the limit shrinks alike: by the nine-tenths quantile of the last 500
    arrivals' distances to what was kept, over that of calibration samples to ``memory`` others. As long as
    less than nine tenths of the arrivals are near-duplicates, they hardly move it. It shrinks to a twentieth
    of itself, as distances go, and no further: a picture that only repeats, with less noise than that, stays
    a near-duplicate for ever, and so does what a thicker fog leaves. One with more noise looks like fog.

    Args:
        quantile: Share of the calibration samples that would count as near-duplicates, in (0, 1).
        memory: Number of kept samples that are remembered, at least 1.

    Rows are held in steps of a 127th of the largest calibration value, one byte per number; distances of
    such rows are whole numbers, without rounding. Where a mean that all rows share is many times what they
    differ by, the limit is few steps, and the rounding counts as noise.

    Complexity: ``memory`` times d multiplications for d features, at most 512. State: as many bytes and 503
    numbers, as text, 90 kB for 256 rows of 256.
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
        self._step = float(np.abs(features).max()) / _STEPS or 1.0
        self._kept = np.empty((0, features.shape[1]), np.float32)
        self._next = 0
        rows = np.stack([self._in_steps(row) for row in features])
        self._limit = float(np.quantile(nearest_distances(rows), self._quantile))
        n_kept = min(self._memory, len(rows) // 2)
        shuffled = np.random.Generator(np.random.PCG64(0)).permutation(rows)
        to_kept = [_nearest(shuffled[:n_kept], row) for row in shuffled[n_kept:]]
        self._usual = float(np.quantile(to_kept, _HIGH))
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
        distance, limit = _nearest(self._kept, self._in_steps(features)), self._limit
        if not frozen:
            if self._has_shrunk:
                limit *= min(max(self._recent.limit(1 - _HIGH) / self._usual, _LEAST), 1.0)
            self._recent.add(distance)
        return distance > limit

    @property
    def _has_shrunk(self) -> bool:
        """Whether the last distances say how much smaller all are than in calibration.

        To fewer samples than calibration had distances are larger; then only a silent gate says that.
        """
        if len(self._recent) < _WINDOW or not self._usual:
            return False
        return len(self._kept) == self._memory or self._recent.limit(1 - _HIGH) <= self._limit

    def kept(self, features: FloatArray) -> None:
        """Remember one row, shape (d,), in the place of the oldest."""
        row = self._in_steps(features)
        if len(self._kept) < self._memory:
            shrunk = self._has_shrunk
            self._kept = np.concatenate([self._kept, row[None]])
            if len(self._kept) == self._memory and not shrunk:
                self._recent = RunningQuantile(_WINDOW)  # those to fewer samples were larger
        else:
            self._kept[self._next] = row
        self._next = (self._next + 1) % self._memory

    def _in_steps(self, row: FloatArray) -> NDArray[np.float32]:
        return np.clip(np.rint(row / self._step), -_STEPS, _STEPS).astype(np.float32)

    def state(self) -> JsonObject:
        """The limit and what is remembered, with the place of the next."""
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
                f"at most {self._memory} rows and the place of the next are needed, got {len(kept)} rows and "
                f"next={self._next}"
            )


def _nearest(rows: NDArray[np.float32], row: NDArray[np.float32]) -> float:
    """Squared distance to the nearest of some rows of whole numbers: exact, however it is summed."""
    return float((np.einsum("ij,ij->i", rows, rows) - 2 * (rows @ row)).min() + row @ row)


def nearest_distances(features: NDArray[np.floating[Any]]) -> FloatArray:
    """Squared distance of every row to the nearest other row, shape (n,); memory for 512 rows at a time."""
    squares = np.einsum("ij,ij->i", features, features)
    nearest = np.empty(len(features))
    for start in range(0, len(features), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(features)))
        distances = squares[rows, None] + squares - 2 * features[rows] @ features.T
        distances[np.arange(len(rows)), rows] = np.inf
        nearest[rows] = np.maximum(distances.min(axis=1), 0.0)
    return nearest


_MOST = 0.3


class OutlierGate:
    """A distance, cut at a quantile of what it is for calibration samples.

    What is farther is an outlier, as long as that holds for less than three tenths of about the last 500
    arrivals: where everything looks strange, the world has changed, and all of it passes.

    Args:
        quantile: Share of the calibration samples that pass, in (0, 1).
    """

    def __init__(self, quantile: float = 0.97) -> None:
        check_fraction("quantile", quantile)
        self._quantile = quantile
        self._share = 0.0

    def calibrate(self, distances: FloatArray) -> Self:
        """Take the limit from the distances of calibration samples, shape (n,), n at least 1."""
        self._limit = float(np.quantile(distances, self._quantile))
        return self

    def passes(self, distance: float, *, frozen: bool = False) -> bool:
        """Whether a sample at this distance is no outlier.

        Args:
            distance: The sample's.
            frozen: Hold the limit, however many it rejects.
        """
        is_far = distance > self._limit
        is_new_world = not frozen and self._share >= _MOST
        self._share += (is_far - self._share) / _WINDOW
        return not is_far or is_new_world

    def state(self) -> JsonObject:
        """The limit, and the share of outliers among the last arrivals."""
        return {"limit": self._limit, "share": self._share}

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`."""
        self._limit, self._share = number("limit", state["limit"]), number("share", state["share"])
        if not 0 <= self._share <= 1:
            raise ValueError(f"share must be in [0, 1], got {self._share!r}")
