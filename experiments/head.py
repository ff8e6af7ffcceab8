"""The head-only regime: frozen ImageNet features, a linear head trained in seconds."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from drip.datasets import load
from drip.errors import InputError
from drip.models import MobileNetV2, load_features
from drip.scoring import TorchScorer, model_digest
from drip.types import FloatArray, IntArray, JsonObject, Observations
from experiments.bank import Bank, build_bank, encoded_sizes
from experiments.regimes import observe_maps
from experiments.views import VIEWS, network_inputs


@dataclass(frozen=True)
class HeadRecipe:
    """How the head is trained: Adam, one-cycle learning rate, cross-entropy, from zero weights.

    Attributes:
        epochs: Passes over the training rows.
        batch_size: Rows per step.
        learning_rate: Peak of the schedule.
        weight_decay: Decoupled, on the weights.
    """

    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 0.1


@dataclass(frozen=True)
class Setup:
    """The frozen network and the head of one data set.

    Attributes:
        input_size: Height of the network's input in pixels; larger than the data where maps would be 1 x 1.
        n_rows: Rows that take part, drawn once for all runs with seed 0; all where the set has no more.
        last_block: The last of MobileNetV2's blocks 0 to 18 that is used.
        flatten: The head reads every position apart instead of their mean.
        recipe: How the head is trained.
    """

    input_size: int
    n_rows: int = 20_000
    last_block: int = 18
    flatten: bool = False
    recipe: HeadRecipe = HeadRecipe()


_SLOW = HeadRecipe(learning_rate=1e-3)

SETUPS = {
    "cifar10": Setup(128, n_rows=8_000, recipe=_SLOW),
    "tomato": Setup(128),
    # Late ImageNet features say little of digits and spectrograms, where a position has a meaning.
    "mnist": Setup(64, n_rows=6_000, last_block=10, flatten=True),
    "speech_commands": Setup(96, last_block=10, flatten=True, recipe=_SLOW),
}
"""Maps of 1280 x 4 x 4 before a pooling head, as for the paper's images; of 64 x 4 x 4 and 64 x 6 x 10
before a flattening one, as for its sound. The numbers of rows leave room above the baseline: a linear head
on all 70,000 digits or 60,000 images gains under a point from everything that could be kept."""


@dataclass(frozen=True)
class Head:
    """A trained linear head.

    Attributes:
        weight: Shape (n_classes, n_features).
        bias: Shape (n_classes,).
        steps: Optimiser steps that it took.
    """

    weight: Tensor
    bias: Tensor
    steps: int


class HeadRegime:
    """Trains and scores linear heads on a bank of frozen features.

    Args:
        labels: True classes of the rows, shape (n_rows,).
        sizes: Encoded bytes of the rows, shape (n_rows,).
        bank: Their features; indices beyond ``n_rows`` are those of other views.
        config: What the bank depends on.
        recipe: How heads are trained.
        groups: See :class:`experiments.regimes.Regime`.
    """

    name = "head"

    def __init__(
        self,
        labels: IntArray,
        sizes: IntArray,
        bank: Bank,
        config: JsonObject,
        recipe: HeadRecipe,
        groups: IntArray | None = None,
    ) -> None:
        self.labels, self.sizes, self.bank, self.groups = labels, sizes, bank, groups
        self.recipe = recipe
        self.n_classes = int(labels.max()) + 1
        self._config = config

    @property
    def config(self) -> JsonObject:
        """Bank and recipe."""
        return {**self._config, "recipe": asdict(self.recipe)}

    def fit(self, rows: IntArray, labels: IntArray, *, seed: int, full_rows: int | None = None) -> Head:
        """Train a head; see :meth:`experiments.regimes.Regime.fit`."""
        recipe = self.recipe
        steps = recipe.epochs * _steps_per_epoch(full_rows or len(rows), recipe.batch_size)
        features = torch.from_numpy(self.bank.take_inputs(rows))
        return _fit(features, torch.from_numpy(labels), self.n_classes, steps, recipe, seed)

    def observe(self, model: Head, rows: IntArray) -> Observations:
        """Scores by the product's own scorer, on the frozen maps."""
        network = linear_network(model, flatten=self.bank.flatten)
        example = self.bank.take_maps(rows[:2])
        raw = TorchScorer(network, layer="features", contrast=True, example=example)
        normalised = TorchScorer(network, layer="features", heatmap="normalised", example=example)
        return observe_maps(raw, normalised, rows, self.bank.take_maps, self.sizes[self.bank.rows(rows)])

    def logits(self, model: Head, rows: IntArray) -> FloatArray:
        """Logits of the rows, shape (n, n_classes)."""
        features = torch.from_numpy(self.bank.take_inputs(rows))
        return np.asarray((features @ model.weight.T + model.bias).numpy(), np.float64)

    def steps(self, model: Head) -> int:
        """Optimiser steps of the fit."""
        return model.steps


