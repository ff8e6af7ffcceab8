"""The numbers of docs/reduction/measured.md, its figure and its data file; the words are in the template."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from math import inf, isfinite, isinf
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.ledger import Record
from experiments.reading import Evidence
from experiments.statistics import Comparison
from experiments.tables import Grid, percent, signed
from experiments.tabular import DATASETS, LEAST, NAME
from experiments.tabular_figures import figures
from experiments.tabular_reading import (
    ALL,
    EQUAL_STEPS,
    FEWER_STEPS,
    METRIC,
    PROTOCOL,
    RANDOM,
    TO_THE_END,
    Runs,
    Training,
    abbreviation,
    label,
    published,
    share,
    stated_as,
    title,
)
from experiments.tabular_workspace import CONVERGED_STEPS, PROTOCOLS

PAGE = "reduction/measured.md"
DATA = "appendix/data"
FIGURES = "figures"
DATASET = "dry_bean"
"""The table of the page; the other published one is not public."""
IMAGES = Path(__file__).parents[1] / "benchmarks" / "results" / "image_reduction.jsonl"
_METRICS = (
    METRIC, "accuracy", "n_train", "n_lost", "epsilon", "epsilon_l2", "mean_distance", "steps", "reduce_s",
    "fit_s", "joules",
)  # fmt: skip
_HEAD = (
    "method", "abbreviation", "trained", "fraction", "metric", "runs", "mean", "sd", "minus_random",
    "ci95", "ci95_corrected", "p_corrected", "published_mean", "published_sd",
)  # fmt: skip


def render(records: Iterable[Record]) -> dict[str, str]:
    """Page, figure and data file as text, by path below the documentation's folder; nothing without records.

    Raises:
        InputError: runs of one arm have different configurations.
    """
    evidence = Evidence(record for record in records if record.cell.unit.study == NAME)
    held = {name: Runs(evidence, name) for name in DATASETS if evidence.places(NAME, None, name)}
    if DATASET not in held:
        return {}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # noqa: S701  # Markdown, and nothing of it comes from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = {**summary(held[DATASET]), "images": image_summary()}
    page = environment.get_template("measured-reduction.md.j2").render(numbers).rstrip() + "\n"
    return {
        PAGE: page,
        **{f"{FIGURES}/{name}.svg": text for name, text in figures(held[DATASET]).items()},
        **{f"{DATA}/reduction-{name}.csv": data_file(runs) for name, runs in held.items()},
    }


def summary(runs: Runs) -> dict[str, Any]:
    """What the page says about the table."""
    grid = ends(runs)
    methods = [arm for arm in runs.arms if abbreviation(arm)]
    recipe = PROTOCOLS[runs.dataset].recipe
    n_train, n_test = (round(runs.summary(ALL, PROTOCOL, None, name)[0]) for name in ("n_all", "n_test"))
    return {
        "name": title(runs.dataset),
        "figure": f"../{FIGURES}/tabular-{runs.dataset}.svg",
        "data": f"../{DATA}/reduction-{runs.dataset}.csv",
        "n_runs": runs.n_runs,
        "n_train": f"{n_train:,}",
        "n_rows": f"{n_train + n_test:,}",
        "epochs": recipe.epochs,
        "converged_steps": f"{CONVERGED_STEPS:,}",
        "random": RANDOM,
        "kept": share(LEAST),
        "controlled": [share(fraction) for fraction in runs.controlled],
        "trainings": [training.title for training in TO_THE_END],
        "methods": [_method(runs, grid, arm) for arm in methods if arm != RANDOM],
        "random_row": _distances(runs, RANDOM),
        "n_tested": len(grid.cells),
        "n_better": len(grid.significant(1)),
        "n_worse": len(grid.significant(-1)),
        "worse": worse(grid),
        "enough": [_enough(runs, training) for training in TO_THE_END],
        "follows": {name: follows(runs, name) for name in ("epsilon", "mean_distance")},
        "loss": gain(runs.difference((RANDOM, PROTOCOL), (ALL, PROTOCOL), LEAST)),
        "steps": gain(runs.difference((ALL, FEWER_STEPS), (RANDOM, PROTOCOL), LEAST)),
        "lost": {
            arm: f"{count:.1f}"
            for arm in runs.arms
            if (count := runs.summary(arm, PROTOCOL, LEAST, "n_lost")[0]) > 0
        },
        "agreement": agreement(runs),
    }


def ends(runs: Runs) -> Grid:
    """Every method minus random, for every model that is fully trained and every fraction kept."""
    columns = {
        f"{training.title}, {share(p)}": (training, p) for training in TO_THE_END for p in runs.controlled
    }
    return runs.against(RANDOM, columns)


def gain(comparison: Comparison | None) -> str:
    """A mean difference in points with its confidence interval, such as +1.2 ± 0.5.

    >>> gain(Comparison(20, 0.0123, 0.01, 0.002, 0.005))
    '+1.2 ± 0.5'
    """
    if comparison is None:
        return ""
    half = comparison.widest
    return signed(comparison.mean, 1) + ("" if half is None else f" ± {percent(half)}")


def worse(grid: Grid) -> dict[str, int]:
    """In how many cells each arm is worse than random beyond chance, most first."""
    rows = [row for row, _ in grid.significant(-1)]
    return {row: rows.count(row) for row in sorted(set(rows), key=lambda row: (-rows.count(row), row))}


def _method(runs: Runs, grid: Grid, arm: str) -> dict[str, Any]:
    """A row of the table: differences from random with a mark, distances and seconds."""
    cells = []
    for training in TO_THE_END:
        key = label(arm), f"{training.title}, {share(LEAST)}"
        mark = "*" if grid.marks.get(key) == "*" else ""
        cells.append(gain(grid.cells.get(key)) + mark)
    return {"name": label(arm), "gains": cells, **_distances(runs, arm)}


def _distances(runs: Runs, arm: str) -> dict[str, str]:
    names = ("epsilon", "mean_distance", "reduce_s")
    epsilon, mean, seconds = (runs.summary(arm, PROTOCOL, LEAST, name)[0] for name in names)
    return {"epsilon": _distance(epsilon), "mean": _distance(mean), "seconds": f"{seconds:.2f}"}


def _distance(value: float) -> str:
    return f"{value:.3f}" if isfinite(value) else "∞"


def _enough(runs: Runs, training: Training) -> dict[str, Any]:
    """Macro F1 with all rows, and what random rows lose, by fraction."""
    losses = [runs.difference((RANDOM, training), (ALL, training), fraction) for fraction in runs.controlled]
    return {
        "name": training.title,
        "all": percent(runs.summary(ALL, training, None, METRIC)[0]),
        "losses": [gain(loss) for loss in losses],
    }


def follows(runs: Runs, distance: str) -> dict[str, Any]:
    """Rank correlations of a distance with the F1 of fully trained models."""
    found = [
        each
        for training in TO_THE_END
        for fraction in runs.controlled
        if (each := runs.follows_epsilon(training, fraction, distance)) is not None
    ]
    means = sorted(each.mean for each in found)
    below = sum(each.half is not None and each.mean + each.half < 0 for each in found)
    return {
        "lowest": signed(means[0] / 100) if means else "",
        "highest": signed(means[-1] / 100) if means else "",
        "below": below,
        "n": len(found),
    }


def agreement(runs: Runs) -> dict[str, int]:
    """How many of our means are within two published standard deviations of the published mean."""
    stated = published(runs.dataset)
    inside = total = 0
    for arm in runs.arms:
        theirs = stated[METRIC].get(stated_as(arm), [])
        for fraction, (mean, sd) in zip(stated["fractions"], theirs, strict=False):
            ours = runs.summary(arm, PROTOCOL, fraction, METRIC)[0]
            if isfinite(ours):
                total += 1
                inside += abs(ours - mean) <= 2 * sd
    return {"inside": inside, "total": total}


def data_file(runs: Runs) -> str:
    """Every metric of every method, model and fraction as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEAD)
    writer.writerows(_data(runs))
    return text.getvalue()


