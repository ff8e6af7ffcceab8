"""Tables in and out: the numbers and classes of any container, and its rows or new points in its own kind."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils import _safe_indexing
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import column_or_1d

from drip.errors import InputError
from drip.types import FloatArray, IntArray


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
