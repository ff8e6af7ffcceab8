"""The rules that follow a stream, through drift, bursts, copies and strangers."""

from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest
from support import raises

from drip.errors import InputError, PolicyError
from drip.policy import Policy, RuleSpec
from drip.rules import create
from drip.rules.adaptive import GATES
from drip.rules.parts import ClassShares, PopulationGate, RateController, Target
from drip.rules.state import packed
from drip.store.codec import steady_json
from drip.store.settings import changed_spans
from drip.testing import check_rule, fake_observations
from drip.types import Observations


def stream(n, seed=1, times=None):
    given = fake_observations(n, 3, seed=seed)
    return Observations(
        given.classes, given.logits, given.named_scores, given.primary, given.features, times, given.n_bytes
    )


def test_mixed_margin_is_the_mean_of_two_ranks():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 3))
    classes = logits.argmax(1)
    observations = Observations(classes, logits, {"drip": np.zeros(2000)}, "drip")
    score = create("mixed-margin", retention=0.5).calibrate(observations).score(observations)
    top = np.sort(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), axis=1)
    doubt = 1 - (top[:, -1] - top[:, -2])
    for row in range(0, 2000, 50):
        alike = doubt[classes == classes[row]]
        expected = ((doubt < doubt[row]).mean() + (alike < doubt[row]).mean()) / 2
        assert score[row] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("retention", [0.1, 0.4])
def test_the_rate_is_held_within_two_points_when_the_stream_drifts(retention):
    rule = create("adaptive-margin", retention=retention).calibrate(stream(1000, seed=0))
    rows = stream(8000, seed=2)
    doubt = np.array([1.0, 0.3, 3.0, 0.1]).repeat(2000)[:, None]
    elsewhere = np.array([0.0, 0.0, 5.0, -5.0]).repeat(2000)[:, None] * np.eye(1, rows.features.shape[1])
    kept = rule.decide_many(
        replace(rows, logits=rows.logits * doubt, features=rows.features + elsewhere)
    ).retain
    trailing = [kept[start : start + 1000].mean() for start in range(1000, 7001)]
    assert max(abs(share - retention) for share in trailing) <= 0.02


def test_a_rate_per_hour_is_held_and_a_clock_that_jumps_does_no_lasting_harm():
    times = np.arange(6000) * 2.0  # 1800 an hour
    times[2000:] -= 1e6  # back
    times[4000:] += 5e8  # and far forward
    rule = create("adaptive-margin", samples_per_hour=180.0).calibrate(stream(1000, seed=0))
    kept = rule.decide_many(stream(6000, times=times)).retain
    for part in (kept[500:2000], kept[2000:4000], kept[4500:]):
        assert part.mean() == pytest.approx(0.1, rel=0.3)


def test_a_clock_that_is_set_after_the_first_sample_does_not_keep_everything():
    times = 1.7e9 + np.arange(1500) * 2.0
    times[0] = 0.0  # a board without a battery starts in 1970
    rule = create("adaptive-margin", samples_per_hour=180.0).calibrate(stream(1000, seed=0))
    kept = rule.decide_many(stream(1500, times=times)).retain
    assert kept[500:].mean() == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("n_burst", [1, 40, 150])
