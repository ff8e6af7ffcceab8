"""Checks of parameters, with the messages they share."""

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
"""Squares of larger numbers overflow when they are summed, and those of numbers below its inverse vanish."""


def check_real(name: str, value: Any, *, upper: float = inf, zero: bool = False) -> None:
    """Refuse what is no number in (0, upper]; with ``zero`` in [0, upper].

    Raises:
        InputError: it is not.
    """
    if not (_is_real(value) and 0 <= value <= upper and (zero or value > 0)):
        limits = f"{'[' if zero else '('}0, {'inf)' if isinf(upper) else f'{upper:g}]'}"
        raise InputError(f"{name} must be a number in {limits}, got {value!r}")


def check_divisor(name: str, value: Any) -> None:
    """Refuse what is no number in [1e-150, 1e150], by which distances or their squares are divided.

    Raises:
        InputError: it is not.
    """
    if not (_is_real(value) and 1.0 / LARGEST <= value <= LARGEST):
        raise InputError(f"{name} must be a number in [{1.0 / LARGEST:g}, {LARGEST:g}], got {value!r}")


def check_magnitude(name: str, *tables: FloatArray) -> None:
    """Refuse finite numbers whose squared distances overflow, or all vanish.

    Args:
        name: What the numbers are.
        tables: They are measured together, each with a number or more.

    Raises:
        InputError: a number is too large, or all but zeros are too small.
    """
    largest = max(float(max(table.max(), -table.min())) for table in tables)
    if largest > LARGEST:
        raise InputError(
            f"{name} must lie within {LARGEST:.0e} of zero, or squared distances overflow, got "
            f"{largest:.3g}; scale the features, say to [0, 1]"
        )
    if 0.0 < largest < 1.0 / LARGEST:
        raise InputError(
            f"{name} must hold numbers of {1.0 / LARGEST:.0e} or more, or squared distances vanish, got at "
            f"most {largest:.3g}; scale the features, say to [0, 1]"
        )


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        InputError: it is not.
    """
    if not _is_whole(value) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_number(name: str, value: Any, largest: int) -> None:
    """Refuse what is no whole number in [1, largest].

    Raises:
        InputError: it is not.
    """
    if not _is_whole(value) or not 1 <= value <= largest:
        raise InputError(f"{name} must be a whole number in [1, {largest}], got {value!r}")


def check_threads(n_jobs: Any) -> None:
    """Refuse what is no number of threads: None, or a whole number but 0.

    Raises:
        InputError: it is not.
    """
    if n_jobs is not None and (not _is_whole(n_jobs) or n_jobs == 0):
        raise InputError(f"n_jobs must be None or a whole number but 0 (-1 for all), got {n_jobs!r}")


def _is_real(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class Classes:
    """The classes of n rows.

    Attributes:
        labels: Distinct labels in ascending order, in their own dtype, shape (n_classes,); one None
            where no labels were given.
        codes: Row of ``labels`` for every row, int64, shape (n,).
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
        small = self.codes.astype(np.min_scalar_type(len(self.labels)))  # NumPy sorts these by radix
        order = np.argsort(small, kind="stable")
        return list(np.split(order, np.cumsum(self.counts)[:-1]))

    @property
    def names(self) -> list[Any]:
        """The labels as Python objects."""
        return list(self.labels.tolist())


def classes_of(y: Any, n: int) -> Classes:
    """Classes of a target: labels of any dtype, one column, or one-vs-all columns; None is one class.

    Raises:
        InputError: a continuous or multilabel target, a wrong length, missing labels.

    >>> classes_of(["b", "a", "b"], 3).codes.tolist()
    [1, 0, 1]
    """
    if y is None:
        return Classes(np.array([None], dtype=object), np.zeros(n, dtype=np.int64))
    array = np.asarray(y)
    if array.dtype.kind in "Of" and any(map(_is_missing, array.ravel().tolist())):
        raise InputError("y must have a label in every row, got None or NaN; drop these rows or name them")
    try:
        labels, codes = np.unique(_flat(array), return_inverse=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"y must be class labels of one kind: {error}") from error
    if len(codes) != n:
        raise InputError(f"y must have {n} labels, one for every row of X, got {len(codes)}")
    return Classes(labels, codes.reshape(-1).astype(np.int64))


def _is_missing(label: Any) -> bool:
    """None, NaN, or pandas' NA, of which no comparison has a truth value."""
    try:
        return label is None or bool(label != label)  # noqa: PLR0124
    except TypeError:
        return True


def _flat(target: NDArray[Any]) -> NDArray[Any]:
    """One label per row; one-vs-all columns become the number of the column."""
    if target.ndim == 1 and target.dtype.kind in "biuSU":
        return target  # labels for certain; to look at all of them would take longer than many a method
    kind = type_of_target(target, input_name="y")
    if kind == "multilabel-indicator" and (target.sum(axis=1) == 1).all():
        return np.asarray(target.argmax(axis=1))
    if kind.startswith("multi") and kind != "multiclass":
        raise ValueError("Multilabel and multioutput targets are not supported.")
    if kind not in ("binary", "multiclass"):
        raise ValueError(f"Unknown label type: {kind}")
    return np.asarray(column_or_1d(target))


def finite_table(name: str, container: Any) -> FloatArray:
    """The numbers of a table as float64, C-ordered, shape (n, d).

    Raises:
        InputError: text, NaN, infinity, no rows or no columns.

    >>> finite_table("X", [[1, 2]]).tolist()
    [[1.0, 2.0]]
    """
    dense = container.toarray() if issparse(container) else container
    try:
        values = np.ascontiguousarray(dense, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a table of finite numbers: {error}") from error
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise InputError(
            f"{name} must be a table of finite numbers with rows and columns, got shape {values.shape}"
            f"{'' if np.isfinite(values).all() else ' with NaN or infinity'}"
        )
    return values


def take_rows(container: Any, rows: IntArray) -> Any:
    """The rows of a list, array, sparse matrix, pandas or polars object, in its own kind.

    >>> take_rows([5, 6, 7], np.array([0, 2]))
    [5, 7]
    """
    if issparse(container):
        return type(container)(container.tocsr()[rows])  # not every format can be indexed
    return None if container is None else _safe_indexing(container, rows)


def new_points(container: Any, points: NDArray[np.float64]) -> Any:
    """Synthetic points as rows of the container's kind; whole-number columns become float64.

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
    """A frame of the same library, columns and, where they hold fractions, dtypes."""
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
        warnings.simplefilter("ignore", category=DeprecationWarning)
        return made.astype(kinds)


def _floating(dtype: Any) -> Any:
    return dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float64)
