"""A gate for what calibration has never seen the like of."""

from __future__ import annotations

from typing import Self

import numpy as np

from drip.errors import InputError
from drip.selectors.parts.quantiles import RunningQuantile
from drip.selectors.states import number, numbers
from drip.thresholds import check_fraction
from drip.types import FloatArray, JsonObject

_RIDGE = 0.05
_WINDOW = 500
_MOST = 0.3
_FOLDS = 5


class OutlierGate:
    r"""Mahalanobis distance to the calibration samples, cut at a quantile of the distances of such samples.

    With mean :math:`\mu` and covariance :math:`\Sigma` of the calibration features z,
    :math:`d(z) = (z-\mu)^T (\Sigma + \lambda I)^{-1} (z-\mu)`; the ridge :math:`\lambda` is a twentieth of
    the mean variance. The quantile is that of every fifth of the samples under mean and covariance of the
    others: a sample is nearer to a covariance that it took part in, and fresh samples
    would be rejected more often than asked. What is farther is an outlier, as long as that holds for less
    than three tenths of the last 500 rows: where everything looks strange, the world has changed, and only
    the strangest three tenths are rejected.

    Args:
        quantile: Share of the calibration samples that pass, in (0, 1).

    Complexity: d squared multiplications for d features, 4,096 for 64. State: d (d + 1) + 501 numbers.

    References:
        Lee, Lee, Lee and Shin (2018), A simple unified framework for detecting out-of-distribution samples
        and adversarial attacks, equation 2, with one class.
    """

    def __init__(self, quantile: float = 0.97) -> None:
        check_fraction("quantile", quantile)
        self._quantile = quantile
        self._recent = RunningQuantile(_WINDOW)

    def calibrate(self, features: FloatArray) -> Self:
        """Take mean, covariance and limit from calibration features, shape (n, d).

        Raises:
            InputError: fewer than two rows, or features that are all equal.
        """
        if len(features) < 2 or not np.ptp(features, axis=0).any():  # a variance needs two
            raise InputError("an outlier gate needs calibration samples with different features, got none")
        folds = np.arange(len(features)) % min(_FOLDS, len(features))
        held_out = [
            _distances(features[folds == fold], *_fit(features[folds != fold]))
            for fold in range(folds.max() + 1)
        ]
        self._limit = float(np.quantile(np.concatenate(held_out), self._quantile))
        self._mean, self._precision = _fit(features)
        return self

    @property
    def n_features(self) -> int:
        """Length of the rows that the gate was calibrated for."""
        return len(self._mean)

    def passes(self, features: FloatArray, *, frozen: bool = False) -> bool:
        """Whether one row, shape (d,), is no outlier.

        Args:
            features: The row.
            frozen: Hold the calibrated limit, however many rows it rejects.
        """
        distance = float(_distances(features[None], self._mean, self._precision)[0])
        limit = self._limit
        if not frozen:
            if len(self._recent) >= _WINDOW // 2:
                limit = max(limit, self._recent.limit(_MOST))
            self._recent.add(distance)
        return distance <= limit

    def state(self) -> JsonObject:
        """Mean, inverse covariance and limit."""
        return {
            "mean": self._mean.tolist(),
            "precision": self._precision.tolist(),
            "limit": self._limit,
            "recent": self._recent.values,
        }

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`."""
        self._mean = numbers("mean", state["mean"], None)
        n = len(self._mean)
        self._precision = numbers("precision", state["precision"], n, n)
        self._limit = number("limit", state["limit"])
        self._recent = RunningQuantile(_WINDOW, numbers("recent", state["recent"], None).tolist())


def _fit(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean, shape (d,), and inverse of the covariance with its ridge, shape (d, d)."""
    mean = features.mean(axis=0)
    away = features - mean
    covariance = away.T @ away / len(features)
    ridge = max(_RIDGE * float(np.trace(covariance)) / len(mean), np.finfo(np.float64).tiny)
    inverse = np.linalg.inv(covariance + ridge * np.eye(len(mean)))
    return mean, (inverse + inverse.T) / 2


def _distances(features: FloatArray, mean: FloatArray, precision: FloatArray) -> FloatArray:
    """Squared Mahalanobis distances, shape (n,)."""
    return np.array([row @ precision @ row for row in features - mean])
