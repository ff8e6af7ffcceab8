"""Runs a model once and takes hold of one activation: the only place that hooks and switches modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from drip.errors import ModelError


class ScoringMode:
    """Context: evaluate a model as in production and leave no trace.

    Inside, every module is in eval mode, no graph is built, and inference mode is off, because its
    tensors could not enter the head's graph. Afterwards every module has its own training flag
    again, also when the block raised. A class, not a generator: entering must cost microseconds.

    Args:
        modules: All modules of the model.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._training: list[nn.Module] = []
        self._outside: AbstractContextManager[Any] | None = None
        self._had_grad = False

    def __enter__(self) -> None:
        """Switch to eval mode without a graph."""
        self._training = [module for module in self._modules if module.training]
        for module in self._training:
            module.training = False
        if torch.is_inference_mode_enabled():
            self._outside = torch.inference_mode(mode=False)
            self._outside.__enter__()
        self._had_grad = torch.is_grad_enabled()
        torch.set_grad_enabled(False)

    def __exit__(self, *_exception: object) -> None:
        """Put every mode and flag back."""
        torch.set_grad_enabled(self._had_grad)
        if self._outside is not None:
            self._outside.__exit__(None, None, None)
        for module in self._training:
            module.training = True


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

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
        nonlocal calls
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
            output = model(x)
        else:
            with chain:
                output = model(x)
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
    """A hook to be switched on for a pass and off after it; registering it each time costs ten times as much.

    Args:
        register: ``register_forward_hook`` or the like of a module.
        call: What it registers.
    """

    def __init__(
        self, register: Callable[[Callable[..., None]], RemovableHandle], call: Callable[..., None]
    ) -> None:
        handle = register(call)
        self._hooks: dict[int, Any] = handle.hooks_dict_ref() or {}
        self._id, self._call = handle.id, call
        handle.remove()

    def on(self) -> None:
        """Run it from now on, after all that were registered before."""
        self._hooks[self._id] = self._call

    def off(self) -> None:
        """Run it no more."""
        self._hooks.pop(self._id, None)


class Tap:
    """Takes hold of the target's activation and of what some modules behind it read, pass after pass.

    Nothing of a pass stays here. Two passes at a time would mix their tensors: the caller holds a lock.

    Args:
        layer: The module whose output is wanted.
        functions: What ``forward`` applies to it, as for :func:`run_tapped`.
        readers: The modules whose inputs are wanted.
    """

    def __init__(self, layer: nn.Module, functions: Sequence[str], readers: Sequence[nn.Module]) -> None:
        self._layer, self._functions = layer, functions
        self._outputs: list[Tensor] = []
        self._inputs: list[Tensor] = []
        self._hooks = [_Hook(reader.register_forward_pre_hook, self._keep_input) for reader in readers]
        if not functions:
            self._hooks.append(_Hook(layer.register_forward_hook, self._keep_output))

    def run(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits of ``model(x)``, the activation, and the readers' inputs in the order of their calls.

        Raises:
            ModelError: As :func:`run_tapped`.
        """
        outputs, inputs = self._outputs, self._inputs
        try:
            for hook in self._hooks:
                hook.on()
            if self._functions:
                output = run_tapped(model, self._layer, self._functions, x, outputs.append)
            else:
                output = model(x)
        finally:
            for hook in self._hooks:
                hook.off()
            self._outputs, self._inputs = [], []
        _require_once(len(outputs))
        return logits_of(output, x.shape[0]), outputs[0], inputs

    def _keep_input(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._inputs.append(inputs[0])

    def _keep_output(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._outputs.append(output)


def _require_once(calls: int) -> None:
    """The target layer ran in the pass, and ran once."""
    if calls != 1:
        message = f"the target layer must run exactly once per forward pass, it ran {calls} times"
        raise ModelError(f"{message}; choose a layer that does")


def gradient_at(leaf: Tensor, logits: Tensor, seed: Tensor, *, keep_graph: bool = False) -> Tensor | None:
    """Gradient of the sum of ``seed * logits`` at a leaf, None where they do not depend on it.

    Of a number: with ``grad_outputs`` torch loads its symbolic shapes, and SymPy with them, 30 MiB.
    """
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
