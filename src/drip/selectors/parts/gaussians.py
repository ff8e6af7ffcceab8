"""Where calibration samples lie: a mean for every predicted class, one covariance for all."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError
from drip.selectors.states import packed, unpacked
from drip.types import FloatArray, IntArray, JsonObject

_RIDGE = 0.05
_PRIOR = 5.0
_MOST_CLASSES = 128
_FOLDS = 5


class ClassGaussians:
    r"""Differences to the mean of the predicted class, in a measure in which the covariance is one.

    With the means :math:`\mu_c` and the covariance :math:`\Sigma` of all differences to them,
    :math:`x = L^T (z - \mu_c)` where :math:`L L^T = (\Sigma + \lambda I)^{-1}`; the ridge :math:`\lambda`
    is a twentieth of the mean variance. Then :math:`x^T x` is the squared Mahalanobis distance. A class
    mean counts the mean of all as five samples more; above 128 classes, that one serves all of them.

    Complexity: d squared multiplications for a row of d features. State: d (d + n_classes) numbers in
    single precision.

    References:
        Lee, Lee, Lee and Shin (2018), A simple unified framework for detecting out-of-distribution samples
        and adversarial attacks, equations 1 and 2.
    """

    def calibrate(self, features: FloatArray, classes: IntArray, n_classes: int) -> Self:
        """Take means and covariance from calibration features, shape (n, d), and predicted classes.

        Raises:
            InputError: fewer than two rows, or features that are all equal.
        """
        if len(features) < 2 or not np.ptp(features, axis=0).any():  # a variance needs two
            raise InputError(
                f"gates need calibration samples with different features, got {len(features)} alike; "
                "calibrate with more samples of the stream, or turn gates off"
            )
        groups = _n_groups(n_classes)
        self._means, self._whitener = _fit(features, classes if groups > 1 else 0 * classes, groups)
        return self

    @property
    def n_features(self) -> int:
        """Length of the rows that it was calibrated for."""
        return int(self._means.shape[1])

    def whitened(self, features: FloatArray, predicted_class: int) -> FloatArray:
        """The difference x of one row, shape (d,), to the mean of its class."""
        mean = self._means[predicted_class if len(self._means) > 1 else 0]
        away: FloatArray = (features - mean) @ self._whitener
        return away

    def state(self) -> JsonObject:
        """Means and the matrix L."""
        return {
            "n_features": self.n_features,
            "means": packed(self._means),
            "whitener": packed(self._whitener),
        }

    def restore(self, state: JsonObject, n_classes: int) -> None:
        """Continue from a saved :meth:`state` for as many classes.

        Raises:
            KeyError, TypeError, ValueError: no such state.
        """
        if n_classes < 1:
            raise ValueError(f"there must be at least one class, got {n_classes}")
        n_features = state["n_features"]
        means = unpacked("means", state["means"], None, n_features)
        if len(means) != _n_groups(n_classes):
            raise ValueError(
                f"there must be one mean per class, or one above {_MOST_CLASSES} classes, got {len(means)} "
                f"for {n_classes} classes"
            )
        self._whitener = unpacked("whitener", state["whitener"], n_features, n_features)
        self._means = means


def held_out_distances(features: FloatArray, classes: IntArray, n_classes: int) -> FloatArray:
    """Squared distances of every fifth of the rows under means and covariance of the others, shape (n,).

    A sample is nearer to a mean that it took part in: distances to it would reject more of the fresh
    samples than of these.
    """
    folds = np.arange(len(features)) % min(_FOLDS, len(features))
    distances = np.empty(len(features))
    for fold in range(int(folds.max()) + 1):
        mine, others = np.flatnonzero(folds == fold), folds != fold
        if not np.ptp(features[others], axis=0).any():
            others[:] = True
        fitted = ClassGaussians().calibrate(features[others], classes[others], n_classes)
        for row in mine:
            away = fitted.whitened(features[row], int(classes[row]))
            distances[row] = away @ away
    return distances


def _n_groups(n_classes: int) -> int:
    return n_classes if n_classes <= _MOST_CLASSES else 1


def _fit(features: FloatArray, groups: IntArray, n_groups: int) -> tuple[FloatArray, FloatArray]:
    """Means, shape (n_groups, d), and L, shape (d, d)."""
    overall = features.mean(axis=0)
    means = np.empty((n_groups, features.shape[1]))
    for group in range(n_groups):
        mine = features[groups == group]
        means[group] = (mine.sum(axis=0) + _PRIOR * overall) / (len(mine) + _PRIOR)
    away = features - means[groups]
    covariance = away.T @ away / len(features)
    ridge = max(_RIDGE * float(np.trace(covariance)) / len(overall), float(np.finfo(np.float32).tiny))
    factor = np.linalg.cholesky(covariance + ridge * np.eye(len(overall)))
    whitener = np.asarray(np.linalg.inv(factor).T)  # L L^T is the inverse of the covariance
    return _as_saved(means), _as_saved(whitener)


def _as_saved(array: NDArray[np.floating[Any]]) -> FloatArray:
    """In the precision and the memory layout of a restored state, so that decisions go on bit by bit."""
    return np.ascontiguousarray(array, "<f4").astype(np.float64)
