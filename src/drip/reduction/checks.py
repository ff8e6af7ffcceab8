"""Checks of parameters, with the messages they share."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np

from drip.errors import InputError


def check_real(name: str, value: Any, *, upper: float = np.inf, zero: bool = False) -> None:
    """Refuse what is no number in (0, upper]; with ``zero`` in [0, upper].

    Raises:
        InputError: it is not.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and np.isfinite(value) and 0 <= value <= upper and (zero or value > 0)):
        limits = f"{'[' if zero else '('}0, {'inf)' if np.isinf(upper) else f'{upper:g}]'}"
        raise InputError(f"{name} must be a number in {limits}, got {value!r}")


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


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
