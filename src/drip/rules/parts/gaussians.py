"""Distances in feature space: a fixed random projection, class Gaussians, and a second population."""

from __future__ import annotations

from functools import lru_cache
from math import exp, floor, log, sqrt
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
    """The projection matrix, shape (n_features, n_numbers), the same on every machine.

    Signs are drawn column by column with PCG64 from seed 0 and scaled by the square root of 1 / n_features, so
    the first 64 of 256 numbers equal the projection to 64. Up to 64 features are not projected. Such a
    projection preserves distances to about an eighth with 64 numbers and a sixteenth with 256 (Achlioptas
    2003, Database-friendly random projections).
    """
    if n_features <= N_NUMBERS:
        return np.eye(n_features, dtype=np.float32)
    bits = np.random.Generator(np.random.PCG64(0)).random((n_numbers, n_features)).T < 0.5
    return np.where(bits, 1.0, -1.0).astype(np.float32) / np.float32(np.sqrt(n_features))


def project(features: NDArray[np.floating[Any]], n_numbers: int = N_NUMBERS) -> FloatArray:
    r"""Project rows of features, shape (n, n_numbers); a row alone has the same result as in a batch.

    Before the projection every feature x becomes :math:`\operatorname{sign}(x) \sqrt{|x|}` and every row is
    scaled to unit length. Activations are skewed and differ in strength from sample to sample, and distances
    should not depend on that.

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
    # Row by row: a matrix product may round differently for batches of different sizes.
    return np.stack([row @ matrix for row in rows])


_RIDGE = 0.05
_PRIOR = 5.0
_MOST_CLASSES = 128
_FOLDS = 5


class ClassGaussians:
    r"""Whitened differences to the mean of the predicted class.

    With the means :math:`\mu_c` and the covariance :math:`\Sigma` of all differences to them,
    :math:`x = L^T (z - \mu_c)` where :math:`L L^T = (\Sigma + \lambda I)^{-1}`; the ridge :math:`\lambda`
    is a twentieth of the mean variance. Then :math:`x^T x` is the squared Mahalanobis distance. Class
    means are shrunk towards the overall mean by five samples; above 128 classes all use the overall mean.

    Complexity: d squared multiplications for a row of d features. State: d (d + n_classes) numbers in
    single precision.

    References:
        Lee, Lee, Lee and Shin (2018), A simple unified framework for detecting out-of-distribution samples
        and adversarial attacks, equations 1 and 2.
    """

    def calibrate(self, features: FloatArray, classes: IntArray, n_classes: int) -> Self:
        """Fit means and covariance to calibration features, shape (n, d), and predicted classes.

        Raises:
            InputError: fewer than two rows, or features that are all equal.
        """
        if len(features) < 2 or not np.ptp(features, axis=0).any():  # a variance needs two samples
            raise InputError(
                f"gates need calibration samples with different features, but all {len(features)} are equal; "
                "calibrate on more samples of the stream, or turn gates off"
            )
        # With hundreds of classes there are too few samples per mean, and too many means for a device.
        groups = _n_groups(n_classes)
        self._means, self._whitener = _fit(features, classes if groups > 1 else 0 * classes, groups)
        return self

    @property
    def n_features(self) -> int:
        """Length of a row."""
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
            KeyError, TypeError, ValueError: the state is damaged.
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
    """Squared distances of each fifth of the rows to means and covariance of the others, shape (n,).

    A sample is closer to a mean that it was part of. A threshold from such distances would reject more of the
    new samples than intended.
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
        # Shrunk towards the overall mean: the mean of three samples would fit exactly those three.
        means[group] = (mine.sum(axis=0) + _PRIOR * overall) / (len(mine) + _PRIOR)
    away = features - means[groups]
    covariance = away.T @ away / len(features)
    # Relative to the mean variance, so it does not depend on the scale of the features.
    ridge = max(_RIDGE * float(np.trace(covariance)) / len(overall), float(np.finfo(np.float32).tiny))
    factor = np.linalg.cholesky(covariance + ridge * np.eye(len(overall)))
    whitener = np.asarray(np.linalg.inv(factor).T)  # L L^T is the inverse of the covariance
    return _as_saved(means), _as_saved(whitener)


def _as_saved(array: NDArray[np.floating[Any]]) -> FloatArray:
    """Precision and memory layout of a restored state, so decisions continue bit by bit."""
    return np.ascontiguousarray(array, "<f4").astype(np.float64)


