"""Two exact ways to the gradient at the target layer; which is used is measured, not assumed.

A plan gives the activations A and, for a linear combination of logits, the gradient dy/dA.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from drip.errors import ModelError
from drip.scoring.tap import run_tapped
from drip.scoring.target import Target

_N_PROBES = 64

RELATIVE_TOLERANCE = 1e-5
"""Two routes are equal when they differ by at most this share of the largest absolute value (A12)."""


Array = Any
"""A tensor or a NumPy array: what works on both uses the operators that both have."""

Gradients = Callable[[Array, Array | None], Array]


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass; its arrays are tensors, or NumPy arrays where the plan works on the host.

    Attributes:
        logits: Shape (N, C).
        activations: A in the layout (N, K, *positions).
        gradients: Maps classes (N,) and rivals (N,) or None to the gradient of the classes'
            logits, minus the rivals' where given, in the shape of A or with positions of length one.
        mean_gradients: The same, averaged over the positions, which then have length one: all that
            Grad-CAM asks for, and cheaper than ``gradients`` where a plan can average beforehand.
    """

    logits: Array
    activations: Array
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
        kept: list[Tensor] = []

        def start_graph(output: Tensor) -> Tensor:
            torch.set_grad_enabled(True)
            leaf = output.detach().requires_grad_()
            kept.append(leaf)
            return leaf.clone()  # a later in-place operation must not reach A

        with torch.no_grad():  # puts back what start_graph switches
            logits = _tapped(self.model, self.target, x, start_graph)
        return _autograd_pass(logits, kept[0], self.target)


@dataclass(frozen=True, slots=True)
class ClosedForm:
    r"""No graph and no backward: the gradient of a head of linear layers with ReLU between is written down.

    For average pooling and one linear layer, and for flattening and L of them:

    .. math:: \frac{\partial y_c}{\partial A_{k,p}} = \frac{W_{c,k}}{Z}, \qquad
              \frac{\partial y_c}{\partial \mathrm{vec}(A)} =
              W_1^\top \bigl(m_1 \circ \cdots W_{L-1}^\top (m_{L-1} \circ W_L[c])\bigr)

    Z is the number of positions, W_i the weight of layer i, read anew at each call, and m_i is 1
    where its output is positive after the ReLU, else 0. Dropout is the identity in eval mode.
    Whether a model's head is of this kind is tried in :func:`choose_plan`, not read off its code.

    Attributes:
        model: The classifier.
        target: The target layer.
        linears: W_1 to W_L in the order of execution.
        folded: W_1 averaged over the positions.
        on_host: Hand the forward pass's results to NumPy. For one sample the calls into torch cost
            more than their arithmetic, NumPy's cost a third of them.
    """

    model: nn.Module
    target: Target
    linears: tuple[nn.Linear, ...]
    folded: FoldedWeight
    on_host: bool = False
    name: ClassVar[str] = "closed form"

    def run(self, x: Tensor) -> Pass:
        """Run the model on a batch; after average pooling the gradients have positions of length one."""
        logits, tapped, hidden = self._forward(x)
        activations: Array = self.target.arrange(tapped)
        if self.on_host:
            logits, activations = logits.numpy(), activations.numpy()
            hidden = [values.numpy() for values in hidden]
        ones = (1,) * (activations.ndim - 2)
        pooled = self.linears[0].in_features == activations.shape[1]

        def back(first: Array, classes: Array, rivals: Array | None) -> Array:
            """Rows of the product of all layers' weights, with ``first`` in place of W_1."""
            weights = [first, *(self._weight(linear) for linear in self.linears[1:])]
            gradient = weights[-1][classes]
            if rivals is not None:
                gradient = gradient - weights[-1][rivals]
            for weight, after_relu in zip(weights[-2::-1], hidden[:0:-1], strict=True):
                gradient = (gradient * (after_relu > 0)) @ weight
            return gradient

        def mean_gradients(classes: Array, rivals: Array | None) -> Array:
            if pooled:  # the positions of this input, which may be larger than the example
                n_positions = math.prod(activations.shape[2:])
                gradient = back(self._weight(self.linears[0]), classes, rivals) / n_positions
            else:
                folded = self.folded.value()
                gradient = back(folded.numpy() if self.on_host else folded, classes, rivals)
            return gradient.reshape(*gradient.shape, *ones)

        def gradients(classes: Array, rivals: Array | None) -> Array:
            if pooled:
                return mean_gradients(classes, rivals)
            return back(self._weight(self.linears[0]), classes, rivals).reshape(activations.shape)

        return Pass(logits, activations, gradients, mean_gradients)

    def _weight(self, linear: nn.Linear) -> Array:
        weight = linear.weight.detach()
        return weight.numpy() if self.on_host else weight

    def _forward(self, x: Tensor) -> tuple[Any, Tensor, list[Any]]:
        """Logits, the layer's output, and the inputs of the linear layers."""
        kept: list[Tensor] = []
        hidden: list[Tensor] = []

        def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            hidden.append(inputs[0])

        handles = [linear.register_forward_pre_hook(keep_input) for linear in self.linears]
        try:
            logits = _tapped(self.model, self.target, x, kept.append)
        finally:
            for handle in handles:
                handle.remove()
        if len(hidden) != len(self.linears):
            expected = f"the head's {len(self.linears)} linear layers must run once each"
            raise ModelError(
                f"{expected}, got {len(hidden)} calls; build a new scorer after exchanging layers"
            )
        return logits, kept[0], hidden


