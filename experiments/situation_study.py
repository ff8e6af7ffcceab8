"""Study `situations`: which rule pays on the streams that devices really see.

Head only: a linear head on frozen features is trained on the training set plus what a rule kept. Every rule is
brought to exactly the same count, and compared with a random choice of that count in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from drip.datasets import load
from drip.labelling import labelling_order
from drip.rules import BaseRule
from drip.rules.adaptive import AdaptiveMarginRule, ComposedRule
from drip.rules.chance import ClassBalancedRandomRule
from drip.rules.parts import Populations
from drip.rules.uncertainty import MarginRule, NoveltyRule
from drip.rules.windows import DripRule
from drip.scoring import TorchScorer
from drip.types import BoolArray, FloatArray, IntArray, JsonObject, Observations
from experiments.cells import Cell, Unit
from experiments.head import Head, linear_network
from experiments.protocol import at_count
from experiments.situation_full import FULL_ARMS, FULL_KEEP, FULL_PLACES, FullBench, FullSituations
from experiments.situation_views import N_ROWS, bank_of, frames_of, rows_of
from experiments.situations import (
    CAMERA,
    L2,
    N_CALIBRATION,
    PAIRS,
    SITUATIONS,
    TELEPHONE,
    Items,
    Scene,
    build,
    fit,
)
from experiments.spread import SpreadMarginRule, spread_store
from experiments.workspace import Outcome

NAME = "situations"
REGIMES = ("head", "full")
KEEP = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
CURVE = (*KEEP, 0.45, 0.65)
LABELLED = (0.01, 0.02, 0.05)
LABELLED_OF = 0.2
"""Of the stream: what is labelled in the cells on the order of labelling, and what is kept there."""
ORDERS = ("labels.random", "labels.proposed")
REPEATS = 4
_BATCH = 256
_LOOKS = 20  # arrivals between two looks at the populations

PLACES: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "tomato": tuple(
            (situation, backbone)
            for backbone in ("mobilenet", "efficientnet")
            for situation in SITUATIONS
            if situation not in ("new-speakers", "telephone")
        ),
        "cifar10": tuple(
            (situation, backbone)
            for backbone in ("mobilenet", "efficientnet")
            for situation in ("mixed", "weak", "long-tail")
        ),
        "speech_commands": tuple(
            (situation, "mobilenet") for situation in ("mixed", "weak", "new-speakers", "telephone")
        ),
    }
)
"""Situations and backbones of every data set."""

PAIR_PLACES = tuple((pair, backbone) for backbone in ("mobilenet", "efficientnet") for pair in PAIRS)
"""Pairs of situations and backbones, of tomato leaves."""
PAIR_KEEP = (0.05, 0.2)
FINALISTS = ("adaptive-margin", "spread-margin", "spread-store")
"""The rules that may become the default; only these are measured where two situations meet."""

DATASETS = tuple(PLACES)
_VIEWS = {
    "tomato": ("clean", *CAMERA, "scenes", "foreign"),
    "cifar10": ("clean",),
    "speech_commands": ("clean", *TELEPHONE),
}


_CAMERAS = ("new-camera", "telephone", "camera-from-a-day")
_EVERYWHERE = tuple(SITUATIONS)


@dataclass(frozen=True)
class Arm:
    """A way to choose what is kept.

    Attributes:
        rule: The rule; None for the store that evicts, which decides at the end.
        params: Its arguments besides the keep rate.
        situations: Where it is measured.
        accepts: After how many kept samples of a new population a person accepts it; None for never.
    """

    rule: type[BaseRule] | None
    params: tuple[tuple[str, object], ...] = ()
    situations: tuple[str, ...] = _EVERYWHERE
    accepts: int | None = None


ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        "adaptive-margin": Arm(AdaptiveMarginRule),
        "adaptive-margin.duplicates": Arm(AdaptiveMarginRule, (("gates", ("duplicates",)),)),
        "adaptive-margin.all-gates": Arm(AdaptiveMarginRule, (("gates", True),)),  # as released in 0.1.0
        # Without an answer a second population gets its quota; this is after the answer "ignore".
        "adaptive-margin.ignoring": Arm(AdaptiveMarginRule, (("quota", 0.0),), (*_CAMERAS, "junk")),
        "adaptive-margin.accepting": Arm(AdaptiveMarginRule, situations=_CAMERAS, accepts=100),
        "spread-margin": Arm(SpreadMarginRule),
        "spread-store": Arm(None),
        "margin": Arm(MarginRule),
        "novelty": Arm(NoveltyRule),
        "drip": Arm(DripRule),
        "class-balanced-random": Arm(ClassBalancedRandomRule),
    }
)
"""What is compared, by name."""


def cells(unit: Unit) -> Iterator[Cell]:
    """Every situation, then the pairs: nothing, everything, random choices, then the rules."""
    if unit.regime == "full":
        yield from _full_cells(unit)
        return
    pairs = PAIR_PLACES if unit.dataset == "tomato" else ()
    for situation, backbone in (*PLACES[unit.dataset], *pairs):
        place = {"situation": situation, "backbone": backbone}
        yield from _ends(unit, place, CURVE)
        for name, arm in ARMS.items():
            if situation in PAIRS and name in FINALISTS:
                yield from (unit.cell(name, **place, retention=keep) for keep in PAIR_KEEP)
            elif situation in arm.situations:
                yield from (unit.cell(name, **place, retention=keep) for keep in KEEP)
        for order in () if situation in PAIRS else ORDERS:
            for labelled in LABELLED:
                yield unit.cell(order, **place, retention=LABELLED_OF, labelled=labelled)


def _full_cells(unit: Unit) -> Iterator[Cell]:
    if unit.dataset in FULL_PLACES:
        place = {"situation": FULL_PLACES[unit.dataset], "backbone": "trained"}
        yield from _ends(unit, place, FULL_KEEP)
        for name in FULL_ARMS:
            yield from (unit.cell(name, **place, retention=keep) for keep in FULL_KEEP)


def _ends(unit: Unit, place: Mapping[str, str], curve: Sequence[float]) -> Iterator[Cell]:
    """Nothing, everything, and random choices of these sizes."""
    yield from (unit.cell(end, **place) for end in ("baseline", "all"))
    yield from (unit.cell("random", **place, retention=keep) for keep in curve)


def config(cell: Cell) -> JsonObject:
    """What the cell's numbers depend on besides the regime."""
    arm = ARMS["adaptive-margin"] if cell.arm in ORDERS else ARMS.get(cell.arm)
    params = None if arm is None or arm.rule is None else build_rule(arm, cell.get("retention")).params
    more: JsonObject = {"order": "facility location, two turns"} if cell.arm == "labels.proposed" else {}
    if arm is not None and arm.accepts is not None:
        more = {"accepts": arm.accepts}
    return {"rule": params, "head": {"l2": L2, "solver": "l-bfgs"}, "calibration": N_CALIBRATION, **more}


