"""Many small networks of one shape, trained side by side on their own rows: arrays in, logits out.

A network of ten layers and nine thousand weights leaves a processor idle between calls. Here a step of many
networks is one matrix product per layer; numpy's is faster than torch's for matrices this small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import cos, pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drip.types import FloatArray, IntArray, JsonObject

Values = NDArray[np.float32]

_DROPS_OF_256 = 256


@dataclass(frozen=True)
class Recipe:
    """How networks are trained: ReLU and dropout after every hidden layer, Adam, weighted cross-entropy.

    Attributes:
        hidden: Widths of the hidden layers.
        batch_size: Rows of a step; the last step of an epoch takes what is left.
        dropout: Share of the hidden activations that a step drops; rounded to a multiple of 1/256.
        learning_rate: Adam's, of the first step.
        epochs: Passes over all rows.
        decays: Whether the learning rate falls to zero over the steps, along half a cosine.
    """

    hidden: tuple[int, ...] = (50, 45, 40, 35, 30, 25, 20, 15, 10)
    batch_size: int = 32
    dropout: float = 0.25
    learning_rate: float = 1e-3
    epochs: int = 150
    decays: bool = False

    def to_json(self) -> JsonObject:
        """The recipe for a configuration."""
        return {**asdict(self), "hidden": list(self.hidden)}

    def steps(self, n_rows: int, epochs: int | None = None) -> int:
        """Optimiser steps of so many epochs over so many rows; None: of all epochs.

        >>> Recipe().steps(10_208)
        47850
        """
        return (self.epochs if epochs is None else epochs) * -(-n_rows // self.batch_size)

    def rate(self, step: int, n_steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.learning_rate * (0.5 + 0.5 * cos(pi * step / n_steps) if self.decays else 1.0)


@dataclass(frozen=True)
class Rows:
    """What one network is trained on.

    Attributes:
        values: Features, float32, shape (n, d).
        codes: Classes, int64, shape (n,).
    """

    values: Values
    codes: IntArray


class Networks:
    """Multi-layer perceptrons of one shape, with the state of their optimisers.

    All begin with the same weights, drawn as torch's ``nn.Linear`` draws them, see their rows in the same
    order where they have as many, and drop the same units: what differs between two of them is their rows
    alone, and (but for rounding) none depends on which others are trained beside it.

    Args:
        widths: Inputs, hidden layers, classes.
        count: Number of networks.
        seed: Of weights, order and dropout.

    Attributes:
        weights: Shape (count, parameters): of each layer the matrix (inputs, outputs), then the biases.
        n_steps: Steps taken so far.
    """

    def __init__(self, widths: Sequence[int], count: int, seed: int) -> None:
        self._widths, self._seed = tuple(widths), seed
        rng = np.random.default_rng([seed, 0])
        drawn = [
            rng.uniform(-(fan_in**-0.5), fan_in**-0.5, (fan_in + 1) * fan_out)
            for fan_in, fan_out in pairwise(self._widths)
        ]
        self.weights = np.tile(np.concatenate(drawn).astype(np.float32), (count, 1))
        self._moments = np.zeros((2, *self.weights.shape), np.float32)
        self.n_steps = 0

    def copies(self, count: int) -> Networks:
        """So many copies of the first network and its optimiser's state, to go on from."""
        made = Networks(self._widths, count, self._seed)
        made.weights[:], made._moments[:] = self.weights[0], self._moments[:, :1]
        made.n_steps = self.n_steps
        return made

    def logits(self, values: Values) -> FloatArray:
        """Logits of every network without dropout, shape (count, n, classes)."""
        layers = _layers(self.weights, self._widths)
        active = np.broadcast_to(values, (len(self.weights), *values.shape))
        for layer in layers[:-1]:
            active = np.maximum(active @ layer[:, :-1] + layer[:, -1:], 0)
        return np.asarray(active @ layers[-1][:, :-1] + layers[-1][:, -1:], np.float64)

    def train(
        self,
        sets: Sequence[Rows],
        n_steps: Sequence[int],
        recipe: Recipe,
        class_weights: FloatArray,
        on_epoch: Callable[[], None] | None = None,
    ) -> None:
        """Train every network on its rows, from where it stands.

        The loss of a step is the mean of the rows' cross-entropies, weighted by class.

        Args:
            sets: Rows of each network.
            n_steps: Steps of each network.
            recipe: Batch size, dropout, learning rate.
            class_weights: Of the loss, shape (classes,).
            on_epoch: Called after every epoch of the network with most steps.
        """
        order = np.argsort(-np.asarray(n_steps), kind="stable")
        steps = np.asarray(n_steps)[order]
        weights, moments = self.weights[order], np.take(self._moments, order, axis=1)
        batches = _Batches([sets[k] for k in order], recipe.batch_size, [self._seed, 1, self.n_steps])
        drops = np.random.default_rng([self._seed, 2, self.n_steps])
        last = 0
        for end in sorted(set(steps.tolist())):
            active = int((steps >= end).sum())  # a network that has done all its steps drops out
            pass_ = _Pass(weights[:active], self._widths, recipe, class_weights)
            adam = _adam(weights[:active], pass_.gradients, moments[:, :active], self.n_steps + last)
            for step in range(last, end):
                adam.param_groups[0]["lr"] = recipe.rate(step, int(steps[0]))
                pass_(*batches.next(active), drops)
                adam.step()
                if on_epoch and (step + 1) % batches.per_epoch == 0:
                    self.weights[order] = weights
                    on_epoch()
            last = end
        self.weights[order], self._moments[:, order] = weights, moments
        self.n_steps += int(steps[0])


