"""Calibrate on held-out digits, stream others into a store of one megabyte, retrain on what was kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from drip import Policy, run
from drip.datasets import load_mnist
from drip.models import SmallCNN
from drip.scoring import TorchScorer, model_digest
from drip.sources import DatasetSource
from drip.store import RetentionStore
from drip.training import Examples, TrainConfig, predict, retrain, train


def main() -> None:
    """Print the accuracy before and after."""
    digits = load_mnist()
    training, calibration, stream, test = np.split(np.arange(6000), [1500, 2000, 4000])
    training_set = Examples(digits.inputs(training), digits.labels[training])
    config = TrainConfig(epochs=3)
    model = train(SmallCNN, training_set, config=config)

    scorer = TorchScorer(model)
    typical = scorer.score(digits.inputs(calibration))
    policy = Policy.fit(
        typical.scores,
        typical.classes,
        n_classes=10,
        retention=0.6,
        provenance={"model_digest": model_digest(model)},
    )
    policy.require(model_digest(model))
    spec = digits.spec
    with (
        tempfile.TemporaryDirectory() as folder,
        RetentionStore.open(Path(folder) / "kept.db", budget_bytes=1_000_000) as store,
    ):
        source = DatasetSource(digits, stream)
        tally = run(source, scorer, policy.to_rule(), store, prepare=spec.prepare)
        print(f"kept {len(store)} of {tally.n_seen} digits in {store.stats().disk_bytes} bytes")
        better = retrain(SmallCNN, training_set, store, prepare=spec.prepare, config=config)
    for name, candidate in (("before", model), ("after", better)):
        accuracy = np.mean(predict(candidate, digits.inputs(test)) == digits.labels[test])
        print(f"accuracy {name}: {accuracy:.1%}")


if __name__ == "__main__":
    main()