def build_rule(arm: Arm, retention: float) -> BaseRule:
    """The rule of an arm, not yet calibrated."""
    assert arm.rule is not None  # noqa: S101  # the store that evicts has none
    return arm.rule.for_retention(retention, **dict(arm.params))


def select(arm: Arm, keep: float, count: int, bench: Bench | FullBench) -> BoolArray:
    """Which arrivals an arm keeps, shape (n,)."""
    if arm.rule is None:
        return spread_store(bench.calibration, bench.stream, count)
    rule = build_rule(arm, keep).calibrate(bench.calibration)
    if arm.accepts is not None and isinstance(rule, ComposedRule):
        return _accepting(rule, arm.accepts, bench.stream)
    return rule.decide_many(bench.stream).retain


def _accepting(rule: ComposedRule, after: int, stream: Observations) -> BoolArray:
    """Which arrivals are kept if a person accepts each new population, and the run goes on with the answer."""
    retain = []
    for start in range(0, len(stream), _LOOKS):
        retain.append(rule.decide_many(stream[start : start + _LOOKS]).retain)
        for each in rule.populations:
            if each["number"] > 1 and each["answer"] is None and each["kept"] >= after:
                state, answers = rule.state(), rule.params.get("answers", ())
                populations = Populations.saved(state["population"])
                answers = populations.answers_with(answers, each["number"], "accept")
                rule = type(rule)(**{**rule.params, "answers": answers}).restore(state)
    return np.concatenate(retain)


