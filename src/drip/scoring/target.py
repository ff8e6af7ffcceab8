"""The target: which activation of a model is scored, and how to bring it to the layout (N, K, *positions).

Grad-CAM explains the last activation that still has positions, the input of the head. Without a layer name
this file finds it: it records one forward pass, proposes layers from the last one backwards, and takes the
first from which the head can compute the logits alone. That is tested by running the head, not guessed from
names: names and module types mislead as soon as ``forward`` adds, multiplies or reuses something.
"""

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
_POOLS = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
)  # fmt: skip
# Modules that compute nothing that a heatmap could explain.
_PLUMBING = (*_POOLS, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_STRIDED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_FOLLOWED = frozenset(
    (
        "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu", "selu_",
        "gelu", "silu", "hardswish", "mish", "tanh", "max_pool1d", "max_pool2d", "max_pool3d", "batch_norm",
    )
)  # fmt: skip
"""Functions that still belong to the backbone when ``forward`` applies them to the last layer's output.

The paper scores the activation after its nonlinearity. Average pooling is not here: it belongs to the head.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """The activation that is scored.

    Attributes:
        layer: Dotted name of the module.
        functions: Functions that ``forward`` applies to its output and that belong to the activation;
            mostly none.
        module: The module.
        reshape: Brings the activation to the layout (N, K, *positions); None if it already has it.
        shape: Shape (K, *positions) in the example.
        notes: Warnings about this layer.
    """

    layer: str
    functions: tuple[str, ...]
    module: nn.Module
    reshape: Reshape | None
    shape: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The layer with the functions that follow it, such as ``features`` or ``conv2+relu``."""
        return "+".join((self.layer, *self.functions))

    def arrange(self, activation: Tensor) -> Tensor:
        """The activation, or its gradient, in the layout (N, K, *positions)."""
        return activation if self.reshape is None else self.reshape(activation)


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of a module in the recorded forward pass.

    Attributes:
        name: Dotted name of the module.
        module: The module.
        input_shape: Shape of its first input.
        shape: Shape of its output.
        source: The module that created this output. A container returns the tensor of its last part, and
            only that part shows whether the output comes from a pooling or a layer.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    source: nn.Module


def find_target(
    model: nn.Module, example: Tensor, layer: str | None = None, reshape: Reshape | None = None
) -> Target:
    """The named layer, or the last activation with positions from which the head computes the logits.

    Without a name it is the last module output of shape (N, K, *positions) before the head's pooling, under
    its outermost name, that ran once and that the logits depend on exclusively. A branch of a sum does not
    qualify, because part of the logits bypasses it; nor do attention weights. When ``forward`` applies
    activation functions or max pooling to it outside any module, their result is the target (``conv2+relu``).
    In token models, with activations (N, T, C), it is the last one whose positions, not only its class token,
    reach the logits: the input of the last attention block.

    Args:
        model: The classifier, in eval mode.
        example: At least two samples.
        layer: Dotted name as in ``model.named_modules()``, optionally with functions: ``conv2+relu``.
        reshape: Brings the layer's output to (N, K, *positions); it may only select and permute values.
            Automatic for square token grids with or without a class token.

    Returns:
        The target, with notes on its limitations.

    Raises:
        ModelError: The layer does not exist or has no positions, did not run exactly once, or the logits
            do not depend on it; without a name also if every candidate is bypassed.
    """
    calls = _record(model, example)
    if layer is not None:
        return _named_target(model, example, calls, layer, reshape)
    bypassed: list[str] = []
    # Candidates are tried by running the model, the preferred one first; usually the first one fits.
    for index in _candidates(calls, len(example)):
        call = calls[index]
        layout = reshape or automatic_layout(calls, index)
        try:
            shape = arranged_shape(call.shape, layout, call.name)
        except Exception:
            # The caller's reshape may be written for another layer, and the tokens of a mere branch need not
            # form a grid. Only a layer that would have been the target reports its failure.
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
            if layout is None:  # tokens: this is the inside of a block, and its shortcut always bypasses it
                bypassed.append(target.name)
            continue
        found = _with_shape_of(target, model, example)
        if not bypassed:
            return found
        return _note(
            found,
            f"{bypassed[0]!r} runs later but was not chosen, because a part of the logits bypasses it; to "
            "score the sum that joins them, wrap it into a module",
        )
    if bypassed:
        listed = ", ".join(repr(name) for name in bypassed[:4])
        raise ModelError(
            "no single activation determines the logits: part of the computation bypasses each of "
            f"{listed}; wrap the code that joins them in a module, or give layer={bypassed[0]!r}",
            code="model-layer",
        )
    seen = ", ".join(f"{call.name} {call.shape}" for call in calls[-5:])
    raise ModelError(
        f"no layer has an output of shape (N, K, L) or (N, K, H, W); the last outputs are: {seen}; give "
        "layer= and, for tokens, reshape=",
        code="model-layer",
    )


def _named_target(
    model: nn.Module, example: Tensor, calls: list[_Run], layer: str, reshape: Reshape | None
) -> Target:
    """The target with this name. What the automatic choice would reject is allowed here, with a note."""
    name, *functions = layer.split("+")
    modules = {name: module for name, module in model.named_modules() if name}
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=4, cutoff=0.4) or list(modules)[:4]
        raise ModelError(
            f"the model has no layer {layer!r}; choose another, such as {', '.join(near)}", code="model-layer"
        )
    runs = [index for index, call in enumerate(calls) if call.name == name]
    if len(runs) == 1:
        call = calls[runs[0]]
        layout = reshape or automatic_layout(calls, runs[0])
        shape = arranged_shape(call.shape, layout, layer)
        target = Target(name, tuple(functions), call.module, layout, shape)
    else:  # the next run_tapped raises with the reason: never, twice, or no tensor
        target = Target(name, tuple(functions), modules[name], reshape, ())
    if _gradient(target, model, example) is None:
        raise ModelError(
            f"the logits do not depend on layer {layer!r}; choose a layer that the head uses",
            code="model-layer",
        )
    target = _with_shape_of(target, model, example)
    if not _carries_everything(target, model, example):
        return _note(
            target, "a part of the logits bypasses this layer; the score covers only what passes through it"
        )
    return target


