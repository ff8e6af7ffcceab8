"""A gate for a second population: a part of the stream that calibration did not have."""

from __future__ import annotations

from math import exp, log

import numpy as np

from drip.selectors.states import count, number, packed, unpacked
from drip.types import FloatArray, JsonObject

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
    one (:class:`drip.selectors.parts.ClassGaussians`). A single foreign picture may lie within the cloud of
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
