"""What users pass in: checks of parameters, tables and labels; rows out in the same type of container."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, isinf
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils import _safe_indexing
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import column_or_1d

from drip.errors import InputError
from drip.types import FloatArray, IntArray

LARGEST = 1e150
"""Largest number in a table: sums of larger squares overflow, and squares of numbers below 1e-150 vanish."""


def check_real(name: str, value: Any, *, upper: float = inf, zero: bool = False) -> None:
    """Check for a number in (0, upper], or in [0, upper] with ``zero``.

    Raises:
        InputError: anything else.
    """
    if not (_is_real(value) and 0 <= value <= upper and (zero or value > 0)):
        interval = f"{'[' if zero else '('}0, {'inf)' if isinf(upper) else f'{upper:g}]'}"
        raise InputError(f"{name} must be a number in {interval}, not {value!r}")


def check_divisor(name: str, value: Any) -> None:
    """Check for a number in [1e-150, 1e150]: distances or their squares are divided by it.

    Raises:
        InputError: anything else.
    """
    if not (_is_real(value) and 1.0 / LARGEST <= value <= LARGEST):
        raise InputError(f"{name} must be a number in [{1.0 / LARGEST:g}, {LARGEST:g}], not {value!r}")


def check_magnitude(name: str, *tables: FloatArray) -> None:
    """Check that squared distances neither overflow nor all vanish.

    Args:
        name: Name of the tables in the message.
        tables: Finite numbers that are compared with each other; no table is empty.

    Raises:
        InputError: a number is too large, or all numbers but zeros are too small.
    """
    largest = max(float(max(table.max(), -table.min())) for table in tables)
    if largest > LARGEST:
        raise InputError(
            f"{name} contains {largest:.3g}: squared distances overflow above {LARGEST:.0e}; scale the "
            "features, for example to [0, 1]",
            code="table-invalid",
        )
    if 0.0 < largest < 1.0 / LARGEST:
        raise InputError(
            f"{name} contains no number above {largest:.3g}: squared distances vanish below "
            f"{1.0 / LARGEST:.0e}; scale the features, for example to [0, 1]",
            code="table-invalid",
        )


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Check for a whole number of at least ``least``.

    Raises:
        InputError: anything else.
    """
    if not _is_whole(value) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_number(name: str, value: Any, largest: int) -> None:
    """Check for a whole number in [1, largest].

    Raises:
        InputError: anything else.
    """
    if not _is_whole(value) or not 1 <= value <= largest:
        raise InputError(f"{name} must be a whole number in [1, {largest}], not {value!r}")


def check_threads(n_jobs: Any) -> None:
    """Check for a number of threads: None, or a whole number other than 0.

    Raises:
        InputError: anything else.
    """
    if n_jobs is not None and (not _is_whole(n_jobs) or n_jobs == 0):
        raise InputError(f"n_jobs must be None or a whole number other than 0 (-1 for all), not {n_jobs!r}")


def _is_real(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class Classes:
    """The classes of n rows.

    Attributes:
        labels: Distinct labels in ascending order, in their own dtype, shape (n_classes,); a single None
            when no labels were given.
        codes: Index into ``labels`` for every row, int64, shape (n,).
    """

    labels: NDArray[Any]
    codes: IntArray

    @cached_property
    def counts(self) -> IntArray:
        """Rows of every class, shape (n_classes,)."""
        return np.bincount(self.codes, minlength=len(self.labels))

    @cached_property
    def rows(self) -> list[IntArray]:
        """The rows of every class, ascending."""
        small = self.codes.astype(np.min_scalar_type(len(self.labels)))  # 8 and 16 bits: NumPy's radix sort
        order = np.argsort(small, kind="stable")
        return list(np.split(order, np.cumsum(self.counts)[:-1]))

    @property
    def names(self) -> list[Any]:
        """The labels as Python objects."""
        return list(self.labels.tolist())


def classes_of(y: Any, n: int) -> Classes:
    """Classes of a target: labels of any dtype, a column, or one-vs-all columns; None means one class.

    Raises:
        InputError: the target is continuous or multilabel, does not have the length of X, or lacks a label.

    >>> classes_of(["b", "a", "b"], 3).codes.tolist()
    [1, 0, 1]
    """
    if y is None:
        return Classes(np.array([None], dtype=object), np.zeros(n, dtype=np.int64))
    array = np.asarray(y)
    if array.dtype.kind in "Of" and any(map(_is_missing, array.ravel().tolist())):
        raise InputError(
            "y has rows without a label (None or NaN); remove these rows or label them", code="labels-invalid"
        )
    try:
        labels, codes = np.unique(_flat(array), return_inverse=True)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"y must contain class labels of one type: {error}", code="labels-invalid"
        ) from error
    if len(codes) != n:
        raise InputError(
            f"y has {len(codes)} labels for {n} rows of X; give one per row", code="labels-invalid"
        )
    return Classes(labels, codes.reshape(-1).astype(np.int64))