def _data(runs: Runs) -> Iterator[list[str]]:
    stated = published(runs.dataset)
    for training in (PROTOCOL, EQUAL_STEPS, FEWER_STEPS, *TO_THE_END):
        for fraction in (None, *runs.fractions):
            for arm in (ALL, *runs.arms):
                free = arm == ALL and training is not FEWER_STEPS
                series = None if free != (fraction is None) else runs.series(arm, training, fraction)
                if series is None:
                    continue
                theirs_by = stated.get(METRIC, {}).get(stated_as(arm), ())
                told = dict(zip(stated.get("fractions", ()), theirs_by, strict=False))
                for metric in _METRICS:
                    values = series.values(metric)
                    mean, sd, n = series.summary(metric)
                    if len(values) and all(map(isinf, values)):
                        mean, sd, n = inf, inf, len(values)
                    if not n:
                        continue
                    compared = (
                        runs.difference((arm, training), (RANDOM, training), fraction)
                        if metric == METRIC and fraction is not None
                        else None
                    )
                    theirs = told.get(fraction, ()) if metric == METRIC and training is PROTOCOL else ()
                    yield [
                        arm, abbreviation(arm), training.title, _number(fraction), metric, str(n),
                        _number(mean), _number(sd), *_compared(compared), *map(_number, theirs or (None, None)),
                    ]  # fmt: skip


def _compared(found: Comparison | None) -> list[str]:
    if found is None:
        return [""] * 4
    return [_number(each) for each in (found.mean, found.half, found.corrected_half, found.corrected_p)]


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.6g}"  # noqa: PLR0124  # NaN


def image_summary() -> dict[str, Any]:
    """Distances and covered classes of reduced image sets, medians over seeds."""
    records = [json.loads(line) for line in IMAGES.read_text().splitlines()]
    fraction = min(record["fraction"] for record in records)
    found: dict[tuple[str, str, bool], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if record["fraction"] == fraction:
            found[record["method"], record["stratify"], record["cover"]].append(record)
    rows = [
        {
            "name": _image_method(method, stratify, f"{_median(each, 'n_kept'):.0f}" if cover else ""),
            "mean": _far(_median(each, "mean_euclidean")),
            "classes": f"{_median(each, 'n_classes_kept'):g}",
        }
        for (method, stratify, cover), each in found.items()
    ]
    return {
        "n": records[0]["n"],
        "n_classes": records[0]["n_classes"],
        "kept": share(fraction),
        "seeds": len({record["seed"] for record in records}),
        "rows": rows,
    }


def _image_method(method: str, stratify: str, covering: str) -> str:
    if covering:
        return f"{method}, `--cover` ({covering} images)"
    return f"{method}, one cut" if stratify == "global" else method


def _median(records: list[Mapping[str, Any]], name: str) -> float:
    return float(median(inf if record[name] is None else record[name] for record in records))


def _far(value: float) -> str:
    return "∞" if isinf(value) else f"{value:.1f}"
