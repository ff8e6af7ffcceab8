"""Two exact ways to the gradient at the target layer; which is used is measured, not assumed.

A plan gives the activations A and, for a linear combination of logits, the gradient dy/dA.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from drip.errors import ModelError
from drip.scoring.head import count_linears
from drip.scoring.tap import Tap, gradient_at, run_tapped
from drip.scoring.target import Target

_PROBE_SCALES = (1e-2, 1.0, 1e2, 1e4)
"""Magnitudes of the noise that stands in for activations: what saturates must do so in one of them."""

_FEW_ROWS = 8
"""Up to so many rows the gradients are averaged after the products, above it the weight before them."""

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
            logits = _tapped(self.model, self.target, x, start_graph)
        return logits, kept[0]


@dataclass(frozen=True, slots=True)
class ClosedForm:
    r"""No graph and no backward: the gradient of a head of linear layers with ReLU between is written down.

    For average pooling and one linear layer, and for flattening and L of them:

    .. math:: \frac{\partial y_c}{\partial A_{k,p}} = \frac{W_{c,k}}{Z}, \qquad
              \frac{\partial y_c}{\partial \mathrm{vec}(A)} =
              W_1^\top \bigl(m_1 \circ \cdots W_{L-1}^\top (m_{L-1} \circ W_L[c])\bigr)

    Z is the number of positions, W_i the weight of layer i, read anew at each call, and m_i is 1
    where its output is positive after the ReLU, else 0. Dropout is the identity in eval mode.
    Whether a model's head is of this kind is found out and tried in :func:`choose_plan`.

    Attributes:
        model: The classifier.
        target: The target layer.
        linears: W_1 to W_L in the order of execution.
        tap: Takes hold of the activation and of the inputs of the linear layers.
    """

    model: nn.Module
    target: Target
    linears: tuple[nn.Linear, ...]
    tap: Tap
    name: ClassVar[str] = "closed form"

    def run(self, x: Tensor) -> Pass:
        """Run the model on a batch; after average pooling the gradients have positions of length one."""
        logits, activations, hidden = self.forward(x)
        ones = (1,) * (activations.ndim - 2)
        n_positions = math.prod(activations.shape[2:])
        pooled = self.linears[0].in_features == activations.shape[1]

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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits, activations in the layout (N, K, *positions), and the inputs of the linear layers."""
        logits, tapped, hidden = self.tap.run(self.model, x)
        if len(hidden) != len(self.linears):
            expected = f"the head's {len(self.linears)} linear layers must run once each"
            raise ModelError(
                f"{expected}, got {len(hidden)} calls; build a new scorer after exchanging layers"
            )
        return logits, self.target.arrange(tapped), hidden


@dataclass(frozen=True)
class Choice:
    """The chosen plan and what the choice rests on.

    Attributes:
        plan: The cheapest exact plan.
        seconds: Best time of one scored example batch by plan name, exact plans only.
        errors: Largest deviation from the head's autograd by plan name, as a share of the largest gradient.
    """

    plan: Plan
    seconds: dict[str, float]
    errors: dict[str, float]


def choose_plan(model: nn.Module, target: Target, example: Tensor) -> Choice:
    """Try the closed form on an example batch against the head's autograd; take the fastest exact plan.

    The closed form is tried where the graph between A and the logits holds nothing else than what it
    covers. It counts as exact when its logits and its gradients of the predicted class and of the two
    best classes' difference deviate by at most 1e-5 of the largest value, on the example and on
    activations that no input produced: noise of several magnitudes and offsets in place of A.

    Raises:
        ModelError: Autograd cannot reach the layer from the logits.
    """
    head = HeadVjp(model, target)
    classes, rivals = top_two(head.run(example).logits)
    truth = _values(head, example, classes, rivals)
    again = _largest_deviation(_values(head, example, classes, rivals), truth)
    if not again <= RELATIVE_TOLERANCE:  # also where it is NaN
        raise ModelError(
            f"two passes in eval mode must give the same finite gradient, they deviate by {again:.2g}; "
            "take what is random, or not differentiable at this input, out of the model's head"
        )
    seconds = {head.name: _best_time(head, example, classes)}
    errors = {head.name: 0.0}
    closed = _closed_form(head, example)
    if closed is None or not _agrees_on_noise(closed, head, example):
        return Choice(head, seconds, errors)
    errors[closed.name] = _largest_deviation(_values(closed, example, classes, rivals), truth)
    if not errors[closed.name] <= RELATIVE_TOLERANCE:  # also where it is NaN
        return Choice(head, seconds, errors)
    seconds[closed.name] = _best_time(closed, example, classes)
    # It has the fewer operations. A busy machine must not turn the choice round, or the last digits of
    # scores, and with them a policy's digest, would hang on the clock.
    slower = seconds[closed.name] > 2 * seconds[head.name]
    return Choice(head if slower else closed, seconds, errors)


