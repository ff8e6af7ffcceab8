"""Lowest contrastive score of every predicted class: keep where two classes light up alike."""

from __future__ import annotations

from typing import ClassVar

from drip.selectors.base import RankedSelector


class LowestContrastSelector(RankedSelector):
    """Keep the lowest contrastive scores of every predicted class.

    The score is the mean of the rectified map of the difference of the two largest logits.
    """

    name: ClassVar[str] = "lowest-contrast"
    score_name: ClassVar[str] = "contrast"
