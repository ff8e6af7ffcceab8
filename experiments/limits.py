"""Study `limits`: what a rule could do with labels that no device has; yardsticks, not bounds.

`misclassified-first` keeps what the deployed model gets wrong, then the smallest margins: it reads the labels
of the stream. Another rule may be above it. In the stream `heldout` the samples that look most like the known
classes are kept, by several scores and by a linear one that was trained on which samples are junk. The junk
among them shows how well a score tells the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.linalg import norm
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from drip.rules.extra import EnergyRule
from drip.rules.uncertainty import MarginRule
from drip.types import FloatArray, IntArray, JsonObject, Observations
from experiments import registered, streams
from experiments.cells import Cell, Unit
from experiments.regimes import Regime
from experiments.streams import RETENTION, SCENARIOS, StreamWorkspace
from experiments.workspace import Outcome, Workspace

NAME = "limits"
REGIMES = ("head",)
FOREIGN = streams.FOREIGN
"""As in the study of streams: its views are shared."""
YARDSTICK = "misclassified-first"
SCENARIO = "heldout"
REFERENCE = "random"
MEASURES = ("margin", "max-logit", "energy", "mahalanobis", "neighbours", "labels")
"""Scores that rank samples by how known they look; ``labels`` was trained on which of the others are junk."""
ARMS = (YARDSTICK, REFERENCE, *(f"known-by-{measure}" for measure in MEASURES))
_NEIGHBOURS = 10

views = registered.views


def cells(unit: Unit) -> Iterator[Cell]:
    """The yardstick at every registered keep rate, then the scores on the stream with held-out classes."""
    for retention in registered.plan()["iid"]["retentions"]:
        yield unit.cell(YARDSTICK, retention=retention)
    if unit.dataset in registered.plan()["streams"]["datasets"]:
        for arm in ARMS[1:]:
            yield unit.cell(arm, scenario=SCENARIO, retention=RETENTION)


def config(cell: Cell) -> JsonObject:
    """What the cell's numbers depend on besides the regime."""
    shared: JsonObject = {"split": "40/20/40", "calibration": "d1c"}
    if cell.get("scenario") is None:
        return {**shared, "count": "exact"}
    return {**shared, "scenario": SCENARIOS[SCENARIO], "of": "half of the different items"}


def workspace(unit: Unit, regime: Regime) -> Workspace:
    """What the unit's cells share."""
    bench = registered.workspace(unit, regime)
    return LimitsWorkspace(bench.unit, bench.regime) if isinstance(bench, StreamWorkspace) else bench


def run(cell: Cell, bench: Workspace) -> Outcome:
    """Measure one cell."""
    if cell.get("scenario") is None:
        return Outcome(_yardstick(bench, cell.get("retention")), {})
    assert isinstance(bench, LimitsWorkspace)  # noqa: S101  # only such data sets have scenarios
    return Outcome(bench.most_known(cell.arm), {})


def _yardstick(bench: Workspace, retention: float) -> dict[str, float]:
    stream, rows = bench.stream("d1c"), bench.split.d3
    wrong = stream.classes != bench.regime.labels[rows]
    order = np.lexsort((bench.rng(YARDSTICK).random(len(rows)), -MarginRule().score(stream), ~wrong))
    kept = np.sort(order[: round(retention * len(rows))])
    return {
        **bench.finish(rows[kept]),
        "n_stream": len(rows),
        "n_kept": len(kept),
        "errors_kept": float(wrong[kept].sum() / max(1, wrong.sum())),
    }


class LimitsWorkspace(StreamWorkspace):
    """The stream `heldout`; one half of its different items trains ``labels``, the other is judged."""

    def __init__(self, unit: Unit, regime: Regime) -> None:
        super().__init__(unit, regime)  # type: ignore[arg-type]  # streams have the head-only regime
        self.halves = cache(self._halves)

    def most_known(self, arm: str) -> dict[str, float]:
        """Keep the judged items that look most known; junk among them, accuracy, and the ordering's AUROC."""
        scene = self.scenario(SCENARIO)
        _, judged = self.halves()
        order = self.rng(arm).random(len(judged)) if arm == REFERENCE else self._known(arm)
        kept = judged[np.argsort(-order, kind="stable")[: round(RETENTION * len(judged))]]
        is_junk = scene.labels[judged] < 0
        metrics, _ = self.score(SCENARIO, np.sort(kept))
        return {
            **metrics,
            "n_stream": len(judged),
            "n_kept": len(kept),
            "junk_kept": float((scene.labels[kept] < 0).mean()),
            "auroc": float(roc_auc_score(~is_junk, order)),
        }

    def _halves(self) -> tuple[IntArray, IntArray]:
        """Positions of the first arrivals of the different items, in two halves at random."""
        _, first = np.unique(self.scenario(SCENARIO).items, return_index=True)
        shuffled = self.rng("halves").permutation(first)
        return np.sort(shuffled[::2]), np.sort(shuffled[1::2])

    def _known(self, arm: str) -> FloatArray:
        """How known each judged item looks, the higher the more."""
        measure = arm.removeprefix("known-by-")
        taught, judged = self.halves()
        _, stream = self.observed(SCENARIO)
        seen = stream[judged]
        if measure == "max-logit":
            return np.asarray(seen.logits.max(axis=1), np.float64)
        if measure in ("margin", "energy"):
            return -(MarginRule() if measure == "margin" else EnergyRule()).score(seen)
        scene = self.scenario(SCENARIO)
        if measure == "labels":
            lessons, is_known = _features(stream[taught]), scene.labels[taught] >= 0
            scaled = StandardScaler().fit(lessons)
            line = LogisticRegression(C=0.001, max_iter=2000).fit(scaled.transform(lessons), is_known)
            return np.asarray(line.decision_function(scaled.transform(_features(seen))))
        known = self.regime.observe(self.model(SCENARIO), scene.d1_fit)
        if measure == "neighbours":
            return _by_neighbours(_features(seen), _features(known))
        return _by_distance(seen, known, self.truth(scene.d1_fit))


def _by_distance(seen: Observations, known: Observations, labels: IntArray) -> FloatArray:
    """Minus the squared Mahalanobis distance to the nearest class, in all features of the network.

    References:
        Lee, Lee, Lee and Shin (2018), A simple unified framework for detecting out-of-distribution samples.
    """
    rows, classes = _features(known), np.unique(labels)
    means = np.stack([rows[labels == label].mean(axis=0) for label in classes])
    shrunk = LedoitWolf(assume_centered=True).fit(rows - means[np.searchsorted(classes, labels)])
    away = [shrunk.mahalanobis(_features(seen) - mean) for mean in means]
    return -np.asarray(np.min(away, axis=0))


def _by_neighbours(seen: FloatArray, known: FloatArray) -> FloatArray:
    """Cosine to the tenth nearest training sample.

    References:
        Sun, Ming, Zhu and Li (2022), Out-of-distribution detection with deep nearest neighbors.
    """
    seen, known = (rows / np.maximum(norm(rows, axis=1, keepdims=True), 1e-12) for rows in (seen, known))
    return np.asarray(np.sort(seen @ known.T, axis=1)[:, -_NEIGHBOURS])


def _features(observations: Observations) -> FloatArray:
    assert observations.features is not None  # noqa: S101  # every regime gives them
    return np.asarray(observations.features, np.float64)
