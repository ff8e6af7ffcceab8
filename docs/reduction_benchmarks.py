"""The tables and single numbers on data reduction in `reference/benchmarks.md`; the words are in its template."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import isinf
from pathlib import Path
from statistics import median
from typing import Any

import benchmark_tables

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from bench_reduction import AIMS, FRACTIONS, LIMIT_MIB, PUBLISHED_S  # what runs are compared with

_WAYS = {"drip": "drip", "drip, one fit": "drip, one fit for all three", "published": "published procedure"}
_ALONE = 1.5
"""Load up to which a run of one thread was alone on the machine."""

Cases = Mapping[tuple[str, str], Mapping[float, dict[str, Any]]]


def memory_limit_mib() -> str:
    """The memory limit of the growth runs."""
    return f"{LIMIT_MIB:,}"


def ratio(method: str, way: str = "drip") -> str:
    """Time of the published procedure over ours, over all fractions together."""
    cases = _cases()
    return f"{_together(cases[method, 'published']) / _together(cases[method, way]):.1f}"


def beside() -> str:
    """Every method and way: seconds, memory and epsilon by fraction."""
    cases = _cases()
    head = ["method", "way"]
    head += [f"{fraction:g}: {name}" for fraction in FRACTIONS for name in ("s", "MiB", "ε")]
    rows = []
    for method in dict.fromkeys(method for method, _ in cases):
        base_s = _together(cases[method, "published"])
        for way, label in _WAYS.items():
            if (method, way) in cases:
                found = cases[method, way]
                cells = [cell for fraction in FRACTIONS for cell in _cells(found.get(fraction))]
                aim = f"{AIMS[method]}" if way == "drip" and method in AIMS else ""
                rows.append([method, label, *cells, *_ratio(_together(found), base_s), aim])
        cells = [cell for seconds in PUBLISHED_S[method] for cell in (f"{seconds:.3f}", "", "")]
        rows.append([method, "published package", *cells, *_ratio(sum(PUBLISHED_S[method]), base_s), ""])
    return benchmark_tables.table([*head, "together, s", "ratio", "target"], rows)


def growth() -> str:
    """Seconds and peak memory of every method by number of rows."""
    records = _records("growth")
    sizes = sorted({record["n"] for record in records})
    found = {(record["method"], record["n"]): record for record in records}
    rows = [
        [method, *(cell for n in sizes for cell in _grown(found[method, n]))]
        for method in dict.fromkeys(record["method"] for record in records)
    ]
    head = [f"{n:,} rows: {name}" for n in sizes for name in ("s", "peak MiB")]
    return benchmark_tables.table(["method", *head], rows)


def growth_fraction() -> str:
    """The fraction kept in the growth runs."""
    return f"{_records('growth')[0]['fraction']:.0%}"


def busy() -> list[str]:
    """Growth runs beside which other work ran, so their seconds are too long."""
    return [
        f"{record['method']} at {record['n']:,} rows"
        for record in _records("growth")
        if record["load"] > _ALONE
    ]


def _records(bench: str) -> list[dict[str, Any]]:
    return [record for record in benchmark_tables.records("reduction") if record["bench"] == bench]


def _cases() -> Cases:
    cases: dict[tuple[str, str], dict[float, dict[str, Any]]] = {}
    for record in _records("beside published"):
        cases.setdefault((record["method"], record["way"]), {})[record["fraction"]] = record
    return cases


def _ratio(seconds: float, base_s: float) -> list[str]:
    return [f"{seconds:.3f}", f"{base_s / seconds:.1f}"]


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


def _grown(record: dict[str, Any]) -> list[str]:
    return [f"{record['seconds']:.2f}", f"{record['peak_mib']:.0f}"]
