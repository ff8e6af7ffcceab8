"""When a class never discards, where its limits lie, and the expected share of what it discards."""

from math import ceil, erf, inf, sqrt

import numpy as np
import pytest

from drip.windows import fit_window


@pytest.mark.parametrize("method", ["min_std", "histogram_peak"])
@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_scores_never_discard(n, method):
    window = fit_window(np.arange(float(n)), 0.4, method)
    assert not window.discards
    assert (window.lower, window.upper, window.n) == (inf, -inf, n)
    assert window.never_because == f"too few calibration scores: {n}, the minimum is 2"
    assert (window.calibration_discard, window.expected_discard) == (0.0, 0.0)


@pytest.mark.parametrize("method", ["min_std", "histogram_peak"])
def test_twenty_scores_have_a_window(method):
    window = fit_window(np.linspace(0.0, 1.0, 20) ** 2, 0.4, method)
    assert window.discards
    assert window.n == 20
    assert 0.4 <= window.calibration_discard <= (0.4 if method == "min_std" else 0.6)


def test_three_scores_are_tied_where_four_are_not():
    window = fit_window(np.array([1.0, 2.0, 10.0]), 0.5)
    assert not window.discards  # two of three are more than 55 %
    window = fit_window(np.array([1.0, 2.0, 10.0, 20.0]), 0.5)
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
    window = fit_window(np.arange(float(n)) ** 3, 0.99)
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
