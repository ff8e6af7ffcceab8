"""The counters by predicted class: in memory while a store is open, written in the transaction they count."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Self

from drip.store.records import ClassCounts

_LOAD = """SELECT class, seen, kept, kept_bytes, discarded, evicted, duplicates, redelivered, first_s, last_s
    FROM tally"""
_SAVE = "INSERT OR REPLACE INTO tally VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(slots=True)
class ClassCounter:
    """Counters of one predicted class; the columns of the table ``tally``."""

    predicted_class: int
    seen: int = 0
    kept: int = 0
    kept_bytes: int = 0
    discarded: int = 0
    evicted: int = 0
    duplicates: int = 0
    redelivered: int = 0
    first_s: float | None = None
    last_s: float | None = None
    is_dirty: bool = False

    def span(self, time_s: float) -> None:
        """Widen the time span."""
        if self.first_s is None or time_s < self.first_s:
            self.first_s = time_s
        if self.last_s is None or time_s > self.last_s:
            self.last_s = time_s

    def counts(self) -> ClassCounts:
        """The public form."""
        return ClassCounts(*_counts(self))


_counts = attrgetter(*(column.name for column in fields(ClassCounts)))
_row = attrgetter(*(column.name for column in fields(ClassCounter) if column.name != "is_dirty"))


class ClassCounters:
    """All classes' counters and which of them the current transaction has to write.

    Attributes:
        classes: Counters by predicted class.
        shadowed: Kept samples that only shadow mode keeps; None until somebody counts them, since most
            stores are never asked.
    """

    def __init__(self) -> None:
        self.classes: dict[int, ClassCounter] = {}
        self.shadowed: int | None = None
        self._dirty: list[ClassCounter] = []

    @classmethod
    def read(cls, cursor: sqlite3.Cursor) -> Self:
        """The committed counters."""
        counters = cls()
        counters.load(cursor)
        return counters

    def load(self, cursor: sqlite3.Cursor) -> None:
        """Take the committed counters; what was not written is forgotten."""
        self.classes = {row[0]: ClassCounter(*row) for row in cursor.execute(_LOAD)}
        self._dirty = []
        self.shadowed = None

    def add_shadowed(self, n_samples: int) -> None:
        """Count samples that only shadow mode keeps, where their number is known."""
        if self.shadowed is not None:
            self.shadowed += n_samples

    def touch(self, predicted_class: int) -> ClassCounter:
        """The class's counters, to be changed and written with the current transaction."""
        entry = self.classes.get(predicted_class)
        if entry is None:
            entry = self.classes[predicted_class] = ClassCounter(predicted_class)
        if not entry.is_dirty:
            entry.is_dirty = True
            self._dirty.append(entry)
        return entry

    @property
    def n_dirty(self) -> int:
        """Classes that :meth:`save` will write."""
        return len(self._dirty)

    def save(self, cursor: sqlite3.Cursor) -> None:
        """Write what changed."""
        for entry in self._dirty:
            entry.is_dirty = False
            cursor.execute(_SAVE, _row(entry))
        self._dirty.clear()

    def total(self, name: str) -> int:
        """Sum of one counter over the classes."""
        return sum(getattr(entry, name) for entry in self.classes.values())

    def span(self) -> tuple[float | None, float | None]:
        """Earliest and latest time seen, None where no sample carried one."""
        firsts = [entry.first_s for entry in self.classes.values() if entry.first_s is not None]
        lasts = [entry.last_s for entry in self.classes.values() if entry.last_s is not None]
        return min(firsts, default=None), max(lasts, default=None)