class SituationRegime:
    """The frozen features of one data set, per backbone.

    Args:
        dataset: Name of the data set.
        cache_folder: Folder for features.
        on_progress: Called with view, rows done and rows in all.
    """

    name = "head"

    def __init__(
        self, dataset: str, cache_folder: Path, on_progress: Callable[[str, int, int], None] | None = None
    ) -> None:
        self._dataset, self._cache, self._on_progress = dataset, cache_folder, on_progress
        data = load(dataset)
        self.rows = rows_of(dataset, len(data))
        self.labels: IntArray = data.labels[self.rows]
        self.groups = self.rows if data.groups is None else data.groups[self.rows]
        self.items = cache(self._items)

    @property
    def config(self) -> JsonObject:
        """The rows that take part."""
        return {"dataset": self._dataset, "n_rows": N_ROWS.get(self._dataset, len(self.rows))}

    def _items(self, backbone: str) -> Items:
        banks = {
            view: bank_of(self._dataset, view, backbone, self._cache, self._on_progress)
            for view in _VIEWS[self._dataset]
        }
        frames = frames_of(len(self.rows))
        return Items(banks, self.labels, self.groups, frames.rows, frames.scenes)


class SituationWorkspace:
    """What the cells of one unit share.

    Args:
        unit: Data set and seed.
        regime: Its features.
    """

    def __init__(self, unit: Unit, regime: SituationRegime | FullSituations) -> None:
        self.unit, self.regime = unit, regime
        self.bench = lru_cache(maxsize=1)(self._bench)

    def _bench(self, situation: str, backbone: str) -> Bench | FullBench:
        if isinstance(self.regime, FullSituations):
            return self.regime.bench(situation, self.unit.seed)
        items = self.regime.items(backbone)
        return Bench(items, build(situation, items, self.unit.seed))


def workspace(unit: Unit, regime: SituationRegime | FullSituations) -> SituationWorkspace:
    """What the unit's cells share."""
    return SituationWorkspace(unit, regime)


class Bench:
    """The deployed head, what it sees, and the last step of every arm in one situation of one run.

    Args:
        items: The samples.
        scene: The situation.
    """

    repeats = REPEATS

    def __init__(self, items: Items, scene: Scene) -> None:
        self.items, self.scene = items, scene
        self._train = items.inputs(scene.train)
        self._stream = items.inputs(scene.stream)
        self._test = items.inputs(scene.test)
        known = np.searchsorted(scene.known, scene.train_labels)
        self.deployed = fit(self._train, known, len(scene.known))
        self.calibration = self._observe(scene.calibration)
        self.stream = self._observe(scene.stream)

    def measure(self, kept: IntArray) -> dict[str, float]:
        """Train on the training set and what is kept and has a label; score on the test set."""
        scene, start = self.scene, time.perf_counter()
        labelled = kept[scene.labels[kept] >= 0]
        inputs = np.concatenate([self._train, self._stream[labelled]])
        labels = np.concatenate([scene.train_labels, scene.labels[labelled]])
        all_known = len(scene.known) == self.items.n_classes
        head = fit(inputs, labels, self.items.n_classes, self.deployed if all_known else None)
        return {
            "accuracy": score(head.logits(self._test), scene),
            "fit_s": round(time.perf_counter() - start, 3),
            "n_train": len(labels),
        }

    def _observe(self, items: IntArray) -> Observations:
        """What the product's own scorer says of the deployed head."""
        head = Head(torch.from_numpy(self.deployed.weight), torch.from_numpy(self.deployed.bias), 0)
        network = linear_network(head, flatten=self.items.flatten)
        scorer = TorchScorer(network, layer="features", example=self.items.maps(items[:2]))
        starts = range(0, len(items), _BATCH)
        return Observations.concatenate(
            [scorer.score(self.items.maps(items[i : i + _BATCH])) for i in starts]
        )