class FoldedWeight:
    r"""The weight of a flattening head's first linear layer averaged over positions, shape (units, K).

    .. math:: \bar W_{u,k} = \frac1Z \sum_p W_{u,(k,p)}

    Averaging before the product instead of after it saves the larger part of the score's work. The
    result is kept until the weight changes: torch counts in-place changes, and a few values are
    compared at each use for changes that go past the count (``weight.data``).

    Args:
        linear: The layer.
        n_maps: K.
        n_positions: Z.
    """

    def __init__(self, linear: nn.Linear, n_maps: int, n_positions: int) -> None:
        self._linear = linear
        self._shape = (len(linear.weight), n_maps, n_positions)
        self._state: tuple[int, int] | None = None
        self._probed = self._probe = self._folded = torch.empty(0)

    def value(self) -> Tensor:
        """The averaged weight of this moment."""
        weight = self._linear.weight
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)  # noqa: SLF001
        if state != self._state or not torch.equal(self._probed, self._probe):
            flat = weight.detach().view(-1)
            self._probed = flat[:: max(1, len(flat) // _N_PROBES)]  # a view: it follows the weight
            self._state, self._probe = state, self._probed.clone()
            self._folded = weight.detach().reshape(self._shape).mean(2)
        return self._folded


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

    The closed form counts as exact when its logits and its gradients of the predicted class and of the
    two best classes' difference deviate by at most 1e-5 of the largest value. It must moreover hold on
    activations that no input produced: noise in place of A, which a ReLU hidden between A and the
    pooling would betray.

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
    closed = _closed_form(model, target, example)
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


def _closed_form(model: nn.Module, target: Target, example: Tensor) -> ClosedForm | None:
    """The closed form where the head's first linear layer takes A pooled or flattened; still to be tried."""
    linears = _linears_after(model, target, example)
    if not linears or linears[0].in_features not in (target.shape[0], math.prod(target.shape)):
        return None
    folded = FoldedWeight(linears[0], target.shape[0], math.prod(target.shape[1:]))
    return ClosedForm(model, target, linears, folded)


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
        (gradient,) = torch.autograd.grad(logits, tapped, seed, retain_graph=True)
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
    """Whether the closed form holds with noise of both signs in place of the layer's output."""
    generator = torch.Generator().manual_seed(0)

    def noise(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return torch.randn(output.shape, generator=generator.manual_seed(0)).to(output)

    handle = plan.target.module.register_forward_hook(noise)  # runs before the hook of the plans
    try:
        classes, rivals = top_two(head.run(example).logits)
        expected = _values(head, example, classes, rivals)
        return _largest_deviation(_values(plan, example, classes, rivals), expected) <= RELATIVE_TOLERANCE
    except RuntimeError:  # the layers do not fit one another: another kind of head
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
    return max(_deviation(got, want) for got, want in zip(found, expected, strict=True))


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
