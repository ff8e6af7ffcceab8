"""Evaluates a model as in production, and alone: training flags, grad modes and locks; no hook."""
# ruff: noqa: SLF001  # the children of a module have no public name without a generator

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

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
