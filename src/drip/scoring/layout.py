"""Where an activation keeps its channels: brings every layer's output to (N, K, *positions)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drip.errors import ModelError

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
