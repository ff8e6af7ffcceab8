"""VeSSAL: volume sampling of last-layer gradients from a stream."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.errors import InputError
from drip.selectors.base import ChanceSelector
from drip.selectors.draws import drawn
from drip.selectors.parts import RateController, RunningQuantile, Target
from drip.selectors.projected import fixed_order, projected
from drip.selectors.states import count, packed, unpacked
from drip.types import Decisions, FloatArray, JsonObject, Observations

_RIDGE = 0.01
_WINDOW = 500
_LEAST = 1e-100


class VessalSelector(ChanceSelector):
    r"""Keep with a probability that grows with the volume which a sample's gradient adds to those kept.

    With the softmax probabilities p, the predicted class :math:`\hat y` and the 64 projected features z,
    the gradient of the last layer is :math:`(p - e_{\hat y}) \otimes z`; it is sketched to as many numbers,
    :math:`g = \sum_c (p - e_{\hat y})_c\, (z \odot s_c)` with fixed random signs :math:`s_c` for every class,
    which keeps inner products in expectation. With :math:`A = (0.01\, I + \sum g g^T)^{-1}` over what the
    stream kept and :math:`v = g^T A g`, a sample is kept with probability :math:`\min(1, \zeta v)`. The
    factor :math:`\zeta` is such that the mean of these over the last 500 samples is a share which
    :class:`drip.selectors.parts.RateController` sets to hold the retention. State: A and 500 numbers in
    double precision, 49 kB of text, and 10 numbers.

    Args:
        retention: Share of the stream to keep, in (0, 1).
        seed: Seed of the draws.

    Complexity: 2 d squared multiplications per sample for d = 64, and d for every class.

    References:
        Saran, Yousefi, Krishnamurthy, Langford and Ash (2023), Streaming active learning with deep neural
        networks. There the gradients are whole; :math:`\zeta` comes from the mean of v under a
        running covariance, and what the bound at 1 then loses is filled at random at the end of a pool.
    """

    name: ClassVar[str] = "vessal"

    def __init__(self, retention: float = 0.6, seed: int = 0) -> None:
        self._target = Target(retention)  # the share must be below 1
        super().__init__(retention, seed)
        self._rate = RateController(self._target)
        self._inverse: FloatArray | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Logits and features."""
        return frozenset({"logits", "features"})

    def state(self) -> JsonObject:
        """The generator, A, the last volumes and the rate."""
        if self._inverse is None:
            raise self._uncalibrated()
        return {
            **super().state(),
            "n_classes": len(self._signs),
            "n_features": len(self._inverse),
            "inverse": packed(self._inverse, "<f8"),
            "recent": self._recent.state(),
            "rate": self._rate.state(),
        }

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        features = projected(observations, self.name)
        self._signs = _signs(n_classes, features.shape[1])
        gradients = self._gradients(observations, features)
        gradients = gradients[fixed_order(gradients)]
        self._inverse = np.eye(features.shape[1]) / _RIDGE
        volumes = np.array([self._volume(row)[0] for row in gradients])
        self._recent = RunningQuantile.spread(_WINDOW, volumes)
        self._rate = RateController(self._target)

    def _restore(self, state: JsonObject) -> None:
        n_features, n_classes = state["n_features"], count("n_classes", state["n_classes"])
        inverse = unpacked("inverse", state["inverse"], n_features, n_features, dtype="<f8")
        recent = RunningQuantile.restored(_WINDOW, state["recent"], n_values=_WINDOW)
        if not n_classes or not np.array_equal(inverse, inverse.T) or recent.ordered[0] < _LEAST:
            raise ValueError("inverse must be symmetric, recent volumes above 0, and there must be a class")
        super()._restore(state)
        self._rate.restore(state["rate"])
        self._signs = _signs(n_classes, n_features)
        self._recent = recent
        self._inverse = inverse

    def _gradients(self, observations: Observations, features: FloatArray) -> FloatArray:
        """The sketches g, shape (n, d)."""
        rows = np.ascontiguousarray(observations.logits, np.float64)
        with np.errstate(over="ignore"):  # a gap beyond float64 is a ratio of zero
            errors = np.exp(rows - rows.max(axis=1, keepdims=True))
        totals = errors.sum(axis=1)
        every = np.arange(len(rows))
        errors[every, observations.classes] = 0.0
        errors[every, observations.classes] = -errors.sum(axis=1)
        errors /= totals[:, None]
        # Row by row: a product of matrices rounds differently for batches of different sizes.
        mixed = [row @ self._signs for row in errors]
        return features * np.array(mixed, np.float64).reshape(features.shape)

    def _volume(self, gradient: FloatArray) -> tuple[float, FloatArray]:
        """The volume, never quite zero, so that all are alike where all gradients are zero; and A g."""
        assert self._inverse is not None  # noqa: S101  # calibrated
        direction = self._inverse @ gradient
        return max(float(gradient @ direction), _LEAST), direction

    def _decide(self, observations: Observations) -> Decisions:
        if self._inverse is None:
            raise self._uncalibrated()
        n_classes = len(self._signs)
        self._check_classes(observations, n_classes)
        if observations.logits.shape[1] != n_classes:
            raise InputError(
                f"logits must be {n_classes} numbers per sample, got {observations.logits.shape[1]}; "
                f"calibrate {self.name!r} with the model that scores the stream"
            )
        features = projected(observations, self.name, len(self._inverse))
        draw = self._draw(observations)
        probability = np.empty(len(observations))
        for row, gradient in enumerate(self._gradients(observations, features)):
            volume, direction = self._volume(gradient)
            self._recent.add(volume)
            probability[row] = min(1.0, volume * factor(self._recent.ordered, self._rate.share()))
            if draw[row] < probability[row]:
                self._rate.kept()
                # Sherman and Morrison; an outer product of a row with itself leaves A exactly symmetric.
                self._inverse -= np.outer(direction, direction) / (1 + volume)
        return drawn(draw, probability, self.name)


def factor(ascending: FloatArray, share: float) -> float:
    """The number f for which the mean of min(1, f v) over positive volumes v is the share, in [0, 1].

    >>> factor(np.array([1.0, 2.0, 97.0]), 0.5)
    0.16666666666666666
    """
    n = len(ascending)
    # With all but the j smallest at 1, the others share the rest; the largest j at which none exceeds 1.
    rest = share * n - np.arange(n - 1, -1, -1)
    factors = rest / np.cumsum(ascending)
    fits = np.flatnonzero(factors <= 1.0 / ascending)
    return float(factors[fits[-1]])


def _signs(n_classes: int, n_features: int) -> FloatArray:
    """Signs drawn with PCG64 from seed 0, shape (n_classes, n_features)."""
    return np.where(np.random.Generator(np.random.PCG64(0)).random((n_classes, n_features)) < 0.5, 1.0, -1.0)
