"""Every offered rule keeps the contract of a rule; rules are discovered, not listed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import raises

from drip.errors import InputError, PolicyError
from drip.policy import Policy
from drip.rules import ThresholdRule, available, create
from drip.testing import check_rule, fake_observations

RULES = sorted(available())
RANDOM = sorted(name for name, rule in available().items() if "seed" in rule().params)
every_rule = pytest.mark.parametrize("name", RULES)


def without_ties(observations):
    steps = 1e-9 * np.random.default_rng(0).permutation(len(observations))
    scores = {name: column + steps for name, column in observations.named_scores.items()}
    return replace(observations, named_scores=scores)


def keeps_everything(name):
    return name == "keep-all"


def limit_is_for_fresh_data(name):
    """Whether calibration samples took part in what they are compared with, and the limit allows for it."""
    return name == "novelty"


@every_rule
@pytest.mark.parametrize("n_classes", [2, 10])
def test_the_contract_holds(name, n_classes):
    check_rule(available()[name], fake_observations(400, n_classes, seed=1))


@every_rule
def test_the_contract_holds_when_a_class_is_absent_from_calibration(name):
    observations = fake_observations(500, 5, seed=2)
    calibration = np.flatnonzero(observations.classes != 3)[:200]
    rest = np.setdiff1d(np.arange(500), calibration)[:200]
    check_rule(available()[name], observations[np.concatenate([calibration, rest])])


@every_rule
def test_the_contract_holds_for_scores_of_a_large_offset_and_float32_logits(name):
    observations = fake_observations(200, 4, seed=3)
    check_rule(
        available()[name],
        replace(
            observations,
            logits=observations.logits.astype(np.float32),
            named_scores={key: 1e9 + column for key, column in observations.named_scores.items()},
        ),
    )


@every_rule
@pytest.mark.parametrize("scale", [0.0, 5e-324, 1e-200, 1e200, 1e307])
def test_the_contract_holds_for_scores_of_extreme_size(name, scale):
    observations = fake_observations(160, 3, seed=4)
    scores = {key: column * scale for key, column in observations.named_scores.items()}
    check_rule(
        available()[name], replace(observations, named_scores=scores, logits=observations.logits * scale)
    )


@every_rule
def test_priorities_stay_finite_far_outside_of_what_calibration_saw(name):
    rule = create(name).calibrate(fake_observations(200, 3))
    stream = fake_observations(50, 3)
    for value in (-1.7e308, 1.7e308):
        scores = {key: np.full(50, value) for key in stream.named_scores}
        logits = np.where(np.arange(3) == stream.classes[:, None], abs(value), value)
        decisions = rule.decide_many(replace(stream, named_scores=scores, logits=logits))
        assert np.isfinite(decisions.priority).all()


@every_rule
def test_params_rebuild_the_rule(name):
    rule = create(name, retention=0.7)
    again = create(name, **json.loads(json.dumps(rule.params)))
    assert again.params == rule.params
    calibration, stream = fake_observations(300, 4), fake_observations(100, 4, seed=9)
    assert list(again.calibrate(calibration).decide_many(stream)) == list(
        rule.calibrate(calibration).decide_many(stream)
    )


@every_rule
def test_default_params_rebuild_the_rule(name):
    rule = available()[name]()
    assert create(name, **rule.params).params == rule.params


@every_rule
@pytest.mark.parametrize("retention", [None, 0.3])
def test_a_policy_decides_as_the_rule_that_made_it(name, retention, tmp_path):
    rule = create(name, retention=retention).calibrate(fake_observations(300, 4))
    Policy.of(rule, n_classes=4).save(tmp_path / "policy.json")
    stream = fake_observations(200, 4, seed=9)
    restored = Policy.load(tmp_path / "policy.json").to_rule()
    assert type(restored) is type(rule)
    assert list(restored.decide_many(stream)) == list(rule.decide_many(stream))


@every_rule
@pytest.mark.parametrize("retention", [0.1, 0.3, 0.5, 0.61, 0.77, 0.9])
def test_the_asked_retention_is_met_on_the_calibration_data(name, retention):
    calibration = without_ties(fake_observations(4000, 4, seed=5))
    kept = create(name, retention=retention).calibrate(calibration).decide_many(calibration).retain.mean()
    expected = 1.0 if keeps_everything(name) else retention
    # Four standard errors for rules with chance; one sample per class for the others.
    within_errors = name in RANDOM or limit_is_for_fresh_data(name)
    tolerance = 4 * np.sqrt(retention * (1 - retention) / 4000) if within_errors else 4 / 4000
    assert kept == pytest.approx(expected, abs=tolerance)


@pytest.mark.slow
@every_rule
@pytest.mark.parametrize("retention", [0.1, 0.3, 0.5, 0.61, 0.77, 0.9])
def test_the_asked_retention_is_nearly_met_on_fresh_data(name, retention):
    rule = create(name, retention=retention).calibrate(without_ties(fake_observations(6000, 4, seed=6)))
    kept = rule.decide_many(without_ties(fake_observations(6000, 4, seed=7))).retain.mean()
    assert kept == pytest.approx(1.0 if keeps_everything(name) else retention, abs=0.03)


@pytest.mark.slow
@every_rule
def test_keep_probabilities_are_the_frequencies(name):
    calibration, stream = fake_observations(120, 4, seed=1), fake_observations(40, 4, seed=2)
    seeds = range(300) if name in RANDOM else [None]
    decided = []
    for seed in seeds:
        rule = create(name, retention=0.4, **({} if seed is None else {"seed": seed}))
        decided.append(rule.calibrate(calibration).decide_many(stream))
    # Given what a rule has seen, so the deviations add up to nothing although its state moves on.
    stated = np.array([decisions.keep_probability for decisions in decided])
    retained = np.array([decisions.retain for decisions in decided])
    error = np.sqrt((stated * (1 - stated)).sum(axis=0))
    assert (np.abs((retained - stated).sum(axis=0)) <= 5 * error + 1e-9).all()
    if name not in RANDOM:
        assert set(stated.ravel().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_make_streams_of_chance_that_repeat_and_differ(name):
    calibration, stream = fake_observations(200, 4), fake_observations(200, 4, seed=1)

    def retained(seed):
        return (
            create(name, retention=0.5, seed=seed).calibrate(calibration).decide_many(stream).retain.tolist()
        )

    assert retained(1) == retained(1)
    assert retained(1) != retained(2)


@pytest.mark.slow
@every_rule
@settings(max_examples=25)
@given(data=st.data())
def test_any_scores_decide_alike_in_rows_and_batches(name, data):
    finite = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, 5e-324])
    n = data.draw(st.integers(40, 44))
    column = st.lists(finite, min_size=n, max_size=n).map(np.array)
    observations = replace(
        fake_observations(n, 3),
        named_scores={"drip": data.draw(column), "contrast": data.draw(column)},
        logits=np.stack([data.draw(column) for _ in range(3)], axis=1),
        classes=np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))),
    )
    check_rule(available()[name], observations)


@every_rule
def test_a_rule_that_needs_limits_says_so_until_it_has_them(name):
    rule, stream = available()[name](), fake_observations(3, 3)
    try:
        state = rule.state()
    except PolicyError as error:
        assert error.code == "rule-not-calibrated"  # noqa: PT017
        for use in (lambda: rule.decide_many(stream), lambda: rule.decide(stream[0])):
            with raises(PolicyError, "rule-not-calibrated"):
                use()
    else:
        assert available()[name]().restore(state).decide_many(stream).retain.shape == (3,)


@every_rule
def test_a_class_that_calibration_did_not_know_of_is_refused_or_irrelevant(name):
    rule = available()[name]().calibrate(fake_observations(200, 3))
    stream = fake_observations(20, 3)
    for label in (3, -1):
        classes = stream.classes.copy()
        classes[7] = label
        before = rule.state()
        try:
            decisions = rule.decide_many(replace(stream, classes=classes))
        except InputError as error:
            assert error.code == "policy-other-classes"  # noqa: PT017
            assert "row 7" in str(error)  # noqa: PT017
            assert rule.state() == before
        else:
            assert list(decisions) == list(available()[name]().restore(before).decide_many(stream))


@every_rule
def test_a_state_of_another_version_is_refused(name):
    rule = available()[name]().calibrate(fake_observations(100, 3))
    state = rule.state()
    available()[name]().restore_version(state, rule.state_version)
    with raises(PolicyError, "rule-state"):
        available()[name]().restore_version(state, 2)


@every_rule
@pytest.mark.parametrize("retention", [0.0, -0.1, 1.5, float("nan"), True, "0.5"])
def test_a_retention_outside_its_range_is_refused(name, retention):
    if keeps_everything(name):
        assert create(name, retention=retention).params == {}
        return
    with pytest.raises(InputError, match=r"^retention must be in \(0, 1\), got"):
        create(name, retention=retention)


@every_rule
def test_reasons_are_short_constant_words(name):
    rule = available()[name]().calibrate(fake_observations(400, 4))
    words = set(rule.decide_many(fake_observations(400, 4, seed=1)).reasons)
    assert all(word == word.lower() and " " not in word and len(word) <= 24 for word in words)
    assert len(words) <= 8


class BrightestFeature(ThresholdRule):
    """A rule on features; its name is set on the instance, so it does not count as exported."""

    @property
    def needs(self):
        return frozenset({"features"})

    def score(self, observations):
        return observations.features.max(axis=1)


def test_the_contract_holds_for_a_rule_that_reads_features():
    def factory():
        rule = BrightestFeature()
        rule.name = "brightest-feature"
        return rule

    check_rule(factory, fake_observations(100, 3))
    with raises(InputError, "rule-needs"):
        factory().calibrate(replace(fake_observations(50, 3), features=None))


@every_rule
def test_calibration_on_nothing_is_refused(name):
    with raises(InputError, "source-empty"):
        create(name).calibrate(fake_observations(0, 3))


def test_an_unknown_rule_names_a_near_match_or_all_rules():
    with raises(InputError, "rule-unknown") as caught:
        create("margn")
    assert "did you mean 'margin'?" in str(caught.value)
    with raises(InputError, "rule-unknown") as caught:
        create("x")
    assert f"choose one of {', '.join(RULES)}" in str(caught.value)


def test_an_argument_that_the_rule_does_not_take_is_refused():
    with raises(InputError, "rule-arguments"):
        create("margin", colour=1)
    with raises(InputError, "rule-arguments"):
        create("drip", retention=0.5, discard_fraction=0.5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("drip", {"retention": 1.0}, r"retention must be in \(0, 1\)"),
        ("drip", {"method": "x"}, "method must be one of"),
        ("drip", {"min_class_count": -1}, "min_class_count must be an integer"),
        ("drip", {"score": 3}, "score must be the name of a score, got 3"),
        ("drip", {"min_class_count": 0.5}, "min_class_count must be an integer"),
        ("lowest-drip", {"min_class_count": "x"}, "min_class_count must be an integer"),
        ("random", {"seed": -1}, "seed must be an integer"),
        ("random", {"seed": None}, "seed must be an integer"),
    ],
)
def test_arguments_outside_their_range_are_refused(name, arguments, message):
    with pytest.raises(InputError, match=message):
        create(name, **arguments)


def test_a_policy_of_an_unknown_rule_says_what_to_do():
    policy = Policy.of(create("margin").calibrate(fake_observations(50, 3)), n_classes=3)
    for spec in (
        replace(policy.rule, name="gone"),
        replace(policy.rule, params={"colour": 1}),
        replace(policy.rule, state={}),
        replace(policy.rule, state={"limit": "x"}),
        replace(policy.rule, state={"limit": None}),
        replace(policy.rule, state={"limit": 10**400}),
        replace(policy.rule, params={"retention": 5}),
    ):
        with pytest.raises(PolicyError) as caught:
            replace(policy, rule=spec).to_rule()
        assert caught.value.code in ("rule-unknown", "rule-state", "bad-argument")
    with raises(PolicyError, "rule-state"):
        replace(policy, rule=replace(policy.rule, state_version=2)).to_rule()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "lowest-drip",
            {"limits": [1.0]},
            "restored: limits, means and scales must have one number per class, and scales must be above 0; ",
        ),
        (
            "lowest-drip",
            {"means": [1.0]},
            "restored: limits, means and scales must have one number per class, and scales must be above 0; ",
        ),
        (
            "lowest-drip",
            {"scales": [1.0]},
            "restored: limits, means and scales must have one number per class, and scales must be above 0; ",
        ),
        (
            "lowest-drip",
            {"scales": [1.0, 0.0, 1.0]},
            "restored: limits, means and scales must have one number per class, and scales must be above 0; ",
        ),
        ("lowest-drip", {"limits": "abc"}, "calibrate again"),
        (
            "class-balanced-random",
            {"probabilities": 0.5},
            "restored: probabilities must be a list, got 0.5; ",
        ),
        (
            "class-balanced-random",
            {"probabilities": [0.5, 0.0]},
            "restored: probabilities must be one number in (0, 1] per class, got ",
        ),
        (
            "class-balanced-random",
            {"probabilities": [0.5, 1.5]},
            "restored: probabilities must be one number in (0, 1] per class, got ",
        ),
        ("random", {"generator": {}}, "calibrate again"),
        ("random", {"generator": None}, "calibrate again"),
        ("drip", {"windows": [{}]}, "calibrate again"),
    ],
)
def test_a_damaged_state_is_refused(name, change, message):
    policy = Policy.of(create(name).calibrate(fake_observations(100, 3)), n_classes=3)
    spec = replace(policy.rule, state={**policy.rule.state, **change})
    with raises(PolicyError, "rule-state") as caught:
        Policy(spec, 3).to_rule()
    assert message in str(caught.value)