class _Batches:
    """The rows of every step of every network; a batch that is not full is filled with rows of no weight."""

    def __init__(self, sets: Sequence[Rows], size: int, seed: Sequence[int]) -> None:
        self._values = np.concatenate([rows.values for rows in sets])
        self._codes = np.concatenate([rows.codes for rows in sets])
        counts = [len(rows.codes) for rows in sets]
        self._offsets = np.cumsum([0, *counts[:-1]])[:, None]
        self._lengths, self._length_of = np.unique(counts, return_inverse=True)
        self._size = size
        self._rngs = [np.random.default_rng([*seed, length]) for length in self._lengths.tolist()]
        self._orders: list[IntArray] = [np.empty(0, np.int64)] * len(self._lengths)
        self._at = [0] * len(self._lengths)
        self.per_epoch = -(-counts[0] // size)

    def next(self, active: int) -> tuple[Values, IntArray, NDArray[np.bool_]]:
        """Features (active, size, d), classes and which rows count, both (active, size)."""
        used = int(self._length_of[:active].max()) + 1
        places = np.stack([self._slice(kind) for kind in range(used)])[self._length_of[:active]]
        rows = self._offsets[:active] + np.maximum(places, 0)
        return self._values[rows], self._codes[rows], places >= 0

    def _slice(self, kind: int) -> IntArray:
        if self._at[kind] >= len(self._orders[kind]):
            length = int(self._lengths[kind])
            order = np.full(-(-length // self._size) * self._size, -1)
            order[:length] = self._rngs[kind].permutation(length)
            self._orders[kind], self._at[kind] = order, 0
        start = self._at[kind]
        self._at[kind] += self._size
        return self._orders[kind][start : start + self._size]


class _Pass:
    """Forward and backward pass of a step; gradients have the layout of the weights."""

    def __init__(
        self, weights: Values, widths: Sequence[int], recipe: Recipe, class_weights: FloatArray
    ) -> None:
        count, size = len(weights), recipe.batch_size
        self.gradients = np.zeros_like(weights)
        self._layers = _layers(weights, widths)
        self._slopes = _layers(self.gradients, widths)
        self._inputs = [np.ones((count, size, width + 1), np.float32) for width in widths[:-1]]
        self._outputs = np.empty((count, size, widths[-1]), np.float32)
        self._hidden = list(recipe.hidden)
        self._size = size
        self._dropped = round(_DROPS_OF_256 * recipe.dropout)
        self._scale = np.float32(_DROPS_OF_256 / (_DROPS_OF_256 - self._dropped))
        self._class_weights = class_weights.astype(np.float32)
        self._one_hot = np.eye(widths[-1], dtype=np.float32)

    def __call__(
        self, values: Values, codes: IntArray, counts: NDArray[np.bool_], drops: np.random.Generator
    ) -> None:
        """Set the gradients of a batch."""
        self._inputs[0][..., :-1] = values
        masks = self._masks(drops)
        for number, layer in enumerate(self._layers[:-1]):
            active = self._inputs[number + 1][..., :-1]
            np.matmul(self._inputs[number], layer, out=active)
            np.maximum(active, 0, out=active)
            active *= masks[number]
        np.matmul(self._inputs[-1], self._layers[-1], out=self._outputs)
        error = self._loss_slope(codes, counts)
        for number in range(len(self._layers) - 1, -1, -1):
            seen = self._inputs[number]
            np.matmul(seen.transpose(0, 2, 1), error, out=self._slopes[number])
            if number:
                error = error @ self._layers[number][:, :-1].transpose(0, 2, 1)
                np.copyto(error, 0, where=seen[..., :-1] <= 0)  # dead, or dropped
                error *= self._scale

    def _masks(self, drops: np.random.Generator) -> list[Values]:
        """One random byte per unit and row decides; the same for every network."""
        drawn = np.frombuffer(drops.bytes(self._size * sum(self._hidden)), np.uint8)
        kept = (drawn >= self._dropped) * self._scale
        ends = np.cumsum([self._size * width for width in self._hidden])[:-1]
        return [mask.reshape(self._size, -1) for mask in np.split(kept, ends)]

    def _loss_slope(self, codes: IntArray, counts: NDArray[np.bool_]) -> Values:
        """The slope of the loss in the logits: softmax minus truth, times the row's part of the weight."""
        error: Values = np.exp(self._outputs - self._outputs.max(axis=2, keepdims=True))
        error /= error.sum(axis=2, keepdims=True)
        error -= self._one_hot[codes]
        shares = self._class_weights[codes] * counts
        shares /= shares.sum(axis=1, keepdims=True)
        error *= shares[..., None]
        return error


def _layers(flat: Values, widths: Sequence[int]) -> list[Values]:
    """Views of flat weights or gradients, shape (count, inputs + 1, outputs) each; the biases come last."""
    shapes = [(fan_in + 1, fan_out) for fan_in, fan_out in pairwise(widths)]
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    return [
        flat[:, end - rows * columns : end].reshape(len(flat), rows, columns)
        for end, (rows, columns) in zip(ends.tolist(), shapes, strict=True)
    ]


def _adam(weights: Values, gradients: Values, moments: Values, n_steps: int) -> torch.optim.Adam:
    """Torch's optimiser, working in place on these arrays."""
    tensor = torch.from_numpy(weights)
    tensor.grad = torch.from_numpy(gradients)
    adam = torch.optim.Adam([tensor], fused=True)
    state: dict[str, Any] = {
        "step": torch.tensor(float(n_steps)),
        "exp_avg": torch.from_numpy(moments[0]),
        "exp_avg_sq": torch.from_numpy(moments[1]),
    }
    adam.state[tensor] = state
    return adam
