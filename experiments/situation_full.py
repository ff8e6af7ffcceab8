"""Two situations with the whole network trained: whether the head-only study tells the sign of the difference."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from drip.datasets import AudioDataset, load
from drip.types import IntArray, JsonObject, Observations
from experiments.bank import Bank
from experiments.full import INPUT_SIZE, FullRegime, banked, pretrained
from experiments.recipes import RECIPES
from experiments.situation_views import Pictures
from experiments.situations import CAMERA, Items, Scene, build
from experiments.views import IMAGENET_MEAN, IMAGENET_STD

FULL_PLACES: Mapping[str, str] = MappingProxyType({"tomato": "new-camera", "speech_commands": "new-speakers"})
"""The situation of each data set that the full regime measures."""
FULL_KEEP = (0.05, 0.2)
FULL_ARMS = ("adaptive-margin",)


class FullSituations:
    """Networks trained as in the study `table1`, on the items of a situation.

    Args:
        dataset: A key of :data:`FULL_PLACES`.
        cache: Folder for frozen features and trained networks.
        device: Where to train.
        on_progress: See :func:`experiments.bank.build_bank`.
    """

    name = "full"

    def __init__(
        self,
        dataset: str,
        cache: Path,
        device: str = "cpu",
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        data = load(dataset)
        self.labels: IntArray = data.labels
        self.rows = np.arange(len(data))
        self.groups = self.rows if data.groups is None else data.groups
        views = ("clean",) if isinstance(data, AudioDataset) else ("clean", *CAMERA)
        if isinstance(data, AudioDataset):
            self.trainer = FullRegime.of(dataset, cache=cache, device=device)
        else:
            recipe = RECIPES[dataset]
            pictures = Pictures(dataset, data, self.rows)
            mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
            backbone = banked(
                pretrained(recipe.backbone, len(data.class_names), None, cache),
                lambda rows, view: (pictures.view(view)[1](rows) - mean) / std,
                views,
                {"dataset": dataset, "n_rows": len(data), "input_size": INPUT_SIZE[dataset], "cameras": True},
                cache,
                device,
                on_progress,
                per_item=True,
            )
            n_items = len(views) * len(data)
            self.trainer = FullRegime(
                np.tile(data.labels, len(views)), len(data.class_names), backbone, recipe,
                lambda: np.zeros(n_items, np.int64), cache, device=device,
            )  # fmt: skip
        nothing = np.zeros((len(data), 1, 1), np.float16), np.zeros((len(data), 1), np.float32)
        banks = {view: Bank((view,), nothing[:1], nothing[1:]) for view in views}
        none = np.zeros(0, np.int64)
        self.items = Items(banks, data.labels, self.groups, none, none)

    @property
    def config(self) -> JsonObject:
        """Data, network and recipe."""
        return self.trainer.config

    def bench(self, situation: str, seed: int) -> FullBench:
        """One situation of one run."""
        return FullBench(self, build(situation, self.items, seed), seed)


class FullBench:
    """The deployed network, what it sees, and the last step of every arm.

    Args:
        regime: Trains.
        scene: The situation.
        seed: Number of the run.
    """

    repeats = 1

    def __init__(self, regime: FullSituations, scene: Scene, seed: int) -> None:
        self.scene = scene
        self._regime, self._seed = regime.trainer, seed
        self._deployed = regime.trainer.fit(scene.train, scene.train_labels, seed=seed)

    @cached_property
    def calibration(self) -> Observations:
        """What the deployed network says of the calibration items."""
        return self._regime.observe(self._deployed, self.scene.calibration)

    @cached_property
    def stream(self) -> Observations:
        """What it says of the stream."""
        return self._regime.observe(self._deployed, self.scene.stream)

    def measure(self, kept: IntArray) -> dict[str, float]:
        """Train from the initial weights on the training set and what is kept; accuracy on the test items."""
        scene, start = self.scene, time.perf_counter()
        rows = np.concatenate([scene.train, scene.stream[kept]])
        labels = np.concatenate([scene.train_labels, scene.labels[kept]])
        model = self._regime.fit(rows, labels, seed=self._seed)
        seconds = round(time.perf_counter() - start, 3)
        correct = self._regime.logits(model, scene.test).argmax(1) == scene.test_labels
        return {"accuracy": float(correct.mean()), "fit_s": seconds, "n_train": len(rows)}
