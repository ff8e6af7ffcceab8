"""A small trained model with digits as PNG files: what tests of whole runs start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

MODEL = "drip.models:SmallCNN"
SHAPE = "1x28x28"
N_PRODUCTION = 60


@dataclass(frozen=True)
class Digits:
    """Paths that every test reads and none changes.

    ``weights`` is a SmallCNN trained for a moment; ``calibration`` has 300 digits and ``production`` 60,
    in folders by class; ``policy`` was calibrated at a discard fraction of 0.4.
    """

    weights: Path
    calibration: Path
    production: Path
    policy: Path


def write_folder(folder, dataset, rows):
    """Digits as ``<class>/<row>.png``."""
    for sample in dataset.samples(rows):
        path = folder / str(sample.label) / f"{sample.id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.data)
    return folder


def make_digits(root):
    """Train, write the folders and calibrate; a few seconds."""
    import torch

    from drip.datasets import load_mnist
    from drip.models import SmallCNN
    from drip.training import Examples, TrainConfig, train
    from drip.workflow import calibrate_folder

    whole = load_mnist()  # the packaged digits are the last ones of the full set
    dataset = replace(whole, images=whole.images[-10_000:], labels=whole.labels[-10_000:])
    rows = np.arange(800)
    model = train(
        SmallCNN,
        Examples(dataset.inputs(rows), dataset.labels[rows]),
        config=TrainConfig(epochs=2, batch_size=32),
    )
    weights = root / "weights.pt"
    torch.save(model.state_dict(), weights)
    calibration = write_folder(root / "calibration", dataset, range(1000, 1300))
    production = write_folder(root / "production", dataset, range(2000, 2000 + N_PRODUCTION))
    policy = root / "policy.json"
    calibrate_folder(model, calibration, dataset.spec, rule="drip").save(policy)
    return Digits(weights, calibration, production, policy)
