"""Windows against exact brute force, scores of any magnitude, and the reasons never to discard."""

from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import accumulate
from math import ceil, erf, fsum, inf, log2, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drip.errors import InputError
from drip.thresholds import (
    check_count,
    check_fraction,
    check_method,
    check_scores,
    densest_window,
    fit_window,
    fit_windows,
    histogram_peak,
    mean_and_deviation,
    sort_by_class,
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


@settings(deadline=None)
@given(st.lists(finite, min_size=2, max_size=60), fractions_of_hundred)
def test_histogram_peak_holds_at_least_the_share_of_any_finite_scores(values, fraction):
    ordered = np.sort(np.array(values))
    start, stop = histogram_peak(ordered, fraction)
    assert 0 <= start < stop <= len(ordered)
    assert stop - start >= Fraction(str(fraction)) * len(ordered)


@pytest.mark.parametrize("method", ["min_std", "histogram_peak"])
@pytest.mark.parametrize("n", [0, 1, 2, 19])
def test_few_scores_never_discard(n, method):
    window = fit_window(np.arange(float(n)), 0.4, method)
    assert not window.discards
    assert (window.lower, window.upper, window.n) == (inf, -inf, n)
    assert window.never_because == f"too few: {n} calibration scores, at least 20 are needed"
    assert (window.calibration_discard, window.expected_discard) == (0.0, 0.0)


@pytest.mark.parametrize("method", ["min_std", "histogram_peak"])
def test_twenty_scores_are_enough(method):
    window = fit_window(np.linspace(0.0, 1.0, 20) ** 2, 0.4, method)
    assert window.discards
    assert window.n == 20
    assert 0.4 <= window.calibration_discard <= (0.4 if method == "min_std" else 0.6)


def test_a_minimum_of_nothing_still_needs_two_scores():
    assert fit_window(np.array([1.0]), 0.5, min_class_count=0).never_because.startswith("too few: 1 ")
    assert "at least 2 are" in fit_window(np.array([1.0]), 0.5, min_class_count=0).never_because
    window = fit_window(np.array([1.0, 2.0, 10.0]), 0.5, min_class_count=0)
    assert not window.discards  # two of three are more than 55 %
    window = fit_window(np.array([1.0, 2.0, 10.0, 20.0]), 0.5, min_class_count=4)
    assert (window.lower, window.upper) == (1.0, 2.0)
    assert window.expected_discard <= 1.0


@pytest.mark.parametrize("fraction", [0.25, 0.35, 0.4, 0.55])
def test_ties_are_too_heavy_above_the_fraction_plus_five_hundredths(fraction):
    allowed = round(100 * fraction) + 5
    rest = np.arange(1.0, 101.0)
    at_limit = np.sort(np.concatenate([np.zeros(allowed), rest[: 100 - allowed]]))
    window = fit_window(at_limit, fraction)
    assert (window.lower, window.upper) == (0.0, 0.0)
    assert window.calibration_discard == allowed / 100
    above = np.sort(np.concatenate([np.zeros(allowed + 1), rest[: 99 - allowed]]))
    window = fit_window(above, fraction)
    assert window.never_because == (
        f"ties: the window would hold {allowed + 1}.0 % of the scores, {100 * fraction:.1f} % were asked for"
    )
    assert (window.lower, window.upper, window.n) == (inf, -inf, 100)
    assert (window.calibration_discard, window.expected_discard) == (0.0, 0.0)


@pytest.mark.parametrize("method", ["min_std", "histogram_peak"])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e9 + 0.1, 5e-324, 1.7e308])
def test_constant_scores_never_discard(value, method):
    window = fit_window(np.full(31, value), 0.4, method)
    assert window.never_because.startswith("ties: the window would hold 100.0 %")
    assert window.scale == 0.0


def test_limits_are_the_extreme_scores_of_the_window():
    scores = np.array([0.0, 1.0, *np.linspace(5.0, 5.5, 18), 9.0, 12.0, 13.0, 17.0])
    window = fit_window(scores, 0.75)
    assert (window.lower, window.upper) == (5.0, 5.5)
    assert window.calibration_discard == 18 / 24
    assert window.scale == pytest.approx(float(exact_deviation(scores.tolist())), rel=1e-14)


