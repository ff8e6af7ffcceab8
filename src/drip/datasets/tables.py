"""Labelled tables of numbers in memory, and the text of table files as columns. Reads no file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drip.types import FloatArray, IntArray


@dataclass(frozen=True)
class TableDataset:
    """Labelled rows of numbers in memory.

    Attributes:
        name: What it is, with its size: ``Dry Bean, 13,611 rows``.
        values: Features, not scaled, float64, shape (n, d).
        labels: True classes, int64, shape (n,).
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
        name: What it is, without its size.
        columns: Names of the columns.
        rows: Cells of each row.
        label: The column with the class.
        without: Columns that are no features.
        class_names: Name of a class by the text of its cell; None: the text itself.

    Raises:
        ValueError: no row, no such column, a row of another length, a cell that is no finite number.

    >>> table = table_of("Ants", ["mm", "kind"], [["1.5", "red"], ["2", "black"]], "kind")
    >>> table.name, table.values.tolist(), table.labels.tolist(), table.class_names
    ('Ants, 2 rows', [[1.5], [2.0]], [1, 0], ('black', 'red'))
    """
    lacking = [column for column in (label, *without) if column not in columns]
    if lacking:
        raise ValueError(f"columns {', '.join(columns)} without {', '.join(lacking)}")
    at = columns.index(label)
    used = [k for k, column in enumerate(columns) if column != label and column not in without]
    cells = list(rows)
    short = next((k for k, row in enumerate(cells) if len(row) != len(columns)), None)
    if not cells or short is not None:
        found = "no row" if short is None else f"{len(cells[short])} cells in row {short + 1}"
        raise ValueError(f"{found} in place of {len(columns)} cells in every row")
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
