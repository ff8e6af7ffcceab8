"""MobileNetV2 with torchvision's layer names, and a loader for weights in an npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from drip.errors import ModelError

_STAGES = (
    # expansion, output channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LAST_CHANNELS = 1280


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project; with a shortcut if the shape allows it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the depthwise convolution.
        expansion: Factor of the hidden channels.
        expand: True for an expanding convolution; it can be left out only at expansion 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int, *, expand: bool
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = [_convolution(in_channels, hidden, 1)] if expand else []
        layers += [
            _convolution(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, out_channels, height / stride, width / stride), rounded up."""
        branch: Tensor = self.conv(x)
        return x + branch if self.has_shortcut else branch


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1: 3,504,872 parameters at 1000 classes, 7 x 7 positions at 224 x 224 pixels.

    Random weights as in torchvision. ``load_state_dict`` reads torchvision's ``mobilenet_v2`` files;
    replace the classifier's two tensors first if the number of classes differs.

    Args:
        n_classes: Number of classes, at least 2.
        in_channels: Channels of the image.
        dropout: Probability of dropout before the classifier, in training.
        first_expansion: Give the first block a 1 x 1 expansion from 32 to 32 channels, as the weights
            of the ONNX model zoo have it; torchvision's do not.

    References:
        Sandler et al. 2018, arXiv:1801.04381.

    >>> sum(p.numel() for p in MobileNetV2().parameters())
    3504872
    """

    def __init__(
        self,
        n_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.2,
        *,
        first_expansion: bool = False,
    ) -> None:
        super().__init__()
        channels = 32
        layers: list[nn.Module] = [_convolution(in_channels, channels, 3, stride=2)]
        for expansion, out_channels, repeats, first_stride in _STAGES:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                expand = expansion != 1 or first_expansion
                layers.append(InvertedResidual(channels, out_channels, stride, expansion, expand=expand))
                channels = out_channels
        layers.append(_convolution(channels, _LAST_CHANNELS, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(_LAST_CHANNELS, n_classes))
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, n_classes) of images (N, in_channels, height, width), each side at least 32."""
        pooled = nn.functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


def load_features(model: nn.Module, path: Path | str) -> None:
    """Load convolutions and batch normalisation from an npz file of arrays with ``state_dict`` names.

    The classifier and the counters of batch normalisation are optional in the file.

    Args:
        model: The network to fill, in place; unchanged after an error.
        path: The npz file; reading it executes no code.

    Raises:
        ModelError: The file cannot be read, or names or shapes do not fit the model.
    """
    if not Path(path).exists():
        raise ModelError(f"{path}: does not exist", code="path-missing")
    try:
        with np.load(path, allow_pickle=False) as archive:
            weights = {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not a readable npz file of arrays ({error})") from error
    state = model.state_dict()
    optional = {
        name for name in state if name.startswith("classifier.") or name.endswith("num_batches_tracked")
    }
    missing = state.keys() - weights.keys() - optional
    unexpected = weights.keys() - state.keys()
    misfits = {name for name in weights.keys() & state.keys() if weights[name].shape != state[name].shape}
    for what, names in (
        ("not in the file", missing),
        ("not in the model", unexpected),
        ("with another shape", misfits),
    ):
        if names:
            raise ModelError(
                f"{path}: does not fit the model: {len(names)} names {what}, such as {min(names)}; try "
                "first_expansion=True"
            )
    model.load_state_dict(weights, strict=False)


def _convolution(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Module:
    """Convolution without bias, batch normalisation, ReLU6."""
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


def _initialise(model: nn.Module) -> None:
    """Random weights as torchvision draws them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
