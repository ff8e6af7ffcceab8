"""Rules for researchers: recorded experiments compare them, and policies may name them.

:func:`drip.rules.available` does not list them, but :func:`drip.rules.create` and policies accept their names.
First the variants of ``drip``, then scores of uncertainty and of features, draws, and rules that change with
every sample. :class:`drip.rules.uncertainty.MixedMarginRule` (``mixed-margin``) is one of them, and the score of
``adaptive-margin``.
"""

from __future__ import annotations

from fractions import Fraction
from math import erfc, sqrt
from typing import ClassVar
from zlib import crc32

import numpy as np

from drip.errors import InputError
from drip.rules.adaptive import ComposedRule
from drip.rules.base import (
    BaseRule,
    ChanceRule,
    RankedRule,
    ThresholdRule,
    WindowRule,
    count_to_keep,
    deterministic,
    softmax_ratios,
    within_float64,
)
from drip.rules.chance import equal_quota
from drip.rules.parts import RateController, RunningQuantile, Target
from drip.rules.state import count, number, numbers, packed, unpacked
from drip.rules.uncertainty import MarginRule, fixed_order, projected
from drip.rules.windows import DripRule
from drip.types import Decisions, FloatArray, IntArray, JsonObject, Observations


class InverseDripRule(DripRule):
    """Keep inside the per-class window of the DRIP score, discard outside.

    The window holds the kept part of every class, ``retention``. The priority is minus the distance to the
    window. A class that never discards keeps everything.
    """

    name: ClassVar[str] = "inverse-drip"
    windows_key: ClassVar[str] = "kept_windows"

    @property
    def window_fraction(self) -> float:
        """Part of every class inside its window: the kept part."""
        return self._retention

    def _decide(self, observations: Observations) -> Decisions:
        inside, discards, distance = self._distances(observations)
        # Zero minus the distance, not a sign change: the middle of the window gets priority 0.0, not -0.0.
        return deterministic(inside | ~discards, 0.0 - distance, "inside-window", "outside-window")


class MaxLogitWindowRule(WindowRule):
    """Discard inside the per-class window of the largest logit, keep outside.

    With global average pooling and one linear layer the DRIP score is nearly this logit, so a comparison
    with ``drip`` shows what the heatmap adds.
    """

    name: ClassVar[str] = "max-logit-window"
    windows_key: ClassVar[str] = "logit_windows"

    @property
    def needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({"logits"})

    def score(self, observations: Observations) -> FloatArray:
        """The largest logit, shape (n,)."""
        return np.asarray(observations.logits.max(axis=1))


class MarginWindowRule(ThresholdRule):
    r"""Keep a range of ranks of 1 - (p_1 - p_2) that starts below the hardest :math:`(1 - r) / 4`.

    The hardest samples are often mislabelled, out-of-distribution or beyond the network. The rule skips them
    and keeps the next r of the calibration samples; the lower the keep rate r, the more it skips. The
    priority is the distance to the nearer end of the range, negative outside; samples that tie at an end
    are all kept. State: two numbers.

    References:
        Choi, Ki and Chung (2024), BWS: best window selection based on sample scores for data pruning across
        broad ranges. There the start is found with the labels of the samples.
    """

    name: ClassVar[str] = "margin-window"

    def __init__(self, retention: float = 0.6) -> None:
        super().__init__(retention)
        self._upper = 0.0

    def score(self, observations: Observations) -> FloatArray:
        """Shape (n,): 1 - (p_1 - p_2)."""
        return MarginRule().score(observations)

    def state(self) -> JsonObject:
        """Both ends of the range; ``limit`` is the lower one."""
        return {**super().state(), "upper": self._upper}

    def _calibrate(self, observations: Observations) -> None:
        descending = np.sort(self.score(observations))[::-1]
        n = len(descending)
        # A quarter of what is discarded lies above the range; the published search for the start needs labels.
        start = int((1 - Fraction(str(self._retention))) / 4 * n)
        self._upper = float(descending[start])
        self._limit = float(descending[start + count_to_keep(n, self._retention) - 1])

    def _restore(self, state: JsonObject) -> None:
        super()._restore(state)
        self._upper = number("upper", state["upper"])
        if self._upper < number("limit", state["limit"]):
            raise ValueError(f"the upper end must not be below the lower one, got {self._upper}")

    def _decide(self, observations: Observations) -> Decisions:
        if self._limit is None:
            raise self._uncalibrated()
        score = self.score(observations)
        # The distance to the nearer end is positive exactly inside, so it decides and orders eviction at once.
        inside = np.minimum(score - self._limit, self._upper - score)
        return deterministic(inside >= 0, inside, self.name, "outside-window")


