"""Inverse DRIP: keep the typical samples; the control that shows whether the window matters."""

from __future__ import annotations

from typing import ClassVar

from drip.selectors.base import deterministic
from drip.selectors.drip_window import DripSelector
from drip.thresholds import complement
from drip.types import Decisions, Observations


class InverseDripSelector(DripSelector):
    """Keep inside the per-class window of the DRIP score, discard outside.

    The window holds what is kept: its share is 1 - ``discard_fraction``. The priority is minus the
    distance to the window. A class that never discards keeps everything.
    """

    name: ClassVar[str] = "inverse-drip"
    windows_key: ClassVar[str] = "kept_windows"

    @property
    def window_fraction(self) -> float:
        """Share of every class inside its window: what is kept."""
        return complement(self._discard_fraction)

    def _decide(self, observations: Observations) -> Decisions:
        inside, discards, distance = self._distances(observations)
        # Zero minus, so that the middle of the window has priority 0 and not -0.
        return deterministic(inside | ~discards, 0.0 - distance, "inside-window", "outside-window")
