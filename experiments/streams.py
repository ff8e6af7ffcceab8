"""Study `streams`: streams as devices see them, not i.i.d., where rules fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np

from drip.errors import InputError
from drip.types import BoolArray, IntArray, JsonObject, Observations
from experiments.arms import COMPARATORS, Arm, Decided, decide, rules
from experiments.cells import Cell, Unit
from experiments.head import Head, HeadRegime
from experiments.protocol import Split, evaluate
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
ARRIVALS = 10_000
BURST = 50
TAIL = 100
JUNK = 0.2
DRIFT = ("clean", "drift1", "drift2", "drift3", "drift4")
REPEATS = ("clean", "repeat1", "repeat2", "repeat3", "repeat4")
REPEAT_WITHIN = 200

SCENARIOS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "bursts": {"arrivals": ARRIVALS, "burst": BURST},
        "longtail": {"arrivals": ARRIVALS, "ratio": TAIL},
        "foreign": {"arrivals": ARRIVALS, "junk": JUNK, "junk_of_items": JUNK},
        "heldout": {"arrivals": ARRIVALS, "junk": JUNK, "classes": 2},
        "drift": {"arrivals": ARRIVALS, "views": DRIFT},
        "duplicates": {"arrivals": ARRIVALS, "views": REPEATS, "within": REPEAT_WITHIN},
    }
)
"""Every scenario with its numbers: at least so many arrivals, mean length of a burst of one class, most
frequent over rarest class, share of junk among the arrivals (and among the different items), held-out
classes, views that come in turn, arrivals within which repeats come."""


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
        raise InputError(f"study 'streams': has no data set {dataset!r}; choose {' or '.join(FOREIGN)}")
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
    """Largest distance from the target of the keep rate over ``over`` arrivals in a row, after the first ones.

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


@dataclass(frozen=True)
class Scenario:
    """A stream with what its deployed model was trained, calibrated and will be tested on.

    Attributes:
        d1: Items of data set 1.
        d1_fit: Those that train the deployed model.
        d1c: Those that calibrate.
        items: Arriving items, shape (n,): indices of the bank.
        labels: Their true classes, -1 for junk that no labeller gives a class.
        test: Rows of data set 2 to the items of each part of the test.
    """

    d1: IntArray
    d1_fit: IntArray
    d1c: IntArray
    items: IntArray
    labels: IntArray
    test: Callable[[IntArray], dict[str, IntArray]]


def scenario(name: str, split: Split, regime: HeadRegime, rng: np.random.Generator) -> Scenario:
    """One scenario of one run."""
    return {
        "bursts": _bursts,
        "longtail": _long_tail,
        "foreign": _foreign,
        "heldout": _held_out,
        "drift": _drift,
        "duplicates": _duplicates,
    }[name](split, regime, rng)


def _bursts(split: Split, regime: HeadRegime, rng: np.random.Generator) -> Scenario:
    """The classes come in runs of geometric length."""
    rows = _looped(split.d3, rng)
    labels = regime.labels[rows]
    waiting = [list(np.flatnonzero(labels == label)[::-1]) for label in range(regime.n_classes)]
    order: list[int] = []
    while any(waiting):
        left = np.array([len(part) for part in waiting], float)
        part = waiting[rng.choice(len(waiting), p=left / left.sum())]
        order.extend(part.pop() for _ in range(min(len(part), int(rng.geometric(1 / BURST)))))
    return _plain(split, regime, rows[order])


def _long_tail(split: Split, regime: HeadRegime, rng: np.random.Generator) -> Scenario:
    """Class frequencies fall geometrically from 1 to 1 / 100, the classes in random order."""
    labels, kept = regime.labels[split.d3], []
    for rank, label in enumerate(rng.permutation(regime.n_classes)):
        mine = split.d3[labels == label]
        share = TAIL ** (-rank / (regime.n_classes - 1))
        kept.append(rng.choice(mine, max(1, round(share * len(mine))), replace=False))
    return _plain(split, regime, _looped(np.concatenate(kept), rng))


def _foreign(split: Split, regime: HeadRegime, rng: np.random.Generator) -> Scenario:
    """A fifth of the arrivals, and of the different items among them, are pictures of another data set."""
    bank = regime.bank
    n_junk = round(len(split.d3) * JUNK / (1 - JUNK))
    junk = bank.index(rng.permutation(regime.n_foreign)[:n_junk], "foreign")
    scene = _plain(split, regime, _mixed(_looped(split.d3, rng), _looped(junk, rng), rng))
    return replace(scene, labels=np.where(np.isin(scene.items, junk), -1, scene.labels))


def _held_out(split: Split, regime: HeadRegime, rng: np.random.Generator) -> Scenario:
    """A fifth of the arrivals belong to two classes that the model has never seen and is not tested on."""
    known = np.isin(regime.labels, rng.choice(regime.n_classes, 2, replace=False), invert=True)
    own, other = split.d3[known[split.d3]], split.d3[~known[split.d3]]
    scene = _plain(split, regime, _mixed(_looped(own, rng), _looped(other, rng), rng))
    return replace(
        scene,
        d1=scene.d1[known[scene.d1]],
        d1_fit=scene.d1_fit[known[scene.d1_fit]],
        d1c=scene.d1c[known[scene.d1c]],
        labels=np.where(known[regime.bank.rows(scene.items)], scene.labels, -1),
        test=lambda rows: {"clean": rows[known[rows]]},
    )


def _drift(split: Split, regime: HeadRegime, rng: np.random.Generator) -> Scenario:
    """Blur and noise grow in five steps; the test has all of them."""
    bank = regime.bank
    stages = np.array_split(_looped(split.d3, rng), len(DRIFT))
    items = [bank.index(rows, view) for rows, view in zip(stages, DRIFT, strict=True)]
    scene = _plain(split, regime, np.concatenate(items))
    return replace(scene, test=lambda rows: {view: bank.index(rows, view) for view in DRIFT})


def _duplicates(split: Split, regime: HeadRegime, rng: np.random.Generator) -> Scenario:
    """Every row arrives as five near-duplicates close together."""
    shuffled = rng.permutation(split.d3)
    items = np.concatenate([regime.bank.index(shuffled, view) for view in REPEATS])
    starts = np.tile(np.arange(len(shuffled)) * len(REPEATS), len(REPEATS))
    order = np.argsort(starts + rng.uniform(0, REPEAT_WITHIN, len(items)), kind="stable")
    return _plain(split, regime, items[order])


def _plain(split: Split, regime: HeadRegime, items: IntArray) -> Scenario:
    """These items arrive, each with its true label; everything else is as in section IV."""
    return Scenario(
        d1=split.d1,
        d1_fit=split.d1_fit,
        d1c=split.d1c,
        items=items,
        labels=regime.labels[regime.bank.rows(items)],
        test=lambda rows: {"clean": rows},
    )


def _looped(rows: IntArray, rng: np.random.Generator) -> IntArray:
    """The rows again and again, each time in another order, until there are enough arrivals."""
    passes = -(-ARRIVALS // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(passes)])


def _mixed(own: IntArray, junk: IntArray, rng: np.random.Generator) -> IntArray:
    """The own items with junk items at random places among them, until their part is ``JUNK``."""
    count = min(len(junk), round(len(own) * JUNK / (1 - JUNK)))
    return rng.permutation(np.concatenate([own, junk[:count]]))
