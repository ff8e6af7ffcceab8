"""Published rules without memory against their definitions, written out with plain loops."""

from dataclasses import replace
from fractions import Fraction
from math import ceil, exp, floor, log, sqrt

import numpy as np
import pytest
from support import raises

from drip.errors import InputError, PolicyError
from drip.policy import Policy, RuleSpec
from drip.rules import create
from drip.rules.base import drawn
from drip.rules.parts import ClassGaussians, held_out_distances
from drip.rules.parts.gaussians import project
from drip.testing import fake_observations
from drip.types import Observations

N = 400


def observations(logits, features=None):
    rows = np.array(logits, dtype=np.float64)
    return Observations(rows.argmax(axis=1), rows, {}, features=features)


def wide(n, seed=0, n_features=100):
    """Observations with more features than are left after the projection."""
    given = fake_observations(n, 4, seed)
    features = np.random.default_rng(seed).gamma(1.0, 1.0, (n, n_features)) * (1 + given.classes[:, None])
    return replace(given, features=features)


def probabilities(logits):
    return [exp(logit) / sum(map(exp, logits)) for logit in logits]


def doubt(logits):
    second, first = sorted(probabilities(logits))[-2:]
    return 1 - (first - second)


def test_energy_is_the_free_energy_of_the_logits():
    given = fake_observations(N, 5)
    expected = [-log(sum(map(exp, row))) for row in given.logits]
    assert create("energy").score(given) == pytest.approx(expected, rel=1e-13)


def test_energy_counts_a_constant_that_softmax_does_not_see():
    score = create("energy").score(observations([[1000.0, 999.0], [0.0, -1.0], [-1e308, -1e308]]))
    assert score[1] - score[0] == 1000
    assert score[2] == 1e308


def test_the_gradient_norm_is_that_of_the_last_layer_by_finite_differences():
    rng = np.random.default_rng(3)
    weights, bias, features = rng.normal(size=(4, 6)), rng.normal(size=4), rng.normal(size=(10, 6))
    given = observations(features @ weights.T + bias, features)
    for row, got in enumerate(create("gradient-norm").score(given)):
        label, step = given.classes[row], 1e-6

        def loss(parameters, row=row, label=label):
            logits = parameters.reshape(4, 7) @ np.append(features[row], 1.0)
            return log(sum(map(exp, logits))) - logits[label]

        at = np.column_stack([weights, bias]).ravel()
        steps = step * np.eye(28)
        gradient = [(loss(at + change) - loss(at - change)) / (2 * step) for change in steps]
        assert got == pytest.approx(np.linalg.norm(gradient), rel=1e-5)


def test_the_gradient_norm_of_a_certain_or_a_huge_sample_is_a_number():
    logits, features = [[1e308, -1e308], [0.0, 0.0], [0.0, 0.0]], np.array([[1e300], [1e300], [0.0]])
    score = create("gradient-norm").score(observations(logits, features))
    assert score.tolist() == [0.0, np.finfo(np.float64).max * sqrt(0.5), pytest.approx(sqrt(0.5))]


def test_novelty_is_the_squared_mahalanobis_distance_to_the_predicted_class():
    given, stream = wide(N), wide(50, seed=1)
    rule = create("novelty", retention=0.3).calibrate(given)
    features, z = project(given.features), project(stream.features)
    order = np.lexsort((given.classes, *features.T))
    features, classes = features[order], given.classes[order]
    overall = features.mean(axis=0)
    means = [
        (features[classes == label].sum(axis=0) + 5 * overall) / ((classes == label).sum() + 5)
        for label in range(4)
    ]
    away = features - np.array(means)[classes]
    covariance = sum(np.outer(row, row) for row in away) / N
    inverse = np.linalg.inv(covariance + 0.05 * np.trace(covariance) / 64 * np.eye(64))
    expected = [
        (row - means[label]) @ inverse @ (row - means[label])
        for row, label in zip(z, stream.classes, strict=True)
    ]
    assert rule.score(stream) == pytest.approx(expected, rel=1e-3)
    held_out = held_out_distances(features, classes, 4)
    assert rule.state()["limit"] == sorted(held_out)[-120]
    assert isinstance(rule.state()["gaussians"], dict)


