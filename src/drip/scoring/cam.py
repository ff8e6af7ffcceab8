"""Class activation maps as pure functions of activations and gradients, without a model or a hook.

Everywhere ``activations`` A has shape (N, K, *positions): N samples, K feature maps, one axis of positions
for signals and two for images. ``gradients`` G = dy/dA has the same shape, or positions of length one if the
gradient is the same at every position, as after average pooling; broadcasting then saves the copies. The two
functions of the paper's score accept NumPy arrays as well.

A *map* is the weighted sum before the ReLU, a *heatmap* the same after it. They are separate because the
contrastive score needs the sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ArrayT = TypeVar("ArrayT", Tensor, NDArray[np.floating[Any]])


def gradcam_map(activations: ArrayT, gradients: ArrayT) -> ArrayT:
    r"""Grad-CAM before the ReLU: :math:`M_p = \sum_k a_k A_{k,p}` with :math:`a_k = \frac1Z \sum_p G_{k,p}`.

    Z is the number of positions p. The weights a_k are the channels' mean gradients.

    Args:
        activations: A, shape (N, K, *positions).
        gradients: dy/dA, shape (N, K, *positions) or (N, K, 1, ...).

    Returns:
        M, shape (N, *positions), in the unit of y divided by Z.

    References:
        DRIP paper, eqs. 1-3; Selvaraju et al. 2017, arXiv:1610.02391.

    >>> a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> gradcam_map(a, torch.tensor([[[1.0, 3.0], [-1.0, 1.0]]]))
    tensor([[2., 4.]])
    """
    n, n_maps = gradients.shape[:2]
    weights = gradients.reshape(n, n_maps, -1)
    weights = weights.mean(2) if weights.shape[2] > 1 else weights[:, :, 0]
    # (weights * activations).sum(1) would first write a copy as large as the activations.
    summed = weights[:, None] @ activations.reshape(n, n_maps, -1)
    return summed.reshape(n, *activations.shape[2:])


def hirescam_map(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""HiResCAM before the ReLU: :math:`M_p = \sum_k G_{k,p} A_{k,p}`, without averaging the gradient.

    Equal to :func:`gradcam_map` where the gradient is the same at every position.

    Args:
        activations: A, shape (N, K, *positions).
        gradients: dy/dA, shape (N, K, *positions) or (N, K, 1, ...).

    Returns:
        M, shape (N, *positions).

    References:
        Draelos and Carin 2020, arXiv:2011.08891.

    >>> a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> hirescam_map(a, torch.tensor([[[1.0, 3.0], [-1.0, 1.0]]]))
    tensor([[-2., 10.]])
    """
    return (gradients * activations).sum(1)


def layercam_map(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""LayerCAM before the ReLU: :math:`M_p = \sum_k \max(0, G_{k,p}) A_{k,p}`.

    Equal to :func:`hirescam_map` where no gradient is negative.

    Args:
        activations: A, shape (N, K, *positions).
        gradients: dy/dA, shape (N, K, *positions) or (N, K, 1, ...).

    Returns:
        M, shape (N, *positions).

    References:
        Jiang et al. 2021, LayerCAM, IEEE TIP 30, eqs. 5-7.

    >>> a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> layercam_map(a, torch.tensor([[[1.0, 3.0], [-1.0, 1.0]]]))
    tensor([[ 1., 10.]])
    """
    return hirescam_map(activations, gradients.relu())


def gradcam_plus_plus_map(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""Grad-CAM++ before the ReLU: :math:`M_p = \sum_k w_k A_{k,p}`, positive gradients weighted by position.

    .. math:: w_k = \sum_p \alpha_{k,p} \max(0, G_{k,p}), \qquad
              \alpha_{k,p} = \frac{G_{k,p}^2}{2 G_{k,p}^2 + G_{k,p}^3 \sum_q A_{k,q}}

    A position whose gradient or denominator is zero has alpha 0. The factor exp(y) of the positive
    gradients is left out, as is common: it is one constant per sample and overflows for large logits.

    Args:
        activations: A, shape (N, K, *positions).
        gradients: dy/dA, shape (N, K, *positions) or (N, K, 1, ...).

    Returns:
        M, shape (N, *positions).

    References:
        Chattopadhyay et al. 2018, arXiv:1710.11063, eqs. 5, 19.

    >>> a = torch.tensor([[[1.0, 1.0]]])
    >>> gradcam_plus_plus_map(a, torch.tensor([[[1.0, 0.0]]]))
    tensor([[0.2500, 0.2500]])
    """
    flat = activations.flatten(2)
    gradient = gradients.flatten(2)
    n_positions = flat.shape[2]
    # Numerator and denominator of the formula are divided by G^2: squares of small gradients underflow.
    denominator = 2.0 + gradient * flat.sum(2, keepdim=True)
    usable = (gradient != 0) & (denominator != 0)
    # The inner where keeps the division finite: the outer one selects, but both branches are computed.
    alpha = torch.where(usable, 1.0 / torch.where(usable, denominator, 1.0), 0.0)
    weights = (alpha * gradient.relu()).mean(2, keepdim=True) * n_positions
    return gradcam_map(activations, weights)


MAPS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "gradcam": gradcam_map,
        "hirescam": hirescam_map,
        "gradcam++": gradcam_plus_plus_map,
        "layercam": layercam_map,
    }
)
"""Every method by its name in scorers and policies. A new map needs one function and a line here."""


def mean_over_positions(maps: ArrayT) -> ArrayT:
    """Mean of maps (N, *positions) over their positions, shape (N,): the score of a heatmap.

    References:
        DRIP paper, eqs. 5 and 8.

    >>> mean_over_positions(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([3.])
    """
    flat = maps.reshape(len(maps), -1)
    # Not mean(): NumPy's is Python code and takes about twice as long as its sum for one small map.
    means: ArrayT = flat.sum(1) / flat.shape[1]
    return means


def normalise(heatmaps: Tensor) -> Tensor:
    r"""Min-max normalisation per map to [0, 1]: :math:`(H - \min H) / (\max H - \min H)`.

    A constant map has no range and becomes zeros; so does every map of one position.

    Args:
        heatmaps: H, shape (N, *positions).

    Returns:
        The normalised maps, same shape.

    >>> normalise(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    tensor([[0.0000, 0.5000, 1.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    flat = heatmaps.flatten(1)
    low = flat.amin(1, keepdim=True)
    span = flat.amax(1, keepdim=True) - low
    constant = span == 0  # not "~(span > 0)": that would turn NaN into zeros and hide it
    scaled = torch.where(constant, 0.0, (flat - low) / torch.where(constant, 1.0, span))
    return scaled.reshape(heatmaps.shape)
