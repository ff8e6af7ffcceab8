"""Every table of the appendix as rows of text: one CSV file each, and all of them on one page.

Shares and levels are in percent, differences in percentage points, intervals as half their width. Words about
the tables are in ``templates/appendix.html.j2``; a new table needs a section there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

from experiments import longer, situation_study
from experiments.claims import verdicts
from experiments.ledger import Record
from experiments.reading import DATASETS, RANDOM, REFERENCES, Evidence, Place, Series, paired, paper
from experiments.recipes import RECIPES
from experiments.running import DEFAULT_SEEDS
from experiments.statistics import Comparison, holm
from experiments.table1 import discard_fraction
from experiments.tables import Grid, against, change, dataset_name, over_setting

WINDOW = "paper.raw.window"
TEST = ("runs", "difference", "± 95 %", "± 95 %, corrected", "p, corrected, Holm", "p, Wilcoxon")
"""What a comparison has in every table."""
VARIATIONS = (
    ("mode", "ranked"),
    ("budget", "steps"),
    ("labels", "predicted"),
    ("calibration", "d1"),
    ("calibration", "d2"),
)
"""Settings of `table1` that are changed one at a time."""
_READINGS = (
    ("A1: normalised heatmap, not raw", ("paper.normalised.window", WINDOW), None),
    ("A5: histogram peak, not window", ("paper.raw.peak", WINDOW), None),
    ("A7: calibrated on data set 1, not D1c", ("drip", "drip"), ("calibration", "d1", "d1c")),
    ("A7: calibrated on data set 2, not D1c", ("drip", "drip"), ("calibration", "d2", "d1c")),
    ("A9: predicted labels, not true", ("drip", "drip"), ("labels", "predicted", "true")),
)
"""Open points of the paper: name, arms of the other reading and of the default, the setting that differs."""
_READ_AT = 0.61
_LEVELS = (
    ("accuracy", "accuracy"),
    ("macro_f1", "macro F1"),
    ("worst_class_accuracy", "worst class"),
    ("ece", "calibration error"),
    ("retention", "kept"),
    ("native_retention", "kept by the rule itself"),
    ("errors_kept", "errors kept"),
    ("bytes_share", "bytes kept"),
)
_COSTS = (("decide_us", "decision, µs", 1), ("decide_peak_bytes", "decision, peak kB", 1000))


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        name: Name of its file.
        columns: Headings.
        rows: One tuple of cells per row.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def csv(self) -> str:
        """The table as CSV."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return file.getvalue()


def tables(evidence: Evidence) -> list[Table]:
    """Every table that has rows.

    Args:
        evidence: The records of all studies but that of reduced tables.
    """
    found = (
        _table("runs", _RUNS, _runs(evidence)),
        _table("claims", _CLAIMS, _claims(evidence)),
        _table("table1", _TABLE1, _table1(evidence)),
        _table("table1-differences", ("training", "data set", "arm", "minus", *TEST), _full(evidence)),
        _table("longer-training", ("data set", "passes", "arm", "minus", *TEST), _longer(evidence)),
        _table("readings", ("training", "other reading", "data set", *TEST), _readings(evidence)),
        _table("rules", ("data set", "asked to keep", "arm", *TEST), _rules(evidence)),
        _table("variations", _VARIED, _variations(evidence)),
        _table("discarded", ("data set", "discarded", "arm", "minus", *TEST), _swept(evidence, "dpw")),
        _table("noise", ("data set", "kind", "spoilt", "arm", "minus", *TEST), _swept(evidence, "noise")),
        _table("levels", _LEVEL_COLUMNS, _levels(evidence)),
    )
    return [table for table in found if table.rows]


def _table(name: str, columns: tuple[str, ...], rows: Iterable[Sequence[str]]) -> Table:
    return Table(name, columns, tuple(map(tuple, rows)))


