"""Grad-CAM scores of a closed form in NumPy, for models on the CPU; all other maps are the work of plans.

After a small network's pass the caches hold its weights, and each further kind of call costs more than
its arithmetic. So few kinds are used: means are products with a constant vector, the sign of what a
ReLU gave is its derivative, and one sample is vectors and ``np.dot``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from drip.scoring.closed_form import ClosedForm, agrees

Floats = NDArray[np.floating[Any]]


class HostScores(NamedTuple):
    """What one pass gives of N samples.

    Attributes:
        classes: Predicted classes, the lowest index on ties, shape (N,).
        logits: Shape (N, C).
        scores: Mean of the heatmap, shape (N,).
        features: Mean of A over its positions, shape (N, K).
    """

    classes: NDArray[np.int64]
    logits: Floats
    scores: Floats
    features: Floats


def host_scores(plan: ClosedForm, x: Tensor) -> HostScores | None:
    r"""Classes, logits, Grad-CAM scores and pooled features of a batch in float32 on the CPU.

    .. math:: \mathrm{score} = \frac1Z \sum_p \max\Bigl(0, \sum_k a_k A_{k,p}\Bigr), \quad
              a_k = \frac1Z \sum_p \frac{\partial y_c}{\partial A_{k,p}}

    The weights are read anew at each call: a change through ``.data`` leaves no sign. None where the
    closed form does not cover the pass.
    """
    forward = plan.forward(x)
    if forward is None:
        return None
    values = forward.logits.numpy()
    maps = forward.activations.numpy()
    given = [call.given.numpy() for call in forward.calls]
    before_relu = [call.result.numpy() for call in forward.calls[:-1]]
    weights = [linear.weight.numpy(force=True) for linear in plan.linears]
    follow = _one_row if len(values) == 1 else _rows
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
        for before, after in zip(before_relu, given[1:], strict=True):
            if not agrees(after, np.maximum(before, 0)):
                return None
        found = follow(values, maps, given[1:], weights)
        return None if forward.pooled and not agrees(given[0], found.features) else found


def _one_row(
    logits: Floats, activations: Floats, after_relu: Sequence[Floats], weights: Sequence[Floats]
) -> HostScores:
    maps = activations.reshape(activations.shape[1], -1)
    n_maps, n_positions = maps.shape
    mean = _mean(n_positions)
    classes = logits.argmax(1)
    gradient = weights[-1][classes[0]]
    for weight, hidden in zip(weights[-2::-1], after_relu[::-1], strict=True):
        gradient = np.dot(gradient * np.sign(hidden[0]), weight)
    if len(gradient) == n_maps:  # after average pooling
        gradient = gradient / n_positions
    else:
        gradient = np.dot(gradient.reshape(n_maps, n_positions), mean)
    heatmap = np.maximum(np.dot(gradient, maps), 0)
    score = np.dot(heatmap, mean)
    return HostScores(classes, logits, score[None], np.dot(maps, mean)[None])


def _rows(
    logits: Floats, activations: Floats, after_relu: Sequence[Floats], weights: Sequence[Floats]
) -> HostScores:
    maps = activations.reshape(*activations.shape[:2], -1)
    n, n_maps, n_positions = maps.shape
    mean = _mean(n_positions)
    first = weights[0]
    if first.shape[1] == n_maps:  # after average pooling
        first = first / n_positions
    else:  # averaging before the products saves the larger part of their work
        first = np.dot(first.reshape(-1, n_positions), mean).reshape(len(first), n_maps)
    folded = [first, *weights[1:]]
    classes = logits.argmax(1)
    gradient = folded[-1].take(classes, 0)
    for weight, hidden in zip(folded[-2::-1], after_relu[::-1], strict=True):
        gradient = np.dot(gradient * np.sign(hidden), weight)
    heatmaps = np.maximum(np.matmul(gradient[:, None], maps)[:, 0], 0)
    features = np.dot(maps.reshape(-1, n_positions), mean).reshape(n, n_maps)
    return HostScores(classes, logits, np.dot(heatmaps, mean), features)


@lru_cache(maxsize=8)
def _mean(n_positions: int) -> Floats:
    """The vector whose product with values is their mean."""
    return np.full(n_positions, 1 / n_positions, dtype=np.float32)
