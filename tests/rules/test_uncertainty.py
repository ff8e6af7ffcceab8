"""Margin and entropy (and least confidence, for researchers) against fifty-digit arithmetic."""

from dataclasses import replace
from decimal import Decimal, localcontext

import numpy as np
import pytest

from drip.rules import create
from drip.rules.base import count_to_keep, softmax_ratios
from drip.testing import fake_observations
from drip.types import Observations

GAPS = [0.0, 1e-9, 0.5, 3.0, 17.0, 37.5, 40.0, 80.0, 300.0, 700.0]


def probabilities(logits):
    exponentials = [Decimal(float(logit)).exp() for logit in logits]
    return sorted((value / sum(exponentials) for value in exponentials), reverse=True)


def exact(name, logits):
    with localcontext() as context:
        context.prec = 400
        ranked = probabilities(logits)
        if name == "margin":
            return float(1 - (ranked[0] - ranked[1]))
        if name == "least-confidence":
            return float(1 - ranked[0])
        context.prec = 60
        small = sum(value * value.ln() for value in ranked[1:])
        # ln(1 - u) of the largest: u needs the digits that a probability near one does not show.
        return float(-(ranked[0] * (1 - sum(ranked[1:])).ln()) - small)


def observations(logits):
    rows = np.array(logits, dtype=np.float64)
    return Observations(classes=np.argmax(rows, axis=1), logits=rows, named_scores={})


@pytest.mark.parametrize("name", ["margin", "entropy"])
@pytest.mark.parametrize("gap", GAPS)
def test_utility_has_all_digits_at_any_gap(name, gap):
    rows = [[gap, 0.0], [0.0, gap, -1.0], [-gap, 0.0, -gap - 0.25, -2 * gap], [gap, 0.0, 0.0, 0.0, -5.0]]
    for row in rows:
        got = float(create(name).score(observations([row]))[0])
        if gap < 300.0:
            assert got == pytest.approx(exact(name, row), rel=4e-15)
        assert got > 0.0


@pytest.mark.parametrize("name", ["margin", "least-confidence", "entropy"])
def test_utility_of_random_logits(name):
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 6, (30, 7)) + rng.choice([0.0, 1000.0, -1000.0], (30, 1))
    for got, row in zip(create(name).score(observations(rows)), rows, strict=True):
        assert got == pytest.approx(exact(name, row - row.max()), rel=1e-13)


@pytest.mark.parametrize(("name", "expected"), [("margin", 1.0), ("entropy", np.log(4.0))])
def test_equal_logits_are_the_most_uncertain(name, expected):
    rule = create(name)
    assert rule.score(observations([[2.0] * 4]))[0] == pytest.approx(expected, rel=1e-15)
    assert rule.score(observations([[1e9] * 4]))[0] == pytest.approx(expected, rel=1e-15)
    assert rule.score(observations([[2.0, 2.0, 2.0, 2.1]]))[0] < expected


@pytest.mark.parametrize("name", ["margin", "entropy"])
def test_utility_falls_as_the_gap_grows(name):
    rows = [[gap, 0.0, -1.0] for gap in np.linspace(0.0, 700.0, 200)]
    score = create(name).score(observations(rows))
    assert (np.diff(score) < 0).all()


def test_a_gap_beyond_float64_is_certain():
    rows = observations([[1.7e308, -1.7e308, 0.0]])
    for name in ("margin", "entropy"):
        assert create(name).score(rows).tolist() == [0.0]
    assert softmax_ratios(rows.logits).tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", ["margin", "entropy"])
@pytest.mark.parametrize("retention", [0.01, 0.25, 0.6, 0.99])
def test_the_most_uncertain_are_kept_and_their_utility_is_the_priority(name, retention):
    calibration = fake_observations(137, 5, seed=1)
    rule = create(name, retention=retention).calibrate(calibration)
    decisions = rule.decide_many(calibration)
    score = rule.score(calibration)
    n_keep = (2 * round(100 * retention) * 137 + 100) // 200
    assert decisions.retain.sum() == n_keep
    assert set(np.flatnonzero(decisions.retain)) == set(np.argsort(-score)[:n_keep])
    assert decisions.priority.tolist() == score.tolist()
    assert decisions.keep_probability.tolist() == decisions.retain.astype(float).tolist()
    assert set(decisions.reasons) == {name, "below-limit"}
    assert decisions.reasons[int(np.argmax(score))] == name
    assert rule.state() == {"limit": sorted(score)[-n_keep]}


def test_ties_at_the_limit_are_all_kept():
    calibration = observations([[0.0, 0.0]] * 6 + [[5.0, 0.0]] * 4)
    assert create("margin", retention=0.3).calibrate(calibration).decide_many(calibration).retain.sum() == 6


def test_counts_to_keep_round_half_up_and_are_never_zero():
    for n in range(1, 120):
        for percent in range(1, 100):
            assert count_to_keep(n, percent / 100) == max(1, (2 * percent * n + 100) // 200)


@pytest.mark.parametrize("name", ["margin", "entropy"])
def test_a_network_with_one_class_is_certain(name):
    assert create(name).score(observations([[3.0], [-3.0]])).tolist() == [0.0, 0.0]


def test_ratios_are_sorted_from_one():
    ratios = softmax_ratios(np.log([[1.0, 4.0, 2.0]]))
    assert ratios[0].tolist() == pytest.approx([1.0, 0.5, 0.25], rel=1e-15)


@pytest.mark.parametrize("name", ["margin", "entropy"])
def test_float32_logits_are_counted_in_float64(name):
    rows = np.random.default_rng(4).normal(0, 6, (20, 5)).astype(np.float32)
    score = create(name).score(replace(observations(rows), logits=rows))
    assert score.dtype == np.float64
    assert score.tolist() == create(name).score(observations(rows)).tolist()
