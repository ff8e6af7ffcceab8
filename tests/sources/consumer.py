"""A process that runs a stream into a store until it is killed, or has seen a number of samples."""

from __future__ import annotations

import sys
import time

import numpy as np

from drip.datasets import load_mnist
from drip.pipeline import observe, run
from drip.rules import create
from drip.sources import open_source
from drip.store import RetentionStore
from drip.types import Observations

SPEC = load_mnist().spec


class InkScorer:
    """How much ink a digit has: a score that needs no model."""

    provides = frozenset({"logits", "drip"})

    def __init__(self, pause_s=0.0):
        self._pause_s = pause_s

    def score(self, batch):
        time.sleep(self._pause_s)
        ink = batch.reshape(len(batch), -1).mean(axis=1, dtype=np.float64)
        logits = np.stack([ink, 0.15 - ink], axis=1)
        return Observations(np.argmax(logits, axis=1), logits, {"drip": ink})


def make_rule():
    """A rule with windows, calibrated on the first hundred packaged digits."""
    observations = observe(load_mnist().samples(range(100)), InkScorer(), prepare=SPEC.prepare)
    return create("drip", retention=0.6).calibrate(observations)


def consume(url, path, n_samples, pause_s=0.0):
    """Run until the store has seen this number of samples."""
    with RetentionStore.open(path, budget_bytes=20_000_000) as store:
        return run(
            open_source(url),
            InkScorer(pause_s),
            make_rule(),
            store,
            prepare=SPEC.prepare,
            batch_size=16,
            on_error="quarantine",
            stop=lambda: store.stats().seen >= n_samples,
        )


if __name__ == "__main__":
    consume(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
