"""A gate for single samples that calibration has never seen the like of."""

from __future__ import annotations

from typing import Self

import numpy as np

from drip.selectors.states import number
from drip.thresholds import check_fraction
from drip.types import FloatArray, JsonObject

_WINDOW = 500
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
