"""The full regime: the networks and trainings of section IV-B, as far as the data at hand allow.

What stays frozen runs once over every row (a bank); only the rest is trained and scored.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drip.datasets import load
from drip.errors import InputError, ModelError
from drip.files import atomic_writer, canonical_json, sha256_hex
from drip.models import AudioCNN, EfficientNetB0, MobileNetV2, SmallCNN, cut_before_last_seven, load_features
from drip.scoring import TorchScorer, model_digest
from drip.training import Examples, TrainConfig, train
from drip.types import FloatArray, IntArray, JsonObject, Observations
from experiments.bank import Bank, build_bank, encoded_sizes
from experiments.recipes import RECIPES, Recipe, Training
from experiments.regimes import BATCH, observe_maps
from experiments.views import network_inputs

INPUT_SIZE = {"mnist": 64, "cifar10": 128, "tomato": 128, "speech_commands": 96}
"""Height in pixels of what a network with a frozen part sees: the last map is 2 x 2, 4 x 4, 4 x 4, 3 x 5."""

Inputs = Callable[[IntArray], NDArray[np.float32]]
Progress = Callable[[str, int, int], None]
Pretrained = EfficientNetB0 | MobileNetV2


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        network: From what is kept of a row (input, or output of the frozen part) to logits, in eval mode.
        steps: Optimiser steps that it took.
    """

    network: nn.Module
    steps: int


@dataclass(frozen=True)
class Backbone:
    """What is trained, and on what.

    Attributes:
        make: Makes the network with its initial weights, called under the seed (A8).
        inputs: What the network takes of the given rows.
        training: What it trains on: these inputs, or all of them in one view after the other; a bank's
            are read as they are asked for.
        config: What all this depends on.
    """

    make: Callable[[], nn.Module]
    inputs: Inputs
    training: Inputs
    config: JsonObject