def _record(model: nn.Module, example: Tensor) -> list[_Run]:
    """Every call of a named module that returned a tensor, in one forward pass, in order of completion."""
    calls: list[_Run] = []
    latest: list[Tensor] = []  # only the last output is kept: all of them may not fit into memory
    handles = []

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else output
                source = calls[-1].source if latest and latest[0] is output else module
                latest[:] = [output]
                calls.append(_Run(name, module, tuple(first.shape), tuple(output.shape), source))

        return hook

    try:
        for name, module in model.named_modules():
            if name:  # the model itself has the empty name; its output is the logits
                handles.append(module.register_forward_hook(hook_for(name)))
        logits_of(model(example.clone()), len(example))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _candidates(calls: list[_Run], n_rows: int) -> Iterator[int]:
    """Indices of calls that may be the target, the preferred one first."""
    runs: dict[str, int] = {}
    for call in calls:
        runs[call.name] = runs.get(call.name, 0) + 1

    # A first axis other than the batch means that the module merged axes, for example frames into the batch:
    # its rows are not samples.
    def usable(call: _Run) -> bool:
        has_positions = len(call.shape) >= 3 and call.shape[0] == n_rows
        return (
            has_positions and not isinstance(call.source, _POOLS) and not isinstance(call.module, _PLUMBING)
        )

    spatial = [i for i, call in enumerate(calls) if usable(call) and math.prod(call.shape[2:]) > 1]
    last = spatial[-1] if spatial else -1
    # Outputs of one position after the last spatial one belong to the head: they come from its pooling. The
    # exception is a backbone that shrinks the map to one position itself, with a strided convolution, such as
    # EfficientNet on 32 x 32 pixels.
    shrinks = [
        i
        for i, call in enumerate(calls)
        if i > last
        and isinstance(call.module, _STRIDED)
        and math.prod(call.input_shape[2:]) > 1
        and usable(call)
    ]
    pointlike = [i for i, call in enumerate(calls) if shrinks and i >= shrinks[0] and usable(call)]
    # From the end: containers finish after their parts, so the outermost name of an activation comes first.
    for index in (*reversed(pointlike), *reversed(spatial)):
        if runs[calls[index].name] == 1:
            yield index


