"""The plan without a graph: the gradient of linear layers with ReLU between, and the proof that it applies.

A model may change after the choice of its plan: hooks, exchanged layers, state that ``forward`` reads. So
each pass is checked for what the formula rests on, and one that fails goes by the head's autograd instead.
"""
# ruff: noqa: SLF001  # torch keeps hooks in private names only

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np  # noqa: F401  # used by a doctest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from drip.scoring.cam import ArrayT
from drip.scoring.plans import RELATIVE_TOLERANCE, HeadVjp, Pass, in_single
from drip.scoring.tap import Call, Tap

_FEW_ROWS = 8
"""Up to so many rows the gradients are averaged after the products, above it the weight before them."""

_LEAST_SQUARE = 1e-25
"""A squared length below which float32 has lost digits."""


class Forward(NamedTuple):
    """What a pass without a graph gives.

    Attributes:
        logits: Shape (N, C).
        activations: A in the layout (N, K, *positions).
        calls: What the linear layers read and gave, in the order of execution.
        pooled: Whether the first of them is to read the mean of A over its positions.
    """

    logits: Tensor
    activations: Tensor
    calls: list[Call]
    pooled: bool


@dataclass(frozen=True, slots=True)
class ClosedForm:
    r"""No graph and no backward: the gradient of a head of linear layers with ReLU between is written down.

    For average pooling and one linear layer, and for flattening and L of them:

    .. math:: \frac{\partial y_c}{\partial A_{k,p}} = \frac{W_{c,k}}{Z}, \qquad
              \frac{\partial y_c}{\partial \mathrm{vec}(A)} =
              W_1^\top \bigl(m_1 \circ \cdots W_{L-1}^\top (m_{L-1} \circ W_L[c])\bigr)

    Z is the number of positions, W_i the weight of layer i, read anew at each call, and m_i is 1
    where its output is positive after the ReLU, else 0. Dropout is the identity in eval mode.
    Whether a model's head is of this kind is found out and tried in ``choose_plan``; whether it still
    is, at each pass, from hooks and values. What no value shows stays unseen: a ``forward`` that
    detaches a tensor of its own only after the choice was made.

    Attributes:
        head: The plan for passes that the formula does not cover.
        linears: W_1 to W_L in the order of execution.
        modules: Every module that runs behind the target layer or around it, and the layer.
        tap: Takes hold of the activation and of what the linear layers read and gave.
        edits: The operations in place on what the tap holds, as of a ReLU; see :class:`Tapped`.
    """

    head: HeadVjp
    linears: tuple[nn.Linear, ...]
    modules: tuple[nn.Module, ...]
    tap: Tap
    edits: tuple[int, ...]
    name: ClassVar[str] = "closed form"

    def run(self, x: Tensor) -> Pass:
        """Run the model on a batch; after average pooling the gradients have positions of length one."""
        return self.attempt(x) or self.head.run(x)

    def attempt(self, x: Tensor) -> Pass | None:
        """The pass where the formula covers it."""
        forward = self.forward(x)
        if forward is None or not _is_followed(forward):
            return None
        logits, activations, calls, pooled = forward
        hidden = [call.given for call in calls]
        ones = (1,) * (activations.ndim - 2)
        n_positions = math.prod(activations.shape[2:])

        def back(first: Tensor, classes: Tensor, rivals: Tensor | None) -> Tensor:
            """Rows of the product of all layers' weights, with ``first`` in place of W_1."""
            weights = [first, *(linear.weight.detach() for linear in self.linears[1:])]
            gradient = weights[-1][classes]
            if rivals is not None:
                gradient = gradient - weights[-1][rivals]
            for weight, after_relu in zip(weights[-2::-1], hidden[:0:-1], strict=True):
                gradient = (gradient * (after_relu > 0)) @ weight
            return gradient

        def gradients(classes: Tensor, rivals: Tensor | None) -> Tensor:
            gradient = back(self.linears[0].weight.detach(), classes, rivals)
            if pooled:  # the positions of this input, which may be larger than the example
                return (gradient / n_positions).reshape(*gradient.shape, *ones)
            return gradient.reshape(activations.shape)

        def mean_gradients(classes: Tensor, rivals: Tensor | None) -> Tensor:
            if pooled:
                return gradients(classes, rivals)
            n, n_maps = activations.shape[:2]
            if n <= _FEW_ROWS:
                full = back(self.linears[0].weight.detach(), classes, rivals)
                gradient = full.reshape(n, n_maps, n_positions).sum(2) / n_positions
            else:  # averaging before the product saves the larger part of many rows' work
                first = self.linears[0].weight.detach()
                folded = first.reshape(len(first), n_maps, n_positions).sum(2) / n_positions
                gradient = back(folded, classes, rivals)
            return gradient.reshape(n, n_maps, *ones)

        return Pass(logits, activations, gradients, mean_gradients)

    def forward(self, x: Tensor) -> Forward | None:
        """One pass, or None where the formula does not cover it.

        What it rests on: nothing is hooked to the head, the linear layers are torch's own and ran once
        each, nobody edited what they read and gave, the first read A flattened, and the last gave the
        logits. The caller still has to ask :func:`agrees`, in the arrays that it computes with, whether
        each other layer read the ReLU of what the one before gave, and the first the mean of A if
        ``pooled``.
        """
        if not self._is_plain(x):
            return None
        logits, tapped, calls, edits = self.tap.run(self.head.model, x)
        if edits != self.edits or len(calls) != len(self.linears) or not _same(logits, calls[-1].result):
            return None
        activations = self.head.target.arrange(tapped)
        first = calls[0].given
        pooled = first.shape[1:] == activations.shape[1:2]
        if not (pooled or _same(first, activations.flatten(1))):
            return None
        return Forward(logits, activations, calls, pooled)

    def _is_plain(self, x: Tensor) -> bool:
        """Whether no hook, class, override or precision stands between the formula and the head."""
        if (
            of_all_modules._global_forward_hooks
            or of_all_modules._global_forward_pre_hooks
            or of_all_modules._global_backward_hooks
            or of_all_modules._global_backward_pre_hooks
            or torch.is_autocast_enabled(x.device.type)
        ):
            return False
        for linear in self.linears:
            if type(linear) is not nn.Linear or "forward" in linear.__dict__:
                return False
        layer = self.head.target.module
        for module in self.modules:
            if module._backward_hooks or module._backward_pre_hooks:
                return False
            # those of the layer itself run before the activation is taken
            if (module._forward_hooks or module._forward_pre_hooks) and module is not layer:
                return False
        return True


