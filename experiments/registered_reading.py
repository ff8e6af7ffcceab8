"""What the registered runs can decide, beside the frozen verdicts: refuted, or only not shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.reading import Evidence, Place
from experiments.registered import plan
from experiments.registered_verdicts import (
    NOT_SHOWN,
    Criterion,
    Found,
    against_all,
    against_random,
    criteria,
    full_place,
    iid_place,
    stream_place,
    values_of,
)
from experiments.statistics import Comparison


def iid_places() -> list[Place]:
    """The head-only cells that were registered."""
    iid = plan()["iid"]
    return [iid_place(dataset, kept) for kept in iid["retentions"] for dataset in iid["datasets"]]


def full_places() -> list[Place]:
    """The cells of full training that were registered."""
    return [full_place(dataset) for dataset in plan()["full"]["datasets"]]


def stream_places(name: str | None = None) -> list[Place]:
    """The streams that were registered, or those of one name."""
    streams = plan()["streams"]
    return [
        stream_place(dataset, each)
        for dataset in streams["datasets"]
        for each in streams["scenarios"]
        if name in (None, each)
    ]


@dataclass(frozen=True)
class Tested:
    """A cell of a criterion that an interval decides.

    Attributes:
        place: Where.
        comparison: The difference.
        bound: What the whole interval must lie above.
    """

    place: Place
    comparison: Comparison
    bound: float

    @property
    def is_refuted(self) -> bool:
        """Whether the whole interval lies below the bound; an interval across it shows nothing."""
        return self.comparison.half is not None and self.comparison.mean + self.comparison.half < self.bound


def cells_behind(evidence: Evidence, arm: str) -> list[tuple[Criterion, list[Tested]]]:
    """Every criterion of a rule with the cells behind it; none where a measured share decides, not a test."""
    iid, streams = plan()["iid"], stream_places()
    worse = float(plan()["tests"]["not_worse"])
    found = against_random(evidence, arm, iid_places())
    gains = {
        place: one
        for place, one in found.items()
        if one.is_material and dict(place.settings)["retention"] in iid["better_at"]
    }
    ends = {
        place: end
        for place in iid_places()
        if dict(place.settings)["retention"] == iid["all_at"]
        and (end := against_all(evidence, arm, place)) is not None
    }
    cells = [
        _against(gains, 0.0),
        _against(found, worse),
        [Tested(place, end, worse) for place, end in ends.items()],
        _full(evidence, arm),
        _against(against_random(evidence, arm, streams), worse),
        _against(against_random(evidence, arm, streams, "worst_class_accuracy"), worse),
        [],
        [],
    ]
    return list(zip(criteria(evidence, arm), cells, strict=True))


def _full(evidence: Evidence, arm: str) -> list[Tested]:
    """Full training; where all data gain, a rule that gains head-only must be above 0, the same sign."""
    reference, at = plan()["rules"]["reference"], plan()["iid"]["all_at"]
    cells = []
    for place, one in against_random(evidence, arm, full_places()).items():
        head = evidence.difference(iid_place(place.dataset, at), arm, reference)
        asks_sign = one.is_material and head is not None and head.mean > 0
        cells.append(Tested(place, one.comparison, 0.0 if asks_sign else float(plan()["tests"]["not_worse"])))
    return cells


def _against(found: dict[Place, Found], bound: float) -> list[Tested]:
    return [Tested(place, one.comparison, bound) for place, one in found.items()]


@dataclass(frozen=True)
class Widths:
    """How wide the intervals of some cells are.

    Attributes:
        cells: How many have an interval.
        wide: Halves, in shares, wider than what "not worse" allows: there even a rule that equals random is
            not shown to be not worse.
    """

    cells: int
    wide: Sequence[float]


def widths(evidence: Evidence, arm: str, places: Sequence[Place], metric: str = "accuracy") -> Widths:
    """Of the differences from random."""
    found = against_random(evidence, arm, places, metric).values()
    halves = [one.comparison.half for one in found if one.comparison.half is not None]
    return Widths(len(halves), [half for half in halves if half > -float(plan()["tests"]["not_worse"])])


def not_shown(evidence: Evidence, arm: str) -> list[Tested]:
    """The head-only cells in which a rule is neither better nor not worse than random."""
    found = against_random(evidence, arm, iid_places())
    return _against(
        {place: one for place, one in found.items() if one.verdict == NOT_SHOWN},
        float(plan()["tests"]["not_worse"]),
    )


def rate_off(evidence: Evidence, arm: str) -> float | None:
    """Largest distance of a rule's rate from its target in any run of any stream; None without runs."""
    held = [values_of(evidence, arm, place, "trailing_off") for place in stream_places()]
    return max((float(values.max()) for values in held if len(values)), default=None)


def holds_rate(evidence: Evidence, arm: str) -> bool:
    """Whether that distance stays within what was registered."""
    off = rate_off(evidence, arm)
    return off is not None and off <= plan()["streams"]["rate_within"]


def junk_shares(evidence: Evidence, arm: str, name: str) -> list[float]:
    """Mean share of junk in what a rule keeps of the streams of one name, by data set."""
    held = [values_of(evidence, arm, place, "junk_kept") for place in stream_places(name)]
    return [float(values.mean()) for values in held if len(values)]