def number(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of digits; empty where there is none.

    >>> number(-0.0001), number(None), number(1.005, 1)
    ('0.00', '', '1.0')
    """
    if value is None or not isfinite(value):
        return ""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def share(value: float | None, digits: int = 2) -> str:
    """A share in percent, or a difference of shares in points."""
    return number(None if value is None else 100 * value, digits)


def comparison(cell: Comparison | None, holm_p: float | None = None) -> tuple[str, ...]:
    """The columns of :data:`TEST`."""
    if cell is None:
        return ("",) * len(TEST)
    p = (number(holm_p, 4), number(cell.wilcoxon, 4))
    return (str(cell.n), share(cell.mean), share(cell.half), share(cell.corrected_half), *p)


def _of_grid(grid: Grid) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Row, column and test of every cell; Holm's correction runs over all of them."""
    adjusted = holm([cell.strictest_p for cell in grid.cells.values()])
    for ((row, column), cell), p in zip(grid.cells.items(), adjusted, strict=True):
        yield row, column, comparison(cell, p)


_RUNS = (
    *("study", "training", "data set", "runs", "planned", "results", "trained with all", "tested with"),
    *("arms with fewer runs", "commits", "versions"),
)


def _runs(evidence: Evidence) -> Iterator[Sequence[str]]:
    files: dict[tuple[str, str, str], list[Series]] = {}
    for series in evidence.series.values():
        place = series.place
        files.setdefault((place.study, place.regime, place.dataset), []).append(series)
    for (study, regime, dataset), held in files.items():
        runs = [run for series in held for run in series.runs.values()]
        most = max(len(series.runs) for series in held)
        everything = next((series for series in held if series.arm == "all"), held[0])
        planned = DEFAULT_SEEDS.get((study, regime))
        yield (
            *(study, regime, dataset_name(dataset), str(most), "" if planned is None else str(planned)),
            str(len(runs)),
            *(number(everything.summary(name)[0], 0) for name in ("n_train", "n_test")),
            str(sum(len(series.runs) < most for series in held)),
            " ".join(sorted({run.commit for run in runs})),
            "; ".join(sorted({_versions(run) for run in runs})),
        )


def _versions(run: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items()))


_CLAIMS = (
    *("claim", "the paper says", "where", "training", "reading", "verdict", "data set", "on it"),
    *("uncorrected", "published", "difference", "± 95 %, corrected", "at", "largest difference", "± of it"),
    "at it",
)


def _claims(evidence: Evidence) -> Iterator[Sequence[str]]:
    for verdict, others in verdicts(evidence):
        for each in (verdict, *others):
            claim = each.claim
            head = (claim["id"], claim["says"], claim["where"], each.regime, each.arm, each.outcome)
            if not each.findings:
                yield *head, *("",) * (len(_CLAIMS) - len(head))
            for one in each.findings:
                low, high = one.lowest, one.highest if one.at else None
                yield (
                    *head,
                    *(dataset_name(one.dataset), one.outcome, one.uncorrected, share(one.published, 1)),
                    *_pair(low),
                    str(one.at[0]) if one.at else "",
                    *_pair(high),
                    str(one.at[1]) if one.at else "",
                )


def _pair(cell: Comparison | None) -> tuple[str, str]:
    """A difference and half its corrected interval."""
    return ("", "") if cell is None else (share(cell.mean), share(cell.widest))


_TABLE1 = (
    *("data set", "whose", "runs", "baseline", "± sd", "all data", "± sd", "DRIP", "± sd", "random", "± sd"),
    *("savings", "± sd"),
)


def _table1(evidence: Evidence) -> Iterator[Sequence[str]]:
    for dataset in DATASETS:
        stated = paper()["table1"][dataset]
        numbers = [pair for name in ("baseline", "all", "drip", "random", "savings") for pair in stated[name]]
        yield (
            dataset_name(dataset),
            "paper",
            str(paper()["paper"]["runs"]),
            *(share(one, 1) for one in numbers),
        )
        for regime in ("full", "head"):
            held = [
                evidence.get(Place("table1", regime, dataset), arm) for arm in (*REFERENCES, WINDOW, "random")
            ]
            if any(held):
                counts = sorted({len(one.runs) for one in held if one})
                levels = [pair for one in held for pair in _level(one, "accuracy")]
                runs = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
                yield (dataset_name(dataset), regime, runs, *levels, *_level(held[2], "savings"))


def _level(series: Series | None, metric: str) -> tuple[str, str]:
    """Mean and standard deviation in percent."""
    if series is None:
        return "", ""
    mean, sd, _ = series.summary(metric)
    return share(mean), share(sd)


def _full(evidence: Evidence) -> Iterator[Sequence[str]]:
    for regime in ("full", "head"):
        places = {dataset_name(dataset): Place("table1", regime, dataset) for dataset in DATASETS}
        for reference in ("random", *REFERENCES):
            for arm, dataset, cells in _of_grid(against(evidence, places, reference)):
                yield regime, dataset, arm, reference, *cells


def _longer(evidence: Evidence) -> Iterator[Sequence[str]]:
    for dataset in longer.DATASETS:
        lengths = evidence.values_of("epochs", longer.NAME, "full", dataset)
        places = {str(RECIPES[dataset].epochs): Place("table1", "full", dataset)} if lengths else {}
        places |= {f"{length}": Place(longer.NAME, "full", dataset).at(epochs=length) for length in lengths}
        for passes, place in places.items():
            for arm, reference in (("all", "baseline"), (WINDOW, "random"), (WINDOW, "all")):
                cell = evidence.difference(place, arm, reference)
                if cell is not None:
                    yield dataset_name(dataset), passes, arm, reference, *comparison(cell)


