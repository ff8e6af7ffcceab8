"""The rule of the paper: a window per class on the class-activation score."""

from __future__ import annotations

from typing import ClassVar

from drip.errors import InputError
from drip.rules.base import WindowRule
from drip.types import FloatArray, JsonObject, Observations
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