def test_novelty_keeps_a_foreign_cloud():
    rule = create("novelty", retention=0.1).calibrate(wide(N))
    foreign = wide(100, seed=2)
    foreign = replace(foreign, features=foreign.features[:, ::-1] ** 4)
    assert rule.decide_many(foreign).retain.mean() > 0.9


def test_moderate_is_the_distance_to_the_median_distance_of_the_class():
    given, stream = wide(N), wide(50, seed=1)
    rule = create("moderate", retention=0.3).calibrate(given)
    score = rule.score(stream)
    features, z = project(given.features), project(stream.features)
    for row, label in enumerate(stream.classes):
        mine = features[given.classes == label]
        distances = [sqrt(((one - mine.mean(axis=0)) ** 2).sum()) for one in mine]
        median = np.median(distances)
        spread = np.median([abs(distance - median) for distance in distances])
        distance = sqrt(((z[row] - mine.mean(axis=0)) ** 2).sum())
        assert score[row] == pytest.approx(-abs(distance - median) / spread, rel=1e-3, abs=1e-4)
    kept = rule.decide_many(given).retain
    assert kept.sum() == 120
    assert rule.score(given)[kept].min() > rule.score(given)[~kept].max()


def test_moderate_measures_a_class_that_calibration_never_saw_against_all():
    given = wide(N)
    with_three = replace(given, classes=np.minimum(given.classes, 2))
    rule = create("moderate").calibrate(with_three)
    stream = wide(20, seed=1)
    got = rule.score(replace(stream, classes=np.full(20, 3)))
    features, z = project(given.features), project(stream.features)
    distances = np.linalg.norm(features - features.mean(axis=0), axis=1)
    spread = np.median(np.abs(distances - np.median(distances)))
    expected = -np.abs(np.linalg.norm(z - features.mean(axis=0), axis=1) - np.median(distances)) / spread
    assert got == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("retention", [0.1, 0.5, 0.61])
def test_soft_margin_keeps_by_a_power_of_the_rank(retention):
    given = fake_observations(2000, 3)
    doubts = sorted(map(doubt, given.logits))
    rule = create("soft-margin", retention=retention).calibrate(given)
    stream = fake_observations(300, 3, seed=1)
    got = rule.decide_many(stream).keep_probability
    for row, one in enumerate(map(doubt, stream.logits)):
        rank = sum(other < one for other in doubts) / 2000
        near = [min(max(rank + step, 0.0), 1.0) ** ((1 - retention) / retention) for step in (-0.002, 0.002)]
        assert near[0] - 1e-9 <= got[row] <= near[1] + 1e-9


@pytest.mark.parametrize("retention", [0.1, 0.5, 0.61, 1.0])
def test_the_mean_probability_of_soft_margin_is_the_retention_whatever_ties(retention):
    distinct = fake_observations(333, 3)
    for rows in ([*range(333)], [0] * 200 + [1, 2] * 30 + [*range(3, 50)], [5] * 9, [7]):
        given = distinct[np.array(rows)]
        decisions = create("soft-margin", retention=retention).calibrate(given).decide_many(given)
        assert decisions.keep_probability.mean() == pytest.approx(retention, rel=1e-12)


