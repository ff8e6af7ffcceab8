"""Features of images: the last maps of a network, averaged over their positions; torch for torch models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drip.errors import DripError, InputError, ModelError
from drip.media import MEDIA_TYPES, InputSpec

if TYPE_CHECKING:
    from torch import nn

IMAGENET = InputSpec((3, 224, 224), "stretch", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Inputs of the usual pretrained networks; whole images are squeezed, so that no box is cut off."""

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Backbone:
    """A network as a function from a batch to its features.

    Attributes:
        name: Description.
        spec: How images become inputs.
        features: Inputs of shape (n, channels, height, width) to features of shape (n, d).
    """

    name: str
    spec: InputSpec
    features: Callable[[NDArray[np.float32]], NDArray[np.floating]]

    def of_files(
        self, folder: Path, names: list[str], on_progress: Callable[[int, int], None]
    ) -> tuple[NDArray[np.float32], list[int], list[str]]:
        """Features of the files that can be decoded.

        Returns:
            Features, shape (n, d); the places of the n files in ``names``; a sentence for every other file.
        """
        parts: list[NDArray[np.float32]] = []
        read: list[int] = []
        problems: list[str] = []
        for start in range(0, len(names), _BATCH_SIZE):
            inputs = []
            for place in range(start, min(start + _BATCH_SIZE, len(names))):
                path = folder / names[place]
                try:
                    inputs.append(self.spec.prepare(path.read_bytes(), MEDIA_TYPES[path.suffix.lower()]))
                    read.append(place)
                except (InputError, OSError) as error:
                    problems.append(f"{names[place]}: cannot be read, left out: {error}")
            if inputs:
                found = self.features(np.stack(inputs)).astype(np.float32)
                if not np.isfinite(found).all():
                    raise ModelError(f"finite features are needed, got NaN or infinity of {self.name}")
                parts.append(found)
            on_progress(min(start + _BATCH_SIZE, len(names)), len(names))
        return (np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)), read, problems


def open_backbone(model: str | None, weights: Path | None = None, spec: InputSpec | None = None) -> Backbone:
    """The network that gives features.

    Args:
        model: ``model.onnx`` with the output ``features``; ``package.module:factory`` of a torch classifier
            or of a module that gives maps; None for MobileNetV2, which needs ``weights``.
        weights: Its ``state_dict``, or for MobileNetV2 an npz file of arrays.
        spec: How images become inputs of a torch model; as for ImageNet by default.

    Raises:
        InputError: no weights for the default, or options that a model file answers itself.
        ModelError: a model that cannot be loaded or gives no features.
    """
    if model is not None and model.lower().endswith(".onnx"):
        if weights is not None or spec is not None:
            raise InputError(
                "weights and input contract are in a model file, got them beside it; leave them out"
            )
        return _of_file(model)
    from drip.models import load_model  # noqa: PLC0415  # torch loads for torch models alone

    taken = spec or IMAGENET
    if model is not None:
        return of_torch(load_model(model, weights), taken, model)
    if weights is None:
        raise InputError(
            "weights of the default network MobileNetV2 are needed, got none: random ones say little of "
            "images; give --weights, or --model with a network of your own"
        )
    return of_torch(_mobilenet(weights), taken, f"MobileNetV2, {weights.name}")


def of_torch(model: nn.Module, spec: InputSpec, name: str) -> Backbone:
    """A torch classifier by the maps that enter its head, or a module that gives maps by these.

    Raises:
        ModelError: the output is neither logits nor maps, or a classifier without maps.
    """
    import torch  # noqa: PLC0415
    from torch import Tensor  # noqa: PLC0415

    model.eval()
    try:
        with torch.inference_mode():
            tried = model(torch.zeros(2, *spec.shape))
    except Exception as error:  # the code is the user's: it may raise anything
        raise ModelError(
            f"a network for inputs of shape {spec.shape} is needed, got {name}: {error}"
        ) from error
    if isinstance(tried, Tensor) and tried.ndim == 4:

        def pooled(batch: NDArray[np.float32]) -> NDArray[np.floating]:
            with torch.inference_mode():
                maps: NDArray[np.floating] = model(torch.from_numpy(batch)).mean(dim=(2, 3)).numpy()
                return maps

        return Backbone(name, spec, pooled)
    from drip.scoring import TorchScorer  # noqa: PLC0415

    scorer = TorchScorer(model)

    def scored(batch: NDArray[np.float32]) -> NDArray[np.floating]:
        features = scorer.score(batch).features
        assert features is not None  # noqa: S101  # a torch scorer always gives them
        return features

    return Backbone(name, spec, scored)


def _of_file(path: str) -> Backbone:
    from drip.onnx import OnnxScorer  # noqa: PLC0415  # an extra

    scorer = OnnxScorer(path)
    if "features" not in scorer.provides:
        raise ModelError(
            f"a model file with the output 'features' is needed, got {path} without; export it with it"
        )

    def scored(batch: NDArray[np.float32]) -> NDArray[np.floating]:
        features = scorer.score(batch).features
        assert features is not None  # noqa: S101  # asked for above
        return features

    return Backbone(path, scorer.spec, scored)


def _mobilenet(weights: Path) -> nn.Module:
    import torch  # noqa: PLC0415

    from drip.models import MobileNetV2, load_features  # noqa: PLC0415

    if not weights.is_file():
        raise DripError(f"a file of weights is needed, got {weights}; check the path")
    if weights.suffix.lower() == ".npz":
        problems = []
        for first_expansion in (False, True):
            network = MobileNetV2(first_expansion=first_expansion)
            try:
                load_features(network, weights)
            except ModelError as error:
                problems.append(str(error))
            else:
                return network
        raise ModelError(problems[0])
    network = MobileNetV2()
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # torch's reader raises many types on a damaged file
        raise ModelError(f"a state_dict of MobileNetV2 is needed at {weights}, got: {error}") from error
    return network
