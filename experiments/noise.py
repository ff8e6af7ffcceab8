"""Study `noise`: data set 3 with wrong labels or noisy inputs (Fig. 6, A13), always with random beside it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from drip.types import IntArray, JsonObject, Observations
from experiments.arms import Arm, Decided, decide, rules
from experiments.cells import Cell, Unit
from experiments.head import HeadRegime
from experiments.protocol import at_count
from experiments.table1 import discard_fraction
from experiments.workspace import Outcome, Workspace

NAME = "noise"
REGIMES = ("head",)
KINDS = ("label", "input")
FRACTIONS = tuple(round(0.1 * step, 1) for step in range(10))
_ARMS = ("all", "drip", "drip.normalised", "random", "margin")


def cells(unit: Unit) -> Iterator[Cell]:
    """Every arm at every fraction of both kinds; sound has no noisy view."""
    kinds = KINDS if unit.dataset != "speech_commands" else ("label",)
    for fraction in FRACTIONS:
        for kind in kinds:
            for arm in _ARMS:
                yield unit.cell(arm, kind=kind, fraction=fraction)


def config(cell: Cell) -> JsonObject:
    """What the cell's numbers depend on besides the regime."""
    dpw = discard_fraction(cell.unit.dataset)
    params = None if cell.arm == "all" else rules()[cell.arm].config(round(1 - dpw, 6))
    return {"rule": params, "split": "40/20/40", "calibration": "d1c", "dpw": dpw}


def views(dataset: str) -> tuple[str, ...]:
    """Clean and noisy inputs."""
    return ("clean",) if dataset == "speech_commands" else ("clean", "noise")


def workspace(unit: Unit, regime: HeadRegime) -> NoisyWorkspace:
    """What the unit's cells share."""
    return NoisyWorkspace(unit, regime)


class NoisyWorkspace(Workspace):
    """The protocol with a part of data set 3 spoilt; data sets 1 and 2 stay clean."""

    regime: HeadRegime

    def __init__(self, unit: Unit, regime: HeadRegime) -> None:
        super().__init__(unit, regime)
        self.spoilt_stream = cache(self._spoilt_stream)
        self.spoilt_decided = cache(self._spoilt_decided)

    def touched(self, kind: str, fraction: float) -> IntArray:
        """Positions of data set 3 that are spoilt; a larger fraction holds those of a smaller one."""
        order = self.rng(f"touched by {kind}").permutation(len(self.split.d3))
        return order[: round(fraction * len(order))]

    def rows(self, kind: str, fraction: float) -> IntArray:
        """Rows of data set 3, the spoilt ones with noisy inputs."""
        rows = self.split.d3.copy()
        if kind == "input" and fraction:
            touched = self.touched(kind, fraction)
            rows[touched] = self.regime.bank.index(rows[touched], "noise")
        return rows

    def labels(self, kind: str, fraction: float) -> IntArray:
        """Labels of data set 3, the spoilt ones replaced uniformly by another class."""
        labels = self.regime.labels[self.split.d3].copy()
        if kind == "label":
            touched = self.touched(kind, fraction)
            n_classes = self.regime.n_classes
            steps = self.rng("wrong labels").integers(1, n_classes, size=len(labels))[touched]
            labels[touched] = (labels[touched] + steps) % n_classes
        return labels

    def _spoilt_stream(self, kind: str, fraction: float) -> Observations:
        if kind == "label" or not fraction:
            return self.stream("d1c")  # no filter sees a label
        return self.regime.observe(self.deployed("d1c"), self.rows(kind, fraction))

    def _spoilt_decided(self, arm: Arm, retention: float, kind: str, fraction: float) -> Decided:
        if kind == "label" or not fraction:
            return self.decided(arm, retention, "d1c")
        rule = arm.build(retention, self.unit.seed).calibrate(self.calibration("d1c"))
        return decide(rule, self.spoilt_stream(kind, fraction))


def run(cell: Cell, bench: NoisyWorkspace) -> Outcome:
    """Measure one cell; the arms keep as many as `drip` does."""
    kind, fraction = cell.get("kind"), cell.get("fraction")
    rows, labels = bench.rows(kind, fraction), bench.labels(kind, fraction)
    if cell.arm == "all":
        return Outcome(bench.finish(rows, labels), {})
    retention = round(1 - discard_fraction(cell.unit.dataset), 6)
    retain = {
        arm: bench.spoilt_decided(rules()[arm], retention, kind, fraction).decisions.retain
        for arm in ("drip", cell.arm)
    }
    selection = at_count(
        retain[cell.arm], int(retain["drip"].sum()), bench.rng(f"{cell.arm} {kind} {fraction}")
    )
    spoilt = np.zeros(len(rows), np.bool_)
    spoilt[bench.touched(kind, fraction)] = True
    metrics = {
        **bench.finish(rows[selection.kept], labels[selection.kept]),
        "n_stream": len(rows),
        "n_kept": len(selection.kept),
        "native_kept": selection.native,
        "retention": len(selection.kept) / len(rows),
        "native_retention": selection.native / len(rows),
        "spoilt_kept": float(spoilt[selection.kept].mean()),
    }
    return Outcome(metrics, {})
