"""Reservoir: a uniform sample of the whole stream, whatever its length."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import ChanceSelector
from drip.types import Decisions, Observations


class ReservoirSelector(ChanceSelector):
    """Give each sample a uniform random priority and keep those above 1 - retention.

    A store over budget drops the lowest priorities, so that what it holds is at every moment a
    uniform sample without replacement of all that came (the default retention is 1).

    References:
        Vitter (1985), Random sampling with a reservoir; Li (1994), random priorities.
    """

    name: ClassVar[str] = "reservoir"

    def __init__(self, retention: float = 1.0, seed: int = 0) -> None:
        super().__init__(retention, seed)

    def _decide(self, observations: Observations) -> Decisions:
        n = len(observations)
        priority = self._draw(observations)
        return Decisions(
            priority >= 1.0 - self._retention, priority, np.full(n, float(self._retention)), ["reservoir"] * n
        )
