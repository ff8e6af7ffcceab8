"""Tomato leaves of PlantVillage: ten classes, 128 x 128, with the leaf that a photograph shows."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from drip.datasets.images import ImageDataset
from drip.datasets.places import data_places, first_found, missing
from drip.errors import InputError
from drip.types import IntArray

ARCHIVE = "plantvillage_tomato10_128.zip"
SIDE = 128

_EXPOSURES_PER_GROUP = 32
_LEAF = re.compile(r"(?P<series>\S+) Leaf (?P<leaf>\d+)")
_COUNTER = re.compile(r"(?P<series>\S+) (?P<counter>\d+)\.")


def load_tomato(folder: str | Path | None = None, *, cache: str | Path | None = None) -> ImageDataset:
    """Tomato leaves of PlantVillage: 5,773 colour photographs of 128 x 128, nine diseases and healthy.

    600 photographs a class, 373 of the mosaic virus. The samples are the JPEG files as they were found.

    Groups keep photographs of one leaf together as far as the PlantVillage names allow:

    - ``GHLB_PS Leaf 46.2 Day 18``: series and leaf number name the leaf, over all exposures and days.
    - ``RS_Erly.B 8405``: the series and the camera's counter. A leaf was photographed in a few successive
      exposures (mostly four), but the name does not say where the next leaf begins, so a group is a block of
      32 counter values of one series. A leaf is torn only where it lies on the edge of a block: about one
      in ten.
    - No name is known of 2,174 photographs (all of bacterial spot, spider mites and target spot, 374 of
      Septoria leaf spot) and one name has neither number. Each is a group of its own: other photographs of
      its leaf may lie on the other side of a split.

    Args:
        folder: The only folder to search. Default: the one that DRIP_DATA names, then the cache.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.

    Returns:
        Rows sorted by class, then by file name.

    Raises:
        InputError: the set is nowhere, or a file is damaged.

    References:
        Hughes and Salathe, An open access repository of images on plant health, arXiv:1511.08060.
    """
    places = data_places(folder, cache)
    path = first_found(places, lambda place: place / ARCHIVE if (place / ARCHIVE).is_file() else None)
    if path is None:
        raise missing("tomato", ARCHIVE, places, 100)
    try:
        return _read_archive(path)
    except (OSError, EOFError, zipfile.BadZipFile, KeyError, ValueError, UnidentifiedImageError) as error:
        raise InputError(f"a complete {ARCHIVE} is needed at {path}, got: {error}; fetch it again") from error


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
        files = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        rows = csv.DictReader(io.StringIO(archive.read("index.csv").decode()))
        names = {row["file"]: row["plantvillage_name"] for row in rows}
        encoded = tuple(map(archive.read, files))
    images = np.empty((len(files), SIDE, SIDE, 3), dtype=np.uint8)
    for row, data in enumerate(encoded):
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as opened:
            images[row] = np.asarray(opened.convert("RGB"))
    folders = [name.partition("/")[0] for name in files]
    classes = sorted(set(folders))
    return ImageDataset(
        name=f"PlantVillage tomato leaves, {len(files):,} images",
        images=images,
        labels=np.array([classes.index(name) for name in folders], dtype=np.int64),
        class_names=tuple(name.removeprefix("Tomato___") for name in classes),
        groups=leaf_groups(
            (class_name, names[name]) for class_name, name in zip(folders, files, strict=True)
        ),
        encoded=encoded,
        media_type="image/jpeg",
    )
