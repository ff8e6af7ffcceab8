"""Rules are found by name, in this package and in others; their abstract families are not."""

import pkgutil

import numpy as np
import pytest
from support import raises

import drip.rules
from drip.errors import InputError
from drip.rules import OFFERED, BaseRule, ThresholdRule, available, create, load_all
from drip.rules.base import deterministic


@pytest.fixture
def fresh(monkeypatch):
    """Discovery from the start, and afterwards again without what the test added."""
    load_all.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    load_all.cache_clear()


def rules():
    return {name: rule for name, rule in available().items() if rule.__module__.startswith("drip.rules.")}


@pytest.mark.usefixtures("fresh")
def test_every_rule_is_found_under_its_own_name():
    files = {module.name for module in pkgutil.iter_modules(drip.rules.__path__)}
    files -= {"base", "extra", "parts", "state"}
    assert {rule.__module__.rpartition(".")[2] for rule in rules().values()} == files
    assert all(rule.name == name for name, rule in rules().items())
    assert all("name" in vars(rule) for rule in rules().values())
    assert sorted(rules()) == sorted(OFFERED)


def test_modules_are_looked_for_once(fresh):
    asked = []
    fresh.setattr(drip.rules, "entry_points", lambda group: asked.append(group) or ())
    assert available() == available()
    assert asked == ["drip.rules"]


def test_a_rule_that_is_defined_later_is_found():
    class Later(drip.rules.available()["margin"]):
        name = "test-later"

    assert available()["test-later"] is Later


def test_a_users_rule_comes_before_one_for_researchers_with_the_same_name():
    class Mine(ThresholdRule):
        name = "vessal"

        def score(self, observations):
            return observations.logits[:, 0]

    try:
        assert available()["vessal"] is type(create("vessal")) is Mine
    finally:
        Mine.name = "test-mine"


class _Entry:
    def __init__(self, load):
        self.load = load


def test_rules_of_other_packages_come_through_entry_points(fresh):
    asked = []

    def load():
        class Nothing(BaseRule):
            name = "test-nothing"

            @property
            def params(self):
                return {}

            def _decide(self, observations):
                n = len(observations)
                return deterministic(np.zeros(n, dtype=np.bool_), np.zeros(n), "", "nothing")

        return Nothing

    def entry_points(*, group):
        asked.append(group)
        return [_Entry(load)]

    fresh.setattr(drip.rules, "entry_points", entry_points)
    assert asked == []
    assert available()["test-nothing"].name == "test-nothing"
    assert asked == ["drip.rules"]
    assert create("test-nothing").params == {}
    with raises(InputError, "rule-arguments"):
        create("test-nothing", retention=0.5)


DEFAULTS = {
    "retention": 0.6,
    "method": "min_std",
    "min_class_count": 50,
    "score": "drip",
    "seed": 0,
}


@pytest.mark.parametrize("name", OFFERED)
def test_defaults_are_those_of_the_paper_and_equal_in_all_rules(name):
    params = available()[name]().params
    common = params.keys() & DEFAULTS.keys()
    assert common or name == "keep-all"
    assert {key: params[key] for key in common} == {key: DEFAULTS[key] for key in common}


@pytest.mark.parametrize("name", sorted(set(OFFERED) - {"keep-all"}))
def test_the_asked_retention_is_a_parameter(name):
    params = create(name, retention=0.7).params
    assert params.get("retention", 0.7) == 0.7
    assert "retention" in params
