"""Random partitions of rows that keep groups together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drip.errors import InputError
from drip.types import IntArray


def split_rows(
    n: int, shares: Sequence[float], seed: int, groups: Sequence[int] | IntArray | None = None
) -> tuple[IntArray, ...]:
    """A random partition of n rows, such as the paper's 40/20/40.

    Without groups, the rows are permuted and cut at the rounded cumulative shares. With groups, whole groups
    are put in random order, and the sequence is cut at the group boundary nearest to each cumulative share
    (the earlier one of two that are equally near). So a cut is off by at most half of the largest group, and
    a part by at most the largest group; a part can be empty if a group is larger than the part. The order of
    rows within a part is random.

    Published results refer to rows of these partitions, so a seed must select the same rows forever.

    Args:
        n: Number of rows.
        shares: Positive shares that sum to 1; the last part absorbs the rounding.
        seed: Seed of the permutation.
        groups: One number per row; rows with equal numbers go to the same part. None: rows are independent.

    Returns:
        The rows of each part, int64.

    Raises:
        InputError: shares are not positive or do not sum to 1, or there is not one group number per row.

    References:
        DRIP paper, section IV-A.1.

    >>> [len(part) for part in split_rows(10, (0.4, 0.2, 0.4), seed=0)]
    [4, 2, 4]
    >>> groups = np.array([7, 7, 7, 8, 8, 9])
    >>> [sorted(set(groups[part].tolist())) for part in split_rows(6, (0.5, 0.5), seed=0, groups=groups)]
    [[7], [8, 9]]
    """
    if not shares or not (min(shares) > 0 and abs(sum(shares) - 1) <= 1e-9):
        raise InputError(f"shares must be positive and sum to 1, got {tuple(shares)!r}")
    generator = np.random.default_rng(seed)
    order = generator.permutation(n).astype(np.int64)
    targets = np.cumsum(shares)[:-1] * n
    if groups is None:
        return tuple(np.split(order, np.round(targets).astype(int)))
    if len(groups) != n:
        raise InputError(f"groups has {len(groups)} entries for {n} rows; give one number per row")
    _, member_of = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(member_of)
    dealt = generator.permutation(len(sizes))
    ends = np.concatenate([[0], np.cumsum(sizes[dealt])])
    cuts = np.abs(ends[None] - targets[:, None]).argmin(axis=1)
    place = np.empty(len(sizes), dtype=np.int64)
    place[dealt] = np.arange(len(sizes))
    part_of = np.searchsorted(cuts, place[member_of[order]], side="right")
    return tuple(order[part_of == part] for part in range(len(shares)))
