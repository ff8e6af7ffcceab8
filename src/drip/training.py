"""Train the first model, and the next one on the training set plus the kept samples.

Deliberately small: one optimiser and one schedule, so two models of a comparison differ only in their
data.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError, ModelError, missing_extra

try:
    import torch
except ImportError as error:
    raise missing_extra("drip.training", "torch", "torch") from error

from torch import nn
from torch.nn.functional import cross_entropy

from drip.store import Labels, RetentionStore, class_of
from drip.types import IntArray


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a model is trained: AdamW, one-cycle learning rate, cross-entropy.

    Attributes:
        epochs: Passes over the examples, at least 1; ignored if ``steps`` is given.
        batch_size: Examples per step, at least 2.
        learning_rate: Peak of the one-cycle schedule, positive.
        weight_decay: Decoupled weight decay, at least 0.
        seed: Seed of initial weights and order. Equal seeds produce equal models on one machine; another
            machine may sum floating-point numbers in a different order, and training amplifies the
            difference.
        device: Where to train, such as ``cpu`` or ``cuda``.
        steps: Total optimiser steps, at least 1, to compare sets of different sizes at equal work; None
            derives them from ``epochs``.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    seed: int = 0
    device: str = "cpu"
    steps: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: A field is outside its range.
        """
        if self.epochs < 1 or self.batch_size < 2 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise InputError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, learning_rate={self.learning_rate}, "
                f"weight_decay={self.weight_decay}: epochs must be at least 1, batch_size at least 2, "
                "learning_rate positive and weight_decay at least 0"
            )
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps is {self.steps}; give at least 1, or None to count epochs")


@dataclass(frozen=True)
class Examples:
    """Labelled inputs in memory, or in a memory map.

    Attributes:
        inputs: Model inputs, float32, shape (n, input shape).
        labels: Class indices, int64, shape (n,).
    """

    inputs: NDArray[np.float32]
    labels: IntArray

    def __post_init__(self) -> None:
        """Check the lengths.

        Raises:
            InputError: There are more inputs than labels, or fewer.
        """
        if len(self.inputs) != len(self.labels):
            raise InputError(
                f"there are {len(self.labels)} labels for {len(self.inputs)} inputs; give one label per input",
                code="labels-invalid",
            )