def _is_missing(label: Any) -> bool:
    """None, NaN, or pandas' NA, whose comparisons have no truth value."""
    try:
        return label is None or bool(label != label)  # noqa: PLR0124
    except TypeError:
        return True


def _flat(target: NDArray[Any]) -> NDArray[Any]:
    """One label per row; one-vs-all columns become the index of the column."""
    if target.ndim == 1 and target.dtype.kind in "biuSU":
        return target  # always labels; type_of_target checks each one, which takes longer than some methods
    kind = type_of_target(target, input_name="y")
    if kind == "multilabel-indicator" and (target.sum(axis=1) == 1).all():
        return np.asarray(target.argmax(axis=1))
    if kind.startswith("multi") and kind != "multiclass":
        # This and the next message are what imbalanced-learn's estimator checks look for.
        raise ValueError("Multilabel and multioutput targets are not supported.")
    if kind not in ("binary", "multiclass"):
        raise ValueError(f"Unknown label type: {kind}")
    return np.asarray(column_or_1d(target))


def finite_table(name: str, container: Any) -> FloatArray:
    """The numbers of a table as float64, C-ordered, shape (n, d).

    Raises:
        InputError: there is text, NaN or infinity, or there are no rows or columns.

    >>> finite_table("X", [[1, 2]]).tolist()
    [[1.0, 2.0]]
    """
    dense = container.toarray() if issparse(container) else container
    try:
        values = np.ascontiguousarray(dense, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} must be a table of finite numbers: {error}", code="table-invalid"
        ) from error
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise InputError(
            f"{name} must be a table of finite numbers with rows and columns, but it has shape {values.shape}"
            f"{'' if np.isfinite(values).all() else ' and contains NaN or infinity'}",
            code="table-invalid",
        )
    return values


def take_rows(container: Any, rows: IntArray) -> Any:
    """Rows of a list, array, sparse matrix, pandas or polars object, as the same type.

    >>> take_rows([5, 6, 7], np.array([0, 2]))
    [5, 7]
    """
    if issparse(container):
        return type(container)(container.tocsr()[rows])  # not every format can be indexed
    return None if container is None else _safe_indexing(container, rows)


def new_points(container: Any, points: NDArray[np.float64]) -> Any:
    """Synthetic points as the container's type; whole-number columns become float64.

    >>> new_points([[1, 2]], np.array([[0.5, 2.5]]))
    [[0.5, 2.5]]
    """
    if isinstance(container, list):
        return points.tolist()
    if issparse(container):
        return type(container)(points.astype(_floating(container.dtype)))
    if hasattr(container, "columns"):
        return _new_frame(container, points)
    return points.astype(_floating(getattr(container, "dtype", np.dtype(np.float64))))


def _new_frame(frame: Any, points: NDArray[np.float64]) -> Any:
    """A frame of the same library and columns; floating-point columns keep their dtype."""
    library = type(frame).__module__.partition(".")[0]
    if library == "polars":
        return type(frame)(points, schema=list(frame.columns), orient="row")
    made = type(frame)(points, columns=frame.columns)
    kinds = {
        column: dtype
        for column, dtype in zip(frame.columns, frame.dtypes, strict=True)
        if getattr(dtype, "kind", "") == "f" or "float" in str(dtype).lower()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=DeprecationWarning)  # pandas warns about its own astype
        return made.astype(kinds)


def _floating(dtype: Any) -> Any:
    return dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float64)
