"""Whether the default rule holds its keep rate, on real features and from 200 calibration samples.

``DRIP_DATA=folder python benchmarks/keep_rate.py --cache FOLDER`` (features take half an hour the first time). Streams
are well mixed, or have another camera, repeated scenes or junk. Every stream runs through `drip.pipeline.run` into a
store that evicts, because what a store evicts must not change what the rule decides.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from timing import write

import drip
from drip.pipeline import run
from drip.rules import RECOMMENDED, create
from drip.store import RetentionStore
from drip.types import IntArray, Observations, Sample
from experiments.situation_study import Bench, SituationRegime
from experiments.situations import N_CALIBRATION, Items, Scene

KEEP = (0.01, 0.05, 0.1, 0.2, 0.3, 0.6)
STREAMS = {
    "tomato": ("well mixed", "new camera, 20 %", "camera replaced", "scenes", "junk, 37 %"),
    "cifar10": ("well mixed",),
    "speech_commands": ("well mixed",),
}
WINDOW, BUDGET_BYTES, SAMPLE_BYTES = 1000, 1_000_000, 2_000


def scene(items: Items, kind: str) -> Scene:
    """A long stream: every row that neither trains nor calibrates."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(items.labels))
    train = np.concatenate([rows[items.labels[rows] == label][:40] for label in range(items.n_classes)])
    left = rows[~np.isin(rows, train)]
    calibration, stream = left[:N_CALIBRATION], left[N_CALIBRATION:]
    if kind == "new camera, 20 %":
        stream = np.where(rng.random(len(stream)) < 0.2, stream + items.start("camera"), stream)
    elif kind == "camera replaced":
        stream = np.where(np.arange(len(stream)) > len(stream) // 3, stream + items.start("camera"), stream)
    elif kind == "scenes":
        stream = items.start("scenes") + np.arange(len(items.scenes))
    elif kind == "junk, 37 %":
        junk = items.start("foreign") + np.arange(items.banks["foreign"].n_rows)
        stream = rng.permutation(np.concatenate([stream, junk]))
    nothing: IntArray = np.zeros(len(stream), np.int64)
    return Scene(
        train, items.labels[train], calibration, stream, nothing, stream[:2], nothing[:2],
        np.arange(items.n_classes), nothing > 0,
    )  # fmt: skip


class Replayed:
    """A scorer whose inputs are rows of observations."""

    def __init__(self, observations: Observations) -> None:
        self._observations = observations
        self.provides = frozenset(("logits", "features", "drip"))

    def score(self, batch: np.ndarray) -> Observations:
        """The observations of these rows."""
        return self._observations[batch[:, 0].astype(np.int64)]


def samples(n: int) -> Iterator[Sample]:
    """Samples whose first eight bytes are their number."""
    padding = bytes(SAMPLE_BYTES - 8)
    for row in range(n):
        yield Sample(id=str(row), data=np.int64(row).tobytes() + padding, media_type="application/x-row")


def measure(one: Bench, keep: float) -> dict[str, float]:
    """Keep rates of one stream in percent."""
    rule, n = create(RECOMMENDED, retention=keep).calibrate(one.calibration), len(one.stream)
    with (
        tempfile.TemporaryDirectory() as folder,
        RetentionStore.open(Path(folder) / "kept.db", budget_bytes=BUDGET_BYTES) as store,
    ):
        run(
            samples(n),
            Replayed(one.stream),
            rule,
            store,
            prepare=lambda data, _: np.frombuffer(data[:8], np.int64).astype(np.float32),
        )
        last = {int(row.sample_id): row.decision.retain for row in store.audit()}
        n_stored = len(store)
    alone = create(RECOMMENDED, retention=keep).calibrate(one.calibration).decide_many(one.stream)
    sums = np.concatenate([[0], np.cumsum(alone.retain)])
    rates = 100 * (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
    if any(alone.retain[number] != retain for number, retain in last.items()):
        sys.exit("the rule decides differently in batches, with a store that evicts")
    later = rates[WINDOW:]
    return {
        "n": n, "all": 100 * alone.retain.mean(), "first": rates[0], "lowest": later.min(), "highest": later.max(),
        "stored": 100 * n_stored / n,
    }  # fmt: skip


def main() -> None:
    """Measure every stream at every keep rate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="folder for features")
    arguments = parser.parse_args()
    records = []
    for dataset, kinds in STREAMS.items():
        items = SituationRegime(dataset, arguments.cache).items("mobilenet")
        for kind in kinds:
            one = Bench(items, scene(items, kind))
            for keep in KEEP:
                found = {name: round(float(value), 2) for name, value in measure(one, keep).items()}
                records.append(
                    {"dataset": dataset, "stream": kind, "keep": keep, **found, "drip": drip.__version__}
                )
                print(records[-1], flush=True)
    write("keep_rate", records)


if __name__ == "__main__":
    main()
