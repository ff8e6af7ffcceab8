"""The paper's rule: discard what has a typical DRIP score for its predicted class."""

from __future__ import annotations

from typing import ClassVar

from drip.errors import InputError
from drip.selectors.base import WindowSelector
from drip.thresholds import MIN_CLASS_COUNT, Method
from drip.types import FloatArray, JsonObject, Observations


class DripSelector(WindowSelector):
    """Discard inside the per-class window of the DRIP score, keep outside (eq. 9).

    Args:
        discard_fraction: Share of every class to discard, in (0, 1); the paper's DPW.
        method: ``min_std`` (section III-A) or ``histogram_peak`` (Algorithm 1).
        min_class_count: Calibration scores below which a class never discards.
        score: Name of the score: ``drip``, or ``contrast`` for the contrastive map.

    References:
        DRIP paper, section III.
    """

    name: ClassVar[str] = "drip"

    def __init__(
        self,
        discard_fraction: float = 0.4,
        method: Method = "min_std",
        min_class_count: int = MIN_CLASS_COUNT,
        score: str = "drip",
    ) -> None:
        super().__init__(discard_fraction, method, min_class_count)
        if not isinstance(score, str):
            raise InputError(f"score must be the name of a score, got {score!r}")
        self._score_name = score

    @property
    def needs(self) -> frozenset[str]:
        """The score."""
        return frozenset({self._score_name})

    @property
    def params(self) -> JsonObject:
        """Those of the window, and the score's name."""
        return {**super().params, "score": self._score_name}

    def score(self, observations: Observations) -> FloatArray:
        """The named score, shape (n,)."""
        return observations.named_scores[self._score_name]
