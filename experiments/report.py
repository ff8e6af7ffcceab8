"""The pages that are made from the result files alone; the same files give the same bytes.

The words are in ``templates/``; here are the numbers that they ask for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from drip.files import write_atomically
from experiments import tabular, tabular_report
from experiments.appendix import WINDOW, Table, retentions, tables
from experiments.claims import Verdict, verdicts
from experiments.figures import figures
from experiments.ledger import Ledger
from experiments.reading import DATASETS, RANDOM, REFERENCES, Evidence, Place, Series, paper
from experiments.registered import plan
from experiments.registered_verdicts import (
    BETTER,
    Criterion,
    against_random,
    cells_of,
    iid_place,
    iid_places,
)
from experiments.statistics import Comparison
from experiments.tables import FIGURES, against, dataset_name, level, percent, signed

PAGE = "explanation/what-we-measured.md"
APPENDIX = "appendix/index.html"
DATA = "appendix/data"
README_TABLE = "templates/readme_table.md"
"""Included in the README; it is no page of the site."""
KEPT = 0.3
"""Part of the stream that is kept in the tables for readers; the appendix has the other counts."""
_RULES = ("drip", "margin", "adaptive-margin", "adaptive-random")
_TEMPLATES = Path(__file__).parent / "templates"


def write(results: Path, docs: Path) -> list[Path]:
    """Write pages, tables and figures, and remove those that the records no longer give.

    Args:
        results: Folder of the result files.
        docs: Folder of the documentation.

    Returns:
        What was written.
    """
    rendered = render(results)
    for folder, ending in ((FIGURES, "svg"), (DATA, "csv")):
        for old in (docs / folder).glob(f"*.{ending}"):
            if f"{folder}/{old.name}" not in rendered:
                old.unlink()
    for name, text in rendered.items():
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(docs / name, text.encode())
    return [docs / name for name in rendered]


def render(results: Path) -> dict[str, str]:
    """Pages, tables and figures as text, by path below the documentation's folder.

    Raises:
        InputError: a line is no record, or runs of one arm have different configurations.
    """
    records = list(Ledger(results).records())
    evidence = Evidence(record for record in records if record.cell.unit.study != tabular.NAME)
    drawn, found = figures(evidence), tables(evidence)
    numbers = summary(evidence)
    return {
        PAGE: _fill("what-we-measured.md.j2", numbers),
        README_TABLE: _fill("readme_table.md.j2", numbers),
        APPENDIX: _fill("appendix.html.j2", {**numbers, "tables": _by_name(found), "figures": sorted(drawn)}),
        **{f"{DATA}/{table.name}.csv": table.csv() for table in found},
        **{f"{FIGURES}/{name}.svg": text for name, text in drawn.items()},
        **tabular_report.render(records),
    }


def _by_name(found: list[Table]) -> dict[str, Table]:
    return {table.name: table for table in found}


def _fill(template: str, numbers: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    return environment.get_template(template).render(numbers).rstrip() + "\n"


def _code(text: object) -> Markup:
    """Text with what is between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  # escaped


def summary(evidence: Evidence) -> dict[str, Any]:
    """The numbers of the two pages for readers."""
    return {
        "n_runs": f"{sum(len(series.runs) for series in evidence.series.values()):,}",
        "kept": percent(KEPT, 0),
        "full": [row for dataset in DATASETS if (row := _full(evidence, dataset))],
        "head": [row for dataset in DATASETS if (row := _head(evidence, dataset))],
        "rules": _RULES,
        "chance": _chance(evidence),
        "claims": _claims(evidence),
        "registered": _registered(evidence),
        "candidate": plan()["rules"]["candidate"],
        "fallback": plan()["rules"]["fallback"],
        "paper": paper(),
    }


def _full(evidence: Evidence, dataset: str) -> dict[str, str] | None:
    """The paper's comparison with full training on one data set."""
    place = Place("table1", "full", dataset)
    arms = {"none": "baseline", "all": "all", "random": RANDOM, "drip": WINDOW, "margin": "margin"}
    held = {name: series for name, arm in arms.items() if (series := evidence.get(place, arm))}
    if len(held) < len(arms):
        return None
    return {
        "name": dataset_name(dataset),
        "runs": str(max(len(series.runs) for series in held.values())),
        **{name: _accuracy(series) for name, series in held.items()},
        **{
            f"{name}_gain": gain(evidence.difference(place, arms[name], RANDOM), 2)
            for name in ("drip", "margin")
        },
    }


