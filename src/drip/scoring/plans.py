"""What a plan is, and the one that is exact for every head: autograd through the head alone.

A plan gives the activations A and, for a linear combination of logits, the gradient dy/dA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from drip.errors import ModelError
from drip.scoring.tap import gradient_at, run_tapped
from drip.scoring.target import Target

RELATIVE_TOLERANCE = 1e-5
"""Two routes are equal when they differ by at most this share of the largest absolute value (A12)."""


Gradients = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass.

    Attributes:
        logits: Shape (N, C).
        activations: A in the layout (N, K, *positions).
        gradients: Maps classes (N,) and rivals (N,) or None to the gradient of the classes'
            logits, minus the rivals' where given, in the shape of A or with positions of length one.
        mean_gradients: The same, averaged over the positions, which then have length one: all that
            Grad-CAM asks for, and cheaper than ``gradients`` where a plan can average beforehand.
    """

    logits: Tensor
    activations: Tensor
    gradients: Gradients
    mean_gradients: Gradients


class Plan(Protocol):
    """A way to the gradient at the target layer."""

    name: ClassVar[str]

    def run(self, x: Tensor) -> Pass:
        """Run the model on a batch."""
        ...


@dataclass(frozen=True, slots=True)
class HeadVjp:
    """Backward through the head alone: the backbone runs without a graph, A is where the graph starts.

    Exact for every head: what happens before A does not enter dy/dA.

    References:
        DRIP paper, eqs. 1-2.
    """

    model: nn.Module
    target: Target
    name: ClassVar[str] = "head VJP"

    def run(self, x: Tensor) -> Pass:
        """Run the model on a batch; everything after the target layer builds a graph."""
        logits, leaf = self.graph(x)
        return _autograd_pass(logits, leaf, self.target)

    def graph(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits with their graph, and the target layer's output, where it starts."""
        kept: list[Tensor] = []

        def start_graph(output: Tensor) -> Tensor:
            torch.set_grad_enabled(True)
            leaf = output.detach().requires_grad_()
            kept.append(leaf)
            return leaf.clone()  # a later in-place operation must not reach A

        with torch.no_grad():  # puts back what start_graph switches
            target = self.target
            logits = run_tapped(self.model, target.module, target.functions, x, start_graph)
        return logits, kept[0]


def top_two(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the largest and second largest logit of each row, the lower index first on ties."""
    best = logits.argmax(1)
    rest = logits.scatter(1, best.unsqueeze(1), -torch.inf)
    return best, rest.argmax(1)


def _autograd_pass(logits: Tensor, tapped: Tensor, target: Target) -> Pass:
    """A pass whose gradients come from the graph between ``tapped`` and ``logits``."""

    def gradients(classes: Tensor, rivals: Tensor | None) -> Tensor:
        seed = torch.zeros_like(logits).scatter_(1, classes.unsqueeze(1), 1.0)
        if rivals is not None:
            seed.scatter_(1, rivals.unsqueeze(1), -1.0)
        # the rows are independent in eval mode, so one backward gives every sample its own gradient;
        # the graph stays for a second seed and goes with the pass
        gradient = gradient_at(tapped, logits, seed, keep_graph=True)
        if gradient is None:
            raise ModelError("the logits must depend on the target layer, they do not; choose another layer")
        return target.arrange(gradient)

    def mean_gradients(classes: Tensor, rivals: Tensor | None) -> Tensor:
        gradient = gradients(classes, rivals)
        # half precision would round the mean
        return in_single(gradient).mean(tuple(range(2, gradient.dim())), keepdim=True)

    return Pass(logits.detach(), target.arrange(tapped.detach()), gradients, mean_gradients)


def in_single(values: Tensor) -> Tensor:
    """Values of half precision in single precision, which holds them all; any others as they are."""
    return values.float() if values.element_size() < 4 else values
