"""Published rules that remember the stream, against plain implementations without a trick."""

from dataclasses import replace
from math import erf, sqrt

import numpy as np
import pytest

from drip.errors import InputError, PolicyError
from drip.policy import Policy, RuleSpec
from drip.rules import create
from drip.rules.parts import RateController, RunningQuantile, Target
from drip.rules.parts.gaussians import project
from drip.rules.streaming import factor
from drip.testing import fake_observations


def wide(n, seed=0, n_classes=4, n_features=100):
    """Observations with more features than are left after the projection."""
    given = fake_observations(n, n_classes, seed)
    features = np.random.default_rng(seed).gamma(1.0, 1.0, (n, n_features)) * (1 + given.classes[:, None])
    return replace(given, features=features)


def softmax(logits):
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def doubts(logits):
    ranked = np.sort(softmax(logits), axis=1)
    return 1 - (ranked[:, -1] - ranked[:, -2])


@pytest.mark.parametrize("retention", [0.1, 0.6])
def test_information_gain_is_the_log_determinant_that_a_sample_adds(retention):
    given, stream = wide(600), wide(400, seed=1)
    rule = create("information-gain", retention=retention).calibrate(given)
    decisions = rule.decide_many(stream)

    z, h = project(given.features), doubts(given.logits)
    mean = z.mean(axis=0)
    scale = sqrt(np.mean([(row - mean) @ (row - mean) for row in z]))
    information = np.eye(64)
    for row in np.argsort(-h)[: round(600 * retention)]:
        information += h[row] * np.outer(z[row] - mean, z[row] - mean) / scale**2

    def gain(row, doubt):
        more = information + doubt * np.outer(row, row)
        return np.linalg.slogdet(more)[1] - np.linalg.slogdet(information)[1]

    values = np.sort([gain(row, doubt) for row, doubt in zip((z - mean) / scale, h, strict=True)])
    spread = values[np.linspace(0, 599, 500).round().astype(int)]
    recent = spread[np.random.Generator(np.random.PCG64(0)).permutation(500)].tolist()
    rate = RateController(Target(retention))
    for row, (one, doubt) in enumerate(zip(project(stream.features), doubts(stream.logits), strict=True)):
        value = gain((one - mean) / scale, doubt)
        count = int(rate.share() * 500 + 0.5)
        assert decisions.priority[row] == pytest.approx(np.mean(np.array(recent) < value), abs=0.003)
        kept = count > 0 and value >= sorted(recent)[-count]
        assert decisions.retain[row] == kept
        recent = [*recent[1:], value]
        if kept:
            rate.kept()
            information += doubt * np.outer((one - mean) / scale, (one - mean) / scale)
    assert set(decisions.reasons) == {"information-gain", "below-limit"}


def test_information_gain_takes_less_of_what_it_has():
    given = wide(600)
    rule = create("information-gain", retention=0.3).calibrate(given)
    z = project(given.features)
    # Two rare directions of equal doubt: one comes again and again, the other once at the end.
    rng = np.random.default_rng(0)
    again, new = rng.gamma(1.0, 1.0, (2, 100)) ** 4
    features = np.concatenate([given.features[:100], np.tile(again, (200, 1)), new[None]])
    logits = np.concatenate([given.logits[:100], np.tile([1.0, 0.0, 0.0, 0.0], (201, 1))])
    stream = replace(given[np.arange(301) % 600], features=features, logits=logits)
    priority = rule.decide_many(stream).priority
    assert z.shape[1] == 64
    assert priority[100] > 0.9
    assert priority[299] < priority[100] - 0.2
    assert priority[300] > 0.9


@pytest.mark.parametrize("name", ["information-gain", "vessal"])
def test_the_matrix_stays_symmetric_and_the_inverse_of_what_was_kept(name):
    given, stream = wide(300), wide(3000, seed=1)
    rule = create(name, retention=0.5).calibrate(given)
    before = np.linalg.inv(rule._inverse)
    decisions = rule.decide_many(stream)
    matrix = rule._inverse
    assert np.array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > 0
    if name == "information-gain":
        rows = (project(stream.features) - rule._mean) / rule._scale * np.sqrt(doubts(stream.logits))[:, None]
    else:
        rows = sketches(stream)
    kept = rows[decisions.retain]
    assert np.linalg.inv(matrix) == pytest.approx(before + kept.T @ kept, rel=1e-8, abs=1e-8)


