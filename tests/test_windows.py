"""Windows against exact brute force, on scores of any magnitude."""

from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import accumulate
from math import ceil, fsum, log2, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drip.windows import (
    densest_window,
    fit_window,
    histogram_peak,
    mean_and_deviation,
    window_deviations,
    window_size,
)

TIE, SLACK = Fraction(1, 10**12), Fraction(1, 10**13)
finite = st.floats(allow_nan=False, allow_infinity=False)
fractions_of_hundred = st.integers(1, 99).map(lambda percent: percent / 100)


def exact_deviation(values):
    numbers = [Fraction(value) for value in values]
    mean = sum(numbers) / len(numbers)
    return square_root(sum((number - mean) ** 2 for number in numbers) / len(numbers))


def square_root(number):
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -9999, 9999
        return Fraction((Decimal(number.numerator) / Decimal(number.denominator)).sqrt())


def assert_densest(start, deviations, spread):
    """The first of the windows that tie, with a slack around the tolerance for rounding."""
    smallest = min(deviations)
    assert deviations[start] <= smallest + (TIE + SLACK) * spread
    assert not any(deviation <= smallest + (TIE - SLACK) * spread for deviation in deviations[:start])


def assert_exactly_densest(values, fraction):
    ordered = np.sort(np.array(values, dtype=np.float64))
    start, stop = densest_window(ordered, fraction)
    size = stop - start
    numbers = ordered.tolist()
    deviations = [exact_deviation(numbers[i : i + size]) for i in range(len(numbers) - size + 1)]
    assert_densest(start, deviations, Fraction(numbers[-1]) - Fraction(numbers[0]))


@pytest.mark.parametrize("percent", range(1, 100))
def test_window_size_rounds_half_up_in_decimal(percent):
    for n in range(1, 130):
        assert window_size(n, percent / 100) == min(n, max(2, (2 * percent * n + 100) // 200))


@given(st.lists(st.integers(0, 20), min_size=2, max_size=30), fractions_of_hundred)
def test_window_of_scores_with_many_duplicates_is_the_densest(values, fraction):
    assert_exactly_densest(values, fraction)


@given(st.lists(finite, min_size=2, max_size=24), fractions_of_hundred)
def test_window_of_any_finite_scores_is_the_densest(values, fraction):
    assert_exactly_densest(values, fraction)


@given(st.lists(st.floats(0, 1e-307), min_size=2, max_size=20), fractions_of_hundred)
def test_window_of_subnormal_scores_is_the_densest(values, fraction):
    assert_exactly_densest(values, fraction)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1.0, 1e200, 1.7e308])
def test_window_of_scores_whose_squares_overflow_or_vanish_is_the_densest(scale):
    rng = np.random.default_rng(5)
    assert_exactly_densest(rng.uniform(-1.0, 1.0, 40) * scale, 0.3)


@given(st.lists(st.integers(0, 2000), min_size=2, max_size=30), fractions_of_hundred)
def test_window_at_a_large_offset_is_the_densest(steps, fraction):
    assert_exactly_densest([1e9 + step * 2.0**-20 for step in steps], fraction)


@pytest.mark.parametrize("size", [2, 3, 7, 19, 20])
def test_deviations_are_those_of_a_two_pass_sum(size):
    ordered = np.sort(np.random.default_rng(size).normal(0.0, 1.0, 20))
    for start, got in enumerate(window_deviations(ordered, size)):
        window = ordered[start : start + size].tolist()
        mean = fsum(window) / size
        expected = sqrt(fsum((value - mean) ** 2 for value in window) / size)
        assert got == pytest.approx(expected, rel=1e-13)


def test_deviations_do_not_depend_on_where_the_blocks_are_cut():
    # One step above 1e9 is 1.2e-7; a mean that rounds to another score would be seen.
    ordered = np.sort(1e9 + np.random.default_rng(0).integers(0, 4, 90) * 2.0**-23)
    for size in (3, 7, 30):
        for start, got in enumerate(window_deviations(ordered, size)):
            exact = float(exact_deviation(ordered[start : start + size].tolist()))
            assert got == pytest.approx(exact, rel=1e-9, abs=1e-15)


