"""The window of DRIP: inside, outside, limits, priorities."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from support import raises

from drip.errors import InputError
from drip.policy import Policy
from drip.rules import create
from drip.rules.base import complement, within_float64
from drip.testing import fake_observations


def stream_with_a_rare_class(n=600, seed=1):
    """One class with few samples, so its window is pooled, and one with equal scores, which never discards."""
    observations = fake_observations(n, 4, seed=seed)
    rare = observations[np.flatnonzero((observations.classes != 2) | (np.arange(n) < 20))]
    scores = np.where(rare.classes == 1, 0.5, rare.scores)
    return replace(rare, named_scores={**rare.named_scores, "drip": scores})


@pytest.mark.parametrize("method", ["min_std", "histogram_peak"])
@pytest.mark.parametrize("retention", [0.9, 0.6, 0.2])
def test_drip_decides_as_the_policy_fitted_to_the_same_scores(method, retention):
    calibration, stream = stream_with_a_rare_class(), fake_observations(500, 4, seed=2)
    policy = Policy.fit(
        calibration.scores,
        calibration.classes,
        n_classes=4,
        retention=retention,
        method=method,
    )
    rule = create("drip", retention=retention, method=method).calibrate(calibration)
    assert Policy.of(rule, n_classes=4).rule == policy.rule
    assert rule.windows == policy.windows
    retains = policy.retains(stream.scores, stream.classes)
    assert rule.decide_many(stream).retain.tolist() == retains.tolist()
    assert policy.to_rule().decide_many(stream).retain.tolist() == retains.tolist()
    assert 0 < retains.sum() < 500


def test_priority_is_the_distance_in_standard_deviations():
    calibration, stream = stream_with_a_rare_class(), fake_observations(300, 4, seed=2)
    rule = create("drip").calibrate(calibration)
    decisions = rule.decide_many(stream)
    words = set()
    for observation, decision in zip(stream, decisions, strict=True):
        window, score = rule.windows[observation.predicted_class], observation.scores["drip"]
        words.add(decision.reason)
        if not window.discards:
            assert (decision.retain, decision.priority, decision.reason) == (
                True,
                1.0,
                "class-never-discards",
            )
            continue
        inside = window.lower <= score <= window.upper
        assert decision.retain is not inside
        assert decision.reason == ("inside-window" if inside else "outside-window")
        assert decision.keep_probability == (0.0 if inside else 1.0)
        nearest = min(abs(score - window.lower), abs(score - window.upper))
        assert decision.priority == pytest.approx(0.0 if inside else nearest / window.scale, rel=1e-12)
    assert words == {"inside-window", "outside-window", "class-never-discards"}


def test_the_limits_themselves_are_inside():
    calibration = fake_observations(500, 3, seed=1)
    rule = create("drip").calibrate(calibration)
    window = rule.windows[1]
    edges = [np.nextafter(window.lower, -inf), window.lower, window.upper, np.nextafter(window.upper, inf)]
    stream = replace(
        fake_observations(4, 3),
        classes=np.ones(4, dtype=np.int64),
        named_scores={"drip": np.array(edges)},
    )
    assert rule.decide_many(stream).retain.tolist() == [True, False, False, True]


def test_drip_reads_the_score_that_it_is_told():
    observations = fake_observations(300, 3, seed=1)
    rule = create("drip", score="contrast").calibrate(observations)
    assert rule.needs == {"contrast"}
    assert create("drip").needs == {"drip"}
    swapped = replace(observations, named_scores={"drip": observations.named_scores["contrast"]})
    assert create("drip").calibrate(swapped).windows == rule.windows
    with raises(InputError, "rule-needs"):
        create("drip", score="x").calibrate(observations)


def test_windows_are_empty_before_calibration_and_one_for_all_classes_below_the_minimum():
    rule = create("drip", min_class_count=10**6)
    assert rule.windows == ()
    calibration, stream = fake_observations(100, 3), fake_observations(30, 3)
    rule.calibrate(calibration)
    assert all(window.pooled for window in rule.windows)
    (ends,) = {(window.lower, window.upper) for window in rule.windows}
    scores = stream.scores
    assert rule.decide_many(stream).retain.tolist() == ((scores < ends[0]) | (scores > ends[1])).tolist()


def test_one_calibration_sample_is_too_few_for_any_window():
    rule = create("drip").calibrate(fake_observations(1, 3))
    decisions = rule.decide_many(fake_observations(30, 3))
    assert decisions.retain.all()
    assert decisions.priority.tolist() == [1.0] * 30


def test_a_class_whose_scores_were_constant_keeps_everything():
    observations = replace(fake_observations(100, 3), named_scores={"drip": np.zeros(100)})
    rule = create("drip").calibrate(observations)
    assert all(window.never_because.startswith("t") for window in rule.windows)
    assert rule.decide_many(observations).priority.tolist() == [1.0] * 100


def test_a_deviation_too_small_for_float64_counts_as_one():
    scores = np.repeat([0.0, 5e-324], [40, 60])
    calibration = replace(
        fake_observations(100, 2), classes=np.zeros(100, dtype=np.int64), named_scores={"drip": scores}
    )
    rule = create("drip").calibrate(calibration)
    assert (rule.windows[0].upper, rule.windows[0].scale) == (0.0, 0.0)
    stream = replace(calibration[:2], named_scores={"drip": np.array([3.0, -2.0])})
    assert rule.decide_many(stream).priority.tolist() == [3.0, 2.0]


def test_features_and_logits_are_checked_like_scores():
    observations = fake_observations(10, 3)
    logits = observations.logits.copy()
    logits[6, 1] = np.nan
    with raises(InputError, "sample-non-finite"):
        create("margin").calibrate(replace(observations, logits=logits))
    # A rule that does not read logits does not refuse them.
    assert len(create("random").decide_many(replace(observations, logits=logits))) == 10


@pytest.mark.parametrize("percent", range(1, 100))
def test_the_complement_of_a_decimal_is_the_decimal_that_prints(percent):
    assert str(complement(percent / 100)) == str((100 - percent) / 100)


def test_quotients_are_cut_to_finite_numbers():
    largest = np.finfo(np.float64).max
    assert within_float64(np.array([-inf, -1.0, 0.0, inf])).tolist() == [-largest, -1.0, 0.0, largest]
