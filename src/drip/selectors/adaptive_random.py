"""Adaptive random: a draw at a held rate, behind gates."""

from __future__ import annotations

from typing import ClassVar
from zlib import crc32

import numpy as np

from drip.selectors.base import ThresholdSelector
from drip.selectors.composed import ComposedSelector
from drip.types import FloatArray, Observations


class AdaptiveRandomSelector(ComposedSelector):
    """What :class:`drip.selectors.composed.ComposedSelector` does around no preference at all.

    The utility is a checksum of logits and seed in [0, 1): as good as a draw, and the same whenever the
    sample comes again.
    """

    name: ClassVar[str] = "adaptive-random"

    def _utility_rule(self) -> ThresholdSelector:
        return _Checksum(self._params["seed"])


class _Checksum(ThresholdSelector):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self._start = crc32(str(seed).encode())

    def utility(self, observations: Observations) -> FloatArray:
        rows = np.ascontiguousarray(observations.logits, "<f8")
        return np.array([crc32(row.tobytes(), self._start) / 2**32 for row in rows], np.float64)
