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
from experiments import situation_report, tabular, tabular_report
from experiments.appendix import WINDOW, Table, retentions, tables
from experiments.claims import Verdict, verdicts
from experiments.figures import figures
from experiments.ledger import Ledger
from experiments.reading import DATASETS, RANDOM, Evidence, Place, Series, paper
from experiments.situation_reading import Study, runs_of, whole_network
from experiments.situation_verdicts import plan
from experiments.statistics import Comparison
from experiments.tables import FIGURES, against, dataset_name, level, percent, signed

PAGE = "explanation/what-we-measured.md"
APPENDIX = "appendix/index.html"
DATA = "appendix/data"
SITUATIONS_TABLE = "templates/situations_table.md"
"""Included in other pages; they are no pages of the site."""
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
    study = Study(runs_of(records))
    drawn, found = figures(evidence), [*tables(evidence), *situation_report.tables(study)]
    whole = situation_report.whole(whole_network(records, plan()["rules"]["candidate"]))
    numbers = {**summary(evidence), "situations": situation_report.summary(study), "whole": whole}
    return {
        PAGE: _fill("what-we-measured.md.j2", numbers),
        SITUATIONS_TABLE: _fill("situations_table.md.j2", numbers),
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
    """The numbers of the pages for readers, but for the study of situations."""
    return {
        "n_runs": f"{sum(len(series.runs) for series in evidence.series.values()):,}",
        "full": [row for dataset in DATASETS if (row := _full(evidence, dataset))],
        "chance": _chance(evidence),
        "claims": _claims(evidence),
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


def _accuracy(series: Series | None) -> str:
    return "" if series is None else level(series.summary("accuracy")[0], float("nan"))


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
