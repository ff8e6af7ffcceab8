"""Every table of the appendix as rows of text: one CSV file each, and all of them on one page.

Shares and levels are in percent, differences in percentage points, intervals as half their width. Words about
the tables are in ``templates/appendix.html.j2``; a new table needs a section there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from experiments import limits, longer
from experiments.claims import verdicts
from experiments.ledger import Record
from experiments.reading import DATASETS, REFERENCES, Evidence, Place, Series, paired, paper
from experiments.recipes import RECIPES
from experiments.registered import plan
from experiments.registered_verdicts import (
    Found,
    against_all,
    against_random,
    cells_of,
    full_places,
    iid_place,
    iid_places,
    stream_places,
    values_of,
)
from experiments.running import DEFAULT_SEEDS
from experiments.statistics import Comparison, holm
from experiments.streams import RETENTION
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
    ("junk_kept", "junk kept"),
    ("unique_kept", "different"),
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
        _table("streams", ("data set", "stream", "arm", *TEST), _streams(evidence)),
        _table("registered-criteria", _CRITERIA, _criteria(evidence)),
        _table("registered-cells", _CELLS, _cells(evidence)),
        _table("registered-streams", _REGISTERED_STREAMS, _registered_streams(evidence)),
        _table("labels-known", ("data set", "kept", "minus", *TEST), _labels_known(evidence)),
        _table("unknown-classes", _UNKNOWN, _unknown(evidence)),
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


def _streams(evidence: Evidence) -> Iterator[Sequence[str]]:
    for dataset in DATASETS:
        places = {
            str(dict(place.settings)["scenario"]): place
            for place in evidence.places("streams", "head", dataset)
            if evidence.selecting(place)
        }
        for arm, name, cells in _of_grid(against(evidence, places)):
            yield dataset_name(dataset), name, arm, *cells


_CRITERIA = ("rule", "what was registered", "outcome", "cells", "it holds in", "contradicted in", "fails in")


def _criteria(evidence: Evidence) -> Iterator[Sequence[str]]:
    for rule in (plan()["rules"][name] for name in ("candidate", "fallback")):
        for one, cells in cells_of(evidence, rule):
            counts = (str(one.cells), str(one.held), str(sum(cell.is_refuted for cell in cells)))
            yield rule, one.says, one.outcome, *counts, "; ".join(one.failed)


_CELLS = (
    *("rule", "cell", "data set", "kept", *TEST[:4], "verdict", "all data minus random", "± 95 %"),
    *("minus all data", "± 95 %"),
)


def _cells(evidence: Evidence) -> Iterator[Sequence[str]]:
    for kind, places in (("head", iid_places()), ("full", full_places()), ("stream", stream_places())):
        arms = {arm for place in places for arm in evidence.selecting(place)} - {plan()["rules"]["reference"]}
        for arm in sorted(arms):
            for place, found in against_random(evidence, arm, places).items():
                yield arm, kind, *_cell(evidence, arm, place, found)


def _cell(evidence: Evidence, arm: str, place: Place, found: Found) -> tuple[str, ...]:
    settings = dict(place.settings)
    kept = settings.get("scenario") or share(float(settings.get("retention", "nan")), 0) or "as DRIP"
    pair = [
        cells
        for one in (found.all_data, against_all(evidence, arm, place))
        for cells in (("", "") if one is None else (share(one.mean), share(one.half)))
    ]
    return (dataset_name(place.dataset), str(kept), *comparison(found.comparison)[:4], found.verdict, *pair)


_REGISTERED_STREAMS = (
    *("data set", "stream", "rule", "runs", "worst class minus random", "± 95 %", "kept by the rule itself"),
    *("junk kept", "different", "rate off, largest"),
)


def _registered_streams(evidence: Evidence) -> Iterator[Sequence[str]]:
    reference = plan()["rules"]["reference"]
    for place in stream_places():
        for arm in evidence.selecting(place):
            held = evidence.series[place, arm]
            worst = evidence.difference(place, arm, reference, "worst_class_accuracy")
            means = [
                float(values.mean()) if len(values := values_of(evidence, arm, place, metric)) else None
                for metric in ("native_retention", "junk_kept", "unique_kept")
            ]
            off = values_of(evidence, arm, place, "trailing_off")
            yield (
                *(dataset_name(place.dataset), str(dict(place.settings)["scenario"]), arm),
                str(len(held.runs)),
                *(("", "") if worst is None else (share(worst.mean), share(worst.half))),
                *map(share, means),
                share(float(off.max())) if len(off) else "",
            )


def _labels_known(evidence: Evidence) -> Iterator[Sequence[str]]:
    rules = plan()["rules"]
    for kept in plan()["iid"]["retentions"]:
        for dataset in plan()["iid"]["datasets"]:
            place = iid_place(dataset, kept)
            yardstick = evidence.get(Place(limits.NAME, "head", dataset).at(retention=kept), limits.YARDSTICK)
            for reference in (rules["reference"], rules["all"], rules["candidate"]):
                other = evidence.get(place, reference)
                if yardstick is not None and other is not None:
                    cell = paired(yardstick, other)
                    yield dataset_name(dataset), share(kept, 0), reference, *comparison(cell)


_UNKNOWN = ("data set", "most known by", "AUROC", "junk kept", *TEST)


def _unknown(evidence: Evidence) -> Iterator[Sequence[str]]:
    for dataset in plan()["streams"]["datasets"]:
        place = Place(limits.NAME, "head", dataset).at(scenario=limits.SCENARIO, retention=RETENTION)
        for measure in limits.MEASURES:
            series = evidence.get(place, f"known-by-{measure}")
            if series is not None:
                found = (share(series.summary(name)[0]) for name in ("auroc", "junk_kept"))
                cell = evidence.difference(place, series.arm, limits.REFERENCE)
                yield dataset_name(dataset), measure, *found, *comparison(cell)


_LEVEL_COLUMNS = (
    *("study", "training", "data set", "setting", "arm", "runs", "accuracy", "± sd"),
    *(title for _, title in _LEVELS[1:]),
    *(title for _, title, _ in _COSTS),
    *("kept by tenth of the stream", "accuracy by part of the test"),
)


def _levels(evidence: Evidence) -> Iterator[Sequence[str]]:
    """Every arm at every setting: no result is left out of the appendix."""
    for (place, arm), series in evidence.series.items():
        setting = " ".join(f"{name}={value}" for name, value in place.settings)
        yield (
            *(place.study, place.regime, dataset_name(place.dataset), setting, arm, str(len(series.runs))),
            *_level(series, "accuracy"),
            *(share(series.summary(name)[0]) for name, _ in _LEVELS[1:]),
            *(number(series.summary(name)[0] / scale, 1) for name, _, scale in _COSTS),
            _tenths(series),
            _parts(series),
        )


def _tenths(series: Series) -> str:
    """Mean kept part of each tenth of a stream, in whole percent."""
    name = "retention_by_tenth"
    held = [run.extra[name] for run in series.runs.values() if name in run.extra]
    return " ".join(f"{100 * part:.0f}" for part in np.mean(held, axis=0)) if held else ""


def _parts(series: Series) -> str:
    parts: Mapping[str, float] = next(iter(series.runs.values())).extra.get("accuracy_by_part", {})
    if len(parts) < 2:
        return ""
    return " ".join(f"{name} {share(series.summary(f'part:{name}')[0], 1)}" for name in parts)
