"""Makes room in the file: drops kept samples in the order of eviction, then history.

Works inside the caller's transaction; commits nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Literal, Self

from drip.errors import StoreError
from drip.store import codec
from drip.store.budget import EVICT_FRAMES, RESERVE_PAGES, Space
from drip.store.records import ClassCounts

Eviction = Literal["priority", "fifo"]
EVICTIONS: tuple[str, ...] = ("priority", "fifo")

# A tie in priority drops the older sample, so the index on priority, which ends in the id, gives the order.
_VICTIM = f"""SELECT id, priority, n_bytes, n_bytes + coalesce(length(meta), 0), predicted_class,
    {codec.SHADOWED} FROM kept"""  # noqa: S608  # a constant
_VICTIMS = {"priority": f"{_VICTIM} ORDER BY priority, id", "fifo": f"{_VICTIM} ORDER BY id"}


@dataclass(frozen=True, slots=True)
class _Victim:
    key: int
    priority: float
    n_bytes: int
    n_bytes_freed: int
    predicted_class: int
    is_shadowed: int


class AuditRing:
    """The audit's caps: rows, and bytes as a share of the file; the oldest rows go in small chunks."""

    def __init__(self, max_rows: int, max_bytes: int, chunk_limit: int) -> None:
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self._chunk = max(1, min(64, max_rows // 32, chunk_limit))
        self.trim_frames = 2 * self._chunk + EVICT_FRAMES
        self.rows = 0
        self.bytes = 0

    def load(self, cursor: sqlite3.Cursor) -> None:
        """Count what is in the file."""
        self.rows, self.bytes = cursor.execute(
            "SELECT count(*), coalesce(sum(row_bytes), 0) FROM audit"
        ).fetchone()

    @property
    def is_full(self) -> bool:
        """True when the next row needs :meth:`trim` first."""
        return self.rows >= self.max_rows or self.bytes >= self.max_bytes

    def trim(self, cursor: sqlite3.Cursor, space: Space) -> bool:
        """Drop one chunk of the oldest rows; False when there is none."""
        space.reserve_frames(self.trim_frames)
        oldest = "SELECT id, row_bytes FROM audit ORDER BY id LIMIT ?"
        rows = cursor.execute(oldest, (self._chunk,)).fetchall()
        if not rows:
            return False
        cursor.execute("DELETE FROM audit WHERE id <= ?", (rows[-1][0],))
        self.rows -= len(rows)
        self.bytes -= sum(row_bytes for _, row_bytes in rows)
        return True


class Evictor:
    """Finds and drops the samples that give way.

    ``priority``: the lowest priority first, among equals the oldest; a sample that comes in below all that
    would have to go is itself the one that gives way. ``fifo``: the oldest first, whatever comes in.
    """

    def __init__(
        self, cursor: sqlite3.Cursor, space: Space, counters: ClassCounters, ring: AuditRing, order: Eviction
    ) -> None:
        self._cursor = cursor
        self._space = space
        self._counters = counters
        self._ring = ring
        self._order = order

    def make_room(self, n_pages: int, priority: float | None, *, at_most: int | None = None) -> bool:
        """Evict until ``n_pages`` and the reserve are free.

        Args:
            n_pages: Pages needed.
            priority: Of the incoming sample; None when something other than a sample needs the room, which
                then always wins.
            at_most: Stop after about so many evictions, for a caller that commits in between.

        Returns:
            False when the incoming sample has to give way itself; then nothing was evicted for it, or only
            samples below it.

        Raises:
            StoreError: the store is empty and the room is still too small.
        """
        space = self._space
        limit = None if self._order == "fifo" else priority
        if space.has_pages(n_pages):
            return True
        plan = self._plan(n_pages + RESERVE_PAGES - space.free_pages, limit, at_most)
        if plan is None:
            return False
        self._evict(plan)
        n_evicted = len(plan)
        while not space.has_pages(n_pages):
            if at_most is not None and n_evicted >= at_most:
                return True
            # Small samples share a page, which comes free only with the last of them.
            with closing(self._victims()) as victims:
                victim = next(victims, None)
            if victim is None:
                self._drop_history(n_pages)
                continue
            if limit is not None and victim.priority > limit:
                return False
            self._evict([victim])
            n_evicted += 1
        return True

    def _victims(self) -> Generator[_Victim, None, None]:
        # A cursor of its own: the walk stops early, and an open walk must not outlive it.
        with closing(self._cursor.connection.execute(_VICTIMS[self._order])) as rows:
            for row in rows:
                yield _Victim(*row)

    def _plan(self, deficit: int, limit: float | None, at_most: int | None) -> list[_Victim] | None:
        """The first victims that free about ``deficit`` pages, None when one of them outranks the incomer."""
        plan: list[_Victim] = []
        freed = 0.0
        with closing(self._victims()) as victims:
            for victim in victims:
                if limit is not None and victim.priority > limit:
                    return None
                plan.append(victim)
                freed += victim.n_bytes_freed / self._space.layout.payload_bytes
                if freed >= deficit or len(plan) == at_most:
                    break
        return plan

    def _evict(self, victims: list[_Victim]) -> None:
        layout = self._space.layout
        for victim in victims:
            n_freed = victim.n_bytes_freed // layout.payload_bytes
            self._space.reserve_frames(EVICT_FRAMES + layout.map_pages_of(n_freed))
            self._cursor.execute("DELETE FROM blobs WHERE id = ?", (victim.key,))
            self._cursor.execute("DELETE FROM kept WHERE id = ?", (victim.key,))
            entry = self._counters.touch(victim.predicted_class)
            entry.kept -= 1
            entry.kept_bytes -= victim.n_bytes
            entry.evicted += 1
            if victim.is_shadowed:
                self._counters.add_shadowed(-1)

    def _drop_history(self, n_pages: int) -> None:
        """The last resort, when shares by estimated bytes took more pages than thought."""
        if not self._ring.trim(self._cursor, self._space):
            message = (
                f"the budget of {self._space.layout.budget_bytes} bytes must have room for {n_pages} "
                f"pages of {self._space.layout.page_size}, got {self._space.free_pages} in an empty store; "
                "raise budget_bytes"
            )
            raise StoreError(message)


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
