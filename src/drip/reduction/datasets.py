"""The tables of the second paper: Dry Bean, which can be downloaded, and Collision, which is not public."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drip.errors import DripError, InputError, missing_extra
from drip.files import atomic_writer, sha256_hex
from drip.files.fetch import Progress, cache_folder, data_places, first_found, locked, missing, open_url
from drip.types import FloatArray, IntArray

CSV = "dry_bean.csv.gz"
ARFF = "Dry_Bean_Dataset.arff"
DRY_BEAN_LABEL = "Class"

FILE = "collision.xlsx"
COLLISION_LABEL = "collision"
DROPPED = ("N", "m")
CLASS_NAMES = {"0": "safe", "1": "collision"}

_MAX_ZIP_BYTES = 50_000_000  # the archive is 3 MB; a larger download is another file
_CHUNK = 1 << 18
_RENAMED = {"AspectRation": "AspectRatio", "roundness": "Roundness"}  # the CSV has the corrected names
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, UnicodeDecodeError)


@dataclass(frozen=True)
class TableDataset:
    """Labelled rows of numbers in memory.

    Attributes:
        name: Name and size: ``Dry Bean, 13,611 rows``.
        values: Features, not scaled, float64, shape (n, d).
        labels: Classes, int64, shape (n,).
        class_names: Names in the order of the labels.
        feature_names: Names of the columns.
    """

    name: str
    values: FloatArray
    labels: IntArray
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)


def table_of(
    name: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | float]],
    label: str,
    *,
    without: Sequence[str] = (),
    class_names: Mapping[str, str] | None = None,
) -> TableDataset:
    """A table from the cells of a file; classes are numbered in the order of their sorted names.

    Args:
        name: Name without the size.
        columns: Names of the columns.
        rows: Cells of each row.
        label: The column with the class.
        without: Columns to omit.
        class_names: Name of a class by the text of its cell; None uses the text itself.

    Raises:
        ValueError: there are no rows, a column does not exist, a row has a different length, or a cell is not
            a finite number.

    >>> table = table_of("Ants", ["mm", "kind"], [["1.5", "red"], ["2", "black"]], "kind")
    >>> table.name, table.values.tolist(), table.labels.tolist(), table.class_names
    ('Ants, 2 rows', [[1.5], [2.0]], [1, 0], ('black', 'red'))
    """
    lacking = [column for column in (label, *without) if column not in columns]
    if lacking:
        raise ValueError(f"the columns {', '.join(columns)} do not include {', '.join(lacking)}")
    at = columns.index(label)
    used = [k for k, column in enumerate(columns) if column != label and column not in without]
    cells = list(rows)
    short = next((k for k, row in enumerate(cells) if len(row) != len(columns)), None)
    if not cells or short is not None:
        found = "no row" if short is None else f"{len(cells[short])} cells in row {short + 1}"
        raise ValueError(f"{found} instead of {len(columns)} cells in every row")
    values = np.array([[row[k] for k in used] for row in cells], dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"NaN or infinity in row {int(np.flatnonzero(~np.isfinite(values).all(1))[0]) + 1}")
    texts = [str(row[at]) for row in cells]
    kinds = texts if class_names is None else [class_names[text] for text in texts]
    names, labels = np.unique(kinds, return_inverse=True)
    return TableDataset(
        f"{name}, {len(cells):,} rows",
        values,
        labels.astype(np.int64),
        tuple(names.tolist()),
        tuple(columns[k] for k in used),
    )


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file inside a zip that can be downloaded.

    Attributes:
        url: Address of the zip; http, https or file.
        member: Name of the file in the zip.
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


def load_dry_bean(
    folder: str | Path | None = None,
    *,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    source: ArchivedFile = SOURCE,
) -> TableDataset:
    """Dry Bean: 13,611 beans of seven kinds, with sixteen measurements of their outlines.

    Read from ``dry_bean.csv.gz`` or the original ``Dry_Bean_Dataset.arff``, in the folder or its
    sub-folder ``tabular``. Both contain the same rows. The scales of the features differ by eight orders of
    magnitude, and 68 rows repeat an earlier one.

    Args:
        folder: The only folder to search; with ``download``, the cache is next. Default: the folder in
            DRIP_DATA, then the cache.
        download: If the set is not found, download the archive of the UCI repository and keep the original
            file in the cache.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Called with the bytes downloaded and the total (if the server does not report a total, with
            the bytes downloaded twice).
        source: The original archive, or a copy elsewhere.

    Returns:
        Rows in the published order: sorted by kind, so shuffle them before a split.

    Raises:
        InputError: the set is not found, or a file is damaged.
        DripError: the download fails.

    References:
        Koklu and Ozkan (2020), Multiclass classification of dry beans using computer vision and machine
        learning techniques; UCI Machine Learning Repository, doi:10.24432/C50S4B.
    """
    places = data_places(folder, cache)
    path = first_found(places, _find_dry_bean)
    if path is None and download:
        path = _fetch(source, cache_folder(cache), progress)
    if path is None:
        raise missing(
            "dry_bean", f"{CSV} or {ARFF}", places, source.n_bytes, "drip.reduction.datasets.load_table"
        )
    try:
        return _read_csv(path) if path.name == CSV else _read_arff(path)
    except _DAMAGE as error:
        raise InputError(
            f"{path}: not a complete copy of Dry Bean ({error}); delete it and download it again",
            code="table-invalid",
        ) from error


def _find_dry_bean(place: Path) -> Path | None:
    names = [folder / name for folder in (place, place / "tabular") for name in (CSV, ARFF)]
    return next((path for path in names if path.is_file()), None)


def _read_csv(path: Path) -> TableDataset:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
        columns, *rows = csv.reader(text)
    return table_of("Dry Bean", columns, rows, DRY_BEAN_LABEL)


def _read_arff(path: Path) -> TableDataset:
    columns, rows = [], []
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        if attribute := re.match(r"@attribute\s+(\S+)", line, re.IGNORECASE):
            columns.append(_RENAMED.get(attribute[1], attribute[1]))
        elif line and line[0] not in "@%":
            rows.append(line.split(","))
    return table_of("Dry Bean", columns, rows, DRY_BEAN_LABEL)


def _fetch(source: ArchivedFile, cache: Path, progress: Progress | None) -> Path:
    """The original file, extracted into the cache; the archive is not kept."""
    target = cache / ARFF
    with locked(target):
        if not target.is_file():
            archive = io.BytesIO(b"".join(_downloaded(source.url, progress)))
            try:
                with zipfile.ZipFile(archive) as opened:
                    content = opened.read(source.member)
            except (zipfile.BadZipFile, KeyError, zlib.error) as error:
                raise DripError(
                    f"{source.url}: {source.member} cannot be read from the archive ({error}); try again, or "
                    "put the file into a folder and pass folder=",
                    code="download-damaged",
                ) from error
            if (len(content), sha256_hex(content)) != (source.n_bytes, source.sha256):
                raise DripError(
                    f"{source.url}: {source.member} has {len(content)} bytes and SHA-256 "
                    f"{sha256_hex(content)[:12]}... instead of {source.n_bytes} and {source.sha256[:12]}...; "
                    "put the original file into a folder and pass folder=",
                    code="download-damaged",
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
                    raise DripError(
                        f"{url}: sends more than {_MAX_ZIP_BYTES} bytes, so it is not the archive",
                        code="download-damaged",
                    )
                if progress is not None:
                    progress(done, max(done, whole))
                yield chunk
    except OSError as error:
        raise DripError(
            f"{url}: cannot be downloaded ({error}); check the network and try again", code="download-failed"
        ) from error


def load_collision(
    folder: str | Path | None = None,
    *,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> TableDataset:
    """Collision: parameters of a platoon of vehicles, and whether they collided.

    Read from the authors' spreadsheet ``collision.xlsx``, in the folder or its sub-folder ``tabular``: one
    header row, the columns ``N`` and ``m`` omitted, 0 or 1 in ``collision``. The file is not public; ask
    its authors. Needs openpyxl.

    Args:
        folder: The only folder to search. Default: the folder in DRIP_DATA, then the cache.
        download: Ignored: there is no public address.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Never called.

    Returns:
        Rows in the order of the spreadsheet.

    Raises:
        InputError: the file is not found, or is damaged.
        DripError: openpyxl is not installed.

    References:
        Toscano-Duran and others (2024), An in-depth analysis of data reduction methods for sustainable deep
        learning, arXiv:2403.15150, which uses it.
    """
    del download, progress
    places = data_places(folder, cache)
    path = first_found(places, _find_collision)
    if path is None:
        searched = " or ".join(map(str, places))
        raise InputError(
            f"{FILE} is not in {searched}; the file is not public: ask its authors, then pass folder=",
            code="dataset-missing",
        )
    try:
        columns, *rows = _cells(path)
        texts = [str(cell) for cell in columns]
        at = texts.index(COLLISION_LABEL) if COLLISION_LABEL in texts else -1
        classes = [[_class(cell) if k == at else cell for k, cell in enumerate(row)] for row in rows]
        return table_of(
            "Collision", texts, classes, COLLISION_LABEL, without=DROPPED, class_names=CLASS_NAMES
        )
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not the spreadsheet of Collision ({error})", code="table-invalid"
        ) from error


def _find_collision(place: Path) -> Path | None:
    return next((path for path in (place / FILE, place / "tabular" / FILE) if path.is_file()), None)


def _class(cell: Any) -> str:
    """``0`` or ``1`` from a number, a truth value or a text."""
    return str(int(cell))


def _cells(path: Path) -> list[tuple[Any, ...]]:
    try:
        import openpyxl  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise missing_extra("drip.reduction.datasets.load_collision", "openpyxl", "experiments") from error
    workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        rows = workbook.worksheets[0].iter_rows(values_only=True)
        return [row for row in rows if any(cell is not None for cell in row)]
    finally:
        workbook.close()


TABLES: Mapping[str, Callable[..., TableDataset]] = {"dry_bean": load_dry_bean, "collision": load_collision}
"""The loader of each table, by name; all have the keyword arguments of :func:`load_table`."""


def load_table(
    name: str,
    *,
    folder: str | Path | None = None,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> TableDataset:
    """Load a table by name.

    Args:
        name: A key of :data:`TABLES`.
        folder: The only folder to search; with ``download``, the cache is next. Default: the folder in
            DRIP_DATA, then the cache.
        download: Download a missing set into the cache, if it is public.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Called with the bytes downloaded and their total.

    Raises:
        InputError: the name is unknown, the set is not found, or a file is damaged.
        DripError: the download fails.

    >>> load_table("iris")
    Traceback (most recent call last):
    drip.errors.InputError: there is no table 'iris'; choose one of dry_bean, collision
    """
    if name not in TABLES:
        raise InputError(f"there is no table {name!r}; choose one of {', '.join(TABLES)}")
    return TABLES[name](folder=folder, download=download, cache=cache, progress=progress)
