"""Run a user's model, check its inputs, observe its activations, and leave it unchanged.

The model is the user's. It may be in training mode, have hooks, edit its input, be shared by
several scorers and threads, or raise anything. This is the only module of the package that calls it:

- :class:`ScoringMode` evaluates it as in production and restores every flag afterwards, even after an error.
- :func:`run_tapped` and :class:`Tap` observe the output of one layer during a forward pass.
- :func:`to_input`, :func:`logits_of` and :func:`require_finite` check what enters and what comes out, once.
"""
# ruff: noqa: SLF001  # torch keeps a module's children, its hooks and a tensor's version counter in private names

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

Batch = NDArray[np.floating[Any]] | Tensor
Lock = AbstractContextManager[Any]

# Weak keys: this table must not keep models in memory. An attribute on the module would be simpler, but a
# lock can be neither pickled nor copied, so the user's model could not be either.
_LOCKS: WeakKeyDictionary[nn.Module, tuple[int, Lock]] = WeakKeyDictionary()
_NUMBERS = count()
_GUARD = threading.Lock()


def locks_of(model: nn.Module) -> tuple[Lock, ...]:
    """The locks to hold while a model is scored.

    Hooks and training flags belong to the model, not to a scorer, so a lock per scorer is not enough: two
    scorers of one model would switch each other's flags. Every module has one lock, which it shares with
    the other modules of the model that it was first scored with. A model, a part of it and a wrapper
    around it therefore wait for each other. A model that joins several such models has several locks; they
    are numbered, and everyone acquires them in this order, which rules out deadlocks.

    >>> part, other = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> locks_of(part) == locks_of(nn.Sequential(part)) != locks_of(other)
    True
    >>> locks_of(nn.Sequential(other, part)) == locks_of(part) + locks_of(other)
    True
    """
    with _GUARD:
        modules = tuple(model.modules())
        # Sorted by number: two threads that score overlapping models take their common locks in the same
        # order.
        found = sorted({_LOCKS[module] for module in modules if module in _LOCKS}, key=lambda pair: pair[0])
        # Reentrant: the thread that holds the lock may score a part of the model from inside forward.
        found = found or [(next(_NUMBERS), threading.RLock())]
        for module in modules:
            _LOCKS.setdefault(module, found[0])
        return tuple(lock for _, lock in found)


class ScoringMode:
    """Context that evaluates a model as in production and leaves no trace.

    Inside, every module is in eval mode and no graph is built. Inference mode is switched off, because
    tensors created under it cannot enter the head's graph later. Afterwards every module has its own training
    flag again, even after an error. Other threads that score the model wait.

    This is a class because ``contextlib.contextmanager`` costs several microseconds per entry, a
    noticeable part of a decision of a small model.

    Args:
        model: The model, with the modules that it has when the context is entered.
        locks: From :func:`locks_of`, looked up once beforehand.
    """

    def __init__(self, model: nn.Module, locks: Sequence[Lock]) -> None:
        self._model, self._locks = model, locks
        self._training: list[nn.Module] = []
        self._outside: Lock | None = None
        self._had_grad = False

    def __enter__(self) -> None:
        """Wait for other threads, then switch to eval mode without a graph."""
        for lock in self._locks:
            lock.__enter__()
        # Looked up at each entry, after locking: the user may have called train() or added a layer since.
        self._training = _in_training(self._model)
        for module in self._training:
            module.training = False
        # Entered only if needed: a no-op context would cost as much as the rest of this method.
        if torch.is_inference_mode_enabled():
            self._outside = torch.inference_mode(mode=False)
            self._outside.__enter__()
        self._had_grad = torch.is_grad_enabled()
        torch.set_grad_enabled(False)

    def __exit__(self, *_exception: object) -> None:
        """Restore every mode and flag, in the reverse order."""
        torch.set_grad_enabled(self._had_grad)
        if self._outside is not None:
            self._outside.__exit__(None, None, None)
        for module in self._training:
            module.training = True
        for lock in reversed(self._locks):
            lock.__exit__(None, None, None)


def _in_training(model: nn.Module) -> list[nn.Module]:
    """The modules in training mode.

    ``model.modules()`` takes six times as long: it is a recursive generator that also builds names. Flags
    are set one by one and not with ``model.eval()``, which could not restore a partly frozen model.
    """
    found, with_children = [], set()
    waiting: list[nn.Module | None] = [model]
    for module in waiting:
        if module is None:
            continue
        if module.training:
            found.append(module)
        children = module._modules
        if children and module not in with_children:  # a module may be registered in several places
            with_children.add(module)
            waiting += children.values()
    return found


