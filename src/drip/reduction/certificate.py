"""What a reduced set proves about a linear classifier's accuracy on all rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from drip.errors import InputError
from drip.reduction.containers import classes_of, finite_table
from drip.reduction.neighbours import Metric
from drip.reduction.representativeness import Representativeness, epsilon_representativeness
from drip.types import BoolArray, FloatArray, IntArray

_NORM_ORDER = {"chebyshev": 1, "euclidean": 2}  # the dual norm bounds |w (x - x')|


@dataclass(frozen=True, slots=True)
class Certificate:
    """Bounds of the accuracy on all rows, from the reduced set alone.

    Attributes:
        weighted_accuracy: Accuracy on the kept rows, each counted as often as it is the nearest of a row.
        slack: Share of the rows that may be classified otherwise than their kept row.
        certified: True for rows that are classified as their kept row, shape (n,).
        margins: Distance that a row must move, in the metric, to be classified otherwise, shape (n,).
        representativeness: Distances to the kept rows.
    """

    weighted_accuracy: float
    slack: float
    certified: BoolArray
    margins: FloatArray
    representativeness: Representativeness

    @property
    def lower(self) -> float:
        """The accuracy on all rows is at least this."""
        return max(0.0, self.weighted_accuracy - self.slack)

    @property
    def upper(self) -> float:
        """The accuracy on all rows is at most this."""
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
    r"""Bound the accuracy of a linear classifier on all rows by that on weighted kept rows.

    A row x and the nearest kept row x' of its class are classified alike where
    :math:`|w \cdot x + b| / \|w\|_* > \|x - x'\|`, with the dual norm :math:`\|w\|_*`: L1 for the L-infinity
    distance, L2 for the Euclidean one; between several classes, for all differences of the winner's (w, b)
    and another's. Their labels agree, so that they are right or wrong together, and

    .. math:: |acc(D) - acc_w(D')| \le \text{share of the other rows},

    where x' weighs as many rows as it is nearest to. If the least margin exceeds epsilon, the accuracies
    are equal: the theorem for perceptrons, without its condition that all weights be equal.

    Args:
        X: All rows, shape (n, d).
        y: Their labels, shape (n,), at least two.
        indices: Kept rows.
        coefficients: w as ``coef_`` of scikit-learn's linear classifiers: shape (d,) or (1, d) for two
            classes, where w x + b > 0 means the larger label; else (n_classes, d) in order of the labels.
        intercepts: b: a number, or one per row of ``coefficients``.
        metric: ``chebyshev`` or ``euclidean``.
        n_jobs: Threads of the search for nearest rows.

    Raises:
        InputError: shapes that do not fit, or as :func:`epsilon_representativeness`.

    References:
        Gonzalez-Diaz, Gutierrez-Naranjo and Paluzo-Hidalgo (2022), Topology-based representative datasets
        to reduce neural network training resources, arXiv:1903.08519; the version by rows is elementary.

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
        raise InputError("coefficients and intercepts must be finite numbers, got NaN or infinity")
    n_planes = 1 if n_classes == 2 and len(weights) == 1 else n_classes
    if n_classes < 2 or weights.shape != (n_planes, n_features) or offsets.shape != (n_planes,):
        raise InputError(
            f"coefficients of shape ({n_planes}, {n_features}) and as many intercepts are needed for "
            f"{n_classes} classes (at least 2), got {weights.shape} and {offsets.shape}"
        )
    if n_planes == 1:
        return np.vstack([np.zeros_like(weights), weights]), np.concatenate([[0.0], offsets])
    return weights, offsets


def _margins(
    values: FloatArray, weights: FloatArray, offsets: FloatArray, metric: Metric
) -> tuple[IntArray, FloatArray]:
    """Predicted class, and distance to the nearest other class's region, of every row."""
    scores = values @ weights.T + offsets
    # On ties the lower class: two classes with w x + b = 0 are scikit-learn's lower label too.
    predicted = scores.argmax(axis=1)
    margins = np.full(len(values), np.inf)
    for winner in range(len(weights)):
        rows = predicted == winner
        for other in range(len(weights)):
            if other != winner and rows.any():
                length = float(np.linalg.norm(weights[winner] - weights[other], _NORM_ORDER[metric]))
                gap = scores[rows, winner] - scores[rows, other]
                reach = gap / length if length > 0.0 else np.full(len(gap), np.inf)
                margins[rows] = np.minimum(margins[rows], reach)
    return predicted, margins
