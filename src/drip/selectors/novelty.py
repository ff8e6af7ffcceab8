"""Novelty: keep what is far from everything that was predicted alike."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.errors import InputError
from drip.selectors.base import ThresholdSelector, count_to_keep
from drip.selectors.parts import ClassGaussians, held_out_distances
from drip.selectors.projected import fixed_order, projected
from drip.selectors.states import count
from drip.types import FloatArray, JsonObject, Observations


class NoveltySelector(ThresholdSelector):
    r"""Keep the samples with the largest Mahalanobis distance to their predicted class.

    The priority is the squared distance :math:`(z - \mu_c)^T (\Sigma + \lambda I)^{-1} (z - \mu_c)` of the
    64 projected features z, see :class:`drip.selectors.parts.ClassGaussians`. The limit comes from
    distances of calibration samples to means and covariance of the others: a sample is nearer to a mean
    that it took part in. State: d (d + n_classes) numbers in single precision for d = 64, 22 kB of text and
    340 bytes for every class up to 128.

    References:
        Lee, Lee, Lee and Shin (2018), A simple unified framework for detecting out-of-distribution samples
        and adversarial attacks.
    """

    name: ClassVar[str] = "novelty"

    def __init__(self, retention: float = 0.6) -> None:
        super().__init__(retention)
        self._gaussians = ClassGaussians()
        self._n_classes = 0

    @property
    def needs(self) -> frozenset[str]:
        """The features."""
        return frozenset({"features"})

    def utility(self, observations: Observations) -> FloatArray:
        """Shape (n,): the squared distance.

        Raises:
            PolicyError: the rule was not calibrated.
        """
        if not self._n_classes:
            raise self._uncalibrated()
        self._check_classes(observations, self._n_classes)
        features = projected(observations, self.name, self._gaussians.n_features)
        away = map(self._gaussians.whitened, features, observations.classes.tolist())
        return np.array([row @ row for row in away], np.float64)

    def state(self) -> JsonObject:
        """The limit, means and covariance."""
        return {**super().state(), "gaussians": self._gaussians.state(), "n_classes": self._n_classes}

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        features, classes = projected(observations, self.name), observations.classes
        if not np.ptp(features, axis=0).any():
            raise InputError(
                f"selector {self.name!r} needs calibration samples with different features, got "
                f"{len(features)} alike; calibrate with more samples of the stream"
            )
        order = fixed_order(features, classes)
        features, classes = features[order], classes[order]
        self._gaussians.calibrate(features, classes, n_classes)
        self._n_classes = n_classes
        descending = np.sort(held_out_distances(features, classes, n_classes))[::-1]
        self._limit = float(descending[count_to_keep(len(descending), self._retention) - 1])

    def _restore(self, state: JsonObject) -> None:
        super()._restore(state)
        n_classes = count("n_classes", state["n_classes"])
        self._gaussians.restore(state["gaussians"], n_classes)
        self._n_classes = n_classes
