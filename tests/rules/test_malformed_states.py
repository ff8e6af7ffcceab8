"""Entries of every rule's parameters and state replaced by other JSON values: refused, or of a meaning."""

from math import inf, nan

import pytest
from support import replaced

from drip.errors import PolicyError
from drip.policy import Policy, RuleSpec
from drip.rules import available, create
from drip.testing import fake_observations

OTHERS = (None, True, False, "3", "x", [], [True], {}, {"x": 1}, nan, inf)
MAY_BE_NULL = {"limits", "percentiles", "last_time", "interval", "size", "samples_per_hour", "bytes_per_day"}
"""Names under which null says something: no limit, no sample of a class, no time yet, no such target."""


def recipe_of(name, **params):
    """The recipe of a rule that has decided a little."""
    rule = create(name, **params).calibrate(fake_observations(60, 3))
    rule.decide_many(fake_observations(20, 3, seed=1))
    return RuleSpec(name, rule.params, rule.state())


def paths(value, path=()):
    """The paths of everything in a value; of lists the first and the last entry."""
    entries = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        entries = {0: value[0], len(value) - 1: value[-1]}.items() if value else ()
    for key, child in entries:
        yield (*path, key)
        yield from paths(child, (*path, key))


def is_meant(name, path, old, new):
    """Whether the rule may have written the new value in the place of the old one."""
    if new is None and name.startswith("adaptive-") and {"retention", "quota"} & set(path):
        return True  # the default
    if path[-1] == "gates":
        return new in (True, False) or new == []  # all or none of them
    if new == old:
        return True
    if new is None:
        return old is None or bool(MAY_BE_NULL & set(path))
    return type(old) is type(new) and isinstance(new, (bool, str))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        *((name, {}) for name in sorted(available())),
        ("adaptive-margin", {"gates": True}),
        ("adaptive-margin", {"samples_per_hour": 60.0}),
        ("adaptive-margin", {"bytes_per_day": 1e6}),
    ],
)
def test_what_is_no_entry_of_a_recipe_is_refused(name, params):
    recipe = recipe_of(name, **params)
    accepted = []
    for part in ("params", "state"):
        content = getattr(recipe, part)
        for path in paths(content):
            old = content
            for key in path:
                old = old[key]
            for new in OTHERS:
                if is_meant(name, path, old, new):
                    continue
                parts = {"params": recipe.params, "state": recipe.state, part: replaced(content, path, new)}
                try:
                    Policy(RuleSpec(name, **parts), 3).to_rule()
                except PolicyError:
                    continue
                accepted.append((part, *path, type(old).__name__, new))
    assert accepted == []