class LowestDripRule(RankedRule):
    """Keep the lowest DRIP scores of every predicted class."""

    name: ClassVar[str] = "lowest-drip"
    score_name: ClassVar[str] = "drip"


class LowestContrastRule(RankedRule):
    """Keep the lowest contrastive scores of every predicted class.

    The score is the mean of the rectified map of the difference of the two largest logits.
    """

    name: ClassVar[str] = "lowest-contrast"
    score_name: ClassVar[str] = "contrast"


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


class ReservoirRule(ChanceRule):
    """Give each sample a uniform random priority and keep those above 1 - retention.

    A full store evicts the lowest priorities, so it always holds a uniform sample without replacement of
    everything that arrived (the default keep rate is 1).

    References:
        Vitter (1985), Random sampling with a reservoir; Li (1994), random priorities.
    """

    name: ClassVar[str] = "reservoir"

    def __init__(self, retention: float = 1.0, seed: int = 0) -> None:
        super().__init__(retention, seed)

    def _decide(self, observations: Observations) -> Decisions:
        n = len(observations)
        priority = self._draw(observations)
        return Decisions(
            priority >= 1.0 - self._retention, priority, np.full(n, float(self._retention)), ["reservoir"] * n
        )


def _drawn(draw: FloatArray, probability: FloatArray, kept: str) -> Decisions:
    """Keep a sample where its draw, uniform in [0, 1), is below its probability.

    The priority is 1 - draw / probability. A store over budget that evicts the lowest priorities then keeps
    every sample with its own probability times one common factor, as long as none reaches 1.

    >>> _drawn(np.array([0.3, 0.3]), np.array([0.6, 0.2]), "coin").retain.tolist()
    [True, False]
    """
    # Strictly below: a probability of 0 never keeps, and a draw never reaches 1.
    retain = draw < probability
    with np.errstate(over="ignore"):
        priority = within_float64(1.0 - draw / np.maximum(probability, np.finfo(np.float64).tiny))
    return Decisions(retain, priority, probability, [kept if row else "not-drawn" for row in retain.tolist()])


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
        return _drawn(self._draw(observations), probability, self.name)

    def _probability(self, score: FloatArray, points: FloatArray) -> FloatArray:
        """Mean of u^((1-r)/r) over the ranks u of a tie; the value at one rank for a score between points."""
        r = self._retention
        below = np.searchsorted(points, score, "left") / len(points)
        up_to = np.searchsorted(points, score, "right") / len(points)
        width = up_to - below
        tie = r * (up_to ** (1 / r) - below ** (1 / r)) / np.where(width > 0, width, 1.0)
        return np.asarray(np.clip(np.where(width > 0, tie, below ** ((1 - r) / r)), 0.0, 1.0))


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
        return _drawn(self._draw(observations), probability, self.name)

    def _strata(self, difficulty: FloatArray) -> IntArray:
        # Only inner edges: easier or harder samples than calibration saw fall into the outer strata.
        inner_edges = np.linspace(self._easiest, self._hardest, _STRATA + 1)[1:-1]
        return np.searchsorted(inner_edges, difficulty, "left")


class AdaptiveRandomRule(ComposedRule):
    """A :class:`drip.rules.adaptive.ComposedRule` without any preference between samples.

    The score is a checksum of logits and seed in [0, 1): as good as a random draw, but the same whenever the
    same sample arrives again.
    """

    name: ClassVar[str] = "adaptive-random"

    def _scoring_rule(self) -> ThresholdRule:
        return _Checksum(self._params["seed"])


