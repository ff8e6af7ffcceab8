"""The registered comparison: the verdicts that `registered.toml` gives on the records, with their cells.

The criteria were fixed before the runs. One fails when one of its cells does not show what was asked;
:func:`cells_of` tells a cell that contradicts it from one that is only inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drip.types import FloatArray
from experiments.reading import Evidence, Place
from experiments.registered import NAME, plan
from experiments.statistics import MIN_INTERVAL, Comparison, holm
from experiments.streams import RETENTION
from experiments.table1 import discard_fraction
from experiments.tables import dataset_name, joined, percent

BETTER, NOT_WORSE, INCONCLUSIVE, MISSING = "better", "not worse", "inconclusive", "not run"


@dataclass(frozen=True)
class Found:
    """One rule against random in one cell.

    Attributes:
        comparison: Rule minus random, paired by seed.
        all_data: All data minus random; None where the cell has no such arm.
        p: Two-sided p-value after Holm's correction over the cells of the table; None below five runs.
    """

    comparison: Comparison
    all_data: Comparison | None
    p: float | None

    @property
    def is_material(self) -> bool:
        """Whether all data beat random by enough for a rule to have something to gain."""
        return self.all_data is not None and above(self.all_data, 0) and self.all_data.mean > _material()

    @property
    def verdict(self) -> str:
        """``better``, ``not worse`` or ``inconclusive``."""
        tests = plan()["tests"]
        if (
            self.is_material
            and self.comparison.mean > 0
            and self.p is not None
            and self.p < 1 - tests["level"]
        ):
            return BETTER
        return NOT_WORSE if above(self.comparison, tests["not_worse"]) else INCONCLUSIVE


def iid_place(dataset: str, retention: float) -> Place:
    """Head-only, online, every rule at exactly this keep rate."""
    return Place(NAME, "head", dataset).at(retention=retention)


def full_place(dataset: str) -> Place:
    """Full training at the paper's DPW."""
    return Place("table1", "full", dataset).at(budget="epochs", dpw=discard_fraction(dataset))


def stream_place(dataset: str, scenario: str) -> Place:
    """A stream that is not well mixed."""
    return Place(NAME, "head", dataset).at(scenario=scenario, retention=RETENTION)


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


def against_random(
    evidence: Evidence, arm: str, places: Sequence[Place], metric: str = "accuracy"
) -> dict[Place, Found]:
    """An arm minus random at every place where both were run; Holm's correction runs over them."""
    rules = plan()["rules"]
    cells = {
        place: (cell, evidence.difference(place, rules["all"], rules["reference"], metric))
        for place in places
        if (cell := evidence.difference(place, arm, rules["reference"], metric)) is not None
    }
    adjusted = holm([cell.p for cell, _ in cells.values()])
    return {
        place: Found(cell, all_data, p)
        for (place, (cell, all_data)), p in zip(cells.items(), adjusted, strict=True)
    }


def against_all(evidence: Evidence, arm: str, place: Place) -> Comparison | None:
    """An arm minus all data."""
    return evidence.difference(place, arm, plan()["rules"]["all"])


def values_of(evidence: Evidence, arm: str, place: Place, metric: str) -> FloatArray:
    """A metric of the runs that have it, shape (n,)."""
    series = evidence.get(place, arm)
    values = np.empty(0) if series is None else series.values(metric)
    return values[np.isfinite(values)]


def above(comparison: Comparison, bound: float) -> bool:
    """Whether the whole interval is above a bound; with fewer than five runs it never is."""
    return comparison.half is not None and comparison.mean - comparison.half > bound


@dataclass(frozen=True)
class Criterion:
    """One thing that was registered, and what the records say of it.

    Attributes:
        says: What must hold.
        outcome: ``holds``, ``does not hold``, or ``not run`` while runs are missing.
        held: Cells in which it holds.
        failed: Names of the cells in which it does not.
        missing: Cells without enough runs.
    """

    says: str
    outcome: str
    held: int
    failed: tuple[str, ...]
    missing: int

    @property
    def cells(self) -> int:
        """How many cells decide."""
        return self.held + len(self.failed) + self.missing


def criteria(evidence: Evidence, arm: str) -> list[Criterion]:
    """Everything that was registered, for one rule."""
    return [*_iid(evidence, arm), _full(evidence, arm), *_streams(evidence, arm)]


def recommended(evidence: Evidence) -> str | None:
    """The rule that the registered plan would recommend by the records; None while runs are missing.

    The project does not follow it: see the page that is made from these records.
    """
    rules = plan()["rules"]
    outcomes = [one.outcome for one in criteria(evidence, rules["candidate"])]
    if MISSING in outcomes:
        return None
    return str(rules["candidate"] if set(outcomes) == {"holds"} else rules["fallback"])


@dataclass(frozen=True)
class Tested:
    """A cell of a criterion that an interval decides.

    Attributes:
        place: Where.
        comparison: The difference.
        bound: What the whole interval must be above.
    """

    place: Place
    comparison: Comparison
    bound: float

    @property
    def is_refuted(self) -> bool:
        """Whether the whole interval is below the bound; one that spans it is inconclusive."""
        return self.comparison.half is not None and self.comparison.mean + self.comparison.half < self.bound


