"""Lowest scores of every class: limits, ties, depth below the mean."""

from dataclasses import replace
from math import fsum, sqrt

import numpy as np
import pytest

from drip.rules import create
from drip.testing import fake_observations

rules = pytest.mark.parametrize(("name", "score"), [("lowest-drip", "drip"), ("lowest-contrast", "contrast")])


@rules
@pytest.mark.parametrize("retention", [0.1, 0.5, 0.77])
def test_the_lowest_scores_of_every_class_are_kept(name, score, retention):
    calibration = fake_observations(700, 4, seed=1)
    rule = create(name, retention=retention, min_class_count=30).calibrate(calibration)
    assert rule.needs == {score}
    decisions = rule.decide_many(calibration)
    assert set(decisions.reasons) == {name, "above-limit"}
    for label in range(4):
        rows = np.flatnonzero(calibration.classes == label)
        column = calibration.named_scores[score][rows]
        n_keep = (2 * round(100 * retention) * len(rows) + 100) // 200
        limit = sorted(column)[n_keep - 1]
        assert rule.state()["limits"][label] == limit
        assert decisions.retain[rows].tolist() == (column <= limit).tolist()
        mean = fsum(column) / len(rows)
        scale = sqrt(fsum((value - mean) ** 2 for value in column) / len(rows))
        np.testing.assert_allclose(decisions.priority[rows], (mean - column) / scale, rtol=1e-9, atol=1e-12)


@rules
@pytest.mark.parametrize("min_class_count", [0, 19, 20, 50])
def test_a_class_with_few_scores_has_the_threshold_of_all_scores(name, score, min_class_count):
    observations = fake_observations(600, 3, seed=1)
    rows = {label: np.flatnonzero(observations.classes == label) for label in range(3)}
    calibration = observations[np.concatenate([rows[0][:70], rows[1][:19]])]
    rule = create(name, retention=0.1, min_class_count=min_class_count).calibrate(calibration)
    decisions = rule.decide_many(observations)
    column, together = observations.named_scores[score], sorted(calibration.named_scores[score])
    for label, n in enumerate((70, 19, 0)):
        own = sorted(column[rows[label][:n]])
        used = own if n >= max(min_class_count, 1) else together
        limit = used[int(0.1 * len(used) + 0.5) - 1]
        assert rule.state()["limits"][label] == limit
        assert decisions.retain[rows[label]].tolist() == (column[rows[label]] <= limit).tolist()
        mean = fsum(used) / len(used)
        scale = sqrt(fsum((value - mean) ** 2 for value in used) / len(used))
        expected = (mean - column[rows[label]]) / scale
        np.testing.assert_allclose(decisions.priority[rows[label]], expected, rtol=1e-9, atol=1e-12)


@rules
def test_ties_at_the_limit_are_all_kept_and_have_a_unit_of_one(name, score):
    observations = fake_observations(200, 2, seed=1)
    constant = replace(observations, named_scores={score: np.full(200, 0.1)})
    rule = create(name, retention=0.1).calibrate(constant)
    assert rule.state()["scales"] == [1.0, 1.0]
    decisions = rule.decide_many(constant)
    assert decisions.retain.all()
    assert decisions.priority.tolist() == [0.0] * 200
