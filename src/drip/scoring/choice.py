"""Chooses the plan for a model: the closed form where it is tried and exact, else the head's autograd."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drip.errors import ModelError
from drip.scoring.closed_form import ClosedForm
from drip.scoring.head import count_linears
from drip.scoring.plans import RELATIVE_TOLERANCE, HeadVjp, Pass, Plan, top_two
from drip.scoring.tap import Tap, run_tapped
from drip.scoring.target import Target

_PROBE_SCALES = (1e-2, 1.0, 1e2, 1e4)
"""Magnitudes of the noise that stands in for activations: what saturates must do so in one of them."""


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
    """Try the closed form on an example batch against the head's autograd; take it if it is exact.

    The closed form is tried where the graph between A and the logits holds nothing else than what it
    covers. It counts as exact when its logits and its gradients of the predicted class and of the two
    best classes' difference deviate by at most 1e-5 of the largest value, on the example and on
    activations that no input produced: noise of several magnitudes and offsets in place of A.

    Raises:
        ModelError: Autograd cannot reach the layer from the logits.
    """
    head = HeadVjp(model, target)
    classes, rivals = top_two(head.run(example).logits)
    truth = _values(head.run(example), classes, rivals)
    again = _largest_deviation(_values(head.run(example), classes, rivals), truth)
    if not again <= RELATIVE_TOLERANCE:  # also where it is NaN
        raise ModelError(
            f"two passes in eval mode must give the same finite gradient, they deviate by {again:.2g}; "
            "take what is random, or not differentiable at this input, out of the model's head"
        )
    seconds = {head.name: _best_time(head, example, classes)}
    errors = {head.name: 0.0}
    closed = _closed_form(head, example)
    if closed is None or not _agrees_on_noise(closed, example):
        return Choice(head, seconds, errors)
    run = closed.attempt(example)
    error = math.inf if run is None else _largest_deviation(_values(run, classes, rivals), truth)
    if not error <= RELATIVE_TOLERANCE:  # also where it is NaN
        return Choice(head, seconds, errors)
    errors[closed.name] = error
    seconds[closed.name] = _best_time(closed, example, classes)
    # It has the fewer operations. The times are for people alone: on a busy machine they would turn the
    # choice round, and the last digits of scores, and with them a policy's digest, would hang on the clock.
    return Choice(closed, seconds, errors)


def _closed_form(head: HeadVjp, example: Tensor) -> ClosedForm | None:
    """The closed form where the head consists of what it covers; still to be tried."""
    target = head.target
    ran = _modules_after(head.model, target, example)
    linears = tuple(module for module in ran if isinstance(module, nn.Linear))
    if not linears or len(linears) != count_linears(*head.graph(example)):
        return None
    used_once = len(set(linears)) == len(linears)
    fits = linears[0].in_features in (target.shape[0], math.prod(target.shape))
    if not (used_once and fits):
        return None
    tap = Tap(target.module, target.functions, linears)
    edits = tap.run(head.model, example).edits
    return ClosedForm(head, linears, tuple(dict.fromkeys((target.module, *ran))), tap, edits)


def _modules_after(model: nn.Module, target: Target, example: Tensor) -> tuple[nn.Module, ...]:
    """The modules that run behind the target layer or around it, in the order in which they end."""
    ran: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, _inputs, _output: ran.append(module))
        for module in model.modules()
    ]
    try:
        run_tapped(model, target.module, target.functions, example, lambda _output: ran.clear())
    finally:
        for handle in handles:
            handle.remove()
    return tuple(ran)


def _agrees_on_noise(closed: ClosedForm, example: Tensor) -> bool:
    """Whether the closed form holds with noise of every scale and sign in place of the layer's output."""
    return all(
        _agrees_on(scale, 0.5 * sign * scale, closed, example)
        for scale in _PROBE_SCALES
        for sign in (-1.0, 1.0)
    )


def _agrees_on(scale: float, offset: float, closed: ClosedForm, example: Tensor) -> bool:
    """Whether the closed form holds on noise of this deviation and mean."""
    generator = torch.Generator()

    def noise(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return (torch.randn(output.shape, generator=generator.manual_seed(0)) * scale + offset).to(output)

    handle = closed.head.target.module.register_forward_hook(noise)  # runs before the hook of the plans
    try:
        logits = closed.head.run(example).logits
        if not torch.isfinite(logits).all():  # half precision ends below the largest scale
            return True
        classes, rivals = top_two(logits)
        expected = _values(closed.head.run(example), classes, rivals)
        run = closed.attempt(example)
        return (
            run is not None
            and _largest_deviation(_values(run, classes, rivals), expected) <= RELATIVE_TOLERANCE
        )
    except (RuntimeError, ValueError, ModelError):  # the layers do not fit one another: another kind of head
        return False
    finally:
        handle.remove()


def _values(run: Pass, classes: Tensor, rivals: Tensor) -> tuple[Tensor, ...]:
    """Logits, gradients of the classes and of their lead over the rivals; the pass's graph is let go."""
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
