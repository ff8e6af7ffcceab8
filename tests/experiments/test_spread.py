"""The candidates that spread what they keep, against plain definitions."""

import numpy as np
import pytest

from drip.rules.parts.gaussians import project
from drip.types import Observations
from experiments.spread import SpreadMarginRule, spread_store


def observations(n, seed, n_features=80):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(n, 4))
    # Most rows are near-duplicates of others. None is equal to another: which of two equal ones leaves is undefined.
    features = draw.normal(size=(n, n_features))[draw.integers(0, max(1, n // 2), n)]
    features += 0.01 * draw.normal(size=features.shape)
    return Observations(logits.argmax(1), logits, {"drip": np.zeros(n)}, features=features)


def by_definition(calibration, stream, count):
    sketches = project(calibration.features, 64)
    away = np.linalg.norm(sketches[:, None] - sketches, axis=2)
    np.fill_diagonal(away, np.inf)
    cap = np.median(away.min(1))
    odds = np.exp(stream.logits)
    top = np.sort(odds / odds.sum(1, keepdims=True), axis=1)
    close = 1 - (top[:, -1] - top[:, -2])
    rows = project(stream.features, 64)
    held = []
    for arrival in range(len(rows)):
        held.append(arrival)
        if len(held) > count:
            away = np.linalg.norm(rows[held][:, None] - rows[held], axis=2)
            np.fill_diagonal(away, np.inf)
            del held[int(np.argmin(close[held] * np.minimum(away.min(1), cap)))]
    return held


@pytest.mark.parametrize("count", [1, 2, 17, 60, 120])
def test_the_store_holds_what_its_definition_says(count):
    calibration, stream = observations(50, 1), observations(120, 2)
    expected = by_definition(calibration, stream, count)
    held = np.flatnonzero(spread_store(calibration, stream, count))
    assert held.tolist() == expected


def test_the_threshold_prefers_what_is_far_from_the_kept_ones():
    calibration, stream = observations(200, 3), observations(600, 4)
    usual = SpreadMarginRule(0.3).calibrate(calibration)
    kept = usual.decide_many(stream).retain
    assert 0.2 < kept.mean() < 0.4
    # The distance is capped at the value of a first arrival: a rule that has kept nothing decides like its parent.
    first = SpreadMarginRule(0.3).calibrate(calibration).decide_many(stream[:1])
    parent = type(usual).__mro__[1](0.3).calibrate(calibration).decide_many(stream[:1])
    assert first.retain.tolist() == parent.retain.tolist()
