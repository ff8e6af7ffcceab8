"""The gates of rules that follow a stream, against definitions that are written out."""

import json
from dataclasses import replace

import numpy as np
import pytest

from drip.errors import InputError
from drip.rules import create
from drip.rules.parts import (
    ClassGaussians,
    DuplicateGate,
    OutlierGate,
    PopulationGate,
    held_out_distances,
)
from drip.testing import fake_observations


def test_an_exact_copy_of_a_kept_sample_is_a_near_duplicate_until_it_is_forgotten():
    features = np.random.default_rng(0).normal(size=(50, 4))
    gate = DuplicateGate(memory=3).calibrate(features)
    assert gate.passes(features[0])
    for row in features[:3]:
        gate.kept(row)
    assert [gate.passes(row) for row in features[:4]] == [False, False, False, True]
    gate.kept(features[3])
    assert gate.passes(features[0])
    again = DuplicateGate(memory=3)
    again.restore(gate.state())
    again.kept(features[4])
    assert [again.passes(row) for row in features[:5]] == [True, True, False, False, False]


def test_a_limit_for_duplicates_shrinks_with_all_distances_but_not_for_repeats():
    rng = np.random.default_rng(0)
    gates = {
        name: DuplicateGate(memory=50).calibrate(rng.normal(size=(400, 8))) for name in ("fog", "repeats")
    }
    fog = rng.normal(size=(3000, 8)) * np.where(np.arange(3000) < 1000, 1.0, 0.05)[:, None]
    fresh = rng.normal(size=(3000, 8))
    repeats = np.where((rng.random(3000) < 0.75)[:, None], np.repeat(fresh[::100], 100, axis=0), fresh)
    passed = {}
    for name, rows in (("fog", fog), ("repeats", repeats)):
        passed[name] = []
        for row in rows:
            passed[name].append(gates[name].passes(row))
            if passed[name][-1]:
                gates[name].kept(row)
    assert np.mean(passed["fog"][:1000]) > 0.9
    assert np.mean(passed["fog"][2000:]) > 0.9
    assert np.mean(passed["repeats"][1000:]) < 0.35


@pytest.mark.parametrize("kept", ["!", "AAAA AAA", "AAAA", "é", 3])
def test_damaged_rows_of_what_was_kept_are_refused(kept):
    state = DuplicateGate().calibrate(np.eye(4)).state() | {"kept": kept}
    with pytest.raises((ValueError, TypeError), match=r"base64|reshape|ASCII|as text"):
        DuplicateGate().restore(state)


def test_as_long_as_little_was_kept_only_a_silent_gate_gives_way():
    draw = np.random.default_rng(3)
    calibration = draw.normal(size=(600, 16))
    gate = DuplicateGate(memory=100).calibrate(calibration)
    gate.kept(calibration[0])
    passed = [gate.passes(calibration[0] + 0.1 * draw.normal(size=16)) for _ in range(700)]
    assert not any(passed[:500])
    assert any(passed[501:])
    gate = DuplicateGate(memory=100).calibrate(calibration)
    gate.kept(calibration[0])
    rows = [
        draw.normal(size=16) if i % 5 == 0 else calibration[0] + 0.01 * draw.normal(size=16)
        for i in range(1500)
    ]
    passed = [gate.passes(row) for row in rows]
    assert passed == [i % 5 == 0 for i in range(1500)]


@pytest.mark.parametrize("n_kept", [1, 100])
def test_a_still_picture_stays_silenced_however_long_it_stays(n_kept):
    draw = np.random.default_rng(3)
    calibration = draw.normal(size=(600, 16))
    gate = DuplicateGate(memory=100).calibrate(calibration)
    for row in calibration[:n_kept]:
        gate.kept(row)
    assert not any(gate.passes(calibration[0] + 0.01 * draw.normal(size=16)) for _ in range(3000))


@pytest.mark.parametrize("damage", [{"next": 3}, {"next": -1}, {"next": 1.0}])
@pytest.mark.parametrize("n_kept", [0, 1, 3])
def test_a_place_that_is_none_is_refused(damage, n_kept):
    gate = DuplicateGate(memory=3).calibrate(np.eye(4))
    for row in np.eye(4)[:n_kept]:
        gate.kept(row)
    with pytest.raises((ValueError, TypeError), match="next"):
        DuplicateGate(memory=3).restore(gate.state() | damage)


def test_distances_are_those_of_mahalanobis_within_the_class():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 600)
    features = rng.normal(size=(600, 3)) * [1, 10, 0.1] + np.where(classes == 1, 5, 0)[:, None]
    gaussians = ClassGaussians().calibrate(features, classes, 2)
    means = np.stack([features[classes == label].mean(axis=0) for label in (0, 1)])
    away = features - means[classes]
    covariance = away.T @ away / 600
    ridge = 0.05 * np.trace(covariance) / 3
    for row in range(0, 600, 50):
        x = gaussians.whitened(features[row], classes[row])
        expected = away[row] @ np.linalg.inv(covariance + ridge * np.eye(3)) @ away[row]
        assert x @ x == pytest.approx(expected, rel=0.1, abs=0.1)  # the prior moves the means a little
    again = ClassGaussians()
    again.restore(json.loads(json.dumps(gaussians.state())), 2)
    assert (again.whitened(features[0], 1) == gaussians.whitened(features[0], 1)).all()


