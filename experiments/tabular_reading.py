"""The records of the study of tables as runs that can be compared, and the published numbers beside them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from drip.reduction import available
from experiments.cells import Scalar
from experiments.reading import Evidence, Place, Series
from experiments.statistics import Comparison, compare
from experiments.tables import Grid, grid
from experiments.tabular import FRACTIONS, NAME, REGIMES
from experiments.tabular_workspace import VARIANTS

PUBLISHED = Path(__file__).with_name("tabular.toml")
METRIC = "macro_f1"
_LEAST_METHODS = 4  # fewer have no rank correlation to speak of
RANDOM = "stratified-random"
ALL = "all"


@dataclass(frozen=True)
class Training:
    """What is trained on the rows that are kept.

    Attributes:
        title: Heading of a column.
        model: The setting of that name.
        budget: The setting of that name; empty where there is none.
    """

    title: str
    model: str
    budget: str = ""

    def settings(self, fraction: float | None = None) -> dict[str, Scalar]:
        """The settings of a cell."""
        budget: dict[str, Scalar] = {"budget": self.budget} if self.budget else {}
        return {"model": self.model, **budget, **({} if fraction is None else {"fraction": fraction})}


PROTOCOL = Training("published protocol", "network", "epochs")
EQUAL_STEPS = Training("equal steps", "network", "steps")
FEWER_STEPS = Training("as many steps", "network", "fraction")
CONVERGED = Training("converged", "converged")
LOGISTIC = Training("logistic regression", "logistic")
BOOSTING = Training("gradient boosting", "boosting")
TO_THE_END = (CONVERGED, LOGISTIC, BOOSTING)
"""Models whose training does not stop early where rows are few."""


@cache
def published(dataset: str) -> dict[str, Any]:
    """The published numbers of a data set; empty where there are none."""
    with PUBLISHED.open("rb") as file:
        stated = tomllib.load(file)
    found: dict[str, Any] = stated.get(dataset, {})
    return {**found, "fractions": stated["fractions"]} if found else {}


def abbreviation(arm: str) -> str:
    """The literature's name of a method; empty for a variant.

    >>> abbreviation("maxmin"), abbreviation("protodash.linear")
    ('MMS', '')
    """
    return available()[arm].abbreviation if arm in available() else ""


def stated_as(arm: str) -> str:
    """The published column that an arm is like: of the faults of the published code, where we measure them.

    >>> stated_as("maxmin"), stated_as("protodash.linear"), stated_as("protodash")
    ('MMS', 'PRD', '')
    """
    faults = {variant.name: variant.method for variant in VARIANTS if variant.method != RANDOM}
    return "" if arm in faults.values() else abbreviation(faults.get(arm, arm))


def label(arm: str) -> str:
    """An arm as tables call it.

    >>> label("maxmin"), label("protodash.linear")
    ('maxmin (MMS)', 'protodash.linear')
    """
    short = abbreviation(arm)
    return f"{arm} ({short})" if short else arm


def title(dataset: str) -> str:
    """A data set as headings call it."""
    return str(published(dataset).get("name", dataset.capitalize()))


def share(fraction: float) -> str:
    """A fraction as columns call it.

    >>> share(0.1)
    '10 %'
    """
    return f"{100 * fraction:g} %"


@dataclass(frozen=True)
class Runs:
    """All runs of the study on one data set.

    Attributes:
        evidence: The records.
        dataset: Which.
    """

    evidence: Evidence
    dataset: str

    def series(self, arm: str, training: Training, fraction: float | None = None) -> Series | None:
        """The runs of one arm; those with all rows have no fraction, unless their steps do."""
        free = arm == ALL and training is not FEWER_STEPS
        place = Place(NAME, REGIMES[0], self.dataset).at(**training.settings(None if free else fraction))
        return self.evidence.series.get((place, arm))

    def summary(
        self, arm: str, training: Training, fraction: float | None, metric: str
    ) -> tuple[float, float]:
        """Mean and standard deviation; NaN where there is no run with the metric."""
        found = self.series(arm, training, fraction)
        return (float("nan"), float("nan")) if found is None else found.summary(metric)[:2]

    def difference(
        self,
        first: tuple[str, Training],
        second: tuple[str, Training],
        fraction: float,
        metric: str = METRIC,
    ) -> Comparison | None:
        """Mean of the first minus the second over their common runs; None without one.

        The correction for re-splits takes all training rows, kept or not: two runs are alike because they
        draw from the same of them.
        """
        pair = [self.series(arm, training, fraction) for arm, training in (first, second)]
        a, b = pair
        if a is None or b is None or a is b:
            return None
        seeds = sorted(set(a.runs) & set(b.runs))
        values = a.values(metric, seeds) - b.values(metric, seeds)
        held = np.isfinite(values)
        if not held.any():
            return None
        ratio = float((a.values("n_test", seeds) / a.values("n_all", seeds)).mean())
        return compare(values[held], ratio)

    def follows_epsilon(self, training: Training, fraction: float, epsilon: str) -> Comparison | None:
        """Mean over the runs of Spearman's correlation of a distance with F1 over the methods.

        None without runs of enough methods, or where all of a run are equal.

        Args:
            training: What is trained.
            fraction: Share of the rows kept.
            epsilon: The metric: ``epsilon`` or ``mean_distance``.
        """
        held = [self.series(arm, training, fraction) for arm in self.arms if abbreviation(arm)]
        methods = [one for one in held if one is not None and one.has(epsilon)]
        if len(methods) < _LEAST_METHODS:
            return None
        seeds = sorted(set.intersection(*(set(one.runs) for one in methods)))
        columns = [np.array([one.values(name, seeds) for one in methods]).T for name in (epsilon, METRIC)]
        if not seeds or any((np.ptp(column, axis=1) == 0).any() for column in columns):
            return None
        return compare([spearmanr(*pair).statistic for pair in zip(*columns, strict=True)])

    def against(
        self,
        reference: str,
        columns: Mapping[str, tuple[Training, float]],
        metric: str = METRIC,
        *,
        variants: bool = True,
    ) -> Grid:
        """Every arm minus a reference, by training and fraction."""
        cells = {
            (label(arm), title): self.difference((arm, training), (reference, training), fraction, metric)
            for arm in self.arms
            for title, (training, fraction) in columns.items()
            if arm != reference and (variants or abbreviation(arm))
        }
        return grid(f"minus {reference}", [label(arm) for arm in self.arms], list(columns), cells)

    @cached_property
    def arms(self) -> list[str]:
        """The arms that reduce: random first, published methods, others, variants."""
        found = {arm for place, arm in self.evidence.series if place.dataset == self.dataset} - {ALL}
        stated = list(published(self.dataset).get(METRIC, ()))
        variants = [arm.name for arm in VARIANTS]

        def rank(arm: str) -> tuple[Any, ...]:
            short = abbreviation(arm)
            return (
                arm in variants,
                stated.index(short) if short in stated else len(stated),
                variants.index(arm) if arm in variants else 0,
                arm,
            )

        return sorted(found, key=rank)

    @property
    def fractions(self) -> Sequence[float]:
        """Fractions with a record of the published protocol."""
        return [p for p in FRACTIONS if any(self.series(arm, PROTOCOL, p) for arm in self.arms)]

    @property
    def controlled(self) -> Sequence[float]:
        """Fractions with a record of another model."""
        return [p for p in FRACTIONS if any(self.series(arm, CONVERGED, p) for arm in self.arms)]

    @property
    def n_runs(self) -> int:
        """Most runs of an arm."""
        return max((len(one.runs) for one in self.evidence.series.values()), default=0)
