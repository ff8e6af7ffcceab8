"""Makes room in the file: drops kept samples in the order of eviction, then history.

Works inside the caller's transaction; commits nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from drip.errors import StoreError
from drip.store import codec
from drip.store.budget import EVICT_FRAMES, RESERVE_PAGES
from drip.store.class_counters import ClassCounters
from drip.store.space import Space

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
