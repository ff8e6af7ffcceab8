"""Tomato leaves: 5,773 photographs of PlantVillage, with groups of photographs of the same leaf.

The set has no original archive. The package contains the list of the photographs with their digests; a
download gets them one by one from a public repository, and writes them into an archive of 128 x 128 pixels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from drip.datasets.arrays import ImageDataset
from drip.errors import DripError, InputError
from drip.files import atomic_writer
from drip.files.fetch import (
    Progress,
    Session,
    cache_folder,
    data_places,
    first_found,
    locked,
    missing,
    place_below,
)
from drip.types import IntArray

ARCHIVE = "plantvillage_tomato10_128.zip"
ORIGINALS = "plantvillage_tomato10_originals"
SIDE = 128
MEAN_BYTES = 16_000
"""Approximate size of an original, to announce the size of a download: the mean over PlantVillage."""

_LIST = "plantvillage-tomato10.csv.xz"
_QUALITY = 90
_EXPOSURES_PER_GROUP = 32
_LEAF = re.compile(r"(?P<series>\S+) Leaf (?P<leaf>\d+)")
_COUNTER = re.compile(r"(?P<series>\S+) (?P<counter>\d+)\.")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A photograph in the list.

    Attributes:
        file: ``<class>/<number>.jpg``, its name in the small archive.
        source_path: The original's path below the source's URL.
        source_blob_sha1: The original's git digest: SHA-1 over ``blob <size>``, a zero byte and the content.
        plantvillage_name: The file name in PlantVillage; empty if unknown.
    """

    file: str
    source_path: str
    source_blob_sha1: str
    plantvillage_name: str

    @property
    def class_name(self) -> str:
        """The folder of :attr:`file`."""
        return self.file.partition("/")[0]


@dataclass(frozen=True, slots=True)
class LeafSource:
    """Where the originals are.

    Attributes:
        base_url: URL that the paths are appended to, with a slash at the end.
        index: The list of the photographs as CSV with the fields of :class:`Leaf`; None: the packaged list.
    """

    base_url: str
    index: bytes | None = None

    def leaves(self) -> tuple[Leaf, ...]:
        """The photographs, sorted by :attr:`Leaf.file`."""
        return parse_index(self.csv())

    def csv(self) -> bytes:
        """The list as CSV."""
        return packaged_index() if self.index is None else self.index


SOURCE = LeafSource(
    "https://raw.githubusercontent.com/subrata0xo/Tomato-leaf-disease-detection/"
    "44edec4dd8b81469abd30f28cf935d30b352b9d8/"
)


@cache
def packaged_index() -> bytes:
    """The list of the 5,773 photographs that ships with the package.

    >>> len(packaged_index().splitlines()) - 1
    5773
    """
    return lzma.decompress((files("drip") / "data" / _LIST).read_bytes())


@cache
def parse_index(content: bytes) -> tuple[Leaf, ...]:
    """The photographs of a list, sorted by :attr:`Leaf.file`.

    Raises:
        ValueError: a CSV file with other fields.
    """
    rows = csv.DictReader(io.StringIO(content.decode()))
    try:
        return tuple(sorted((Leaf(**row) for row in rows), key=lambda leaf: leaf.file))
    except TypeError as error:
        raise ValueError(f"the list of photographs has unexpected fields: {rows.fieldnames}") from error