def test_bursts_of_one_time_each_do_not_bring_the_rate_to_nothing(n_burst):
    times = np.repeat(np.arange(6000 // n_burst + 1) * 2.0 * n_burst, n_burst)[:6000]  # 1800 an hour
    rule = create("adaptive-margin", samples_per_hour=360.0).calibrate(stream(1000, seed=0))
    kept = rule.decide_many(stream(6000, times=times)).retain
    assert kept[2000:].mean() == pytest.approx(0.2, rel=0.4)


def test_a_sample_without_a_time_is_refused_where_the_target_is_per_time():
    rule = create("adaptive-margin", samples_per_hour=60.0).calibrate(stream(100, seed=0))
    before = rule.state()
    for times in (None, np.array([0.0, np.nan])):
        with raises(InputError, "rule-needs"):
            rule.decide_many(stream(2, times=times))
    assert rule.state() == before


def test_samples_without_a_size_are_refused_where_the_target_is_in_bytes():
    rule = create("adaptive-margin", bytes_per_day=1e6).calibrate(stream(100, seed=0))
    rows = replace(stream(2, times=np.arange(2.0)), n_bytes=None)
    with raises(InputError, "rule-needs"):
        rule.decide_many(rows)


def test_a_target_in_bytes_is_held():
    rows = stream(6000, times=np.arange(6000) * 10.0)  # about 2 kB every ten seconds, 200 B/s
    rule = create("adaptive-margin", bytes_per_day=86_400.0 * 50).calibrate(stream(1000, seed=0))
    kept = rule.decide_many(rows).retain
    per_second = rows.n_bytes[1000:][kept[1000:]].sum() / 50_000
    assert per_second == pytest.approx(50, rel=0.1)


def test_features_of_another_model_are_refused():
    rule = create("adaptive-margin").calibrate(stream(100, seed=0))
    given = stream(2)
    other = Observations(
        given.classes, given.logits, given.named_scores, given.primary, given.features[:, :5]
    )
    with raises(InputError, "policy-other-model"):
        rule.decide_many(other)


def test_the_state_is_bounded_and_goes_on_where_it_was():
    rule = create("adaptive-margin").calibrate(stream(500, seed=0))
    rule.decide_many(stream(3000))
    state = rule.state()
    assert len(b64decode(state["duplicates"]["kept"])) == 256 * 24
    assert len(b64decode(state["recent"]["values"])) == 500 * 8
    assert len(state["adaptations"]["slots"]) == 32
    twin = Policy(RuleSpec(rule.name, rule.params, state), 3).to_rule()
    later = stream(700, seed=3)
    assert list(twin.decide_many(later)) == list(rule.decide_many(later))
    assert twin.state() == rule.state()


def test_gates_of_different_features_are_refused():
    rule = create("adaptive-margin", gates=True).calibrate(stream(100, seed=0))
    state = rule.state()
    state["duplicates"] |= {"kept": "", "next": 0, "n_features": 5}
    with pytest.raises(PolicyError, match="all gates must have the same number of features"):
        Policy(RuleSpec(rule.name, rule.params, state), 3).to_rule()


@pytest.mark.parametrize("k", [0.0, 1.0, 2.0, 3.0])
def test_a_world_that_was_never_as_in_calibration_does_not_silence_the_device(k):
    centres = np.random.default_rng(99).normal(size=(10, 64))
    shift = k * np.random.default_rng(5).normal(size=64)

    def world(n, seed, shift):
        draw = np.random.default_rng(seed)
        truth = draw.integers(0, 10, n)
        features = np.maximum(centres[truth] + draw.normal(size=(n, 64)) + shift, 0).astype(np.float32)
        logits = draw.normal(size=(n, 10))
        logits[np.arange(n), truth] += 3 * draw.random(n)
        return Observations(logits.argmax(1), logits, {"drip": np.zeros(n)}, features=features)

    rule = create("adaptive-margin", retention=0.3, gates=True).calibrate(world(500, 0, 0.0))
    kept = rule.decide_many(world(8000, 4, shift)).retain
    assert kept[3000:].mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"retention": 0.001}, {"samples_per_hour": 4.0}])
def test_small_rates_are_held_too(target):
    n = 40_000
    rows = stream(n, seed=7, times=np.arange(n, dtype=float))
    rule = create("adaptive-margin", **target).calibrate(stream(500, seed=0))
    wanted = n * target.get("retention", 4.0 / 3600)
    assert rule.decide_many(rows).retain.sum() == pytest.approx(wanted, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.001, 0.02])
def test_bytes_per_day_are_held_where_sizes_differ_much(share):
    n, draw = 100_000, np.random.default_rng(8)
    sizes = np.exp(1.5 * draw.normal(size=n)) * 1e4
    rows = replace(stream(n, seed=7, times=np.arange(n, dtype=float)), n_bytes=sizes.astype(np.int64))
    rule = create("adaptive-margin", bytes_per_day=share * sizes.mean() * 86400, gates=False)
    rule.calibrate(stream(500, seed=0))
    kept = sizes[rule.decide_many(rows).retain].sum()
    assert kept == pytest.approx(share * sizes.sum(), rel=0.2)


def bytes_kept(sizes, budget):
    """Whether each of the arrivals, one a second, is kept for so many bytes a second."""
    controller = RateController(Target(bytes_per_day=budget * 86400))
    draw, kept = np.random.default_rng(2), np.zeros(len(sizes), bool)
    for i, size in enumerate(sizes):
        kept[i] = draw.random() < controller.share(float(i), int(size))
        if kept[i]:
            controller.kept(int(size))
    return kept