def test_above_128_classes_one_mean_serves_all():
    features = np.random.default_rng(0).normal(size=(400, 4))
    gaussians = ClassGaussians().calibrate(features, np.arange(400) % 129, 129)
    assert (gaussians.whitened(features[0], 0) == gaussians.whitened(features[0], 128)).all()
    assert gaussians.whitened(features.mean(axis=0), 5) == pytest.approx(np.zeros(4), abs=1e-6)


def test_calibration_features_that_are_all_alike_are_refused_with_a_way_out():
    given = fake_observations(50, 3)
    with pytest.raises(InputError, match="turn gates off"):
        create("adaptive-margin", gates=["outliers"]).calibrate(replace(given, features=np.ones((50, 8))))


def test_few_calibration_samples_do_not_make_fresh_ones_strange():
    draw = np.random.default_rng(0)
    features, classes = draw.normal(size=(300, 64)), draw.integers(0, 3, 300)
    gaussians = ClassGaussians().calibrate(features, classes, 3)
    gate = OutlierGate(0.97).calibrate(held_out_distances(features, classes, 3))
    fresh = [gaussians.whitened(row, 1) for row in draw.normal(size=(2000, 64))]
    assert np.mean([gate.passes(row @ row, frozen=True) for row in fresh]) == pytest.approx(0.97, abs=0.03)


def test_an_outlier_gate_lets_all_pass_where_all_is_strange_unless_frozen():
    distances = np.random.default_rng(0).chisquare(3, 1000)
    gate, frozen = OutlierGate(0.97).calibrate(distances), OutlierGate(0.97).calibrate(distances)
    assert np.mean([gate.passes(value) for value in distances]) == pytest.approx(0.97)
    passed = [gate.passes(1e3) for _ in range(1000)]
    assert passed == [False] * passed.index(True) + [True] * (1000 - passed.index(True))
    assert 150 < passed.index(True) < 200
    assert not any(frozen.passes(1e3, frozen=True) for _ in range(1000))
    calm = [gate.passes(0.0) for _ in range(1000)]
    assert all(calm)
    assert not gate.passes(1e3)


def with_strangers(n, share, separation, seed=0, d=16):
    """Known rows, standard normal, and a share of others around a mean that is so far from them."""
    rng = np.random.default_rng(seed)
    strange = rng.random(n) < share
    rows = rng.normal(size=(n, d))
    rows[strange, 0] += separation
    return rows, strange


def test_a_second_population_is_found_and_rejected():
    rows, strange = with_strangers(6000, 0.2, separation=6.0)
    gate = PopulationGate(16)
    passed = np.array([gate.passes(row) for row in rows])
    assert strange[1000:][passed[1000:]].mean() < 0.01
    assert (~passed[~strange]).mean() < 0.01
    assert gate.is_apart
    assert gate.share == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.2, 0.2)])
def test_two_hundred_calibration_samples_raise_no_alarm_and_hide_no_population(seed, share, expected):
    draw = np.random.default_rng(seed)
    centres, mixing = 3 * draw.normal(size=(10, 64)), np.eye(64) + 0.1 * draw.normal(size=(64, 64))

    def rows(n):
        classes = draw.integers(0, 10, n)
        return centres[classes] + draw.normal(size=(n, 64)) @ mixing, classes

    features, classes = rows(200)
    gaussians = ClassGaussians().calibrate(features, classes, 10)
    gate = PopulationGate(64, held_out=held_out_distances(features, classes, 10))
    fresh, classes = rows(3000)
    strange = draw.random(3000) < share
    fresh[strange] += 3 * draw.normal(size=64)
    whitened = [gaussians.whitened(row, label) for row, label in zip(fresh, classes.tolist(), strict=True)]
    rejected = ~np.array([gate.passes(row) for row in whitened])
    assert rejected[~strange].mean() < 0.01
    assert rejected.mean() == pytest.approx(expected, abs=0.03)
    # As in version 0.1.0, which took the calibration samples for the truth.
    old = PopulationGate(64)
    for row in whitened:
        old.passes(row)
    assert old.share > gate.share or share


def test_a_second_population_that_comes_late_goes_and_comes_back_is_found_each_time():
    calm = with_strangers(3000, 0.0, 0.0, seed=1)
    visit = with_strangers(3000, 0.2, 8.0, seed=2)
    rows, strange = (np.concatenate(parts) for parts in zip(calm, visit, calm, visit, strict=True))
    gate = PopulationGate(16)
    passed = np.array([gate.passes(row) for row in rows])
    for start in (3000, 9000):
        settled = slice(start + 1000, start + 3000)
        assert strange[settled][passed[settled]].mean() < 0.01
    assert (~passed[~strange]).mean() < 0.01


@pytest.mark.parametrize(
    ("share", "separation", "why"),
    [
        (0.0, 0.0, "nothing strange"),
        (0.2, 2.0, "not apart"),
        (0.6, 8.0, "the larger part"),
        (1.0, 8.0, "all"),
    ],
)
def test_what_is_no_second_population_passes(share, separation, why):
    rows, _ = with_strangers(6000, share, separation)
    gate = PopulationGate(16)
    passed = np.array([gate.passes(row) for row in rows])
    assert passed.mean() > 0.95, why
    assert passed[2000:].mean() > 0.99, why


def test_a_population_gate_goes_on_where_it_was():
    rows, _ = with_strangers(3000, 0.2, 6.0)
    gate, twin = PopulationGate(16), PopulationGate(16)
    for row in rows[:1500]:
        gate.passes(row)
    twin.restore(json.loads(json.dumps(gate.state())))
    assert [gate.passes(row) for row in rows[1500:]] == [twin.passes(row) for row in rows[1500:]]
    assert gate.state() == twin.state()