def blob_sha1(content: bytes) -> str:
    """The digest that git uses for a file.

    >>> blob_sha1(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def fetch_leaves(source: LeafSource, cache_folder: Path, progress: Progress | None = None) -> Path:
    """The path of the small archive in the cache, made from the originals, which are downloaded one by one.

    An interrupted download continues with the photographs that are missing. The originals are removed when
    the archive is complete.

    Args:
        source: Where the originals are.
        cache_folder: Folder of downloads; created if it does not exist.
        progress: Called after every original with the bytes so far and an estimate of all.

    Raises:
        DripError: there is no network, the file does not exist or has changed, or the disk is full.
    """
    target = cache_folder / ARCHIVE
    if target.is_file():
        return target
    with locked(target):
        if not target.is_file():
            originals = cache_folder / ORIGINALS
            _fetch_originals(source, originals, progress)
            with atomic_writer(target) as handle, zipfile.ZipFile(handle, "w") as archive:
                archive.writestr(zipfile.ZipInfo("index.csv"), source.csv())
                for leaf, data in zip(source.leaves(), downscaled(source, originals), strict=True):
                    archive.writestr(zipfile.ZipInfo(leaf.file), data)
            shutil.rmtree(originals)
    return target


def downscaled(source: LeafSource, folder: Path) -> Iterator[bytes]:
    """Every original below a folder as JPEG of 128 x 128 (Lanczos, quality 90), in the order of the list.

    Raises:
        OSError: an original is missing or cannot be decoded.
        ValueError: an original has different content.
    """
    for leaf in source.leaves():
        content = place_below(folder, leaf.source_path).read_bytes()
        if blob_sha1(content) != leaf.source_blob_sha1:
            raise ValueError(f"{leaf.source_path} does not have the git digest {leaf.source_blob_sha1}")
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as opened:
            small = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=_QUALITY)
        yield buffer.getvalue()


def _fetch_originals(source: LeafSource, folder: Path, progress: Progress | None) -> None:
    leaves, done = source.leaves(), 0
    with Session(source.base_url) as session:
        for n_before, leaf in enumerate(leaves):
            place = place_below(folder, leaf.source_path)
            if place.is_file():
                done += place.stat().st_size
                continue
            content = session.get(leaf.source_path)
            if blob_sha1(content) != leaf.source_blob_sha1:
                raise DripError(
                    f"{source.base_url}{leaf.source_path} has the git digest {blob_sha1(content)}, not "
                    f"{leaf.source_blob_sha1}; call again to continue",
                    code="download-damaged",
                )
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_writer(place) as handle:
                handle.write(content)
            done += len(content)
            if progress is not None:
                progress(done, done * len(leaves) // (n_before + 1))


def load_tomato(
    folder: str | Path | None = None,
    *,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    source: LeafSource = SOURCE,
) -> ImageDataset:
    """Tomato leaves of PlantVillage: 5,773 colour photographs of 128 x 128, nine diseases and healthy.

    600 photographs per class, 373 of the mosaic virus, without augmented copies. Read from
    ``plantvillage_tomato10_128.zip``, or from the 256 x 256 originals in the folders of the repository that
    :data:`SOURCE` names. Originals are checked against their git digest, downscaled (Lanczos) and encoded as
    JPEG of quality 90, as the archive was; a download leaves such an archive in the cache. A different
    version of the JPEG library may produce different bytes, with pixels that differ by a few levels. The
    samples are the JPEG files of 128 x 128.

    Groups keep photographs of one leaf together as far as the PlantVillage names allow:

    - ``GHLB_PS Leaf 46.2 Day 18``: series and leaf number identify the leaf, over all exposures and days.
    - ``RS_Erly.B 8405``: the series and the camera's counter. A leaf was photographed in a few successive
      exposures (mostly four), but the name does not say where the next leaf begins, so a group is a block of
      32 counter values of one series. Only leaves at the edge of a block are split: at most about one in
      eight.
    - The names of 2,174 photographs are unknown (all of bacterial spot, spider mites and target spot, 374 of
      Septoria leaf spot), and one name has neither number. Each is a separate group: other photographs of
      its leaf may be on the other side of a split.

    Args:
        folder: The only folder to search. If the set is not in it and ``download`` is True, it is downloaded
            into the cache. Default: the folder that DRIP_DATA names, then the cache.
        download: Download the set into the cache if it is not found.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Called during a download with the bytes so far and the total, estimated from
            the photographs so far.
        source: Where the originals are downloaded from, and their list.

    Returns:
        Rows sorted by class, then by file name.

    Raises:
        InputError: the set is not found, or a file is damaged.
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
        message = f"{path} is damaged ({error}); download it again"
        raise InputError(message, code="dataset-damaged") from error


def _find(source: LeafSource, place: Path) -> Path | None:
    if (place / ARCHIVE).is_file():
        return place / ARCHIVE
    return place if (place / source.leaves()[0].source_path).is_file() else None


def leaf_groups(photographs: Iterable[tuple[str, str]]) -> IntArray:
    """One number per leaf, or per block of successive exposures, from PlantVillage's file names.

    The rules are those of :func:`load_tomato`. Groups are numbered in the order of their first photograph.

    Args:
        photographs: Class and PlantVillage file name of each photograph; the name is empty if unknown.

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
                raise ValueError(f"{leaves[row].file} has size {opened.size}, not {SIDE} x {SIDE}")
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