class _Checksum(ThresholdRule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self._start = crc32(str(seed).encode())

    def score(self, observations: Observations) -> FloatArray:
        rows = np.ascontiguousarray(observations.logits, "<f8")
        # A checksum, not a generator: the same sample gets the same score again, so repeats stay comparable.
        return np.array([crc32(row.tobytes(), self._start) / 2**32 for row in rows], np.float64)


# Samples that the moving threshold remembers: long enough for a keep rate of 1 %, short enough to follow drift.
_WINDOW = 500


class InformationGainRule(BaseRule):
    r"""Keep the samples that add most information to the kept ones: :math:`\log(1 + h\, z^T A z)` with uncertainty h.

    h is 1 - (p_1 - p_2). z are the 64 projected features minus their calibration mean, scaled so that the mean
    of :math:`z^T z` in calibration is one. :math:`A = (I + \sum h z z^T)^{-1}` sums over the kept samples: at
    first the calibration samples with the largest h, then every sample that the rule keeps (a rank-one
    update). For a Bayesian linear model the score is twice the information of a label with noise 1 / h. A
    sample is kept when its score is among the highest of the last 500;
    :class:`drip.rules.parts.RateController` sets how many of them. The priority is the rank of the score
    among them. State: A in double precision, 44 kB of text, and 570 numbers.

    Args:
        retention: Keep rate, in (0, 1).

    Complexity: 2 d squared multiplications per sample for d = 64.

    References:
        MacKay (1992), Information-based objective functions for active data selection; Sun,
        Calandriello, Hu, Li and Titsias (2022), Information-theoretic online memory selection for continual
        learning.
    """

    name: ClassVar[str] = "information-gain"

    def __init__(self, retention: float = 0.6) -> None:
        self._target = Target(retention)
        self._rate = RateController(self._target)
        self._inverse: FloatArray | None = None

    @property
    def params(self) -> JsonObject:
        """Retention."""
        return self._target.params

    @property
    def needs(self) -> frozenset[str]:
        """Logits and features."""
        return frozenset({"logits", "features"})

    def state(self) -> JsonObject:
        """Mean and scale of the features, A, the last scores and the rate."""
        if self._inverse is None:
            raise self._uncalibrated()
        return {
            "mean": self._mean.tolist(),
            "scale": self._scale,
            "inverse": packed(self._inverse, "<f8"),
            "recent": self._recent.state(),
            "rate": self._rate.state(),
        }

    def _calibrate(self, observations: Observations) -> None:
        features, uncertainty = projected(observations, self.name), MarginRule().score(observations)
        order = fixed_order(features, uncertainty)
        features, uncertainty = features[order], uncertainty[order]
        # Centred, or the first direction of A would be spent on the common mean of all activations.
        self._mean = features.mean(axis=0)
        self._scale = float(np.sqrt(((features - self._mean) ** 2).sum(axis=1).mean())) or 1.0
        rows = (features - self._mean) / self._scale
        first = MarginRule(self._target.retention or 0.5)
        kept = first.calibrate(observations).decide_many(observations[order]).retain
        information = np.eye(rows.shape[1]) + (rows[kept] * uncertainty[kept, None]).T @ rows[kept]
        inverse = np.linalg.inv(information)
        # The inverse of a symmetric matrix is symmetric up to rounding; restore checks exact symmetry.
        self._inverse = np.ascontiguousarray((inverse + inverse.T) / 2)
        gains = [self._gain(row, h)[0] for row, h in zip(rows, uncertainty.tolist(), strict=True)]
        self._recent = RunningQuantile.spread(_WINDOW, np.array(gains))
        self._rate = RateController(self._target)

    def _restore(self, state: JsonObject) -> None:
        self._mean, self._scale = numbers("mean", state["mean"], None), number("scale", state["scale"])
        n = len(self._mean)
        inverse = unpacked("inverse", state["inverse"], n, n, dtype="<f8")
        if self._scale <= 0 or not np.array_equal(inverse, inverse.T):
            raise ValueError("scale must be above 0 and inverse symmetric")
        self._recent = RunningQuantile.restored(_WINDOW, state["recent"], n_values=_WINDOW)
        self._rate.restore(state["rate"])
        self._inverse = inverse

    def _gain(self, row: FloatArray, uncertainty: float) -> tuple[float, FloatArray, float]:
        """Score of a row z, A z, and h z'A z."""
        assert self._inverse is not None  # noqa: S101  # calibrated
        direction = self._inverse @ row
        # Rounding may make a tiny quadratic form negative, and its logarithm NaN.
        leverage = max(uncertainty * float(row @ direction), 0.0)
        return float(np.log1p(leverage)), direction, leverage

    def _decide(self, observations: Observations) -> Decisions:
        if self._inverse is None:
            raise self._uncalibrated()
        features = projected(observations, self.name, len(self._mean))
        uncertainty = MarginRule().score(observations).tolist()
        n = len(observations)
        retain, priority = np.zeros(n, np.bool_), np.zeros(n)
        for i, row in enumerate((features - self._mean) / self._scale):
            value, direction, leverage = self._gain(row, uncertainty[i])
            retain[i] = value >= self._recent.limit(self._rate.share())
            # Rank among the last scores: raw scores shrink as A grows, so old and new samples would not compare.
            priority[i] = self._recent.rank(value)
            # After the decision: a sample must not influence its own threshold.
            self._recent.add(value)
            if retain[i]:
                self._rate.kept()
                # Sherman-Morrison update. The outer product of a row with itself keeps A exactly symmetric, which
                # `_restore` checks.
                self._inverse -= np.outer(direction, direction) * (uncertainty[i] / (1 + leverage))
        return deterministic(retain, priority, self.name, "below-limit")


_RIDGE = 0.01  # as in the paper's code
_LEAST = 1e-100  # keeps volumes positive, so all samples are equal where all gradients vanish


class VessalRule(ChanceRule):
    r"""Keep with a probability proportional to the volume that a sample's gradient adds to the kept ones.

    With the softmax probabilities p, the predicted class :math:`\hat y` and the 64 projected features z,
    the gradient of the last layer is :math:`(p - e_{\hat y}) \otimes z`. It is sketched to 64 numbers,
    :math:`g = \sum_c (p - e_{\hat y})_c\, (z \odot s_c)` with fixed random signs :math:`s_c` for every class,
    which keeps inner products in expectation. With :math:`A = (0.01\, I + \sum g g^T)^{-1}` over the kept
    samples and :math:`v = g^T A g`, a sample is kept with probability :math:`\min(1, \zeta v)`. The
    factor :math:`\zeta` makes the mean probability over the last 500 samples equal to what
    :class:`drip.rules.parts.RateController` asks for to hold the keep rate. State: A and 500 numbers in
    double precision, 49 kB of text, and 10 numbers.

    Args:
        retention: Keep rate, in (0, 1).
        seed: Seed of the draws.

    Complexity: 2 d squared multiplications per sample for d = 64, plus d for every class.

    References:
        Saran, Yousefi, Krishnamurthy, Langford and Ash (2023), Streaming active learning with deep neural
        networks. The paper uses whole gradients, takes :math:`\zeta` from the mean of v under a running
        covariance, and fills the shortfall caused by the bound at 1 at random at the end of a pool.
    """

    name: ClassVar[str] = "vessal"

    def __init__(self, retention: float = 0.6, seed: int = 0) -> None:
        self._target = Target(retention)  # rejects a keep rate of 1, which the base class allows
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
            raise ValueError(
                "inverse must be symmetric, recent volumes must be above 0, and there must "
                "be at least one class"
            )
        super()._restore(state)
        self._rate.restore(state["rate"])
        self._signs = _signs(n_classes, n_features)
        self._recent = recent
        self._inverse = inverse

    def _gradients(self, observations: Observations, features: FloatArray) -> FloatArray:
        """The sketches g, shape (n, d)."""
        rows = np.ascontiguousarray(observations.logits, np.float64)
        with np.errstate(over="ignore"):  # a gap beyond float64 becomes a ratio of zero
            errors = np.exp(rows - rows.max(axis=1, keepdims=True))
        totals = errors.sum(axis=1)
        every = np.arange(len(rows))
        errors[every, observations.classes] = 0.0
        errors[every, observations.classes] = -errors.sum(axis=1)
        errors /= totals[:, None]
        # Row by row: a matrix product may round differently for batches of different sizes.
        mixed = [row @ self._signs for row in errors]
        return features * np.array(mixed, np.float64).reshape(features.shape)

    def _volume(self, gradient: FloatArray) -> tuple[float, FloatArray]:
        """The volume v, at least ``_LEAST``, and A g."""
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
                f"the rule {self.name!r} was calibrated for {n_classes} classes, but this model has "
                f"{observations.logits.shape[1]}; calibrate it with the model that scores the stream",
                code="policy-other-classes",
            )
        features = projected(observations, self.name, len(self._inverse))
        draw = self._draw(observations)
        probability = np.empty(len(observations))
        for row, gradient in enumerate(self._gradients(observations, features)):
            volume, direction = self._volume(gradient)
            self._recent.add(volume)
            probability[row] = min(1.0, volume * _factor(self._recent.ordered, self._rate.share()))
            if draw[row] < probability[row]:
                self._rate.kept()
                # Sherman-Morrison update. The outer product of a row with itself keeps A exactly symmetric, which
                # `_restore` checks.
                self._inverse -= np.outer(direction, direction) / (1 + volume)
        return _drawn(draw, probability, self.name)


