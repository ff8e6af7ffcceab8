"""Equal counts: what a rule keeps comes first, the rest is drawn at random."""

import numpy as np
import pytest

from drip.errors import InputError
from drip.rules.chance import match_count


@pytest.mark.parametrize("count", range(13))
def test_an_excess_is_dropped_and_a_shortfall_is_filled(count):
    retain = np.isin(np.arange(12), [1, 4, 5, 9, 11])
    rows = match_count(retain, count, seed=3)
    assert rows.dtype == np.int64
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == count
    assert retain[rows].sum() == min(count, 5)
    assert rows.tolist() == match_count(retain, count, seed=3).tolist()


@pytest.mark.parametrize(("count", "expected"), [(2, [2 / 3] * 3 + [0.0] * 4), (5, [1.0] * 3 + [0.5] * 4)])
def test_every_row_of_a_group_is_equally_likely(count, expected):
    retain = np.arange(7) < 3
    counts = np.zeros(7)
    for seed in range(2000):
        counts[match_count(retain, count, seed)] += 1
    assert counts / 2000 == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("count", [-1, 4])
def test_a_count_outside_its_range_is_refused(count):
    with pytest.raises(InputError, match=rf"^count must be in \[0, 3\], got {count}$"):
        match_count(np.array([True, False, True]), count, seed=0)
