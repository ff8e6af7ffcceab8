"""Study `streams`: production streams that are not i.i.d., where selection rules fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from drip.errors import InputError
from drip.types import BoolArray, IntArray, JsonObject, Observations
from experiments.arms import COMPARATORS, Arm, Decided, decide, rules
from experiments.cells import Cell, Unit
from experiments.head import Head, HeadRegime
from experiments.protocol import evaluate
from experiments.scenarios import SCENARIOS, Scenario, scenario
from experiments.workspace import Outcome, Workspace

NAME = "streams"
REGIMES = ("head",)
RETENTION = 0.3
_VIEWS = (
    "clean",
    *(f"drift{step}" for step in (1, 2, 3, 4)),
    *(f"repeat{copy}" for copy in (1, 2, 3, 4)),
    "foreign",
)
FOREIGN = {"cifar10": "tomato", "tomato": "cifar10"}
"""The data set whose pictures are junk in another's stream."""


def cells(unit: Unit) -> Iterator[Cell]:
    """Every rule in every scenario."""
    for name in SCENARIOS:
        for arm in ("baseline", "all"):
            yield unit.cell(arm, scenario=name)
        for arm in rules():
            if arm not in COMPARATORS:
                yield unit.cell(arm, scenario=name, retention=RETENTION)


def config(cell: Cell) -> JsonObject:
    """What the cell's numbers depend on besides the regime."""
    rule = None if cell.arm in ("baseline", "all") else rules()[cell.arm].config(RETENTION)
    return {
        "rule": rule,
        "split": "40/20/40",
        "calibration": "d1c",
        "scenario": SCENARIOS[cell.get("scenario")],
    }


def views(dataset: str) -> tuple[str, ...]:
    """Every view that a scenario needs.

    Raises:
        InputError: a data set without such views.
    """
    if dataset not in FOREIGN:
        raise InputError(f"the study 'streams' has the data sets {', '.join(FOREIGN)}, got {dataset!r}")
    return _VIEWS


@dataclass(frozen=True)
class Kept:
    """Arrivals that an arm has in its store at the end.

    Attributes:
        positions: First arrivals of what is kept, ascending.
        native: How many different items the rule itself kept.
        by_tenth: Share of the arrivals that the rule itself kept, by tenth of the stream.
        trailing_off: Largest distance of its share from the target over any 1,000 arrivals after the first.
        native_junk: Share of junk in the different items that the rule itself kept.
    """

    positions: IntArray
    native: int
    by_tenth: list[float]
    trailing_off: float
    native_junk: float


