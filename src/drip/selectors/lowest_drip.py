"""Lowest DRIP score of every predicted class: keep where the heatmap is weak."""

from __future__ import annotations

from typing import ClassVar

from drip.selectors.base import RankedSelector


class LowestDripSelector(RankedSelector):
    """Keep the lowest DRIP scores of every predicted class."""

    name: ClassVar[str] = "lowest-drip"
    score_name: ClassVar[str] = "drip"
