"""The writing half of an open store: transactions, and everything they write except decisions.

One writer per store. Every operation is checked before it writes. If one fails after its first write, the
whole transaction is rolled back: counts and free pages in memory would no longer match the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from drip.errors import InputError, StoreError, TransactionFullError
from drip.store import codec
from drip.store.budget import (
    EVICT_FRAMES,
    GROWTH_PAGES,
    MICRO_BATCH_FRAMES,
    PUT_FRAMES,
    Layout,
    Space,
)
from drip.store.connection import explain, explained
from drip.store.eviction import AuditRing, ClassCounters, Evictor
from drip.store.put import ROW_BYTES_BY_KEY, Incoming, Recorder, prepare
from drip.store.quarantine import Quarantine, QuarantineRow
from drip.store.settings import ProgressRow, Settings, frames_of, write_origin
from drip.types import Decision, Observation, Progress, Sample

Room = tuple[int, float | None]
"""Pages that an operation needs, and the priority of its sample; None when it must get the room."""

_PROGRESS_BYTES = "SELECT length(selector_state) + length(cursor) FROM progress"
_LASTING_BYTES = """SELECT coalesce(sum(length(name) + length(value)), 0)
    + (SELECT sum(length(digest) + 16) FROM policies) FROM settings"""
_LABEL = "UPDATE kept SET human_label = ?, annotator = ? WHERE id = ?"


def lasting_bytes(cursor: sqlite3.Cursor) -> tuple[int, int]:
    """Bytes that are never evicted: settings and policies with their origins, and the progress."""
    (n_bytes,) = cursor.execute(_LASTING_BYTES).fetchone()
    row = cursor.execute(_PROGRESS_BYTES).fetchone()
    return int(n_bytes), 0 if row is None else int(row[0])


def require_room(cursor: sqlite3.Cursor, layout: Layout, path: Path) -> None:
    """Refuse a budget that is too small for the rows that are never evicted.

    Raises:
        StoreError: it is too small.
    """
    n_origins, n_progress = lasting_bytes(cursor)
    if n_origins > layout.origins_bytes or n_progress > layout.max_sample_bytes:
        message = (
            f"{path}: budget_bytes={layout.budget_bytes} is too small for {n_origins} bytes of origins and "
            f"{n_progress} bytes of progress; raise it"
        )
        raise StoreError(message, code="store-budget")


class Writer:
    """Writes into an open store; its public methods are those of :class:`drip.types.DurableSink` and more."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, space: Space, settings: Settings, policy_digest: str
    ) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        self._path = path
        self.settings = settings
        self.space = space
        self.counters = ClassCounters()
        layout = space.layout
        self.ring = AuditRing(settings.audit_rows, layout.audit_bytes, layout.log_frames // 16)
        self.quarantine_table = Quarantine(self._cursor, layout.quarantine_bytes, layout.max_sample_bytes)
        self._evictor = Evictor(self._cursor, space, self.counters, self.ring, settings.eviction)
        self.recorder = Recorder(self._cursor, space, self.counters, self.ring, self._evictor)
        self._scores = codec.ScoreCodec()
        self._data_version = -1
        self._progress_bytes = self._lasting_bytes = self._max_sample_bytes = 0
        self._first_key = 1
        self._in_transaction = False
        self._failure: str | None = None
        self._policy: int | None = None
        self._reload()
        self.policy_digest = policy_digest

    # -- transactions --------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the writes of the block as one; see :meth:`drip.store.RetentionStore.transaction`."""
        if self._in_transaction:
            message = "transactions cannot be nested; write inside the outer one"
            raise StoreError(message, code="store-transaction")
        limit = self.space.layout.log_frames
        digest = self.policy_digest
        # The log cannot be reset inside the transaction, so start with half of it free, and reset it even
        # earlier where no reader is in the way and a micro-batch might not fit.
        with explained(self._path, "write to"):
            self._begin(limit // 2, max(0, min(limit // 4, limit - MICRO_BATCH_FRAMES)))
        self._in_transaction = True
        try:
            yield
            self._require_no_failure()
            # Explained here and not around the block, whose own sqlite3 errors may be of another database.
            with explained(self._path, "write to"):
                self._commit()
        except BaseException:
            # The block may have saved progress under another policy.
            self.policy_digest = digest
            with explained(self._path, "roll back"):
                self._rollback()
            raise
        finally:
            self._in_transaction = False
            self._failure = None

    def run(self, rooms: Sequence[Room], n_frames: int, action: Callable[[], None]) -> None:
        """Run ``action`` in the open transaction, or in a separate one.

        Args:
            rooms: The room that the action needs, in the order in which it asks for it.
            n_frames: Upper limit of the pages that the action changes, without evictions.
            action: Writes; runs a second time if its evictions had to be committed first.
        """
        try:
            if self._in_transaction:
                self._run_inside(action)
                return
            try:
                self._run_alone(n_frames, action, self.space.soft_frames)
            except TransactionFullError:
                # A large sample may evict so many small ones that both together outgrow the log. On its own
                # it can still be put: evict in separate transactions, then try again.
                for n_pages, priority in rooms:
                    self._make_room_ahead(n_pages, priority)
                self._run_alone(n_frames, action, 0)
        except sqlite3.Error as error:
            raise explain(error, self._path, "write to") from error
        except (UnicodeEncodeError, OverflowError) as error:
            # Raised by Python's sqlite3 when it binds a value that no earlier check covers.
            message = f"a text is not UTF-8 or an integer is beyond 64 bits ({error}); correct the sample"
            raise InputError(message, code="sample-rejected") from error

    def _run_inside(self, action: Callable[[], None]) -> None:
        self._require_no_failure()
        try:
            action()
        except BaseException as error:
            # It may have written half of its rows. If the block swallows the error, its end must not commit.
            self._failure = repr(error)
            raise

    def _require_no_failure(self) -> None:
        if self._failure is not None:
            message = (
                f"the transaction was rolled back, because one of its writes failed ({self._failure}); let "
                "the error leave the block"
            )
            raise StoreError(message, code="store-transaction")

    def _run_alone(self, n_frames: int, action: Callable[[], None], soft_frames: int) -> None:
        self._begin(n_frames, soft_frames)
        try:
            action()
            self._commit()
        except BaseException:
            self._rollback()
            raise

    def _begin(self, n_frames: int, soft_frames: int) -> None:
        space = self.space
        space.require_disk()
        while True:
            space.prepare_log(n_frames, soft_frames)
            # IMMEDIATE takes the write lock now. A deferred one is taken at the first write, and fails there
            # without waiting if another program has written since.
            self._cursor.execute("BEGIN IMMEDIATE")
            if self._cursor.execute("PRAGMA data_version").fetchone()[0] == self._data_version:
                break
            # Another program wrote to the file since: counts and free pages in memory are out of date. Its
            # frames may also have filled the log, so check again for room.
            try:
                self._reload()
                if space.log_frames + n_frames <= space.layout.log_frames:
                    break
            except BaseException:
                self._rollback_only()
                raise
            self._rollback_only()
        self._first_key = self.recorder.next_key

    def _commit(self) -> None:
        # Counters once per transaction, not per put: a batch mostly changes the same few classes.
        self.counters.save(self._cursor)
        self._cursor.execute("COMMIT")

    def _rollback_only(self) -> None:
        if self._connection.in_transaction:
            self._cursor.execute("ROLLBACK")

    def _rollback(self) -> None:
        self._rollback_only()
        self._reload()

    def _reload(self) -> None:
        """Read the cached values from the file again."""
        cursor = self._cursor
        (self._data_version,) = cursor.execute("PRAGMA data_version").fetchone()
        self.space.look_up_log()
        self.space.look_up_free_pages()
        self.counters.load(cursor)
        self.ring.load(cursor)
        self.quarantine_table.load()
        self._policy = None
        self.recorder.load()
        self._look_up_limit()
        if Settings.load(cursor) != self.settings:
            message = f"{self._path}: another process changed the settings; open the store again"
            raise StoreError(message, code="store-busy")

    def _look_up_limit(self) -> None:
        """Look up the bytes that are never evicted."""
        self._lasting_bytes, progress_bytes = lasting_bytes(self._cursor)
        self._set_limit(progress_bytes)

    def _set_limit(self, progress_bytes: int) -> None:
        """Remember the size of the progress, and of the largest sample that fits beside it."""
        layout = self.space.layout
        self._progress_bytes = progress_bytes
        # Twice, because B-tree pages may be half empty. The progress is one row on separate pages.
        n_pages = (progress_bytes + 2 * self._lasting_bytes) // layout.payload_bytes
        self._max_sample_bytes = max(0, layout.max_sample_bytes_beside(n_pages))

    def _make_room_ahead(self, n_pages: int, priority: float | None) -> None:
        """Evict in separate transactions, each small enough for the log and complete in itself."""
        space = self.space
        # An eighth of the log by estimate, because freeing the pages of large samples costs extra frames.
        at_most = max(1, space.layout.log_frames // (8 * EVICT_FRAMES))
        while True:
            self._begin(space.layout.log_frames // 2, 0)
            try:
                space.start_operation(0)
                n_before = self.counters.total("evicted")
                self._evictor.make_room(n_pages, priority, at_most=at_most)
                is_done = self.counters.total("evicted") == n_before
                self._commit()
            except BaseException:
                self._rollback()
                raise
            if is_done:
                return

    # -- puts ----------------------------------------------------------------------------------------

    def put(
        self, sample: Sample, observation: Observation, decision: Decision, *, keep: bool | None = None
    ) -> None:
        """Record one decision; see :meth:`drip.store.RetentionStore.put`."""
        incoming = prepare(
            sample,
            observation,
            decision,
            layout=self.space.layout,
            max_bytes=self._max_sample_bytes,
            scores=self._scores,
            with_logits=self.settings.audit_logits,
            keep=keep,
        )
        rooms = ((incoming.audit_pages, None), (incoming.n_pages, incoming.priority))
        # Any put may find the audit full and trim it first.
        n_frames = incoming.n_frames + self.ring.trim_frames
        self.run(rooms[: 1 + incoming.keep], n_frames, partial(self._record, incoming))

    def _record(self, put: Incoming) -> None:
        self.recorder.record(put, self._current_policy())

    # -- quarantine, progress, labels ------------------------------------------------------------------

    def quarantine(self, sample: Sample, reason: str) -> None:
        """Put a sample into quarantine; see :meth:`drip.store.RetentionStore.quarantine`."""
        row = QuarantineRow.of(sample, reason)
        layout = self.space.layout
        table = self.quarantine_table
        n_pages = layout.pages_of(table.row_bytes(row))
        n_frames = PUT_FRAMES + n_pages + layout.map_pages_of(n_pages)

        def record() -> None:
            self.space.start_operation(n_frames)
            if not self.space.has_pages(n_pages):
                self._evictor.make_room(n_pages, None)
            table.add(self.space, row)
            self.space.free_pages -= n_pages + GROWTH_PAGES

        self.run(((n_pages, None),), n_frames, record)

    def save_progress(self, progress: Progress) -> None:
        """Remember where the run is; see :meth:`drip.store.RetentionStore.save_progress`."""
        codec.require_short("policy_digest", progress.policy_digest)
        row = ProgressRow.of(progress)
        layout = self.space.layout
        if row.n_bytes > layout.max_sample_bytes:
            message = (
                f"cursor and rule state have {row.n_bytes} bytes, but the limit is {layout.max_sample_bytes} "
                f"in a store with budget_bytes={layout.budget_bytes}; raise budget_bytes"
            )
            raise StoreError(message, code="store-budget")
        with explained(self._path, "read"):
            old = ProgressRow.stored(self._cursor)
        is_named = progress.policy_digest == self.policy_digest
        spans = row.spans_from(old) if old is not None and is_named else None  # None: write the whole row
        # The row replaces the last one, so a full store need not evict for it.
        n_old_pages = layout.pages_of(self._progress_bytes)
        n_new_pages = layout.pages_of(row.n_bytes)
        n_pages = max(0, n_new_pages - n_old_pages)
        n_frames = (
            PUT_FRAMES + n_new_pages + layout.map_pages_of(max(n_new_pages, n_old_pages))
            if spans is None
            else frames_of(spans, layout)
        )
        digest = self.policy_digest

        def record() -> None:
            self.space.start_operation(n_frames)
            if spans is not None:
                row.overwrite(self._connection, spans)
                return
            if not self.space.has_pages(n_pages):
                self._evictor.make_room(n_pages, None)
            # Here and not before: if room is short this may run twice, and must start from the old policy.
            if progress.policy_digest != self.policy_digest:
                was_unknown = not self.policy_digest
                self.policy_digest = progress.policy_digest
                self._policy = None
                if was_unknown:
                    self._name_policy_of_transaction()
            row.replace(self._cursor, self._current_policy())
            self.space.free_pages -= n_pages + GROWTH_PAGES
            self._set_limit(row.n_bytes)

        try:
            self.run(((n_pages, None),), n_frames, record)
        except BaseException:
            # The row of a new policy was rolled back, so its id must be looked up again.
            self.policy_digest = digest
            self._policy = None
            raise

    def set_label(self, key: int, label: int | None, annotator: str) -> None:
        """Give a kept sample a human label; see :meth:`drip.store.RetentionStore.set_label`."""
        layout = self.space.layout
        (n_bytes,) = self._cursor.execute(ROW_BYTES_BY_KEY, (key,)).fetchone()
        n_pages = n_bytes // layout.payload_bytes + 1  # SQLite rewrites the whole row
        n_frames = PUT_FRAMES + n_pages - 1 + layout.map_pages_of(2 * (n_pages - 1))

        def record() -> None:
            self.space.start_operation(n_frames)
            if not self.space.has_pages(n_pages):
                self._evictor.make_room(n_pages, None)
            self._cursor.execute(_LABEL, (label, annotator or None, key))
            self.space.free_pages -= n_pages + 1

        self.run(((n_pages, None),), n_frames, record)

    def note_origin(self, policy_digest: str, origin: str) -> None:
        """Remember an encoded origin; see :meth:`drip.store.RetentionStore.note_origin`."""
        layout = self.space.layout
        n_bytes = self._lasting_bytes + self._progress_bytes + len(policy_digest.encode()) + len(origin)
        if n_bytes > layout.origins_bytes:
            message = (
                f"the origins of all policies and the progress have {n_bytes} bytes, but the limit is "
                f"{layout.origins_bytes} in a store with budget_bytes={layout.budget_bytes}; raise "
                "budget_bytes or use a new store"
            )
            # Refused while there is still room: origins are never evicted, so too many would leave none
            # for samples.
            raise StoreError(message, code="store-budget")
        n_pages = layout.pages_of(len(origin))

        def record() -> None:
            self.space.start_operation(PUT_FRAMES + n_pages)
            if not self.space.has_pages(n_pages):
                self._evictor.make_room(n_pages, None)
            write_origin(self._cursor, policy_digest, origin)
            self.space.free_pages -= n_pages + GROWTH_PAGES
            self._look_up_limit()

        self.run(((n_pages, None),), PUT_FRAMES + n_pages, record)

    def _current_policy(self) -> int:
        return self._policy_id() if self._policy is None else self._policy

    def _policy_id(self) -> int:
        """Row id of the current policy; inserts the row for a new digest."""
        find = "SELECT id FROM policies WHERE digest = ?"
        rows = self._cursor.execute(find, (self.policy_digest,)).fetchall()
        if not rows:
            self._cursor.execute("INSERT INTO policies (digest) VALUES (?)", (self.policy_digest,))
            rows = self._cursor.execute(find, (self.policy_digest,)).fetchall()
        policy = self._policy = int(rows[0][0])
        return policy

    def _name_policy_of_transaction(self) -> None:
        """Record the policy with the earlier puts of this transaction, if none was known for them.

        A caller may put first and save its first progress at the end of the transaction.
        """
        n_rows = self.recorder.next_key - self._first_key
        if not self._in_transaction or not n_rows:
            return
        self.space.reserve_frames(3 * n_rows + PUT_FRAMES)
        row = (self._policy_id(), self._first_key)
        # OR IGNORE: the same decision may already be recorded under the policy, as a redelivery.
        self._cursor.execute("UPDATE OR IGNORE audit SET policy = ? WHERE id >= ? AND policy = 0", row)
        self._cursor.execute("UPDATE kept SET policy = ? WHERE id >= ? AND policy = 0", row)

    # -- a smaller budget ------------------------------------------------------------------------------

    @property
    def is_over_budget(self) -> bool:
        """True when the file or one of its shares is larger than planned."""
        return (
            self.space.look_up_free_pages() < 0
            or self._n_pages() > self.space.layout.max_pages
            or self.ring.rows > self.ring.max_rows
            or self.ring.bytes > self.ring.max_bytes
            or self.quarantine_table.is_over
        )

    def _n_pages(self) -> int:
        return int(self._cursor.execute("PRAGMA page_count").fetchone()[0])

    def shrink(self) -> None:
        """Shrink a file that is over its budget: evict, then return the free pages to the file system.

        Works in transactions that fit the log. A kill in between leaves a sound file that is still within
        the former budget; the next opening continues.
        """
        space = self.space
        layout = space.layout

        def trim() -> None:
            space.start_operation(0)
            self.ring.trim(self._cursor, space)

        def drop() -> None:
            space.start_operation(0)
            self.quarantine_table.drop_oldest(space)

        # Audit and quarantine first: they are over their shares, and what they free need not be evicted.
        while self.ring.rows > self.ring.max_rows or self.ring.bytes > self.ring.max_bytes:
            self._run_alone(self.ring.trim_frames, trim, space.soft_frames)
        while self.quarantine_table.is_over:
            self._run_alone(PUT_FRAMES, drop, space.soft_frames)
        self._make_room_ahead(0, None)
        # In steps: each freed page goes through the log, which must not outgrow its share.
        while True:
            n_over = self._n_pages() - layout.max_pages
            if n_over <= 0:
                break
            space.truncate_log()
            n_steps = min(n_over, layout.log_frames // 8)
            # As a script: execute() runs only one step of a pragma without result columns, that is one page.
            self._cursor.executescript(f"PRAGMA incremental_vacuum({n_steps})")
        space.truncate_log()
        # Only now: SQLite ignores a max_page_count below the present size.
        space.apply_limits()
