"""Tomato leaves of PlantVillage: ten classes, 128 x 128, with the leaf that a photograph shows."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from drip.datasets.fetch import Progress
from drip.datasets.images import ImageDataset
from drip.datasets.leaves import (
    ARCHIVE,
    MEAN_BYTES,
    SIDE,
    SOURCE,
    Leaf,
    LeafSource,
    downscaled,
    fetch_leaves,
    parse_index,
)
from drip.datasets.places import cache_folder, data_places, first_found, missing
from drip.errors import InputError
from drip.types import IntArray

_EXPOSURES_PER_GROUP = 32
_LEAF = re.compile(r"(?P<series>\S+) Leaf (?P<leaf>\d+)")
_COUNTER = re.compile(r"(?P<series>\S+) (?P<counter>\d+)\.")


def load_tomato(
    folder: str | Path | None = None,
    *,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    source: LeafSource = SOURCE,
) -> ImageDataset:
    """Tomato leaves of PlantVillage: 5,773 colour photographs of 128 x 128, nine diseases and healthy.

    600 photographs a class, 373 of the mosaic virus, without augmented copies. Read from
    ``plantvillage_tomato10_128.zip``, or from the 256 x 256 originals in the folders of the repository that
    :data:`SOURCE` names. Originals are checked against their git digest, downscaled (Lanczos) and encoded as
    JPEG of quality 90, as the archive was; a download leaves such an archive in the cache. Another version of
    the JPEG library may give other bytes, and pixels that differ by a few levels. The samples are the JPEG
    files of 128 x 128.

    Groups keep photographs of one leaf together as far as the PlantVillage names allow:

    - ``GHLB_PS Leaf 46.2 Day 18``: series and leaf number name the leaf, over all exposures and days.
    - ``RS_Erly.B 8405``: the series and the camera's counter. A leaf was photographed in a few successive
      exposures (mostly four), but the name does not say where the next leaf begins, so a group is a block of
      32 counter values of one series. A leaf is torn only where it lies on the edge of a block: at most
      about one in eight.
    - No name is known of 2,174 photographs (all of bacterial spot, spider mites and target spot, 374 of
      Septoria leaf spot) and one name has neither number. Each is a group of its own: other photographs of
      its leaf may lie on the other side of a split.

    Args:
        folder: The only folder to search; where it lacks the set and ``download`` is set, the cache is next.
            Default: the one that DRIP_DATA names, then the cache.
        download: Fetch what is nowhere into the cache.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Called with the bytes that are there and the bytes of the whole, which are estimated from
            the photographs so far.
        source: Where the originals are fetched from, and the list of them.

    Returns:
        Rows sorted by class, then by file name.

    Raises:
        InputError: the set is nowhere, or a file is damaged.
        DripError: the download fails.

    References:
        Hughes and Salathe, An open access repository of images on plant health, arXiv:1511.08060.
    """
    places = data_places(folder, cache)
    path = first_found(places, partial(_find, source))
    if path is None and download:
        path = fetch_leaves(source, cache_folder(cache), progress)
    if path is None:
        raise missing("tomato", ARCHIVE, places, MEAN_BYTES * len(source.leaves()))
    try:
        return _read_archive(path) if path.is_file() else _dataset(source.leaves(), downscaled(source, path))
    except (OSError, EOFError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise InputError(f"all tomato leaves are needed at {path}, got: {error}; fetch them again") from error


def _find(source: LeafSource, place: Path) -> Path | None:
    if (place / ARCHIVE).is_file():
        return place / ARCHIVE
    return place if (place / source.leaves()[0].source_path).is_file() else None


def leaf_groups(photographs: Iterable[tuple[str, str]]) -> IntArray:
    """One number per leaf, or per block of successive exposures, from PlantVillage's file names.

    The rules are those of :func:`load_tomato`. Groups are numbered in the order of their first photograph.

    Args:
        photographs: Class and PlantVillage file name of each photograph; the name is empty where unknown.

    Returns:
        int64, shape (n,).

    >>> names = ["GH_HL Leaf 315.2.JPG", "GH_HL Leaf 315.JPG", "RS_HL 0366.JPG", "RS_HL 0370.JPG"]
    >>> leaf_groups([("healthy", name) for name in [*names, "", ""]]).tolist()
    [0, 0, 1, 1, 2, 3]
    """
    numbers: dict[tuple[str, str, str, int], int] = {}
    groups = []
    for row, (class_name, file_name) in enumerate(photographs):
        name = file_name.rpartition("___")[2]
        if found := _LEAF.match(name):
            key = ("leaf", class_name, found["series"], int(found["leaf"]))
        elif found := _COUNTER.match(name):
            key = ("block", class_name, found["series"], int(found["counter"]) // _EXPOSURES_PER_GROUP)
        else:
            key = ("alone", "", "", row)
        groups.append(numbers.setdefault(key, len(numbers)))
    return np.array(groups, dtype=np.int64)


def _read_archive(path: Path) -> ImageDataset:
    """A flat archive: ``<class>/<number>.jpg`` and ``index.csv`` with the PlantVillage name of each file."""
    with zipfile.ZipFile(path) as archive:
        leaves = parse_index(archive.read("index.csv"))
        return _dataset(leaves, (archive.read(leaf.file) for leaf in leaves))


def _dataset(leaves: Sequence[Leaf], files: Iterable[bytes]) -> ImageDataset:
    encoded = tuple(files)
    images = np.empty((len(leaves), SIDE, SIDE, 3), dtype=np.uint8)
    for row, data in enumerate(encoded):
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as opened:
            if opened.size != (SIDE, SIDE):
                raise ValueError(f"{leaves[row].file} of {opened.size} in place of {SIDE} x {SIDE} pixels")
            images[row] = np.asarray(opened.convert("RGB"))
    classes = sorted({leaf.class_name for leaf in leaves})
    return ImageDataset(
        name=f"PlantVillage tomato leaves, {len(leaves):,} images",
        images=images,
        labels=np.array([classes.index(leaf.class_name) for leaf in leaves], dtype=np.int64),
        class_names=tuple(name.removeprefix("Tomato___") for name in classes),
        groups=leaf_groups((leaf.class_name, leaf.plantvillage_name) for leaf in leaves),
        encoded=encoded,
        media_type="image/jpeg",
    )
