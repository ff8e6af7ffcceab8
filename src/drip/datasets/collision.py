"""Collision: a simulated platoon of vehicles, and whether one run into another."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from drip.datasets.fetch import Progress
from drip.datasets.places import data_places, first_found
from drip.datasets.tables import TableDataset, table_of
from drip.errors import InputError, missing_extra

FILE = "collision.xlsx"
LABEL = "collision"
DROPPED = ("N", "m")
CLASS_NAMES = {"0": "safe", "1": "collision"}


def load_collision(
    folder: str | Path | None = None,
    *,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> TableDataset:
    """Collision: parameters of a platoon of vehicles, and whether there was a collision.

    Read from the authors' spreadsheet ``collision.xlsx``, in the folder or its sub-folder ``tabular``: one
    header row, the columns ``N`` and ``m`` left out, 0 or 1 in ``collision``. The file is not public: ask
    its authors. Needs openpyxl.

    Args:
        folder: The only folder to search. Default: the one that DRIP_DATA names, then the cache.
        download: There is nothing to fetch it from: must be False, where the file is nowhere.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Never called.

    Returns:
        Rows in the order of the spreadsheet.

    Raises:
        InputError: the file is nowhere, or it is damaged.
        DripError: openpyxl is not installed.

    References:
        Toscano-Duran and others (2024), An in-depth analysis of data reduction methods for sustainable deep
        learning, arXiv:2403.15150, which uses it.
    """
    del download, progress
    places = data_places(folder, cache)
    path = first_found(places, _find)
    if path is None:
        searched = " or ".join(map(str, places))
        raise InputError(
            f"the data set collision needs {FILE} in {searched}, got no such file; it is not public: ask its "
            "authors and name its folder with folder="
        )
    try:
        columns, *rows = _cells(path)
        texts = [str(cell) for cell in columns]
        at = texts.index(LABEL) if LABEL in texts else -1
        classes = [[_class(cell) if k == at else cell for k, cell in enumerate(row)] for row in rows]
        return table_of("Collision", texts, classes, LABEL, without=DROPPED, class_names=CLASS_NAMES)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"the spreadsheet of Collision is needed at {path}, got: {error}") from error


def _find(place: Path) -> Path | None:
    return next((path for path in (place / FILE, place / "tabular" / FILE) if path.is_file()), None)


def _class(cell: Any) -> str:
    """``0`` or ``1``, whether the cell holds a number, a truth value or a text."""
    return str(int(cell))


def _cells(path: Path) -> list[tuple[Any, ...]]:
    try:
        import openpyxl  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise missing_extra("drip.datasets.load_collision", "openpyxl", "experiments") from error
    workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        rows = workbook.worksheets[0].iter_rows(values_only=True)
        return [row for row in rows if any(cell is not None for cell in row)]
    finally:
        workbook.close()
