from __future__ import annotations

from dataclasses import replace
from math import nan

import numpy as np
import pytest

from drip.policy import Policy
from drip.report import Arm, GalleryItem, RunReport

N_TEST, N_SEEN = 1000, 200


def right(n_right, *, wrong_first=0):
    """A vector with n_right ones that starts with `wrong_first` zeros."""
    vector = np.zeros(N_TEST, dtype=np.bool_)
    vector[wrong_first : wrong_first + n_right] = True
    return vector


def arm(name, n_right, n_kept, *, wrong_first=0, errors=None, paired=True):
    correct = right(n_right, wrong_first=wrong_first) if paired else None
    return Arm(name, n_right / N_TEST, 300 + n_kept, n_kept, 10 * n_kept, 12.5, correct, errors)


def policy(class_names=("cat", "dog", "<emu>")):
    """Three classes: one with a window, one with too many equal scores, one without any scores."""
    scores = np.concatenate([np.linspace(0.0, 1.0, 100) ** 2, np.full(56, 0.5), np.linspace(0.4, 0.6, 4)])
    classes = np.repeat([0, 1], [100, 60])
    return Policy.fit(
        scores,
        classes,
        n_classes=3,
        retention=0.6,
        provenance={"model_digest": "ab" * 32, "layer": "features.7", "class_names": class_names},
    )


def item(*, predicted=0, label=0, retained=True, distance=0.5, side=28):
    image = np.arange(side * side, dtype=np.uint8).reshape(side, side)
    return GalleryItem(image, np.eye(7), predicted, label, 0.25, retained, distance)


@pytest.fixture
def make_report():
    def make(**changes):
        report = RunReport(
            title="A run",
            dataset="MNIST",
            split={"train": 300, "calibration": 107, "production": N_SEEN, "test": N_TEST},
            model="small CNN",
            command="drip demo --seed 3",
            seed=3,
            policy=policy(),
            arms=[
                arm("baseline", 900, 0, errors=0.0),
                arm("all-data", 960, 200, errors=1.0),
                arm("drip", 950, 120, errors=0.58),
                arm("random", 948, 120, errors=0.61),
                arm("margin", 951, 120, errors=0.95),
            ],
            n_test=N_TEST,
            n_seen=N_SEEN,
            bytes_seen=2000,
            decision_ms=np.array([0.4, 0.5, 0.6, 0.7, 1.8]),
            gallery=[
                item(),
                item(label=2),
                item(retained=False, distance=0.0),
                item(predicted=1, distance=nan),
            ],
            class_counts_seen=np.array([120, 50, 30]),
            class_counts_kept=np.array([40, 50, 30]),
            n_errors=100,
            version="9.8.7",
        )
        return replace(report, **changes)

    make.arm, make.item, make.policy = arm, item, policy
    return make
