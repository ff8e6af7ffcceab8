"""Rules that keep what the model is unsure of, from logits (and features) alone.

Each score is written so that it loses no digits where the model is nearly certain: most of a stream is, and
the threshold lies there at high keep rates.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.rules.base import ChanceRule, ThresholdRule, drawn, softmax_ratios, within_float64
from drip.rules.state import numbers
from drip.types import Decisions, FloatArray, JsonObject, Observations


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


class LeastConfidenceRule(ThresholdRule):
    """Keep the samples with the largest 1 - p_1; that number is the priority.

    References:
        Lewis and Gale (1994), A sequential algorithm for training text classifiers.
    """

    name: ClassVar[str] = "least-confidence"

    def score(self, observations: Observations) -> FloatArray:
        """Shape (n,): 1 - p_1, the probability of all other classes."""
        others = softmax_ratios(observations.logits)[:, 1:].sum(axis=1)
        # Not 1 - p1 as written, which is 0 for every prediction above 1 - 1e-16.
        return np.asarray(others / (1.0 + others))


class EnergyRule(ThresholdRule):
    r"""Keep the samples with the largest free energy :math:`-\log \sum_c e^{f_c}`; that is the priority.

    Softmax ignores a constant added to all logits, the energy does not: it is large where the model sees
    little evidence for any class. State: one number.

    References:
        Liu, Wang, Owens and Li (2020), Energy-based out-of-distribution detection; temperature 1.

    >>> from drip.types import Observations
    >>> rows = Observations(np.array([0]), np.array([[0.0, 0.0]]), {})
    >>> EnergyRule().score(rows).round(3).tolist()
    [-0.693]
    """

    name: ClassVar[str] = "energy"

    def score(self, observations: Observations) -> FloatArray:
        """Shape (n,): the free energy of the logits."""
        # The largest logit is taken out of the sum, or the exponential overflows at 710.
        largest = observations.logits.max(axis=1).astype(np.float64)
        return np.asarray(-(largest + np.log(softmax_ratios(observations.logits).sum(axis=1))))


class GradientNormRule(ThresholdRule):
    r"""Keep the samples with the largest gradient of the loss in the last layer; its norm is the priority.

    With the softmax probabilities p, the predicted class :math:`\hat y` in place of the label and the pooled
    features z, the gradient of the cross entropy in weights and bias is
    :math:`(p - e_{\hat y}) \otimes (z, 1)`, and its norm :math:`\|p - e_{\hat y}\| \sqrt{z^T z + 1}`.
    State: one number.

    References:
        Ash, Zhang, Krishnamurthy, Langford and Agarwal (2020), Deep batch active learning by diverse,
        uncertain gradient lower bounds (the length of its embedding); Paul, Ganguli and Dziugaite (2021),
        Deep learning on a data diet (the first factor, with labels).
    """

    name: ClassVar[str] = "gradient-norm"

    @property
    def needs(self) -> frozenset[str]:
        """Logits and features."""
        return frozenset({"logits", "features"})

    def score(self, observations: Observations) -> FloatArray:
        """Shape (n,): the norm."""
        assert observations.features is not None  # noqa: S101  # checked as a need
        ratios = softmax_ratios(observations.logits)
        tail = ratios[:, 1:]
        others = tail.sum(axis=1)
        errors = np.sqrt(others * others + (tail * tail).sum(axis=1)) / (1.0 + others)
        rows = np.ascontiguousarray(observations.features, np.float64)
        with np.errstate(over="ignore"):
            # Row by row: one sum over many rows may round differently for batches of different sizes.
            lengths = within_float64(np.sqrt([row @ row + 1.0 for row in rows]))
            return within_float64(errors * lengths)


_POINTS = 500


class SoftMarginRule(ChanceRule):
    r"""Keep with probability :math:`u^{(1-r)/r}` for the rank u of 1 - (p_1 - p_2) among calibration samples.

    Ranks of new samples are uniform in [0, 1], so the mean probability is the keep rate r,
    :math:`\int_0^1 u^{(1-r)/r} du = r`; tied samples get the mean probability of their ranks. Every
    probability is known and positive, except for samples clearer than the clearest of up to 500 evenly
    ranked calibration samples. Weights of one over the probability therefore correct estimates on the kept
    samples for the selection. State: the generator and those numbers.

    References:
        Horvitz and Thompson (1952), A generalization of sampling without replacement from a finite
        universe (the weights); Beygelzimer, Dasgupta and Langford (2009), Importance weighted active learning
        (probabilities that follow the uncertainty). The exponent is the one with mean r.
    """

    name: ClassVar[str] = "soft-margin"

    def __init__(self, retention: float = 0.6, seed: int = 0) -> None:
        super().__init__(retention, seed)
        self._points: FloatArray | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({"logits"})

    def state(self) -> JsonObject:
        """The generator and evenly ranked calibration scores in ascending order."""
        if self._points is None:
            raise self._uncalibrated()
        return {**super().state(), "points": self._points.tolist()}

    def _calibrate(self, observations: Observations) -> None:
        ascending = np.sort(MarginRule().score(observations))
        # Evenly spaced ranks describe the distribution; all scores would make a state of megabytes.
        n_points = min(len(ascending), _POINTS)
        middles = (np.arange(n_points) + 0.5) / n_points
        self._points = ascending[(middles * len(ascending)).astype(np.int64)]

    def _restore(self, state: JsonObject) -> None:
        super()._restore(state)
        points = numbers("points", state["points"], None)
        if not len(points) or (np.diff(points) < 0).any():
            raise ValueError("points must be at least one number, in ascending order")
        self._points = points

    def _decide(self, observations: Observations) -> Decisions:
        if self._points is None:
            raise self._uncalibrated()
        probability = self._probability(MarginRule().score(observations), self._points)
        return drawn(self._draw(observations), probability, self.name)

    def _probability(self, score: FloatArray, points: FloatArray) -> FloatArray:
        """Mean of u^((1-r)/r) over the ranks u of a tie; the value at one rank for a score between points."""
        r = self._retention
        below = np.searchsorted(points, score, "left") / len(points)
        up_to = np.searchsorted(points, score, "right") / len(points)
        width = up_to - below
        tie = r * (up_to ** (1 / r) - below ** (1 / r)) / np.where(width > 0, width, 1.0)
        return np.asarray(np.clip(np.where(width > 0, tie, below ** ((1 - r) / r)), 0.0, 1.0))
