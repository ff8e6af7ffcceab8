"""Keep everything: the upper bound, and the rule of a store that only bounds bytes."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from drip.selectors.base import BaseSelector, deterministic
from drip.types import Decisions, JsonObject, Observations


class KeepAllSelector(BaseSelector):
    """Keep every sample, all with priority 0: a store over budget drops the oldest."""

    name: ClassVar[str] = "keep-all"

    @classmethod
    def for_retention(cls, retention: float, **params: Any) -> Self:  # noqa: ARG003  # it keeps all whatever is asked
        """Keep everything; the retention is ignored."""
        return cls(**params)

    @property
    def params(self) -> JsonObject:
        """None."""
        return {}

    def _decide(self, observations: Observations) -> Decisions:
        n = len(observations)
        return deterministic(np.ones(n, dtype=np.bool_), np.zeros(n), "keep-all", "")
