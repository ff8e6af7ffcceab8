"""What is compared: the rules that drip offers, those that it keeps for research, and variants of the published one."""

from __future__ import annotations

import time
import tracemalloc
import zlib
from dataclasses import dataclass
from typing import Any

from drip.rules import BaseRule, available, create
from drip.rules.adaptive import GATES
from drip.types import Decisions, JsonObject, Observations

_TIMED_DECISIONS = 200
_WINDOW_SIZE = ("discard_fraction", "retention")


@dataclass(frozen=True)
class Arm:
    """A rule with arguments, under the name that results carry.

    Attributes:
        name: The arm.
        rule: Name for :func:`drip.rules.create`.
        params: Arguments besides retention and seed, as pairs.
    """

    name: str
    rule: str
    params: tuple[tuple[str, Any], ...] = ()

    def build(self, retention: float, seed: int) -> BaseRule:
        """The rule for a retention, not yet calibrated; arms that draw, draw apart from one another."""
        accepts = create(self.rule).params
        seeded = {"seed": zlib.crc32(self.name.encode()) + seed} if "seed" in accepts else {}
        # As it was recorded: the default is now 50, and another argument would give every line another hash.
        counted = {"min_class_count": 20} if "min_class_count" in accepts else {}
        return create(self.rule, retention=retention, **{**counted, **dict(self.params), **seeded})

    def config(self, retention: float) -> JsonObject:
        """The arguments of the rule, as result files name them.

        The window rules were recorded with the share that they discard. The name stays in the configuration
        whatever the argument is called today: another name gives another hash, and every line with it would
        be measured again.
        """
        params = self.build(retention, 0).params
        if params.get("gates") == list(GATES):
            params["gates"] = True  # as it was recorded, for the same reason
            del params["quota"]
        if "method" not in params:
            return params
        others = {name: value for name, value in params.items() if name not in _WINDOW_SIZE}
        return {"discard_fraction": round(1 - retention, 12), **others}


_NORMALISED = ("score", "drip_normalised")
_PEAK = ("method", "histogram_peak")

PAPER_RULES = {
    arm.name: arm
    for arm in (
        Arm("paper.raw.window", "drip"),
        Arm("paper.raw.peak", "drip", (_PEAK,)),
        Arm("paper.normalised.window", "drip", (_NORMALISED,)),
        Arm("paper.normalised.peak", "drip", (_NORMALISED, _PEAK)),
    )
}
"""The paper's arms (A1, A5): raw or normalised heatmap, window of III-A or peak of Algorithm 1."""

RESEARCH_RULES = (
    "adaptive-random",
    "coverage",
    "energy",
    "gradient-norm",
    "information-gain",
    "inverse-drip",
    "least-confidence",
    "lowest-contrast",
    "lowest-drip",
    "margin-window",
    "max-logit-window",
    "mixed-margin",
    "moderate",
    "reservoir",
    "soft-margin",
    "variable-uncertainty",
    "vessal",
)
"""Rules of the recorded studies that drip does not offer, from :mod:`drip.rules.extra`."""

COMPARATORS = frozenset(
    (
        "coverage",
        "energy",
        "gradient-norm",
        "information-gain",
        "margin-window",
        "moderate",
        "novelty",
        "soft-margin",
        "variable-uncertainty",
        "vessal",
    )
)
"""Rules of the literature, run only as they were meant: online, for equal epochs, on mixed streams."""

_AS_RECORDED: dict[str, tuple[tuple[str, Any], ...]] = dict.fromkeys(
    ("adaptive-margin", "adaptive-random"), (("gates", True),)
)
"""Arguments of rules whose defaults have changed since the lines of these studies were measured."""

_VARIANTS = (
    Arm("drip.normalised", "drip", (_NORMALISED,)),
    Arm("drip.peak", "drip", (_PEAK,)),
    Arm("drip.contrast", "drip", (("score", "contrast"),)),
)


def rules() -> dict[str, Arm]:
    """Every arm that selects, by name: all rules, a user's too, then other readings of the published rule."""
    names = sorted({*available(), *RESEARCH_RULES})
    arms = (Arm(name, name, _AS_RECORDED.get(name, ())) for name in names)
    return {arm.name: arm for arm in (*arms, *_VARIANTS)}


@dataclass(frozen=True)
class Decided:
    """What a calibrated rule says of a stream.

    Attributes:
        decisions: One per observation, in the order of arrival.
        cost: Microseconds per single decision and peak bytes while deciding.
    """

    decisions: Decisions
    cost: dict[str, float]


def decide(rule: BaseRule, stream: Observations) -> Decided:
    """The decisions on a stream, and what a single decision costs (measured apart, on its first part)."""
    state = rule.state()
    decisions = rule.decide_many(stream)
    probe = [stream[row] for row in range(min(_TIMED_DECISIONS, len(stream)))]
    rule.restore(state)
    start = time.perf_counter()
    for observation in probe:
        rule.decide(observation)
    seconds = (time.perf_counter() - start) / max(1, len(probe))
    tracemalloc.start()
    for observation in probe[:20]:
        rule.decide(observation)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Decided(decisions, {"decide_us": round(1e6 * seconds, 1), "decide_peak_bytes": peak})
