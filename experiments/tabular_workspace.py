"""The arms of the study of tables, and what the cells of one run share: split, reduced sets, networks.

Arms are all methods that `drip.reduction` finds, and the published variants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import version
from math import isfinite
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drip.errors import InputError
from drip.files import sha256_hex
from drip.reduction import ForgettingTracker, available, create, epsilon_representativeness
from drip.reduction.base import BaseReducer
from drip.reduction.datasets import load_table
from drip.reduction.energy import Energy, measure_energy
from drip.types import FloatArray, IntArray, JsonObject
from experiments.cells import Cell, Unit
from experiments.protocol import evaluate
from experiments.tabular_network import Networks, Recipe, Rows, Values
from experiments.workspace import Outcome

WATTS = 8.5
"""Of one busy core, for the estimate: the 85 W of the published study's processor over its ten cores."""

FORGETTING = "forgetting-events"
TEST_SHARE = 0.25
SHUFFLE_SEED = 2024


@dataclass(frozen=True)
class Arm:
    """A method with arguments, under the name that results carry.

    Attributes:
        name: The arm.
        method: Name among :func:`drip.reduction.available`.
        params: Arguments besides fraction and seed, as pairs.
    """

    name: str
    method: str
    params: tuple[tuple[str, Any], ...] = ()

    def build(self, fraction: float, seed: int) -> BaseReducer:
        """The reducer for a fraction."""
        return create(self.method, fraction=fraction, random_state=seed, **dict(self.params))


_GLOBAL = ("stratify", "global")
VARIANTS = (
    Arm("stratified-random.global", "stratified-random", (_GLOBAL,)),
    Arm("protodash.linear", "protodash", (("kernel", "linear"),)),
    Arm("distance-entropy.global", "distance-entropy", (_GLOBAL,)),
    Arm("matrix-decomposition.global", "matrix-decomposition", (_GLOBAL,)),
)
"""Plain random sampling without classes, and what the published code does in place of the definitions."""


def arms() -> dict[str, Arm]:
    """Every arm that reduces, by name: all methods, then the variants."""
    return {arm.name: arm for arm in (*(Arm(name, name) for name in sorted(available())), *VARIANTS)}


@dataclass(frozen=True)
class Protocol:
    """The published training of one data set.

    Attributes:
        recipe: Of the network.
        forgetting_epochs: After how many epochs on all rows forgetting events choose; the rest follows on
            the chosen rows.
        weighted: Whether the loss weighs classes by the inverse of their size in the whole table.
    """

    recipe: Recipe
    forgetting_epochs: int
    weighted: bool


PROTOCOLS = {
    "dry_bean": Protocol(Recipe(), 50, weighted=True),
    "collision": Protocol(Recipe(batch_size=1024, dropout=0.5, epochs=600), 200, weighted=False),
}
CONVERGED = Recipe(batch_size=64, dropout=0.0, learning_rate=0.002, decays=True)
CONVERGED_STEPS = 6000
"""The published network trained to the end, on standardised features, as many steps whatever is kept;
chosen by the accuracy with all and with a tenth at random on the split of seed 1000, which no run has."""


class Table:
    """A data set as the published study prepares it: scaled to [0, 1] on all rows, and shuffled once.

    Args:
        dataset: Name among :data:`drip.reduction.datasets.TABLES`.
        n_rows: Only so many rows of the shuffled table; None for all.
    """

    name = "table"
    groups: IntArray | None = None

    def __init__(self, dataset: str, n_rows: int | None = None) -> None:
        if dataset not in PROTOCOLS:
            raise InputError(f"{dataset!r}: no such table; choose one of {', '.join(PROTOCOLS)}")
        table = load_table(dataset)
        low, spread = table.values.min(axis=0), np.ptp(table.values, axis=0)
        order = np.random.RandomState(SHUFFLE_SEED).permutation(len(table))[:n_rows]
        self.values: FloatArray = ((table.values - low) / np.where(spread > 0, spread, 1.0))[order]
        self.labels: IntArray = table.labels[order]
        self.n_classes = len(table.class_names)
        self.protocol = PROTOCOLS[dataset]
        self._digest = sha256_hex(self.values.tobytes() + self.labels.tobytes())[:16]

    @property
    def config(self) -> JsonObject:
        """What every number depends on."""
        return {"rows": len(self.labels), "table": self._digest, "test_share": TEST_SHARE}


