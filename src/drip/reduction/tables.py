"""Tables as CSV or Parquet files: their numbers in, the kept rows out as they were, in bounded memory.

Polars reads them in portions: only the numbers, the labels and what a portion holds are in memory.
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
from drip.reduction.running import Progress, Reduced, ReduceOptions, Subject, reduce_rows, require_free
from drip.types import FloatArray, IntArray

SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""Separator of columns by suffix."""

_ROW, _WEIGHT = "__drip_row", "__drip_weight"
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What is particular to tables.

    Attributes:
        label: Column of the class; None for one class.
        ignore: Columns that are kept but not looked at; all others must be numbers.
        separator: Character between columns of a text file; None goes by the suffix.
        index_column: Name of a further first column with the row's number, from 0; None for none.
        weight_column: Name of a further last column with the rows that each stands for; None for none.
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
    """Write the rows of a table that stand for all, in their order, with all columns as they were.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.parquet`` file. Texts of the former are kept as they are written.
        out: The file for the kept rows, of the same format.
        options: How to reduce.
        columns: What the columns are.
        overwrite: Replace ``out`` where it exists.
        on_progress: Called on long work.

    Raises:
        InputError: no such column, text or missing values where numbers are needed, no rows, or parameters
            that the method refuses.
        DripError: a file that cannot be read or written, or exists already.
    """
    how, target = columns or TableOptions(), Path(out)
    table, label = TableFile(path, how.separator), how.label
    if target.suffix.lower() != table.path.suffix.lower():
        raise InputError(
            f"a file *{table.path.suffix} is needed for the kept rows, as the table is, got {target}"
        )
    require_free(target, overwrite=overwrite)
    options.reducer(None)  # refuses wrong parameters before any number is read
    named = [*([] if label is None else [label]), *how.ignore]
    table.require_columns(named)
    table.require_whole_rows()
    for new in (how.index_column, how.weight_column):
        if new is not None and new in table.columns:
            raise InputError(f"the name of a new column is needed, got {new!r}, which the table has")
    if how.index_column is not None and how.index_column == how.weight_column:
        raise InputError(f"two names are needed for the two new columns, got {how.index_column!r} for both")
    features = [name for name in table.columns if name not in named]
    if not features:
        raise InputError(
            f"a column of numbers is needed, got {', '.join(table.columns)}, all named otherwise"
        )
    if on_progress is not None:
        on_progress("reading", 0, 1)
    values = table.numbers(features)
    labels = None if label is None else table.labels(label)
    if labels is not None and (labels == labels[0]).all():
        raise InputError(
            f"a column with two labels or more is needed, got {str(labels[0])!r} alone; use --ignore {label} "
            "in place of --label"
        )
    subject = Subject(
        title=f"{table.path.name}: fewer rows", data=str(path), classes=label or "class",
        features=f"{len(features)} columns",
    )  # fmt: skip
    found = reduce_rows(values, labels, options, subject, on_progress=on_progress)
    table.write(target, found.rows, found.weights, how.index_column, how.weight_column)
    return found


