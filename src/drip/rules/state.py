"""Parses numbers from saved state, which may be corrupt.

Plain ``TypeError`` and ``ValueError`` are enough here: the caller knows which file or store the state came from
and adds it.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drip.errors import brief
from drip.types import FloatArray


def number(name: str, value: Any) -> float:
    """A finite number; ``true`` and ``"3"`` are not numbers.

    Raises:
        TypeError: not a number.
        ValueError: NaN or infinite.
        OverflowError: an integer beyond float64.

    >>> number("limit", 2)
    2.0
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {brief(value)}")
    if not isfinite(float(value)):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def count(name: str, value: Any) -> int:
    """An integer of at least 0.

    Raises:
        TypeError: not an integer.
        ValueError: below 0.

    >>> count("arrivals", 2)
    2
    """
    if type(value) is not int:
        raise TypeError(f"{name} must be an integer, got {brief(value)}")
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value


def numbers(name: str, values: Any, *shape: int | None) -> FloatArray:
    """Finite numbers in nested lists of the given lengths; None accepts any length.

    Raises:
        TypeError: not a list, or an entry that is not a number.
        ValueError: a list of a different length, NaN or infinity.
        OverflowError: an integer beyond float64.

    >>> numbers("mean", [[1, 2]], None, 2)
    array([[1., 2.]])
    """
    _check(name, values, shape)
    return np.array(values, np.float64).reshape(len(values), *(-1 if n is None else n for n in shape[1:]))


def packed(array: NDArray[np.floating[Any]], dtype: str = "<f4") -> str:
    """Many numbers as text: base64 of a little-endian type, row after row."""
    return b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def unpacked(name: str, text: Any, *shape: int | None, dtype: str = "<f4") -> FloatArray:
    """The numbers of :func:`packed`; a first length of None accepts any.

    Raises:
        TypeError: not text, or a length that is not an integer.
        ValueError: not base64, not of that shape, NaN or infinity.

    >>> unpacked("means", packed(np.ones((2, 3))), None, 3).shape
    (2, 3)
    """
    if not isinstance(text, str) or not all(n is None or type(n) is int for n in shape):
        raise TypeError(f"{name} must be rows of numbers as text, got {brief(text)} of shape {shape}")
    if any(n is not None and n < 1 for n in shape):
        raise ValueError(f"{name} must have at least one number in a row, got shape {shape}")
    values = np.frombuffer(b64decode(text, validate=True), dtype)
    values = values.reshape(*(-1 if n is None else n for n in shape))
    if not np.isfinite(values).all():  # before the cast, which warns about some NaN
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return values.astype(np.float64)


def restore_generator(generator: np.random.Generator, state: Any) -> None:
    """Continue drawing from a saved state of PCG64.

    Raises:
        KeyError, TypeError, ValueError: not the state of such a generator.
    """
    words = state["state"]["state"], state["state"]["inc"], state["has_uint32"], state["uinteger"]
    if not all(type(word) is int for word in words):
        raise TypeError(f"a generator's state must be integers, got {brief(words)}")
    generator.bit_generator.state = state


def _check(name: str, values: Any, shape: tuple[int | None, ...]) -> None:
    if not shape:
        number(name, values)
        return
    if not isinstance(values, list):
        raise TypeError(f"{name} must be a list, got {brief(values)}")
    if shape[0] is not None and len(values) != shape[0]:
        raise ValueError(f"{name} must have {shape[0]} entries, got {len(values)}")
    for value in values:
        _check(name, value, shape[1:])
