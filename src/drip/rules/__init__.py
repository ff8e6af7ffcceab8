"""Selection rules by name: `create("margin", retention=0.6)`; one file per family.

Rules are data in, decision out: no I/O, no model, no clock, no torch. Other packages add rules through
the entry-point group `drip.rules`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from drip.errors import InputError, PolicyError
from drip.rules.base import BaseRule, RankedRule, ThresholdRule, WindowRule, require_scores
from drip.types import JsonObject

__all__ = [
    "OFFERED",
    "RECOMMENDATION",
    "RECOMMENDED",
    "BaseRule",
    "RankedRule",
    "ThresholdRule",
    "WindowRule",
    "available",
    "create",
    "load_all",
    "require_scores",
    "restore_rule",
]

ENTRY_POINTS = "drip.rules"

OFFERED = (
    "adaptive-margin",
    "class-balanced-random",
    "drip",
    "entropy",
    "keep-all",
    "margin",
    "novelty",
    "random",
)
"""Rules of this package that users choose from; the others are in ``drip.rules.extra``, for researchers."""

RECOMMENDED = "adaptive-margin"
"""The default rule; this is the only place that names it."""

RECOMMENDATION = (
    "Use the default rule, `adaptive-margin`. It keeps close calls, discards near-duplicates, gives a new kind of "
    "input a quota of what is kept, and holds the keep rate. It pays where a stream has structure: a new camera, "
    "rare or unknown classes, repeated scenes. On well-mixed streams there is little to gain. With junk in the "
    "stream, it is no better than a random choice until a person says that the junk can be ignored."
)
"""Which rule to use: rendered into README, `--help` and the site."""


def available() -> dict[str, type[BaseRule]]:
    """The rules to choose from: :data:`OFFERED`, registered by other packages, defined in the running program.

    >>> sorted(available())[:3]
    ['adaptive-margin', 'class-balanced-random', 'drip']
    """
    return {name: rule for name, rule in _rules().items() if _is_offered(rule)}


def _rules() -> dict[str, type[BaseRule]]:
    """Every rule by name, offered or not."""
    load_all()
    root: Any = BaseRule  # abstract: only its named descendants are rules
    # Offered rules last: a user's rule takes precedence over one of researchers with the same name.
    return {rule.name: rule for rule in sorted(_concrete(root), key=_is_offered)}


def _is_offered(rule: type[BaseRule]) -> bool:
    return rule.name in OFFERED or not rule.__module__.startswith(f"{__name__}.")


@cache
def load_all() -> None:
    """Import every module with rules, once: our own and those that other packages register."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()


def _concrete(base: type[BaseRule]) -> list[type[BaseRule]]:
    found = [base] if "name" in vars(base) else []
    return found + [rule for child in base.__subclasses__() for rule in _concrete(child)]


def create(name: str, *, retention: float | None = None, **params: Any) -> BaseRule:
    """A rule by name, not yet calibrated.

    Args:
        name: One of :func:`available`, or a rule of ``drip.rules.extra``.
        retention: Keep rate, in (0, 1); every rule accepts it.
        params: Further arguments of the rule.

    Raises:
        InputError: the rule does not exist, or does not accept these arguments.

    >>> create("margin", retention=0.5).params
    {'retention': 0.5}
    """
    rule = _rule(name)
    try:
        return rule(**params) if retention is None else rule.for_retention(retention, **params)
    except TypeError as error:
        accepted = [argument for argument in inspect.signature(rule).parameters if argument != "self"]
        raise InputError(
            f"the rule {name!r} does not accept these arguments; it accepts {', '.join(accepted) or 'none'}",
            code="rule-arguments",
        ) from error


def _rule(name: str) -> type[BaseRule]:
    rules = _rules()
    if name not in rules:
        offered = sorted(available())
        near = get_close_matches(name, offered, n=1) if isinstance(name, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else f"; choose one of {', '.join(offered)}"
        raise InputError(f"there is no rule {name!r}{hint}", code="rule-unknown")
    return rules[name]


def restore_rule(name: str, params: JsonObject, state: JsonObject, state_version: int = 1) -> BaseRule:
    """Restore a calibrated rule from its description in a policy.

    Args:
        name: One of :func:`available`, or a rule of ``drip.rules.extra``.
        params: Arguments of its constructor.
        state: The result of :meth:`BaseRule.state`.
        state_version: Version of the layout of ``state``.

    Raises:
        PolicyError: the rule or an argument is unknown, or the state has a different version.
    """
    try:
        return _rule(name)(**params).restore_version(state, state_version)
    except (InputError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise PolicyError(
            f"the rule {name!r} of the policy cannot be restored: {error}; install the version or package "
            "that wrote the policy, or calibrate again",
            code=getattr(error, "code", "rule-state"),
        ) from error