def _closed_form(head: HeadVjp, example: Tensor) -> ClosedForm | None:
    """The closed form where the head consists of what it covers; still to be tried."""
    target = head.target
    linears = _linears_after(head.model, target, example)
    if not linears or len(linears) != count_linears(*head.graph(example)):
        return None
    used_once = len(set(linears)) == len(linears)
    fits = linears[0].in_features in (target.shape[0], math.prod(target.shape))
    if not (used_once and fits):
        return None
    return ClosedForm(head.model, target, linears, Tap(target.module, target.functions, linears))


def top_two(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the largest and second largest logit of each row, the lower index first on ties."""
    best = logits.argmax(1)
    rest = logits.scatter(1, best.unsqueeze(1), -torch.inf)
    return best, rest.argmax(1)


def _tapped(
    model: nn.Module, target: Target, x: Tensor, on_output: Callable[[Tensor], Tensor | None]
) -> Tensor:
    """Logits of one forward pass that hands the target's activation to ``on_output``."""
    return run_tapped(model, target.module, target.functions, x, on_output)


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
        return gradient.mean(tuple(range(2, gradient.dim())), keepdim=True)

    return Pass(logits.detach(), target.arrange(tapped.detach()), gradients, mean_gradients)


def _linears_after(model: nn.Module, target: Target, example: Tensor) -> tuple[nn.Linear, ...]:
    """The linear layers that run after the target layer, in order."""
    found: list[nn.Linear] = []
    handles = [
        module.register_forward_pre_hook(lambda linear, _inputs: found.append(linear))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        _tapped(model, target, example, lambda _output: found.clear())
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found)


def _agrees_on_noise(plan: ClosedForm, head: HeadVjp, example: Tensor) -> bool:
    """Whether the closed form holds with noise of every scale and sign in place of the layer's output."""
    return all(
        _agrees_on(scale, 0.5 * sign * scale, plan, head, example)
        for scale in _PROBE_SCALES
        for sign in (-1.0, 1.0)
    )


def _agrees_on(scale: float, offset: float, plan: ClosedForm, head: HeadVjp, example: Tensor) -> bool:
    """Whether the closed form holds on noise of this deviation and mean."""
    generator = torch.Generator()

    def noise(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return (torch.randn(output.shape, generator=generator.manual_seed(0)) * scale + offset).to(output)

    handle = plan.target.module.register_forward_hook(noise)  # runs before the hook of the plans
    try:
        logits = head.run(example).logits
        if not torch.isfinite(logits).all():  # half precision ends below the largest scale
            return True
        classes, rivals = top_two(logits)
        expected = _values(head, example, classes, rivals)
        return _largest_deviation(_values(plan, example, classes, rivals), expected) <= RELATIVE_TOLERANCE
    except (RuntimeError, ValueError, ModelError):  # the layers do not fit one another: another kind of head
        return False
    finally:
        handle.remove()


def _values(plan: Plan, example: Tensor, classes: Tensor, rivals: Tensor) -> tuple[Tensor, ...]:
    """Logits, gradients of the classes and of their lead over the rivals; the pass's graph is let go."""
    run = plan.run(example)
    full = (run.gradients(classes, None), run.gradients(classes, rivals))
    return run.logits, *full, run.mean_gradients(classes, None), run.mean_gradients(classes, rivals)


def _largest_deviation(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest of the deviations of values that belong together."""
    deviations = [_deviation(got, want) for got, want in zip(found, expected, strict=True)]
    return math.nan if any(map(math.isnan, deviations)) else max(deviations)  # max alone may lose a NaN


def _deviation(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference as a share of the largest absolute expected value."""
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((got - expected).abs().max() / scale)


def _best_time(plan: Plan, example: Tensor, classes: Tensor) -> float:
    """Shortest of five runs in seconds, gradient included."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        plan.run(example).gradients(classes, None)
        times.append(time.perf_counter() - start)
    return min(times)
