"""The photographs of the tomato set: their list, their originals on the net, the small archive of them."""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from PIL import Image

from drip.datasets.fetch import Progress, locked, place_below
from drip.datasets.session import Session
from drip.errors import DripError
from drip.files import atomic_writer

ARCHIVE = "plantvillage_tomato10_128.zip"
ORIGINALS = "plantvillage_tomato10_originals"
SIDE = 128
MEAN_BYTES = 16_000
"""Of an original, roughly: the mean over the colour photographs of PlantVillage."""

_LIST = "plantvillage-tomato10.csv.xz"
_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Leaf:
    """A photograph.

    Attributes:
        file: ``<class>/<number>.jpg``, its name in the small archive.
        source_path: The original's path below the source's address.
        source_blob_sha1: The original's git digest: SHA-1 over ``blob <size>``, a zero byte and the content.
        plantvillage_name: The file name in PlantVillage; empty where unknown.
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
        base_url: What the paths are appended to, with a slash at the end.
        index: The list of the photographs as CSV with the fields of :class:`Leaf`; None: the packaged one.
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
        ValueError: another list.
    """
    rows = csv.DictReader(io.StringIO(content.decode()))
    try:
        return tuple(sorted((Leaf(**row) for row in rows), key=lambda leaf: leaf.file))
    except TypeError as error:
        raise ValueError(f"a list of photographs with other fields: {rows.fieldnames}") from error


def blob_sha1(content: bytes) -> str:
    """The digest by which git knows a file.

    >>> blob_sha1(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def fetch_leaves(source: LeafSource, cache_folder: Path, progress: Progress | None = None) -> Path:
    """The small archive in the cache, made from the originals, which are fetched one by one.

    An interrupted download goes on with the photographs that are missing. The originals are removed when the
    archive is made.

    Args:
        source: Where the originals are.
        cache_folder: Folder of downloads; made where it does not exist.
        progress: Called after every original with the bytes so far and an estimate of all.

    Returns:
        The place of the archive.

    Raises:
        DripError: no network, no such file, another content, no space.
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
        ValueError: an original has another content.
    """
    for leaf in source.leaves():
        content = place_below(folder, leaf.source_path).read_bytes()
        if blob_sha1(content) != leaf.source_blob_sha1:
            raise ValueError(f"{leaf.source_path} with another content than {leaf.source_blob_sha1}")
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
                    f"{source.base_url}{leaf.source_path} with the git digest {leaf.source_blob_sha1} is "
                    f"needed, got {blob_sha1(content)}; call again to continue"
                )
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_writer(place) as handle:
                handle.write(content)
            done += len(content)
            if progress is not None:
                progress(done, done * len(leaves) // (n_before + 1))