@pytest.mark.parametrize("first", [10, 100, 10**7])
def test_a_first_file_of_another_size_does_not_silence_the_device(first):
    sizes = np.full(20_000, 10_000)
    sizes[0] = first
    kept = bytes_kept(sizes, 200)
    assert kept[2000:].mean() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("share", [0.001, 0.02])
def test_a_step_of_sizes_does_not_silence_the_device(share):
    sizes = np.repeat([10, 10_000], [20_000, 100_000])
    kept = bytes_kept(sizes, 10_000 * share)
    assert sizes[20_000:][kept[20_000:]].sum() == pytest.approx(1e9 * share, rel=0.2)


def test_a_file_beyond_a_days_bytes_silences_for_a_day():
    controller = RateController(Target(bytes_per_day=200 * 86400))
    for second in range(1000):
        controller.share(float(second), 10_000)
    controller.share(1000.0, 10**10)
    controller.kept(10**10)
    shares = np.array([controller.share(1001.0 + second, 10_000) for second in range(100_000)])
    assert np.flatnonzero(shares > 0)[0] == pytest.approx(86400, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [100, 128, 1000])
def test_a_state_of_many_classes_stays_below_256_kilobytes(n_classes):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, n_classes))
    features = np.maximum(rng.normal(size=(3000, 1280)), 0)
    rows = Observations(logits.argmax(1), logits, {"drip": np.zeros(3000)}, "drip", features)
    rule = create("adaptive-margin", retention=0.5).calibrate(rows)
    rule.decide_many(rows)
    assert len(steady_json("state", rule.state())) < 256_000


@pytest.mark.parametrize(("n_classes", "tolerance"), [(10, 0.01), (200, 0.08), (1000, 0.25)])
def test_ranks_within_many_classes_come_from_fewer_numbers(n_classes, tolerance):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(max(20_000, 20 * n_classes), n_classes))
    rows = Observations(logits.argmax(1), logits, {"drip": np.zeros(len(logits))}, "drip")
    rule = create("mixed-margin", retention=0.5).calibrate(rows)
    top = np.sort(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), axis=1)
    doubt = 1 - (top[:, -1] - top[:, -2])
    alike = np.flatnonzero(rows.classes == 3)
    expected = [((doubt <= doubt[row]).mean() + (doubt[alike] <= doubt[row]).mean()) / 2 for row in alike]
    assert rule.score(rows)[alike] == pytest.approx(np.array(expected), abs=tolerance / 2 + 0.02)


def test_a_state_stays_small_and_a_batch_changes_little_of_it():
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(size=(2532, 1280)), 0)
    logits = rng.normal(size=(2532, 10))
    rows = Observations(logits.argmax(1), logits, {"drip": np.zeros(2532)}, "drip", features)
    rule = create("adaptive-margin", retention=0.5).calibrate(rows[:500])
    rule.decide_many(rows[500:2500])
    before = steady_json("state", rule.state())
    rule.decide_many(rows[2500:])
    after = steady_json("state", rule.state())
    assert len(before) == len(after) < 200_000
    assert sum(end - start for start, end in changed_spans(before, after)) < 20_000


@pytest.mark.parametrize("n_means", [0, 1, 3])
@pytest.mark.parametrize(
    ("name", "params"), [("adaptive-margin", {"gates": ["populations"]}), ("novelty", {})]
)
def test_another_number_of_means_than_of_classes_is_refused(name, params, n_means):
    state = create(name, **params).calibrate(fake_observations(60, 2)).state()
    means = np.zeros((n_means, state["gaussians"]["n_features"]))
    damaged = state | {"gaussians": state["gaussians"] | {"means": packed(means)}}
    with pytest.raises(ValueError, match="one mean per class"):
        create(name, **params).restore(damaged)


def strange_stream(n, share, seed):
    """Rows of three classes; a share of them lies elsewhere in the features, with small margins."""
    rng = np.random.default_rng(seed)
    strange = rng.random(n) < share
    classes = rng.integers(0, 3, n)
    features = rng.normal(1.0, 0.2, (n, 40)) + 0.5 * np.eye(3, 40)[classes]
    features[strange, 20:30] += 0.5
    logits = np.where(strange, 0.3, 3.0)[:, None] * np.eye(3)[classes] + rng.normal(size=(n, 3)) * 0.1
    return Observations(logits.argmax(1), logits, {"drip": np.zeros(n)}, "drip", features), strange


