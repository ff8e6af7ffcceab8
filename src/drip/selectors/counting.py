"""Comparing rules at the same count: the fair ground of every table."""

from __future__ import annotations

import numpy as np

from drip.errors import InputError
from drip.types import BoolArray, IntArray


def match_count(retain: BoolArray, count: int, seed: int) -> IntArray:
    """Rows that a rule keeps when it may keep exactly ``count``.

    An excess is dropped at random; a shortfall is filled at random from what the rule discarded.

    Args:
        retain: The rule's decisions on the whole stream, shape (n,).
        count: Samples to keep, in [0, n].
        seed: Seed of the draws.

    Returns:
        Sorted rows, shape (count,).

    Raises:
        InputError: ``count`` is outside its range.

    >>> match_count(np.array([True, False, True, True]), 3, seed=0).tolist()
    [0, 2, 3]
    """
    if not 0 <= count <= len(retain):
        raise InputError(f"count must be in [0, {len(retain)}], got {count!r}")
    draw = np.random.default_rng(seed).permutation(len(retain))
    # Kept rows first, each group in random order.
    chosen = draw[np.argsort(~retain[draw], kind="stable")][:count]
    return np.sort(chosen).astype(np.int64)
