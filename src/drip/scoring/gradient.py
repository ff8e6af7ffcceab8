"""The gradient of the head: two exact ways to compute it, and the choice between them.

The score needs dy/dA, the gradient of a logit at the target activation A. Autograd through the whole model,
as CAM packages do it, computes far more than that. Two *plans* compute only what is needed:

- :class:`HeadVjp` runs the backbone without a graph and differentiates the head alone. Exact for every head.
- :class:`ClosedForm` writes the gradient down from the weights, for heads of pooling or flattening followed
by
  linear layers with ReLU. No graph and no backward; :func:`host_scores` does the arithmetic in NumPy.

:func:`choose_plan` uses the closed form only where three independent checks agree that it is exact: the graph
of the head contains nothing else, the numbers equal autograd's on the example, and they equal it on noise of
several magnitudes in place of A. Every later pass is checked again, and one that does not fit goes through
:class:`HeadVjp`: a user may add a hook, exchange a layer or change a flag at any time.
"""
# ruff: noqa: SLF001  # torch keeps hooks in private names

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from drip.errors import ModelError
from drip.scoring.cam import ArrayT
from drip.scoring.model import Call, Tap, gradient_at, run_tapped
from drip.scoring.target import Target

Gradients = Callable[[Tensor, Tensor | None], Tensor]
Floats = NDArray[np.floating[Any]]

RELATIVE_TOLERANCE = 1e-5
"""Two routes are equal if they differ by at most this part of the largest absolute value.

It is the project's definition (docs/explanation/decisions.md, A12): float32 holds seven digits, and sums over some
thousand positions in another order lose about two of them.
"""

_FEW_ROWS = 8
"""Up to this many rows, average the gradients after the products; above, the first weight before them.

Averaging the weight costs the same for any number of rows. On the paper's audio network (15 positions, 128
hidden units) it takes 130 us against 51 us for one row and 249 us for 32; the two cross near twelve rows.
"""

_LEAST_SQUARE = 1e-25
"""Below this, the square of a length has lost digits in float32, whose smallest normal number is 1e-38."""

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
"""Operations of the closed form by the name of their graph node: linear, ReLU, mean; others move values.

Average pooling with a fixed window is missing on purpose: it is the mean of inputs of the example's size, but
not of larger ones.
"""

_CLOSED_FORM = re.compile("L(R+L)*M*")
"""From the logits back to A: linear layers with ReLU between them, and means before the first layer."""

_PROBE_SCALES = (1e-2, 1.0, 1e2, 1e4)
"""Magnitudes of the noise that replaces activations: a head that saturates does so at one of them.

ReLU6 and clamps are linear on an ordinary example, so the example alone does not tell them from ReLU.
"""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass.

    Attributes:
        logits: Shape (N, C).
        activations: A in the layout (N, K, *positions).
        gradients: Maps classes (N,) and rivals (N,) or None to the gradient of the classes' logits,
            minus the rivals' logits if given. It has the shape of A, or positions of length one if
            the gradient is the same at every position.
        mean_gradients: The same, averaged over the positions, which then have length one. This is all
            that Grad-CAM needs, and cheaper if a plan can average beforehand.
    """

    logits: Tensor
    activations: Tensor
    gradients: Gradients
    mean_gradients: Gradients


class Plan(Protocol):
    """A way to compute the gradient at the target layer."""

    name: ClassVar[str]

    def run(self, x: Tensor) -> Pass:
        """Run the model on a batch."""
        ...


@dataclass(frozen=True, slots=True)
class HeadVjp:
    """Backward through the head alone: the backbone runs without a graph, and the graph starts at A.

    Exact for every head, because nothing before A enters dy/dA.

    References:
        DRIP paper, eqs. 1-2.
    """

    model: nn.Module
    target: Target
    name: ClassVar[str] = "head VJP"

    def run(self, x: Tensor) -> Pass:
        """Run the model on a batch; only what follows the target layer builds a graph."""
        logits, leaf = self.graph(x)
        return _autograd_pass(logits, leaf, self.target)

    def graph(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits with their graph, and the target layer's output, where the graph starts."""
        kept: list[Tensor] = []

        def start_graph(output: Tensor) -> Tensor:
            torch.set_grad_enabled(True)
            leaf = output.detach().requires_grad_()
            kept.append(leaf)
            return leaf.clone()  # a later operation in place, such as ReLU(inplace=True), must not change A

        with torch.no_grad():  # restores the grad mode that start_graph changes
            target = self.target
            logits = run_tapped(self.model, target.module, target.functions, x, start_graph)
        return logits, kept[0]


