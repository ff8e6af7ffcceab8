"""Reduces tables in CSV and Parquet files; the kept rows are written as they were read, in bounded memory.

Only the numbers, the labels and one portion of the file are in memory. Polars streams the rest; pandas would
hold the whole table, texts included.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drip.errors import DripError, InputError, missing_extra

try:
    import polars as pl
except ImportError as error:
    raise missing_extra("drip reduce", "polars", "reduction") from error

from drip.files import atomic_writer
from drip.reduction.inputs import check_number
from drip.reduction.running import Progress, Reduced, ReduceOptions, Subject, reduce_rows, require_free
from drip.types import FloatArray, IntArray

SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""Column separator by suffix."""

_ROW, _WEIGHT = "__drip_row", "__drip_weight"
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Options that only apply to tables.

    Attributes:
        label: Column with the class; None for one class.
        ignore: Columns that are written but not used as features; all others must be numeric.
        separator: Character between columns of a text file; None depends on the suffix.
        index_column: Name of an additional first column with the row number, from 0; None adds none.
        weight_column: Name of an additional last column with the number of rows that each kept row
            represents; None adds none.
    """

    label: str | None = None
    ignore: tuple[str, ...] = ()
    separator: str | None = None
    index_column: str | None = None
    weight_column: str | None = None


def reduce_table(
    path: str | Path,
    out: str | Path,
    options: ReduceOptions,
    columns: TableOptions | None = None,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Reduced:
    """Write a representative subset of a table: rows in their order, with all columns unchanged.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.parquet`` file. Cells of text files are not reformatted.
        out: File for the kept rows, of the same format.
        options: How to reduce.
        columns: Roles of the columns.
        overwrite: Replace ``out`` if it exists.
        on_progress: Called during long work.

    Raises:
        InputError: a column does not exist, a feature is not numeric or has empty cells, there are no rows,
            or the method rejects the parameters.
        DripError: a file cannot be read or written, or already exists.
    """
    how, target = columns or TableOptions(), Path(out)
    table, label = TableFile(path, how.separator), how.label
    if target.suffix.lower() != table.path.suffix.lower():
        raise InputError(
            f"{target}: the kept rows are written in the table's format; choose a name ending in "
            f"{table.path.suffix}"
        )
    require_free(target, overwrite=overwrite)
    options.reducer(None)  # rejects wrong parameters before reading, which may take minutes
    if options.n_samples is not None:
        check_number("--n-samples", options.n_samples, table.n_rows)
    named = [*([] if label is None else [label]), *how.ignore]
    table.require_columns(named)
    table.require_whole_rows()
    for new in (how.index_column, how.weight_column):
        if new == "":
            raise InputError("the name of a new column is empty; write one")
        if new is not None and new in table.columns:
            raise InputError(f"the table already has a column {new!r}; choose another name")
    if how.index_column is not None and how.index_column == how.weight_column:
        raise InputError(f"both new columns are named {how.index_column!r}; choose different names")
    features = [name for name in table.columns if name not in named]
    if not features:
        raise InputError(
            f"{table.path}: no feature column is left among {', '.join(table.columns)}; ignore fewer columns",
            code="table-invalid",
        )
    if on_progress is not None:
        on_progress("reading", 0, 1)
    values = table.numbers(features)
    labels = None if label is None else table.labels(label)
    if labels is not None and (labels == labels[0]).all():
        raise InputError(
            f"column {label!r} contains only the label {str(labels[0])!r}; ignore it instead",
            code="labels-invalid",
        )
    subject = Subject(
        title=f"Representative subset of {table.path.name}", data=str(path), classes=label or "class",
        features=f"{len(features)} columns",
    )  # fmt: skip
    found = reduce_rows(values, labels, options, subject, on_progress=on_progress)
    table.write(target, found.rows, found.weights, how.index_column, how.weight_column)
    return found


class TableFile:
    """A table in a file, read column by column.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.parquet`` file; the first line of a text file names the columns.
        separator: Character between columns of a text file; None depends on the suffix.

    Attributes:
        path: The file.
        columns: Names of the columns.

    Raises:
        InputError: the format is unknown, there are no columns or rows, or a column name is repeated.
        DripError: the file cannot be read.
    """

    def __init__(self, path: str | Path, separator: str | None = None) -> None:
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in (*SEPARATORS, ".parquet"):
            raise InputError(f"{self.path}: not a .csv, .tsv or .parquet file", code="table-invalid")
        if not self.path.is_file():
            raise DripError(f"{self.path}: does not exist, or is not a file", code="path-missing")
        self._is_text = suffix in SEPARATORS
        self._separator = SEPARATORS.get(suffix, ",") if separator is None else separator
        if len(self._separator.encode()) != 1:
            raise InputError(f"separator must be one ASCII character, not {self._separator!r}")
        self._names = self._read_names() if self._is_text else []
        self.columns: list[str] = self._run(lambda: self._scan().collect_schema().names())
        self.n_rows = int(self._run(lambda: self._scan().select(pl.len()).collect(engine="streaming").item()))
        if not self.n_rows or not self.columns:
            raise InputError(f"{self.path}: the table has no rows", code="table-invalid")

    def require_columns(self, names: Sequence[str]) -> None:
        """Check that the table has these columns.

        Raises:
            InputError: one is missing.
        """
        for name in names:
            if name not in self.columns:
                hint = "; check the separator" if self._is_text and len(self.columns) == 1 else ""
                raise InputError(
                    f"{self.path}: there is no column {name!r} among {', '.join(self.columns)}{hint}",
                    code="table-invalid",
                )

    def require_whole_rows(self) -> None:
        """Check that no row of a text file has too many cells, and that all bytes are UTF-8.

        Without this pass the error would occur at the end, when all columns are read to be written.

        Raises:
            DripError: a row or a byte is wrong.
        """
        if self._is_text:
            self._run(lambda: self._scan().null_count().collect(engine="streaming"))

    def numbers(self, names: Sequence[str]) -> FloatArray:
        """The columns as float64, shape (n, len(names)).

        Raises:
            InputError: there is text, a date, an empty cell, NaN or infinity; the message names the place.
        """
        schema = self._run(lambda: self._scan().collect_schema())
        others = [
            name
            for name in names
            if not (self._is_text or schema[name].is_numeric() or schema[name] == pl.Boolean)
        ]
        if others:
            kinds = ", ".join(f"{name!r} ({schema[name]})" for name in others[:_MOST_NAMED])
            raise InputError(
                f"{self.path}: columns {kinds} are not numeric; ignore them", code="table-invalid"
            )
        columns = [pl.col(name).str.strip_chars() if self._is_text else pl.col(name) for name in names]
        numbers = [column.cast(pl.Float64, strict=False) for column in columns]
        frame = self._run(lambda: self._scan().select(numbers).collect(engine="streaming"))
        finite = {name: frame[name].is_finite().fill_null(value=False) for name in names}
        bad = {name: column.arg_min() for name, column in finite.items() if not column.all()}
        if bad:
            raise InputError(self._what_is_bad(bad), code="table-invalid")
        values: FloatArray = frame.to_numpy(order="c")
        return values if values.flags.writeable else values.copy()

    def labels(self, name: str) -> NDArray[Any]:
        """The column as labels: text in a text file, otherwise its own type.

        Raises:
            InputError: a cell is empty.
        """
        column = self._run(lambda: self._scan().select(name).collect(engine="streaming"))[name]
        missing = column.is_null()
        if self._is_text:
            missing = missing | (column.str.strip_chars() == "")
        if missing.any():
            raise InputError(
                f"{self.path}: column {name!r} has no label in row {missing.arg_max()} and "
                f"{missing.sum() - 1} others (from 0, after the header); fill in the labels or delete rows",
                code="labels-invalid",
            )
        found: NDArray[Any] = column.to_numpy()
        return found.astype(str) if column.dtype in (pl.String, pl.Categorical, pl.Enum) else found

    def write(
        self,
        out: Path,
        rows: IntArray,
        weights: FloatArray,
        index_column: str | None = None,
        weight_column: str | None = None,
    ) -> None:
        """Write rows, ascending, atomically.

        Raises:
            DripError: the file cannot be written.
        """
        kept = pl.LazyFrame({_ROW: rows.astype(np.int64), _WEIGHT: weights})
        numbered = self._scan().with_row_index(_ROW).with_columns(pl.col(_ROW).cast(pl.Int64))
        index = [] if index_column is None else [pl.col(_ROW).alias(index_column)]
        weight = [] if weight_column is None else [pl.col(_WEIGHT).alias(weight_column)]
        chosen = numbered.join(kept, on=_ROW, how="inner", maintain_order="left").select(
            *index, *self.columns, *weight
        )
        with atomic_writer(out) as handle:
            if self._is_text:
                self._run(lambda: chosen.sink_csv(handle, separator=self._separator, engine="streaming"))
            else:
                self._run(lambda: chosen.sink_parquet(handle, engine="streaming"))

    def _scan(self) -> pl.LazyFrame:
        if self._is_text:
            return pl.scan_csv(
                self.path, infer_schema=False, separator=self._separator, new_columns=self._names
            )
        return pl.scan_parquet(self.path)

    def _read_names(self) -> list[str]:
        """The names of a text table without their quotes: Polars keeps doubled quotes in names."""
        with self.path.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
            try:
                names = next(csv.reader(lines, delimiter=self._separator), [])
            except csv.Error as error:
                raise InputError(
                    f"{self.path}: the line of column names cannot be read: {error}", code="table-invalid"
                ) from error
        twice = sorted({name for name in names if names.count(name) > 1})
        if not any(names):
            raise InputError(f"{self.path}: the first line does not name the columns", code="table-invalid")
        if twice:
            raise InputError(
                f"{self.path}: column names {', '.join(map(repr, twice[:_MOST_NAMED]))} are repeated; rename "
                "them",
                code="table-invalid",
            )
        return names

    def _run(self, work: Any) -> Any:
        try:
            return work()
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = str(error).partition("\n")[0]  # further lines are advice for Polars programmers
            raise DripError(
                f"{self.path}: the table cannot be read: {reason}", code="table-invalid"
            ) from error

    def _what_is_bad(self, bad: dict[str, int]) -> str:
        name, row = next(iter(bad.items()))
        cell = self._run(lambda: self._scan().select(name).slice(row, 1).collect().item())
        shown = "an empty cell" if cell in (None, "") else repr(cell)
        more = f"; also columns {', '.join(list(bad)[1:_MOST_NAMED])}" if len(bad) > 1 else ""
        return (
            f"{self.path}: column {name!r} has {shown} in row {row} (from 0, after the header), which is not "
            f"a finite number{more}; fill in or delete missing values, and ignore columns of text"
        )