class StreamWorkspace(Workspace):
    """The protocol on the streams of one run."""

    regime: HeadRegime

    def __init__(self, unit: Unit, regime: HeadRegime) -> None:
        super().__init__(unit, regime)
        self.scenario = cache(self._scenario)
        self.model = cache(self._model_of)
        self.observed = cache(self._observed)
        self.arrivals = cache(self._arrivals)

    def truth(self, items: IntArray) -> IntArray:
        """True classes of items, whatever their view."""
        return self.regime.labels[self.regime.bank.rows(items)]

    def keep(self, name: str, arm: Arm) -> Kept:
        """What a rule keeps, brought to the count of `drip`; equal items are stored once."""
        scene = self.scenario(name)
        retain = self.arrivals(name, arm).decisions.retain
        wanted = stored_once(self.arrivals(name, rules()["drip"]).decisions.retain, scene.items)
        own = stored_once(retain, scene.items)
        positions, rng = own, self.rng(f"{arm.name} {name}")
        if len(own) > len(wanted):
            positions = rng.choice(own, len(wanted), replace=False)
        elif len(own) < len(wanted):
            left = stored_once(~np.isin(scene.items, scene.items[own]), scene.items)
            positions = np.concatenate([own, rng.choice(left, len(wanted) - len(own), replace=False)])
        tenths = [float(part.mean()) for part in np.array_split(retain, 10)]
        native_junk = float((scene.labels[own] < 0).mean())
        return Kept(np.sort(positions), len(own), tenths, trailing_off(retain), native_junk)

    def score(self, name: str, positions: IntArray) -> tuple[dict[str, float], dict[str, float]]:
        """Train on data set 1 and what is kept and has a label; metrics, and accuracy by test part."""
        scene = self.scenario(name)
        labelled = positions[scene.labels[positions] >= 0]
        rows = np.concatenate([scene.d1, scene.items[labelled]])
        labels = np.concatenate([self.truth(scene.d1), scene.labels[labelled]])
        return self.finish_on(scene, rows, labels)

    def finish_on(
        self, scene: Scenario, rows: IntArray, labels: IntArray
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Train, and score on all parts of the test together and on each."""
        start = time.perf_counter()
        model = self.regime.fit(rows, labels, seed=self.unit.seed)
        seconds = time.perf_counter() - start
        with self.split.scoring():
            parts = scene.test(self.split.d2)
        logits = {part: self.regime.logits(model, items) for part, items in parts.items()}
        truth = {part: self.truth(items) for part, items in parts.items()}
        by_part = {part: float((logits[part].argmax(1) == truth[part]).mean()) for part in parts}
        together = evaluate(
            np.concatenate(list(logits.values())), np.concatenate(list(truth.values())), self.regime.n_classes
        )
        metrics = {**together, "n_train": len(rows), "fit_s": round(seconds, 3), "steps": model.steps}
        return metrics, by_part

    def _scenario(self, name: str) -> Scenario:
        return scenario(name, self.split, self.regime, self.rng(f"scenario {name}"))

    def _model_of(self, name: str) -> Head:
        scene = self.scenario(name)
        return self.regime.fit(scene.d1_fit, self.truth(scene.d1_fit), seed=self.unit.seed)

    def _observed(self, name: str) -> tuple[Observations, Observations]:
        """Calibration set and stream, seen by the deployed model; equal items are scored once."""
        scene, model = self.scenario(name), self.model(name)
        items, back = np.unique(scene.items, return_inverse=True)
        return self.regime.observe(model, scene.d1c), self.regime.observe(model, items)[back.astype(np.int64)]

    def _arrivals(self, name: str, arm: Arm) -> Decided:
        calibration, stream = self.observed(name)
        return decide(arm.build(RETENTION, self.unit.seed).calibrate(calibration), stream)


def workspace(unit: Unit, regime: HeadRegime) -> StreamWorkspace:
    """What the unit's cells share."""
    return StreamWorkspace(unit, regime)


def run(cell: Cell, bench: StreamWorkspace) -> Outcome:
    """Measure one cell."""
    name = cell.get("scenario")
    scene = bench.scenario(name)
    if cell.arm in ("baseline", "all"):
        everything = np.ones(len(scene.items), np.bool_)
        positions = stored_once(everything, scene.items) if cell.arm == "all" else np.zeros(0, np.int64)
        metrics, by_part = bench.score(name, positions)
        return Outcome(metrics, {"accuracy_by_part": by_part})
    kept = bench.keep(name, rules()[cell.arm])
    metrics, by_part = bench.score(name, kept.positions)
    stored = scene.items[kept.positions]
    n_items = len(np.unique(scene.items))
    metrics |= {
        "n_stream": len(scene.items),
        "n_items": n_items,
        "n_kept": len(stored),
        "native_kept": kept.native,
        "retention": len(stored) / n_items,
        "native_retention": kept.native / n_items,
        "junk_kept": float((scene.labels[kept.positions] < 0).mean()),
        "native_junk": kept.native_junk,
        "trailing_off": kept.trailing_off,
        "unique_kept": _n_rows(bench.regime.bank.rows(stored), scene.labels[kept.positions]) / len(stored),
        **bench.arrivals(name, rules()[cell.arm]).cost,
    }
    return Outcome(metrics, {"retention_by_tenth": kept.by_tenth, "accuracy_by_part": by_part})


def _n_rows(rows: IntArray, labels: IntArray) -> int:
    """Different rows; junk of a row's number may be another data set's, so it is counted apart."""
    return len(np.unique(np.where(labels < 0, -1 - rows, rows)))


def trailing_off(retain: BoolArray, over: int = 1000) -> float:
    """Largest distance from the target of the share kept in ``over`` arrivals in a row, after the first ones.

    >>> trailing_off(np.tile([True, False, False, False, False], 600))
    0.1
    """
    over = min(over, len(retain) // 2)
    sums = np.concatenate([[0], np.cumsum(retain[over:])])
    shares = (sums[over:] - sums[:-over]) / over
    return round(float(np.abs(shares - RETENTION).max()), 6)


def stored_once(retain: BoolArray, items: IntArray) -> IntArray:
    """Positions of the first retained arrival of every item: a store keeps equal contents once.

    >>> stored_once(np.array([False, True, True, True]), np.array([7, 7, 8, 7])).tolist()
    [1, 2]
    """
    kept = np.flatnonzero(retain)
    _, first = np.unique(items[kept], return_index=True)
    return kept[np.sort(first)]
