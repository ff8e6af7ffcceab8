"""Study `tabular`: ways to reduce a table under the published protocol, and the controls that it lacks."""

from __future__ import annotations

from collections.abc import Iterator

from drip.types import JsonObject
from experiments.cells import Cell, Unit
from experiments.tabular_workspace import (
    CONVERGED,
    CONVERGED_STEPS,
    PROTOCOLS,
    SHUFFLE_SEED,
    VARIANTS,
    WATTS,
    Table,
    TabularWorkspace,
    arms,
    goes_on,
)
from experiments.workspace import Outcome

NAME = "tabular"
REGIMES = ("table",)
DATASETS = tuple(PROTOCOLS)
FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
CONTROLLED = (0.1, 0.3)
"""Fractions at which other models are trained."""
LEAST = FRACTIONS[0]
"""The fraction of the variants, and of equal steps, which the variants are left out of."""
MODELS = ("converged", "logistic", "boosting")
_NOT_RUN = {"collision": ("protodash", "protodash.linear", "persistent-homology")}
"""Left out by the published study for their cost."""


def cells(unit: Unit) -> Iterator[Cell]:
    """The cells of a run, those first that the others are compared with."""
    published = {"model": "network", "budget": "epochs"}
    variants = {arm.name for arm in VARIANTS}
    names = [name for name in arms() if name not in _NOT_RUN.get(unit.dataset, ())]
    yield unit.cell("all", **published)
    for fraction in FRACTIONS:
        yield unit.cell("all", model="network", budget="fraction", fraction=fraction)
        for name in names:
            if name not in variants or fraction == LEAST:
                yield unit.cell(name, **published, fraction=fraction)
    for name in names:
        if name not in variants:
            yield unit.cell(name, model="network", budget="steps", fraction=LEAST)
    for model in MODELS:
        yield unit.cell("all", model=model)
        for fraction in CONTROLLED:
            for name in names:
                if name not in variants or fraction == LEAST:
                    yield unit.cell(name, model=model, fraction=fraction)


def config(cell: Cell) -> JsonObject:
    """What the cell's numbers depend on besides the table."""
    protocol = PROTOCOLS[cell.unit.dataset]
    model = cell.get("model")
    trained: JsonObject = {}
    if model == "network":
        trained = {**protocol.recipe.to_json(), "weighted": protocol.weighted}
    elif model == "converged":
        trained = {**CONVERGED.to_json(), "steps": CONVERGED_STEPS, "weighted": protocol.weighted}
    if goes_on(cell):
        trained = {**trained, "forgetting_epochs": protocol.forgetting_epochs}
    arm = arms().get(cell.arm)
    return {
        "shuffle": SHUFFLE_SEED,
        "method": None if arm is None else {"name": arm.method, **dict(arm.params)},
        "model": {"name": model, **trained},
        "watts": WATTS,
    }


def workspace(unit: Unit, table: Table) -> TabularWorkspace:
    """What the run's cells share."""
    return TabularWorkspace(unit, table)


def run(cell: Cell, bench: TabularWorkspace) -> Outcome:
    """Measure one cell."""
    return bench.classifier(cell) if cell.get("model") in ("logistic", "boosting") else bench.network(cell)
