"""Novelty against its definition, and on calibration samples that say little."""

from dataclasses import replace

import numpy as np
import pytest
from support import raises

from drip.errors import InputError, PolicyError
from drip.policy import Policy, RuleSpec
from drip.rules import create
from drip.rules.parts import ClassGaussians, held_out_distances
from drip.rules.parts.gaussians import project
from drip.testing import fake_observations

N = 400


def wide(n, seed=0, n_features=100):
    """Observations with more features than are left after the projection."""
    given = fake_observations(n, 4, seed)
    features = np.random.default_rng(seed).gamma(1.0, 1.0, (n, n_features)) * (1 + given.classes[:, None])
    return replace(given, features=features)


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


def test_a_network_with_one_class_gives_decisions():
    given = fake_observations(200, 3)
    given = replace(given, logits=given.logits[:, :1], classes=np.zeros(200, np.int64))
    assert create("novelty", retention=0.5).calibrate(given).decide_many(given).retain.any()


@pytest.mark.parametrize("n", [1, 200])
def test_calibration_samples_with_equal_features_are_refused(n):
    given = replace(fake_observations(n, 3), features=np.ones((n, 24)))
    with pytest.raises(InputError, match=f"all {n} are equal"):
        create("novelty").calibrate(given)


def test_features_of_another_model_are_refused():
    rule = create("novelty").calibrate(fake_observations(100, 3))
    before, stream = rule.state(), fake_observations(5, 3)
    with raises(InputError, "policy-other-model"):
        rule.decide_many(replace(stream, features=stream.features[:, :23]))
    assert rule.state() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_classes": 2}, "one mean per class.* got 3 for 2 classes"),
        ({"n_classes": 0}, "at least one class, got 0"),
    ],
)
def test_a_damaged_state_is_refused(change, message):
    rule = create("novelty").calibrate(fake_observations(100, 3))
    with pytest.raises(PolicyError, match=message):
        Policy(RuleSpec("novelty", rule.params, {**rule.state(), **change}), 3).to_rule()


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