def sketches(observations):
    """Sums over classes of the error times features whose signs are flipped at random."""
    n_classes = observations.logits.shape[1]
    z, p = project(observations.features), softmax(observations.logits)
    flips = np.random.Generator(np.random.PCG64(0)).random((n_classes, z.shape[1]))
    rows = np.zeros(z.shape)
    for row in range(len(z)):
        for label in range(n_classes):
            error = p[row, label] - (label == observations.classes[row])
            rows[row] += error * np.where(flips[label] < 0.5, z[row], -z[row])
    return rows


@pytest.mark.parametrize("retention", [0.1, 0.6])
def test_vessal_keeps_in_proportion_to_the_volume(retention):
    given, stream = wide(700), wide(300, seed=1)
    decisions = create("vessal", retention=retention, seed=3).calibrate(given).decide_many(stream)
    outer = 0.01 * np.eye(64)
    volumes = np.sort([row @ np.linalg.solve(outer, row) for row in sketches(given)])
    spread = volumes[np.linspace(0, 699, 500).round().astype(int)]
    recent = spread[np.random.Generator(np.random.PCG64(0)).permutation(500)].tolist()
    rate = RateController(Target(retention))
    draws = np.random.Generator(np.random.PCG64(3)).random(300)
    for row, gradient in enumerate(sketches(stream)):
        volume = gradient @ np.linalg.solve(outer, gradient)
        recent = [*recent[1:], volume]
        share = rate.share()
        low, high = 0.0, 1e9
        for _ in range(200):  # bisection on the factor
            middle = (low + high) / 2
            low, high = (
                (middle, high) if np.minimum(1, middle * np.array(recent)).mean() < share else (low, middle)
            )
        assert decisions.keep_probability[row] == pytest.approx(min(1, low * volume), rel=1e-5, abs=1e-9)
        assert decisions.retain[row] == (draws[row] < decisions.keep_probability[row])
        if decisions.retain[row]:
            rate.kept()
            outer += np.outer(gradient, gradient)


