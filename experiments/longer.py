"""Study `longer`: arms of Table I after longer training, where the baseline is below the paper's.

The training recipes do as little work as comes near the paper's accuracies. This study shows what more passes
change, in levels and in differences between arms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from typing import TYPE_CHECKING

from drip.types import JsonObject
from experiments import table1
from experiments.cells import Cell, Unit
from experiments.recipes import RECIPES
from experiments.workspace import Outcome, Workspace

if TYPE_CHECKING:  # it imports far more than the other regime needs
    from experiments.full import FullRegime

NAME = "longer"
REGIMES = ("full",)
DATASETS = ("cifar10",)
EPOCHS = (4,)
"""Passes over the training rows; the recipe of CIFAR-10 has 2."""
ARMS = ("baseline", "all", "paper.raw.window", "random")


class LongerWorkspace:
    """One protocol per length of training, on the same split: the deployed model is trained as long.

    Args:
        unit: Study, data set and seed.
        regime: With the data set's recipe.
    """

    def __init__(self, unit: Unit, regime: FullRegime) -> None:
        self.at = cache(lambda epochs: Workspace(unit, regime.trained_for(epochs)))


def cells(unit: Unit) -> Iterator[Cell]:
    """Every arm at every length, at the DPW of Table I's cells."""
    dpw = table1.discard_fraction(unit.dataset)
    for epochs in EPOCHS:
        for arm in ARMS:
            selecting = {} if arm in table1.ENDS else {"dpw": dpw}
            yield unit.cell(arm, budget="epochs", epochs=epochs, **selecting)


def config(cell: Cell) -> JsonObject:
    """What the cell's numbers depend on besides the regime; its training recipe replaces the usual one."""
    recipe = replace(RECIPES[cell.unit.dataset], epochs=cell.get("epochs"))
    return {**table1.config(cell), "recipe": asdict(recipe)}


def workspace(unit: Unit, regime: FullRegime) -> LongerWorkspace:
    """What the unit's cells share."""
    return LongerWorkspace(unit, regime)


def run(cell: Cell, bench: LongerWorkspace) -> Outcome:
    """Measure one cell as Table I does."""
    return table1.run(cell, bench.at(cell.get("epochs")))