class TableFile:
    """A table in a file, read by columns.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.parquet`` file; the first line of text names the columns.
        separator: Character between columns of a text file; None goes by the suffix.

    Attributes:
        path: The file.
        columns: Names of the columns.

    Raises:
        InputError: another format, no columns or rows, two columns of one name.
        DripError: the file cannot be read.
    """

    def __init__(self, path: str | Path, separator: str | None = None) -> None:
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in (*SEPARATORS, ".parquet"):
            raise InputError(f"a table *.csv, *.tsv or *.parquet is needed, got {self.path}")
        if not self.path.is_file():
            raise DripError(f"a file is needed, got {self.path}; check the path")
        self._is_text = suffix in SEPARATORS
        self._separator = separator or SEPARATORS.get(suffix, ",")
        if len(self._separator.encode()) != 1:
            raise InputError(f"separator must be one character of ASCII, got {self._separator!r}")
        self._names = self._read_names() if self._is_text else []
        self.columns: list[str] = self._run(lambda: self._scan().collect_schema().names())
        self.n_rows = int(self._run(lambda: self._scan().select(pl.len()).collect(engine="streaming").item()))
        if not self.n_rows or not self.columns:
            raise InputError(f"a table with rows is needed, got {self.path} with {self.n_rows}")

    def require_columns(self, names: Sequence[str]) -> None:
        """Refuse names that the table does not have.

        Raises:
            InputError: one is missing.
        """
        for name in names:
            if name not in self.columns:
                hint = "; is --separator right?" if self._is_text and len(self.columns) == 1 else ""
                raise InputError(f"a column {name!r} is needed, got {', '.join(self.columns)}{hint}")

    def require_whole_rows(self) -> None:
        """Refuse text with a row of more cells than there are names, or bytes that are no text.

        Raises:
            DripError: there is one. It would be found only when all columns are read, to be written.
        """
        if self._is_text:
            self._run(lambda: self._scan().null_count().collect(engine="streaming"))

    def numbers(self, names: Sequence[str]) -> FloatArray:
        """The columns as float64, shape (n, len(names)).

        Raises:
            InputError: text, a date, an empty cell, NaN or infinity; the message names column and row.
        """
        schema = self._run(lambda: self._scan().collect_schema())
        others = [
            name
            for name in names
            if not (self._is_text or schema[name].is_numeric() or schema[name] == pl.Boolean)
        ]
        if others:
            kinds = ", ".join(f"{name!r} ({schema[name]})" for name in others[:_MOST_NAMED])
            raise InputError(f"columns of numbers are needed, got {kinds}; leave them out with --ignore")
        columns = [pl.col(name).str.strip_chars() if self._is_text else pl.col(name) for name in names]
        numbers = [column.cast(pl.Float64, strict=False) for column in columns]
        frame = self._run(lambda: self._scan().select(numbers).collect(engine="streaming"))
        finite = {name: frame[name].is_finite().fill_null(value=False) for name in names}
        bad = {name: column.arg_min() for name, column in finite.items() if not column.all()}
        if bad:
            raise InputError(self._what_is_bad(bad))
        values: FloatArray = frame.to_numpy(order="c")
        return values if values.flags.writeable else values.copy()

    def labels(self, name: str) -> NDArray[Any]:
        """The column as labels: text of a text file, else its own type.

        Raises:
            InputError: an empty cell.
        """
        column = self._run(lambda: self._scan().select(name).collect(engine="streaming"))[name]
        missing = column.is_null()
        if self._is_text:
            missing = missing | (column.str.strip_chars() == "")
        if missing.any():
            raise InputError(
                f"a label is needed in every row of {name!r}, got none in row {missing.arg_max()} and "
                f"{missing.sum() - 1} others (from 0, below the header); fill them or drop the rows"
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
        """Write rows, ascending, in one step.

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
        """The names of a text table without their quotes, which Polars leaves doubled."""
        with self.path.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
            try:
                names = next(csv.reader(lines, delimiter=self._separator), [])
            except csv.Error as error:
                raise InputError(f"a line of names is needed in {self.path}, got: {error}") from error
        twice = sorted({name for name in names if names.count(name) > 1})
        if not any(names):
            raise InputError(f"a table with a line of names and rows is needed, got {self.path} without")
        if twice:
            raise InputError(
                f"columns of different names are needed, got {', '.join(map(repr, twice[:_MOST_NAMED]))} "
                "more than once; rename them"
            )
        return names

    def _run(self, work: Any) -> Any:
        try:
            return work()
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = str(error).partition("\n")[0]  # below come hints for those who write Polars
            raise DripError(f"a readable table is needed at {self.path}, got: {reason}") from error

    def _what_is_bad(self, bad: dict[str, int]) -> str:
        name, row = next(iter(bad.items()))
        cell = self._run(lambda: self._scan().select(name).slice(row, 1).collect().item())
        shown = "an empty cell" if cell in (None, "") else repr(cell)
        more = f"; so have {', '.join(list(bad)[1:_MOST_NAMED])}" if len(bad) > 1 else ""
        return (
            f"finite numbers are needed in column {name!r}, got {shown} in row {row} (from 0, below the "
            f"header){more}; fill or drop what is missing, and leave columns of text out with --ignore"
        )
