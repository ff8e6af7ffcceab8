"""Evaluates a model as in production, and alone: training flags, grad modes and locks; no hook."""
# ruff: noqa: SLF001  # the children of a module have no public name without a generator
# ruff: noqa: SLF001  # torch counts edits in place, and keeps hooks, in private names only

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from threading import get_ident
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from drip.errors import InputError, ModelError, NonFiniteError

Lock = AbstractContextManager[Any]

_LOCKS: WeakKeyDictionary[nn.Module, tuple[int, Lock]] = WeakKeyDictionary()
_NUMBERS = count()
_GUARD = threading.Lock()


def locks_of(model: nn.Module) -> tuple[Lock, ...]:
    """What to hold while a model is scored: hooks and training flags are its own, not the scorer's.

    Every module has one lock, shared with the modules of the model that it was first scored with. So
    a model, a part of it and a wrapper around it wait for one another. Where a model joins several
    that had locks before, there are several, in the order in which everyone takes them.

    >>> part, other = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> locks_of(part) == locks_of(nn.Sequential(part)) != locks_of(other)
    True
    >>> locks_of(nn.Sequential(other, part)) == locks_of(part) + locks_of(other)
    True
    """
    with _GUARD:
        modules = tuple(model.modules())
        found = sorted({_LOCKS[module] for module in modules if module in _LOCKS}, key=lambda pair: pair[0])
        found = found or [(next(_NUMBERS), threading.RLock())]
        for module in modules:
            _LOCKS.setdefault(module, found[0])
        return tuple(lock for _, lock in found)


class ScoringMode:
    """Context: evaluate a model as in production and leave no trace.

    Inside, every module is in eval mode, no graph is built, and inference mode is off, because its
    tensors could not enter the head's graph. Afterwards every module has its own training flag
    again, also when the block raised. Others that score the model meanwhile wait. A class, not a
    generator: entering must cost microseconds.

    Args:
        model: The model, with the modules that it has when the context is entered.
        locks: Of :func:`locks_of`, taken beforehand.
    """

    def __init__(self, model: nn.Module, locks: Sequence[Lock]) -> None:
        self._model, self._locks = model, locks
        self._training: list[nn.Module] = []
        self._outside: Lock | None = None
        self._had_grad = False

    def __enter__(self) -> None:
        """Wait for others, then switch to eval mode without a graph."""
        for lock in self._locks:
            lock.__enter__()
        self._training = _in_training(self._model)
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
        for lock in reversed(self._locks):
            lock.__exit__(None, None, None)


def _in_training(model: nn.Module) -> list[nn.Module]:
    """The modules whose flag says training; ``model.modules()`` takes six times as long."""
    found, with_children = [], set()
    waiting: list[nn.Module | None] = [model]
    for module in waiting:
        if module is None:
            continue
        if module.training:
            found.append(module)
        children = module._modules
        if children and module not in with_children:  # a module may stand in several places
            with_children.add(module)
            waiting += children.values()
    return found


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


Batch = NDArray[np.floating[Any]] | Tensor