def _readings(evidence: Evidence) -> Iterator[Sequence[str]]:
    for regime in ("full", "head"):
        cells = {
            (name, dataset_name(dataset)): cell
            for name, arms, setting in _READINGS
            for dataset in DATASETS
            if (cell := _read_otherwise(evidence, Place("table1", regime, dataset), arms, setting))
        }
        grid = Grid("other reading", tuple(name for name, _, _ in _READINGS), (), cells)
        for name, dataset, values in _of_grid(grid):
            yield regime, name, dataset, *values


def _read_otherwise(
    evidence: Evidence, place: Place, arms: tuple[str, str], setting: tuple[str, str, str] | None
) -> Comparison | None:
    if setting is None:
        here = there = place.at(budget="epochs", dpw=discard_fraction(place.dataset))
    else:
        name, other, usual = setting
        usually = place.at(retention=_READ_AT)
        here, there = usually.at(**{name: other}), usually.at(**{name: usual})
    first, second = evidence.get(here, arms[0]), evidence.get(there, arms[1])
    return None if first is None or second is None else paired(first, second)


def retentions(evidence: Evidence, dataset: str, **settings: str) -> dict[str, Place]:
    """Places of the head regime's `table1` by what the rules are asked to keep, the most first."""
    base = Place("table1", "head", dataset)
    values = evidence.values_of("retention", "table1", "head", dataset)[::-1]
    places = {f"{100 * float(value):g} %": base.at(retention=value, **settings) for value in values}
    return {name: place for name, place in places.items() if evidence.arms(place)}


def _rules(evidence: Evidence) -> Iterator[Sequence[str]]:
    for dataset in DATASETS:
        for arm, kept, cells in _of_grid(against(evidence, retentions(evidence, dataset))):
            yield dataset_name(dataset), kept, arm, *cells


_VARIED = ("changed", "data set", "asked to keep", "arm", "minus", *TEST)


def _variations(evidence: Evidence) -> Iterator[Sequence[str]]:
    """Every arm with one setting changed: minus itself as usual, and minus random with the same change."""
    for setting, value in VARIATIONS:
        for dataset in DATASETS:
            head = (f"{setting}={value}", dataset_name(dataset))
            places = retentions(evidence, dataset, **{setting: value})
            pairs = {name: (place, place.without([setting])) for name, place in places.items()}
            flat = Place("table1", "head", dataset).at(**{setting: value})
            if evidence.arms(flat):
                pairs["none or all"] = (flat, flat.without([setting]))
            for arm, kept, cells in _of_grid(change(evidence, pairs)):
                yield *head, kept, arm, "itself as usual", *cells
            for arm, kept, cells in _of_grid(against(evidence, places)):
                yield *head, kept, arm, "random", *cells


def _swept(evidence: Evidence, study: str) -> Iterator[Sequence[str]]:
    """Differences over the part of the stream that is discarded, or that is spoilt."""
    over = {"dpw": "discard", "noise": "fraction"}[study]
    for dataset in DATASETS:
        kinds = evidence.values_of("kind", study, "head", dataset) if study == "noise" else [None]
        for kind in kinds:
            base = Place(study, "head", dataset)
            base = base if kind is None else base.at(kind=kind)
            head = (dataset_name(dataset),) if kind is None else (dataset_name(dataset), str(kind))
            for reference in ("random", "all"):
                for at, arm, cells in _of_grid(over_setting(evidence, base, over, reference)):
                    yield *head, at, arm, reference, *cells


_LEVEL_COLUMNS = (
    *("study", "training", "data set", "setting", "arm", "runs", "accuracy", "± sd"),
    *(title for _, title in _LEVELS[1:]),
    *(title for _, title, _ in _COSTS),
)


def _levels(evidence: Evidence) -> Iterator[Sequence[str]]:
    """Every arm at every setting: no result is left out of the appendix.

    The arms of the study `situations` have tables of their own.
    """
    for (place, arm), series in evidence.series.items():
        if place.study == situation_study.NAME and arm not in (*REFERENCES, RANDOM):
            continue
        setting = " ".join(f"{name}={value}" for name, value in place.settings)
        yield (
            *(place.study, place.regime, dataset_name(place.dataset), setting, arm, str(len(series.runs))),
            *_level(series, "accuracy"),
            *(share(series.summary(name)[0]) for name, _ in _LEVELS[1:]),
            *(number(series.summary(name)[0] / scale, 1) for name, _, scale in _COSTS),
        )
