"""MNIST: the 10,000 digits that ship with the package, or all 70,000 from the original files."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drip.datasets.arrays import ImageDataset
from drip.errors import InputError
from drip.files import sha256_hex
from drip.files.fetch import DATA_VARIABLE, Progress, RemoteFile, cache_folder, fetch, place_below

# SHA-256 of the decompressed files: mirrors compress the same files differently.
_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

_COMPRESSED = (
    ("train-images-idx3", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    ("train-labels-idx1", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    ("t10k-images-idx3", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    ("t10k-labels-idx1", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
)
SOURCES = tuple(
    RemoteFile(
        f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}-ubyte.gz", f"mnist/{name}-ubyte.gz", n, sha
    )
    for name, n, sha in _COMPRESSED
)


def load_mnist(
    folder: str | Path | None = None,
    *,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    sources: Sequence[RemoteFile] = SOURCES,
) -> ImageDataset:
    """MNIST: all 70,000 digits if their files are found, else the 10,000 that ship with the package.

    Args:
        folder: Folder with the four original ``.gz`` files, or with a subfolder ``mnist`` that has them.
            Default: ``mnist`` in the folder that the environment variable DRIP_DATA names, then in the
            cache, if one of them exists.
        download: Download the files into the cache if they are not found.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Called during a download with the bytes so far and the total.
        sources: What to download: the four original files, or copies of them elsewhere.

    Returns:
        Training part first (rows 0-59,999), then the test part, both in the original order; the packaged
        set is the test part. No image occurs twice, so ``groups`` is None.

    Raises:
        InputError: a file is missing in ``folder``, or a file is not the original.
        DripError: the download fails.

    References:
        LeCun, Cortes and Burges, The MNIST database of handwritten digits.
    """
    root = _mnist_folder(folder, cache)
    if download and not (root is not None and _has_files(root)):
        root = _fetch(sources, cache_folder(cache), progress)
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
    if folder is not None:
        inner = Path(folder) / "mnist"
        return inner if inner.is_dir() else Path(folder)
    named = os.environ.get(DATA_VARIABLE)
    if named and (Path(named) / "mnist").is_dir():
        return Path(named) / "mnist"
    cached = cache_folder(cache) / "mnist"
    return cached if _has_files(cached) else None


def _fetch(sources: Sequence[RemoteFile], cache: Path, progress: Progress | None) -> Path:
    """The folder with all files; progress counts over all of them."""
    total, done = sum(source.n_bytes for source in sources), 0
    for source in sources:
        fetch(source, cache, partial(_shifted, progress, done, total) if progress is not None else None)
        done += source.n_bytes
    return place_below(cache, sources[0].path).parent


def _shifted(progress: Progress, offset: int, total: int, done: int, _: int) -> None:
    progress(offset + done, total)


def _has_files(root: Path) -> bool:
    return all((root / f"{name}.gz").is_file() for name in _MNIST)


def _read_idx(root: Path | None, name: str, header_bytes: int) -> NDArray[np.uint8]:
    place = (files("drip") / "data" if root is None else root) / f"{name}.gz"
    try:
        content = gzip.decompress(place.read_bytes())
    except FileNotFoundError as error:
        message = f"{place} does not exist; name the folder of the four original files, or set download=True"
        raise InputError(message, code="dataset-missing") from error
    except (OSError, EOFError, zlib.error) as error:
        message = f"{place} is damaged ({error}); download it again"
        raise InputError(message, code="dataset-damaged") from error
    digest = sha256_hex(content)
    if digest != _MNIST[name]:
        raise InputError(
            f"{place} is not the original {name}: its content has SHA-256 {digest[:12]}..., not "
            f"{_MNIST[name][:12]}...; download it again",
            code="dataset-damaged",
        )
    return np.frombuffer(content, np.uint8, offset=header_bytes)
