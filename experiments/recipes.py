"""How the full regime trains each data set's network: numbers, and the changes of inputs while training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


@dataclass(frozen=True)
class Augmentation:
    """Changes of a waveform, drawn anew whenever it is trained on.

    Attributes:
        shift: Largest shift in either direction in samples; silence comes in.
        gain: Largest relative change of loudness.
        noise: Largest standard deviation of added Gaussian noise; each clip draws its own below it.
    """

    shift: int
    gain: float
    noise: float


@dataclass(frozen=True)
class Recipe:
    """One training: AdamW, one-cycle learning rate, cross-entropy (:func:`drip.training.train`).

    Attributes:
        backbone: The network: ``small_cnn``, ``audio_cnn``, ``mobilenet_v2`` or ``efficientnet_b0``.
        epochs: Passes over the training rows.
        batch_size: Rows per step.
        learning_rate: Peak of the schedule.
        weight_decay: Decoupled weight decay.
        width: Channels of the first block of the two small networks; 0 for the others.
        augmentation: Changes of the inputs while training; None trains on them as they are.
        flips: Train on every image as it is and left for right, in turn; only with a frozen part.
        level: Root mean square that every input of a small network is scaled to; 0 leaves them.
    """

    backbone: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 1e-2
    width: int = 0
    augmentation: Augmentation | None = None
    flips: bool = False
    level: float = 0.0

    def steps(self, n_rows: int) -> int:
        """Optimiser steps of a training on so many rows.

        >>> Recipe("small_cnn", epochs=2, batch_size=32, learning_rate=0.01).steps(100)
        6
        """
        return self.epochs * max(1, round(n_rows / self.batch_size))


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "mnist": Recipe("small_cnn", epochs=2, batch_size=64, learning_rate=3e-2, width=16),
        "cifar10": Recipe("mobilenet_v2", epochs=2, batch_size=64, learning_rate=1e-3),
        "tomato": Recipe("mobilenet_v2", epochs=4, batch_size=32, learning_rate=1e-3),
        "speech_commands": Recipe(
            "audio_cnn",
            epochs=15,
            batch_size=16,
            learning_rate=3e-3,
            width=16,
            augmentation=Augmentation(shift=1600, gain=0.3, noise=0.005),
            level=0.1,
        ),
    }
)
"""The recipe of each data set, chosen on a held-out part of it: as little work as comes near the paper's baseline."""


class Training(nn.Module):
    """A network as it is trained: with its augmentation, which evaluation leaves out.

    Args:
        network: What is trained.
        augmentation: Changes of the inputs, shape (N, 1, n_samples); None makes none.
    """

    def __init__(self, network: nn.Module, augmentation: Augmentation | None) -> None:
        super().__init__()
        self.network = network
        self.augmentation = augmentation

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, n_classes)."""
        if self.training and self.augmentation is not None:
            x = augmented(x, self.augmentation)
        logits: Tensor = self.network(x)
        return logits


def augmented(waves: Tensor, how: Augmentation) -> Tensor:
    """Waveforms shifted, made louder or softer, and noisy; draws come from torch's generator of the CPU.

    Args:
        waves: Shape (N, 1, n_samples).
        how: The limits of the draws.
    """
    n, _, length = waves.shape
    starts = torch.randint(2 * how.shift + 1, (n, 1)) + torch.arange(length)
    gains = 1 + how.gain * (2 * torch.rand(n, 1, 1) - 1)
    noise = how.noise * torch.rand(n, 1, 1) * torch.randn(n, 1, length)
    shifted = pad(waves, (how.shift, how.shift)).gather(2, starts[:, None].to(waves.device))
    return shifted * gains.to(waves.device) + noise.to(waves.device)