def score(logits: FloatArray, scene: Scene) -> float:
    """The situation's metric, in [0, 1]."""
    predicted, truth = logits.argmax(1), scene.test_labels
    if scene.metric == "accuracy":
        return float((predicted == truth).mean())
    if scene.metric == "recall":
        (new,) = np.setdiff1d(np.unique(truth), scene.known)
        return float((predicted[truth == new] == new).mean())
    hits, sizes = [], []
    for label in np.unique(truth):
        hits.append(2 * np.count_nonzero((predicted == label) & (truth == label)))
        sizes.append(np.count_nonzero(predicted == label) + np.count_nonzero(truth == label))
    return float(np.mean(np.array(hits) / np.array(sizes)))


def run(cell: Cell, bench: SituationWorkspace) -> Outcome:
    """Measure one cell."""
    one = bench.bench(cell.get("situation"), cell.get("backbone"))
    scene, n = one.scene, len(one.scene.stream)
    facts = {"n_stream": n, "n_test": len(scene.test), "marked": float(scene.marked.mean())}
    if cell.arm in ("baseline", "all"):
        kept = np.arange(n if cell.arm == "all" else 0)
        return Outcome({**one.measure(kept), **facts, "n_kept": len(kept)}, {})
    keep = cell.get("retention")
    count = max(1, round(keep * n))
    # Seeded by the run and the count: arms that need filling up share their luck.
    draws = [np.random.default_rng([bench.unit.seed, count, repeat]) for repeat in range(one.repeats)]
    if cell.arm == "random":
        found = [one.measure(np.sort(draw.choice(n, count, replace=False))) for draw in draws]
        mean = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
        return Outcome({**mean, **facts, "n_kept": count}, {})
    if cell.arm in ORDERS and isinstance(one, Bench):
        return _labelled(cell, one, draws, facts)
    selection = at_count(select(ARMS[cell.arm], keep, count, one), count, draws[0])
    facts |= {
        "n_kept": count,
        "native_kept": selection.native,
        "native_retention": selection.native / n,
        "marked_kept": float(scene.marked[selection.kept].mean()),
    }
    return Outcome({**one.measure(selection.kept), **facts}, {})


def _labelled(cell: Cell, one: Bench, draws: list[np.random.Generator], facts: dict[str, float]) -> Outcome:
    """Measure an order of labelling on what the candidate keeps."""
    n, count = len(one.scene.stream), max(1, round(cell.get("labelled") * len(one.scene.stream)))
    rule = build_rule(ARMS["adaptive-margin"], cell.get("retention")).calibrate(one.calibration)
    decisions = rule.decide_many(one.stream)
    kept = at_count(decisions.retain, max(1, round(cell.get("retention") * n)), draws[0]).kept
    if cell.arm == "labels.random":
        chosen = [np.sort(draw.permutation(kept)[:count]) for draw in draws]
    else:
        populations = [2 if decisions.reasons[row].startswith("population-") else 1 for row in kept.tolist()]
        chosen = [np.sort(kept[labelling_order(one.stream[kept], populations, count)])]
    found = [{**one.measure(rows), "marked_kept": float(one.scene.marked[rows].mean())} for rows in chosen]
    mean = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
    return Outcome({**mean, **facts, "n_kept": count}, {})
