"""The streams: which items arrive in which order, what is junk, and what the final test looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from drip.types import IntArray
from experiments.head import HeadRegime
from experiments.protocol import Split

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
    """Every row comes in five near-duplicates within a stretch of arrivals."""
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
    """The own items with so many junk items among them, at random places, that junk makes its share."""
    count = min(len(junk), round(len(own) * JUNK / (1 - JUNK)))
    return rng.permutation(np.concatenate([own, junk[:count]]))