def test_scores_tied_with_a_limit_count_as_inside():
    middle = np.linspace(0.4, 0.6, 36)
    scores = np.concatenate([np.zeros(3), middle, np.ones(3), np.linspace(50.0, 99.0, 58)])
    window = fit_window(scores, 0.4)
    assert (window.lower, window.upper) == (0.0, 1.0)
    assert window.calibration_discard == 0.42


def normal_share(lower, upper):
    return (erf(upper / sqrt(2)) - erf(lower / sqrt(2))) / 2


@pytest.mark.parametrize("method", ["min_std", "histogram_peak"])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_expected_discard_is_near_the_truth_on_fresh_scores(method, fraction):
    windows = [
        fit_window(np.sort(np.random.default_rng(seed).normal(0, 1, 400)), fraction, method)
        for seed in range(120)
    ]
    truth = np.mean([normal_share(window.lower, window.upper) for window in windows])
    expected = np.mean([window.expected_discard for window in windows])
    optimistic = np.mean([window.calibration_discard for window in windows])
    assert expected == pytest.approx(truth, abs=0.02 if method == "min_std" else 0.04)
    if method == "min_std":
        assert abs(expected - truth) < abs(optimistic - truth)


def test_expected_discard_of_few_scores_corrects_most_of_the_optimism():
    windows = [fit_window(np.sort(np.random.default_rng(seed).normal(0, 1, 50)), 0.4) for seed in range(200)]
    truth = np.mean([normal_share(window.lower, window.upper) for window in windows])
    assert all(window.calibration_discard == 0.4 for window in windows)
    assert truth < 0.33
    assert np.mean([window.expected_discard for window in windows]) == pytest.approx(truth, abs=0.03)


def test_a_histogram_window_is_not_taken_for_ties_because_its_bins_are_wide():
    window = fit_window(np.linspace(0.0, 1.0, 40), 0.1, "histogram_peak")
    assert window.discards
    assert window.calibration_discard == 0.25


@pytest.mark.parametrize("n", [100, 10_000, 10_001])
def test_expected_discard_is_a_share_of_the_scores_left_out(n):
    window = fit_window(np.sort(np.random.default_rng(n).gamma(2, 1, n)), 0.4)
    left_out = n if n <= 10_000 else ceil(n / 5)  # one part of a large class is enough
    assert window.expected_discard * left_out == pytest.approx(round(window.expected_discard * left_out))
    assert n > 10_000 or not (window.expected_discard * n / 5).is_integer()
    assert window.expected_discard == pytest.approx(window.calibration_discard, abs=0.2 if n == 100 else 0.02)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_expected_discard_of_a_handful_is_a_share(n):
    window = fit_window(np.arange(float(n)) ** 3, 0.99, min_class_count=0)
    assert window.discards
    assert 0.0 <= window.expected_discard <= 1.0
    assert window.calibration_discard == 1.0
    # Without the lowest or the highest score the window does not reach it; two are too few to leave one out.
    assert window.expected_discard == {2: 1.0, 3: 1 / 3}.get(n, window.expected_discard)


def test_expected_discard_is_the_same_every_time():
    scores = np.sort(np.random.default_rng(1).gamma(2, 1, 333))
    first = fit_window(scores, 0.4)
    assert fit_window(scores.copy(), 0.4) == first
    assert first.expected_discard != first.calibration_discard
    assert first.expected_discard * 333 == pytest.approx(round(first.expected_discard * 333))


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


@given(st.lists(st.tuples(finite, st.integers(0, 3))))
def test_sorting_by_class_loses_nothing(pairs):
    scores = np.array([score for score, _ in pairs])
    classes = np.array([label for _, label in pairs], dtype=np.int64)
    parts = sort_by_class(scores, classes, 4)
    assert [part.tolist() for part in parts] == [
        sorted(score for score, label in pairs if label == wanted) for wanted in range(4)
    ]


@pytest.mark.parametrize("n_classes", [256, 257, 65_536, 65_537])
def test_sorting_by_class_works_for_many_classes(n_classes):
    classes = np.array([n_classes - 1, 0, 255, n_classes - 1, 1])
    parts = sort_by_class(np.array([3.0, 1.0, 5.0, 2.0, 7.0]), classes, n_classes)
    assert len(parts) == n_classes
    assert parts[0].tolist() == [1.0]
    assert parts[1].tolist() == [7.0]
    assert sorted(parts[n_classes - 1].tolist())[:2] == [2.0, 3.0]
    assert sum(map(len, parts)) == 5


