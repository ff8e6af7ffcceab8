"""Numbers out of a saved state, which a file or a store may have damaged; nothing else passes for one."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from drip.types import FloatArray


def number(name: str, value: Any) -> float:
    """A finite number; ``true`` and ``"3"`` are none.

    Raises:
        TypeError: no number.
        ValueError: NaN or infinite.
        OverflowError: an integer beyond float64.

    >>> number("limit", 2)
    2.0
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {_brief(value)}")
    if not isfinite(float(value)):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def numbers(name: str, values: Any, *shape: int | None) -> FloatArray:
    """Finite numbers in lists of the given lengths; None stands for any.

    Raises:
        TypeError: no list, or an entry that is no number.
        ValueError: a list of another length, NaN or infinity.
        OverflowError: an integer beyond float64.

    >>> numbers("mean", [[1, 2]], None, 2)
    array([[1., 2.]])
    """
    _check(name, values, shape)
    return np.array(values, np.float64).reshape(len(values), *(-1 if n is None else n for n in shape[1:]))


def restore_generator(generator: np.random.Generator, state: Any) -> None:
    """Continue drawing from a saved state of PCG64.

    Raises:
        KeyError, TypeError, ValueError: no such state.
    """
    words = state["state"]["state"], state["state"]["inc"], state["has_uint32"], state["uinteger"]
    if not all(type(word) is int for word in words):
        raise TypeError(f"a generator's state must be integers, got {_brief(words)}")
    generator.bit_generator.state = state


def _check(name: str, values: Any, shape: tuple[int | None, ...]) -> None:
    if not shape:
        number(name, values)
        return
    if not isinstance(values, list):
        raise TypeError(f"{name} must be a list, got {_brief(values)}")
    if shape[0] is not None and len(values) != shape[0]:
        raise ValueError(f"{name} must have {shape[0]} entries, got {len(values)}")
    for value in values:
        _check(name, value, shape[1:])


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
