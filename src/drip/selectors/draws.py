"""Decisions of rules that keep every sample with a probability of its own."""

from __future__ import annotations

import numpy as np

from drip.selectors.base import within_float64
from drip.types import Decisions, FloatArray


def drawn(draw: FloatArray, probability: FloatArray, kept: str) -> Decisions:
    """Keep where the draw, uniform in [0, 1), is below the probability.

    The priority is 1 - draw / probability: a store over budget that drops the lowest ones keeps every
    sample with its probability times one factor that is the same for all, up to those that reach 1.

    >>> drawn(np.array([0.3, 0.3]), np.array([0.6, 0.2]), "coin").retain.tolist()
    [True, False]
    """
    retain = draw < probability
    with np.errstate(over="ignore"):
        priority = within_float64(1.0 - draw / np.maximum(probability, np.finfo(np.float64).tiny))
    return Decisions(retain, priority, probability, [kept if row else "not-drawn" for row in retain.tolist()])