def test_sorting_leaves_the_input_as_it_was():
    scores = np.array([3.0, 1.0, 2.0])
    sort_by_class(scores, np.zeros(3, dtype=np.int64), 2)
    assert scores.tolist() == [3.0, 1.0, 2.0]


def test_windows_of_all_classes_come_in_their_order():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 1, 100), rng.normal(50, 1, 100)])
    parts = sort_by_class(scores, np.repeat([2, 0], 100), 3)
    high, empty, low = fit_windows(parts, fraction=0.3)
    assert fit_windows(parts, fraction=0.3, method="histogram_peak") == tuple(
        fit_window(part, 0.3, "histogram_peak") for part in parts
    )
    assert fit_windows(parts, fraction=0.3, method="histogram_peak")[0] != high
    assert high.lower > 40
    assert low.upper < 10
    assert empty.never_because == "too few: 0 calibration scores, at least 20 are needed"
    assert fit_windows(parts, fraction=0.3, method="histogram_peak")[0].calibration_discard >= 0.3
    assert not fit_windows(parts, fraction=0.3, min_class_count=101)[0].discards


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan"), inf, True, "0.4", None])
def test_a_fraction_outside_the_open_unit_interval_is_refused(value):
    with pytest.raises(InputError, match=r"^share must be in \(0, 1\), got"):
        check_fraction("share", value)


@pytest.mark.parametrize("value", [5e-324, 0.4, 1 - 2**-53])
def test_a_fraction_inside_the_open_unit_interval_is_taken(value):
    check_fraction("share", value)


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", None])
def test_a_count_that_is_not_a_natural_number_is_refused(value):
    with pytest.raises(InputError, match=r"^n must be an integer of at least 0, got"):
        check_count("n", value)
    check_count("n", 0)
    check_count("n", 7)


@pytest.mark.parametrize("value", ["median", None, ["min_std"]])
def test_an_unknown_method_is_refused(value):
    with pytest.raises(InputError, match=r"^method must be one of min_std, histogram_peak, got"):
        check_method(value)


@pytest.mark.parametrize(
    "arguments",
    [{"fraction": 1.5}, {"fraction": 0.4, "method": "x"}, {"fraction": 0.4, "min_class_count": -1}],
)
def test_windows_refuse_arguments_outside_their_range(arguments):
    with pytest.raises(InputError, match=r"^(discard_fraction|method|min_class_count) must be "):
        fit_windows([np.arange(30.0)], **arguments)


@pytest.mark.parametrize(
    ("scores", "classes", "n_classes", "message"),
    [
        ([1.0], [0], 1, r"^n_classes must be at least 2, got 1; a one-class model has nothing to contrast$"),
        ([1.0, 2.0], [0], 2, r"^scores and classes must be .* got shapes \(2,\) and \(1,\)$"),
        ([[1.0]], [[0]], 2, r"got shapes \(1, 1\) and \(1, 1\)$"),
        ([1.0], [0.0], 2, r"^classes must be integers, got dtype float64; pass predicted class indices$"),
        ([1.0, float("nan")], [0, 0], 2, r"^scores must be finite, got .*nan.* in row 1; quarantine"),
        ([1.0, 2.0, -inf], [0, 0, 0], 2, r"in row 2; quarantine that sample$"),
        ([1.0], [2], 2, r"^classes must be in \[0, 2\), got 2 to 2$"),
        ([1.0, 1.0], [-1, 1], 2, r"got -1 to 1$"),
    ],
)
def test_scores_and_classes_that_do_not_fit_are_refused(scores, classes, n_classes, message):
    with pytest.raises(InputError, match=message):
        check_scores(np.array(scores), np.array(classes), n_classes)


def test_checked_scores_are_float64_and_classes_int64():
    values, labels = check_scores(np.float32([0.5, 1.5]), np.uint8([1, 0]), 2)
    assert (values.dtype, labels.dtype) == (np.float64, np.int64)
    assert values.tolist() == [0.5, 1.5]
    assert labels.tolist() == [1, 0]
    assert [len(column) for column in check_scores([], [], 2)] == [0, 0]
