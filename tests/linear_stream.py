"""A stream of feature rows, a linear model of it and rules, for the tests of the production loop."""

from functools import cache

import numpy as np

from drip.errors import (
    InputError,
    NonFiniteError,
)
from drip.media import encode_npy
from drip.pipeline import observe
from drip.rules import create
from drip.types import Observations, Sample

N_FEATURES, N_CLASSES = 6, 3
WEIGHTS = np.random.default_rng(11).normal(size=(N_FEATURES, N_CLASSES))


class LinearScorer:
    """Logits by one matrix; the score is the largest of them."""

    provides = frozenset({"logits", "drip"})

    def __init__(self):
        self.batch_sizes = []

    def score(self, batch):
        self.batch_sizes.append(len(batch))
        if batch.shape[1:] != (N_FEATURES,):
            raise InputError(f"rows of {N_FEATURES} features are needed, got {batch.shape}")
        # Row by row: a matrix product may round differently for another number of rows.
        with np.errstate(invalid="ignore"):
            logits = np.stack([row.astype(np.float64) @ WEIGHTS for row in batch])
        return Observations(logits.argmax(1), logits, {"drip": logits.max(1)})


class StrictScorer(LinearScorer):
    """Refuses a batch with NaN, as the scorer for torch does."""

    def score(self, batch):
        observations = super().score(batch)
        if not np.isfinite(observations.logits).all():
            raise NonFiniteError("logits must be finite")
        return observations


def stream(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Sample(f"s{row}", encode_npy(rng.normal(size=N_FEATURES)), "application/x-npy", time_s=float(row))
        for row in range(n)
    ]


def broken(name):
    return Sample(name, b"not an array", "application/x-npy")


def poisoned(name, value=np.nan):
    return Sample(name, encode_npy(np.full(N_FEATURES, value)), "application/x-npy")


def wide(name):
    return Sample(name, encode_npy(np.zeros(N_FEATURES + 1)), "application/x-npy")


def rejected(name):
    """A payload that decodes: only the source's word keeps it from being decided on."""
    return Sample(name, stream(1)[0].data, "application/x-npy", rejected="its header is not a JSON object")


@cache
def calibration():
    return observe(stream(400, seed=1), LinearScorer())


def drip_rule():
    return create("drip", retention=0.6).calibrate(calibration())


def record(sink):
    return [(sample.id, observation.predicted_class, decision) for sample, observation, decision in sink.puts]


RULES = {
    "drip": drip_rule,
    "margin": lambda: create("margin").calibrate(calibration()),
    "reservoir": lambda: create("reservoir", retention=0.5, seed=3),
    "random": lambda: create("random", retention=0.5, seed=3),
    "class-balanced-random": lambda: create("class-balanced-random", retention=0.5, seed=3).calibrate(
        calibration()
    ),
}

BAD = {
    "undecodable": broken,
    "nan": poisoned,
    "infinite": lambda name: poisoned(name, np.inf),
    "another-shape": wide,
    "rejected": rejected,
}
