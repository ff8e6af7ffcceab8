"""Runs a model once and takes hold of one activation: the only place that hooks and switches modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from drip.errors import ModelError


@contextmanager
def scoring_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluate ``modules`` as in production and leave no trace: eval mode, no graph, any caller's grad mode.

    Every module's own training flag is put back, also when the block raises.
    """
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode(mode=False), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


class FunctionChain(TorchFunctionMode):
    """Watches what ``forward`` itself applies to a tensor: ``F.relu(self.conv(x))`` runs in no module.

    Attributes:
        tail: The tensor that the next function of the chain must take as its first argument.
    """

    def __init__(self, on_step: Callable[[str, Tensor], Tensor | None]) -> None:
        super().__init__()
        self.tail: Tensor | None = None
        self._on_step = on_step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``; when it takes the tail, the result becomes the tail if ``on_step`` gives one."""
        kwargs = kwargs or {}
        source = args[0] if args else kwargs.get("input")
        follows = self.tail is not None and source is self.tail
        result = func(*args, **kwargs)
        if follows and isinstance(result, Tensor):
            replaced = self._on_step(func.__name__, result)
            if replaced is not None:
                self.tail = result = replaced
        return result


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
            it. It may switch the grad mode: that lasts until the model returns.

    Raises:
        ModelError: The layer ran not exactly once, gave no tensor, is not followed by the functions,
            or the model gives no logits (N, C).
    """
    calls = 0
    remaining = list(functions)

    def on_step(name: str, result: Tensor) -> Tensor | None:
        if not remaining or name != remaining[0]:
            return None
        remaining.pop(0)
        replaced = None if remaining else on_output(result)
        return result if replaced is None else replaced

    chain = FunctionChain(on_step) if remaining else None

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
        nonlocal calls
        calls += 1
        if not isinstance(output, Tensor):
            message = f"the target layer must give one tensor, got {type(output).__name__}"
            raise ModelError(f"{message}; choose a layer inside it")
        if chain is None:
            return on_output(output)
        chain.tail = output
        return None

    handle = layer.register_forward_hook(hook)
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # undoes what on_output switched
            if chain is None:
                output = model(x)
            else:
                with chain:
                    output = model(x)
    finally:
        handle.remove()
    if calls != 1:
        message = f"the target layer must run exactly once per forward pass, it ran {calls} times"
        raise ModelError(f"{message}; choose a layer that does")
    if remaining:
        message = (
            f"the target layer's output must go through {'+'.join(functions)}, {remaining[0]!r} did not come"
        )
        raise ModelError(f"{message}; build the scorer anew after changing the model")
    return logits_of(output, len(x))


def logits_of(output: Any, n_rows: int) -> Tensor:
    """The logits (N, C) in what a model returned: a tensor, or an object or mapping with ``logits``.

    Raises:
        ModelError: There are none, they are not 2-D with one row per sample, or C is 1.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        message = (
            f"the model must return logits (N, C) or an object with .logits, got {type(output).__name__}"
        )
        raise ModelError(f"{message}; wrap it in a module that returns its logits")
    shape = tuple(logits.shape)
    if logits.dim() != 2 or len(logits) != n_rows:
        message = f"the model must return logits of shape ({n_rows}, n_classes), got {shape}"
        raise ModelError(f"{message}; DRIP scores one class per sample: dense outputs need pooling first")
    if shape[1] < 2:
        message = f"the model must return at least two logits per sample, got {shape}"
        advice = "give a one-output binary model two: torch.cat([torch.zeros_like(z), z], dim=1)"
        raise ModelError(f"{message}; {advice}")
    return logits
