"""What is compared: every selector that drip finds, and the variants of its own rule."""

from __future__ import annotations

import inspect
import time
import tracemalloc
import zlib
from dataclasses import dataclass
from typing import Any

from drip.rules import BaseRule, available, create
from drip.types import Decisions, Observations

_TIMED_DECISIONS = 200


@dataclass(frozen=True)
class Rule:
    """A selector with arguments, under the name that results carry.

    Attributes:
        name: The arm.
        selector: Name among :func:`drip.rules.available`.
        params: Arguments besides retention and seed, as pairs.
    """

    name: str
    selector: str
    params: tuple[tuple[str, Any], ...] = ()

    def build(self, retention: float, seed: int) -> BaseRule:
        """The rule for a retention, not yet calibrated; arms that draw, draw apart from one another."""
        draws = "seed" in inspect.signature(available()[self.selector]).parameters
        seeded = {"seed": zlib.crc32(self.name.encode()) + seed} if draws else {}
        return create(self.selector, retention=retention, **dict(self.params), **seeded)


_NORMALISED = ("score", "drip_normalised")
_PEAK = ("method", "histogram_peak")

PAPER_RULES = {
    rule.name: rule
    for rule in (
        Rule("paper.raw.window", "drip"),
        Rule("paper.raw.peak", "drip", (_PEAK,)),
        Rule("paper.normalised.window", "drip", (_NORMALISED,)),
        Rule("paper.normalised.peak", "drip", (_NORMALISED, _PEAK)),
    )
}
"""The paper's arms (A1, A5): raw or normalised heatmap, window of III-A or peak of Algorithm 1."""

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

_VARIANTS = (
    Rule("drip.normalised", "drip", (_NORMALISED,)),
    Rule("drip.peak", "drip", (_PEAK,)),
    Rule("drip.contrast", "drip", (("score", "contrast"),)),
)


def rules() -> dict[str, Rule]:
    """Every arm that selects, by name: all selectors, then other readings of the published rule."""
    return {rule.name: rule for rule in (*(Rule(name, name) for name in sorted(available())), *_VARIANTS)}


@dataclass(frozen=True)
class Decided:
    """What a calibrated rule says of a stream.

    Attributes:
        decisions: One per observation, in the order of arrival.
        cost: Microseconds per single decision and peak bytes while deciding.
    """

    decisions: Decisions
    cost: dict[str, float]


def decide(selector: BaseRule, stream: Observations) -> Decided:
    """The decisions on a stream, and what a single decision costs (measured apart, on its first part)."""
    state = selector.state()
    decisions = selector.decide_many(stream)
    probe = [stream[row] for row in range(min(_TIMED_DECISIONS, len(stream)))]
    selector.restore(state)
    start = time.perf_counter()
    for observation in probe:
        selector.decide(observation)
    seconds = (time.perf_counter() - start) / max(1, len(probe))
    tracemalloc.start()
    for observation in probe[:20]:
        selector.decide(observation)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Decided(decisions, {"decide_us": round(1e6 * seconds, 1), "decide_peak_bytes": peak})
