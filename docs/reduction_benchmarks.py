"""The part of `benchmarks.md` on data reduction, from the raw timings; `generate.py` puts it there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import isinf
from pathlib import Path
from statistics import median
from textwrap import wrap
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from bench_reduction import AIMS, FRACTIONS, LIMIT_MIB, PUBLISHED_S  # what runs are compared with

_WAYS = {"drip": "drip", "drip, one fit": "drip, one fit for all three", "published": "published procedure"}
_WIDTH = 105
_ALONE = 1.5
"""Load up to which the run of one thread was alone."""

Cases = Mapping[tuple[str, str], Mapping[float, dict[str, Any]]]


def reduction_section(records: list[dict[str, Any]]) -> list[str]:
    """The section's lines.

    Args:
        records: Those of `benchmarks/bench_reduction.py`.
    """
    return [
        "## Data reduction, beside the published procedures",
        "",
        *_beside([record for record in records if record["bench"] == "beside published"]),
        "",
        "### Growth",
        "",
        *_growth([record for record in records if record["bench"] == "growth"]),
    ]


def _beside(records: list[dict[str, Any]]) -> list[str]:
    cases: dict[tuple[str, str], dict[float, dict[str, Any]]] = {}
    for record in records:
        cases.setdefault((record["method"], record["way"]), {})[record["fraction"]] = record
    heads = " | ".join(f"{fraction:g}: s | MiB | \u03b5" for fraction in FRACTIONS)
    lines = [f"| method | way | {heads} | together, s | ratio | aim |", f"|{' --- |' * 14}"]
    for method in dict.fromkeys(method for method, _ in cases):
        base = _together(cases[method, "published"])
        for way, label in _WAYS.items():
            if (method, way) in cases:
                found = cases[method, way]
                cells = [cell for fraction in FRACTIONS for cell in _cells(found.get(fraction))]
                aim = f"{AIMS[method]}" if way == "drip" and method in AIMS else ""
                lines.append(_row([method, label, *cells], _together(found), base, aim))
        cells = [cell for seconds in PUBLISHED_S[method] for cell in (f"{seconds:.3f}", "", "")]
        lines.append(_row([method, "published package", *cells], sum(PUBLISHED_S[method]), base))
    text = (
        "The Dry Bean split of the study, 10,208 rows of 16 features in seven classes, each call in a "
        "process of its own: seconds, growth of the peak resident size, and \u03b5, the largest distance "
        "(L\u221e) of a row to the nearest kept one of its class. *Published procedure* is a plain program "
        "of the published description, with its loops and its faults, in the same run; the ratio is its time "
        "over the three fractions together to that of the row. A fit that orders its rows serves every "
        "smaller fraction. *Published package* was timed once on this split, not in this run. Command: "
        "`python benchmarks/bench_reduction.py`."
    )
    return [*wrap(text, _WIDTH, break_on_hyphens=False), "", *lines, "", *_why(cases)]


def _row(cells: list[str], seconds: float, base_s: float, aim: str = "") -> str:
    return f"| {' | '.join([*cells, f'{seconds:.3f}', f'{base_s / seconds:.1f}', aim])} |"


def _why(cases: Cases) -> list[str]:
    ratios = {
        method: _together(cases[method, "published"]) / _together(cases[method, "drip"])
        for method in ("MMS", "CLC")
    }
    once = _together(cases["MMS", "published"]) / _together(cases["MMS", "drip, one fit"])
    return wrap(
        f"MMS has a ratio of {ratios['MMS']:.1f}, and {once:.1f} where one fit serves all: the procedure "
        "calls gudhi's compiled loop, which gives points alone; ours takes each pick by a few calls of NumPy "
        "and gives row numbers, the radius after each pick, the rows that each stands for, ties by the lower "
        f"row, and either norm. CLC has {ratios['CLC']:.1f}: the procedure starts k-means at random rows "
        "and drops clusters without a row; ours starts by k-means++, which takes most of its time, and gives "
        "as many centroids as were asked for.",
        _WIDTH,
    )


def _together(found: Mapping[float, dict[str, Any]]) -> float:
    return sum(_middle(record, "seconds") for record in found.values())


def _middle(record: dict[str, Any], name: str) -> float:
    return float(median(run[name] for run in record["runs"]))


def _cells(record: dict[str, Any] | None) -> list[str]:
    if record is None:
        return ["", "", ""]
    epsilon = _middle(record, "epsilon") if "epsilon" in record["runs"][0] else None
    shown = "" if epsilon is None else "lost" if isinf(epsilon) else f"{epsilon:.3f}"
    return [f"{_middle(record, 'seconds'):.3f}", f"{_middle(record, 'growth_mib'):.0f}", shown]


def _growth(records: list[dict[str, Any]]) -> list[str]:
    sizes = sorted({record["n"] for record in records})
    found = {(record["method"], record["n"]): record for record in records}
    heads = " | ".join(f"{n:,} rows: s | peak MiB" for n in sizes)
    lines = [f"| method | {heads} |", f"|{' --- |' * (1 + 2 * len(sizes))}"]
    for method in dict.fromkeys(record["method"] for record in records):
        cells = [method]
        for n in sizes:
            record = found[method, n]
            cells += [f"{record['seconds']:.2f}", f"{record['peak_mib']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    text = wrap(
        f"{records[0]['fraction']:.0%} kept of rows drawn from the same table with a little noise; one run "
        "each. The peak is that of the whole process, with the libraries and the table in it; the limit is "
        f"{LIMIT_MIB:,} MiB.{_beside_other_work(records)}",
        _WIDTH,
    )
    return [*text, "", *lines]


def _beside_other_work(records: list[dict[str, Any]]) -> str:
    """Which seconds are too long, as a sentence."""
    busy = [record for record in records if record["load"] > _ALONE]
    if not busy:
        return ""
    named = ", ".join(f"{record['method']} at {record['n']:,} rows" for record in busy)
    return f" Other work ran beside these (load {max(record['load'] for record in busy):.1f}): {named}."
