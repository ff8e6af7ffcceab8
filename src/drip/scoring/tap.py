"""Runs a model once and takes hold of one activation; what switches its modes is in ``mode``."""
# ruff: noqa: SLF001  # torch counts edits in place, and keeps hooks, in private names only

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from drip.errors import ModelError


class FunctionChain(TorchFunctionMode):
    """Follows a tensor through what ``forward`` itself applies to it: ``F.relu(self.conv(x))``."""

    def __init__(self) -> None:
        super().__init__()
        self._tail: Tensor | None = None

    def start(self, tensor: Tensor) -> None:
        """Follow ``tensor`` from here on."""
        self._tail = tensor

    def step(self, name: str, result: Tensor) -> Tensor | None:
        """Called with each function of the tail; what it returns is the result and the new tail."""
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` and follow its result where its first argument is the tail."""
        kwargs = kwargs or {}
        source = args[0] if args else kwargs.get("input")
        follows = self._tail is not None and source is self._tail
        result = func(*args, **kwargs)
        if follows and isinstance(result, Tensor):
            if "dropout" in func.__name__:  # the identity in eval mode
                self._tail = result
                return result
            stepped = self.step(func.__name__, result)
            if stepped is not None:
                self._tail = result = stepped
        return result


class _NamedChain(FunctionChain):
    """Goes through given functions and taps the last one's result."""

    def __init__(self, functions: Sequence[str], on_output: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self.remaining = list(functions)
        self._on_output = on_output

    def step(self, name: str, result: Tensor) -> Tensor | None:
        """Take the step if the name is the next one."""
        if not self.remaining or name != self.remaining[0]:
            return None
        self.remaining.pop(0)
        replaced = None if self.remaining else self._on_output(result)
        return result if replaced is None else replaced


def run_tapped(
    model: nn.Module,
    layer: nn.Module,
    functions: Sequence[str],
    x: Tensor,
    on_output: Callable[[Tensor], Tensor | None],
) -> Tensor:
    """Logits of ``model(x)``, with ``on_output`` called on the layer's output.

    The model gets a copy: it may edit its input, which is the caller's, and serves several passes.

    Args:
        model: The classifier.
        layer: The module of ``model`` whose output is wanted.
        functions: Names of the functions that ``forward`` applies to that output, one after the
            other; the last one's result is then taken in place of the layer's output.
        x: A batch.
        on_output: What it returns replaces the tapped tensor for all that follows; None leaves
            it.

    Raises:
        ModelError: The layer ran not exactly once, gave no tensor, is not followed by the functions,
            or the model gives no logits (N, C).
    """
    calls = 0
    thread = get_ident()

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
        nonlocal calls
        if get_ident() != thread:  # another one runs the model meanwhile
            return None
        calls += 1
        if not isinstance(output, Tensor):
            message = f"the target layer must give one tensor, got {type(output).__name__}"
            raise ModelError(f"{message}; choose a layer inside it")
        if chain is None:
            return on_output(output)
        chain.start(output)
        return None

    chain = _NamedChain(functions, on_output) if functions else None
    handle = layer.register_forward_hook(hook)
    try:
        if chain is None:
            output = model(x.clone())
        else:
            with chain:
                output = model(x.clone())
    finally:
        handle.remove()
    _require_once(calls)
    if chain is not None and chain.remaining:
        message = (
            f"the target layer's output must pass {'+'.join(functions)}, {chain.remaining[0]!r} did not come"
        )
        raise ModelError(f"{message}; build the scorer anew after changing the model")
    return logits_of(output, x.shape[0])


class _Hook:
    """A forward hook to be switched on for a pass and off after it; registering costs ten times as much.

    The module's dictionary is asked for each time: some libraries put another in its place.

    Args:
        module: Whose output is wanted.
        call: As for ``register_forward_hook``.
    """

    def __init__(self, module: nn.Module, call: Callable[..., None]) -> None:
        handle = module.register_forward_hook(call)
        self._module, self._id, self._call = module, handle.id, call
        handle.remove()

    def on(self) -> None:
        """Run it from now on, after all that were registered before."""
        self._module._forward_hooks[self._id] = self._call

    def off(self) -> None:
        """Run it no more."""
        self._module._forward_hooks.pop(self._id, None)


class Call(NamedTuple):
    """What a module read and what it gave."""

    given: Tensor
    result: Tensor


class Tapped(NamedTuple):
    """What one pass gave.

    Attributes:
        logits: Shape (N, C).
        activation: The target layer's, or the last function's, as the model has it.
        calls: Of the readers, in the order of execution.
        edits: How many operations in place there were, until the end of the pass, on the activation
            and on what each call read and gave, from the moment they were taken.
    """

    logits: Tensor
    activation: Tensor
    calls: list[Call]
    edits: tuple[int, ...]


class Tap:
    """Takes hold of the target's activation and of calls of some modules behind it, pass after pass.

    Nothing of a pass stays here. Two passes at a time would mix their tensors: the caller holds a lock.

    Args:
        layer: The module whose output is wanted.
        functions: What ``forward`` applies to it, as for :func:`run_tapped`.
        readers: The modules whose calls are wanted. One that is called without arguments by
            position, or gives no tensor, counts as not called.
    """

    def __init__(self, layer: nn.Module, functions: Sequence[str], readers: Sequence[nn.Module]) -> None:
        self._layer, self._functions = layer, functions
        self._outputs: list[Tensor] = []
        self._calls: list[Call] = []
        self._versions: list[int] = []
        self._thread = 0
        self._hooks = [_Hook(reader, self._keep_call) for reader in readers]
        if not functions:
            self._hooks.append(_Hook(layer, self._keep_output))

    def run(self, model: nn.Module, x: Tensor) -> Tapped:
        """One forward pass of ``model`` on a copy of ``x``.

        Raises:
            ModelError: As :func:`run_tapped`.
        """
        outputs, calls, versions = self._outputs, self._calls, self._versions
        self._thread = get_ident()
        try:
            for hook in self._hooks:
                hook.on()
            if self._functions:
                output = run_tapped(model, self._layer, self._functions, x, self._keep)
            else:
                output = model(x.clone())
        finally:
            for hook in self._hooks:
                hook.off()
            self._outputs, self._calls, self._versions = [], [], []
        _require_once(len(outputs))
        logits = logits_of(output, x.shape[0])
        kept = (*outputs, *(tensor for call in calls for tensor in call))
        edits = tuple(tensor._version - then for tensor, then in zip(kept, versions, strict=True))
        return Tapped(logits, outputs[0], calls, edits)

    def _keep_call(self, _module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if get_ident() == self._thread and inputs and isinstance(output, Tensor):
            call = Call(inputs[0], output)
            self._calls.append(call)
            self._versions += (call.given._version, output._version)

    def _keep_output(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if get_ident() == self._thread:
            self._keep(output)

    def _keep(self, activation: Tensor) -> None:
        self._outputs.append(activation)
        self._versions.insert(0, activation._version)


def _require_once(calls: int) -> None:
    """The target layer ran in the pass, and ran once."""
    if calls != 1:
        message = f"the target layer must run exactly once per forward pass, it ran {calls} times"
        raise ModelError(f"{message}; choose a layer that does, or build a new scorer after exchanging it")


def gradient_at(leaf: Tensor, logits: Tensor, seed: Tensor, *, keep_graph: bool = False) -> Tensor | None:
    """Gradient of the sum of ``seed * logits`` at a leaf, None where they do not depend on it.

    Of a number: with ``grad_outputs`` torch loads its symbolic shapes, and SymPy with them, 30 MiB.
    """
    if not logits.requires_grad:
        return None
    with torch.enable_grad():
        total = (logits * seed).sum()
    (gradient,) = torch.autograd.grad(total, leaf, retain_graph=keep_graph, allow_unused=True)
    return gradient


def logits_of(output: Any, n_rows: int) -> Tensor:
    """The logits (N, C) in what a model returned: a tensor, or an object or mapping with ``logits``.

    Raises:
        ModelError: There are none, they are not 2-D with one row per sample, or C is 1.
    """
    logits = output
    if not isinstance(output, Tensor):
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        message = (
            f"the model must return logits (N, C) or an object with .logits, got {type(output).__name__}"
        )
        raise ModelError(f"{message}; wrap it in a module that returns its logits")
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[0] != n_rows:
        message = f"the model must return logits of shape ({n_rows}, n_classes), got {shape}"
        raise ModelError(f"{message}; DRIP scores one class per sample: dense outputs need pooling first")
    if shape[1] < 2:
        message = f"the model must return at least two logits per sample, got {shape}"
        advice = "give a one-output binary model two: torch.cat([torch.zeros_like(z), z], dim=1)"
        raise ModelError(f"{message}; {advice}")
    return logits