def _factor(ascending: FloatArray, share: float) -> float:
    """The number f for which the mean of min(1, f v) over positive volumes v is ``share``, in [0, 1].

    >>> _factor(np.array([1.0, 2.0, 97.0]), 0.5)
    0.16666666666666666
    """
    n = len(ascending)
    # All but the j smallest have probability 1, and the j smallest share the rest; the largest j for which
    # none of them exceeds 1 is the solution.
    rest = share * n - np.arange(n - 1, -1, -1)
    factors = rest / np.cumsum(ascending)
    fits = np.flatnonzero(factors <= 1.0 / ascending)
    return float(factors[fits[-1]])


def _signs(n_classes: int, n_features: int) -> FloatArray:
    """Signs drawn with PCG64 from seed 0, shape (n_classes, n_features)."""
    return np.where(np.random.Generator(np.random.PCG64(0)).random((n_classes, n_features)) < 0.5, 1.0, -1.0)


# The constants of the published strategy, also used by scikit-activeml.
_STEP = 0.01
_DELTA = 1.0
_BUDGET_WINDOW = 100


class VariableUncertaintyRule(ChanceRule):
    r"""Keep samples less certain than a random multiple of a threshold, while there is budget.

    With the largest probability p and :math:`\eta` drawn from a normal distribution of mean and standard
    deviation 1, a sample is kept when :math:`p < \theta \eta`: with probability
    :math:`\Phi(1 - p / \theta)`, which is stored. Then :math:`\theta`, 1 at first, is multiplied by
    0.99 if the sample was kept, else by 1.01. The spent budget is :math:`u \leftarrow 0.99\, u +` 1 if kept.
    While :math:`u / 100 \ge r` nothing is kept and :math:`\theta` does not change.

    With steps of equal size the threshold settles where half of the arrivals pass, so a budget above one half
    would never be spent. Above one half the budget is therefore one of discards, 1 - r: while it lasts the
    same threshold decides, then everything is kept. There is nothing to calibrate. State: the generator and
    two numbers.

    References:
        Zliobaite, Bifet, Pfahringer and Holmes (2014), Active learning with drifting streaming data: the
        variable uncertainty strategy with randomization and its estimate of the spent budget; the same as
        ``RandomVariableUncertaintyBudgetManager`` of scikit-activeml.
    """

    name: ClassVar[str] = "variable-uncertainty"

    def __init__(self, retention: float = 0.6, seed: int = 0) -> None:
        super().__init__(retention, seed)
        self._theta, self._spent = 1.0, 0.0

    @property
    def needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({"logits"})

    def state(self) -> JsonObject:
        """The generator, the threshold and the budget spent recently."""
        return {**super().state(), "theta": self._theta, "spent": self._spent}

    def _restore(self, state: JsonObject) -> None:
        super()._restore(state)
        self._theta, self._spent = number("theta", state["theta"]), number("spent", state["spent"])
        if self._theta <= 0 or self._spent < 0:
            raise ValueError(f"theta must be above 0 and spent at least 0, got {self._theta}, {self._spent}")

    def _decide(self, observations: Observations) -> Decisions:
        certainty = 1.0 / softmax_ratios(observations.logits).sum(axis=1)
        draw = self._draw(observations)
        probability = np.empty(len(observations))
        # Budget the rarer outcome: above one half, discards are counted instead of kept samples.
        spends_on_kept = self._retention <= 0.5
        budget = _BUDGET_WINDOW * min(self._retention, 1 - self._retention)
        for row, value in enumerate(certainty.tolist()):
            has_budget = self._spent < budget
            otherwise = 0.0 if spends_on_kept else 1.0
            passing = 0.5 * erfc((value / self._theta - 1) / (_DELTA * sqrt(2)))
            probability[row] = passing if has_budget else otherwise
            kept = bool(draw[row] < probability[row])
            if has_budget:
                self._theta *= 1 - _STEP if kept else 1 + _STEP
            self._spent = self._spent * (1 - 1 / _BUDGET_WINDOW) + (kept == spends_on_kept)
        return _drawn(draw, probability, self.name)
