"""What every method shares: parameters, the number of rows each class keeps, orders and cuts of them.

Sizes are computed with fractions, not floats: ``fraction=0.29`` of 100 rows is 29 rows on every machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from threading import Lock
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

import numpy as np
from imblearn.base import BaseSampler
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from drip.errors import InputError
from drip.reduction.inputs import (
    Classes,
    check_magnitude,
    check_number,
    check_real,
    check_threads,
    check_whole,
    classes_of,
    take_rows,
)
from drip.reduction.neighbours import Metric, check_metric, radius
from drip.types import FloatArray, IntArray

Stratify = Literal["proportional", "balanced", "global"]

Progress = Callable[[int, int], None]
"""Called with the rows or picks done so far and their total."""

DEFAULT_FRACTION = 0.1
"""Kept when neither a fraction, a number of rows nor an epsilon is given."""

_STRATIFY = ("proportional", "balanced", "global")

Part = TypeVar("Part")


def kept_total(n: int, fraction: float) -> int:
    r"""Number of rows in a fraction: :math:`\lfloor pn + 1/2 \rfloor`, at least 1.

    ``fraction`` is read as the decimal number that it prints as, so halves round up as on paper:
    0.29 as a float is slightly less than 29/100.

    Args:
        n: Number of rows, at least 1.
        fraction: Part to keep p, in (0, 1].

    >>> kept_total(10, 0.25), kept_total(100, 0.29), kept_total(3, 0.01)
    (3, 29, 1)
    """
    return max(1, int(Fraction(str(fraction)) * n + Fraction(1, 2)))


def largest_remainder(shares: list[Fraction], total: int, first: NDArray[Any]) -> IntArray:
    """Integers that sum to ``total``, each less than one away from its share (shares sum to ``total``).

    Every share is rounded down; the remaining units go to the largest remainders. Ties go to the larger
    entry of ``first``, then to the earlier share.

    >>> largest_remainder([Fraction(5, 2), Fraction(1, 2), Fraction(1)], 4, np.array([1, 9, 0])).tolist()
    [2, 1, 1]
    """
    whole = np.array([int(share) for share in shares], dtype=np.int64)
    missing = total - int(whole.sum())
    order = sorted(range(len(shares)), key=lambda c: (int(whole[c]) - shares[c], -first[c], c))
    whole[order[:missing]] += 1
    return whole


def class_sizes(counts: IntArray, total: int, stratify: Stratify, min_per_class: int = 1) -> IntArray:
    """Number of rows that every class keeps, shape (n_classes,).

    ``proportional``: ``total`` is divided by class size (largest remainders). ``balanced``: it is divided
    equally; a class smaller than its share is kept entirely and the others divide the rest. Then every class
    is raised to ``min_per_class`` rows, or to all its rows, so the sum may exceed ``total``.

    Args:
        counts: Rows of every class, each at least 1, shape (n_classes,).
        total: Rows to keep, in [1, sum(counts)].
        stratify: ``proportional`` or ``balanced``.
        min_per_class: Minimum number of rows kept per class.

    >>> class_sizes(np.array([90, 9, 1]), 10, "proportional").tolist()
    [9, 1, 1]
    >>> class_sizes(np.array([90, 9, 1]), 13, "balanced").tolist()
    [6, 6, 1]
    """
    if stratify == "balanced":
        sizes = _balanced(counts, total)
    else:
        n = int(counts.sum())
        sizes = largest_remainder([Fraction(total * int(count), n) for count in counts], total, counts)
    return np.maximum(sizes, np.minimum(counts, min_per_class))


def _balanced(counts: IntArray, total: int) -> IntArray:
    sizes = np.zeros_like(counts)
    left = total
    open_classes = np.arange(len(counts))
    while True:
        share = Fraction(left, len(open_classes))
        whole = np.array([int(counts[c]) <= share for c in open_classes])
        if not whole.any():
            sizes[open_classes] = largest_remainder([share] * len(open_classes), left, counts[open_classes])
            return sizes
        sizes[open_classes[whole]] = counts[open_classes[whole]]
        left -= int(counts[open_classes[whole]].sum())
        open_classes = open_classes[~whole]
        if not len(open_classes):
            return sizes


def sizes_from_mapping(n_samples: Mapping[Any, int], labels: list[Any], counts: IntArray) -> IntArray:
    """Number of rows of every class from a mapping of labels, shape (n_classes,).

    Raises:
        InputError: a class is missing or unknown, or a number is not in [1, rows of the class].

    >>> sizes_from_mapping({"a": 2, "b": 1}, ["a", "b"], np.array([5, 5])).tolist()
    [2, 1]
    """
    if set(n_samples) != set(labels):
        raise InputError(
            f"n_samples names the classes {sorted(n_samples, key=str)}, but y has {labels}; give a number "
            "for each of these"
        )
    for label, count in zip(labels, counts.tolist(), strict=True):
        check_number(f"n_samples of class {label!r}", n_samples[label], count)
    return np.array([int(n_samples[label]) for label in labels], dtype=np.int64)


class Counter:
    """Adds up the progress of classes that may run in threads.

    Args:
        callback: Called with the steps done and ``total``; None reports nothing.
        total: Number of steps.
    """

    def __init__(self, callback: Progress | None, total: int) -> None:
        self._callback, self._total = callback, total
        self._done = 0
        self._lock = Lock()

    def advance(self, n: int = 1) -> None:
        """Report ``n`` more steps."""
        if self._callback is None:
            return
        with self._lock:  # also around the callback: its numbers must not decrease
            self._done += n
            self._callback(self._done, self._total)


@dataclass(frozen=True, slots=True)
class Table:
    """A checked table.

    Attributes:
        values: float64, C-ordered, shape (n, d).
        classes: The classes of the rows.
        groups: Rows that are reduced together, ascending: the rows of a class, or all rows.
        seeds: One per group; a shared generator would make results depend on the number of threads.
    """

    values: FloatArray
    classes: Classes
    groups: list[IntArray]
    seeds: list[int]


@dataclass(eq=False, repr=False)
class BaseReducer(BaseSampler, ABC):  # type: ignore[misc]  # imbalanced-learn has no types
    """A method that reduces a table to a representative subset, with the interface of imbalanced-learn.

    Give one of ``fraction``, ``n_samples`` and ``epsilon``; without any of them, a tenth is kept.

    Args:
        fraction: Part of the rows to keep, in (0, 1]; rounded half up, at least one row.
        n_samples: Number of rows to keep, or a mapping from every label to its number.
        epsilon: Representativeness to reach: every class keeps the shortest prefix of its order with which
            each row of the class is within this distance, in ``metric``, of a kept row.
        stratify: ``proportional`` to class sizes (largest remainders), ``balanced`` (equal numbers; small
            classes are kept entirely) or ``global``: one selection across all classes, which may lose some.
        min_per_class: Minimum number of rows kept per class, or all its rows; ignored by ``global``.
        metric: ``euclidean`` or ``chebyshev`` (L-infinity), for distances and ``epsilon``. Scale the
            features first, for example to [0, 1].
        random_state: Seed, or NumPy's ``RandomState``.
        n_jobs: Threads over the classes; None is one, -1 all. Results do not depend on it.
        progress: Called with steps done and their total during long work; None reports nothing.

    Subclasses set ``name`` and ``abbreviation`` and implement :meth:`_reduce`.
    """

    name: ClassVar[str]
    abbreviation: ClassVar[str]
    reads_values: ClassVar[bool] = True
    """False for a method that ignores the features, and therefore accepts text and NaN."""

    fraction: float | None = None
    _: KW_ONLY
    n_samples: int | Mapping[Any, int] | None = None
    epsilon: float | None = None
    stratify: Stratify = "proportional"
    min_per_class: int = 1
    metric: Metric = "euclidean"
    random_state: Any = None
    n_jobs: int | None = None
    progress: Progress | None = None

    @abstractmethod
    def _reduce(self, table: Table, sizes: IntArray | None) -> None:
        """Set the fitted attributes; ``sizes`` per group, or None when ``epsilon`` decides."""

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803  # scikit-learn's name
        """Choose the rows, then read them from ``sample_indices_``, or synthetic points from ``points_``.

        Args:
            X: Table of numbers, shape (n, d): array, list, sparse matrix, pandas or polars frame. Sparse
                tables are made dense.
            y: Labels, shape (n,), of any dtype; None for one class.

        Raises:
            InputError: a parameter is wrong, X contains NaN, infinity or numbers whose squares overflow or
                vanish, or y has a single class.
        """
        self.check_parameters()
        values = self._values(X)
        classes = classes_of(y, len(values))
        if y is not None and len(classes.labels) < 2:
            # scikit-learn's checks look for "1 class" and "n_samples=1" here and below.
            raise InputError(
                f"y has only 1 class, {classes.names[0]!r} (n_samples={len(values)}); omit y to reduce rows "
                "without labels",
                code="labels-invalid",
            )
        if y is None and len(values) < 2:
            raise InputError("X must have at least 2 rows, not n_samples=1", code="table-invalid")
        rng = self._generator()
        groups = [np.arange(len(values))] if self.stratify == "global" else classes.rows
        seeds = rng.randint(2**31 - 1, size=len(groups)).tolist()
        table = Table(values, classes, groups, seeds)
        self._reduce(table, self._sizes(classes))
        return self

    def fit_resample(self, X: Any, y: Any = None) -> tuple[Any, Any]:  # noqa: N803
        """Choose the rows and return them with their labels, in the same types of container.

        Args:
            X: As for :meth:`fit`.
            y: As for :meth:`fit`; None returns None for the labels.

        Raises:
            InputError: as :meth:`fit`.
        """
        self.fit(X, y)
        return self._fit_resample(X, y)

    def _fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:  # noqa: N803
        return take_rows(X, self.sample_indices_), take_rows(y, self.sample_indices_)

    def __sklearn_tags__(self) -> Any:
        """Properties that scikit-learn's and imbalanced-learn's checks rely on."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        tags.input_tags.allow_nan = tags.input_tags.string = not self.reads_values
        tags.sampler_tags.sample_indices = True
        return tags

    def check_parameters(self) -> None:
        """Check what does not depend on the table; :meth:`fit` calls this first.

        Raises:
            InputError: a parameter is wrong, or two contradict each other.
        """
        given = {
            name: getattr(self, name)
            for name in ("fraction", "n_samples", "epsilon")
            if getattr(self, name) is not None
        }
        if len(given) > 1:
            raise InputError(f"give only one of {' and '.join(given)}, not {given}")
        if self.fraction is not None:
            check_real("fraction", self.fraction, upper=1.0)
        if self.epsilon is not None:
            check_real("epsilon", self.epsilon, zero=True)
        if self.stratify not in _STRATIFY:
            raise InputError(f"stratify must be one of {', '.join(_STRATIFY)}, not {self.stratify!r}")
        check_whole("min_per_class", self.min_per_class)
        check_metric(self.metric)
        check_threads(self.n_jobs)
        if self.progress is not None and not callable(self.progress):
            raise InputError(f"progress must be a function of done and total, not {self.progress!r}")
        single = self.epsilon is None and not isinstance(self.n_samples, Mapping)
        if self.stratify == "global" and not single:
            raise InputError(
                f"stratify='global' selects across all classes and does not work with {given}; give "
                "fraction or an integer n_samples, or use stratify='proportional'"
            )

    def _generator(self) -> np.random.RandomState:
        try:
            return cast("np.random.RandomState", check_random_state(self.random_state))
        except ValueError as error:
            raise InputError(
                f"random_state must be None, a whole number or a RandomState, not {self.random_state!r}"
            ) from error

    def _values(self, X: Any) -> FloatArray:  # noqa: N803
        reads = self.reads_values or self.epsilon is not None
        try:
            if not reads:
                if hasattr(X, "columns") and len(X):  # columns of mixed types do not fit into a single array
                    validate_data(self, X=X, reset=True, skip_check_array=True)
                    return np.empty((len(X), 0))
                checked = validate_data(
                    self, X=X, reset=True, dtype=None, ensure_all_finite=False, accept_sparse=True
                )
                return np.empty((checked.shape[0], 0))
            checked = validate_data(self, X=X, reset=True, dtype=np.float64, order="C", accept_sparse="csr")
        except (TypeError, ValueError) as error:
            if isinstance(error, TypeError) and not hasattr(X, "columns"):
                raise  # scikit-learn's checks demand a TypeError for an array of objects
            reason = str(error).partition("\n")[0]  # further lines of some messages print the whole array
            raise InputError(
                f"X must be a table of finite numbers: {reason}", code="table-invalid"
            ) from error
        values = checked.toarray() if issparse(checked) else checked
        check_magnitude("X", values)
        return np.ascontiguousarray(values)

    def _sizes(self, classes: Classes, fraction: float | None = None) -> IntArray | None:
        """Number of rows that every group keeps; None when ``epsilon`` decides."""
        if self.epsilon is not None and fraction is None:
            return None
        counts = classes.counts
        n = int(counts.sum())
        n_samples = self.n_samples if fraction is None else None
        if isinstance(n_samples, Mapping):
            sizes = sizes_from_mapping(n_samples, classes.names, counts)
        else:
            if n_samples is None:
                total = kept_total(n, fraction or self.fraction or DEFAULT_FRACTION)
            else:
                check_number("n_samples", n_samples, n)
                total = int(n_samples)
            if self.stratify == "global":
                return np.array([total])
            sizes = class_sizes(counts, total, self.stratify, self.min_per_class)
        return sizes

    def _each(self, work: Callable[..., Part], *columns: Sequence[Any]) -> list[Part]:
        """Call ``work`` on every group's arguments in threads: NumPy and k-d trees release the GIL."""
        calls = (delayed(work)(*arguments) for arguments in zip(*columns, strict=True))
        return list(Parallel(n_jobs=self.n_jobs, prefer="threads")(calls))

    def _counter(self, total: int) -> Counter:
        return Counter(self.progress, total)


