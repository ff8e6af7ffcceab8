"""Small networks that train on a laptop: for images of MNIST and CIFAR-10 size, and for raw audio."""

from __future__ import annotations

import torch  # noqa: F401  # used by the doctests
from torch import Tensor, nn

from drip.errors import ModelError


class SmallCNN(nn.Module):
    """Three blocks of convolution, batch normalisation and ReLU, then average pooling and a linear layer.

    The first two blocks halve the image with max pooling, so 28 x 28 pixels become a 7 x 7 feature map of ``4
    * width`` channels. For this head the score needs no backward pass.

    Args:
        in_channels: Channels of the image: 1 for MNIST, 3 for CIFAR-10.
        n_classes: Number of classes, at least 2.
        width: Channels of the first block; the others have twice and four times as many.

    >>> SmallCNN(in_channels=3, n_classes=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, in_channels: int = 1, n_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block_2d(in_channels, width),
            nn.MaxPool2d(2),
            *_block_2d(width, 2 * width),
            nn.MaxPool2d(2),
            *_block_2d(2 * width, 4 * width),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, n_classes) of images (N, in_channels, height, width), each side at least 4."""
        pooled: Tensor = self.avgpool(self.features(x)).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


class AudioCNN(nn.Module):
    """One-dimensional network for raw audio: four convolution blocks and a fully connected head.

    Each block is Conv1d, batch normalisation, ReLU and max pooling by 4; the head is dropout and two
    linear layers. The paper does not state sizes: the first kernel spans 5 ms at 16 kHz, and one second
    becomes a feature map of ``8 * width`` channels and 15 positions.

    Args:
        n_classes: Number of classes, at least 2.
        n_samples: Length of the input in samples; 16,000 is one second at 16 kHz.
        width: Channels of the first block; the others have 2, 4 and 8 times as many.
        hidden: Units of the first linear layer.
        dropout: Probability of dropout before the first linear layer, in training.

    Raises:
        ModelError: The input is too short for four blocks.

    References:
        DRIP paper, section IV-B.2.

    >>> AudioCNN(n_classes=9)(torch.zeros(2, 1, 16000)).shape
    torch.Size([2, 9])
    """

    def __init__(
        self,
        n_classes: int = 35,
        n_samples: int = 16_000,
        width: int = 16,
        hidden: int = 128,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block_1d(1, width, kernel_size=80, stride=4),
            *_block_1d(width, 2 * width),
            *_block_1d(2 * width, 4 * width),
            *_block_1d(4 * width, 8 * width),
        )
        # The first convolution outputs floor(n / 4) + 1 positions, and each of the four poolings keeps a
        # quarter.
        n_positions = (n_samples // 4 + 1) // 256
        if n_positions < 1:
            raise ModelError(
                f"n_samples is {n_samples}, too few for four pooling layers; pad the recordings to 1020 or more",
                code="bad-argument",
            )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(8 * width * n_positions, hidden),
            nn.ReLU(),
            nn.Linear(hidden, n_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, n_classes) of waveforms (N, 1, n_samples) with values in [-1, 1]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def _block_2d(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]


def _block_1d(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv1d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
    )
    return [convolution, nn.BatchNorm1d(out_channels), nn.ReLU(), nn.MaxPool1d(4)]
