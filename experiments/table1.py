"""Study `table1`: the paper's arms, and every rule at equal counts."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from drip.types import JsonObject
from experiments.arms import COMPARATORS, PAPER_RULES, Arm, rules
from experiments.cells import Cell, Unit
from experiments.head import HeadRegime
from experiments.regimes import Regime
from experiments.workspace import Outcome, Workspace

NAME = "table1"
REGIMES = ("head", "full")
RETENTIONS = (0.77, 0.61, 0.3, 0.1)
ENDS = ("baseline", "all")
"""Arms that select nothing."""
_PAPER_ARMS = (*PAPER_RULES, "random", "margin")
_ADAPTIVE = ("adaptive-margin", "adaptive-random")
_RELABELLED = ("drip", "random", "margin")
_RECALIBRATED = ("drip", "drip.normalised")
_USUAL = {"budget": "epochs", "mode": "online", "labels": "true", "calibration": "d1c"}


@cache
def discard_fraction(dataset: str) -> float:
    """The DPW of the paper's arms: Table I names none, so its storage saving is used."""
    published = tomllib.loads((Path(__file__).parent / "paper.toml").read_text())
    return float(published["dpw"][dataset])


def cells(unit: Unit) -> Iterator[Cell]:
    """The cells of a unit, those first that the others are compared with."""
    dpw = discard_fraction(unit.dataset)
    yield from (unit.cell(arm, budget="epochs") for arm in ENDS)
    yield from (unit.cell(arm, budget="epochs", dpw=dpw) for arm in _PAPER_ARMS)
    if unit.regime == "full":
        yield from (unit.cell(arm, budget="epochs", dpw=dpw) for arm in _ADAPTIVE)
        return
    names = tuple(rules())
    yield from _selected(unit, names)
    varied = [name for name in names if name not in COMPARATORS]
    yield from (unit.cell(arm, budget="steps") for arm in ENDS)
    yield from _selected(unit, varied, budget="steps")
    yield from _selected(unit, varied, mode="ranked")
    yield from _selected(unit, _RELABELLED, labels="predicted")
    for source in ("d1", "d2"):
        yield from _selected(unit, _RECALIBRATED, calibration=source)


def _selected(unit: Unit, arms: Sequence[str], **changes: str) -> Iterator[Cell]:
    """The arms at every retention, with these changes to the usual settings."""
    for retention in RETENTIONS:
        for arm in arms:
            yield unit.cell(arm, retention=retention, **{**_USUAL, **changes})


def config(cell: Cell) -> JsonObject:
    """What the cell's numbers depend on besides the regime."""
    arm = _rules().get(cell.arm)
    return {"rule": None if arm is None else arm.config(_retention(cell)), "split": "40/20/40"}


def views(dataset: str) -> tuple[str, ...]:
    """Inputs as they are."""
    del dataset
    return ("clean",)


def workspace(unit: Unit, regime: Regime) -> Workspace:
    """What the unit's cells share."""
    return Workspace(unit, regime)


def run(cell: Cell, bench: Workspace) -> Outcome:
    """Measure one cell."""
    budget = cell.get("budget")
    if cell.arm in ENDS:
        return Outcome(bench.finish(bench.split.d3 if cell.arm == "all" else None, budget=budget), {})
    arm, retention = _rules()[cell.arm], _retention(cell)
    calibration = cell.get("calibration", "d2")
    paper = cell.get("dpw") is not None
    reference = PAPER_RULES["paper.raw.window"] if paper else rules()["drip"]
    count = bench.native_count(reference, retention, "d2" if paper else "d1c")
    choose = bench.select_ranked if cell.get("mode") == "ranked" else bench.select
    selection = choose(arm, retention, calibration, count)
    rows = bench.split.d3[selection.kept]
    labels = bench.stream(calibration).classes[selection.kept] if cell.get("labels") == "predicted" else None
    metrics = {
        **bench.finish(rows, labels, budget),
        **bench.kept_metrics(selection, calibration),
        **bench.decided(arm, retention, calibration).cost,
    }
    shows = cell.arm in PAPER_RULES and isinstance(bench.regime, HeadRegime)
    return Outcome(metrics, _histogram(bench, arm, retention) if shows and cell.unit.seed == 0 else {})


def _histogram(bench: Workspace, arm: Arm, retention: float) -> JsonObject:
    """The calibration scores of the largest class with their window, for Fig. 2."""
    observations = bench.calibration("d2")
    rule = arm.build(retention, bench.unit.seed).calibrate(observations)
    scores = observations.named_scores[dict(arm.params).get("score", "drip")]
    largest = int(np.bincount(observations.classes).argmax())
    counts, edges = np.histogram(scores[observations.classes == largest], bins=40)
    window = rule.state()["windows"][largest]
    return {
        "histogram": {
            "class": largest,
            "counts": counts.tolist(),
            "edges": edges.tolist(),
            "lower": window["lower"],
            "upper": window["upper"],
        }
    }


def _rules() -> dict[str, Arm]:
    return PAPER_RULES | rules()


def _retention(cell: Cell) -> float:
    dpw = cell.get("dpw")
    return float(cell.get("retention", 1.0)) if dpw is None else round(1 - float(dpw), 6)
