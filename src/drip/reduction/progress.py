"""Counts what is done and tells a callback, also from several threads."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

Progress = Callable[[int, int], None]
"""Called with what is done and the whole, in rows or picks."""


class Counter:
    """Adds up the progress of parts that may run in threads.

    Args:
        callback: Called with what is done and ``total``; None for silence.
        total: What there is to do.
    """

    def __init__(self, callback: Progress | None, total: int) -> None:
        self._callback, self._total = callback, total
        self._done = 0
        self._lock = Lock()

    def advance(self, n: int = 1) -> None:
        """Say that ``n`` more are done."""
        if self._callback is None:
            return
        with self._lock:
            self._done += n
            self._callback(self._done, self._total)