@dataclass(eq=False, repr=False)
class RankedReducer(BaseReducer):
    """A method that orders the rows of every group and keeps the first ones; smaller subsets are nested.

    Subclasses implement :meth:`_orders`. One fit provides every smaller size: :meth:`at`.

    Attributes:
        sample_indices_: Kept rows, ascending, int64.
        sample_weight_: Number of rows that each kept row represents, shape (n_kept,): rows of its class
            divided by kept rows of its class, unless the method defines it otherwise.
        ranking_: Place of every row in the order of its group, 0 first, int64, shape (n,); -1 for rows
            that were not ordered because fewer were needed.
        sampling_strategy_: Number of rows kept, by label.
    """

    @abstractmethod
    def _orders(self, table: Table, sizes: IntArray | None) -> list[IntArray]:
        """The rows of every group, most important first; at least ``sizes`` of them, or all."""

    def _reduce(self, table: Table, sizes: IntArray | None) -> None:
        orders = self._orders(table, sizes)
        if sizes is None:
            sizes = self._sizes_within(table, orders)
        self.ranking_ = np.full(len(table.values), -1, dtype=np.int64)
        for order in orders:
            self.ranking_[order] = np.arange(len(order))
        self._classes, self._n_groups = table.classes, len(table.groups)
        self.sample_indices_ = self._cut(sizes)
        kept = np.bincount(table.classes.codes[self.sample_indices_], minlength=len(table.classes.labels))
        self.sampling_strategy_ = dict(zip(table.classes.names, kept.tolist(), strict=True))
        self.sample_weight_ = self._weights(table, kept)

    def at(self, fraction: float) -> IntArray:
        """The rows that another fraction keeps, ascending: a prefix of the same order.

        Args:
            fraction: Part of the rows, in (0, 1].

        Raises:
            InputError: the fraction needs more rows than the fit ordered.
        """
        check_is_fitted(self)
        check_real("fraction", fraction, upper=1.0)
        sizes = self._sizes(self._classes, fraction)
        assert sizes is not None  # noqa: S101  # a fraction always gives sizes
        ranked = self.ranking_ >= 0
        groups = self._group_codes()
        if (np.bincount(groups[ranked], minlength=self._n_groups) < sizes).any():
            raise InputError(
                f"fraction={fraction!r} needs more rows than the {int(ranked.sum())} of {len(ranked)} that "
                "fit ordered; fit with a larger fraction"
            )
        return self._cut(sizes)

    def _group_codes(self) -> IntArray:
        return self._classes.codes if self._n_groups > 1 else np.zeros_like(self._classes.codes)

    def _cut(self, sizes: IntArray) -> IntArray:
        within = (self.ranking_ >= 0) & (self.ranking_ < sizes[self._group_codes()])
        return np.flatnonzero(within)

    def _weights(self, table: Table, kept: IntArray) -> FloatArray:
        per_kept = table.classes.counts / np.maximum(kept, 1)
        return np.asarray(per_kept[table.classes.codes[self.sample_indices_]], dtype=np.float64)

    def _sizes_within(self, table: Table, orders: list[IntArray]) -> IntArray:
        """The shortest prefix of every order with a covering radius of at most ``epsilon``, by bisection."""
        least = np.minimum(table.classes.counts, self.min_per_class)
        found = self._each(lambda order: self._size_within(table.values[order]), orders)
        return np.maximum(np.array(found, dtype=np.int64), least)

    def _size_within(self, ordered: FloatArray) -> int:
        low, high = 1, len(ordered)  # the radius of all rows is 0, and it never grows with the prefix
        while low < high:
            middle = (low + high) // 2
            reached = radius(ordered[middle:], ordered[:middle], self.metric)
            low, high = (low, middle) if reached <= float(self.epsilon or 0.0) else (middle + 1, high)
        return low


