"""Making room in the file: which samples and audit rows go first, and the counts that must follow.

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

# Among equal priorities the older sample goes first. SQLite's index on priority ends in the id, so it has
# exactly this order and nothing is sorted.
_VICTIM = f"""SELECT id, priority, n_bytes, n_bytes + coalesce(length(meta), 0), predicted_class,
    {codec.IS_SHADOW} FROM kept"""  # noqa: S608  # a constant
_VICTIMS = {"priority": f"{_VICTIM} ORDER BY priority, id", "fifo": f"{_VICTIM} ORDER BY id"}


@dataclass(frozen=True, slots=True)
class _Victim:
    key: int
    priority: float
    n_bytes: int
    n_bytes_freed: int
    predicted_class: int
    is_shadow: int


class AuditRing:
    """Keeps the audit inside its limits for rows and bytes by deleting the oldest rows.

    Rows are deleted in small chunks: one at a time would change the same pages with every put, and a large
    chunk may not fit a small log.
    """

    def __init__(self, max_rows: int, max_bytes: int, chunk_limit: int) -> None:
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self._chunk = max(1, min(64, max_rows // 32, chunk_limit))
        self.trim_frames = 2 * self._chunk + EVICT_FRAMES
        self.rows = 0
        self.bytes = 0

    def load(self, cursor: sqlite3.Cursor) -> None:
        """Count the rows in the file."""
        self.rows, self.bytes = cursor.execute(
            "SELECT count(*), coalesce(sum(row_bytes), 0) FROM audit"
        ).fetchone()

    @property
    def is_full(self) -> bool:
        """True when :meth:`trim` must make room for the next row."""
        # ">=", since the next row is added after the trim. Its bytes may exceed the limit until the next put.
        return self.rows >= self.max_rows or self.bytes >= self.max_bytes

    def trim(self, cursor: sqlite3.Cursor, space: Space) -> bool:
        """Delete one chunk of the oldest rows; False when the audit is empty."""
        space.reserve_frames(self.trim_frames)
        oldest = "SELECT id, row_bytes FROM audit ORDER BY id LIMIT ?"
        rows = cursor.execute(oldest, (self._chunk,)).fetchall()
        if not rows:
            return False
        # By a range of the key: the rows are neighbours in the B-tree, so few pages change.
        cursor.execute("DELETE FROM audit WHERE id <= ?", (rows[-1][0],))
        self.rows -= len(rows)
        self.bytes -= sum(row_bytes for _, row_bytes in rows)
        return True


class Evictor:
    """Evicts kept samples to free pages.

    ``priority``: the lowest priority first, the oldest among equals. A new sample with a lower priority than
    one of those that would have to go is not stored instead. ``fifo``: the oldest first, whatever the new
    sample is.
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
            priority: Of the new sample; None when something other than a sample needs the room, and must
                get it.
            at_most: Stop after about this many evictions, for a caller that commits in between.

        Returns:
            False when the new sample must not be stored. Then nothing was evicted for it, or only samples
            with lower priorities.

        Raises:
            StoreError: the store is empty and there is still too little room.
        """
        space = self._space
        # Without a limit every victim may be evicted: under fifo the new sample is always the newest.
        limit = None if self._order == "fifo" else priority
        if space.has_pages(n_pages):
            return True
        # Plan first: if one of the victims outranks the new sample, nothing at all should be evicted.
        plan = self._plan(n_pages + RESERVE_PAGES - space.free_pages, limit, at_most)
        if plan is None:
            return False
        self._evict(plan)
        n_evicted = len(plan)
        while not space.has_pages(n_pages):
            if at_most is not None and n_evicted >= at_most:
                return True
            # The plan is by bytes, but small samples share a page, which is freed with the last of them.
            with closing(self._victims()) as victims:
                victim = next(victims, None)
            if victim is None:
                self._drop_history(n_pages)
                continue
            if limit is not None and victim.priority > limit:
                return False  # those already evicted rank below the new sample and would be the next to go
            self._evict([victim])
            n_evicted += 1
        return True

    def _victims(self) -> Generator[_Victim, None, None]:
        # A separate cursor, which the caller closes: this walk usually stops before its last row.
        with closing(self._cursor.connection.execute(_VICTIMS[self._order])) as rows:
            for row in rows:
                yield _Victim(*row)

    def _plan(self, deficit: int, limit: float | None, at_most: int | None) -> list[_Victim] | None:
        """The first victims that free about ``deficit`` pages; None if one outranks the new sample."""
        plan: list[_Victim] = []
        freed = 0.0
        with closing(self._victims()) as victims:
            for victim in victims:
                # Not ">=": among equals the new sample stays and the oldest goes.
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
            # Deleting a blob does not rewrite its pages, only their entries in pointer map and free list. So
            # a large victim costs few frames.
            n_freed = victim.n_bytes_freed // layout.payload_bytes
            self._space.reserve_frames(EVICT_FRAMES + layout.map_pages_of(n_freed))
            self._cursor.execute("DELETE FROM blobs WHERE id = ?", (victim.key,))
            self._cursor.execute("DELETE FROM kept WHERE id = ?", (victim.key,))
            entry = self._counters.touch(victim.predicted_class)
            entry.kept -= 1
            entry.kept_bytes -= victim.n_bytes
            entry.evicted += 1
            if victim.is_shadow:
                self._counters.add_shadow(-1)

    def _drop_history(self, n_pages: int) -> None:
        """Delete old audit rows: the last resort, if rows occupy more pages than their bytes suggest."""
        if not self._ring.trim(self._cursor, self._space):
            layout = self._space.layout
            message = (
                f"budget_bytes={layout.budget_bytes} is too small: {n_pages} pages of {layout.page_size} "
                f"bytes are needed, but even the empty store has {self._space.free_pages}; raise it"
            )
            raise StoreError(message, code="store-budget")


_LOAD = """SELECT class, seen, kept, kept_bytes, discarded, evicted, duplicates, redelivered, first_s, last_s
    FROM tally"""
_SAVE = "INSERT OR REPLACE INTO tally VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(slots=True)
class ClassCounter:
    """Counters of one predicted class: the columns of the table ``tally``."""

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
        """Extend the time span to this time."""
        if self.first_s is None or time_s < self.first_s:
            self.first_s = time_s
        if self.last_s is None or time_s > self.last_s:
            self.last_s = time_s

    def counts(self) -> ClassCounts:
        """The counts that users see."""
        return ClassCounts(*_counts(self))


_counts = attrgetter(*(column.name for column in fields(ClassCounts)))
_row = attrgetter(*(column.name for column in fields(ClassCounter) if column.name != "is_dirty"))


class ClassCounters:
    """Counters of all classes, and which of them the current transaction must write.

    Kept in memory, because a class changes with every put but needs to be written once per transaction.

    Attributes:
        classes: Counters by predicted class.
        n_shadow: Samples that only shadow mode keeps; None until somebody asks, because counting them reads
            all kept rows and most stores are never asked.
    """

    def __init__(self) -> None:
        self.classes: dict[int, ClassCounter] = {}
        self.n_shadow: int | None = None
        self._dirty: list[ClassCounter] = []

    @classmethod
    def read(cls, cursor: sqlite3.Cursor) -> Self:
        """The committed counters."""
        counters = cls()
        counters.load(cursor)
        return counters

    def load(self, cursor: sqlite3.Cursor) -> None:
        """Read the committed counters; unwritten changes are lost."""
        self.classes = {row[0]: ClassCounter(*row) for row in cursor.execute(_LOAD)}
        self._dirty = []
        self.n_shadow = None

    def add_shadow(self, n_samples: int) -> None:
        """Add to the samples that only shadow mode keeps, if their number is known."""
        if self.n_shadow is not None:
            self.n_shadow += n_samples

    def touch(self, predicted_class: int) -> ClassCounter:
        """Counters of a class that the caller is about to change; written with the current transaction."""
        entry = self.classes.get(predicted_class)
        if entry is None:
            entry = self.classes[predicted_class] = ClassCounter(predicted_class)
        # A flag beside the list, because this runs with every put and "in" would search the list.
        if not entry.is_dirty:
            entry.is_dirty = True
            self._dirty.append(entry)
        return entry

    @property
    def n_dirty(self) -> int:
        """Classes that :meth:`save` will write."""
        return len(self._dirty)

    def save(self, cursor: sqlite3.Cursor) -> None:
        """Write the changed counters."""
        for entry in self._dirty:
            entry.is_dirty = False
            cursor.execute(_SAVE, _row(entry))
        self._dirty.clear()

    def total(self, name: str) -> int:
        """Sum of one counter over the classes."""
        return sum(getattr(entry, name) for entry in self.classes.values())

    def span(self) -> tuple[float | None, float | None]:
        """Earliest and latest time seen; None if no sample had a time."""
        firsts = [entry.first_s for entry in self.classes.values() if entry.first_s is not None]
        lasts = [entry.last_s for entry in self.classes.values() if entry.last_s is not None]
        return min(firsts, default=None), max(lasts, default=None)