def test_of_windows_within_the_tolerance_the_first_wins():
    gap = 0.1
    assert densest_window(np.array([0.0, gap, 1.0 - gap + 1e-12, 1.0]), 0.5) == (0, 2)
    assert densest_window(np.array([0.0, gap, 1.0 - gap + 4e-12, 1.0]), 0.5) == (2, 4)
    assert densest_window(np.array([0.0, gap, 1.0 - gap, 1.0]) * 1e-3, 0.5) == (0, 2)
    assert densest_window(np.array([0.0, gap, 1.0 - gap + 4e-12, 1.0]) * 1024, 0.5) == (2, 4)


def naive_deviations(ordered, size):
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    squares = np.concatenate([[0.0], np.cumsum(ordered**2)])
    means = (sums[size:] - sums[:-size]) / size
    return np.sqrt(np.maximum((squares[size:] - squares[:-size]) / size - means**2, 0.0))


def test_a_million_scores_with_offset_and_outlier_where_a_running_sum_of_squares_fails():
    rng = np.random.default_rng(11)
    unit = 2**20
    integers = 10**9 * unit + np.rint(rng.gamma(4.0, 0.25, 1_000_000) * unit).astype(np.int64)
    integers[:3] = 10**9 * unit + 10**6 * unit
    integers.sort()
    ordered = integers / unit  # exact: below 2**53
    start, stop = densest_window(ordered, 0.4)
    size = stop - start
    assert size == 400_000

    shifted = [value - 10**9 * unit for value in integers.tolist()]
    sums = [0, *accumulate(shifted)]
    squares = [0, *accumulate(value * value for value in shifted)]
    exact = np.array(
        [
            size * (squares[i + size] - squares[i]) - (sums[i + size] - sums[i]) ** 2
            for i in range(len(shifted) - size + 1)
        ],
        dtype=np.float64,
    )
    deviations = np.sqrt(exact) / (size * unit)
    tolerance = 1e-12 * (ordered[-1] - ordered[0])
    tied = np.flatnonzero(deviations <= deviations.min() + 1.001 * tolerance)
    assert tied[0] <= start <= np.flatnonzero(deviations <= deviations.min() + 0.999 * tolerance)[0]

    ours = window_deviations(ordered, size)
    np.testing.assert_allclose(ours, deviations, rtol=1e-8)
    naive = naive_deviations(ordered, size)
    assert np.median(np.abs(naive / deviations - 1.0)) > 1.0  # the negative control


def brute_histogram(ordered, fraction):
    n, low, high = len(ordered), ordered[0], ordered[-1]

    def quartile(share):
        place = share * (n - 1)
        below = int(place)
        above = min(below + 1, n - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    width = 2 * (quartile(0.75) - quartile(0.25)) / n ** (1 / 3)
    bins = ceil((high - low) / width) if width > 0 else ceil(log2(n) + 1)
    bins = min(max(bins, 1), 100_000)
    members = [[] for _ in range(bins)]
    for value in ordered:
        place = int((value - low) / (high - low) * bins) if high > low else bins - 1
        members[min(place, bins - 1)].append(value)
    counts = [len(part) for part in members]
    left = right = counts.index(max(counts))
    while sum(counts[left : right + 1]) < Fraction(str(fraction)) * n:
        before = counts[left - 1] if left else -1
        after = counts[right + 1] if right + 1 < bins else -1
        if before >= after:
            left -= 1
        else:
            right += 1
    return sum(counts[:left]), sum(counts[: right + 1])


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("fraction", [0.05, 0.29, 0.5, 0.93])
def test_histogram_peak_is_that_of_a_counting_loop(seed, fraction):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 400))
    shapes = (rng.normal(0, 1, n), rng.gamma(2, 1, n), rng.standard_t(2, n), rng.uniform(-5, 5, n))
    ordered = np.sort(shapes[seed % 4])
    assert histogram_peak(ordered, fraction) == brute_histogram(ordered.tolist(), fraction)


@pytest.mark.parametrize("fraction", [0.2, 0.65, 0.75, 0.9, 0.99])
def test_histogram_peak_of_lumpy_scores_is_that_of_a_counting_loop(fraction):
    rng = np.random.default_rng(8)
    two_heaps = np.concatenate([rng.normal(0, 0.1, 60), rng.normal(10, 0.1, 140)])
    no_quartiles = np.concatenate([np.zeros(60), rng.uniform(-7.0, 7.0, 40)])
    for scores in (two_heaps, -two_heaps, no_quartiles, no_quartiles[:88]):
        ordered = np.sort(scores)
        assert histogram_peak(ordered, fraction) == brute_histogram(ordered.tolist(), fraction)


