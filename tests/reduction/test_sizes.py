"""The house rule of counts, against independent formulas."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tables import fails

from drip.reduction.base import class_sizes, kept_total, sizes_from_mapping

counts_and_total = st.lists(st.integers(1, 60), min_size=1, max_size=8).flatmap(
    lambda counts: st.tuples(st.just(counts), st.integers(1, sum(counts)))
)


def hamilton(counts, total):
    """Seats one by one to the largest claim that is not yet met; the method of Hamilton."""
    n = sum(counts)
    seats = [total * count // n for count in counts]
    while sum(seats) < total:
        claims = [Fraction(total * count, n) - seat for count, seat in zip(counts, seats, strict=True)]
        best = max(range(len(counts)), key=lambda c: (claims[c], counts[c], -c))
        seats[best] += 1
    return seats


@given(counts_and_total, st.integers(1, 5))
def test_proportional_shares_are_hamiltons_raised_to_the_minimum(case, least):
    counts, total = case
    expected = [max(seat, min(least, n)) for seat, n in zip(hamilton(counts, total), counts, strict=True)]
    assert class_sizes(np.array(counts), total, "proportional", least).tolist() == expected


@given(counts_and_total)
def test_proportional_shares_sum_to_the_total_but_for_classes_that_would_be_lost(case):
    counts, total = case
    sizes = class_sizes(np.array(counts), total, "proportional")
    assert (sizes >= 1).all()
    assert (sizes <= counts).all()
    raised = sum(1 for seat in hamilton(counts, total) if seat == 0)
    assert sizes.sum() == total + raised


@given(counts_and_total)
def test_balanced_shares_differ_by_at_most_one_between_classes_that_are_not_whole(case):
    counts, total = case
    sizes = class_sizes(np.array(counts), total, "balanced")
    assert (sizes <= counts).all()
    assert sizes.sum() == max(total, np.maximum(sizes, 1).sum()) or (sizes == 1).any()
    cut = sizes[sizes < counts]
    if len(cut):
        assert cut.max() - cut.min() <= 1
        assert sizes[sizes == counts].max(initial=0) <= cut.max()


@given(st.integers(1, 10**6), st.integers(1, 100))
def test_total_is_the_decimal_share_rounded_half_up(n, percent):
    assert kept_total(n, percent / 100) == max(1, math.floor(Fraction(percent * n, 100) + Fraction(1, 2)))


def test_mapping_must_name_every_class_with_a_number_that_it_has():
    counts = np.array([3, 4])
    assert sizes_from_mapping({"b": 4, "a": 1}, ["a", "b"], counts).tolist() == [1, 4]
    for wrong in ({"a": 1}, {"a": 1, "b": 1, "c": 1}):
        with fails():
            sizes_from_mapping(wrong, ["a", "b"], counts)
    for number in (0, 5, 1.5, True, "2"):
        with fails():
            sizes_from_mapping({"a": 1, "b": number}, ["a", "b"], counts)