def _is_followed(forward: Forward) -> bool:
    """What :meth:`ClosedForm.forward` leaves to its caller, on tensors."""
    _, activations, calls, pooled = forward
    if pooled and not agrees(calls[0].given, activations.flatten(2).mean(2)):
        return False
    return all(agrees(after.given, before.result.relu()) for before, after in pairwise(calls))


def agrees(found: ArrayT, expected: ArrayT) -> bool:
    """Whether what a layer read is what the closed form takes it for, to 1e-5 (A12) or the last digits.

    In terms of lengths, as these take the fewest kinds of calls. False also where squares say nothing:
    all zero, infinite, or NaN.

    >>> agrees(np.array([2.0, 4.0]), np.array([2.0, 4.0])), agrees(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
    (True, False)
    """
    difference, values = (found - expected).reshape(-1), found.reshape(-1)
    tolerance = RELATIVE_TOLERANCE
    if isinstance(difference, Tensor) and isinstance(values, Tensor):
        tolerance = max(tolerance, 4 * torch.finfo(difference.dtype).eps)  # half precision is coarser
        difference, values = in_single(difference), in_single(values)
    square = float(values.dot(values))
    return _LEAST_SQUARE < square < math.inf and float(difference.dot(difference)) <= tolerance**2 * square


def _same(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors hold the same values, at no cost where they are one or views of one."""
    if found is expected:
        return True
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.data_ptr() == expected.data_ptr() and found.stride() == expected.stride():
        return True
    return torch.equal(found, expected)