@pytest.mark.parametrize(
    ("scores", "fraction", "expected"),
    [
        ([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0], 0.5, (1, 7)),  # no spread in the middle: Sturges
        ([3.0] * 30, 0.5, (0, 30)),
        ([0.0, 0.0, 1.0, 1.0], 0.25, (0, 4)),  # one bin
        ([0.0, 1.0, 2.0, 3.0], 0.25, (0, 2)),  # two equal bins: the first
        ([0.0, 1.0, 2.0, 3.0], 0.51, (0, 4)),  # at its left there is nothing
    ],
)
def test_histogram_peak_of_ties(scores, fraction, expected):
    assert histogram_peak(np.array(scores), fraction) == expected


def test_histogram_grows_to_the_left_when_the_neighbours_are_equal():
    # Three bins with 7, 10 and 7 scores.
    ordered = np.repeat([-2.0, 0.0, 2.0, 4.0, 6.0], [1, 6, 10, 6, 1])
    assert histogram_peak(ordered, 10 / 25) == (7, 17)
    assert histogram_peak(ordered, 0.6) == (0, 17)
    assert histogram_peak(np.repeat([-2.0, 0.0, 2.0, 4.0, 6.0], [1, 5, 10, 6, 2]), 0.6) == (6, 22)


@pytest.mark.parametrize("scale", [1e-320, 1e-160, 1e200, 1.7e308])
def test_histogram_peak_holds_the_share_at_any_magnitude(scale):
    ordered = np.sort(np.random.default_rng(3).uniform(-1.0, 1.0, 200)) * scale
    start, stop = histogram_peak(ordered, 0.3)
    assert 60 <= stop - start <= 90


def test_histogram_of_a_far_outlier_is_bounded_in_bins():
    ordered = np.append(np.linspace(0.0, 1e-6, 999), 1e300)
    assert histogram_peak(ordered, 0.3) == (0, 999)
    wide = np.sort(np.append(np.random.default_rng(0).normal(0, 1, 999), 1e4))
    assert histogram_peak(wide, 0.3) == brute_histogram(wide.tolist(), 0.3)


@given(st.lists(finite, min_size=2, max_size=60), fractions_of_hundred)
def test_histogram_peak_holds_at_least_the_share_of_any_finite_scores(values, fraction):
    ordered = np.sort(np.array(values))
    start, stop = histogram_peak(ordered, fraction)
    assert 0 <= start < stop <= len(ordered)
    assert stop - start >= Fraction(str(fraction)) * len(ordered)


def test_limits_are_the_extreme_scores_of_the_window():
    scores = np.array([0.0, 1.0, *np.linspace(5.0, 5.5, 18), 9.0, 12.0, 13.0, 17.0])
    window = fit_window(scores, 0.75)
    assert (window.lower, window.upper) == (5.0, 5.5)
    assert window.calibration_discard == 18 / 24
    assert window.scale == pytest.approx(float(exact_deviation(scores.tolist())), rel=1e-14)


@given(st.lists(finite, min_size=1, max_size=30))
def test_mean_and_deviation_of_any_finite_scores(values):
    ordered = np.sort(np.array(values))
    mean, deviation = mean_and_deviation(ordered)
    numbers = [Fraction(value) for value in values]
    largest = max(map(abs, numbers))
    smallest = Fraction(2) ** -1073
    assert abs(Fraction(mean) - sum(numbers) / len(numbers)) <= largest / 10**14 + smallest
    exact = exact_deviation(values)
    assert abs(Fraction(deviation) - exact) <= exact / 10**9 + largest / 10**14 + smallest


def test_deviation_keeps_its_digits_at_a_large_offset():
    steps = np.sort(np.random.default_rng(2).integers(0, 50, 101)) * 2.0**-23
    assert mean_and_deviation(1e9 + steps)[1] == pytest.approx(mean_and_deviation(steps)[1], rel=1e-12)


def test_mean_and_deviation_of_nothing_are_zero():
    assert mean_and_deviation(np.array([])) == (0.0, 0.0)
