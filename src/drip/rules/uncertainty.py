"""Rules that keep what the model is unsure of, by its logits, or has not seen, by its features.

Each score of logits is written so that it loses no digits where the model is nearly certain: most of a stream is, and
the threshold lies there at high keep rates.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from drip.errors import InputError
from drip.rules.base import ThresholdRule, count_to_keep, softmax_ratios
from drip.rules.parts import ClassGaussians, held_out_distances
from drip.rules.parts.gaussians import project
from drip.rules.state import count, packed, unpacked
from drip.types import FloatArray, IntArray, JsonObject, Observations
from drip.windows import sort_by_class


class MarginRule(ThresholdRule):
    """Keep the samples with the largest 1 - (p_1 - p_2); that number is the priority.

    References:
        Scheffer, Decomain and Wrobel (2001), Active hidden Markov models for information extraction.
    """

    name: ClassVar[str] = "margin"

    def score(self, observations: Observations) -> FloatArray:
        """Shape (n,): 1 - (p_1 - p_2) of the softmax probabilities."""
        ratios = softmax_ratios(observations.logits)
        others = ratios[:, 1:].sum(axis=1)
        second = ratios[:, 1:2].sum(axis=1)  # zero for a model with one class
        # Not 1 - (p1 - p2) as written: that difference rounds to 0 for every confident prediction.
        return np.asarray((others + second) / (1.0 + others))


class EntropyRule(ThresholdRule):
    """Keep the samples with the largest H = -sum_c p_c log p_c; that number is the priority.

    References:
        Shannon (1948); Settles (2009), Active learning literature survey.
    """

    name: ClassVar[str] = "entropy"

    def score(self, observations: Observations) -> FloatArray:
        """Shape (n,): the entropy of the softmax probabilities in nats."""
        ratios = softmax_ratios(observations.logits)
        total = ratios.sum(axis=1)
        # H = log S - sum r log r / S with S = 1 + tail; log1p keeps the digits of a nearly certain prediction.
        tail = ratios[:, 1:]
        spread = (tail * np.log(np.maximum(tail, np.finfo(np.float64).tiny))).sum(axis=1)
        return np.asarray(np.log1p(tail.sum(axis=1)) - spread / total)


_POINTS = 101
_FEWEST = 3
_ALL_POINTS = 5000


class MixedMarginRule(ThresholdRule):
    """Keep the samples whose margin is small among all and among those of their predicted class.

    The score is the mean of two ranks in [0, 1] of 1 - (p_1 - p_2): among all calibration samples and
    among those of the same predicted class (percentiles, linear in between). The first alone spends the
    whole budget on the two or three classes that the model confuses; the second alone keeps even the
    clearest samples of the classes that it knows best. A class that calibration never saw has rank 1.

    State: 101 numbers per class, 1.1 kB of text each. From 50 classes on there are fewer, 5,000 for all
    classes together but at least 3 each, so the state stays small with a thousand classes.

    This is the score of ``adaptive-margin``; on its own it is not offered.
    """

    name: ClassVar[str] = "mixed-margin"

    def __init__(self, retention: float = 0.6) -> None:
        super().__init__(retention)
        self._margin = MarginRule(retention)
        self._overall: FloatArray | None = None
        self._within: FloatArray

    def score(self, observations: Observations) -> FloatArray:
        """Shape (n,): mean of the two ranks.

        Raises:
            PolicyError: the rule was not calibrated.
        """
        if self._overall is None:
            raise self._uncalibrated()
        self._check_classes(observations, len(self._within))
        values = self._margin.score(observations)
        overall = _ranks(values, self._overall)
        # A class without calibration samples counts as most uncertain.
        within = np.ones(len(values))
        for label in np.unique(observations.classes).tolist():
            mine = observations.classes == label
            if np.isfinite(self._within[label, 0]):
                within[mine] = _ranks(values[mine], self._within[label])
        return (overall + within) / 2

    def state(self) -> JsonObject:
        """The threshold, and the percentiles of every class (null without samples) and of all samples."""
        state = super().state()
        assert self._overall is not None  # noqa: S101  # calibration sets both together
        rows = [packed(row, "<f8") if np.isfinite(row[0]) else None for row in self._within]
        return {**state, "percentiles": [*rows, packed(self._overall, "<f8")]}

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        values = self._margin.score(observations)
        # Both ranks come from the same calibration scores, so their mean is comparable between classes.
        self._overall = np.quantile(values, np.linspace(0, 1, _POINTS))
        shares = np.linspace(0, 1, min(_POINTS, max(_FEWEST, _ALL_POINTS // n_classes)))
        self._within = np.full((n_classes, len(shares)), np.nan)
        for label, mine in enumerate(sort_by_class(values, observations.classes, n_classes)):
            if len(mine):
                self._within[label] = np.quantile(mine, shares)
        super()._calibrate(observations)

    def _restore(self, state: JsonObject) -> None:
        *texts, everything = state["percentiles"]
        self._overall = _percentiles(everything)
        rows = [None if text is None else _percentiles(text) for text in texts]
        length = next((len(row) for row in rows if row is not None), 1)
        nothing = np.full(length, np.nan)
        self._within = np.stack([nothing if row is None else row for row in rows])
        super()._restore(state)


def _percentiles(text: Any) -> FloatArray:
    points = unpacked("percentiles", text, None, dtype="<f8")
    if len(points) < _FEWEST or (np.diff(points) < 0).any():
        raise ValueError(f"there must be at least {_FEWEST} percentiles in ascending order")
    return points


def _ranks(values: FloatArray, percentiles: FloatArray) -> FloatArray:
    """Part of the calibration samples below each value; the middle of a tie of percentiles."""
    shares = np.linspace(0, 1, len(percentiles))
    low = np.interp(values, *_unique(percentiles, shares, last=False))
    high = np.interp(values, *_unique(percentiles, shares, last=True))
    return (low + high) / 2


def _unique(percentiles: FloatArray, shares: FloatArray, *, last: bool) -> tuple[FloatArray, FloatArray]:
    """Percentiles without repeats, each with its first or its last rank."""
    if last:
        values, rows = np.unique(percentiles[::-1], return_index=True)
        return values, shares[::-1][rows]
    values, rows = np.unique(percentiles, return_index=True)
    return values, shares[rows]


def projected(observations: Observations, name: str, n_features: int | None = None) -> FloatArray:
    """The projected features, shape (n, d), d at most 64: bounds state and cost whatever the network.

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