def test_the_rule_keeps_little_of_a_second_population_and_notes_when_it_came():
    calibration, _ = strange_stream(1000, 0.0, seed=0)
    rows, strange = strange_stream(4000, 0.2, seed=1)
    kept = {}
    for gates in (True, False):
        rule = create("adaptive-margin", retention=0.3, gates=gates).calibrate(calibration)
        kept[gates] = rule.decide_many(rows).retain
        assert kept[gates][1000:].mean() == pytest.approx(0.3, abs=0.03)
        if gates:
            noted = [entry for entry in rule.adaptations if entry["what"] == "population"]
            assert len(noted) == 1
            assert 100 <= noted[0]["arrival"] < 1000
    assert strange[kept[False]].mean() > 0.5
    assert strange[1000:][kept[True][1000:]].mean() < 0.03


@pytest.mark.parametrize("is_saturated", [False, True])
def test_in_a_changed_world_the_stored_probability_is_the_frequency(is_saturated):
    calibration, _ = strange_stream(1000, 0.0, seed=0)
    new, _ = strange_stream(12_000, 1.0, seed=2)
    if is_saturated:
        new = replace(new, logits=new.logits * 1e4)
    rule = create("adaptive-margin", retention=0.3, gates=True).calibrate(calibration)
    rule.decide_many(strange_stream(1500, 0.0, seed=1)[0])
    decisions = rule.decide_many(new)
    probability = decisions.keep_probability
    assert np.char.startswith(decisions.reasons, "shift-").sum() > 5000
    error = (probability * (1 - probability)).sum() ** 0.5
    assert abs(decisions.retain.sum() - probability.sum()) < 4 * error


@pytest.mark.slow
def test_in_a_changed_world_draws_stay_independent_for_ever():
    rule = create("adaptive-margin", retention=0.3, exploration=0.0, gates=True)
    rule.calibrate(strange_stream(1000, 0.0, seed=0)[0])
    rule.decide_many(strange_stream(1500, 0.0, seed=1)[0])
    decisions = rule.decide_many(strange_stream(30_000, 1.0, seed=2)[0])
    settled = np.arange(30_000) >= 2000
    drawn = np.char.startswith(decisions.reasons, "shift-") & settled
    assert drawn.sum() > 0.95 * settled.sum()
    probability, priority = decisions.keep_probability[drawn], decisions.priority[drawn]
    assert ((probability > 0) & (probability < 1)).mean() > 0.999
    assert len(np.unique(priority)) == drawn.sum()
    assert np.sort(priority) == pytest.approx(np.linspace(0, 1, drawn.sum()), abs=0.02)
    kept = np.array(decisions.reasons)[drawn] == "shift-draw"
    np.testing.assert_array_equal(kept, priority > 1 - probability)


def test_a_strange_picture_that_is_stuck_is_kept_once():
    rule = create("adaptive-margin", retention=0.3, exploration=0.0, frozen=True, gates=True)
    rule.calibrate(strange_stream(1000, 0.0, seed=0)[0])
    rule.decide_many(strange_stream(500, 0.0, seed=1)[0])
    one, _ = strange_stream(1, 1.0, seed=2)
    stuck = replace(one, features=-one.features)[np.zeros(1500, int)]
    decisions = rule.decide_many(stuck)
    assert decisions.retain.sum() == 1
    assert set(np.array(decisions.reasons)[~decisions.retain]) == {"outlier", "near-duplicate"}


def test_in_a_changed_world_the_rule_draws_until_the_old_one_returns():
    calibration, _ = strange_stream(1000, 0.0, seed=0)
    old, _ = strange_stream(1500, 0.0, seed=1)
    new, _ = strange_stream(3000, 1.0, seed=2)
    new = replace(new, logits=new.logits * np.random.default_rng(3).uniform(0.1, 9.0, 3000)[:, None])
    rule = create("adaptive-margin", retention=0.3, gates=True).calibrate(calibration)
    rule.decide_many(old)
    decisions = rule.decide_many(new)
    kept = decisions.retain
    drawn = np.char.startswith(decisions.reasons, "shift-")
    assert drawn[1000:].mean() > 0.9
    assert decisions.keep_probability[drawn].mean() == pytest.approx(0.3, abs=0.03)
    assert kept[drawn].mean() == pytest.approx(0.3, abs=0.03)
    unsure = create("margin", retention=0.3).calibrate(new).decide_many(new).retain
    assert kept[1000:].mean() == pytest.approx(0.3, abs=0.02)
    assert unsure[1000:][kept[1000:]].mean() == pytest.approx(0.3, abs=0.05)
    rule.decide_many(strange_stream(3000, 0.0, seed=4)[0])
    later, _ = strange_stream(1000, 0.0, seed=5)
    kept = rule.decide_many(later).retain
    unsure = create("mixed-margin", retention=0.3).calibrate(calibration).decide_many(later).retain
    assert unsure[kept].mean() > 0.7
    values = [entry["value"] for entry in rule.adaptations if entry["what"] == "distribution-shift"]
    assert [value > 0 for value in values] == [True, False]