WINDOW = 500
_FIRST = 100
_BEGINS, _ENDS = 2.0, 1.5  # known samples reach 1.4, a fifth of a mild new camera 3
_BEGAN, _ENDED = 3.0, 2.0  # policies of version 0.1.0
START_SHARE = 0.2
_LEAST, _MOST = 0.002, 0.35
SEPARATION = 20.0
POSTERIOR = 0.1
_MOST_OF_KEPT = 0.5
ROOM_ARRIVALS = 200  # as the credit of the keep rate


class PopulationGate:
    r"""Fits two Gaussians of equal covariance to the stream and limits how many of the second are kept.

    Rows are whitened differences (:class:`drip.rules.parts.ClassGaussians`), divided by the standard deviation
    that they have on held-out calibration samples: known samples have mean zero and unit covariance. A single
    out-of-distribution sample may look like a known one, but a fifth of the stream cannot: it moves the mean
    of the last rows, and the direction of that move separates the two (Fisher's discriminant).

    1. With the mean m of about the last 500 rows, n of them, :math:`T = m^T m / (d (1/n + 1/n_0))` is about 1
       for known samples (Hotelling's T-squared of two samples: the mean of the :math:`n_0` calibration samples
       is an estimate too). Above 2, a second population begins with mean :math:`\nu = m / 0.2` and weight 0.2;
       below 1.5 it ends.
    2. Meanwhile every row x has the posterior
       :math:`q = \sigma(x^T \nu - \nu^T \nu / 2 + \log \frac{\pi}{1 - \pi})`, and updates
       weight :math:`\pi` and mean :math:`\nu` (expectation maximisation that forgets over 500 rows).
    3. A row with q above 0.1 belongs to the second population if the two are well separated,
       :math:`\nu^T \nu > 20` (at most 1.3 % of either is closer to the other), and the second is the smaller
       one. At :math:`\pi \ge 0.35` the distribution has shifted, and everything passes.
    4. Only a person can tell whether the second population is junk or a new camera. It is therefore neither
       banned nor accepted completely, but may fill a part of the kept samples: ``quota`` times its weight, at
       most one half.

    Complexity: 4 d operations per row. State: 2 d + 6 numbers.

    Args:
        n_features: Length d of a row.
        quota: Part of the kept samples for the second population, relative to its weight; 0 rejects it.
        held_out: Squared whitened distances of held-out calibration samples to their class, shape
            (n_0,); None for policies of version 0.1.0, which assumed that calibration knows everything.

    References:
        Fisher (1936), The use of multiple measurements in taxonomic problems; Cappé and Moulines (2009),
        On-line expectation-maximization algorithm for latent data models.
    """

    def __init__(self, n_features: int = 0, quota: float = 0.0, held_out: FloatArray | None = None) -> None:
        self._quota = quota
        # Calibrated on 200 samples, new ones vary half as much again, and their mean differs from the estimate.
        # Taken for a second population, that would raise an alarm on every stream.
        self._deviation, self._n_calibration = 1.0, 0
        if held_out is not None:
            self._deviation, self._n_calibration = (
                sqrt(float(held_out.mean()) / n_features) or 1.0,
                len(held_out),
            )
        self._arrivals = self._kept = 0
        self._n = 0
        self._wait = 0
        self._mean = np.zeros(n_features)
        self._share = 0.0
        self._sum = np.zeros(n_features)
        self._squares = 0.0
        self.posterior = 0.0

    @property
    def n_features(self) -> int:
        """Length of a row."""
        return len(self._mean)

    @property
    def share(self) -> float:
        """Weight of the second population among the last rows; 0 without one."""
        return self._share

    @property
    def is_apart(self) -> bool:
        """Whether there is a second population that the gate limits."""
        return self._share < _MOST and self.is_separate

    @property
    def is_separate(self) -> bool:
        """Whether the two populations are well separated, whichever is the larger one."""
        return self._share > _LEAST and float(self._sum @ self._sum) > SEPARATION * self._share**2

    @property
    def population_mean(self) -> FloatArray:
        """Mean of the second population, shape (d,), in the units of :meth:`scaled`; only while there is one."""
        mean: FloatArray = self._sum / self._share
        return mean

    @property
    def spread(self) -> float:
        """Mean squared distance of its rows to that mean, at least that of known rows; only while there is one."""
        mean = self.population_mean
        return max(self._squares / self._share - float(mean @ mean), float(len(mean)))

    @property
    def is_shifted(self) -> bool:
        """Whether the second population is no longer the smaller one: the distribution has shifted."""
        return self._share >= _MOST

    def scaled(self, row: FloatArray) -> FloatArray:
        """A row in units of the deviation of held-out calibration samples."""
        scaled: FloatArray = row / self._deviation
        return scaled

    def passes(self, row: FloatArray) -> bool:
        """Whether one row, shape (d,), belongs to the known population; updates the fit with it.

        Afterwards ``posterior`` is that of the row for the second population, 0 without one.
        """
        row = self.scaled(row)
        # The variance of a mean with forgetting 1/w is that of 2w - 1 equal weights.
        self._n = min(self._n + 1, 2 * WINDOW - 1)
        self._wait = max(self._wait - 1, 0)
        self._mean += max(1 / self._n, 1 / WINDOW) * (row - self._mean)
        shift = float(self._mean @ self._mean) / len(row)
        if self._n_calibration:
            shift /= 1 / self._n + 1 / self._n_calibration
            begins, ends = shift > _BEGINS, shift < _ENDS
        else:
            begins, ends = self._n * shift > _BEGAN, self._n * shift < _ENDED
        if self._share == 0.0 and begins and self._n >= _FIRST and not self._wait:
            self._share, self._sum = START_SHARE, self._mean.copy()
            self._squares = self._usual_squares()
        elif self._share and (ends or self._share < _LEAST):
            # Wait before the next start: the mean still carries the population that has just ended.
            self._share, self._wait = 0.0, WINDOW
        if self._share == 0.0:
            self._arrivals = self._kept = 0
            self.posterior = 0.0
            return True
        self._arrivals += 1
        posterior, rejects = self._posterior(row), self.is_apart
        self.posterior = posterior
        self._squares += (posterior * float(row @ row) - self._squares) / WINDOW
        self._share += (posterior - self._share) / WINDOW
        self._sum += (posterior * row - self._sum) / WINDOW
        return not rejects or posterior <= POSTERIOR

    def has_room(self, target: float) -> bool:
        """Whether the second population has kept less than its quota since it began, at this keep rate.

        What it did not use is limited to 200 arrivals' worth: while it was not limited, as the larger one, nothing
        was counted against the quota, and using all of that at once would exceed the keep rate for hours.
        """
        rate = min(self._quota * self._share, _MOST_OF_KEPT) * target
        due = rate * self._arrivals
        self._kept = max(self._kept, floor(due - max(ROOM_ARRIVALS * rate, 1.0)))
        return self._kept < due

    def kept(self) -> None:
        """Count a kept sample of the second population."""
        self._kept += 1

    def clear(self) -> None:
        """Forget the second population and the last rows, because it is followed elsewhere from now on."""
        self._share, self._wait = 0.0, WINDOW
        self._n = self._arrivals = self._kept = 0
        self._mean = np.zeros(len(self._mean))

    def state(self) -> JsonObject:
        """What calibration set, counts, the mean of the last rows, weight and sum of the second population."""
        return {
            "deviation": self._deviation,
            "calibration": self._n_calibration,
            "arrivals": self._arrivals,
            "kept": self._kept,
            "n": self._n,
            "wait": self._wait,
            "mean": packed(self._mean, "<f8"),
            "share": self._share,
            "sum": packed(self._sum, "<f8"),
            "squares": self._squares,
        }

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`."""
        d = len(self._mean)
        self._mean, self._sum = (unpacked(name, state[name], d, dtype="<f8") for name in ("mean", "sum"))
        self._share = number("share", state["share"])
        self._n, self._wait = count("n", state["n"]), count("wait", state["wait"])
        # Version 0.1.0 had no quota and did not count.
        self._arrivals, self._kept, self._n_calibration = (
            count(name, state.get(name, 0)) for name in ("arrivals", "kept", "calibration")
        )
        self._deviation = number("deviation", state.get("deviation", 1.0))
        if self._deviation <= 0:
            raise ValueError(f"deviation must be above 0, got {self._deviation!r}")
        if not 0 <= self._share <= 1:
            raise ValueError(f"share must be in [0, 1], got {self._share!r}")
        with np.errstate(over="ignore"):  # a damaged sum
            usual = self._usual_squares() if self._share >= _LEAST else 0.0
        self._squares = number("squares", state.get("squares", usual))

    def _usual_squares(self) -> float:
        """The weighted squares of a population that varies as known rows do."""
        mean = self.population_mean
        return self._share * (len(mean) + float(mean @ mean))

    def _posterior(self, row: FloatArray) -> float:
        mean = self._sum / self._share
        # The odds of 1 would be infinite.
        share = min(self._share, 0.999)
        odds = float(row @ mean - 0.5 * mean @ mean) + log(share / (1 - share))
        # exp(500) is still finite; beyond it the posterior is 0 in float64 anyway.
        return 1 / (1 + exp(-odds)) if odds > -500 else 0.0