def train(
    model_factory: Callable[[], nn.Module],
    *parts: Examples,
    config: TrainConfig | None = None,
    start: nn.Module | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train a model from scratch, or continue from ``start``.

    Args:
        model_factory: Returns a model with new random weights; called after seeding.
        parts: Sets of examples, used as one; together at least two examples.
        config: How to train.
        start: A model whose weights are the start; it is not changed.
        on_epoch: Called after every epoch with its number from 1 and its mean loss in nats.

    Returns:
        The trained model, in eval mode.

    Raises:
        InputError: There are fewer than two examples, inputs of several shapes, or a label outside the
            model's classes.
        ModelError: The loss is NaN or infinite.
    """
    config = config or TrainConfig()
    total = sum(len(part.labels) for part in parts)
    if total < 2:
        raise InputError(
            f"{total} training examples are too few; give at least two, and check the store and its labels",
            code="labels-invalid",
        )
    shapes = {part.inputs.shape[1:] for part in parts if len(part.labels)}
    if len(shapes) > 1:
        raise InputError(
            f"the inputs have several shapes, {sorted(shapes)}; prepare all parts with the same input spec",
            code="sample-shape",
        )
    # Seeding inside fork_rng: the caller's random state must not change, and must not matter.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = model_factory()
        if start is not None:
            model.load_state_dict(start.state_dict())
        model.to(config.device).train()
        _fit(model, parts, total, config, on_epoch)
    return model.eval()


def retrain(
    model_factory: Callable[[], nn.Module],
    train_set: Examples,
    store: RetentionStore,
    *,
    prepare: Callable[[bytes, str], NDArray[np.float32]],
    labels: Labels = "true",
    config: TrainConfig | None = None,
    start: nn.Module | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train on the training set plus what the store kept.

    Args:
        model_factory: Returns a model with new random weights.
        train_set: The training set of the deployed model.
        store: The samples that the devices kept.
        prepare: From bytes and media type to one model input, such as :meth:`InputSpec.prepare`.
        labels: Source of the kept samples' labels: ``true`` labels arrived with the sample, ``human``
            labels were added by a person later, ``predicted`` ones are the deployed model's own. Samples
            without such a label are skipped.
        config: How to train.
        start: The deployed model, to fine-tune it; None trains from scratch (the paper's procedure).
        on_epoch: Called after every epoch with its number from 1 and its mean loss in nats.

    Returns:
        The trained model, in eval mode.

    Raises:
        InputError: ``labels`` is unknown, a kept sample cannot be decoded, or there are too few examples.

    References:
        DRIP paper, section IV-A; docs/explanation/decisions.md, A8 and A9.
    """
    with stored_examples(store, prepare=prepare, labels=labels) as kept:
        return train(model_factory, train_set, kept, config=config, start=start, on_epoch=on_epoch)


@contextmanager
def stored_examples(
    store: RetentionStore,
    *,
    prepare: Callable[[bytes, str], NDArray[np.float32]],
    labels: Labels = "true",
    memory_bytes: int = 2**30,
) -> Iterator[Examples]:
    """The labelled samples of a store as model inputs, valid inside the block.

    Args:
        store: The samples that the devices kept.
        prepare: From bytes and media type to one model input.
        labels: Source of the labels; see :func:`retrain`.
        memory_bytes: Larger inputs go to a temporary file instead of memory.

    Raises:
        InputError: ``labels`` is unknown, or a sample cannot be decoded; the message has its id.
    """
    if labels not in get_args(Labels):
        raise InputError(f"labels {labels!r} is unknown; choose one of {', '.join(get_args(Labels))}")
    # Two passes over the store: the array is allocated once, and samples are decoded one at a time.
    count = sum(class_of(stored, labels) is not None for stored in store)
    array: NDArray[np.float32] = np.zeros((0,), np.float32)
    found: list[int] = []
    with tempfile.TemporaryFile() as spill:
        # A device may still write: samples added or evicted since the count must not leave empty rows.
        for label, values in islice(_labelled(store, prepare, labels), count):
            if not found:
                shape = (count, *values.shape)
                in_memory = values.nbytes * count <= memory_bytes
                array = (
                    np.empty(shape, np.float32)
                    if in_memory
                    else np.memmap(spill, np.float32, "w+", shape=shape)
                )
            array[len(found)] = values
            found.append(label)
        yield Examples(array[: len(found)], np.array(found, dtype=np.int64))


def predict(model: nn.Module, inputs: NDArray[np.float32], batch_size: int = 512) -> IntArray:
    """Predicted classes of prepared inputs, shape (n,); switches the model to eval mode."""
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(inputs[row : row + batch_size]).to(device)).argmax(1).cpu().numpy()
            for row in range(0, len(inputs), batch_size)
        ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _labelled(
    store: RetentionStore, prepare: Callable[[bytes, str], NDArray[np.float32]], labels: Labels
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for stored in store:
        label = class_of(stored, labels)
        if label is None:
            continue
        try:
            yield label, prepare(stored.sample.data, stored.sample.media_type)
        except InputError as error:
            raise error.within(f"stored sample {stored.sample.id!r}") from error


def _fit(
    model: nn.Module,
    parts: Sequence[Examples],
    total: int,
    config: TrainConfig,
    on_epoch: Callable[[int, float], None] | None,
) -> None:
    # Batch normalisation fails on a batch of one, which a fixed batch size would leave at the end of some
    # epochs. So the epoch is split into batches whose sizes differ by at most one, each at least two.
    per_epoch = max(1, min(round(total / config.batch_size), total // 2))
    n_steps = config.steps or per_epoch * config.epochs
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    # One more than there are batches: schedule.step() runs after the last batch too, for a rate nobody uses.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=n_steps + 1)
    order = np.random.default_rng(config.seed)
    for epoch, done in enumerate(range(0, n_steps, per_epoch), start=1):
        loss_sum, n_seen = 0.0, 0
        for rows in np.array_split(order.permutation(total), per_epoch)[: n_steps - done]:
            inputs, labels = _fetch(parts, rows)
            optimiser.zero_grad(set_to_none=True)
            logits = model(inputs.to(config.device))
            _check_labels(labels, logits.shape[1])
            loss = cross_entropy(logits, labels.to(config.device))
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimiser.step()
            schedule.step()
            loss_sum += float(loss.detach()) * len(rows)
            n_seen += len(rows)
        if not np.isfinite(loss_sum):
            raise ModelError(
                f"the loss is {loss_sum} in epoch {epoch}; lower learning_rate, or check the inputs' scale",
                code="training-diverged",
            )
        if on_epoch is not None:
            on_epoch(epoch, loss_sum / n_seen)


def _fetch(parts: Sequence[Examples], rows: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels, offset = [], [], 0
    for part in parts:
        mine = rows[(rows >= offset) & (rows < offset + len(part.labels))] - offset
        if len(mine):
            inputs.append(part.inputs[mine])
            labels.append(part.labels[mine])
        offset += len(part.labels)
    return torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(labels))


def _check_labels(labels: torch.Tensor, n_classes: int) -> None:
    # cross_entropy silently ignores the label -100, and fails on other wrong labels with a kernel assertion.
    if labels.min() < 0 or labels.max() >= n_classes:
        raise InputError(
            f"labels are {int(labels.min())} to {int(labels.max())}, but the model's classes are 0 to "
            f"{n_classes - 1}; correct the labels in the store",
            code="labels-invalid",
        )