def test_a_frozen_rule_expects_no_second_population_and_moves_no_limit():
    calibration, _ = strange_stream(1000, 0.0, seed=0)
    rows, _ = strange_stream(2000, 0.2, seed=1)
    rule = create("adaptive-margin", retention=0.3, frozen=True, gates=True).calibrate(calibration)
    before = rule.state()
    rule.decide_many(rows)
    after = rule.state()
    for part in ("utility", "recent", "gaussians", "population", "adaptations"):
        assert after[part] == before[part]


def test_a_class_that_is_never_kept_gets_its_floor():
    shares = ClassShares(2, floor=0.5)
    kept = 0
    for _ in range(400):
        shares.arrived(1)
        if shares.below_floor(1, 0.2):
            shares.kept(1)
            kept += 1
    assert kept == pytest.approx(400 * 0.1, abs=2)


def test_a_class_gets_no_more_than_its_ceiling():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) + np.array([1.5, 0.0, 0.0])  # most of the stream is of one class
    rows = Observations(logits.argmax(1), logits, {"drip": np.zeros(4000)}, "drip")
    kept = {}
    for ceiling in (1.0, 0.4):
        rule = create("adaptive-margin", retention=0.3, gates=False, ceiling=ceiling, exploration=0.0)
        decisions = rule.calibrate(rows[:1000]).decide_many(rows[1000:])
        kept[ceiling] = np.mean(rows.classes[1000:][decisions.retain] == 0)
        assert decisions.retain[500:].mean() == pytest.approx(0.3, abs=0.02)
    assert kept[1.0] > 0.5
    assert kept[0.4] == pytest.approx(0.4, abs=0.03)


def test_what_is_kept_at_random_says_so():
    rows = stream(6000, seed=1)
    rule = create("adaptive-margin", retention=0.3, exploration=0.5, gates=False).calibrate(rows[:1000])
    decisions = rule.decide_many(rows[1000:])
    explored = np.array(decisions.reasons) == "exploration"
    assert decisions.retain[explored].all()
    assert decisions.keep_probability[explored] == pytest.approx(0.15)
    below = np.array(decisions.reasons) == "below-limit"
    assert not decisions.retain[below].any()
    assert explored.sum() / (explored.sum() + below.sum()) == pytest.approx(0.15, abs=0.02)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"floor": 2}, "floor must be in"),
        ({"floor": True}, "floor must be in"),
        ({"ceiling": 0}, "ceiling must be in"),
        ({"exploration": 1}, "exploration must be in"),
        ({"exploration": "a"}, r"exploration must be in \[0, 1\), got 'a'"),
        ({"floor": "x"}, r"floor must be in \[0, 1\], got 'x'"),
        ({"ceiling": None}, r"ceiling must be in \(0, 1\], got None"),
        ({"gates": "no"}, "gates must be names among duplicates, outliers, populations"),
        ({"gates": ["duplicates", "doubles"]}, "gates must be names among"),
        ({"gates": 1}, "gates must be names among"),
        ({"frozen": 1}, "frozen must be True or False, got 1"),
        ({"seed": -1}, "seed must be"),
        ({"samples_per_hour": float("inf")}, "samples_per_hour must be a number above 0"),
        ({"retention": 0.5, "bytes_per_day": 1}, "exactly one of"),
    ],
)
def test_arguments_of_the_adaptive_rule_outside_their_range_are_refused(params, message):
    with pytest.raises(InputError, match=message):
        create("adaptive-margin", **params)


def test_a_rule_without_gates_keeps_the_contract_and_reads_no_features():
    observations = fake_observations(400, 4, seed=5)
    check_rule(lambda: create("adaptive-margin", gates=False), replace(observations, features=None))


