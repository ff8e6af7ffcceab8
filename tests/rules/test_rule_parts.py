"""Quantiles, logs, projections and controllers, against definitions that are written out."""

import json
from bisect import bisect_left

import numpy as np
import pytest

from drip.rules.adaptive import AdaptationLog
from drip.rules.parts import RateController, RunningQuantile, Target
from drip.rules.parts.gaussians import project
from drip.store.codec import steady_json


def test_a_running_quantile_is_that_of_the_last_values():
    values = np.random.default_rng(0).integers(0, 20, 300).astype(float).tolist()
    running = RunningQuantile(50)
    for row, value in enumerate(values):
        last = sorted(values[max(0, row - 50) : row])
        if last:
            below = sum(other < value for other in last) + sum(other == value for other in last) / 2
            assert running.rank(value) == pytest.approx(below / len(last))
            for share in (0.01, 0.3, 1.0):
                limit = running.limit(share)
                count = int(share * len(last) + 0.5)
                assert limit == (last[len(last) - count] if count else float("inf"))
        running.add(value)
    assert running.values == values[-50:]
    assert bisect_left(running.values, 100.0) == len(running) == 50


@pytest.mark.parametrize("n_changes", [3, 32, 50])
def test_the_last_changes_are_remembered_in_order_and_after_a_restart(n_changes):
    log = AdaptationLog(("limit", "world"))
    told = [{"arrival": i, "what": ("limit", "world")[i % 3 == 0], "value": i / 7} for i in range(n_changes)]
    for entry in told:
        log.note(**entry)
    twin = AdaptationLog(("limit", "world"))
    twin.restore(json.loads(json.dumps(log.state())))
    assert len(steady_json("log", twin.state())) == len(steady_json("log", AdaptationLog(("a",)).state()))
    for each in (log, twin):
        assert each.entries == told[-32:]
        assert each.last("world") == [entry["value"] for entry in told if entry["what"] == "world"][-1]
    twin.note(99, "limit", 0.5)
    assert twin.entries == [*told[-31:], {"arrival": 99, "what": "limit", "value": 0.5}]


NONE, ONE = [None] * 3, [1, 0, 0.5]


@pytest.mark.parametrize(
    ("slots", "oldest", "message"),
    [
        ([[1, 2, 0.5], *[NONE] * 31], 0, "kinds must be numbers below 2"),
        ([ONE, *[NONE] * 31], 1, "oldest must be one of 1 slots"),
        ([ONE] * 32, 32, "oldest must be one of 32 slots"),
        ([ONE] * 33, 0, "a list of 32"),
        ([NONE, ONE, *[NONE] * 30], 0, "must come last"),
        ([[1, 0], *[NONE] * 31], 0, "not enough values"),
        ([[None, 0, 0.5], *[NONE] * 31], 0, "arrival must be an integer"),
    ],
)
def test_a_damaged_log_is_refused(slots, oldest, message):
    with pytest.raises((TypeError, ValueError), match=message):
        AdaptationLog(("limit", "world")).restore({"slots": slots, "oldest": oldest})


@pytest.mark.parametrize("n_values", [3, 5, 7])
def test_a_restored_quantile_forgets_in_the_same_order(n_values):
    draw = np.random.default_rng(n_values).normal(size=20).tolist()
    quantile = RunningQuantile(5, [0.5])
    for value in draw[:n_values]:
        quantile.add(value)
    twin = RunningQuantile.restored(5, json.loads(json.dumps(quantile.state())))
    assert twin.values == quantile.values == [0.5, *draw[:n_values]][-5:]
    for value in draw[n_values:]:
        quantile.add(value)
        twin.add(value)
        assert twin.values == quantile.values
        assert twin.state() == quantile.state()
        assert twin.limit(0.4) == quantile.limit(0.4)


@pytest.mark.parametrize(
    "damage", [{"oldest": 5}, {"oldest": -1}, {"values": "AAAA"}, {"values": "A" * 64 + "="}]
)
def test_a_damaged_quantile_is_refused(damage):
    with pytest.raises(ValueError, match=r"oldest|multiple|base64|padding|reshape|buffer"):
        RunningQuantile.restored(5, RunningQuantile(5, [1.0] * 5).state() | damage)


def test_the_first_numbers_of_many_are_those_of_few_and_keep_distances():
    features = np.abs(np.random.default_rng(0).normal(size=(40, 500)))
    few, many = project(features), project(features, 256)
    assert (few.shape, many.shape) == ((40, 64), (40, 256))
    assert few == pytest.approx(many[:, :64])
    unit = np.sqrt(features) / np.linalg.norm(np.sqrt(features), axis=1, keepdims=True)
    for row in range(1, 40):
        true = ((unit[0] - unit[row]) ** 2).sum()
        found = ((many[0] - many[row]) ** 2).sum() * 500 / 256
        assert found == pytest.approx(true, rel=0.35)
    assert project(features[:, :30], 256).shape == (40, 30)


def test_a_controller_pays_back_an_error_and_forgets_a_flood():
    control = RateController(Target(0.2))
    for _ in range(1000):
        control.share()
        control.kept()  # everything is kept, whatever it says
    assert control.share() == 0.0
    n_paid = next(n for n in range(1000) if control.share() >= 0.2)
    assert 150 < n_paid <= 201  # what 200 arrivals are worth