def _head(evidence: Evidence, dataset: str) -> dict[str, Any] | None:
    """The registered rules on one data set, each at exactly the same count."""
    place = iid_place(dataset, KEPT)
    held = {arm: evidence.get(place, arm) for arm in (*REFERENCES, RANDOM, *_RULES)}
    if not all(held.values()):
        return None
    return {
        "name": dataset_name(dataset),
        "none": _accuracy(held["baseline"]),
        "random": _accuracy(held[RANDOM]),
        "all": _accuracy(held["all"]),
        "gains": [gain(evidence.difference(place, arm, RANDOM)) for arm in (*_RULES, "all")],
        "best": max(_mean(evidence, place, arm) for arm in _RULES),
        "most": _mean(evidence, place, "all"),
    }


def _accuracy(series: Series | None) -> str:
    return "" if series is None else level(series.summary("accuracy")[0], float("nan"))


def _mean(evidence: Evidence, place: Place, arm: str) -> float:
    """Points over random."""
    found = evidence.difference(place, arm, RANDOM)
    return 0.0 if found is None else 100 * found.mean


def gain(cell: Comparison | None, digits: int = 1) -> str:
    """A difference in points with half its corrected interval.

    >>> gain(Comparison(20, 0.0123, 0.01, 0.002, 0.005))
    '+1.2 ± 0.5'
    """
    if cell is None or cell.widest is None:
        return ""
    return f"{signed(cell.mean, digits)} ± {percent(cell.widest, digits)}"


def _chance(evidence: Evidence) -> dict[str, int]:
    """How many differences from random, of all rules at all counts, are beyond chance."""
    grids = [against(evidence, retentions(evidence, dataset)) for dataset in DATASETS]
    tested = [key for grid in grids for key, cell in grid.cells.items() if cell.half is not None]
    return {
        "comparisons": len(tested),
        "rules": len({arm for arm, _ in tested}),
        "above": sum(len(grid.significant(1)) for grid in grids),
        "below": sum(len(grid.significant(-1)) for grid in grids),
    }


@dataclass(frozen=True)
class Judged:
    """A claim of the paper with one verdict.

    Attributes:
        says: The claim.
        outcome: Of full training where it was run, otherwise head-only.
        holds: Names of the data sets on which it holds, where they differ.
        fails: Those on which it does not hold.
    """

    says: str
    outcome: str
    holds: tuple[str, ...]
    fails: tuple[str, ...]


def _claims(evidence: Evidence) -> list[Judged]:
    main: dict[str, Verdict] = {}
    for verdict, _ in verdicts(evidence):
        main.setdefault(verdict.claim["id"], verdict)
    return [
        Judged(
            one.claim["says"],
            one.outcome,
            tuple(map(dataset_name, one.datasets("holds"))),
            tuple(map(dataset_name, one.datasets("does not hold"))),
        )
        for one in main.values()
    ]


def _registered(evidence: Evidence) -> dict[str, Any]:
    """The criteria of the candidate, and what holds of the fallback."""
    rules = plan()["rules"]
    judged: list[tuple[Criterion, int]] = [
        (one, sum(cell.is_refuted for cell in cells)) for one, cells in cells_of(evidence, rules["candidate"])
    ]
    fallback = [one for one, _ in cells_of(evidence, rules["fallback"])]
    wins = {
        rule: sum(one.verdict == BETTER for one in against_random(evidence, rule, iid_places()).values())
        for rule in (rules["candidate"], rules["fallback"])
    }
    return {
        "criteria": [
            {
                "says": one.says,
                "outcome": one.outcome,
                "held": one.held,
                "cells": one.cells,
                # A cell that does not show what was asked fails the criterion, but need not contradict it.
                "contradicted": contradicted,
            }
            for one, contradicted in judged
        ],
        "held": sum(one.outcome == "holds" for one, _ in judged),
        "fallback_held": sum(one.outcome == "holds" for one in fallback),
        "wins": wins,
        "cells": len(iid_places()),
    }
