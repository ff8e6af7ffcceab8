"""Where an activation keeps its channels: brings every layer's output to (N, K, *positions)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drip.errors import ModelError
from drip.scoring.model import FunctionChain, gradient_at, logits_of, run_tapped

Reshape = Callable[[Tensor], Tensor]

_CHANNELS_LAST = (nn.LayerNorm, nn.Linear, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.Embedding)
_CHANNELS_FIRST = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module in the recorded forward pass, in the order of completion.

    Attributes:
        name: Dotted name of the module.
        module: The module.
        input_shape: Shape of its first input.
        shape: Shape of its output.
        source: The first module that returned this very tensor; a container hands on its last part's.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    source: nn.Module


def automatic_layout(calls: Sequence[Call], index: int) -> Reshape | None:
    """How to bring a call's output to (N, K, *positions): by the last layer that fixes where channels are."""
    if len(calls[index].shape) == 3:
        for call in reversed(calls[: index + 1]):
            if isinstance(call.module, _CHANNELS_LAST):
                return tokens_to_grid
            if isinstance(call.module, _CHANNELS_FIRST):
                return None
    elif isinstance(calls[index].source, _CHANNELS_LAST):
        return channels_last_to_first
    return None


def tokens_to_grid(tokens: Tensor) -> Tensor:
    """Tokens (N, T, C) of a square grid, with or without one class token in front, as (N, C, side, side).

    Raises:
        ModelError: Neither T nor T - 1 is a square number.

    >>> tokens_to_grid(torch.zeros(2, 17, 8)).shape
    torch.Size([2, 8, 4, 4])
    """
    n_tokens = tokens.shape[1]
    for skipped in (0, 1):
        side = math.isqrt(n_tokens - skipped)
        if side > 0 and side * side == n_tokens - skipped:
            return tokens[:, skipped:].transpose(1, 2).reshape(len(tokens), -1, side, side)
    message = f"tokens must form a square grid with at most one class token, got {n_tokens} tokens"
    raise ModelError(f"{message}; give reshape=, a function from (N, T, C) to (N, K, *positions)")


def channels_last_to_first(activation: Tensor) -> Tensor:
    """(N, *positions, K) as (N, K, *positions)."""
    return activation.movedim(-1, 1)


def arranged_shape(shape: Sequence[int], layout: Reshape | None, name: str) -> tuple[int, ...]:
    """Shape (K, *positions) that the layout makes of an output's shape.

    Raises:
        ModelError: The result is not (N, K, *positions).
    """
    arranged = tuple(shape) if layout is None else tuple(layout(torch.zeros(*shape)).shape)
    if len(arranged) < 3 or arranged[0] != shape[0]:
        message = f"layer {name!r} must give (N, K, *positions), got {arranged}"
        raise ModelError(f"{message}; choose a layer before the pooling, or give reshape=")
    return arranged[1:]


