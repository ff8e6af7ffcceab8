"""Checks at the boundary: what may enter a model and what may leave it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drip.errors import InputError, NonFiniteError

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