def head_regime(
    dataset: str,
    cache: Path,
    *,
    views: Sequence[str] = ("clean",),
    n_rows: int | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> HeadRegime:
    """The head-only regime of a data set, its features computed where they are not in the cache.

    Args:
        dataset: Name among :func:`drip.datasets.load`'s.
        cache: Folder for features.
        views: Names among :data:`experiments.views.VIEWS`.
        n_rows: At most so many rows instead of the setup's number, for a quick look.
        on_progress: See :func:`experiments.bank.build_bank`.
    """
    data = load(dataset)
    setup = SETUPS[dataset]
    chosen = np.arange(len(data))
    limit = setup.n_rows if n_rows is None else min(n_rows, setup.n_rows)
    if len(data) > limit:
        chosen = np.sort(np.random.default_rng(0).choice(len(data), limit, replace=False))
    backbone = mobilenet_backbone(setup.last_block)
    key = {
        "dataset": dataset,
        "n_rows": len(chosen),
        "foreign": "",  # as it was recorded
        "backbone": f"mobilenet_v2[:{setup.last_block + 1}] {model_digest(backbone)[:16]}",
        "input_size": setup.input_size,
        "flatten": setup.flatten,
        "features": "float16",
    }
    view_keys = {view: _view_key(view) for view in views if view != "clean"}
    bank = build_bank(
        cache,
        backbone.to(memory_format=torch.channels_last),  # type: ignore[call-overload]  # torch's stub lacks it
        lambda rows, view: network_inputs(data, chosen[rows], view, setup.input_size).contiguous(
            memory_format=torch.channels_last
        ),
        len(chosen),
        views,
        key,
        view_keys=view_keys,
        flatten=setup.flatten,
        on_progress=on_progress,
    )
    groups = None if data.groups is None else data.groups[chosen]
    sizes = encoded_sizes(data, cache)[chosen] if n_rows is None else data.encoded_sizes(chosen)
    config = {**key, **({"views": view_keys} if view_keys else {})}
    return HeadRegime(data.labels[chosen], sizes, bank, config, setup.recipe, groups)


def _view_key(view: str) -> JsonObject:
    return {**asdict(VIEWS[view]), "blur": 0.0, "shift": 0.0, "gain": 0.0}  # as it was recorded


def mobilenet_backbone(last_block: int = 18) -> nn.Module:
    """The first blocks of MobileNetV2 with the ImageNet weights of the folder that DRIP_DATA names.

    Raises:
        InputError: DRIP_DATA is not set.
    """
    folder = os.environ.get("DRIP_DATA")
    if not folder:
        raise InputError(
            "ImageNet weights not found; set DRIP_DATA to a folder with mobilenet_v2_imagenet_features.npz"
        )
    model = MobileNetV2(first_expansion=True)
    load_features(model, Path(folder) / "mobilenet_v2_imagenet_features.npz")
    return model.features[: last_block + 1].eval()


def _steps_per_epoch(n_rows: int, batch_size: int) -> int:
    return max(1, round(n_rows / batch_size))


def _fit(features: Tensor, labels: Tensor, n_classes: int, steps: int, recipe: HeadRecipe, seed: int) -> Head:
    """Adam with decoupled weight decay and a one-cycle rate, written out: the calls would cost more."""
    n_rows, n_features = features.shape
    weights = torch.zeros(n_classes, n_features + 1)  # the bias is the last column
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    order = np.random.default_rng(seed)
    batches = _batches(order, n_rows, steps, recipe.batch_size)
    for step, rows in enumerate(batches):
        inputs = features[rows]
        logits = torch.addmm(weights[:, -1], inputs, weights[:, :-1].T)
        slope = logits.softmax(1)
        slope[torch.arange(len(rows)), labels[rows]] -= 1
        slope /= len(rows)
        gradient = torch.cat([slope.T @ inputs, slope.sum(0)[:, None]], 1)
        rate, momentum = _one_cycle(step / steps, recipe.learning_rate)
        first.lerp_(gradient, 1 - momentum)
        second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
        scale = 1 / (1 - 0.99 ** (step + 1)) ** 0.5
        weights[:, :-1].mul_(1 - rate * recipe.weight_decay)
        weights.addcdiv_(first, second.sqrt().mul_(scale).add_(1e-8), value=-rate)
    return Head(weights[:, :-1].contiguous(), weights[:, -1].clone(), steps)


def _batches(order: np.random.Generator, n_rows: int, steps: int, batch_size: int) -> list[Tensor]:
    """Rows of every step: permutation after permutation, cut into equal batches."""
    per_epoch = _steps_per_epoch(n_rows, batch_size)
    batches: list[Tensor] = []
    while len(batches) < steps:
        shuffled = torch.from_numpy(order.permutation(n_rows))
        batches.extend(torch.tensor_split(shuffled, per_epoch))
    return batches[:steps]


def _one_cycle(progress: float, peak: float) -> tuple[float, float]:
    """Learning rate and momentum at a fraction of the steps: up for three tenths, then down to zero."""
    rising = progress < 0.3
    share = progress / 0.3 if rising else (1 - progress) / 0.7
    rate = peak * 0.5 * (1 - np.cos(np.pi * min(share, 1.0)))
    return max(rate, peak * 1e-3), 0.9


def linear_network(head: Head, *, flatten: bool) -> nn.Module:
    """The head as a classifier of feature maps."""
    n_classes, n_features = head.weight.shape
    linear = nn.Linear(n_features, n_classes)
    linear.load_state_dict({"weight": head.weight, "bias": head.bias})
    pool = nn.Identity() if flatten else nn.AdaptiveAvgPool2d(1)
    layers: dict[str, nn.Module] = {
        "features": nn.Identity(),
        "pool": pool,
        "flatten": nn.Flatten(),
        "classifier": linear,
    }
    return nn.Sequential(OrderedDict(layers)).eval()
