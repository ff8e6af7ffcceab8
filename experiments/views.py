"""What a frozen image network sees of a row: the clean picture, or one of the studies' variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from drip.datasets import AudioDataset, ImageDataset
from drip.errors import InputError
from drip.types import IntArray

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class View:
    """A change of a picture with values in [0, 1]; drawn per row, so a row always looks the same.

    Attributes:
        noise: Standard deviation of Gaussian noise on every value, clipped to [0, 1].
        blur: Standard deviation of a Gaussian blur, as a share of the picture's height.
        shift: Largest shift in either direction, as a share of the height; edges repeat.
        gain: Largest relative change of brightness.
        seed: Seed of the draws, beside the row.
    """

    noise: float = 0.0
    blur: float = 0.0
    shift: float = 0.0
    gain: float = 0.0
    seed: int = 0


VIEWS: Mapping[str, View | None] = MappingProxyType(
    {
        "clean": View(),
        "noise": View(noise=0.5, seed=1),  # A13
        **{
            f"drift{step}": View(noise=0.04 * step, blur=0.016 * step, seed=10 + step)
            for step in (1, 2, 3, 4)
        },
        **{f"repeat{copy}": View(noise=0.02, shift=0.04, gain=0.1, seed=20 + copy) for copy in (1, 2, 3, 4)},
        "foreign": None,  # a picture of another data set, at the row modulo its size
    }
)
"""Every variant by name."""


def network_inputs(
    dataset: ImageDataset | AudioDataset,
    rows: IntArray,
    view: str,
    size: int,
    foreign: ImageDataset | None = None,
) -> Tensor:
    """Inputs of an ImageNet network, shape (n, 3, height, width), normalised with ImageNet's statistics.

    Pictures are changed at their own resolution and then scaled (bilinear) to ``size`` x ``size``; sound
    becomes a log-mel spectrogram with ``size`` rows.

    Raises:
        InputError: a view of sound other than ``clean``, or ``foreign`` without another data set.
    """
    if isinstance(dataset, AudioDataset):
        if view != "clean":
            raise InputError(f"view {view!r}: not for sound; choose 'clean'")
        pictures = log_mel(torch.from_numpy(dataset.inputs(rows)[:, 0]), dataset.sample_rate)
        size_of = (size, round(size * pictures.shape[3] / pictures.shape[2] / 32) * 32)
    else:
        pictures = _pictures(dataset, rows, view, foreign)
        size_of = (size, size)
    pictures = interpolate(pictures, size_of, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (pictures.expand(-1, 3, -1, -1) - mean) / std


def log_mel(waves: Tensor, sample_rate: int, n_mels: int = 64) -> Tensor:
    """Log-mel spectrograms scaled to [0, 1] each, shape (n, 1, n_mels, frames): windows of 25 ms every 10 ms.

    References:
        Stevens, Volkmann and Newman (1937) for the mel scale; triangular filters from 20 Hz to half the rate.
    """
    window, hop, n_fft = sample_rate // 40, sample_rate // 100, 512
    spectrum = torch.stft(
        waves,
        n_fft,
        hop,
        window,
        torch.hann_window(window),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    energies = _mel_filters(n_fft // 2 + 1, n_mels, sample_rate) @ spectrum.abs().square()
    decibels = torch.log(energies + 1e-6)
    low, high = decibels.amin((1, 2), keepdim=True), decibels.amax((1, 2), keepdim=True)
    return ((decibels - low) / (high - low).clamp_min(1e-6))[:, None]


def _mel_filters(n_bins: int, n_mels: int, sample_rate: int) -> Tensor:
    """Triangles with equal steps in mel, shape (n_mels, n_bins)."""
    top, bottom = (2595 * np.log10(1 + hertz / 700) for hertz in (sample_rate / 2, 20.0))
    corners = 700 * (10 ** (np.linspace(bottom, top, n_mels + 2) / 2595) - 1)
    bins = np.linspace(0, sample_rate / 2, n_bins)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    return torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None).astype(np.float32))


def _pictures(dataset: ImageDataset, rows: IntArray, view: str, foreign: ImageDataset | None) -> Tensor:
    if view not in VIEWS:
        raise InputError(f"view {view!r}: unknown; choose one of {', '.join(VIEWS)}")
    change = VIEWS[view]
    if change is None:
        if foreign is None:
            raise InputError("view 'foreign': no other data set was given; name one")
        other = torch.from_numpy(foreign.inputs(rows % len(foreign)))
        side = dataset.images.shape[1:3]
        return interpolate(other, side, mode="bilinear", align_corners=False, antialias=True)
    return _changed(torch.from_numpy(dataset.inputs(rows)), rows, change)


def _changed(pictures: Tensor, rows: IntArray, view: View) -> Tensor:
    height = pictures.shape[2]
    if view.blur:
        pictures = _blurred(pictures, view.blur * height)
    if view == View():
        return pictures
    changed = []
    for picture, row in zip(pictures, rows.tolist(), strict=True):
        rng = np.random.default_rng([view.seed, row])
        limit = round(view.shift * height)
        up, left = rng.integers(-limit, limit + 1, size=2).tolist()
        gain = 1 + view.gain * rng.uniform(-1, 1)
        noise = torch.from_numpy(rng.standard_normal(picture.shape, np.float32))
        changed.append((_shifted(picture, up, left) * gain + view.noise * noise).clamp(0, 1))
    return torch.stack(changed)


def _shifted(picture: Tensor, up: int, left: int) -> Tensor:
    if not up and not left:
        return picture
    limit = max(abs(up), abs(left))
    padded = pad(picture[None], (limit,) * 4, mode="replicate")[0]
    height, width = picture.shape[1:]
    return padded[:, limit + up : limit + up + height, limit + left : limit + left + width]


def _blurred(pictures: Tensor, deviation: float) -> Tensor:
    radius = max(1, int(np.ceil(3 * deviation)))
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(pictures.shape[1], 1, -1)
    padded = pad(pictures, (radius,) * 4, mode="replicate")
    rows = conv2d(padded, kernel[:, :, None], groups=pictures.shape[1])
    return conv2d(rows, kernel[:, :, :, None], groups=pictures.shape[1])
