"""Quantiles of the last values of a stream."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from math import isfinite
from typing import Self

import numpy as np

from drip.errors import InputError
from drip.selectors.states import count, packed, unpacked
from drip.types import FloatArray, JsonObject


class RunningQuantile:
    """The last ``window`` values, in order of arrival and in order of size.

    Args:
        window: Number of values that are held, at least 1.
        values: Values to start with, the oldest first; all but the last ``window`` are dropped.

    Complexity: one search and one insertion into a list of ``window`` numbers for every value.

    >>> quantile = RunningQuantile(3, [5.0, 1.0, 2.0, 3.0])
    >>> quantile.values, quantile.rank(2.5), quantile.limit(1 / 3)
    ([1.0, 2.0, 3.0], 0.6666666666666666, 3.0)
    """

    def __init__(self, window: int, values: Iterable[float] = ()) -> None:
        if window < 1:
            raise InputError(f"window must be at least 1, got {window!r}")
        self._window = window
        self._slots = list(values)[-window:]
        self._oldest = 0  # a new value takes its slot: a state changes in as many places as there were values
        self._ordered = sorted(self._slots)
        if not all(map(isfinite, self._ordered)):
            raise InputError("the values of a running quantile must be finite, got NaN or infinity")

    @classmethod
    def spread(cls, window: int, values: FloatArray) -> Self:
        """As many values as the window holds, evenly over a sample in order of size.

        They arrive in a fixed mixed order, so that those that leave first are no tail of the sample.

        Args:
            window: Number of values that are held.
            values: The sample, shape (n,), n at least 1.
        """
        taken = np.sort(values)[np.linspace(0, len(values) - 1, window).round().astype(np.int64)]
        mixed = np.random.Generator(np.random.PCG64(0)).permutation(window)
        return cls(window, taken[mixed].tolist())

    def __len__(self) -> int:
        """Number of values that are held."""
        return len(self._ordered)

    @property
    def values(self) -> list[float]:
        """The values, the oldest first."""
        return self._slots[self._oldest :] + self._slots[: self._oldest]

    @property
    def ordered(self) -> FloatArray:
        """The values in order of size."""
        return np.array(self._ordered)

    def state(self) -> JsonObject:
        """The values in their slots, and which is the oldest."""
        return {"values": packed(np.array(self._slots), "<f8"), "oldest": self._oldest}

    @classmethod
    def restored(cls, window: int, state: JsonObject, *, n_values: int | None = None) -> Self:
        """Continue from a saved :meth:`state`.

        Args:
            window: Number of values that are held.
            state: What was saved.
            n_values: Number of values that it must have; None takes up to ``window``.

        Raises:
            KeyError, TypeError, ValueError: no such state.
        """
        values = unpacked("values", state["values"], n_values, dtype="<f8")
        oldest = count("oldest", state["oldest"])
        if len(values) > window or oldest >= (window if len(values) == window else 1):
            raise ValueError(f"at most {window} values and the oldest of them are needed, got {oldest}")
        quantile = cls(window, values.tolist())
        quantile._oldest = oldest
        return quantile

    def add(self, value: float) -> None:
        """Take in a finite value; the oldest leaves when the window is full."""
        if len(self._slots) == self._window:
            del self._ordered[bisect_left(self._ordered, self._slots[self._oldest])]
            self._slots[self._oldest] = value
            self._oldest = (self._oldest + 1) % self._window
        else:
            self._slots.append(value)
        insort(self._ordered, value)

    def rank(self, value: float) -> float:
        """Share of the held values below ``value``, ties counted half; a half where nothing is held."""
        if not self._ordered:
            return 0.5
        below = bisect_left(self._ordered, value)
        return 0.5 * (below + bisect_right(self._ordered, value)) / len(self._ordered)

    def limit(self, share: float) -> float:
        """The smallest held value that ``share`` of them reach; infinite for a share of zero.

        Args:
            share: In [0, 1]; the number of values that reach the limit is rounded half up.
        """
        count = int(share * len(self._ordered) + 0.5)
        return self._ordered[-count] if count else float("inf")
