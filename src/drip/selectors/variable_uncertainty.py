"""Variable uncertainty: a threshold that falls when it is passed and rises when it is not."""

from __future__ import annotations

from math import erfc, sqrt
from typing import ClassVar

import numpy as np

from drip.selectors.base import ChanceSelector, softmax_ratios
from drip.selectors.draws import drawn
from drip.selectors.states import number
from drip.types import Decisions, JsonObject, Observations

_STEP = 0.01
_DELTA = 1.0
_WINDOW = 100


class VariableUncertaintySelector(ChanceSelector):
    r"""Keep what is less certain than a random multiple of a threshold, while there is budget.

    With the largest probability p and :math:`\eta` drawn from a normal distribution of mean and standard
    deviation 1, a sample is kept when :math:`p < \theta \eta`: with probability
    :math:`\Phi(1 - p / \theta)`, which is stored. Then :math:`\theta`, 1 at first, is multiplied by
    0.99, else by 1.01. What was spent of the budget is :math:`u \leftarrow 0.99\, u +` 1 if kept; nothing
    is kept and :math:`\theta` stays while :math:`u / 100 \ge r`.

    Steps of equal size pass one half of the arrivals, so that a budget above one half would never be spent.
    There, the budget is one of discards, 1 - r: while it lasts the same threshold decides, then all is kept.
    Nothing is calibrated. State: the generator and two numbers.

    References:
        Zliobaite, Bifet, Pfahringer and Holmes (2014), Active learning with drifting streaming data: the
        variable uncertainty strategy with randomization, and its estimate of what was spent; the same as
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
        """The generator, the threshold and what was spent lately."""
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
        spends_on_kept = self._retention <= 0.5
        budget = _WINDOW * min(self._retention, 1 - self._retention)
        for row, value in enumerate(certainty.tolist()):
            has_budget = self._spent < budget
            otherwise = 0.0 if spends_on_kept else 1.0
            passing = 0.5 * erfc((value / self._theta - 1) / (_DELTA * sqrt(2)))
            probability[row] = passing if has_budget else otherwise
            kept = bool(draw[row] < probability[row])
            if has_budget:
                self._theta *= 1 - _STEP if kept else 1 + _STEP
            self._spent = self._spent * (1 - 1 / _WINDOW) + (kept == spends_on_kept)
        return drawn(draw, probability, self.name)