def to_input(batch: Batch, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The batch as a tensor of the model's type on the model's device, without a graph.

    Raises:
        InputError: It is neither array nor tensor, has no batch axis, is not floating point, has a
            mask, or holds NaN or infinite values (the message names the rows).
    """
    if isinstance(batch, np.ma.MaskedArray):
        raise InputError("batch must be an array without a mask, got MaskedArray; fill it: batch.filled(0.0)")
    if isinstance(batch, np.ndarray) and batch.dtype.kind == "f":
        if batch.dtype.char not in "efd" or not batch.dtype.isnative:  # long doubles, other byte orders
            batch = batch.astype(np.float64)
        # torch warns of arrays that are read-only and refuses negative strides
        tensor = torch.from_numpy(batch if batch.flags.carray else batch.copy(order="C"))
    elif isinstance(batch, Tensor) and batch.is_floating_point():
        tensor = batch.detach()
    elif isinstance(batch, (np.ndarray, Tensor)):
        advice = "scale it as in training, then pass float32"
        raise InputError(
            f"batch must be floating point, got {type(batch).__name__} of {batch.dtype}; {advice}"
        )
    else:
        raise InputError(f"batch must be a numpy array or a torch tensor, got {type(batch).__name__}")
    if tensor.dim() < 2:
        shape = tuple(tensor.shape)
        raise InputError(
            f"batch must have shape (N, *input shape), got {shape}; add the batch axis: batch[None]"
        )
    if tensor.dtype != dtype or tensor.device != device:
        tensor = tensor.to(device=device, dtype=dtype)
    # one sum finds every NaN and infinity at the price of one pass; only a hit is looked at closely
    if not math.isfinite(tensor.sum().item()):
        finite = torch.isfinite(tensor.flatten(1)).all(1)
        if not finite.all():
            rows = _first_rows(~finite.cpu().numpy())
            raise InputError(
                f"inputs must be finite, got NaN or infinity in rows {rows}; drop or repair them"
            )
    return tensor


def to_host(values: Any) -> NDArray[Any]:
    """A tensor, on whatever device and of whatever floating type, or an array, as an array."""
    if isinstance(values, np.ndarray):
        return values
    host = values.detach().cpu()
    return np.asarray(host.float() if host.dtype == torch.bfloat16 else host)


def require_finite(what: str, values: NDArray[np.floating[Any]]) -> None:
    """Check that every row of a model's results is finite.

    Raises:
        NonFiniteError: Some are not; the message names the rows (A11: never a silent discard).
    """
    if not np.isfinite(values).all():
        rows = _first_rows(~np.isfinite(values).reshape(len(values), -1).all(1))
        raise NonFiniteError(
            f"{what} must be finite, got NaN or infinity in rows {rows}; look at these inputs' scale, and "
            "where every input does it at the model's weights and running statistics"
        )


def notes_on(logits: Tensor) -> tuple[str, ...]:
    """What the user should know of outputs that do not look like logits.

    >>> notes_on(torch.tensor([[0.9, 0.8, 0.1]]))[0][:55]
    'the outputs look like probabilities of independent labe'
    >>> notes_on(torch.tensor([[-1.0, 3.0, 0.1]]))
    ()
    """
    sums = torch.stack((logits.sum(1) if logits.min() >= 0 else logits[:, 0], logits.exp().sum(1)))
    if ((sums - 1).abs() < 1e-4).all(1).any():
        return ("the outputs look like (log-)probabilities; the score wants the logits before softmax",)
    if logits.min() >= 0 and logits.max() <= 1:
        note = "the outputs look like probabilities of independent labels (sigmoid)"
        return (f"{note}; the score wants the logits, one class per sample",)
    return ()


def to_classes(classes: Any, like: Any) -> Any:
    """Class indices (N,) for logits (N, n_classes): an array, or a tensor where ``like`` is one.

    Raises:
        InputError: They are not N integers in [0, n_classes).
    """
    n_rows, n_classes = like.shape
    given = np.asarray(classes)
    if given.shape != (n_rows,) or given.dtype.kind not in "iu":
        raise InputError(
            f"classes must be {n_rows} integers, one per row, got {given.dtype} of shape {given.shape}"
        )
    if n_rows and (given.min() < 0 or given.max() >= n_classes):
        raise InputError(f"classes must be in [0, {n_classes}), got {given.min()} to {given.max()}")
    indices = given.astype(np.int64)
    return torch.from_numpy(indices).to(like.device) if isinstance(like, Tensor) else indices


def _first_rows(bad: NDArray[np.bool_]) -> str:
    """The first few row indices where ``bad`` holds."""
    rows = np.flatnonzero(bad)
    listed = ", ".join(str(row) for row in rows[:8])
    return listed if len(rows) <= 8 else f"{listed} and {len(rows) - 8} more"
