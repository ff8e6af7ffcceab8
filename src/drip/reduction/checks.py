"""Checks of parameters, with the messages they share."""

from __future__ import annotations

from math import inf, isfinite, isinf
from numbers import Integral, Real
from typing import Any

from drip.errors import InputError
from drip.types import FloatArray

LARGEST = 1e150
"""Squares of larger numbers overflow when they are summed, and those of numbers below its inverse vanish."""


def check_real(name: str, value: Any, *, upper: float = inf, zero: bool = False) -> None:
    """Refuse what is no number in (0, upper]; with ``zero`` in [0, upper].

    Raises:
        InputError: it is not.
    """
    if not (_is_real(value) and 0 <= value <= upper and (zero or value > 0)):
        limits = f"{'[' if zero else '('}0, {'inf)' if isinf(upper) else f'{upper:g}]'}"
        raise InputError(f"{name} must be a number in {limits}, got {value!r}")


def check_divisor(name: str, value: Any) -> None:
    """Refuse what is no number in [1e-150, 1e150], by which distances or their squares are divided.

    Raises:
        InputError: it is not.
    """
    if not (_is_real(value) and 1.0 / LARGEST <= value <= LARGEST):
        raise InputError(f"{name} must be a number in [{1.0 / LARGEST:g}, {LARGEST:g}], got {value!r}")


def check_magnitude(name: str, *tables: FloatArray) -> None:
    """Refuse finite numbers whose squared distances overflow, or all vanish.

    Args:
        name: What the numbers are.
        tables: They are measured together, each with a number or more.

    Raises:
        InputError: a number is too large, or all but zeros are too small.
    """
    largest = max(float(max(table.max(), -table.min())) for table in tables)
    if largest > LARGEST:
        raise InputError(
            f"{name} must lie within {LARGEST:.0e} of zero, or squared distances overflow, got "
            f"{largest:.3g}; scale the features, say to [0, 1]"
        )
    if 0.0 < largest < 1.0 / LARGEST:
        raise InputError(
            f"{name} must hold numbers of {1.0 / LARGEST:.0e} or more, or squared distances vanish, got at "
            f"most {largest:.3g}; scale the features, say to [0, 1]"
        )


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        InputError: it is not.
    """
    if not _is_whole(value) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_number(name: str, value: Any, largest: int) -> None:
    """Refuse what is no whole number in [1, largest].

    Raises:
        InputError: it is not.
    """
    if not _is_whole(value) or not 1 <= value <= largest:
        raise InputError(f"{name} must be a whole number in [1, {largest}], got {value!r}")


def check_threads(n_jobs: Any) -> None:
    """Refuse what is no number of threads: None, or a whole number but 0.

    Raises:
        InputError: it is not.
    """
    if n_jobs is not None and (not _is_whole(n_jobs) or n_jobs == 0):
        raise InputError(f"n_jobs must be None or a whole number but 0 (-1 for all), got {n_jobs!r}")


def _is_real(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
