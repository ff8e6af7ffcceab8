"""Dry Bean: sixteen measurements of 13,611 beans of seven kinds."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drip.datasets.fetch import Progress, locked, open_url
from drip.datasets.places import cache_folder, data_places, first_found, missing
from drip.datasets.tables import TableDataset, table_of
from drip.errors import DripError, InputError
from drip.files import atomic_writer, sha256_hex

CSV = "dry_bean.csv.gz"
ARFF = "Dry_Bean_Dataset.arff"
LABEL = "Class"


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file inside a zip that can be fetched.

    Attributes:
        url: Address of the zip; http, https or file.
        member: Name of the file in it.
        n_bytes: Size of the file.
        sha256: SHA-256 of the file.
    """

    url: str
    member: str
    n_bytes: int
    sha256: str


SOURCE = ArchivedFile(
    url="https://archive.ics.uci.edu/static/public/602/dry+bean+dataset.zip",
    member=f"DryBeanDataset/{ARFF}",
    n_bytes=3_812_894,
    sha256="0c15e09b28d93da342fdd5e7b5a97a993bc8ab07f2c4d317dcb3467f94412795",
)

_MAX_ZIP_BYTES = 50_000_000
_CHUNK = 1 << 18
_RENAMED = {"AspectRation": "AspectRatio", "roundness": "Roundness"}
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, UnicodeDecodeError)


def load_dry_bean(
    folder: str | Path | None = None,
    *,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    source: ArchivedFile = SOURCE,
) -> TableDataset:
    """Dry Bean: 13,611 beans, sixteen measurements of their outlines, seven kinds.

    Read from ``dry_bean.csv.gz`` or the original ``Dry_Bean_Dataset.arff``, in the folder or its
    sub-folder ``tabular``. The rows are the same from both. The scales of the features differ by eight
    orders of magnitude, and 68 rows repeat an earlier one.

    Args:
        folder: The only folder to search; where it lacks the set and ``download`` is set, the cache is next.
            Default: the one that DRIP_DATA names, then the cache.
        download: Fetch what is nowhere into the cache: the archive of the UCI repository, of which the
            original file is kept.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Called with the bytes of the archive that are there, and the bytes of the whole where the
            server says them (else those that are there again).
        source: What is fetched: the original archive, or a copy of it elsewhere.

    Returns:
        Rows in the published order: by kind, so shuffle before you split.

    Raises:
        InputError: the set is nowhere, or a file is damaged.
        DripError: the download fails.

    References:
        Koklu and Ozkan (2020), Multiclass classification of dry beans using computer vision and machine
        learning techniques; UCI Machine Learning Repository, doi:10.24432/C50S4B.
    """
    places = data_places(folder, cache)
    path = first_found(places, _find)
    if path is None and download:
        path = _fetch(source, cache_folder(cache), progress)
    if path is None:
        raise missing("dry_bean", f"{CSV} or {ARFF}", places, source.n_bytes, "load_table")
    try:
        return _read_csv(path) if path.name == CSV else _read_arff(path)
    except _DAMAGE as error:
        raise InputError(f"a complete Dry Bean is needed at {path}, got: {error}; fetch it again") from error


def _find(place: Path) -> Path | None:
    names = [folder / name for folder in (place, place / "tabular") for name in (CSV, ARFF)]
    return next((path for path in names if path.is_file()), None)


def _read_csv(path: Path) -> TableDataset:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
        columns, *rows = csv.reader(text)
    return table_of("Dry Bean", columns, rows, LABEL)


def _read_arff(path: Path) -> TableDataset:
    columns, rows = [], []
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        if attribute := re.match(r"@attribute\s+(\S+)", line, re.IGNORECASE):
            columns.append(_RENAMED.get(attribute[1], attribute[1]))
        elif line and line[0] not in "@%":
            rows.append(line.split(","))
    return table_of("Dry Bean", columns, rows, LABEL)


def _fetch(source: ArchivedFile, cache: Path, progress: Progress | None) -> Path:
    """The original file in the cache, out of the archive, which is not kept."""
    target = cache / ARFF
    with locked(target):
        if not target.is_file():
            archive = io.BytesIO(b"".join(_downloaded(source.url, progress)))
            try:
                with zipfile.ZipFile(archive) as opened:
                    content = opened.read(source.member)
            except (zipfile.BadZipFile, KeyError, zlib.error) as error:
                raise DripError(
                    f"{source.url} with {source.member} is needed, got: {error}; call again, or put the file "
                    "into a folder and name it with folder="
                ) from error
            if (len(content), sha256_hex(content)) != (source.n_bytes, source.sha256):
                raise DripError(
                    f"{source.member} with {source.n_bytes} bytes and SHA-256 {source.sha256[:12]}... is "
                    f"needed, got {len(content)} and {sha256_hex(content)[:12]}... from {source.url}"
                )
            with atomic_writer(target) as handle:
                handle.write(content)
    return target


def _downloaded(url: str, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    try:
        with open_url(url) as response:
            whole = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(_CHUNK):
                done += len(chunk)
                if done > _MAX_ZIP_BYTES:
                    raise DripError(f"{url} of at most {_MAX_ZIP_BYTES} bytes is needed, got more")
                if progress is not None:
                    progress(done, max(done, whole))
                yield chunk
    except OSError as error:
        raise DripError(f"{url} is needed, got: {error}; check the network and call again") from error
