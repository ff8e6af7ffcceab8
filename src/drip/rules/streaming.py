"""Rules from the literature that change with every sample: information gain, VeSSAL, variable uncertainty.

Their state grows with what they keep, but only inside a matrix or a number of fixed size.
"""

from __future__ import annotations

from math import erfc, sqrt
from typing import ClassVar

import numpy as np

from drip.errors import InputError
from drip.rules.base import BaseRule, ChanceRule, deterministic, drawn, softmax_ratios
from drip.rules.features import fixed_order, projected
from drip.rules.parts import RateController, RunningQuantile, Target
from drip.rules.state import count, number, numbers, packed, unpacked
from drip.rules.uncertainty import MarginRule
from drip.types import Decisions, FloatArray, JsonObject, Observations

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
            probability[row] = min(1.0, volume * factor(self._recent.ordered, self._rate.share()))
            if draw[row] < probability[row]:
                self._rate.kept()
                # Sherman-Morrison update. The outer product of a row with itself keeps A exactly symmetric, which
                # `_restore` checks.
                self._inverse -= np.outer(direction, direction) / (1 + volume)
        return drawn(draw, probability, self.name)


def factor(ascending: FloatArray, share: float) -> float:
    """The number f for which the mean of min(1, f v) over positive volumes v is ``share``, in [0, 1].

    >>> factor(np.array([1.0, 2.0, 97.0]), 0.5)
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
        return drawn(draw, probability, self.name)
