"""Random: the baseline that every rule has to beat at the same count."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import ChanceSelector
from drip.types import Decisions, Observations


class RandomSelector(ChanceSelector):
    """Keep each sample with the same probability; a store over budget drops the oldest (priority 0)."""

    name: ClassVar[str] = "random"

    def _decide(self, observations: Observations) -> Decisions:
        n = len(observations)
        retain = self._draw(observations) < self._retention
        return Decisions(retain, np.zeros(n), np.full(n, float(self._retention)), ["random"] * n)