def _functions_after(model: nn.Module, module: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Names of the backbone functions that ``forward`` applies to the module's output, in their order."""
    chain = _BackboneChain()
    handle = module.register_forward_hook(lambda _module, _inputs, output: chain.start(output))
    try:
        with chain:
            model(example.clone())
    finally:
        handle.remove()
    return tuple(chain.names)


class _BackboneChain(FunctionChain):
    """Collects the names of functions that belong to the backbone, up to the first that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._ended = False

    def step(self, name: str, result: Tensor) -> Tensor | None:
        """Follow the function if it belongs to the backbone."""
        if self._ended:
            return None
        if name in _FOLLOWED:
            self.names.append(name)
            return result
        self._ended = True
        return None


def _gradient(target: Target, model: nn.Module, example: Tensor) -> Tensor | None:
    """Gradient of the largest logits at the target, in the model's layout; None without dependence."""
    kept: list[Tensor] = []

    def start_graph(output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()

    with torch.no_grad():  # restores the grad mode that start_graph changes
        logits = run_tapped(model, target.module, target.functions, example, start_graph)
    if not logits.requires_grad:
        return None
    seed = torch.zeros_like(logits).scatter_(1, logits.detach().argmax(1, keepdim=True), 1.0)
    return gradient_at(kept[0], logits, seed)


def _reaches_positions(target: Target, gradient: Tensor) -> bool:
    """Whether any position reaches the logits: after the last attention only the class token does."""
    return bool(target.arrange(gradient).abs().max() > 0)


def _carries_everything(target: Target, model: nn.Module, example: Tensor) -> bool:
    """Whether the logits are a function of this activation alone.

    The model runs on another input with the activation of the first one put in place. If the logits stay the
    same, nothing bypasses the layer. Looking for additions in the graph would be the obvious way, but it
    finds no path that carries no gradient.
    """
    kept: list[Tensor] = []

    def keep(output: Tensor) -> None:
        kept.append(output.clone())

    expected = run_tapped(model, target.module, target.functions, example, keep)
    generator = torch.Generator().manual_seed(0)  # a fixed seed: the choice of a layer must be repeatable
    noisy = example + torch.randn(example.shape, generator=generator).to(example)
    put = (model, target.module, target.functions)
    try:
        found = run_tapped(*put, noisy, lambda _: kept[0].clone())
        accepted = bool(torch.isfinite(found).all())
    except ModelError:
        raise
    except Exception:  # noqa: BLE001  # forward is the user's: it may raise anything
        accepted = False
    if not accepted:  # ids and powers: noise is no input of this model, so the samples change places
        found = run_tapped(*put, example.flip((0, -1)), lambda _: kept[0].clone())
    # Ten times the tolerance of A12: the other rows of a batch may change the rounding inside convolutions,
    # and a real bypass changes the logits by far more.
    return bool(torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())))


def _with_shape_of(target: Target, model: nn.Module, example: Tensor) -> Target:
    """The target with its final shape, which functions may change, and a note if it has one position."""
    kept: list[Tensor] = []
    run_tapped(model, target.module, target.functions, example, kept.append)
    shape = arranged_shape(kept[0].shape, target.reshape, target.name)
    target = Target(target.layer, target.functions, target.module, target.reshape, shape, target.notes)
    if math.prod(shape[1:]) == 1:
        return _note(
            target,
            "the feature map has one position: the score is a function of the logit alone, and a heatmap "
            "shows nothing",
        )
    return target


def _note(target: Target, note: str) -> Target:
    """The target with one more note."""
    notes = (*target.notes, note)
    return Target(target.layer, target.functions, target.module, target.reshape, target.shape, notes)


def automatic_layout(calls: Sequence[_Run], index: int) -> Reshape | None:
    """How to bring a call's output to (N, K, *positions); None if it already has this layout.

    A shape (N, a, b) alone does not tell channels from positions. The last layer that ran before and works on
    a known axis does.
    """
    # The source decides for four axes, where channels last is rare; three axes are tokens or signals.
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
    """Tokens (N, T, C) of a square grid, with or without a leading class token, as (N, C, side, side).

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
    raise ModelError(
        f"{n_tokens} tokens do not form a square grid, with or without a class token; give reshape=, a "
        "function from (N, T, C) to (N, K, *positions)",
        code="model-layer",
    )


def channels_last_to_first(activation: Tensor) -> Tensor:
    """(N, *positions, K) as (N, K, *positions)."""
    return activation.movedim(-1, 1)


def arranged_shape(shape: Sequence[int], layout: Reshape | None, name: str) -> tuple[int, ...]:
    """Shape (K, *positions) of an output after the layout change.

    Raises:
        ModelError: The result is not (N, K, *positions).
    """
    arranged = tuple(shape) if layout is None else tuple(layout(torch.zeros(*shape)).shape)
    if len(arranged) < 3 or arranged[0] != shape[0]:
        raise ModelError(
            f"the output of layer {name!r} has shape {arranged}, not (N, K, *positions); choose a layer "
            "before the pooling, or give reshape=",
            code="model-layer",
        )
    return arranged[1:]