class WrittenBuffers:
    """The buffers that a model's forward pass changes, in eval mode too: counters, observers, a memory.

    They are set back after each pass. Otherwise the result for a sample would depend on the samples before it,
    and the digest on how many were scored.

    Args:
        model: The model, before a pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def keep_changed(self) -> list[str]:
        """Forget the buffers that are as they were; returns the names of the others."""
        self._kept = [
            kept for kept in self._kept
            if kept[0]._buffers.get(kept[1]) is not kept[2] or not torch.equal(kept[2], kept[3])
        ]  # fmt: skip
        return [name for _, name, _, _ in self._kept]

    def restore(self) -> None:
        """Set the buffers back."""
        with torch.no_grad():
            for module, name, buffer, values in self._kept:
                if buffer.shape != values.shape:
                    buffer.resize_(values.shape)  # observers of quantisation grow theirs at the first pass
                buffer.copy_(values)
                module._buffers[name] = buffer


def each_row(x: Tensor) -> list[Tensor]:
    """The rows of a batch, each as a batch of one."""
    return [x[row : row + 1] for row in range(len(x))]


def rows_influence_each_other(model: nn.Module, example: Tensor, logits: Tensor) -> bool:
    """Whether a row has other logits alone than in a batch.

    Args:
        model: The model.
        example: At least two samples.
        logits: Of the example.

    Raises:
        ModelError: The same batch has other logits the second time; code ``model-impure``.
    """
    # Not zero: matrix products of a different size round differently.
    tolerance = 1e-4 if example.dtype in {torch.float32, torch.float64} else 2e-2
    scale = float(logits.abs().max())
    again = logits_of(model(example.clone()), len(example))
    if float((again - logits).abs().max()) > tolerance * scale:
        raise ModelError(
            "the model returns different logits for the same batch: it keeps state between passes, or draws random "
            "numbers in eval mode, as F.dropout does without training=self.training; correct its forward",
            code="model-impure",
        )
    try:
        alone = torch.cat([logits_of(model(row.clone()), 1) for row in each_row(example)])
    except Exception:  # noqa: BLE001  # a model for two rows or more; scoring a single one will say why
        return False
    return float((alone - logits).abs().max()) > tolerance * scale


class FunctionChain(TorchFunctionMode):
    """Follows a tensor through functions outside any module, as in ``F.relu(self.conv(x))``.

    Hooks see modules only, but many tutorial models write activation and pooling as functions.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tail: Tensor | None = None

    def start(self, tensor: Tensor) -> None:
        """Follow ``tensor`` from here on."""
        self._tail = tensor

    def step(self, name: str, result: Tensor) -> Tensor | None:
        """Called for each function applied to the tail; returns its result, the new tail, or None to stop."""
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` and follow its result if its first argument is the tail."""
        kwargs = kwargs or {}
        source = args[0] if args else kwargs.get("input")
        follows = self._tail is not None and source is self._tail
        result = func(*args, **kwargs)
        if follows and isinstance(result, Tensor):
            if "dropout" in func.__name__:  # the identity in eval mode; it does not end the activation
                self._tail = result
                return result
            stepped = self.step(func.__name__, result)
            if stepped is not None:
                self._tail = result = stepped
        return result


class _NamedChain(FunctionChain):
    """Follows the named functions and taps the result of the last one."""

    def __init__(self, functions: Sequence[str], on_output: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self.remaining = list(functions)
        self._on_output = on_output

    def step(self, name: str, result: Tensor) -> Tensor | None:
        """Follow the function if it is the next in the list."""
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

    The model gets a copy of ``x``, because a model may edit its input in place: ``x`` belongs to the
    caller and is used for several passes.

    Args:
        model: The classifier.
        layer: The module of ``model`` to observe.
        functions: Names of the functions that ``forward`` applies to the layer's output, in order. The
            result of the last one is then observed instead.
        x: A batch.
        on_output: Gets the observed tensor; a tensor that it returns replaces it for the rest of the
            pass.

    Raises:
        ModelError: The layer did not run exactly once, its output is not a tensor, the functions do not
            follow it, or the model does not return logits (N, C).
    """
    calls = 0
    thread = get_ident()

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
        nonlocal calls
        if get_ident() != thread:  # another thread uses the model meanwhile; its pass is not ours
            return None
        calls += 1
        if not isinstance(output, Tensor):
            raise ModelError(
                f"the output of the target layer is a {type(output).__name__}, not a tensor; choose a layer "
                "inside it",
                code="model-layer",
            )
        if chain is None:
            return on_output(output)
        chain.start(output)
        return None

    chain = _NamedChain(functions, on_output) if functions else None
    # Registered last, so the user's own hooks on the layer run first and are part of its output.
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
        raise ModelError(
            f"forward does not apply {chain.remaining[0]!r} to the target layer's output, so "
            f"{'+'.join(functions)} cannot be observed; build a new scorer after changing the model",
            code="model-layer",
        )
    return logits_of(output, x.shape[0])


class _Hook:
    """A forward hook that is switched on for one pass and off after it.

    ``register_forward_hook`` costs ten times as much, because it creates a handle with a fresh id. A hook
    that stays registered is not an alternative: it would be copied, pickled and called with the user's model.
    The module's dictionary is looked up each time, since some libraries replace it.

    Args:
        module: The module to observe.
        call: As for ``register_forward_hook``.
    """

    def __init__(self, module: nn.Module, call: Callable[..., None]) -> None:
        handle = module.register_forward_hook(call)
        self._module, self._id, self._call = module, handle.id, call
        handle.remove()

    def on(self) -> None:
        """Call it from now on, after all hooks that are registered already."""
        self._module._forward_hooks[self._id] = self._call

    def off(self) -> None:
        """Stop calling it."""
        self._module._forward_hooks.pop(self._id, None)


class Call(NamedTuple):
    """Input and output of one call of a module."""

    given: Tensor
    result: Tensor


class Tapped(NamedTuple):
    """The result of one observed pass.

    Attributes:
        logits: Shape (N, C).
        activation: Output of the target layer, or of the last function, in the model's own layout.
        calls: Calls of the readers, in the order of execution.
        edits: For the activation and for input and output of each call, how often it was edited in place
            between the moment it was observed and the end of the pass. An edited tensor no longer
            has the values that the layer saw.
    """

    logits: Tensor
    activation: Tensor
    calls: list[Call]
    edits: tuple[int, ...]


class Tap:
    """Observes the target layer and the calls of some later modules, pass after pass.

    It does the same as :func:`run_tapped` with hooks that are made once, because this runs for every sample
    of a stream. Nothing of a pass is kept. Two passes at once would mix their tensors, so the caller
    holds the model's locks.

    Args:
        layer: The module to observe.
        functions: Functions that ``forward`` applies to its output, as for :func:`run_tapped`.
        readers: The modules whose calls are recorded. A call without positional arguments, or without a
            tensor as its result, is not recorded.
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
            # New lists, not cleared ones: the results hold the old ones, and no pass may leak into the next.
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
        self._versions.insert(
            0, activation._version
        )  # first, as in `kept` above: readers may have run before


def _require_once(calls: int) -> None:
    """Check that the target layer ran exactly once: with several runs, the right one is unknown."""
    if calls != 1:
        raise ModelError(
            f"the target layer ran {calls} times in a forward pass instead of once; choose another layer, or "
            "build a new scorer after replacing a layer",
            code="model-layer",
        )


def gradient_at(leaf: Tensor, logits: Tensor, seed: Tensor, *, keep_graph: bool = False) -> Tensor | None:
    """Gradient of the sum of ``seed * logits`` at a leaf; None if the logits do not depend on it.

    The sum is built here instead of passing ``grad_outputs=seed``: that makes torch import its symbolic
    shapes and with them SymPy, 30 MiB of memory on a device.
    """
    if not logits.requires_grad:
        return None
    with torch.enable_grad():
        total = (logits * seed).sum()
    (gradient,) = torch.autograd.grad(total, leaf, retain_graph=keep_graph, allow_unused=True)
    return gradient


def logits_of(output: Any, n_rows: int) -> Tensor:
    """The logits (N, C) in a model's output: the tensor itself, or ``logits`` of an object or mapping.

    Raises:
        ModelError: There are no logits, they are not 2-D with one row per sample, or C is 1.
    """
    logits = output
    if not isinstance(output, Tensor):
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"the model returns a {type(output).__name__} without logits; wrap it in a module that returns "
            "its logits, shape (N, C)",
            code="model-outputs",
        )
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[0] != n_rows:
        raise ModelError(
            f"the model returns logits of shape {shape}, not ({n_rows}, n_classes); DRIP scores one class "
            "per sample, so pool a dense output first",
            code="model-outputs",
        )
    # With one logit every sample has class 0, and the contrastive score has no second class.
    if shape[1] < 2:
        raise ModelError(
            f"the model returns one logit per sample, shape {shape}; turn a one-output binary model into two "
            "classes: torch.cat([torch.zeros_like(z), z], dim=1)",
            code="model-outputs",
        )
    return logits


def to_input(batch: Batch, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The batch as a tensor of the model's type on the model's device, without a graph.

    Raises:
        InputError: The batch is neither array nor tensor, has no batch axis, is not floating point, has a
            mask, or contains NaN or infinity (the message names the rows).
    """
    if isinstance(batch, np.ma.MaskedArray):  # torch would silently read the values under the mask
        raise InputError("the batch is a masked array; fill it first: batch.filled(0.0)")
    if isinstance(batch, np.ndarray) and batch.dtype.kind == "f":
        if batch.dtype.char not in "efd" or not batch.dtype.isnative:  # long doubles, other byte orders
            batch = batch.astype(np.float64)
        # torch warns about read-only arrays and rejects negative strides
        tensor = torch.from_numpy(batch if batch.flags.carray else batch.copy(order="C"))
    elif isinstance(batch, Tensor) and batch.is_floating_point():
        tensor = batch.detach()
    elif isinstance(batch, (np.ndarray, Tensor)):
        # Converting bytes to floats here would hide a missing scaling: the scores would be plausible and
        # wrong.
        raise InputError(
            f"the batch is a {type(batch).__name__} of {batch.dtype}, not of floats; scale it as in "
            "training, then pass float32"
        )
    else:
        raise InputError(
            f"the batch is a {type(batch).__name__}; pass a NumPy array or a torch tensor of floats"
        )
    if tensor.dim() < 2:
        raise InputError(
            f"the batch has shape {tuple(tensor.shape)} without a batch axis; add it: batch[None]",
            code="sample-shape",
        )
    if tensor.dtype != dtype or tensor.device != device:
        tensor = tensor.to(device=device, dtype=dtype)
    # One sum finds every NaN and infinity in one read. It may also overflow by itself, so a hit is examined.
    if not math.isfinite(tensor.sum().item()):
        finite = torch.isfinite(tensor.flatten(1)).all(1)
        if not finite.all():
            rows = _first_rows(~finite.cpu().numpy())
            raise InputError(
                f"the batch contains NaN or infinity in rows {rows}; remove or repair them",
                code="sample-non-finite",
            )
    return tensor


def to_host(values: Any) -> NDArray[Any]:
    """A tensor of any device and floating type as an array; an array unchanged."""
    if isinstance(values, np.ndarray):
        return values
    host = values.detach().cpu()
    return np.asarray(host.float() if host.dtype == torch.bfloat16 else host)  # NumPy has no bfloat16


def require_finite(what: str, values: NDArray[np.floating[Any]]) -> None:
    """Check that every row of a model's results is finite.

    A NaN score compares as outside every window or inside it, depending on how the comparison is written,
    so it must never reach a rule (docs/explanation/decisions.md, A11).

    Raises:
        NonFiniteError: Some rows are not finite; the message names them.
    """
    if not np.isfinite(values).all():
        rows = _first_rows(~np.isfinite(values).reshape(len(values), -1).all(1))
        raise NonFiniteError(
            f"the {what} contain NaN or infinity in rows {rows}; check the scale of these inputs; if "
            "every input is affected, check the model's weights and running statistics"
        )


def notes_on(logits: Tensor) -> tuple[str, ...]:
    """Warnings about outputs that do not look like logits.

    A warning and not an error: logits may happen to lie between zero and one.

    >>> notes_on(torch.tensor([[0.9, 0.8, 0.1]]))[0][:55]
    'the outputs look like probabilities of independent labe'
    >>> notes_on(torch.tensor([[-1.0, 3.0, 0.1]]))
    ()
    """
    # Rows that sum to one are a softmax; rows whose exponentials do are a log-softmax.
    sums = torch.stack((logits.sum(1) if logits.min() >= 0 else logits[:, 0], logits.exp().sum(1)))
    if ((sums - 1).abs() < 1e-4).all(1).any():
        return ("the outputs look like (log-)probabilities; the score needs the logits before softmax",)
    if logits.min() >= 0 and logits.max() <= 1:
        note = "the outputs look like probabilities of independent labels (sigmoid)"
        return (f"{note}; the score needs the logits of a model with one class per sample",)
    return ()


def to_classes(classes: Any, like: Any) -> Any:
    """Class indices (N,) for logits (N, n_classes), as a tensor if ``like`` is one and as an array otherwise.

    Raises:
        InputError: ``classes`` are not N integers in [0, n_classes).
    """
    n_rows, n_classes = like.shape
    given = np.asarray(classes)
    if given.shape != (n_rows,) or given.dtype.kind not in "iu":
        raise InputError(
            f"classes has type {given.dtype} and shape {given.shape}; give {n_rows} integers, one per row"
        )
    if n_rows and (given.min() < 0 or given.max() >= n_classes):
        raise InputError(f"classes are {given.min()} to {given.max()}; the model's are 0 to {n_classes - 1}")
    indices = given.astype(np.int64)
    return torch.from_numpy(indices).to(like.device) if isinstance(like, Tensor) else indices


def _first_rows(bad: NDArray[np.bool_]) -> str:
    """The first few row indices where ``bad`` holds."""
    rows = np.flatnonzero(bad)
    listed = ", ".join(str(row) for row in rows[:8])
    return listed if len(rows) <= 8 else f"{listed} and {len(rows) - 8} more"
