"""Rules on distances between pooled features: novelty, moderate coreset, coverage of difficulty.

Features are projected to 64 numbers first (:func:`drip.rules.parts.gaussians.project`), which bounds state and
cost on a device whatever the network.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.errors import InputError
from drip.rules.base import ChanceRule, ThresholdRule, count_to_keep, drawn, within_float64
from drip.rules.chance import equal_quota
from drip.rules.parts import ClassGaussians, held_out_distances
from drip.rules.parts.gaussians import project
from drip.rules.state import count, number, numbers, packed, unpacked
from drip.rules.uncertainty import MarginRule
from drip.types import Decisions, FloatArray, IntArray, JsonObject, Observations


def projected(observations: Observations, name: str, n_features: int | None = None) -> FloatArray:
    """The projected features, shape (n, d), d at most 64.

    Args:
        observations: Observations with features.
        name: Name of the rule, for the message.
        n_features: The number d that the rule was calibrated for; None accepts any.

    Raises:
        InputError: the number of features is different.
    """
    assert observations.features is not None  # noqa: S101  # checked as a need
    features = project(observations.features)
    if n_features is not None and features.shape[1] != n_features:
        raise InputError(
            f"the rule {name!r} was calibrated with {n_features} projected features, but this model has "
            f"{features.shape[1]}; calibrate it with the model that scores the stream",
            code="policy-other-model",
        )
    return features


def fixed_order(features: FloatArray, *columns: FloatArray | IntArray) -> IntArray:
    """Rows in an order that does not depend on the order of arrival, so sums over them round equally.

    >>> fixed_order(np.array([[2.0], [1.0], [1.0]]), np.array([0, 1, 0])).tolist()
    [2, 1, 0]
    """
    return np.lexsort((*columns, *features.T))


class NoveltyRule(ThresholdRule):
    r"""Keep the samples with the largest Mahalanobis distance to their predicted class.

    The priority is the squared distance :math:`(z - \mu_c)^T (\Sigma + \lambda I)^{-1} (z - \mu_c)` of the
    64 projected features z, see :class:`drip.rules.parts.ClassGaussians`. The threshold comes from
    distances of calibration samples to means and covariance of held-out others, because a sample is closer
    to a mean that it was part of. State: d (d + n_classes) numbers in single precision for d = 64, 22 kB of text and
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

    def score(self, observations: Observations) -> FloatArray:
        """Shape (n,): the squared distance.

        Raises:
            PolicyError: the rule was not calibrated.
        """
        # 0 until calibrated: a real model has at least two classes.
        if not self._n_classes:
            raise self._uncalibrated()
        self._check_classes(observations, self._n_classes)
        features = projected(observations, self.name, self._gaussians.n_features)
        # Row by row, as the adaptive rules do: a matrix product would round differently for other batch sizes.
        away = map(self._gaussians.whitened, features, observations.classes.tolist())
        return np.array([row @ row for row in away], np.float64)

    def state(self) -> JsonObject:
        """The threshold, means and covariance."""
        return {**super().state(), "gaussians": self._gaussians.state(), "n_classes": self._n_classes}

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        features, classes = projected(observations, self.name), observations.classes
        if not np.ptp(features, axis=0).any():
            raise InputError(
                f"the rule {self.name!r} needs calibration samples with different features, but all "
                f"{len(features)} are equal; calibrate on more samples of the stream"
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


class ModerateRule(ThresholdRule):
    r"""Keep the samples whose distance to the centre of their predicted class is closest to the median.

    With the distance d of the 64 projected features to the class's mean, the priority is
    :math:`-|d - m_c| / s_c`: :math:`m_c` is the median of the class's calibration distances and
    :math:`s_c` the median of :math:`|d - m_c|`, so classes are comparable. A class without calibration
    samples gets mean, median and spread of all samples. State: 64 numbers in single precision and 2 more for every
    class, 380 bytes of text.

    References:
        Xia, Liu, Yu, Shen, Han and Liu (2023), Moderate coreset: a universal method of data selection for
        real-world data-efficient deep learning.
    """

    name: ClassVar[str] = "moderate"

    def __init__(self, retention: float = 0.6) -> None:
        super().__init__(retention)
        self._centres: FloatArray | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The features."""
        return frozenset({"features"})

    def score(self, observations: Observations) -> FloatArray:
        """Shape (n,): the negative distance to the median, in spreads of the class.

        Raises:
            PolicyError: the rule was not calibrated.
        """
        if self._centres is None:
            raise self._uncalibrated()
        self._check_classes(observations, len(self._centres))
        features, classes = (
            projected(observations, self.name, self._centres.shape[1]),
            observations.classes,
        )
        distances = _lengths(features - self._centres[classes])
        with np.errstate(over="ignore"):
            return within_float64(-np.abs(distances - self._medians[classes]) / self._scales[classes])

    def state(self) -> JsonObject:
        """The threshold; centre, median and spread of every class."""
        state = super().state()
        assert self._centres is not None  # noqa: S101  # calibration sets both together
        return {
            **state,
            "n_features": self._centres.shape[1],
            "centres": packed(self._centres),
            "medians": self._medians.tolist(),
            "scales": self._scales.tolist(),
        }

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        features, classes = projected(observations, self.name), observations.classes
        order = fixed_order(features, classes)
        features, classes = features[order], classes[order]
        # Fallback for classes without calibration samples, and the scale where a class has no spread.
        of_all = _centre_median_scale(features, 1.0)
        found = [
            _centre_median_scale(features[classes == label], of_all[2])
            if (classes == label).any()
            else of_all
            for label in range(n_classes)
        ]
        centres, medians, scales = zip(*found, strict=True)
        self._centres, self._medians, self._scales = np.stack(centres), np.array(medians), np.array(scales)
        super()._calibrate(observations)

    def _restore(self, state: JsonObject) -> None:
        centres = unpacked("centres", state["centres"], None, state["n_features"])
        self._medians = numbers("medians", state["medians"], len(centres))
        self._scales = numbers("scales", state["scales"], len(centres))
        if not len(centres) or not (self._scales > 0).all():
            raise ValueError("every class must have a centre, a median and a scale above 0")
        super()._restore(state)
        self._centres = centres


def _centre_median_scale(features: FloatArray, scale: float) -> tuple[FloatArray, float, float]:
    """Mean, median distance and its spread; ``scale`` where the spread is zero."""
    centre = (
        features.mean(axis=0).astype("<f4").astype(np.float64)
    )  # rounded as in a saved state, so a restored rule decides identically
    distances = _lengths(features - centre)
    median = float(np.median(distances))
    return centre, median, float(np.median(np.abs(distances - median))) or scale


def _lengths(rows: FloatArray) -> FloatArray:
    # Row by row: one sum over many rows may round differently for batches of different sizes.
    return np.array([np.sqrt(row @ row) for row in rows], np.float64)


_HARDEST = 0.1
_STRATA = 20


class CoverageRule(ChanceRule):
    r"""Discard the hardest tenth, then keep at random so that all levels of difficulty fill the same quota.

    The difficulty is 1 - (p_1 - p_2). Samples harder than nine tenths of the calibration samples are
    discarded (fewer where the keep rate r is above 0.9); the range of the others is divided into 20 strata of
    equal width. The quota m solves :math:`\sum_i \min(n_i, m) = r n` on the calibration
    counts :math:`n_i`, and a sample of stratum i is kept with probability
    :math:`\min(1, m / n_i)`. A stratum that calibration never saw is kept. State: the generator and 22
    numbers.

    References:
        Zheng, Liu, Lai and Prakash (2023), Coverage-centric coreset selection for high pruning rates;
        here with the margin as score and one fraction of hardest samples for all keep rates.
    """

    name: ClassVar[str] = "coverage"

    def __init__(self, retention: float = 0.6, seed: int = 0) -> None:
        super().__init__(retention, seed)
        self._probabilities: FloatArray | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({"logits"})

    def state(self) -> JsonObject:
        """The generator, the range of difficulties and the keep probability of every stratum."""
        if self._probabilities is None:
            raise self._uncalibrated()
        return {
            **super().state(),
            "easiest": self._easiest,
            "hardest": self._hardest,
            "probabilities": self._probabilities.tolist(),
        }

    def _calibrate(self, observations: Observations) -> None:
        ascending = np.sort(MarginRule().score(observations))
        n = len(ascending)
        # Never discard more than the keep rate allows, or the quota could not be filled.
        n_dropped = int(min(_HARDEST, 1 - self._retention) * n)
        self._easiest, self._hardest = float(ascending[0]), float(ascending[n - n_dropped - 1])
        kept = ascending[ascending <= self._hardest]
        counts = np.bincount(self._strata(kept), minlength=_STRATA)
        quota = equal_quota(counts, min(self._retention * n / len(kept), 1.0))
        self._probabilities = np.minimum(1.0, quota / np.maximum(counts, 1e-9))

    def _restore(self, state: JsonObject) -> None:
        super()._restore(state)
        self._easiest, self._hardest = (number(name, state[name]) for name in ("easiest", "hardest"))
        probabilities = numbers("probabilities", state["probabilities"], _STRATA)
        if self._easiest > self._hardest or not ((probabilities > 0) & (probabilities <= 1)).all():
            raise ValueError(
                f"probabilities must be in (0, 1] and easiest must not exceed hardest, got {probabilities} from "
                f"{self._easiest} to {self._hardest}"
            )
        self._probabilities = probabilities

    def _decide(self, observations: Observations) -> Decisions:
        if self._probabilities is None:
            raise self._uncalibrated()
        difficulty = MarginRule().score(observations)
        probability = self._probabilities[self._strata(difficulty)]
        # The hardest samples are often mislabelled or out-of-distribution; the paper discards them too.
        probability[difficulty > self._hardest] = 0.0
        return drawn(self._draw(observations), probability, self.name)

    def _strata(self, difficulty: FloatArray) -> IntArray:
        # Only inner edges: easier or harder samples than calibration saw fall into the outer strata.
        inner_edges = np.linspace(self._easiest, self._hardest, _STRATA + 1)[1:-1]
        return np.searchsorted(inner_edges, difficulty, "left")
