"""Our statistics beside scipy's, tables, brute force and numbers worked out by hand."""

from itertools import product
from math import gamma, pi, sqrt

import numpy as np
import pytest
from scipy import stats

from drip.errors import InputError
from experiments.statistics import compare, holm, t_quantile, variance, wilcoxon_p


@pytest.mark.parametrize("n", [5, 6, 20])
def test_the_paired_t_interval_and_p_are_scipys(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.8, 0.01, n), rng.normal(0.79, 0.01, n)
    found = compare(a - b)
    expected = stats.ttest_rel(a, b)
    low, high = expected.confidence_interval(0.95)
    assert found.mean - found.half == pytest.approx(low, rel=1e-10)
    assert found.mean + found.half == pytest.approx(high, rel=1e-10)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-10)


def test_quantiles_are_those_of_printed_tables():
    printed = {4: 2.776, 5: 2.571, 9: 2.262, 19: 2.093, 30: 2.042}
    for freedom, value in printed.items():
        assert t_quantile(0.975, freedom) == pytest.approx(value, abs=5e-4)


def test_quantiles_invert_the_integral_of_the_density():
    freedom = 7
    x = np.linspace(0, t_quantile(0.975, freedom), 20_001)
    constant = gamma((freedom + 1) / 2) / (sqrt(freedom * pi) * gamma(freedom / 2))
    mass = np.trapezoid(constant * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x)
    assert 0.5 + mass == pytest.approx(0.975, abs=1e-8)


def test_the_corrected_variance_by_hand():
    # Ten runs, deviation 2, 20 % test and 80 % training: 4 (1/10 + 1/4) = 1.4.
    assert variance(2.0, 10, 0.25) == pytest.approx(1.4)


def test_the_corrected_interval_by_hand():
    differences = np.array([1.0, 2.0, 3.0, 4.0, 5.0])  # mean 3, variance 2.5
    found = compare(differences, test_over_train=0.5)
    assert found.half == pytest.approx(2.776445 * sqrt(2.5 / 5), rel=1e-6)
    assert found.corrected_half == pytest.approx(2.776445 * sqrt(2.5 * (1 / 5 + 0.5)), rel=1e-6)
    assert found.widest == found.corrected_half
    assert found.corrected_p > found.p
    assert found.strictest_p == found.corrected_p


def test_five_runs_for_an_interval_and_six_for_wilcoxon():
    four, five, six = (compare(np.arange(1.0, n + 1), 0.25) for n in (4, 5, 6))
    assert (four.half, four.corrected_half, four.p, four.wilcoxon) == (None, None, None, None)
    assert five.half is not None
    assert five.wilcoxon is None
    assert six.wilcoxon is not None


def test_one_run_has_no_deviation():
    assert np.isnan(compare([0.5]).sd)


def test_equal_differences_have_no_width():
    found = compare(np.zeros(6))
    assert (found.half, found.p, found.wilcoxon) == (0.0, 1.0, 1.0)
    assert compare(np.ones(6)).p == 0.0


@pytest.mark.parametrize("bad", [[], [0.1, np.nan], [np.inf]])
def test_values_that_are_no_measurements_are_refused(bad):
    with pytest.raises(InputError, match="finite value per run"):
        compare(bad)


@pytest.mark.parametrize("n", [6, 9, 20, 40])
def test_wilcoxon_is_scipys_exact_test_without_ties(n):
    values = np.random.default_rng(n).normal(0.3, 1.0, n)
    assert wilcoxon_p(values) == pytest.approx(stats.wilcoxon(values, method="exact").pvalue, rel=1e-10)


def test_wilcoxon_is_exact_with_ties_and_zeros():
    values = np.array([0.0, 1.0, 1.0, -1.0, 2.0, 2.0, 3.0, -2.0, 3.0])
    left = values[values != 0]
    ranks = stats.rankdata(np.abs(left))
    smaller = min(ranks[left > 0].sum(), ranks[left < 0].sum())
    sums = [
        sum(r for r, up in zip(ranks, signs, strict=True) if up)
        for signs in product((0, 1), repeat=len(left))
    ]
    expected = min(1.0, 2 * np.mean(np.array(sums) <= smaller))
    assert wilcoxon_p(values) == pytest.approx(expected, rel=1e-12)


def test_wilcoxon_of_many_runs_is_scipys_normal_approximation():
    values = np.round(np.random.default_rng(3).normal(0.1, 1.0, 90), 1)
    values = values[values != 0]
    expected = stats.wilcoxon(values, method="asymptotic", correction=False).pvalue
    assert wilcoxon_p(values) == pytest.approx(expected, rel=1e-9)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, none below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([None, 0.7]) == [None, 0.7]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = list(rng.random(8) ** 3)
        adjusted = holm(p_values)
        order = np.argsort(p_values)
        rejected = set()
        for rank, index in enumerate(order):
            if p_values[index] >= 0.05 / (8 - rank):
                break
            rejected.add(int(index))
        assert {index for index, p in enumerate(adjusted) if p < 0.05} == rejected