@dataclass(frozen=True)
class Cost:
    """What a piece of work took.

    Attributes:
        seconds: Processor time.
        joules: Energy; NaN where nothing is known.
        measured: Whether all joules were read from sensors.
        source: Where the joules come from.
    """

    seconds: float
    joules: float
    measured: bool
    source: str

    def share(self, part: float) -> Cost:
        """A part of it."""
        return replace(self, seconds=part * self.seconds, joules=part * self.joules)

    def plus(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(
            self.seconds + other.seconds,
            self.joules + other.joules,
            self.measured and other.measured,
            other.source,
        )


@dataclass(frozen=True)
class Reduced:
    """A reduced training set.

    Attributes:
        rows: Points and classes.
        cost: Of the reduction.
        metrics: Size and representativeness.
    """

    rows: Rows
    cost: Cost
    metrics: dict[str, float]


class TabularWorkspace:
    """One split of a table; everything is computed when first asked for.

    Args:
        unit: Whose seed decides split, draws and training order.
        table: The data set.

    Attributes:
        wanted: The cells that will be asked for: their networks are trained together.
    """

    def __init__(self, unit: Unit, table: Table) -> None:
        self.unit, self.table = unit, table
        self.wanted: Sequence[Cell] = ()
        train, test = train_test_split(
            np.arange(len(table.labels)), test_size=TEST_SHARE, random_state=unit.seed
        )
        self.train: IntArray = train
        self.test: IntArray = test
        self.reduced = cache(self._reduced)
        self._networks = cache(self._train_networks)

    def network(self, cell: Cell) -> Outcome:
        """The published network on a cell's rows, trained beside those of the other cells."""
        return self._networks("forgetting" if goes_on(cell) else str(cell.get("model")))[cell]

    def classifier(self, cell: Cell) -> Outcome:
        """A classifier of scikit-learn on a cell's rows."""
        reduced = self.rows_of(cell)
        model = (
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            if cell.get("model") == "logistic"
            else HistGradientBoostingClassifier(early_stopping=False, random_state=self.unit.seed)
        )
        with costing() as cost:
            model.fit(reduced.rows.values, reduced.rows.codes)
        logits = np.full((len(self.test), self.table.n_classes), -1e3)  # a lost class is never predicted
        logits[:, model.classes_] = np.log(
            np.maximum(model.predict_proba(self.table.values[self.test].astype(np.float32)), 1e-30)
        )
        return self._outcome(cell, logits, cost[0], {})

    def rows_of(self, cell: Cell) -> Reduced:
        """What a cell's model is trained on."""
        return self.all_rows if cell.arm == "all" else self.reduced(cell.arm, float(cell.get("fraction")))

    @cached_property
    def all_rows(self) -> Reduced:
        """The whole training part."""
        rows = Rows(self.table.values[self.train].astype(np.float32), self.table.labels[self.train])
        size: dict[str, float] = {"n_train": len(self.train), "n_all": len(self.train)}
        return Reduced(rows, Cost(0.0, 0.0, measured=True, source="nothing to do"), size)

    def _reduced(self, name: str, fraction: float) -> Reduced:
        arm, options, before = arms()[name], {}, None
        values, codes = self.table.values[self.train], self.table.labels[self.train]
        if arm.method == FORGETTING:
            options, before = {"events": self._forgetting[1]}, self._forgetting[2]
        with costing() as cost:
            points, kept = arm.build(fraction, self.unit.seed).fit_resample(values, codes, **options)
        found = {
            metric: epsilon_representativeness(values, codes, points, kept, metric=metric)
            for metric in ("chebyshev", "euclidean")
        }
        metrics: dict[str, float] = {
            "n_train": len(kept),
            "n_all": len(codes),
            "n_lost": len(found["chebyshev"].lost),
            "epsilon": found["chebyshev"].epsilon,
            "epsilon_l2": found["euclidean"].epsilon,
            "mean_distance": found["chebyshev"].overall.mean,
        }
        rows = Rows(np.asarray(points, np.float32), np.asarray(kept, np.int64))
        return Reduced(rows, cost[0] if before is None else before.plus(cost[0]), metrics)

    @cached_property
    def _forgetting(self) -> tuple[Networks, FloatArray, Cost]:
        """The network after its first epochs on all rows, how often it forgot each, and the cost of both."""
        rows, recipe = self.all_rows.rows, self.table.protocol.recipe
        tracker, every = ForgettingTracker(len(rows.codes)), np.arange(len(rows.codes))
        network = Networks(self._widths(recipe), 1, self.unit.seed)

        def look() -> None:
            tracker.update(every, network.logits(rows.values)[0].argmax(axis=1) == rows.codes)

        with costing() as cost:
            steps = recipe.steps(len(rows.codes), self.table.protocol.forgetting_epochs)
            network.train([rows], [steps], recipe, self._class_weights, look)
        return network, tracker.counts().astype(np.float64), cost[0]

    def _train_networks(self, group: str) -> dict[Cell, Outcome]:
        """All wanted networks of a group at once; the cost is divided by steps."""
        cells = [
            cell
            for cell in self.wanted
            if cell.get("model") in ("network", "converged")
            and group == ("forgetting" if goes_on(cell) else cell.get("model"))
        ]
        recipe = CONVERGED if group == "converged" else self.table.protocol.recipe
        steps = [self._steps(cell) for cell in cells]
        centre, spread = self._standard if group == "converged" else (np.float32(0.0), np.float32(1.0))
        sets = [Rows((rows.values - centre) / spread, rows.codes) for rows in map(self._rows, cells)]
        start = 0
        if group == "forgetting":
            networks, start = self._forgetting[0].copies(len(cells)), self._forgetting[0].n_steps
        else:
            networks = Networks(self._widths(recipe), len(cells), self.unit.seed)
        with costing() as cost:
            networks.train(sets, steps, recipe, self._class_weights)
        test = self.table.values[self.test].astype(np.float32)
        logits = networks.logits((test - centre) / spread)
        total = sum(steps)
        return {
            cell: self._outcome(cell, found, cost[0].share(n / total), {"steps": start + n})
            for cell, found, n in zip(cells, logits, steps, strict=True)
        }

    def _rows(self, cell: Cell) -> Rows:
        return self.rows_of(cell).rows

    @cached_property
    def _standard(self) -> tuple[Values, Values]:
        """Mean and deviation of every feature of the training part, whatever is kept of it."""
        values = self.all_rows.rows.values
        spread = values.std(axis=0)
        return values.mean(axis=0), np.where(spread > 0, spread, np.float32(1.0))

    def _steps(self, cell: Cell) -> int:
        """Optimiser steps of a cell, those before forgetting events were counted left out."""
        recipe, n = self.table.protocol.recipe, len(self._rows(cell).codes)
        if cell.get("model") == "converged":
            return CONVERGED_STEPS
        if goes_on(cell):
            return recipe.steps(n, recipe.epochs - self.table.protocol.forgetting_epochs)
        if cell.get("budget") == "steps":
            return recipe.steps(len(self.train))
        if cell.get("budget") == "fraction":
            return recipe.steps(round(float(cell.get("fraction")) * len(self.train)))
        return recipe.steps(n)

    def _widths(self, recipe: Recipe) -> tuple[int, ...]:
        return (self.table.values.shape[1], *recipe.hidden, self.table.n_classes)

    @cached_property
    def _class_weights(self) -> FloatArray:
        """Rows / (classes x rows of the class), over the whole table; or ones."""
        counts = np.bincount(self.table.labels, minlength=self.table.n_classes)
        if not self.table.protocol.weighted:
            return np.ones(len(counts))
        return np.asarray(counts.sum() / (len(counts) * np.maximum(counts, 1)), np.float64)

    def _outcome(self, cell: Cell, logits: FloatArray, fit: Cost, more: dict[str, float]) -> Outcome:
        reduced = self.rows_of(cell)
        both = reduced.cost.plus(fit)
        metrics = {
            **evaluate(logits, self.table.labels[self.test], self.table.n_classes),
            **reduced.metrics,
            **more,
            "reduce_s": round(reduced.cost.seconds, 4),
            "fit_s": round(fit.seconds, 4),
            "joules": round(both.joules, 3),
            "joules_measured": float(both.measured),
        }
        finite = {name: float(value) for name, value in metrics.items() if isfinite(value)}
        return Outcome(finite, {"energy": both.source, "scikit-learn": version("scikit-learn")})


def goes_on(cell: Cell) -> bool:
    """Whether the network of a cell is the one whose forgetting events chose its rows, trained further."""
    return cell.arm == FORGETTING and cell.get("budget") == "epochs"


@contextmanager
def costing() -> Iterator[list[Cost]]:
    """The cost of a block, in the list when it has ended."""
    found: list[Cost] = []
    energy: Energy
    with measure_energy(watts=WATTS) as energy:
        yield found
    names = {"estimate": f"estimate: processor time at {WATTS:g} W"}
    source = " + ".join(names.get(part, part) for part in energy.parts)
    found.append(Cost(energy.cpu_seconds, energy.joules, energy.measured, source))
