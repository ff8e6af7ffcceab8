"""What a frozen image network sees of a row: the clean picture, or a noisy one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from drip.datasets import AudioDataset, ImageDataset
from drip.errors import InputError
from drip.types import IntArray

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class View:
    """A change of a picture with values in [0, 1]; drawn per row, so a row always looks the same.

    Attributes:
        noise: Standard deviation of Gaussian noise on every value, clipped to [0, 1].
        seed: Seed of the draws, beside the row.
    """

    noise: float = 0.0
    seed: int = 0


VIEWS: Mapping[str, View] = MappingProxyType({"clean": View(), "noise": View(noise=0.5, seed=1)})
"""Every variant by name; the noise is that of A13."""


def network_inputs(dataset: ImageDataset | AudioDataset, rows: IntArray, view: str, size: int) -> Tensor:
    """Inputs of an ImageNet network, shape (n, 3, height, width), normalised with ImageNet's statistics.

    Pictures are changed at their own resolution and then scaled (bilinear) to ``size`` x ``size``; sound
    becomes a log-mel spectrogram with ``size`` rows.

    Raises:
        InputError: an unknown view, or one of sound other than ``clean``.
    """
    if isinstance(dataset, AudioDataset):
        if view != "clean":
            raise InputError(f"view {view!r}: not for sound; choose 'clean'")
        pictures = log_mel(torch.from_numpy(dataset.inputs(rows)[:, 0]), dataset.sample_rate)
        size_of = (size, round(size * pictures.shape[3] / pictures.shape[2] / 32) * 32)
    else:
        pictures = _pictures(dataset, rows, view)
        size_of = (size, size)
    pictures = interpolate(pictures, size_of, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
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


def _pictures(dataset: ImageDataset, rows: IntArray, view: str) -> Tensor:
    if view not in VIEWS:
        raise InputError(f"view {view!r}: unknown; choose one of {', '.join(VIEWS)}")
    pictures, change = torch.from_numpy(dataset.inputs(rows)), VIEWS[view]
    if not change.noise:
        return pictures
    noise = [_noise(pictures.shape[1:], change.seed, row) for row in rows.tolist()]
    return (pictures + change.noise * torch.from_numpy(np.stack(noise))).clamp(0, 1)


def _noise(shape: tuple[int, ...], seed: int, row: int) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, row])
    rng.uniform()  # the recorded noise comes after one draw
    return rng.standard_normal(shape, np.float32)