@dataclass(eq=False, repr=False)
class ScoredReducer(RankedReducer):
    """A method that scores every row; rows with larger scores are kept first.

    Subclasses implement :meth:`_score`. ``stratify="global"`` compares the scores of all classes.

    Attributes:
        scores_: Scores, float64, shape (n,).
    """

    random_ties: ClassVar[bool] = False
    """True orders equal scores at random: a method with many of them would else keep the first rows."""

    @abstractmethod
    def _score(self, table: Table, sizes: IntArray | None) -> FloatArray:
        """Scores, shape (n,), computed within the classes even if the groups are not the classes."""

    def _orders(self, table: Table, sizes: IntArray | None) -> list[IntArray]:
        self.scores_ = self._score(table, sizes)
        return [
            descending(self.scores_, rows, np.random.default_rng(seed) if self.random_ties else None)
            for rows, seed in zip(table.groups, table.seeds, strict=True)
        ]


def descending(scores: FloatArray, rows: IntArray, rng: np.random.Generator | None = None) -> IntArray:
    """The rows by score, largest first; ties in random order, or by row without a generator.

    >>> descending(np.array([0.0, 3.0, 1.0, 3.0]), np.array([0, 1, 2, 3])).tolist()
    [1, 3, 2, 0]
    """
    dealt = rows if rng is None else rng.permutation(rows)
    return dealt[np.argsort(-scores[dealt], kind="stable")]