def _autograd_pass(logits: Tensor, tapped: Tensor, target: Target) -> Pass:
    """A pass whose gradients come from the graph between ``tapped`` and ``logits``."""

    def gradients(classes: Tensor, rivals: Tensor | None) -> Tensor:
        seed = torch.zeros_like(logits).scatter_(1, classes.unsqueeze(1), 1.0)
        if rivals is not None:
            seed.scatter_(1, rivals.unsqueeze(1), -1.0)
        # Rows are independent in eval mode, so one backward pass of the sum computes every sample's own
        # gradient. The graph is kept for a second seed (the contrastive score) and freed with the pass.
        gradient = gradient_at(tapped, logits, seed, keep_graph=True)
        if gradient is None:
            raise ModelError(
                "the logits do not depend on the target layer; choose another layer", code="model-layer"
            )
        return target.arrange(gradient)

    def mean_gradients(classes: Tensor, rivals: Tensor | None) -> Tensor:
        gradient = gradients(classes, rivals)
        # In single precision: a mean of half-precision values over many positions would be rounded.
        return in_single(gradient).mean(tuple(range(2, gradient.dim())), keepdim=True)

    return Pass(logits.detach(), target.arrange(tapped.detach()), gradients, mean_gradients)


def top_two(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the largest and second largest logit of each row, the lower index first on ties.

    Not ``topk``: its order on ties is unspecified, and a decision must not depend on it.
    """
    best = logits.argmax(1)
    rest = logits.scatter(1, best.unsqueeze(1), -torch.inf)
    return best, rest.argmax(1)


def in_single(values: Tensor) -> Tensor:
    """Half-precision values in single precision, which represents them exactly; other values unchanged."""
    return values.float() if values.element_size() < 4 else values


class Forward(NamedTuple):
    """The result of a pass without a graph.

    Attributes:
        logits: Shape (N, C).
        activations: A in the layout (N, K, *positions).
        calls: Input and output of the linear layers, in the order of execution.
        pooled: True if the first layer should read the mean of A over its positions, False if it reads A
            flattened.
    """

    logits: Tensor
    activations: Tensor
    calls: list[Call]
    pooled: bool


@dataclass(frozen=True, slots=True)
class ClosedForm:
    r"""The gradient of a head of linear layers with ReLU between them, written down from the weights.

    For average pooling and one linear layer, and for flattening and L of them:

    .. math:: \frac{\partial y_c}{\partial A_{k,p}} = \frac{W_{c,k}}{Z}, \qquad
              \frac{\partial y_c}{\partial \mathrm{vec}(A)} =
              W_1^\top \bigl(m_1 \circ \cdots W_{L-1}^\top (m_{L-1} \circ W_L[c])\bigr)

    Z is the number of positions, W_i the weight of layer i and m_i a mask, 1 where its output is positive.
    Weights are read at each call: a cache would have to detect changes, and torch's counter does not
    count edits through ``.data``. Dropout is the identity in eval mode.

    ``choose_plan`` decides once whether a head has this form. Each pass checks again, from hooks and values,
    whether it still has. One change is invisible to that: a ``forward`` that starts to detach one of its
    tensors after the choice.

    Attributes:
        head: The plan for passes that the formula does not cover.
        linears: The layers of W_1 to W_L in the order of execution.
        modules: The target layer and every module that runs after it or around it.
        tap: Observes the activation and the calls of the linear layers.
        edits: Edits in place in an ordinary pass, such as those of a ReLU; see :class:`Tapped`.
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
        """The pass, or None if the formula does not cover it."""
        forward = self.forward(x)
        if forward is None or not _is_followed(forward):
            return None
        logits, activations, calls, pooled = forward
        hidden = [call.given for call in calls]
        ones = (1,) * (activations.ndim - 2)
        n_positions = math.prod(activations.shape[2:])

        def back(first: Tensor, classes: Tensor, rivals: Tensor | None) -> Tensor:
            """Rows of the product of all layers' weights, with ``first`` in place of W_1.

            From the logits towards A: N rows times a matrix at each step, never matrix times matrix.
            """
            weights = [first, *(linear.weight.detach() for linear in self.linears[1:])]
            gradient = weights[-1][classes]
            if rivals is not None:
                gradient = gradient - weights[-1][rivals]
            for weight, after_relu in zip(weights[-2::-1], hidden[:0:-1], strict=True):
                gradient = (gradient * (after_relu > 0)) @ weight
            return gradient

        def gradients(classes: Tensor, rivals: Tensor | None) -> Tensor:
            gradient = back(self.linears[0].weight.detach(), classes, rivals)
            if pooled:  # positions of this input, which may be larger than the example
                return (gradient / n_positions).reshape(*gradient.shape, *ones)
            return gradient.reshape(activations.shape)

        def mean_gradients(classes: Tensor, rivals: Tensor | None) -> Tensor:
            if pooled:
                return gradients(classes, rivals)
            n, n_maps = activations.shape[:2]
            if n <= _FEW_ROWS:
                full = back(self.linears[0].weight.detach(), classes, rivals)
                gradient = full.reshape(n, n_maps, n_positions).sum(2) / n_positions
            else:  # averaging before the product saves most of the work for many rows
                first = self.linears[0].weight.detach()
                folded = first.reshape(len(first), n_maps, n_positions).sum(2) / n_positions
                gradient = back(folded, classes, rivals)
            return gradient.reshape(n, n_maps, *ones)

        return Pass(logits, activations, gradients, mean_gradients)

    def forward(self, x: Tensor) -> Forward | None:
        """One pass, or None if the formula does not cover it.

        Checked here: nothing is hooked to the head, the linear layers are torch's own and ran once each,
        their inputs and outputs were not edited, the first one read A flattened, and the last one
        returned the logits. Left to the caller, who has the values as tensors or as arrays: with
        :func:`agrees`, that every other layer read the ReLU of the output before it, and that the
        first one read the mean of A if ``pooled``.
        """
        if not self._is_plain(x):
            return None
        logits, tapped, calls, edits = self.tap.run(self.head.model, x)
        # One edit more or fewer than in an ordinary pass: forward took another path, or a hook edits in
        # place.
        if edits != self.edits or len(calls) != len(self.linears) or not _same(logits, calls[-1].result):
            return None
        activations = self.head.target.arrange(tapped)
        first = calls[0].given
        pooled = first.shape[1:] == activations.shape[1:2]
        if not (pooled or _same(first, activations.flatten(1))):
            return None
        return Forward(logits, activations, calls, pooled)

    def _is_plain(self, x: Tensor) -> bool:
        """True if no hook, subclass, override or autocast changes what the head's layers compute."""
        if (
            of_all_modules._global_forward_hooks
            or of_all_modules._global_forward_pre_hooks
            or of_all_modules._global_backward_hooks
            or of_all_modules._global_backward_pre_hooks
            or torch.is_autocast_enabled(x.device.type)
        ):
            return False
        for linear in self.linears:
            # Not isinstance: a subclass may compute anything, and parametrisations (weight_norm) are
            # subclasses.
            if type(linear) is not nn.Linear or "forward" in linear.__dict__:
                return False
        layer = self.head.target.module
        for module in self.modules:
            if module._backward_hooks or module._backward_pre_hooks:
                return False
            # Hooks of the layer itself run before the activation is observed and are part of it.
            if (module._forward_hooks or module._forward_pre_hooks) and module is not layer:
                return False
        return True


def _is_followed(forward: Forward) -> bool:
    """The checks that :meth:`ClosedForm.forward` leaves to its caller, on tensors."""
    _, activations, calls, pooled = forward
    if pooled and not agrees(calls[0].given, activations.flatten(2).mean(2)):
        return False
    return all(agrees(after.given, before.result.relu()) for before, after in pairwise(calls))


def agrees(found: ArrayT, expected: ArrayT) -> bool:
    """Whether a layer read what the closed form assumes: equal to 1e-5 (A12), or to the last digits.

    The lengths of the vectors are compared and not their elements, because two dot products are the cheapest
    check, and this one runs in every pass. False also if the squares are useless: all zero, infinite or NaN.

    >>> agrees(np.array([2.0, 4.0]), np.array([2.0, 4.0])), agrees(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
    (True, False)
    """
    difference, values = (found - expected).reshape(-1), found.reshape(-1)
    tolerance = RELATIVE_TOLERANCE
    if isinstance(difference, Tensor) and isinstance(values, Tensor):
        # Half precision is coarser than 1e-5; four units in the last place are two roundings on each side.
        tolerance = max(tolerance, 4 * torch.finfo(difference.dtype).eps)
        difference, values = in_single(difference), in_single(values)
    square = float(values.dot(values))
    return _LEAST_SQUARE < square < math.inf and float(difference.dot(difference)) <= tolerance**2 * square


def _same(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors have equal values; free if they are one tensor or views of one."""
    if found is expected:
        return True
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.data_ptr() == expected.data_ptr() and found.stride() == expected.stride():
        return True
    return torch.equal(found, expected)


class HostScores(NamedTuple):
    """Columns of one pass over N samples, in float32.

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
    r"""Classes, logits, Grad-CAM scores and pooled features of a float32 batch on the CPU.

    The same as :meth:`ClosedForm.attempt` followed by map and mean, in NumPy. For small heads a torch call
    costs more than its arithmetic: one digit of the demonstration takes 6 us here against 50 us there.

    .. math:: \mathrm{score} = \frac1Z \sum_p \max\Bigl(0, \sum_k a_k A_{k,p}\Bigr), \quad
              a_k = \frac1Z \sum_p \frac{\partial y_c}{\partial A_{k,p}}

    None if the closed form does not cover the pass.
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
    with np.errstate(over="ignore", invalid="ignore"):  # the caller checks for NaN and infinity
        for before, after in zip(before_relu, given[1:], strict=True):
            if not agrees(after, np.maximum(before, 0)):
                return None
        found = follow(values, maps, given[1:], weights)
        return None if forward.pooled and not agrees(given[0], found.features) else found


# Single rows and batches have separate functions: for a single sample, the usual case on a device, products
# of vectors without a batch axis take 21 us instead of 54 us on the paper's audio network.
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
    else:  # averaging before the products saves most of their work
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
    """The vector whose dot product with values is their mean; np.mean is Python code and slower."""
    return np.full(n_positions, 1 / n_positions, dtype=np.float32)


@dataclass(frozen=True)
class Choice:
    """The chosen plan and the measurements behind the choice.

    Attributes:
        plan: The cheapest exact plan.
        seconds: Best time for the example by plan name, exact plans only; for information.
        errors: Largest deviation from the head's autograd by plan name, relative to the largest value.
    """

    plan: Plan
    seconds: dict[str, float]
    errors: dict[str, float]


def choose_plan(model: nn.Module, target: Target, example: Tensor) -> Choice:
    """The closed form if it is exact for this head, otherwise the head's autograd.

    The closed form is tried if the graph between A and the logits contains only operations that it covers.
    It is exact if logits and gradients, of the predicted class and of its lead over the second, deviate by
    at most 1e-5 of the largest value, on the example and on activations that no input produces: noise of
    several magnitudes and offsets in place of A.

    Raises:
        ModelError: The layer has no gradient, or two equal passes differ.
    """
    head = HeadVjp(model, target)
    classes, rivals = top_two(head.run(example).logits)
    # Twice, because a head with randomness in eval mode would make every comparison below meaningless.
    truth = _values(head.run(example), classes, rivals)
    again = _largest_deviation(_values(head.run(example), classes, rivals), truth)
    if not again <= RELATIVE_TOLERANCE:  # also true for NaN
        raise ModelError(
            f"two passes over the same input in eval mode give gradients that differ by {again:.2g}; remove "
            "randomness, or operations without a gradient at this input, from the model's head",
            code="score-unavailable",
        )
    seconds = {head.name: _best_time(head, example, classes)}
    errors = {head.name: 0.0}
    closed = _closed_form(head, example)
    if closed is None or not _agrees_on_noise(closed, example):
        return Choice(head, seconds, errors)
    run = closed.attempt(example)
    error = math.inf if run is None else _largest_deviation(_values(run, classes, rivals), truth)
    if not error <= RELATIVE_TOLERANCE:  # also true for NaN
        return Choice(head, seconds, errors)
    errors[closed.name] = error
    seconds[closed.name] = _best_time(closed, example, classes)
    # Timing never influences the choice. An earlier version took the faster plan: the last digits of scores,
    # and with them a policy's digest, then depended on machine load. The closed form has fewer operations.
    return Choice(closed, seconds, errors)


def _closed_form(head: HeadVjp, example: Tensor) -> ClosedForm | None:
    """The closed form if the head consists of operations that it covers; the numbers are not compared yet."""
    target = head.target
    ran = _modules_after(head.model, target, example)
    linears = tuple(module for module in ran if isinstance(module, nn.Linear))
    if not linears or len(linears) != count_linears(*head.graph(example)):
        return None
    used_once = len(set(linears)) == len(linears)  # the tap cannot tell two calls of one module apart
    # The first layer reads the mean (K features) or everything (K times positions); each pass checks which.
    fits = linears[0].in_features in (target.shape[0], math.prod(target.shape))
    if not (used_once and fits):
        return None
    tap = Tap(target.module, target.functions, linears)
    edits = tap.run(head.model, example).edits
    return ClosedForm(head, linears, tuple(dict.fromkeys((target.module, *ran))), tap, edits)


def _modules_after(model: nn.Module, target: Target, example: Tensor) -> tuple[nn.Module, ...]:
    """The modules that run after the target layer or around it, in the order in which they finish."""
    ran: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, _inputs, _output: ran.append(module))
        for module in model.modules()
    ]
    try:
        # Whatever finished before the target's output was observed belongs to the backbone.
        run_tapped(model, target.module, target.functions, example, lambda _output: ran.clear())
    finally:
        for handle in handles:
            handle.remove()
    return tuple(ran)


def _agrees_on_noise(closed: ClosedForm, example: Tensor) -> bool:
    """Whether the closed form is exact with noise of every scale and sign in place of the layer's output."""
    # Offsets of both signs: some heads saturate on one side only, ReLU6 above and LeakyReLU(1e-6) below.
    return all(
        _agrees_on(scale, 0.5 * sign * scale, closed, example)
        for scale in _PROBE_SCALES
        for sign in (-1.0, 1.0)
    )


def _agrees_on(scale: float, offset: float, closed: ClosedForm, example: Tensor) -> bool:
    """Whether the closed form is exact on noise with this standard deviation and mean."""
    generator = torch.Generator()

    # Seeded at each call: the two plans run the model separately and must see the same activations.
    def noise(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return (torch.randn(output.shape, generator=generator.manual_seed(0)) * scale + offset).to(output)

    handle = closed.head.target.module.register_forward_hook(noise)  # runs before the hooks of the plans
    try:
        logits = closed.head.run(example).logits
        if not torch.isfinite(logits).all():  # half precision overflows at the largest scale
            return True
        classes, rivals = top_two(logits)
        expected = _values(closed.head.run(example), classes, rivals)
        run = closed.attempt(example)
        return (
            run is not None
            and _largest_deviation(_values(run, classes, rivals), expected) <= RELATIVE_TOLERANCE
        )
    except (RuntimeError, ValueError, ModelError):  # shapes do not fit: it is a different kind of head
        return False
    finally:
        handle.remove()


def _values(run: Pass, classes: Tensor, rivals: Tensor) -> tuple[Tensor, ...]:
    """Logits, and gradients of the classes and of their lead over the rivals, full and averaged."""
    full = (run.gradients(classes, None), run.gradients(classes, rivals))
    return run.logits, *full, run.mean_gradients(classes, None), run.mean_gradients(classes, rivals)


def _largest_deviation(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest deviation between corresponding values."""
    deviations = [_deviation(got, want) for got, want in zip(found, expected, strict=True)]
    return math.nan if any(map(math.isnan, deviations)) else max(deviations)  # max alone can drop a NaN


def _deviation(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference relative to the largest absolute expected value."""
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((got - expected).abs().max() / scale)


def _best_time(plan: Plan, example: Tensor, classes: Tensor) -> float:
    """Shortest of five runs in seconds, including the gradient: the minimum is the least disturbed one."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        plan.run(example).gradients(classes, None)
        times.append(time.perf_counter() - start)
    return min(times)


def count_linears(logits: Tensor, leaf: Tensor) -> int:
    """Number of linear layers between an activation and the logits; 0 if there is any other operation.

    It follows the graph from the logits back to the activation. Module types were the obvious thing to look
    at, but ``forward`` may call functions and methods that no module shows. The graph names every
    differentiable operation that ran, including a saturation that the example does not reach. Dropout
    in eval mode has no node.

    Args:
        logits: The head's result.
        leaf: The activation; it requires a gradient.

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
    # A pattern, not a list of head types: it also covers heads written as functions, methods or operators.
    return operations.count("L") if node is not None and _CLOSED_FORM.fullmatch(operations) else 0


def _reaches(start: Any, leaf: Tensor) -> bool:
    """Whether the leaf is reachable from a node of the graph; nodes of weights do not reach it."""
    # A loop, not recursion: graphs of deep heads exceed Python's recursion limit.
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
