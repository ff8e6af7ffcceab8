"""Random partitions: every row once, sizes near the shares, no group on two sides."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drip.datasets import split_rows
from drip.errors import InputError


@pytest.mark.parametrize("n", [0, 1, 3, 10, 70_000])
@pytest.mark.parametrize("shares", [(1.0,), (0.4, 0.2, 0.4), (0.8, 0.2), (1 / 3, 1 / 3, 1 / 3)])
def test_partition_has_every_row_once(n, shares):
    parts = split_rows(n, shares, seed=4)
    assert len(parts) == len(shares)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - share * n) <= 1


def test_partition_depends_only_on_the_seed():
    first, second = split_rows(100, (0.5, 0.5), seed=1), split_rows(100, (0.5, 0.5), seed=1)
    np.testing.assert_array_equal(first[0], second[0])
    assert not np.array_equal(first[0], split_rows(100, (0.5, 0.5), seed=2)[0])


@pytest.mark.parametrize(
    "shares", [(), (0.5,), (0.5, 0.6), (1.0, 0.0), (1.5, -0.5), (float("nan"), 1.0), (float("nan"),)]
)
def test_shares_that_do_not_sum_to_one_are_an_error(shares):
    with pytest.raises(InputError, match="shares"):
        split_rows(10, shares, seed=0)


def test_partition_is_the_one_that_published_results_used():
    digest = hashlib.sha256(b"|".join(part.tobytes() for part in split_rows(1000, (0.4, 0.2, 0.4), seed=7)))
    assert digest.hexdigest()[:16] == "ccc709eaaa2f2549"


SHARES = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(
    lambda weights: tuple(weight / sum(weights) for weight in weights)
)


@given(st.lists(st.integers(-5, 30), max_size=120), SHARES, st.integers(0, 2**32 - 1))
def test_no_group_is_on_two_sides_and_sizes_are_within_the_largest_group(groups, shares, seed):
    n = len(groups)
    parts = split_rows(n, shares, seed, groups)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    sides = [{groups[row] for row in part} for part in parts]
    assert sum(map(len, sides)) == len(set(groups))
    largest = max(np.bincount(np.unique(groups, return_inverse=True)[1])) if groups else 0
    for part, share in zip(parts, shares, strict=True):
        assert part.dtype == np.int64
        assert abs(len(part) - share * n) <= largest + 1e-6


@given(st.integers(0, 100), SHARES, st.integers(0, 1000))
def test_independent_rows_are_cut_at_the_nearest_row(n, shares, seed):
    for part, share in zip(split_rows(n, shares, seed, range(n)), shares, strict=True):
        assert abs(len(part) - share * n) <= 1 + 1e-6


def test_names_of_groups_do_not_matter_and_the_seed_does():
    groups = np.repeat(np.arange(20), 5)
    parts = split_rows(100, (0.5, 0.5), 3, groups)
    for one, other in zip(parts, split_rows(100, (0.5, 0.5), 3, groups * 7 - 50), strict=True):
        np.testing.assert_array_equal(one, other)
    assert set(parts[0].tolist()) != set(split_rows(100, (0.5, 0.5), 4, groups)[0].tolist())


def test_every_group_is_equally_likely_to_be_first_regardless_of_its_size():
    groups = np.array([0] * 8 + [1] * 2)
    first = [groups[split_rows(10, (0.8, 0.2), seed, groups)[0]].max(initial=-1) for seed in range(300)]
    assert 0.4 < np.mean(np.array(first) == 0) < 0.6


def test_groups_of_another_length_are_an_error():
    with pytest.raises(InputError, match="groups has 2 entries for 3 rows"):
        split_rows(3, (0.5, 0.5), 0, groups=[1, 2])