_POOLS = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
)  # fmt: skip
_PLUMBING = (*_POOLS, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_STRIDED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_FOLLOWED = frozenset(
    (
        "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu", "selu_",
        "gelu", "silu", "hardswish", "mish", "tanh", "max_pool1d", "max_pool2d", "max_pool3d", "batch_norm",
    )
)  # fmt: skip
"""Functions that still belong to the backbone when ``forward`` applies them to the last layer's output."""


@dataclass(frozen=True, slots=True)
class Target:
    """The activation that is scored.

    Attributes:
        layer: Dotted name of the module.
        functions: Functions of ``forward`` that follow it and belong to the activation, mostly none.
        module: The module.
        reshape: Brings the activation into the layout (N, K, *positions); None where it has it.
        shape: Shape (K, *positions) in the example.
        notes: What the user should know of this layer.
    """

    layer: str
    functions: tuple[str, ...]
    module: nn.Module
    reshape: Reshape | None
    shape: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The layer and what follows it, such as ``features`` or ``conv2+relu``."""
        return "+".join((self.layer, *self.functions))

    def arrange(self, activation: Tensor) -> Tensor:
        """The activation, or its gradient, in the layout (N, K, *positions)."""
        return activation if self.reshape is None else self.reshape(activation)


def find_target(
    model: nn.Module, example: Tensor, layer: str | None = None, reshape: Reshape | None = None
) -> Target:
    """The named layer, or the last activation with positions that the head consumes.

    Automatic choice: of all module outputs of shape (N, K, *positions) the last one before the
    pooling of the head, under its outermost name, if it ran once and the logits depend on it and on
    nothing that bypasses it, as they do on a branch of a sum or on the weights of attention. When
    ``forward`` applies activation functions or max pooling to it outside any module, their result
    is taken (``conv2+relu``). Token models, whose last activations are (N, T, C): the last tokens
    on which the logits depend beyond the class token, so the input of the last attention block.

    Args:
        model: The classifier, in eval mode.
        example: At least two samples.
        layer: Dotted name as in ``model.named_modules()``, optionally with functions: ``conv2+relu``.
        reshape: Brings the layer's output into (N, K, *positions); a selection and permutation of
            its values. Automatic for square token grids with or without a class token.

    Returns:
        The target; its notes name what limits it.

    Raises:
        ModelError: There is no such layer, or none with positions, or it did not run exactly once,
            or the logits do not depend on it, or (automatic only) they also depend on what bypasses it.
    """
    calls = _record(model, example)
    if layer is not None:
        return _named_target(model, example, calls, layer, reshape)
    bypassed: list[str] = []
    for index in _candidates(calls, len(example)):
        call = calls[index]
        layout = reshape or automatic_layout(calls, index)
        try:
            shape = arranged_shape(call.shape, layout, call.name)
        except Exception:
            # the caller's reshape may be made for another layer, and no grid is asked of a branch
            if reshape is None and _carries_everything(
                Target(call.name, (), call.module, None, ()), model, example
            ):
                raise
            continue
        functions = _functions_after(model, call.module, example)
        target = Target(call.name, functions, call.module, layout, shape)
        gradient = _gradient(target, model, example)
        if gradient is None or (layout is not None and not _reaches_positions(target, gradient)):
            continue
        if not _carries_everything(target, model, example):
            if layout is None:  # with tokens it is the inside of a block, whose shortcut bypasses it
                bypassed.append(target.name)
            continue
        found = _with_shape_of(target, model, example)
        if not bypassed:
            return found
        passed = f"{bypassed[0]!r} runs later, but a part of the logits bypasses it: not taken"
        return _note(found, f"{passed}; wrap what joins it into a module to score their sum")
    if bypassed:
        listed = ", ".join(repr(name) for name in bypassed[:4])
        message = (
            f"the head must depend on one activation, but a part of the logits bypasses each of {listed}"
        )
        raise ModelError(f"{message}; wrap what joins them into a module, or give layer={bypassed[0]!r}")
    seen = ", ".join(f"{call.name} {call.shape}" for call in calls[-5:])
    message = (
        f"the model must have a layer with output (N, K, L) or (N, K, H, W), the last outputs are: {seen}"
    )
    raise ModelError(f"{message}; give layer= and, for tokens, reshape=")


def _named_target(
    model: nn.Module, example: Tensor, calls: list[Call], layer: str, reshape: Reshape | None
) -> Target:
    """The target of an explicit name, with notes where it is not what the automatic choice allows."""
    name, *functions = layer.split("+")
    modules = {name: module for name, module in model.named_modules() if name}
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=4, cutoff=0.4) or list(modules)[:4]
        raise ModelError(
            f"layer must name a module of the model, got {layer!r}; near matches: {', '.join(near)}"
        )
    runs = [index for index, call in enumerate(calls) if call.name == name]
    if len(runs) == 1:
        call = calls[runs[0]]
        layout = reshape or automatic_layout(calls, runs[0])
        shape = arranged_shape(call.shape, layout, layer)
        target = Target(name, tuple(functions), call.module, layout, shape)
    else:  # run_tapped says what is wrong: never, twice, or no tensor
        target = Target(name, tuple(functions), modules[name], reshape, ())
    if _gradient(target, model, example) is None:
        message = f"the logits must depend on the target layer, they do not depend on {layer!r}"
        raise ModelError(f"{message}; choose a layer that the head uses")
    target = _with_shape_of(target, model, example)
    if not _carries_everything(target, model, example):
        return _note(
            target, "a part of the logits bypasses this layer; the score sees only what goes through it"
        )
    return target


def _record(model: nn.Module, example: Tensor) -> list[Call]:
    """Every call of a named module that gave a tensor, from one forward pass."""
    calls: list[Call] = []
    latest: list[Tensor] = []  # only the last output is kept: all of them would fill the memory
    handles = []

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else output
                source = calls[-1].source if latest and latest[0] is output else module
                latest[:] = [output]
                calls.append(Call(name, module, tuple(first.shape), tuple(output.shape), source))

        return hook

    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_hook(hook_for(name)))
        logits_of(model(example.clone()), len(example))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _candidates(calls: list[Call], n_rows: int) -> Iterator[int]:
    """Indices of calls that may be the target, the best first."""
    runs: dict[str, int] = {}
    for call in calls:
        runs[call.name] = runs.get(call.name, 0) + 1

    def usable(call: Call) -> bool:
        spatial = len(call.shape) >= 3 and call.shape[0] == n_rows
        return spatial and not isinstance(call.source, _POOLS) and not isinstance(call.module, _PLUMBING)

    extended = [i for i, call in enumerate(calls) if usable(call) and math.prod(call.shape[2:]) > 1]
    last = extended[-1] if extended else -1
    # outputs of one position after the last extended one belong to the head, unless the backbone
    # itself goes down to one position: by a strided convolution and not by the head's pooling
    shrinks = [
        i
        for i, call in enumerate(calls)
        if i > last
        and isinstance(call.module, _STRIDED)
        and math.prod(call.input_shape[2:]) > 1
        and usable(call)
    ]
    pointlike = [i for i, call in enumerate(calls) if shrinks and i >= shrinks[0] and usable(call)]
    for index in (*reversed(pointlike), *reversed(extended)):
        if runs[calls[index].name] == 1:
            yield index


def _functions_after(model: nn.Module, module: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Names of the backbone functions that ``forward`` applies to the module's output, in order."""
    chain = _BackboneChain()
    handle = module.register_forward_hook(lambda _module, _inputs, output: chain.start(output))
    try:
        with chain:
            model(example.clone())
    finally:
        handle.remove()
    return tuple(chain.names)


class _BackboneChain(FunctionChain):
    """Collects the names of the functions that belong to the backbone, up to the first that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._ended = False

    def step(self, name: str, result: Tensor) -> Tensor | None:
        """Take the step if the function belongs to the backbone."""
        if self._ended:
            return None
        if name in _FOLLOWED:
            self.names.append(name)
            return result
        self._ended = True
        return None


def _gradient(target: Target, model: nn.Module, example: Tensor) -> Tensor | None:
    """Gradient of the largest logits at the target, raw layout; None where they do not depend on it."""
    kept: list[Tensor] = []

    def start_graph(output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()

    with torch.no_grad():  # puts back what start_graph switches
        logits = run_tapped(model, target.module, target.functions, example, start_graph)
    if not logits.requires_grad:
        return None
    seed = torch.zeros_like(logits).scatter_(1, logits.detach().argmax(1, keepdim=True), 1.0)
    return gradient_at(kept[0], logits, seed)


def _reaches_positions(target: Target, gradient: Tensor) -> bool:
    """Whether any position of the grid matters: after the last attention only the class token does."""
    return bool(target.arrange(gradient).abs().max() > 0)


def _carries_everything(target: Target, model: nn.Module, example: Tensor) -> bool:
    """Whether the head run from this activation alone gives the logits, whatever the input was."""
    kept: list[Tensor] = []

    def keep(output: Tensor) -> None:
        kept.append(output.clone())

    expected = run_tapped(model, target.module, target.functions, example, keep)
    generator = torch.Generator().manual_seed(0)
    other = example + torch.randn(example.shape, generator=generator).to(example)
    found = run_tapped(model, target.module, target.functions, other, lambda _: kept[0].clone())
    return bool(torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())))


def _with_shape_of(target: Target, model: nn.Module, example: Tensor) -> Target:
    """The target with its final shape, which functions may have changed, and a note on one position."""
    kept: list[Tensor] = []
    run_tapped(model, target.module, target.functions, example, kept.append)
    shape = arranged_shape(kept[0].shape, target.reshape, target.name)
    target = Target(target.layer, target.functions, target.module, target.reshape, shape, target.notes)
    if math.prod(shape[1:]) == 1:
        note = "the feature map has one position: the score is a function of the logit alone"
        return _note(target, f"{note}, heatmaps say nothing")
    return target


def _note(target: Target, note: str) -> Target:
    """The target with one more note."""
    notes = (*target.notes, note)
    return Target(target.layer, target.functions, target.module, target.reshape, target.shape, notes)
