"""Features in few numbers: one fixed random matrix, the same on every machine."""

from __future__ import annotations

from functools import lru_cache
from math import exp, log
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError
from drip.rules.state import count, number, packed, unpacked
from drip.types import FloatArray, IntArray, JsonObject

N_NUMBERS = 64
N_FINE = 256


@lru_cache(maxsize=4)
def projection(n_features: int, n_numbers: int = N_NUMBERS) -> NDArray[np.float32]:
    """The matrix that takes ``n_features`` features to fewer numbers, shape (n_features, n_numbers).

    Signs drawn column by column with PCG64 from seed 0, times the square root of 1 / n_features, so that the
    first numbers of many are those of few; as few features as 64 stay themselves. Distances survive such a
    projection, to an eighth with 64 numbers and to a sixteenth with 256 (Achlioptas 2003, Database-friendly
    random projections).
    """
    if n_features <= N_NUMBERS:
        return np.eye(n_features, dtype=np.float32)
    bits = np.random.Generator(np.random.PCG64(0)).random((n_numbers, n_features)).T < 0.5
    return np.where(bits, 1.0, -1.0).astype(np.float32) / np.float32(np.sqrt(n_features))


def project(features: NDArray[np.floating[Any]], n_numbers: int = N_NUMBERS) -> FloatArray:
    r"""Rows of features in few numbers, shape (n, n_numbers); one row gives what it gives among others.

    Before the projection every feature x becomes :math:`\operatorname{sign}(x) \sqrt{|x|}` and every row unit
    length: activations are skewed and differ in strength from sample to sample; distances should not see it.

    >>> project(np.ones((2, 4))).tolist()[0]
    [0.5, 0.5, 0.5, 0.5]
    """
    rows = np.ascontiguousarray(features, np.float64)
    rows = np.sign(rows) * np.sqrt(np.abs(rows))
    matrix = projection(rows.shape[1], n_numbers).astype(np.float64)
    if not len(rows):
        return np.empty((0, matrix.shape[1]))
    lengths = np.sqrt([row @ row for row in rows])
    rows = rows / np.where(lengths > 0, lengths, 1.0)[:, None]
    # Row by row: a product of matrices rounds differently for batches of different sizes.
    return np.stack([row @ matrix for row in rows])


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


_WINDOW = 500
_FIRST = 100
_SHIFT_ON, _SHIFT_OFF = 3.0, 2.0
_START_SHARE = 0.2
_LEAST, _MOST = 0.002, 0.35
_SEPARATION = 20.0
_POSTERIOR = 0.1


class PopulationGate:
    r"""Two Gaussians of one covariance, fitted to the stream as it passes; the second one is rejected.

    Rows are differences to what is known, in a measure in which known samples have mean zero and covariance
    one (:class:`drip.rules.parts.ClassGaussians`). A single foreign picture may lie within the cloud of
    the known ones; a fifth of the stream cannot: it moves the mean of the last rows, and the direction in
    which it does so separates the two (Fisher's discriminant).

    1. With the mean m of about the last 500 rows, n of them, :math:`T = n\, m^T m / d` is about 1 for known
       samples (Hotelling's statistic). Above 3, the second population begins with mean
       :math:`\nu = m / 0.2` and share 0.2; below 2 it ends.
    2. Meanwhile every row x has the posterior
       :math:`q = \sigma(x^T \nu - \nu^T \nu / 2 + \log \frac{\pi}{1 - \pi})`, and moves share
       :math:`\pi` and mean :math:`\nu` by it (expectation maximisation, with a forgetting of 500 rows).
    3. A row with q above 0.1 is rejected where the two are apart, :math:`\nu^T \nu > 20` (at most 1.3 % of
       either is nearer to the other), and where the second is the smaller: at :math:`\pi \ge 0.35` the
       world has changed, and everything passes.

    Complexity: 4 d operations per row. State: 2 d + 4 numbers.

    References:
        Fisher (1936), The use of multiple measurements in taxonomic problems; Cappé and Moulines (2009),
        On-line expectation-maximization algorithm for latent data models.
    """

    def __init__(self, n_features: int = 0) -> None:
        self._n = 0
        self._wait = 0
        self._mean = np.zeros(n_features)
        self._share = 0.0
        self._sum = np.zeros(n_features)

    @property
    def share(self) -> float:
        """Share of the second population among the last rows; 0 where there is none."""
        return self._share

    @property
    def is_apart(self) -> bool:
        """Whether there is a second population that the gate rejects."""
        if not _LEAST < self._share < _MOST:
            return False
        return float(self._sum @ self._sum) > _SEPARATION * self._share**2

    @property
    def is_new_world(self) -> bool:
        """Whether the second population is no longer the smaller one: the stream as a whole has changed."""
        return self._share >= _MOST

    def passes(self, row: FloatArray) -> bool:
        """Whether one row, shape (d,), belongs to what is known; learns from it."""
        self._n = min(self._n + 1, 2 * _WINDOW - 1)
        self._wait = max(self._wait - 1, 0)
        self._mean += max(1 / self._n, 1 / _WINDOW) * (row - self._mean)
        shift = self._n * float(self._mean @ self._mean) / len(row)
        if self._share == 0.0 and shift > _SHIFT_ON and self._n >= _FIRST and not self._wait:
            self._share, self._sum = _START_SHARE, self._mean.copy()
        elif self._share and (shift < _SHIFT_OFF or self._share < _LEAST):
            self._share, self._wait = 0.0, _WINDOW
        if self._share == 0.0:
            return True
        posterior, rejects = self._posterior(row), self.is_apart
        self._share += (posterior - self._share) / _WINDOW
        self._sum += (posterior * row - self._sum) / _WINDOW
        return not rejects or posterior <= _POSTERIOR

    def state(self) -> JsonObject:
        """Counts, the mean of the last rows, share and sum of the second population."""
        return {
            "n": self._n,
            "wait": self._wait,
            "mean": packed(self._mean, "<f8"),
            "share": self._share,
            "sum": packed(self._sum, "<f8"),
        }

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`."""
        d = len(self._mean)
        self._mean, self._sum = (unpacked(name, state[name], d, dtype="<f8") for name in ("mean", "sum"))
        self._share = number("share", state["share"])
        self._n, self._wait = count("n", state["n"]), count("wait", state["wait"])
        if not 0 <= self._share <= 1:
            raise ValueError(f"share must be in [0, 1], got {self._share!r}")

    def _posterior(self, row: FloatArray) -> float:
        mean = self._sum / self._share
        share = min(self._share, 0.999)
        odds = float(row @ mean - 0.5 * mean @ mean) + log(share / (1 - share))
        return 1 / (1 + exp(-odds)) if odds > -500 else 0.0
