"""CIFAR-10: all 60,000 images, from the original Python archive or from lossless WebP strips."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drip.datasets.arrays import ImageDataset, duplicate_groups
from drip.errors import InputError
from drip.files.fetch import (
    Progress,
    RemoteFile,
    cache_folder,
    data_places,
    fetch,
    first_found,
    missing,
    tar_gz_members,
)

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE = "cifar-10-python.tar.gz"
STRIPS = "cifar10_lossless_webp.tar"
BATCHES = "cifar-10-batches-py"
SOURCE = RemoteFile(
    url=f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
    path=ARCHIVE,
    n_bytes=170_498_071,
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)

_SIDE = 32
_PER_STRIP = 500
_PARTS = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
_DAMAGE = (
    OSError,
    EOFError,
    tarfile.TarError,
    zlib.error,
    pickle.UnpicklingError,
    KeyError,
    ValueError,
    TypeError,
)


def load_cifar10(
    folder: str | Path | None = None,
    *,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    source: RemoteFile = SOURCE,
) -> ImageDataset:
    """CIFAR-10: 32 x 32 colour images of ten classes, 50,000 for training and 10,000 for testing.

    Read from ``cifar-10-python.tar.gz``, from the folder ``cifar-10-batches-py`` of that archive, or from
    ``cifar10_lossless_webp.tar``: 120 strips of 500 images with the images' original names. All three contain
    the same rows.

    Args:
        folder: The only folder to search. If the set is not in it and ``download`` is True, it is downloaded
            into the cache. Default: the folder that DRIP_DATA names, then the cache.
        download: Download the set into the cache if it is not found.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Called during a download with the bytes so far and the total.
        source: What to download: the original archive, or a copy of it elsewhere.

    Returns:
        Training part first (rows 0-49,999), then the test part; within a part sorted by class, then by the
        image's original name. This order must not change: stored results refer to rows. No image occurs
        twice, so ``groups`` is None.

    Raises:
        InputError: the set is not found, or a file is damaged.
        DripError: the download fails.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    places = data_places(folder, cache)
    read = first_found(places, _reader)
    if read is None and download:
        path = fetch(source, cache_folder(cache), progress)
        read = partial(_read_archive, path)
    if read is None:
        raise missing("cifar10", f"{ARCHIVE} or {STRIPS}", places, source.n_bytes)
    images, labels = read()
    return ImageDataset(
        name=f"CIFAR-10, {len(labels):,} images",
        images=images,
        labels=labels,
        class_names=CLASS_NAMES,
        groups=duplicate_groups(images),
    )


_Columns = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _reader(place: Path) -> Callable[[], _Columns] | None:
    if (place / STRIPS).is_file():
        return partial(_read_strips, place / STRIPS)
    if (place / ARCHIVE).is_file():
        return partial(_read_archive, place / ARCHIVE)
    if (place / BATCHES).is_dir():
        return partial(_read_batches, place / BATCHES)
    return None


def _read_strips(path: Path) -> _Columns:
    """Strips ``<part>_<class>_<number>.webp``, each of 500 images one below the other."""
    images, labels = [], []
    try:
        with tarfile.open(path, mode="r:") as archive:
            names = json.loads(_member(archive, "names.json"))["names"]
            for part in _PARTS:
                for label, class_name in enumerate(CLASS_NAMES):
                    n = len(names[f"{part}/{class_name}"])
                    for number in range(-(-n // _PER_STRIP)):
                        strip = _member(archive, f"{part}_{class_name}_{number:02d}.webp")
                        with Image.open(io.BytesIO(strip), formats=("WEBP",)) as opened:
                            pixels = np.asarray(opened.convert("RGB"))
                        images.append(pixels.reshape(-1, _SIDE, _SIDE, 3))
                    labels.append(np.full(n, label, dtype=np.int64))
        return np.concatenate(images), np.concatenate(labels)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _read_archive(path: Path) -> _Columns:
    """The original archive: six pickled batches, read in place."""
    batches: dict[str, bytes] = {}
    wanted = {f"{BATCHES}/{name}": name for names in _PARTS.values() for name in names}
    try:
        for name, read in tar_gz_members(path):
            if name in wanted:
                batches[wanted[name]] = read()
        return _sorted_batches(batches.__getitem__)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _read_batches(folder: Path) -> _Columns:
    try:
        return _sorted_batches(lambda name: (folder / name).read_bytes())
    except _DAMAGE as error:
        raise _damaged(folder, error) from error


def _sorted_batches(read: Callable[[str], bytes]) -> _Columns:
    images, labels = [], []
    for batch_names in _PARTS.values():
        pixels, classes, names = [], [], []
        for batch_name in batch_names:
            batch = _unpickle(read(batch_name))
            pixels.append(np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, _SIDE, _SIDE))
            classes += batch[b"labels"]
            names += [name.removesuffix(b".png") for name in batch[b"filenames"]]
        if not len(classes) == len(names) == sum(map(len, pixels)):
            raise ValueError(f"{len(classes)} labels but {len(names)} names")
        order = sorted(range(len(classes)), key=lambda row: (classes[row], names[row]))
        images.append(np.concatenate(pixels)[order].transpose(0, 2, 3, 1))
        labels.append(np.array(classes, dtype=np.int64)[order])
    every = np.concatenate(labels)
    if len(every) and not (every.min() >= 0 and every.max() < len(CLASS_NAMES)):
        raise ValueError(f"the labels range from {every.min()} to {every.max()}")
    return np.ascontiguousarray(np.concatenate(images)), every


class _ArraysOnly(pickle.Unpickler):
    """Loads arrays and plain values only, so no code in a downloaded file can run.

    A pickle may name any function to call. The three names that a pickled array needs are replaced by
    today's numpy ones; any other name is an error.
    """

    _KNOWN: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"the pickle refers to {module}.{name}")
        return self._KNOWN[module, name]


def _unpickle(data: bytes) -> dict[bytes, Any]:
    batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    if not isinstance(batch, dict):
        raise TypeError(f"a batch is a {type(batch).__name__}, not a dict")
    return batch


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise KeyError(f"{name} is not a file")
    return stream.read()


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged ({error}); download it again", code="dataset-damaged")
