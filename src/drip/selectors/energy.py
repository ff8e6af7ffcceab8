"""Energy: keep where no class has a large logit."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import ThresholdSelector, softmax_ratios
from drip.types import FloatArray, Observations


class EnergySelector(ThresholdSelector):
    r"""Keep the samples with the largest free energy :math:`-\log \sum_c e^{f_c}`; that is the priority.

    Softmax forgets a constant that is added to all logits; the energy is large where the network sees
    little of any class. State: one number.

    References:
        Liu, Wang, Owens and Li (2020), Energy-based out-of-distribution detection; temperature 1.

    >>> from drip.types import Observations
    >>> rows = Observations(np.array([0]), np.array([[0.0, 0.0]]), {})
    >>> EnergySelector().utility(rows).round(3).tolist()
    [-0.693]
    """

    name: ClassVar[str] = "energy"

    def utility(self, observations: Observations) -> FloatArray:
        """Shape (n,): the free energy of the logits."""
        largest = observations.logits.max(axis=1).astype(np.float64)
        return np.asarray(-(largest + np.log(softmax_ratios(observations.logits).sum(axis=1))))
