"""From result lines to runs that can be compared: grouped by arm and setting, paired by seed."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from drip.errors import InputError
from drip.types import FloatArray
from experiments.cells import Scalar
from experiments.ledger import Record
from experiments.statistics import Comparison, compare

PAPER = Path(__file__).with_name("paper.toml")
DATASETS = ("mnist", "cifar10", "tomato", "speech_commands")
DEFAULTS: Mapping[str, Scalar] = {
    "budget": "epochs",
    "mode": "online",
    "labels": "true",
    "calibration": "d1c",
}
REFERENCES = ("baseline", "all")
RANDOM = "random"

Settings = tuple[tuple[str, Scalar], ...]


@cache
def paper() -> dict[str, Any]:
    """The published numbers and claims of ``paper.toml``."""
    with PAPER.open("rb") as file:
        return tomllib.load(file)


def canonical(dataset: str, settings: Mapping[str, Scalar]) -> Settings:
    """Settings without those at their default, sorted; the paper's own DPW is the default of ``dpw``.

    >>> canonical("mnist", {"retention": 0.3, "budget": "epochs", "mode": "ranked"})
    (('mode', 'ranked'), ('retention', 0.3))
    """
    usual = {**DEFAULTS, "dpw": paper()["dpw"].get(dataset)}
    return tuple(sorted((name, value) for name, value in settings.items() if usual.get(name) != value))


@dataclass(frozen=True)
class Place:
    """Where arms are compared: study, regime and data set at settings that are not the default."""

    study: str
    regime: str
    dataset: str
    settings: Settings = ()

    @property
    def file(self) -> str:
        """Name of the result file without its ending."""
        return f"{self.study}-{self.regime}-{self.dataset}"

    def at(self, **settings: Scalar) -> Place:
        """The place with these settings beside its own."""
        merged = {**dict(self.settings), **settings}
        return Place(self.study, self.regime, self.dataset, canonical(self.dataset, merged))

    def without(self, names: Iterable[str]) -> Place:
        """The place without the named settings."""
        left = tuple(pair for pair in self.settings if pair[0] not in set(names))
        return Place(self.study, self.regime, self.dataset, left)


@dataclass(frozen=True)
class Series:
    """All runs of one arm at one place.

    Attributes:
        place: Where.
        arm: Which arm.
        runs: Record by seed, ascending.
    """

    place: Place
    arm: str
    runs: Mapping[int, Record]

    def values(self, metric: str, seeds: Iterable[int] | None = None) -> FloatArray:
        """One number per run; NaN where a run has no such metric."""
        chosen = self.runs if seeds is None else seeds
        return np.array([number(self.runs[seed], metric) for seed in chosen], np.float64)

    def has(self, metric: str) -> bool:
        """Whether every run has the metric."""
        return bool(np.isfinite(self.values(metric)).all())

    def summary(self, metric: str) -> tuple[float, float, int]:
        """Mean, standard deviation and number of the runs that have the metric."""
        values = self.values(metric)
        values = values[np.isfinite(values)]
        if not values.size:
            return float("nan"), float("nan"), 0
        return (
            float(values.mean()),
            float(values.std(ddof=1)) if values.size > 1 else float("nan"),
            values.size,
        )


@dataclass
class Evidence:
    """Every record of a results folder.

    Args:
        records: Lines of the result files.

    Raises:
        InputError: the runs of one arm at one place have different configurations, or two lines are
            the same run.
    """

    records: Iterable[Record]
    series: dict[tuple[Place, str], Series] = field(init=False)

    def __post_init__(self) -> None:
        """Group, and refuse what must not be averaged."""
        runs: dict[tuple[Place, str], dict[int, Record]] = {}
        for record in self.records:
            unit = record.cell.unit
            settings = canonical(unit.dataset, dict(record.cell.settings))
            group = runs.setdefault(
                (Place(unit.study, unit.regime, unit.dataset, settings), record.cell.arm), {}
            )
            if unit.seed in group:
                known = group[unit.seed].cell.id
                raise InputError(
                    f"two lines for one run: {known!r} and {record.cell.id!r}; remove one of them"
                )
            group[unit.seed] = record
        for group in runs.values():
            _same_configuration(group)
        self.records = ()
        self.series = {
            key: Series(*key, dict(sorted(group.items()))) for key, group in sorted(runs.items(), key=_order)
        }

    def get(self, place: Place, arm: str) -> Series | None:
        """The runs of an arm; a control that does not depend on a setting is found where it was run."""
        free: tuple[str, ...] = ()
        if arm == RANDOM:
            free = ("calibration", "mode")
        elif arm in REFERENCES:
            free = ("calibration", "discard", "mode", "retention") + (
                ("labels",) if arm == "baseline" else ()
            )
        present = [name for name, _ in place.settings if name in free]
        for size in range(len(present) + 1):
            for names in combinations(present, size):
                found = self.series.get((place.without(names), arm))
                if found is not None:
                    return found
        return None

    def arms(self, place: Place) -> list[str]:
        """Arms that were run at exactly this place, by name."""
        return sorted(self._arms.get(place, ()))

    def selecting(self, place: Place) -> list[str]:
        """Arms at this place that choose among samples: the paper's first, then the others by name."""
        arms = [arm for arm in self.arms(place) if arm not in REFERENCES]
        return sorted(arms, key=lambda arm: (not arm.startswith("paper."), _PAPER_ORDER.get(arm, 0), arm))

    def places(
        self, study: str | None = None, regime: str | None = None, dataset: str | None = None
    ) -> list[Place]:
        """Places with records, in order."""
        wanted = (study, regime, dataset)
        return sorted(
            {
                at
                for at, _ in self.series
                if all(
                    w in (None, got) for w, got in zip(wanted, (at.study, at.regime, at.dataset), strict=True)
                )
            },
            key=_place_order,
        )

    def values_of(self, setting: str, study: str, regime: str, dataset: str) -> list[Scalar]:
        """Values of a setting in the records."""
        found = {
            dict(at.settings)[setting]
            for at in self.places(study, regime, dataset)
            if setting in dict(at.settings)
        }
        return sorted(found, key=lambda value: (isinstance(value, str), value))

    def difference(self, place: Place, a: str, b: str, metric: str = "accuracy") -> Comparison | None:
        """Mean of a - b over the seeds that both have; None without such a seed."""
        first, second = self.get(place, a), self.get(place, b)
        if first is None or second is None or a == b:
            return None
        return paired(first, second, metric)

    @cached_property
    def _arms(self) -> dict[Place, list[str]]:
        found: dict[Place, list[str]] = {}
        for place, arm in self.series:
            found.setdefault(place, []).append(arm)
        return found

    @cached_property
    def commits(self) -> dict[str, list[str]]:
        """Commits by result file."""
        found: dict[str, set[str]] = {}
        for series in self.series.values():
            found.setdefault(series.place.file, set()).update(run.commit for run in series.runs.values())
        return {name: sorted(commits) for name, commits in sorted(found.items())}

    def gaps(self, planned: Mapping[str, int]) -> dict[str, dict[tuple[int, ...], list[Series]]]:
        """By result file: which of the seeds 0 to n - 1 are missing, and the series that lack them.

        Args:
            planned: n by result file; where the file has a higher seed, that counts.
        """
        last = {name: count - 1 for name, count in planned.items()}
        for series in self.series.values():
            name = series.place.file
            last[name] = max(last.get(name, 0), *series.runs)
        found: dict[str, dict[tuple[int, ...], list[Series]]] = {}
        for series in self.series.values():
            name = series.place.file
            missing = tuple(seed for seed in range(last[name] + 1) if seed not in series.runs)
            if missing:
                found.setdefault(name, {}).setdefault(missing, []).append(series)
        return found


