"""Reads off the graph what a head does with the activation; no plan and no gradient lives here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

_LEAF = "torch::autograd::AccumulateGrad"

_COVERED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("AddmmBackward0", "MmBackward0", "LinearBackward0"), "L"),
        "ReluBackward0": "R",
        "MeanBackward1": "M",
        **dict.fromkeys(
            (
                "CloneBackward0", "AliasBackward0", "ViewBackward0", "UnsafeViewBackward0",
                "ReshapeAliasBackward0", "SqueezeBackward0", "SqueezeBackward1", "SqueezeBackward2",
                "UnsqueezeBackward0", "PermuteBackward0", "TransposeBackward0",
            ),
            "",
        ),
    }
)  # fmt: skip
"""Operations of the closed form by the name of their node: linear, ReLU, mean; the others only move values.

Average pooling of a fixed window is not among them: on a larger input than the example it is no mean.
"""

_CLOSED_FORM = re.compile("L(R+L)*M*")
"""From the logits back to A: linear layers with ReLU between, and means before the first of them."""


def count_linears(logits: Tensor, leaf: Tensor) -> int:
    """How many linear layers lie between an activation and the logits; 0 where anything else does too.

    The graph is followed from the logits back to the activation. It names every differentiable
    operation that ran, whether a module, a function or a method called it, so a saturation that the
    example does not reach is seen all the same. Dropout in eval mode leaves no node.

    Args:
        logits: The head's result.
        leaf: The activation; requires a gradient.

    Returns:
        L for the head ``mean or flatten, linear, (ReLU, linear) x (L - 1)``, else 0.

    >>> import torch
    >>> a, weight = torch.ones(1, 4, 3, requires_grad=True), torch.ones(4, 2)
    >>> count_linears(a.mean(2) @ weight, a), count_linears(a.mean(2).clamp(max=5) @ weight, a)
    (1, 0)
    """
    node: Any = logits.grad_fn
    operations = ""
    while node is not None and getattr(node, "variable", None) is not leaf:
        operation = _COVERED.get(node.name())
        following = [parent for parent, _ in node.next_functions if _reaches(parent, leaf)]
        if operation is None or len(following) != 1:
            return 0
        operations += operation
        node = following[0]
    return operations.count("L") if node is not None and _CLOSED_FORM.fullmatch(operations) else 0


def _reaches(start: Any, leaf: Tensor) -> bool:
    """Whether the graph behind a node holds the leaf; the nodes of weights do not."""
    seen, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == _LEAF and node.variable is leaf:
            return True
        waiting.extend(parent for parent, _ in node.next_functions)
    return False
