"""Study `registered`: the comparison that decides which rule is recommended, fixed before it was run."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from drip.types import JsonObject
from experiments import streams
from experiments.arms import rules
from experiments.cells import Cell, Unit
from experiments.head import HeadRegime
from experiments.regimes import Regime
from experiments.streams import StreamWorkspace
from experiments.workspace import Outcome, Workspace

NAME = "registered"
REGIMES = ("head",)
FOREIGN = streams.FOREIGN
"""As in the study of streams: the data set whose pictures are junk in another's stream."""
_CALIBRATION = "d1c"
_ENDS = ("baseline", "all")


@cache
def plan() -> dict[str, Any]:
    """What was registered: the content of ``registered.toml``."""
    return tomllib.loads(Path(__file__).with_name("registered.toml").read_text(encoding="utf-8"))


def cells(unit: Unit) -> Iterator[Cell]:
    """Nothing and everything kept, and the registered rules at every keep rate; then the streams."""
    held, flowing = plan()["rules"], plan()["streams"]
    for arm in _ENDS:
        yield unit.cell(arm)
    for retention in plan()["iid"]["retentions"]:
        for arm in held["run"]:
            yield unit.cell(arm, retention=retention)
    if unit.dataset in flowing["datasets"]:
        for scenario in flowing["scenarios"]:
            for arm in _ENDS:
                yield unit.cell(arm, scenario=scenario)
            for arm in flowing["run"]:
                yield unit.cell(arm, scenario=scenario, retention=streams.RETENTION)


def config(cell: Cell) -> JsonObject:
    """What the cell's numbers depend on besides the regime."""
    if cell.get("scenario") is not None:
        return streams.config(cell)
    retention = cell.get("retention")
    rule = None if retention is None else rules()[cell.arm].config(retention)
    return {"rule": rule, "split": "40/20/40", "calibration": _CALIBRATION, "count": "exact"}


def views(dataset: str) -> tuple[str, ...]:
    """Inputs as they are, and those of the streams where there are some."""
    return streams.views(dataset) if dataset in plan()["streams"]["datasets"] else ("clean",)


def workspace(unit: Unit, regime: Regime) -> Workspace:
    """What the unit's cells share."""
    if isinstance(regime, HeadRegime) and unit.dataset in plan()["streams"]["datasets"]:
        return StreamWorkspace(unit, regime)
    return Workspace(unit, regime)


def run(cell: Cell, bench: Workspace) -> Outcome:
    """Measure one cell: a rule is brought to exactly its keep rate on a well-mixed stream."""
    if cell.get("scenario") is not None:
        assert isinstance(bench, StreamWorkspace)  # noqa: S101  # only such data sets have scenarios
        return streams.run(cell, bench)
    retention = cell.get("retention")
    if retention is None:
        return Outcome(bench.finish(bench.split.d3 if cell.arm == "all" else None), {})
    rule, count = rules()[cell.arm], round(retention * len(bench.split.d3))
    selection = bench.select(rule, retention, _CALIBRATION, count)
    metrics = {
        **bench.finish(bench.split.d3[selection.kept]),
        **bench.kept_metrics(selection, _CALIBRATION),
        **bench.decided(rule, retention, _CALIBRATION).cost,
    }
    return Outcome(metrics, {})
