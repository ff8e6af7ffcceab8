"""Selection rules, one file each, discovered: `create("margin", retention=0.6)`.

Rules are data in, decision out: no I/O, no model, no clock, no torch. Other packages add rules through
the entry-point group `drip.selectors`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from drip.errors import InputError, PolicyError
from drip.policy import Policy
from drip.selectors.base import BaseSelector, RankedSelector, ThresholdSelector, WindowSelector

__all__ = [
    "BaseSelector",
    "RankedSelector",
    "ThresholdSelector",
    "WindowSelector",
    "available",
    "create",
    "from_policy",
    "load_all",
]

ENTRY_POINTS = "drip.selectors"


def available() -> dict[str, type[BaseSelector]]:
    """Every selector by name: of this package, of packages that register some, and any defined since.

    >>> sorted(available())[:3]
    ['adaptive-margin', 'adaptive-random', 'class-balanced-random']
    """
    load_all()
    root: Any = BaseSelector  # abstract: only its named descendants are rules
    return {rule.name: rule for rule in _concrete(root)}


@cache
def load_all() -> None:
    """Import every module with rules, once: those of this package and those that others register."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()


def _concrete(base: type[BaseSelector]) -> list[type[BaseSelector]]:
    found = [base] if "name" in vars(base) else []
    return found + [rule for child in base.__subclasses__() for rule in _concrete(child)]


def create(name: str, *, retention: float | None = None, **params: Any) -> BaseSelector:
    """A selector by name, not yet calibrated.

    Args:
        name: One of :func:`available`.
        retention: Share of the stream to keep, in (0, 1); every rule takes it.
        params: Further arguments of the rule.

    Raises:
        InputError: no such rule, or arguments that it does not take.

    >>> create("margin", retention=0.5).params
    {'retention': 0.5}
    """
    rule = _rule(name)
    try:
        return rule(**params) if retention is None else rule.for_retention(retention, **params)
    except TypeError as error:
        raise InputError(f"selector {name!r} does not take these arguments: {error}") from error


def _rule(name: str) -> type[BaseSelector]:
    rules = available()
    if name not in rules:
        raise InputError(f"selector must be one of {', '.join(sorted(rules))}, got {name!r}")
    return rules[name]


def from_policy(policy: Policy) -> BaseSelector:
    """The calibrated selector that a policy describes.

    Raises:
        PolicyError: the policy names an unknown rule, unknown arguments or a state of another version.
    """
    recipe = policy.recipe
    try:
        return _rule(recipe.name)(**recipe.params).restore_version(recipe.state, recipe.state_version)
    except (InputError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise PolicyError(
            f"the policy's rule {recipe.name!r} cannot be rebuilt: {error}; install the version or package "
            "that wrote the policy, or calibrate again"
        ) from error