@pytest.mark.parametrize("retention", [0.05, 0.3, 0.6, 0.95])
def test_coverage_fills_the_strata_alike_without_the_hardest(retention):
    given = fake_observations(2000, 3)
    doubts = np.array([*map(doubt, given.logits)])
    probability = create("coverage", retention=retention).calibrate(given).decide_many(given).keep_probability
    n_hardest = floor(2000 * min(Fraction("0.1"), 1 - Fraction(str(retention))))
    hardest = np.argsort(doubts)[2000 - n_hardest :]
    assert probability[hardest].tolist() == [0.0] * n_hardest
    rest = np.setdiff1d(np.arange(2000), hardest)
    low, high = doubts[rest].min(), doubts[rest].max()
    strata = [min(max(ceil((value - low) / (high - low) * 20 - 1e-9) - 1, 0), 19) for value in doubts[rest]]
    counts = np.bincount(strata, minlength=20)
    expected = counts * [
        probability[rest][np.array(strata) == one].mean() if counts[one] else 0 for one in range(20)
    ]
    assert expected.sum() == pytest.approx(retention * 2000, rel=1e-9)
    quota = expected.max()
    assert expected == pytest.approx(np.minimum(counts, quota), rel=1e-9)


def test_coverage_discards_what_is_harder_than_nine_tenths_and_keeps_unseen_strata():
    gaps = np.concatenate([np.full(90, 6.0), np.full(9, 1.0), np.full(11, 0.0)])
    rule = create("coverage", retention=0.2).calibrate(observations([[gap, 0.0] for gap in gaps]))
    stream = observations([[gap, 0.0] for gap in (8.0, 6.0, 2.5, 1.0, 0.9, 0.0)])
    # The 11 of gap 0 are the hardest tenth; of 22 to keep, 9 have gap 1 and 13 of 90 gap 6.
    expected = [13 / 90, 13 / 90, 1.0, 1.0, 0.0, 0.0]
    assert rule.decide_many(stream).keep_probability == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("retention", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("n", [1, 2, 7, 400])
def test_the_margin_window_begins_below_the_hardest_quarter_of_what_is_discarded(retention, n):
    given = fake_observations(n, 3)
    hardest_first = np.argsort([-doubt(row) for row in given.logits])
    share = Fraction(str(retention))
    start, count = floor((1 - share) / 4 * n), max(1, floor(share * n + Fraction(1, 2)))
    decisions = create("margin-window", retention=retention).calibrate(given).decide_many(given)
    assert set(np.flatnonzero(decisions.retain)) == set(hardest_first[start : start + count])
    assert (decisions.priority >= 0).tolist() == decisions.retain.tolist()
    assert set(decisions.reasons) <= {"margin-window", "outside-window"}


def test_draws_keep_their_order_when_a_store_evicts():
    rng = np.random.default_rng(0)
    probability, draw = rng.random(50_000), rng.random(50_000)
    decisions = drawn(draw, probability, "coin")
    assert decisions.retain.tolist() == (draw < probability).tolist()
    # What is left above one half was drawn below half the probability.
    left = decisions.priority > 0.5
    assert left.tolist() == (draw < probability / 2).tolist()
    assert set(decisions.reasons) == {"coin", "not-drawn"}
    nothing = drawn(np.array([0.0, 0.5]), np.zeros(2), "coin")
    assert not nothing.retain.any()
    assert np.isfinite(nothing.priority).all()


RULES = ["energy", "gradient-norm", "novelty", "moderate", "soft-margin", "coverage", "margin-window"]
RULES_OF_STREAMS = ["information-gain", "vessal", "variable-uncertainty"]
every_rule = pytest.mark.parametrize("name", RULES + RULES_OF_STREAMS)


@every_rule
def test_constant_logits_give_a_decision_on_everything(name):
    given = fake_observations(600, 3)
    given = replace(given, logits=np.zeros((600, 3)), classes=np.zeros(600, np.int64))
    decisions = create(name, retention=0.5).calibrate(given[:300]).decide_many(given[300:])
    # Rules whose score is the logits' alone cannot tell these apart: ties at a limit are all kept.
    all_alike = name in ("energy", "margin-window")
    assert decisions.retain.mean() == pytest.approx(1.0 if all_alike else 0.5, abs=0.15)


@every_rule
def test_a_network_with_one_class_gives_decisions(name):
    given = fake_observations(200, 3)
    given = replace(given, logits=given.logits[:, :1], classes=np.zeros(200, np.int64))
    retain = create(name, retention=0.5).calibrate(given).decide_many(given).retain
    assert retain.any()


@every_rule
def test_features_that_are_all_equal_give_decisions_or_a_clear_error(name):
    given = replace(fake_observations(200, 3), features=np.ones((200, 24)))
    if name == "novelty":
        with pytest.raises(InputError, match="needs calibration samples with different features"):
            create(name).calibrate(given)
        return
    decisions = create(name, retention=0.5).calibrate(given).decide_many(given)
    assert decisions.retain.mean() == pytest.approx(1.0 if name == "moderate" else 0.5, abs=0.15)


@every_rule
def test_one_calibration_sample_gives_decisions_or_a_clear_error(name):
    given, stream = fake_observations(1, 3), fake_observations(100, 3, seed=1)
    if name == "novelty":
        with pytest.raises(InputError, match="all 1 are equal"):
            create(name).calibrate(given)
        return
    decisions = create(name).calibrate(given).decide_many(stream)
    assert np.isfinite(decisions.priority).all()


@pytest.mark.parametrize("name", ["novelty", "moderate", "information-gain", "vessal"])
def test_features_of_another_model_are_refused(name):
    rule = create(name).calibrate(fake_observations(100, 3))
    before, stream = rule.state(), fake_observations(5, 3)
    with raises(InputError, "policy-other-model"):
        rule.decide_many(replace(stream, features=stream.features[:, :23]))
    assert rule.state() == before


def test_logits_of_another_model_are_refused_by_vessal():
    rule = create("vessal").calibrate(fake_observations(100, 3))
    before, stream = rule.state(), fake_observations(5, 3)
    for logits in (stream.logits[:, :2], np.repeat(stream.logits, 2, axis=1)):
        with raises(InputError, "policy-other-classes"):
            rule.decide_many(replace(stream, logits=logits, classes=np.zeros(5, np.int64)))
    assert rule.state() == before


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("novelty", {"n_classes": 2}, "one mean per class.* got 3 for 2 classes"),
        ("novelty", {"n_classes": 0}, "at least one class, got 0"),
        ("moderate", {"medians": [1.0]}, "medians must have 3 entries"),
        ("moderate", {"scales": [1.0, 0.0, 1.0]}, "every class must have a centre"),
        ("moderate", {"centres": "", "medians": [], "scales": []}, "every class must have"),
        ("soft-margin", {"points": []}, "in ascending order"),
        ("soft-margin", {"points": [1.0, 0.5]}, "in ascending order"),
        ("coverage", {"probabilities": [0.5]}, "probabilities must have 20 entries"),
        ("coverage", {"probabilities": [0.0] * 20}, r"probabilities must be in \(0, 1\]"),
        ("coverage", {"easiest": 2.0}, "easiest must not exceed hardest"),
        ("margin-window", {"upper": -1.0}, "upper end must not be below the lower one, got -1.0"),
    ],
)
def test_a_damaged_state_of_a_published_rule_is_refused(name, change, message):
    rule = create(name).calibrate(fake_observations(100, 3))
    with pytest.raises(PolicyError, match=message):
        Policy(RuleSpec(name, rule.params, {**rule.state(), **change}), 3).to_rule()


def test_above_128_classes_one_gaussian_serves_all_in_novelty():
    given = fake_observations(300, 130)
    rule = create("novelty").calibrate(given)
    again = create("novelty").restore(rule.state())
    assert list(again.decide_many(given)) == list(rule.decide_many(given))
    features = project(given.features)
    order = np.lexsort((given.classes, *features.T))
    fitted = ClassGaussians().calibrate(features[order], given.classes[order], 130)
    away = fitted.whitened(features[0], 77)
    assert rule.score(given)[0] == pytest.approx(away @ away, rel=1e-9)