def test_the_sketch_of_vessal_keeps_inner_products_of_gradients():
    given = wide(400, n_classes=10)
    z, errors = project(given.features), softmax(given.logits)
    errors[np.arange(400), given.classes] -= 1
    whole = (errors @ errors.T) * (z @ z.T)
    sketched = sketches(given) @ sketches(given).T
    assert np.corrcoef(whole.ravel(), sketched.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("share", [0.0, 0.004, 0.3, 0.61, 0.999, 1.0])
def test_the_factor_spreads_a_share_over_any_volumes(share):
    rng = np.random.default_rng(0)
    for volumes in (
        rng.random(500),
        rng.lognormal(0, 9, 500),
        np.full(500, 1e-100),
        np.repeat([1e-100, 3.0], [400, 100]),
        np.ones(1),
    ):
        got = np.minimum(1.0, factor(np.sort(volumes), share) * volumes).mean()
        assert got == pytest.approx(share, rel=1e-9, abs=1e-12)


def test_vessal_draws_evenly_where_all_gradients_are_zero():
    certain = np.where(np.arange(3) == 0, 1e6, 0.0) * np.ones((2000, 1))
    given = replace(fake_observations(2000, 3), logits=certain, classes=np.zeros(2000, np.int64))
    decisions = create("vessal", retention=0.3).calibrate(given).decide_many(given)
    assert decisions.retain.mean() == pytest.approx(0.3, abs=0.02)
    assert decisions.keep_probability == pytest.approx(np.full(2000, 0.3), abs=0.35)


@pytest.mark.parametrize("name", ["information-gain", "vessal"])
def test_the_rate_is_held_when_the_stream_drifts(name):
    rule = create(name, retention=0.3).calibrate(fake_observations(1000, 3))
    rows = fake_observations(6000, 3, seed=2)
    doubt = np.array([1.0, 0.2, 3.0]).repeat(2000)[:, None]
    kept = rule.decide_many(replace(rows, logits=rows.logits * doubt)).retain
    trailing = [kept[start : start + 1000].mean() for start in range(1000, 5001)]
    assert max(abs(share - 0.3) for share in trailing) <= 0.02


@pytest.mark.parametrize(("retention", "on_kept"), [(0.1, True), (0.5, True), (0.7, False)])
def test_variable_uncertainty_is_a_moving_threshold_with_noise_and_a_budget(retention, on_kept):
    stream = fake_observations(2000, 3)
    decisions = create("variable-uncertainty", retention=retention, seed=5).decide_many(stream)
    draws = np.random.Generator(np.random.PCG64(5)).random(2000)
    theta, spent = 1.0, 0.0
    for row, certainty in enumerate(softmax(stream.logits).max(axis=1)):
        if spent / 100 < (retention if on_kept else 1 - retention):
            # The noise that lies above certainty / theta, of a normal distribution around 1.
            expected = (1 - erf((certainty / theta - 1) / sqrt(2))) / 2
            theta *= 0.99 if decisions.retain[row] else 1.01
        else:
            expected = 0.0 if on_kept else 1.0
        assert decisions.keep_probability[row] == pytest.approx(expected, abs=1e-12)
        assert decisions.retain[row] == (draws[row] < decisions.keep_probability[row])
        spent = spent * 0.99 + (decisions.retain[row] == on_kept)
    assert set(decisions.reasons) == {"variable-uncertainty", "not-drawn"}


def test_the_noise_of_variable_uncertainty_has_the_published_distribution():
    given = fake_observations(1, 3)
    certainty = softmax(given.logits).max()
    noise = np.random.default_rng(0).normal(1, 1, 200_000)
    got = create("variable-uncertainty", retention=0.4).decide(given[0]).keep_probability
    assert got == pytest.approx((certainty < 1.0 * noise).mean(), abs=0.005)


@pytest.mark.parametrize("name", ["information-gain", "vessal"])
def test_a_rule_that_holds_a_rate_cannot_keep_everything(name):
    with pytest.raises(InputError, match=r"^retention must be in \(0, 1\), got 1"):
        create(name, retention=1)


def test_variable_uncertainty_without_a_budget_of_discards_keeps_everything():
    stream = fake_observations(200, 3)
    assert create("variable-uncertainty", retention=1).decide_many(stream).retain.all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("information-gain", {"scale": 0.0}, "scale must be above 0"),
        ("information-gain", {"mean": [0.0]}, "cannot be restored"),
        ("information-gain", {"recent": ""}, "cannot be restored"),
        ("vessal", {"n_classes": 0}, "at least one class"),
        ("vessal", {"n_features": 3}, "cannot be restored"),
        ("vessal", {"recent": RunningQuantile(500, [0.0] * 500).state()}, "recent volumes must be above 0"),
        ("vessal", {"recent": RunningQuantile(500, [1.0] * 499).state()}, "cannot be restored"),
        ("variable-uncertainty", {"theta": 0.0}, "theta must be above 0"),
        ("variable-uncertainty", {"spent": -1.0}, "spent at least 0"),
    ],
)
def test_a_damaged_memory_is_refused(name, change, message):
    rule = create(name).calibrate(fake_observations(100, 3))
    with pytest.raises(PolicyError, match=message):
        Policy(RuleSpec(name, rule.params, {**rule.state(), **change}), 3).to_rule()


@pytest.mark.parametrize("name", ["information-gain", "vessal"])
def test_a_matrix_that_is_not_symmetric_is_refused(name):
    rule = create(name).calibrate(fake_observations(100, 3))
    rule._inverse[0, 1] += 1.0
    with pytest.raises(PolicyError, match="symmetric"):
        Policy(RuleSpec(name, rule.params, rule.state()), 3).to_rule()
