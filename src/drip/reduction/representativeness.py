"""How well a subset represents a table: distances from every row to the nearest kept row of its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drip.errors import InputError
from drip.reduction.inputs import (
    Classes,
    check_magnitude,
    check_real,
    check_threads,
    classes_of,
    finite_table,
)
from drip.reduction.neighbours import Metric, check_metric, nearest
from drip.types import BoolArray, FloatArray, IntArray

QUANTILES = (0.5, 0.9, 0.95, 0.99)

_DUAL_NORM_ORDER = {"chebyshev": 1, "euclidean": 2}  # the dual norm bounds |w (x - x')|


@dataclass(frozen=True, slots=True)
class Spread:
    """Summary of the distances from rows to their nearest kept rows; infinite if no row is kept.

    Attributes:
        epsilon: The largest distance.
        mean: The mean distance.
        quantiles: Distance by quantile, linearly interpolated.
        n: Number of rows.
        n_kept: Number of kept rows or points.
    """

    epsilon: float
    mean: float
    quantiles: Mapping[float, float]
    n: int
    n_kept: int


@dataclass(frozen=True, slots=True)
class Representativeness:
    """Result of :func:`epsilon_representativeness`.

    Attributes:
        overall: Over all rows.
        per_class: By label.
        metric: ``chebyshev`` or ``euclidean``.
        distances: From every row to the nearest kept row of its class, infinite without one, shape (n,).
        nearest: Index of that row among the kept rows, -1 without one, shape (n,).
    """

    overall: Spread
    per_class: Mapping[Any, Spread]
    metric: Metric
    distances: FloatArray
    nearest: IntArray

    @property
    def epsilon(self) -> float:
        """The largest distance; infinite if a class has no kept row."""
        return self.overall.epsilon

    @property
    def lost(self) -> list[Any]:
        """Labels without a kept row."""
        return [label for label, spread in self.per_class.items() if not spread.n_kept]

    def counts(self) -> IntArray:
        """Number of rows to which each kept row is the nearest, shape (n_kept,)."""
        return np.bincount(self.nearest[self.nearest >= 0], minlength=self.overall.n_kept)


def epsilon_representativeness(
    X: Any,  # noqa: N803  # scikit-learn's name
    y: Any,
    X_reduced: Any = None,  # noqa: N803
    y_reduced: Any = None,
    *,
    indices: Any = None,
    metric: Metric = "chebyshev",
    quantiles: Sequence[float] = QUANTILES,
    n_jobs: int | None = None,
) -> Representativeness:
    r"""How far rows are from the kept rows of their class.

    :math:`\varepsilon = \max_c \max_{x \in X_c} \min_{x' \in X'_c} \|x - x'\|`, the directed Hausdorff
    distance from the whole to the reduced set, by class: the smallest epsilon for which the reduced set is
    epsilon-representative (without moving it by an isometry). A class without a kept row makes it infinite.
    The maximum depends on single outliers; the mean and the quantiles do not.

    Args:
        X: All rows, shape (n, d), scaled as for the reduction.
        y: Their labels, shape (n,); None for one class.
        X_reduced: Kept rows or points, shape (m, d).
        y_reduced: Their labels, shape (m,); None where ``y`` is None.
        indices: Kept rows of X, instead of ``X_reduced`` and ``y_reduced``.
        metric: ``chebyshev`` (L-infinity, as published) or ``euclidean``.
        quantiles: Each in [0, 1].
        n_jobs: Threads; None is one, -1 all.

    Raises:
        InputError: both or neither of points and indices were given, ``y_reduced`` has labels that y lacks,
            X contains NaN or numbers whose squares overflow or vanish, or the dimensions differ.

    Complexity: k-d trees up to 20 dimensions; beyond, O(n m d) in blocks of bounded memory. Exact.

    References:
        Gonzalez-Diaz, Gutierrez-Naranjo and Paluzo-Hidalgo (2022), Topology-based representative datasets
        to reduce neural network training resources, arXiv:1903.08519.

    >>> X, y = [[0.0], [1.0], [4.0], [9.0]], ["a", "a", "a", "b"]
    >>> found = epsilon_representativeness(X, y, indices=[1, 3])
    >>> found.epsilon, found.per_class["b"].epsilon, found.counts().tolist()
    (3.0, 0.0, [3, 1])
    >>> epsilon_representativeness(X, y, indices=[0]).epsilon
    inf
    """
    check_metric(metric)
    check_threads(n_jobs)
    for share in quantiles:
        check_real("every quantile", share, upper=1.0, zero=True)
    values = finite_table("X", X)
    classes = classes_of(y, len(values))
    points, codes = _kept(values, classes, X_reduced, y_reduced, indices)
    check_magnitude("X", values, points)
    distances, chosen = np.full(len(values), np.inf), np.full(len(values), -1, dtype=np.int64)
    for code, rows in enumerate(classes.rows):
        kept = np.flatnonzero(codes == code)
        if len(kept):
            distances[rows], places = nearest(values[rows], points[kept], metric, n_jobs=n_jobs)
            chosen[rows] = kept[places]
    counts = np.bincount(codes, minlength=len(classes.labels)).tolist()
    per_class = {
        label: _spread(distances[rows], quantiles, n_kept)
        for label, rows, n_kept in zip(classes.names, classes.rows, counts, strict=True)
    }
    return Representativeness(
        _spread(distances, quantiles, len(points)), per_class, metric, distances, chosen
    )


def _spread(distances: FloatArray, quantiles: Sequence[float], n_kept: int) -> Spread:
    lost = np.isinf(distances)
    # Interpolating between a distance and infinity returns NaN, so infinity is replaced and then put back.
    finite = np.where(lost, np.finfo(np.float64).max, distances)
    values = {}
    for share in quantiles:
        value = float(np.quantile(finite, share))
        values[float(share)] = np.inf if value > distances[~lost].max(initial=0.0) else value
    return Spread(float(distances.max()), float(distances.mean()), values, len(distances), n_kept)


def _kept(
    values: FloatArray,
    classes: Classes,
    X_reduced: Any,  # noqa: N803
    y_reduced: Any,
    indices: Any,
) -> tuple[FloatArray, IntArray]:
    """The kept points and their codes in ``classes``."""
    if (indices is None) == (X_reduced is None):
        raise InputError("give either indices, or X_reduced with y_reduced")
    if indices is not None:
        rows = np.asarray(indices)
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
            raise InputError(f"indices must be a non-empty list of row numbers, not {indices!r}")
        if rows.min() < 0 or rows.max() >= len(values):
            raise InputError(
                f"indices must be rows of X in [0, {len(values)}), not {rows.min()} to {rows.max()}"
            )
        return values[rows], classes.codes[rows]
    points = finite_table("X_reduced", X_reduced)
    if points.shape[1] != values.shape[1]:
        raise InputError(
            f"X_reduced has {points.shape[1]} columns, but X has {values.shape[1]}", code="table-invalid"
        )
    kept = classes_of(y_reduced, len(points))
    places = {label: place for place, label in enumerate(classes.names)}
    unknown = [label for label in kept.names if label not in places]
    if unknown:
        raise InputError(
            f"y_reduced has labels {unknown} that y does not have: {classes.names}", code="labels-invalid"
        )
    return points, np.array([places[label] for label in kept.names], dtype=np.int64)[kept.codes]


@dataclass(frozen=True, slots=True)
class Certificate:
    """Bounds of the accuracy on all rows, computed from the reduced set.

    Attributes:
        weighted_accuracy: Accuracy on the kept rows, each counted as often as it is the nearest kept row.
        slack: Fraction of rows that may be classified differently from their nearest kept row.
        certified: True for rows that are classified like their nearest kept row, shape (n,).
        margins: Distance that a row must move, in the metric, to be classified differently, shape (n,).
        representativeness: Distances to the kept rows.
    """

    weighted_accuracy: float
    slack: float
    certified: BoolArray
    margins: FloatArray
    representativeness: Representativeness

    @property
    def lower(self) -> float:
        """Lower bound of the accuracy on all rows."""
        return max(0.0, self.weighted_accuracy - self.slack)

    @property
    def upper(self) -> float:
        """Upper bound of the accuracy on all rows."""
        return min(1.0, self.weighted_accuracy + self.slack)


def perceptron_certificate(
    X: Any,  # noqa: N803  # scikit-learn's name
    y: Any,
    indices: Any,
    coefficients: Any,
    intercepts: Any,
    *,
    metric: Metric = "chebyshev",
    n_jobs: int | None = None,
) -> Certificate:
    r"""Bound the accuracy of a linear classifier on all rows by its accuracy on the weighted kept rows.

    A row x and the nearest kept row x' of its class are classified alike if
    :math:`|w \cdot x + b| / \|w\|_* > \|x - x'\|`, with the dual norm :math:`\|w\|_*`: L1 for the L-infinity
    distance, L2 for the Euclidean one. With several classes this must hold for the difference of (w, b)
    between the predicted class and every other class. Both rows have the same label, so they are
    right or wrong together, and

    ``|acc(D) - acc_w(D')| <= fraction of the other rows``,

    where x' weighs the number of rows it is nearest to. If the smallest margin exceeds epsilon, the
    accuracies are equal: the theorem for perceptrons, without its condition that all weights are equal.

    Args:
        X: All rows, shape (n, d).
        y: Their labels, shape (n,), at least two.
        indices: Kept rows.
        coefficients: w as ``coef_`` of scikit-learn's linear classifiers: shape (d,) or (1, d) for two
            classes, where w x + b > 0 means the larger label; else (n_classes, d) in the order of the labels.
        intercepts: b: a number, or one per row of ``coefficients``.
        metric: ``chebyshev`` or ``euclidean``.
        n_jobs: Threads of the search for nearest rows.

    Raises:
        InputError: the shapes do not fit, or as :func:`epsilon_representativeness`.

    References:
        Gonzalez-Diaz, Gutierrez-Naranjo and Paluzo-Hidalgo (2022), Topology-based representative datasets
        to reduce neural network training resources, arXiv:1903.08519; the bound per row is elementary.

    >>> X, y = [[-3.0], [-2.0], [0.1], [2.0]], [0, 0, 1, 1]
    >>> found = perceptron_certificate(X, y, [0, 3], [[1.0]], [0.0])
    >>> found.weighted_accuracy, found.slack, found.certified.tolist()
    (1.0, 0.25, [True, True, False, True])
    """
    values = finite_table("X", X)
    classes = classes_of(y, len(values))
    weights, offsets = _planes(coefficients, intercepts, len(classes.labels), values.shape[1])
    found = epsilon_representativeness(values, y, indices=indices, metric=metric, n_jobs=n_jobs)
    predicted, margins = _margins(values, weights, offsets, metric)
    right = predicted == classes.codes
    kept_rows = np.asarray(indices, dtype=np.int64)
    known = found.nearest >= 0
    agreed = right[kept_rows[found.nearest[known]]]
    certified = margins > found.distances
    return Certificate(
        float(agreed.sum() / len(values)), float((~certified).mean()), certified, margins, found
    )


def _planes(
    coefficients: Any, intercepts: Any, n_classes: int, n_features: int
) -> tuple[FloatArray, FloatArray]:
    """One row of (w, b) per class."""
    try:
        weights = np.atleast_2d(np.asarray(coefficients, dtype=np.float64))
        offsets = np.atleast_1d(np.asarray(intercepts, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(f"coefficients and intercepts must be finite numbers: {error}") from error
    if not (np.isfinite(weights).all() and np.isfinite(offsets).all()):
        raise InputError("coefficients and intercepts contain NaN or infinity; fit the classifier again")
    n_planes = 1 if n_classes == 2 and len(weights) == 1 else n_classes
    if n_classes < 2 or weights.shape != (n_planes, n_features) or offsets.shape != (n_planes,):
        raise InputError(
            f"coefficients of shape {weights.shape} with {len(offsets)} intercepts do not fit {n_classes} "
            f"classes (at least 2) and {n_features} features; give shape ({n_planes}, {n_features}) and {n_planes}"
        )
    if n_planes == 1:
        return np.vstack([np.zeros_like(weights), weights]), np.concatenate([[0.0], offsets])
    return weights, offsets


def _margins(
    values: FloatArray, weights: FloatArray, offsets: FloatArray, metric: Metric
) -> tuple[IntArray, FloatArray]:
    """Predicted class of every row, and its distance to the nearest region of another class."""
    scores = values @ weights.T + offsets
    # The lower class on ties: scikit-learn also predicts the lower of two labels where w x + b = 0.
    predicted = scores.argmax(axis=1)
    margins = np.full(len(values), np.inf)
    for winner in range(len(weights)):
        rows = predicted == winner
        for other in range(len(weights)):
            if other != winner and rows.any():
                length = float(np.linalg.norm(weights[winner] - weights[other], _DUAL_NORM_ORDER[metric]))
                gap = scores[rows, winner] - scores[rows, other]
                reach = gap / length if length > 0.0 else np.full(len(gap), np.inf)
                margins[rows] = np.minimum(margins[rows], reach)
    return predicted, margins