class FullRegime:
    """Trains and scores networks; a trained network is kept on disk, so a killed run finds it again.

    Args:
        labels: True classes of the rows, shape (n_rows,).
        n_classes: Number of classes.
        backbone: What is trained.
        recipe: How it is trained.
        sizes: Gives the encoded bytes of the rows, shape (n_rows,); called once, when they are needed.
        cache: Folder for trained networks.
        groups: See :class:`experiments.regimes.Regime`.
        device: Where to train and score, such as ``cpu`` or ``cuda``.
    """

    name = "full"

    def __init__(
        self,
        labels: IntArray,
        n_classes: int,
        backbone: Backbone,
        recipe: Recipe,
        sizes: Callable[[], IntArray],
        cache: Path,
        groups: IntArray | None = None,
        device: str = "cpu",
    ) -> None:
        self.labels, self.n_classes, self.groups = labels, n_classes, groups
        self.recipe, self.device = recipe, device
        self._backbone = backbone
        self._models = cache / "models"
        self._compute_sizes = sizes

    @classmethod
    def of(
        cls,
        dataset: str,
        *,
        cache: Path,
        device: str = "cpu",
        backbone: str | None = None,
        weights: str | Path | None = None,
        recipe: Recipe | None = None,
        limit: int | None = None,
        on_progress: Progress | None = None,
    ) -> FullRegime:
        """The full regime of a data set; what its frozen part gives is computed where it is not in the cache.

        Args:
            dataset: A key of :data:`experiments.recipes.RECIPES`.
            cache: Folder for frozen features, sizes and trained networks.
            device: Where to train and score.
            backbone: Another network than the recipe's; ``efficientnet_b0`` is the paper's for images.
            weights: File or URL of its ImageNet weights: for ``efficientnet_b0`` a ``state_dict`` with
                torchvision's names, for ``mobilenet_v2`` an npz file; None takes MobileNetV2's from the
                folder that DRIP_DATA names.
            recipe: Another recipe than the data set's.
            limit: Only so many rows, drawn once with seed 0; None takes all.
            on_progress: See :func:`experiments.bank.build_bank`.

        Raises:
            InputError: unknown data set or backbone, or weights that are nowhere.
            ModelError: weights that do not fit.
        """
        if dataset not in RECIPES:
            raise InputError(f"data set {dataset!r}: unknown; choose one of {', '.join(RECIPES)}")
        recipe = recipe or RECIPES[dataset]
        recipe = replace(recipe, backbone=backbone or recipe.backbone)
        data = load(dataset)
        n_classes = len(data.class_names)
        chosen = np.arange(len(data))
        if limit is not None and limit < len(data):
            chosen = np.sort(np.random.default_rng(0).choice(len(data), limit, replace=False))
        config: JsonObject = {"dataset": dataset, "n_rows": len(chosen)}
        shape = data.spec.shape
        small: dict[str, Callable[[], nn.Module]] = {
            "small_cnn": lambda: SmallCNN(shape[0], n_classes, recipe.width),
            "audio_cnn": lambda: AudioCNN(n_classes, shape[1], recipe.width),
        }
        if recipe.backbone in small:
            make = small[recipe.backbone]

            def inputs(rows: IntArray) -> NDArray[np.float32]:
                return _leveled(data.inputs(chosen[rows]), recipe.level)

            trained = Backbone(lambda: _fast(make()), inputs, inputs, config)
        else:
            whole = pretrained(recipe.backbone, n_classes, weights, cache)
            size = INPUT_SIZE[dataset]

            def seen(rows: IntArray, view: str) -> Tensor:
                found = network_inputs(data, chosen[rows], "clean", size)
                return found.flip(3) if view == "flipped" else found

            trained = banked(
                whole,
                seen,
                ("clean", "flipped") if recipe.flips else ("clean",),
                {**config, "input_size": size},
                cache,
                device,
                on_progress,
            )
        groups = None if data.groups is None else data.groups[chosen]
        return cls(
            data.labels[chosen],
            n_classes,
            trained,
            recipe,
            lambda: encoded_sizes(data, cache)[chosen],
            cache,
            groups,
            device,
        )

    def trained_for(self, epochs: int) -> FullRegime:
        """The same regime with so many passes over the training rows; the frozen part is shared."""
        other = copy.copy(self)
        other.recipe = replace(self.recipe, epochs=epochs)
        return other

    @property
    def config(self) -> JsonObject:
        """Data, backbone and recipe."""
        return {**self._backbone.config, "recipe": asdict(self.recipe)}

    @cached_property
    def sizes(self) -> IntArray:
        """Encoded bytes of the rows."""
        return self._compute_sizes()

    def fit(self, rows: IntArray, labels: IntArray, *, seed: int, full_rows: int | None = None) -> Trained:
        """Train a network, or find it in the cache; see :meth:`experiments.regimes.Regime.fit`."""
        steps = self.recipe.steps(full_rows or len(rows))
        path = self._path(rows, labels, seed, steps)
        if path.exists():
            return Trained(self._restored(path), steps)
        config = TrainConfig(
            batch_size=self.recipe.batch_size,
            learning_rate=self.recipe.learning_rate,
            weight_decay=self.recipe.weight_decay,
            seed=seed,
            device=self.device,
            steps=steps,
        )
        inputs = self._backbone.training(rows)
        given = np.tile(np.asarray(labels, np.int64), inputs.shape[0] // len(rows))
        training = train(
            lambda: Training(self._backbone.make(), self.recipe.augmentation),
            Examples(inputs, given),
            config=config,
        )
        assert isinstance(training, Training)  # noqa: S101  # what the factory makes
        state = {name: value.detach().cpu() for name, value in training.network.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            torch.save(state, file)
        return Trained(training.network, steps)

    def observe(self, model: Trained, rows: IntArray) -> Observations:
        """Scores by the product's own scorer, on the maps that enter the head."""
        head = copy.deepcopy(model.network)
        head.features = nn.Identity()  # its maps are at hand: one forward pass serves both scorers
        raw = TorchScorer(head, layer="features", contrast=True)
        normalised = TorchScorer(head, layer="features", heatmap="normalised")
        features = model.network.get_submodule("features")

        def maps_of(mine: IntArray) -> Tensor:
            with torch.no_grad():
                maps: Tensor = features(self._batch(mine))
            return maps

        return observe_maps(raw, normalised, rows, maps_of, self.sizes[rows])

    def logits(self, model: Trained, rows: IntArray) -> FloatArray:
        """Logits of the rows, shape (n, n_classes)."""
        result = np.empty((len(rows), self.n_classes))
        with torch.inference_mode():
            for start in range(0, len(rows), BATCH):
                mine = slice(start, start + BATCH)
                result[mine] = model.network(self._batch(rows[mine])).cpu().numpy()
        return result

    def steps(self, model: Trained) -> int:
        """Optimiser steps of the fit."""
        return model.steps

    def _batch(self, rows: IntArray) -> Tensor:
        return torch.from_numpy(self._backbone.inputs(rows)).to(self.device)

    def _path(self, rows: IntArray, labels: IntArray, seed: int, steps: int) -> Path:
        """File of the network of this training."""
        arrays = (np.ascontiguousarray(array, np.int64).tobytes() for array in (rows, labels))
        key = canonical_json(
            {
                "config": self.config,
                "seed": seed,
                "steps": steps,
                "torch": torch.__version__,
                "arrays": [sha256_hex(array) for array in arrays],
            }
        )
        return self._models / f"{sha256_hex(key)[:32]}.pt"

    def _restored(self, path: Path) -> nn.Module:
        network = self._backbone.make().to(self.device)
        network.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
        return network.eval()


def pretrained(
    backbone: str, n_classes: int, weights: str | Path | None, cache: Path
) -> Callable[[], Pretrained]:
    """Makes a network with ImageNet features and a new classifier, drawn from torch's generator.

    Args:
        backbone: ``mobilenet_v2`` or ``efficientnet_b0``.
        n_classes: Number of classes.
        weights: See :meth:`FullRegime.of`.
        cache: Folder for downloaded weights.

    Raises:
        InputError: unknown backbone, or no weights.
        ModelError: the weights do not fit.
    """
    if backbone == "mobilenet_v2":
        first = MobileNetV2(n_classes, first_expansion=True)
        load_features(first, weights or _data_folder() / "mobilenet_v2_imagenet_features.npz")
        state = first.features.state_dict()
    elif backbone == "efficientnet_b0":
        state = _efficientnet_features(weights, cache)
    else:
        raise InputError(
            f"backbone {backbone!r}: unknown; choose small_cnn, audio_cnn, mobilenet_v2 or efficientnet_b0"
        )

    def make() -> Pretrained:
        model: Pretrained = (
            MobileNetV2(n_classes, first_expansion=True)
            if backbone == "mobilenet_v2"
            else EfficientNetB0(n_classes)
        )
        model.features.load_state_dict(state)
        return model

    return make


def banked(
    whole: Callable[[], Pretrained],
    inputs: Callable[[IntArray, str], Tensor],
    views: Sequence[str],
    config: JsonObject,
    cache: Path,
    device: str,
    on_progress: Progress | None,
    *,
    per_item: bool = False,
) -> Backbone:
    """The trained tail of a network, on the kept outputs of its frozen part (A10).

    Args:
        whole: Makes the network with its initial weights.
        inputs: Rows and view to the network's inputs.
        views: What it sees, ``clean`` first; it trains on every row in all of them.
        config: What the inputs depend on, with their number ``n_rows``.
        cache: Folder for the outputs.
        device: Where to compute them.
        on_progress: See :func:`experiments.bank.build_bank`.
        per_item: A row is an index of the bank instead (``view number * n_rows + row``), and it trains on that
            view alone.
    """
    model = whole()
    config = {
        **config,
        "backbone": f"{type(model).__name__}:{model_digest(model.features)[:16]}",
        "cut": "last seven",
        "frozen_outputs": "float16",
    }
    frozen = _Frozen(cut_before_last_seven(model)[0], device)
    bank = build_bank(cache, frozen, inputs, config["n_rows"], views, config, on_progress=on_progress)

    def training(rows: IntArray) -> NDArray[np.float32]:
        index = rows if per_item else np.concatenate([bank.index(rows, view) for view in views])
        return _as_array(bank, index)

    return Backbone(lambda: _fast(cut_before_last_seven(whole())[1]), bank.take_maps, training, config)


class _Lazy:
    """Maps of a bank that replace an array of them: a training reads few at a time."""

    def __init__(self, bank: Bank, index: IntArray) -> None:
        self._bank, self._index = bank, index
        self.shape = (len(index), *bank.maps[0].shape[1:])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._index)

    def __getitem__(self, rows: IntArray) -> NDArray[np.float32]:
        """The maps of some rows."""
        return self._bank.take_maps(self._index[rows])


def _as_array(bank: Bank, index: IntArray) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", _Lazy(bank, index))


class _Frozen(nn.Module):
    """The frozen part on its device, from and to the CPU."""

    def __init__(self, stages: nn.Module, device: str) -> None:
        super().__init__()
        self._stages = _fast(stages.to(device))
        self._device = device

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self._stages(x.to(self._device))
        return outputs.cpu()


def _fast(network: nn.Module) -> nn.Module:
    """The network with its convolutions' channels last in memory: half the time on a CPU."""
    fast: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    return fast


def _leveled(waves: NDArray[np.float32], level: float) -> NDArray[np.float32]:
    """Inputs each scaled to a root mean square, where ``level`` is above 0; silence stays as it is."""
    if not level:
        return waves
    axes = tuple(range(1, waves.ndim))
    strength = np.sqrt(np.square(waves).mean(axes, keepdims=True))
    scaled: NDArray[np.float32] = waves * (np.float32(level) / np.maximum(strength, np.float32(1e-3)))
    return scaled


def _data_folder() -> Path:
    folder = os.environ.get("DRIP_DATA")
    if not folder:
        raise InputError(
            "ImageNet weights not found; set DRIP_DATA to a folder with mobilenet_v2_imagenet_features.npz"
        )
    return Path(folder)


def _efficientnet_features(weights: str | Path | None, cache: Path) -> dict[str, Any]:
    """Weights of the feature stages from torchvision's file or URL; a URL's name has the hash."""
    if weights is None:
        raise InputError("efficientnet_b0: no weights; give the file or URL of torchvision's efficientnet_b0")
    if str(weights).startswith(("https://", "http://")):
        state = torch.hub.load_state_dict_from_url(
            str(weights), str(cache / "weights"), "cpu", progress=False, check_hash=True, weights_only=True
        )
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    prefix = "features."
    features = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        EfficientNetB0(2).features.load_state_dict(features)
    except RuntimeError as error:
        raise ModelError(
            f"{weights}: not the weights of torchvision's efficientnet_b0 ({error}); give their file or URL"
        ) from error
    return features
