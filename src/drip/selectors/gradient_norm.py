"""Gradient norm: keep what would change the last layer most."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import ThresholdSelector, softmax_ratios, within_float64
from drip.types import FloatArray, Observations


class GradientNormSelector(ThresholdSelector):
    r"""Keep the samples with the largest gradient of the loss in the last layer; its norm is the priority.

    With the softmax probabilities p, the predicted class :math:`\hat y` taken for the true one and the
    pooled features z, the gradient of the cross entropy in weights and bias is
    :math:`(p - e_{\hat y}) \otimes (z, 1)`, and its norm :math:`\|p - e_{\hat y}\| \sqrt{z^T z + 1}`.
    State: one number.

    References:
        Ash, Zhang, Krishnamurthy, Langford and Agarwal (2020), Deep batch active learning by diverse,
        uncertain gradient lower bounds: the length of its embedding; Paul, Ganguli and Dziugaite (2021),
        Deep learning on a data diet: the first factor, of true labels.
    """

    name: ClassVar[str] = "gradient-norm"

    @property
    def needs(self) -> frozenset[str]:
        """Logits and features."""
        return frozenset({"logits", "features"})

    def utility(self, observations: Observations) -> FloatArray:
        """Shape (n,): the norm."""
        assert observations.features is not None  # noqa: S101  # checked as a need
        ratios = softmax_ratios(observations.logits)
        tail = ratios[:, 1:]
        others = tail.sum(axis=1)
        errors = np.sqrt(others * others + (tail * tail).sum(axis=1)) / (1.0 + others)
        rows = np.ascontiguousarray(observations.features, np.float64)
        with np.errstate(over="ignore"):
            # Row by row: a sum over many rows may round differently for batches of different sizes.
            lengths = within_float64(np.sqrt([row @ row + 1.0 for row in rows]))
            return within_float64(errors * lengths)
