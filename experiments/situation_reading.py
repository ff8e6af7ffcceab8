"""The numbers of the study `situations`: paired differences to random, and how many random samples do the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from drip.types import FloatArray
from experiments.ledger import Record
from experiments.situation_study import CURVE, NAME
from experiments.statistics import Comparison, compare

_DRAWS = 2_000


@dataclass(frozen=True)
class Place:
    """Where arms are compared.

    Attributes:
        dataset: Name of the data set.
        situation: Name of the situation.
        backbone: Name of the backbone.
    """

    dataset: str
    situation: str
    backbone: str


@dataclass(frozen=True)
class Needs:
    """How many times as many random samples lead to the same value.

    Attributes:
        ratio: Of the mean curves; infinite where even the whole stream does not reach the value.
        low: Lower end of the 95 % bootstrap interval over runs.
        high: Upper end.
    """

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Result:
    """One arm at one place and keep rate.

    Attributes:
        place: Where.
        arm: Name of the arm.
        keep: Keep rate.
        random: Mean value of random choices of the same count, in [0, 1].
        difference: The arm minus random, paired by run.
        all_minus_random: Everything kept minus random, paired by run: what there is to gain.
        marked: Mean part of what is kept that the situation is about; None where it marks nothing.
        values: The arm's value of every run, shape (n,).
        curve: Random's values at nothing, :data:`CURVE` and everything, shape (n, len(CURVE) + 2).
    """

    place: Place
    arm: str
    keep: float
    random: float
    difference: Comparison
    all_minus_random: Comparison
    marked: float | None
    values: FloatArray
    curve: FloatArray

    @property
    def differences(self) -> FloatArray:
        """The arm minus random of every run, shape (n,)."""
        return self.values - self.curve[:, 1 + CURVE.index(self.keep)]

    @property
    def ratio(self) -> float:
        """How many times as many random samples lead to the same mean value."""
        return ratio(float(self.values.mean()), self.curve.mean(0), self.keep)

    def needs(self) -> Needs:
        """The ratio with its bootstrap interval."""
        return random_needs(self.values, self.curve, self.keep)


Runs = dict[tuple[Place, str, float], dict[int, Mapping[str, float]]]
"""Metrics by place, arm, keep rate (0 where the arm has none) and run."""


def runs_of(records: Iterable[Record]) -> Runs:
    """The records of the study, by place."""
    runs: Runs = defaultdict(dict)
    for record in records:
        cell = record.cell
        if cell.unit.study == NAME and not cell.get("labelled"):
            place = Place(cell.unit.dataset, cell.get("situation"), cell.get("backbone"))
            runs[place, cell.arm, cell.get("retention", 0.0)][cell.unit.seed] = record.metrics
    return runs


def by_situation(runs: Runs) -> Runs:
    """Means over the places of every situation; a run that lacks one of them is left out."""
    places: dict[str, set[Place]] = defaultdict(set)
    for place, _, _ in runs:
        places[place.situation].add(place)
    found: Runs = {}
    for name, arm, keep in {(place.situation, arm, keep) for place, arm, keep in runs}:
        parts = [runs.get((place, arm, keep), {}) for place in places[name]]
        seeds = set.intersection(*(set(part) for part in parts))
        found[Place("", name, ""), arm, keep] = {
            seed: {
                metric: float(np.mean([part[seed][metric] for part in parts]))
                for metric in ("accuracy", "marked", "marked_kept")
                if all(metric in part[seed] for part in parts)
            }
            for seed in sorted(seeds)
        }
    return found


def results(runs: Runs) -> list[Result]:
    """Every arm at every place and keep rate; runs without a counterpart are left out."""
    found = []
    for (place, arm, keep), mine in sorted(runs.items(), key=str):
        if arm in ("baseline", "all", "random"):
            continue
        needed = [runs.get((place, "random", step), {}) for step in CURVE]
        everything, nothing = runs.get((place, "all", 0.0), {}), runs.get((place, "baseline", 0.0), {})
        seeds = sorted(set(mine).intersection(everything, nothing, *needed))
        if len(seeds) < 2:
            continue
        values = np.array([mine[seed]["accuracy"] for seed in seeds])
        curve = np.array(
            [[run[seed]["accuracy"] for run in (nothing, *needed, everything)] for seed in seeds]
        )
        random = curve[:, 1 + CURVE.index(keep)]
        marked = [mine[seed]["marked_kept"] for seed in seeds]
        found.append(
            Result(
                place,
                arm,
                keep,
                float(random.mean()),
                compare(values - random),
                compare(curve[:, -1] - random),
                float(np.mean(marked)) if any(mine[seed]["marked"] for seed in seeds) else None,
                values,
                curve,
            )
        )
    return found


def random_needs(values: FloatArray, curve: FloatArray, keep: float) -> Needs:
    """How many times as many random samples lead to an arm's mean value.

    Args:
        values: The arm's value of every run, shape (n,).
        curve: Random's values at nothing, :data:`CURVE` and everything, shape (n, len(CURVE) + 2).
        keep: Keep rate of the arm.
    """
    draw = np.random.default_rng(0)
    picks = draw.integers(0, len(values), (_DRAWS, len(values)))
    ratios = np.sort([ratio(float(values[rows].mean()), curve[rows].mean(0), keep) for rows in picks])
    low, high = ratios[round(0.025 * (_DRAWS - 1))], ratios[round(0.975 * (_DRAWS - 1))]
    return Needs(ratio(float(values.mean()), curve.mean(0), keep), float(low), float(high))


def ratio(value: float, curve: FloatArray, keep: float) -> float:
    """The keep rate at which random reaches a value, divided by ``keep``.

    Random's mean curve is made monotone (least squares) and interpolated linearly in the keep rate between
    nothing and the first step, and in its logarithm beyond.

    >>> steps = np.concatenate([[0.0], np.array(CURVE), [1.0]])
    >>> round(ratio(0.2, steps, 0.1), 3), ratio(1.5, steps, 0.1)
    (2.0, inf)
    """
    kept = np.array([0.0, *CURVE, 1.0])
    rising = _monotone(curve)
    if value > rising[-1]:
        return inf
    above = int(np.argmax(rising >= value))
    if above == 0:
        return 0.0
    low, high = rising[above - 1], rising[above]
    part = (value - low) / (high - low)
    if above == 1:
        return float(part * kept[1] / keep)
    return float(kept[above - 1] * (kept[above] / kept[above - 1]) ** part / keep)


def _monotone(curve: FloatArray) -> FloatArray:
    """The non-decreasing sequence nearest to a curve: neighbours that fall are pooled."""
    blocks: list[list[float]] = []
    for value in curve.tolist():
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (one, n_one), (other, n_other) = blocks[-2:]
            blocks[-2:] = [[(one * n_one + other * n_other) / (n_one + n_other), n_one + n_other]]
    return np.concatenate([np.full(int(n), value) for value, n in blocks])


def median_needs(found: Iterable[Result]) -> float:
    """Median ratio over results; an infinite one counts as the largest."""
    ratios = sorted(one.ratio for one in found)
    middle = ratios[len(ratios) // 2]
    lower = ratios[(len(ratios) - 1) // 2]
    return (lower + middle) / 2 if isfinite(middle) else lower if isfinite(lower) else inf
