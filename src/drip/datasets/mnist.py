"""MNIST: the 10,000 digits that ship with the package, or all 70,000 from the original files."""

from __future__ import annotations

import gzip
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drip.datasets.images import ImageDataset
from drip.datasets.places import data_places
from drip.errors import InputError
from drip.files import sha256_hex

# SHA-256 of the decompressed original files; the first sixteen bytes are the IDX header.
_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load_mnist(folder: str | Path | None = None, *, cache: str | Path | None = None) -> ImageDataset:
    """MNIST: all 70,000 digits where they are at hand, else the 10,000 that ship with the package.

    Args:
        folder: Folder with the four original ``.gz`` files, or one with the folder ``mnist`` that has them.
            Default: ``mnist`` in the folder that the environment variable DRIP_DATA names, then in the
            cache, where one exists.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.

    Returns:
        Training part first (rows 0-59,999), then the test part, both in the original order; the packaged
        set is the test part. No image occurs twice, so ``groups`` is None.

    Raises:
        InputError: ``folder`` lacks a file, or a file is not the original.

    References:
        LeCun, Cortes and Burges, The MNIST database of handwritten digits.
    """
    root = _mnist_folder(folder, cache)
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


def _mnist_folder(folder: str | Path | None, cache: str | Path | None) -> Path | None:
    for place in data_places(folder, cache):
        if (place / "mnist").is_dir():
            return place / "mnist"
    return None if folder is None else Path(folder)


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