def paired(a: Series, b: Series, metric: str = "accuracy") -> Comparison | None:
    """Mean of a - b over the seeds in which both have the metric; None without one."""
    seeds = sorted(set(a.runs) & set(b.runs))
    differences = a.values(metric, seeds) - b.values(metric, seeds)
    held = np.isfinite(differences)
    if not held.any():
        return None
    kept = [seed for seed, ok in zip(seeds, held, strict=True) if ok]
    return compare(differences[held], size_ratio((a, b), kept))


def size_ratio(series: Iterable[Series], seeds: Iterable[int]) -> float | None:
    """n_test / n_train of the runs, by the smaller training set of a pair; None where a record lacks them."""
    chosen, ratios = list(seeds), []
    for one in series:
        with np.errstate(divide="ignore"):
            ratios.append(float((one.values("n_test", chosen) / one.values("n_train", chosen)).mean()))
    return max(ratios) if ratios and np.isfinite(ratios).all() else None


def number(record: Record, name: str) -> float:
    """A metric, or one of ``_DERIVED``; NaN where the record has none."""
    if name in _DERIVED:
        return _DERIVED[name](record)
    value = record.metrics.get(name, record.extra.get(name))
    return float(value) if isinstance(value, int | float) else float("nan")


_DERIVED: Mapping[str, Callable[[Record], float]] = {
    "savings": lambda record: 1.0 - number(record, "native_retention"),
    "bytes_share": lambda record: number(record, "bytes_kept") / number(record, "bytes_stream"),
}
"""The part of the stream that the rule itself discards; the part of its bytes that is kept."""

_PAPER_ORDER = {
    arm: rank
    for rank, arm in enumerate(
        ("paper.raw.window", "paper.raw.peak", "paper.normalised.window", "paper.normalised.peak")
    )
}


def _same_configuration(runs: Mapping[int, Record]) -> None:
    by_hash: dict[str, list[Record]] = {}
    for record in runs.values():
        by_hash.setdefault(record.config_hash, []).append(record)
    if len(by_hash) > 1:
        named = "; ".join(
            f"{digest}: {', '.join(run.cell.id for run in group)}" for digest, group in by_hash.items()
        )
        raise InputError(
            f"the runs of one arm have {len(by_hash)} configurations ({named}); run the older ones again, or "
            "remove their lines"
        )


def _place_order(place: Place) -> tuple[Any, ...]:
    dataset = DATASETS.index(place.dataset) if place.dataset in DATASETS else len(DATASETS)
    settings = tuple((name, isinstance(value, str), value) for name, value in place.settings)
    return place.study, place.regime, dataset, place.dataset, settings


def _order(item: tuple[tuple[Place, str], Any]) -> tuple[Any, ...]:
    (place, arm), _ = item
    return *_place_order(place), arm
