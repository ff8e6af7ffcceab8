"""A regime: how a model is trained and how it scores, on rows of one data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from drip.scoring import TorchScorer
from drip.types import FloatArray, IntArray, JsonObject, Observations

BATCH = 256
"""Rows that are scored at a time."""


class Regime(Protocol):
    """Training and scoring on the rows of one data set.

    Rows are indices into the data set, or, where the regime offers variants of its inputs (noise, blur),
    indices beyond it; labels are given beside them, because a study may change them.
    """

    name: str
    n_classes: int

    @property
    def config(self) -> JsonObject:
        """Everything that a result depends on besides rows, labels and seed: recipe, digests, input size."""
        ...

    @property
    def labels(self) -> IntArray:
        """True classes of the data set's rows, shape (n,)."""
        ...

    @property
    def groups(self) -> IntArray | None:
        """Rows of one group are never on both sides of a split."""
        ...

    @property
    def sizes(self) -> IntArray:
        """Encoded size of every row in bytes, shape (n,)."""
        ...

    def fit(self, rows: IntArray, labels: IntArray, *, seed: int, full_rows: int | None = None) -> Any:
        """Train from the initial weights.

        Args:
            rows: Training rows, shape (n,).
            labels: Their labels, shape (n,).
            seed: Seed of initial weights and order.
            full_rows: None trains for the recipe's epochs; a number trains for as many steps as a set of
                that many rows would take (equal steps).
        """
        ...

    def observe(self, model: Any, rows: IntArray) -> Observations:
        """Scores ``drip``, ``drip_normalised`` and ``contrast``, logits, pooled features, sizes."""
        ...

    def logits(self, model: Any, rows: IntArray) -> FloatArray:
        """Logits, shape (n, n_classes)."""
        ...

    def steps(self, model: Any) -> int:
        """Optimiser steps that the model was trained for."""
        ...


def probabilities(logits: NDArray[np.floating[Any]]) -> FloatArray:
    """Softmax in float64, shape (n, n_classes)."""
    shifted = np.asarray(logits, np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def observe_maps(
    raw: TorchScorer,
    normalised: TorchScorer,
    rows: IntArray,
    maps_of: Callable[[IntArray], Any],
    sizes: IntArray,
) -> Observations:
    """Observations with the scores ``drip``, ``contrast`` and ``drip_normalised``, batch by batch.

    Args:
        raw: Scores maps with raw heatmaps, and the contrast.
        normalised: Scores the same maps with normalised heatmaps.
        rows: Which rows, shape (n,).
        maps_of: Rows to what the scorers take.
        sizes: Encoded bytes of the rows, shape (n,).
    """
    parts = []
    for start in range(0, max(1, len(rows)), BATCH):
        mine = slice(start, start + BATCH)
        maps = maps_of(rows[mine])
        found = raw.score(maps)
        scores = {
            "drip": found.named_scores["drip"],
            "contrast": found.named_scores["contrast"],
            "drip_normalised": normalised.score(maps).scores,
        }
        parts.append(
            Observations(
                classes=found.classes,
                logits=found.logits,
                named_scores=scores,
                features=found.features,
                n_bytes=sizes[mine],
            )
        )
    return Observations.concatenate(parts)
