"""Real data sets as arrays and as samples: the packaged part of MNIST, or the full set from DRIP_DATA.

Reads files; downloads nothing. No torch.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError
from drip.files import sha256_hex
from drip.media import InputContract, encode_png
from drip.types import IntArray, Sample

DATA_VARIABLE = "DRIP_DATA"

# SHA-256 of the decompressed original files; the first sixteen bytes are the IDX header.
_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class ImageDataset:
    """Labelled images of one size in memory.

    Attributes:
        name: What it is, with its part: ``MNIST (70,000)``.
        images: uint8, shape (n, height, width) or (n, height, width, 3).
        labels: True classes, int64, shape (n,).
        class_names: Names in the order of the labels.
    """

    name: str
    images: NDArray[np.uint8]
    labels: IntArray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    @property
    def contract(self) -> InputContract:
        """How PNG samples of this set become inputs: values in [0, 1], channels first."""
        height, width = self.images.shape[1:3]
        return InputContract(shape=(1 if self.images.ndim == 3 else 3, height, width))

    def inputs(self, rows: Sequence[int] | IntArray) -> NDArray[np.float32]:
        """The images of the given rows as :attr:`contract` would prepare them, shape (n, C, H, W)."""
        pixels = self.images[np.asarray(rows)].astype(np.float32) / np.float32(255)
        return pixels[:, None] if pixels.ndim == 3 else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    def samples(self, rows: Iterable[int]) -> Iterator[Sample]:
        """The given rows as PNG samples with their true labels, encoded one at a time."""
        for row in rows:
            yield Sample(
                id=f"{row:06d}",
                data=encode_png(self.images[row]),
                media_type="image/png",
                label=int(self.labels[row]),
            )


def load_mnist(folder: str | Path | None = None) -> ImageDataset:
    """MNIST: all 70,000 digits where they are at hand, else the 10,000 that ship with the package.

    Args:
        folder: Folder with the four original ``.gz`` files. Default: ``mnist`` in the folder that the
            environment variable DRIP_DATA names, when that exists.

    Returns:
        Training part first (rows 0-59,999), then the test part; the packaged set is the test part.

    Raises:
        InputError: ``folder`` lacks a file, or a file is not the original.

    References:
        LeCun, Cortes and Burges, The MNIST database of handwritten digits.
    """
    root = _mnist_folder(folder)
    parts = ("t10k",) if root is None else ("train", "t10k")
    images, labels = [], []
    for part in parts:
        images.append(_read_idx(root, f"{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28))
        labels.append(_read_idx(root, f"{part}-labels-idx1-ubyte", 8))
    name = "MNIST, the 10,000 test digits" if root is None else "MNIST, all 70,000 digits"
    return ImageDataset(
        name=name,
        images=np.concatenate(images),
        labels=np.concatenate(labels).astype(np.int64),
        class_names=tuple("0123456789"),
    )


def split_rows(n: int, shares: Sequence[float], seed: int) -> tuple[IntArray, ...]:
    """A random partition of n rows, such as the paper's 40/20/40.

    Args:
        n: Number of rows.
        shares: Positive shares that sum to 1; the last part takes what rounding leaves.
        seed: Seed of the permutation.

    Raises:
        InputError: shares that are not positive or do not sum to 1.

    References:
        DRIP paper, section IV-A.1.

    >>> [len(part) for part in split_rows(10, (0.4, 0.2, 0.4), seed=0)]
    [4, 2, 4]
    """
    if not shares or not (min(shares) > 0 and abs(sum(shares) - 1) <= 1e-9):
        raise InputError(f"shares must be positive and sum to 1, got {tuple(shares)!r}")
    order = np.random.default_rng(seed).permutation(n).astype(np.int64)
    ends = np.round(np.cumsum(shares)[:-1] * n).astype(int)
    return tuple(np.split(order, ends))


def _mnist_folder(folder: str | Path | None) -> Path | None:
    if folder is not None:
        return Path(folder)
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        return None
    candidate = Path(named) / "mnist"
    return candidate if candidate.is_dir() else None


def _read_idx(root: Path | None, name: str, header_bytes: int) -> NDArray[np.uint8]:
    place = (files("drip") / "data" if root is None else root) / f"{name}.gz"
    try:
        content = gzip.decompress(place.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"the MNIST file {name}.gz is needed at {place}, got: {error}") from error
    digest = sha256_hex(content)
    if digest != _MNIST[name]:
        raise InputError(
            f"the original {name} (SHA-256 {_MNIST[name][:12]}...) is needed at {place}, got "
            f"{digest[:12]}...; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header_bytes)
