"""Rules on class-activation scores: the paper's window per class, its variants, and rankings.

``drip`` is the published rule. The other rules show what each part of it contributes: the heatmap
(``max-logit-window``), the side that is kept (``inverse-drip``), the window itself (``lowest-drip``).
"""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

import numpy as np

from drip.errors import InputError
from drip.rules.base import RankedRule, ThresholdRule, WindowRule, count_to_keep, deterministic
from drip.rules.state import number
from drip.rules.uncertainty import MarginRule
from drip.types import Decisions, FloatArray, JsonObject, Observations
from drip.windows import MIN_CLASS_COUNT, Method


class DripRule(WindowRule):
    """Discard inside the per-class window of the DRIP score, keep outside (eq. 9).

    Args:
        retention: Keep rate of every class, in (0, 1): one minus the paper's DPW.
        method: ``min_std`` (section III-A) or ``histogram_peak`` (Algorithm 1).
        min_class_count: A class with fewer calibration scores uses the window of all classes together.
        score: Name of the score: ``drip``, or ``contrast`` for the contrastive map.

    References:
        DRIP paper, section III.
    """

    name: ClassVar[str] = "drip"

    def __init__(
        self,
        retention: float = 0.6,
        method: Method = "min_std",
        min_class_count: int = MIN_CLASS_COUNT,
        score: str = "drip",
    ) -> None:
        super().__init__(retention, method, min_class_count)
        # The name is looked up in every batch; a wrong type would fail there with a worse message.
        if not isinstance(score, str):
            raise InputError(f"score must be the name of a score, got {score!r}")
        self._score_name = score

    @property
    def needs(self) -> frozenset[str]:
        """The score."""
        return frozenset({self._score_name})

    @property
    def params(self) -> JsonObject:
        """The window's arguments and the name of the score."""
        return {**super().params, "score": self._score_name}

    def score(self, observations: Observations) -> FloatArray:
        """The named score, shape (n,)."""
        return observations.named_scores[self._score_name]


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
