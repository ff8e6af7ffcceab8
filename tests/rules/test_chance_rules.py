"""Rules of chance: uniformity, rates, and the quota of balanced classes."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from support import raises

from drip.errors import InputError
from drip.rules import create
from drip.rules.chance import equal_quota
from drip.testing import fake_observations


def test_random_keeps_at_its_rate_with_priority_zero():
    decisions = create("random", retention=0.3).decide_many(fake_observations(4000, 2))
    assert decisions.retain.mean() == pytest.approx(0.3, abs=0.03)
    assert decisions.priority.tolist() == [0.0] * 4000
    assert decisions.keep_probability.tolist() == [0.3] * 4000
    assert set(decisions.reasons) == {"random"}
    assert create("random").params == {"retention": 0.6, "seed": 0}


def test_a_retention_of_one_keeps_everything():
    stream = fake_observations(500, 3)
    for name in ("random", "class-balanced-random"):
        decisions = create(name, retention=1).calibrate(stream).decide_many(stream)
        assert decisions.retain.all()
        assert decisions.keep_probability.tolist() == [1.0] * 500


def test_draws_are_those_of_the_seeded_generator():
    expected = np.random.Generator(np.random.PCG64(7)).random(20)
    retained = create("random", seed=7).decide_many(fake_observations(20, 2)).retain
    assert retained.tolist() == (expected < 0.6).tolist()


def test_a_refused_batch_draws_nothing():
    rule = create("class-balanced-random").calibrate(fake_observations(100, 3))
    before, stream = rule.state(), fake_observations(5, 3)
    with raises(InputError, "policy-other-classes"):
        rule.decide_many(replace(stream, classes=np.full(5, 9)))
    with raises(InputError, "policy-other-classes"):
        create("class-balanced-random").calibrate(replace(stream, classes=np.full(5, -1)))
    assert rule.state() == before


def water_filling(counts, retention):
    """Raise the level of all classes together, from one full class to the next."""
    level, left = Fraction(0), Fraction(str(retention)) * sum(counts)
    open_classes = sorted(count for count in counts if count)
    while open_classes:
        step = min(Fraction(open_classes[0]) - level, left / len(open_classes))
        level += step
        left -= step * len(open_classes)
        if left == 0:
            return level
        open_classes = [count for count in open_classes if count > level]
    return level


@pytest.mark.parametrize("retention", [0.01, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    "counts", [[10, 90], [5, 5, 5], [1, 10, 100, 1000], [0, 3, 0, 7], [0, 0, 9], [1, 1, 98], [50, 50, 0]]
)
def test_the_quota_is_that_of_water_filling(counts, retention):
    got = equal_quota(np.array(counts), retention)
    assert got == pytest.approx(float(water_filling(counts, retention)), rel=1e-12)
    assert sum(min(count, got) for count in counts) == pytest.approx(retention * sum(counts), rel=1e-12)


def test_a_quota_for_everything_is_the_largest_class():
    assert equal_quota(np.array([3, 8, 5]), 1.0) == 8.0


def test_rare_classes_are_kept_whole_and_others_share_the_rest():
    base = fake_observations(1000, 4)
    calibration = replace(base, classes=np.repeat([0, 1, 2], [50, 250, 700]))
    rule = create("class-balanced-random", retention=0.45).calibrate(calibration)
    # 450 to keep: 50 of class 0, then 200 of each of the others.
    assert rule.state()["probabilities"] == pytest.approx([1.0, 200 / 250, 200 / 700, 1.0], rel=1e-12)
    stream = replace(fake_observations(8000, 4), classes=np.arange(8000) % 4)
    decisions = rule.decide_many(stream)
    for label, rate in enumerate([1.0, 0.8, 2 / 7, 1.0]):
        rows = stream.classes == label
        assert decisions.retain[rows].mean() == pytest.approx(rate, abs=0.05)
        assert decisions.keep_probability[rows].tolist() == pytest.approx([rate] * 2000)
    assert set(decisions.reasons) == {"class-balanced-random"}


def test_a_class_that_calibration_never_saw_is_kept_at_any_rate():
    calibration = replace(fake_observations(100, 3), classes=np.repeat([0, 1], 50))
    rule = create("class-balanced-random", retention=0.001).calibrate(calibration)
    assert rule.state()["probabilities"] == pytest.approx([0.001, 0.001, 1.0], rel=1e-12)


def test_eviction_by_priority_takes_from_all_balanced_classes_alike():
    base = fake_observations(6000, 3)
    classes = np.random.default_rng(99).choice(3, 6000, p=[0.1, 0.2, 0.7])  # not the rule's own draws
    observations = replace(base, classes=classes)
    rule = create("class-balanced-random", retention=0.3).calibrate(observations)
    decisions = rule.decide_many(observations)
    assert (decisions.priority[decisions.retain] > 0).all()
    assert (decisions.priority[~decisions.retain] <= 0).all()
    kept = np.flatnonzero(decisions.retain)
    survivors = kept[np.argsort(decisions.priority[kept])][-len(kept) // 3 :]
    shares = np.bincount(classes[survivors], minlength=3) / len(survivors)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.07)


def test_the_draw_of_a_kept_sample_lies_below_its_probability():
    observations = fake_observations(300, 3)
    rule = create("class-balanced-random", seed=3).calibrate(observations)
    draws = np.random.Generator(np.random.PCG64(3)).random(300)
    decisions = rule.decide_many(observations)
    assert decisions.retain.tolist() == (draws < decisions.keep_probability).tolist()
    np.testing.assert_allclose(
        decisions.priority, 1 - draws / decisions.keep_probability, rtol=1e-12, atol=1e-15
    )


def test_keep_all_keeps_all_with_equal_priority():
    decisions = create("keep-all", retention=0.2).decide_many(fake_observations(9, 2))
    assert decisions.retain.tolist() == [True] * 9
    assert decisions.priority.tolist() == [0.0] * 9
    assert decisions.keep_probability.tolist() == [1.0] * 9
    assert set(decisions.reasons) == {"keep-all"}
