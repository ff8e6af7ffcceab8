"""Study `dpw`: accuracy over the discard percentage (Figs. 4 and 5), with random at the same count."""

from __future__ import annotations

from collections.abc import Iterator

from drip.types import JsonObject
from experiments.arms import rules
from experiments.cells import Cell, Unit
from experiments.table1 import views, workspace
from experiments.workspace import Outcome, Workspace

NAME = "dpw"
REGIMES = ("head",)
DISCARDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
_ARMS = ("drip", "drip.normalised", "random")

__all__ = ["NAME", "REGIMES", "cells", "config", "run", "views", "workspace"]


def cells(unit: Unit) -> Iterator[Cell]:
    """The two flat lines, then the arms at every discard percentage."""
    for arm in ("baseline", "all"):
        yield unit.cell(arm)
    for discard in DISCARDS:
        for arm in _ARMS:
            yield unit.cell(arm, discard=discard)


def config(cell: Cell) -> JsonObject:
    """What the cell's numbers depend on besides the regime."""
    flat = cell.get("discard") is None
    params = None if flat else rules()[cell.arm].config(round(1 - float(cell.get("discard")), 2))
    return {"rule": params, "split": "40/20/40", "calibration": "d1c"}


def run(cell: Cell, bench: Workspace) -> Outcome:
    """Measure one cell; the arms keep as many as `drip` does."""
    if cell.get("discard") is None:
        return Outcome(bench.finish(bench.split.d3 if cell.arm == "all" else None), {})
    retention = round(1 - float(cell.get("discard")), 2)
    count = bench.native_count(rules()["drip"], retention, "d1c")
    selection = bench.select(rules()[cell.arm], retention, "d1c", count)
    metrics = bench.finish(bench.split.d3[selection.kept])
    return Outcome({**metrics, **bench.kept_metrics(selection, "d1c")}, {})