@pytest.mark.parametrize("gates", [(), ("duplicates",), ("outliers",), ("populations",), GATES])
def test_every_choice_of_gates_saves_only_what_it_needs_and_goes_on_where_it_was(gates):
    calibration, _ = strange_stream(1000, 0.0, seed=0)
    rows, _ = strange_stream(1500, 0.2, seed=1)
    rule = create("adaptive-margin", retention=0.3, gates=gates).calibrate(calibration)
    check_rule(lambda: create("adaptive-margin", retention=0.3, gates=gates), rows[:400])
    reasons = set(rule.decide_many(rows).reasons)
    allowed = {"duplicates": "near-duplicate", "outliers": "outlier", "populations": "population"}
    refused = {word for name, word in allowed.items() if name not in gates}
    assert not [reason for reason in reasons if reason.startswith(tuple(refused))]
    parts = {"duplicates", "outliers", "population", "gaussians"} & set(rule.state())
    expected = {name.replace("populations", "population") for name in gates}
    assert parts == expected | ({"gaussians"} if {"outliers", "populations"} & set(gates) else set())
    assert rule.needs == {"logits"} | ({"features"} if gates else set())


def test_gates_of_earlier_policies_are_all_or_none():
    every, none, usual = (create("adaptive-margin", gates=gates).params for gates in (True, False, GATES))
    assert (every["gates"], every["quota"]) == (list(GATES), 0.0)
    assert (none["gates"], none["quota"]) == ([], 0.0)
    assert usual["quota"] == 2.0
    assert create("adaptive-margin").params["gates"] == ["duplicates", "populations"]


@pytest.mark.parametrize(("quota", "expected"), [(0.0, 0.0), (0.5, 0.1), (1.0, 0.2), (2.0, 0.4), (9.0, 0.5)])
def test_a_second_population_gets_its_quota_and_the_rate_holds(quota, expected):
    calibration, _ = strange_stream(1000, 0.0, seed=0)
    rows, strange = strange_stream(6000, 0.2, seed=1)
    rule = create("adaptive-margin", retention=0.2, quota=quota, exploration=0.0).calibrate(calibration)
    decisions = rule.decide_many(rows)
    settled = np.arange(6000) >= 1500
    assert strange[settled & decisions.retain].mean() == pytest.approx(expected, abs=0.06)
    assert decisions.retain[settled].mean() == pytest.approx(0.2, abs=0.01)
    words = np.array(decisions.reasons)
    assert set(words[settled & strange]) <= {
        "population-2",
        "near-duplicate",
        "adaptive-margin",
        "below-limit",
    }


def test_a_second_population_that_is_one_stuck_picture_is_kept_once():
    calibration, _ = strange_stream(1000, 0.0, seed=0)
    rows, strange = strange_stream(3000, 0.2, seed=1)
    features = rows.features.copy()
    features[strange] = features[np.flatnonzero(strange)[0]]
    rows = replace(rows, features=features)
    rule = create("adaptive-margin", retention=0.3, exploration=0.0).calibrate(calibration)
    assert rule.decide_many(rows).retain[strange].sum() < 10


def test_a_population_that_ended_and_comes_back_has_no_room_saved():
    gate = PopulationGate(4, quota=2.0)
    draw = np.random.default_rng(0)
    for _ in range(2):
        for row in draw.normal(size=(1500, 4)) + np.array([6.0, 0, 0, 0]) * (draw.random((1500, 1)) < 0.2):
            gate.passes(row)
        for row in draw.normal(size=(6000, 4)):
            gate.passes(row)
        assert gate.share == 0.0
        assert not gate.has_room(1.0)


def test_what_a_population_did_not_use_of_its_quota_is_limited():
    gate, target = PopulationGate(4, quota=2.0), 0.2
    draw = np.random.default_rng(0)

    def arrivals(n, part):
        return draw.normal(size=(n, 4)) + np.array([6.0, 0, 0, 0]) * (draw.random((n, 1)) < part)

    for row in (*arrivals(1000, 0.2), *arrivals(3000, 0.6), *arrivals(700, 0.25)):
        gate.passes(row)  # nothing is kept of the population's own quota, although it is there all the time
    n_kept = 0
    for row in arrivals(1000, 0.25):
        if not gate.passes(row) and gate.has_room(target):
            gate.kept()
            n_kept += 1
    assert gate.is_apart
    assert 0.2 * 1000 * target < n_kept < 0.5 * (1000 + 200) * target + 1


@pytest.mark.parametrize("quota", [-1, float("nan"), float("inf"), "2", True])
def test_a_quota_is_a_number(quota):
    with raises(InputError, "bad-argument"):
        create("adaptive-margin", quota=quota)
