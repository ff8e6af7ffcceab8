"""Adaptive margin: close calls at a held rate, behind gates."""

from __future__ import annotations

from typing import ClassVar

from drip.selectors.base import ThresholdSelector
from drip.selectors.composed import ComposedSelector
from drip.selectors.mixed_margin import MixedMarginSelector


class AdaptiveMarginSelector(ComposedSelector):
    """The utility is that of :class:`drip.selectors.mixed_margin.MixedMarginSelector`."""

    name: ClassVar[str] = "adaptive-margin"

    def _utility_rule(self) -> ThresholdSelector:
        return MixedMarginSelector()
