"""The numbers of the study `situations`: paired differences to random, and how many random samples do the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import inf, isfinite

import numpy as np

from drip.types import FloatArray, IntArray
from experiments.ledger import Record
from experiments.situation_study import CURVE, NAME, ORDERS
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
        seeds: The runs that have everything that is compared.
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
    seeds: tuple[int, ...]
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
"""Metrics by place, arm, keep rate and run. An order of labelling has the part of the stream that is labelled
instead of the keep rate; nothing and everything have 0."""


def runs_of(records: Iterable[Record], regime: str = "head") -> Runs:
    """The records of the study in one regime, by place."""
    runs: Runs = defaultdict(dict)
    for record in records:
        cell = record.cell
        if cell.unit.study == NAME and cell.unit.regime == regime:
            place = Place(cell.unit.dataset, cell.get("situation"), cell.get("backbone"))
            part = cell.get("labelled", cell.get("retention", 0.0))
            runs[place, cell.arm, part][cell.unit.seed] = record.metrics
    return dict(runs)


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


@dataclass(frozen=True, eq=False)
class Study:
    """The records of the study.

    Attributes:
        runs: Its metrics.
    """

    runs: Runs

    @cached_property
    def results(self) -> list[Result]:
        """Every arm at every place and keep rate."""
        return results(self.runs)

    @cached_property
    def means(self) -> Study:
        """The same over the places of every situation."""
        return Study(by_situation(self.runs))


def results(runs: Runs) -> list[Result]:
    """Every arm at every place and keep rate; runs without a counterpart are left out."""
    found = []
    for (place, arm, keep), mine in sorted(runs.items(), key=str):
        if arm in ("baseline", "all", "random", *ORDERS):
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
                tuple(seeds),
                values,
                curve,
            )
        )
    return found


def labelling(runs: Runs) -> dict[tuple[Place, float], Comparison]:
    """The proposed order of labelling minus a random one, by place and part of the stream that is labelled."""
    random, proposed = ORDERS
    found = {}
    for (place, arm, labelled), mine in sorted(runs.items(), key=str):
        other = runs.get((place, random, labelled), {})
        seeds = sorted(set(mine) & set(other))
        if arm == proposed and len(seeds) > 1:
            found[place, labelled] = compare(
                [mine[seed]["accuracy"] - other[seed]["accuracy"] for seed in seeds]
            )
    return found


def whole_network(records: Iterable[Record], arm: str) -> dict[tuple[Place, float], Comparison]:
    """An arm minus random where the whole network was trained, by place and keep rate."""
    runs = runs_of(records, "full")
    found = {}
    for (place, name, keep), mine in sorted(runs.items(), key=str):
        other = runs.get((place, "random", keep), {})
        seeds = sorted(set(mine) & set(other))
        if name == arm and len(seeds) > 1:
            found[place, keep] = compare([mine[seed]["accuracy"] - other[seed]["accuracy"] for seed in seeds])
    return found


def random_needs(values: FloatArray, curve: FloatArray, keep: float) -> Needs:
    """How many times as many random samples lead to an arm's mean value, with a bootstrap interval over runs.

    Args:
        values: The arm's value of every run, shape (n,).
        curve: Random's values at nothing, :data:`CURVE` and everything, shape (n, len(CURVE) + 2).
        keep: Keep rate of the arm.
    """
    picks = _picks(len(values))
    ratios = np.sort(_ratios(values[picks].mean(1), _resampled(curve.tobytes(), len(curve)), keep))
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
    return float(_ratios(np.array([value]), _monotone(curve)[None], keep)[0])


def _picks(n: int) -> IntArray:
    """The runs of every draw, shape (_DRAWS, n)."""
    return np.random.default_rng(0).integers(0, n, (_DRAWS, n))


@lru_cache(maxsize=64)
def _resampled(curve: bytes, n: int) -> FloatArray:
    """The mean curve of every draw, made monotone; all arms of a place share it."""
    return _monotone(np.frombuffer(curve).reshape(n, -1)[_picks(n)].mean(1))


def _ratios(values: FloatArray, rising: FloatArray, keep: float) -> FloatArray:
    """:func:`ratio` of n values, each on its own monotone curve, shape (n,)."""
    kept, rows = np.array([0.0, *CURVE, 1.0]), np.arange(len(values))
    above = np.argmax(rising >= values[:, None], axis=1)
    below = np.maximum(above - 1, 0)
    low, high = rising[rows, below], rising[rows, above]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (values - low) / (high - low)
        reached = np.where(above == 1, part * kept[1], kept[below] * (kept[above] / kept[below]) ** part)
    reached[above == 0] = 0.0
    reached[values > rising[:, -1]] = inf
    return np.asarray(reached / keep, np.float64)


def _monotone(curves: FloatArray) -> FloatArray:
    """The non-decreasing curves nearest to curves, shape (..., n): the largest minimum of means around a point."""
    n = curves.shape[-1]
    sums = np.concatenate([np.zeros((*curves.shape[:-1], 1)), np.cumsum(curves, -1)], -1)
    sizes = np.arange(1, n + 1)[None, :] - np.arange(n)[:, None]
    means = (sums[..., None, 1:] - sums[..., :-1, None]) / np.maximum(sizes, 1)
    return np.stack([means[..., : at + 1, at:].min(-1).max(-1) for at in range(n)], -1)


def median_needs(found: Iterable[Result]) -> float:
    """Median ratio over results; an infinite one counts as the largest."""
    ratios = sorted(one.ratio for one in found)
    middle = ratios[len(ratios) // 2]
    lower = ratios[(len(ratios) - 1) // 2]
    return (lower + middle) / 2 if isfinite(middle) else lower if isfinite(lower) else inf