def cells_of(evidence: Evidence, arm: str) -> list[tuple[Criterion, list[Tested]]]:
    """Every criterion of a rule with its cells; none where a measured value decides and not a test."""
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
        _tested_full(evidence, arm),
        _against(against_random(evidence, arm, streams), worse),
        _against(against_random(evidence, arm, streams, "worst_class_accuracy"), worse),
        [],
        [],
    ]
    return list(zip(criteria(evidence, arm), cells, strict=True))


def _tested_full(evidence: Evidence, arm: str) -> list[Tested]:
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


def _iid(evidence: Evidence, arm: str) -> list[Criterion]:
    iid = plan()["iid"]
    places = {
        (dataset, retention): iid_place(dataset, retention)
        for retention in iid["retentions"]
        for dataset in iid["datasets"]
    }
    found = against_random(evidence, arm, list(places.values()))
    enough = {key: _enough(found.get(place), iid["runs"]) for key, place in places.items()}
    verdicts = {key: found[place].verdict for key, place in places.items() if enough[key]}
    material = {key for key in verdicts if found[places[key]].is_material}
    gains = [key for key in places if key[1] in iid["better_at"] and (key in material or key not in verdicts)]
    ends = {key: against_all(evidence, arm, places[key]) for key in places if key[1] == iid["all_at"]}
    bound = plan()["tests"]["not_worse"]
    at = joined([f"{percent(retention, 0)} %" for retention in iid["better_at"]])
    return [
        _judged(
            f"better than random where {at} are kept and all data gain more than "
            f"{100 * _material():g} points",
            {key: verdicts[key] == BETTER if key in verdicts else None for key in gains},
        ),
        _judged(
            "not worse than random in any cell",
            {key: verdicts[key] != INCONCLUSIVE if key in verdicts else None for key in places},
        ),
        _judged(
            f"not worse than all data where {percent(iid['all_at'], 0)} % is kept",
            {
                key: above(end, bound) if end is not None and end.n >= iid["runs"] else None
                for key, end in ends.items()
            },
        ),
    ]


def _full(evidence: Evidence, arm: str) -> Criterion:
    full = plan()["full"]
    places = {(dataset,): full_place(dataset) for dataset in full["datasets"]}
    found = against_random(evidence, arm, list(places.values()))
    head = {
        dataset: evidence.difference(
            iid_place(dataset, plan()["iid"]["all_at"]), arm, plan()["rules"]["reference"]
        )
        for dataset in full["datasets"]
    }
    results: dict[tuple[Any, ...], bool | None] = {}
    for key, place in places.items():
        one, frozen = found.get(place), head[key[0]]
        if not _enough(one, full["runs"]) or one is None or frozen is None:
            results[key] = None
        else:
            same_sign = one.comparison.mean * frozen.mean > 0 or not one.is_material
            results[key] = same_sign and one.verdict != INCONCLUSIVE
    return _judged(
        "with full training, the difference has the same sign and is not worse than random", results
    )


def _streams(evidence: Evidence, arm: str) -> list[Criterion]:
    streams = plan()["streams"]
    places = {
        (dataset, name): stream_place(dataset, name)
        for dataset in streams["datasets"]
        for name in streams["scenarios"]
    }

    def not_worse(metric: str) -> dict[tuple[Any, ...], bool | None]:
        found = against_random(evidence, arm, list(places.values()), metric)
        bound = plan()["tests"]["not_worse"]
        return {
            key: above(found[place].comparison, bound) if _enough(found.get(place), streams["runs"]) else None
            for key, place in places.items()
        }

    def at_most(
        metric: str, bound: float, names: Sequence[str], of: Callable[[FloatArray], Any]
    ) -> dict[tuple[Any, ...], bool | None]:
        measured = {
            key: values_of(evidence, arm, place, metric) for key, place in places.items() if key[1] in names
        }
        return {
            key: bool(of(values) <= bound) if len(values) >= streams["runs"] else None
            for key, values in measured.items()
        }

    return [
        _judged("not worse than random in any stream", not_worse("accuracy")),
        _judged(
            "accuracy of the worst class not lower than with random in any stream",
            not_worse("worst_class_accuracy"),
        ),
        _judged(
            f"at most {percent(streams['most_junk'], 0)} % junk among the kept samples if a fifth of the "
            "stream is junk",
            at_most("junk_kept", streams["most_junk"], streams["junk_in"], np.mean),
        ),
        _judged(
            f"keep rate within {100 * streams['rate_within']:g} points of the target over any 1,000 arrivals "
            "after the first 1,000",
            at_most("trailing_off", streams["rate_within"], streams["scenarios"], np.max),
        ),
    ]


def _judged(says: str, results: dict[tuple[Any, ...], bool | None]) -> Criterion:
    """Fails with one cell that fails; unknown while a cell is missing and none fails."""
    failed = tuple(_named(key) for key, result in results.items() if result is False)
    missing = sum(result is None for result in results.values())
    held = sum(result is True for result in results.values())
    outcome = "does not hold" if failed else MISSING if missing else "holds"
    return Criterion(says, outcome, held, failed, missing)


def _named(key: tuple[Any, ...]) -> str:
    first, *rest = key
    return " ".join(
        [dataset_name(first), *(f"{percent(r, 0)} %" if isinstance(r, float) else str(r) for r in rest)]
    )


def _enough(found: Found | None, wanted: int) -> bool:
    return found is not None and found.comparison.n >= max(wanted, MIN_INTERVAL)


def _material() -> float:
    return float(plan()["tests"]["material"])
