"""Features of images: the last maps of a network, averaged over their positions.

The only bridge from the device wing to data reduction, which imports neither models nor scorers itself.
"""

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
"""Input spec of networks pretrained on ImageNet. It stretches images, so no labelled box is cut off."""

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Backbone:
    """A network as a function from inputs to features.

    Attributes:
        name: Description, for messages.
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
            Features, shape (n, d); the indices of these n files in ``names``; a message for every other file.
        """
        parts: list[NDArray[np.float32]] = []
        read: list[int] = []
        problems: list[str] = []
        for start in range(0, len(names), _BATCH_SIZE):
            inputs = []
            for place in range(start, min(start + _BATCH_SIZE, len(names))):
                path = folder / names[place]
                if path.exists() and not path.is_file():  # reading a pipe would wait forever
                    problems.append(f"{names[place]}: is not a file and was left out")
                    continue
                try:
                    inputs.append(self.spec.prepare(path.read_bytes(), MEDIA_TYPES[path.suffix.lower()]))
                    read.append(place)
                except (InputError, OSError) as error:
                    problems.append(f"{names[place]}: cannot be read and was left out: {error}")
            if inputs:
                found = self.features(np.stack(inputs)).astype(np.float32)
                if not np.isfinite(found).all():
                    raise ModelError(
                        f"{self.name}: the features are NaN or infinite; load a valid checkpoint",
                        code="model-non-finite",
                    )
                parts.append(found)
            on_progress(min(start + _BATCH_SIZE, len(names)), len(names))
        return (np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)), read, problems


def open_backbone(model: str | None, weights: Path | None = None, spec: InputSpec | None = None) -> Backbone:
    """The network that computes features.

    Args:
        model: ``model.onnx`` with the output ``features``; ``package.module:factory`` of a PyTorch
            classifier, or of a module that returns maps; None for MobileNetV2, which needs ``weights``.
        weights: Its ``state_dict``, or for MobileNetV2 also an npz file of arrays.
        spec: How images become inputs of a PyTorch model; :data:`IMAGENET` by default.

    Raises:
        InputError: the default network has no weights, or a model file was given weights or a spec.
        ModelError: the model cannot be loaded or has no features.
    """
    if model is not None and model.lower().endswith(".onnx"):
        if weights is not None or spec is not None:
            raise InputError(
                "a model file contains its weights and input spec; leave out --weights and --input-spec"
            )
        return _of_file(model)
    from drip.models import load_model  # noqa: PLC0415  # only PyTorch models need torch

    used = spec or IMAGENET
    if model is not None:
        return of_torch(load_model(model, weights), used, model)
    if weights is None:
        raise InputError(
            "the default network MobileNetV2 has no weights; give --weights, or --model with your own network"
        )
    return of_torch(_mobilenet(weights), used, f"MobileNetV2, {weights.name}")


def of_torch(model: nn.Module, spec: InputSpec, name: str) -> Backbone:
    """Features of a PyTorch classifier, the pooled input of its head; or of a module that returns maps.

    Raises:
        ModelError: the output is neither logits nor maps, or the classifier has no maps.
    """
    import torch  # noqa: PLC0415
    from torch import Tensor  # noqa: PLC0415

    model.eval()
    try:
        with torch.inference_mode():
            output = model(torch.zeros(2, *spec.shape))
    except Exception as error:  # the code is the user's: it may raise anything
        raise ModelError(
            f"{name}: cannot run on inputs of shape {spec.shape}: {error}; check --input-spec",
            code="input-spec-invalid",
        ) from error
    if isinstance(output, Tensor) and output.ndim == 4:

        def pooled(batch: NDArray[np.float32]) -> NDArray[np.floating]:
            with torch.inference_mode():
                maps: NDArray[np.floating] = model(torch.from_numpy(batch)).mean(dim=(2, 3)).numpy()
                return maps

        return Backbone(name, spec, pooled)
    from drip.scoring import TorchScorer  # noqa: PLC0415

    scorer = TorchScorer(model)

    def scored(batch: NDArray[np.float32]) -> NDArray[np.floating]:
        features = scorer.score(batch).features
        assert features is not None  # noqa: S101  # TorchScorer always has them
        return features

    return Backbone(name, spec, scored)


def _of_file(path: str) -> Backbone:
    from drip.onnx import OnnxScorer  # noqa: PLC0415  # an extra

    scorer = OnnxScorer(path)
    if "features" not in scorer.provides:
        raise ModelError(
            f"{path}: has no output 'features'; export it again with drip model export", code="model-outputs"
        )

    def scored(batch: NDArray[np.float32]) -> NDArray[np.floating]:
        features = scorer.score(batch).features
        assert features is not None  # noqa: S101  # checked above
        return features

    return Backbone(path, scorer.spec, scored)


def _mobilenet(weights: Path) -> nn.Module:
    from drip.models import MobileNetV2, load_features  # noqa: PLC0415
    from drip.models.loading import load_weights  # noqa: PLC0415

    if not weights.is_file():
        raise DripError(f"{weights}: does not exist; check the path", code="path-missing")
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
    load_weights(network, weights, "MobileNetV2")
    return network
