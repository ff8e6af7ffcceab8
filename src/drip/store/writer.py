"""The writing half of the store: transactions, puts, quarantine, progress and labels.

One writer per store. Every method validates before it writes; after the first write of an operation a
failure rolls the whole transaction back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from drip.errors import InputError, StoreError, TransactionFullError
from drip.store import codec
from drip.store.budget import EVICT_FRAMES, MICRO_BATCH_FRAMES, PUT_FRAMES, Layout
from drip.store.class_counters import ClassCounters
from drip.store.connection import explain, explained
from drip.store.eviction import AuditRing, Evictor
from drip.store.incoming import Incoming, prepare
from drip.store.progress_row import ProgressRow, frames_of
from drip.store.quarantine import Quarantine, Shelved
from drip.store.recording import GROWTH_PAGES, ROW_BYTES_BY_KEY, Recorder
from drip.store.settings import ORIGIN, Settings
from drip.store.space import Space
from drip.types import Decision, Observation, Progress, Sample

Room = tuple[int, float | None]

_PROGRESS_BYTES = "SELECT length(selector_state) + length(cursor) FROM progress"
_LASTING_BYTES = """SELECT coalesce(sum(length(name) + length(value)), 0)
    + (SELECT sum(length(digest) + 16) FROM policies) FROM settings"""
_LABEL = "UPDATE kept SET human_label = ?, annotator = ? WHERE id = ?"


def lasting_bytes(cursor: sqlite3.Cursor) -> tuple[int, int]:
    """What is never evicted, in bytes: settings and policies with their origins, and the progress."""
    (n_bytes,) = cursor.execute(_LASTING_BYTES).fetchone()
    row = cursor.execute(_PROGRESS_BYTES).fetchone()
    return int(n_bytes), 0 if row is None else int(row[0])


def require_room(cursor: sqlite3.Cursor, layout: Layout, path: Path) -> None:
    """Refuse a budget, before anything is evicted for it, that what never gives way does not fit.

    Raises:
        StoreError: it does not.
    """
    n_origins, n_progress = lasting_bytes(cursor)
    if n_origins > layout.origins_bytes or n_progress > layout.max_sample_bytes:
        message = (
            f"budget_bytes must have room for {n_origins} bytes of origins and {n_progress} of progress in "
            f"{path}, got {layout.budget_bytes}; raise it"
        )
        raise StoreError(message)


class Writer:
    """Writes into an open store; the shape of its public methods is :class:`drip.types.DurableSink`."""

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
        self.quarantine_shelf = Quarantine(self._cursor, layout.quarantine_bytes, layout.max_sample_bytes)
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
        """Commit what happens inside as one; see :meth:`drip.store.RetentionStore.transaction`."""
        if self._in_transaction:
            raise StoreError(
                "a transaction must be closed before the next begins, got a nested one; use the outer"
            )
        limit = self.space.layout.log_frames
        digest = self.policy_digest
        with explained(self._path, "write to"):
            self._begin(limit // 2, max(0, min(limit // 4, limit - MICRO_BATCH_FRAMES)))
        self._in_transaction = True
        try:
            yield
            self._require_no_failure()
            with explained(self._path, "write to"):
                self._commit()
        except BaseException:
            self.policy_digest = digest
            with explained(self._path, "roll back"):
                self._rollback()
            raise
        finally:
            self._in_transaction = False
            self._failure = None

    def run(self, rooms: Sequence[Room], n_frames: int, action: Callable[[], None]) -> None:
        """Do ``action`` in the open transaction, or in one of its own.

        Args:
            rooms: The pages that the action asks for, in its order, each with the priority of an incoming
                sample or None when what comes must get its room.
            n_frames: Pages that the action changes, evictions not counted.
            action: Writes; runs again when evictions had to be committed before it.
        """
        try:
            if self._in_transaction:
                self._run_inside(action)
                return
            try:
                self._run_alone(n_frames, action, self.space.soft_frames)
            except TransactionFullError:
                # The evictions did not fit the log together with what they make room for.
                for n_pages, priority in rooms:
                    self._make_room_ahead(n_pages, priority)
                self._run_alone(n_frames, action, 0)
        except sqlite3.Error as error:
            raise explain(error, self._path, "write to") from error
        except (UnicodeEncodeError, OverflowError) as error:
            message = (
                f"texts must be UTF-8 and integers fit 64 bits, got: {error}; clean the sample or decision"
            )
            raise InputError(message) from error

    def _run_inside(self, action: Callable[[], None]) -> None:
        self._require_no_failure()
        try:
            action()
        except BaseException as error:
            self._failure = repr(error)
            raise

    def _require_no_failure(self) -> None:
        if self._failure is not None:
            message = (
                f"every put of a transaction must succeed, got a swallowed failure ({self._failure}); "
                "the transaction is rolled back: let the error leave its block"
            )
            raise StoreError(message)

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
            self._cursor.execute("BEGIN IMMEDIATE")
            if self._cursor.execute("PRAGMA data_version").fetchone()[0] == self._data_version:
                break
            # Another writer came in between: what is remembered of the file is out of date.
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
        self.counters.save(self._cursor)
        self._cursor.execute("COMMIT")

    def _rollback_only(self) -> None:
        if self._connection.in_transaction:
            self._cursor.execute("ROLLBACK")

    def _rollback(self) -> None:
        self._rollback_only()
        self._reload()

    def _reload(self) -> None:
        """Forget what is remembered of the file and read it again."""
        cursor = self._cursor
        (self._data_version,) = cursor.execute("PRAGMA data_version").fetchone()
        self.space.look_up_log()
        self.space.look_up_free_pages()
        self.counters.load(cursor)
        self.ring.load(cursor)
        self.quarantine_shelf.load()
        self._policy = None
        self.recorder.load()
        self._look_up_limit()
        if Settings.load(cursor) != self.settings:
            message = (
                f"the settings of {self._path} must not change while it is open, got other ones from another "
                "process; open the store again"
            )
            raise StoreError(message)

    def _look_up_limit(self) -> None:
        """Look up what is never evicted for a sample."""
        self._lasting_bytes, progress_bytes = lasting_bytes(self._cursor)
        self._set_limit(progress_bytes)

    def _set_limit(self, progress_bytes: int) -> None:
        """Remember the size of the progress, and so of the biggest sample that fits beside it."""
        layout = self.space.layout
        self._progress_bytes = progress_bytes
        n_pages = (progress_bytes + 2 * self._lasting_bytes) // layout.payload_bytes
        self._max_sample_bytes = max(0, layout.max_sample_bytes_beside(n_pages))

    def _make_room_ahead(self, n_pages: int, priority: float | None) -> None:
        """Evict in transactions of their own; each is complete in itself."""
        space = self.space
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
        n_frames = incoming.n_frames + self.ring.trim_frames
        self.run(rooms[: 1 + incoming.keep], n_frames, partial(self._record, incoming))

    def _record(self, put: Incoming) -> None:
        self.recorder.record(put, self._current_policy())

    # -- quarantine, progress, labels ------------------------------------------------------------------

    def quarantine(self, sample: Sample, reason: str) -> None:
        """Set a sample aside; see :meth:`drip.store.RetentionStore.quarantine`."""
        shelved = Shelved.of(sample, reason)
        layout = self.space.layout
        shelf = self.quarantine_shelf
        n_pages = layout.pages_of(shelf.row_bytes(shelved))
        n_frames = PUT_FRAMES + n_pages + layout.map_pages_of(n_pages)

        def record() -> None:
            self.space.start_operation(n_frames)
            if not self.space.has_pages(n_pages):
                self._evictor.make_room(n_pages, None)
            shelf.add(self.space, shelved)
            self.space.free_pages -= n_pages + GROWTH_PAGES

        self.run(((n_pages, None),), n_frames, record)

    def save_progress(self, progress: Progress) -> None:
        """Remember where the run stands; see :meth:`drip.store.RetentionStore.save_progress`."""
        codec.require_short("policy_digest", progress.policy_digest)
        row = ProgressRow.of(progress)
        layout = self.space.layout
        if row.n_bytes > layout.max_sample_bytes:
            message = (
                f"cursor and selector state must fit {layout.max_sample_bytes} bytes in a store of "
                f"budget_bytes={layout.budget_bytes}, got {row.n_bytes}; raise budget_bytes"
            )
            raise StoreError(message)
        with explained(self._path, "read"):
            old = ProgressRow.stored(self._cursor)
        is_named = progress.policy_digest == self.policy_digest
        spans = row.spans_from(old) if old is not None and is_named else None
        # The row takes the place of the last one, so in a full store it costs no eviction.
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
            self.policy_digest = digest
            self._policy = None
            raise

    def set_label(self, key: int, label: int | None, annotator: str) -> None:
        """Give a kept sample a human label; see :meth:`drip.store.RetentionStore.set_label`."""
        layout = self.space.layout
        (n_bytes,) = self._cursor.execute(ROW_BYTES_BY_KEY, (key,)).fetchone()
        n_pages = n_bytes // layout.payload_bytes + 1  # the whole row is written anew
        n_frames = PUT_FRAMES + n_pages - 1 + layout.map_pages_of(2 * (n_pages - 1))

        def record() -> None:
            self.space.start_operation(n_frames)
            if not self.space.has_pages(n_pages):
                self._evictor.make_room(n_pages, None)
            self._cursor.execute(_LABEL, (label, annotator or None, key))
            self.space.free_pages -= n_pages + 1

        self.run(((n_pages, None),), n_frames, record)

    def note_origin(self, policy_digest: str, origin: str) -> None:
        """Remember where a policy's scores come from; see :meth:`drip.store.RetentionStore.note_origin`."""
        layout = self.space.layout
        n_bytes = self._lasting_bytes + self._progress_bytes + len(policy_digest.encode()) + len(origin)
        if n_bytes > layout.origins_bytes:
            message = (
                f"the origins of all policies and the progress must fit {layout.origins_bytes} bytes in "
                f"a store of budget_bytes={layout.budget_bytes}, got {n_bytes}; raise budget_bytes "
                "or use a new store"
            )
            raise StoreError(message)
        n_pages = layout.pages_of(len(origin))

        def record() -> None:
            self.space.start_operation(PUT_FRAMES + n_pages)
            if not self.space.has_pages(n_pages):
                self._evictor.make_room(n_pages, None)
            row = (f"{ORIGIN}{policy_digest}", origin)
            self._cursor.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", row)
            self.space.free_pages -= n_pages + GROWTH_PAGES
            self._look_up_limit()

        self.run(((n_pages, None),), PUT_FRAMES + n_pages, record)

    def _current_policy(self) -> int:
        return self._policy_id() if self._policy is None else self._policy

    def _policy_id(self) -> int:
        """The row of the current policy's digest, made when it is new."""
        find = "SELECT id FROM policies WHERE digest = ?"
        rows = self._cursor.execute(find, (self.policy_digest,)).fetchall()
        if not rows:
            self._cursor.execute("INSERT INTO policies (digest) VALUES (?)", (self.policy_digest,))
            rows = self._cursor.execute(find, (self.policy_digest,)).fetchall()
        policy = self._policy = int(rows[0][0])
        return policy

    def _name_policy_of_transaction(self) -> None:
        """A run that saves its first progress after its first puts names their policy afterwards."""
        n_rows = self.recorder.next_key - self._first_key
        if not self._in_transaction or not n_rows:
            return
        self.space.reserve_frames(3 * n_rows + PUT_FRAMES)
        row = (self._policy_id(), self._first_key)
        self._cursor.execute("UPDATE OR IGNORE audit SET policy = ? WHERE id >= ? AND policy = 0", row)
        self._cursor.execute("UPDATE kept SET policy = ? WHERE id >= ? AND policy = 0", row)

    # -- a smaller budget ------------------------------------------------------------------------------

    @property
    def is_over_budget(self) -> bool:
        """True when the file or one of its shares is bigger than the layout says."""
        return (
            self.space.look_up_free_pages() < 0
            or self._n_pages() > self.space.layout.max_pages
            or self.ring.rows > self.ring.max_rows
            or self.ring.bytes > self.ring.max_bytes
            or self.quarantine_shelf.is_over
        )

    def _n_pages(self) -> int:
        return int(self._cursor.execute("PRAGMA page_count").fetchone()[0])

    def shrink(self) -> None:
        """Bring a file that was bigger into its share: evict, then give the free pages back to the disk.

        In transactions that fit the log; until this returns the former budget holds.
        """
        space = self.space
        layout = space.layout

        def trim() -> None:
            space.start_operation(0)
            self.ring.trim(self._cursor, space)

        def drop() -> None:
            space.start_operation(0)
            self.quarantine_shelf.drop_oldest(space)

        while self.ring.rows > self.ring.max_rows or self.ring.bytes > self.ring.max_bytes:
            self._run_alone(self.ring.trim_frames, trim, space.soft_frames)
        while self.quarantine_shelf.is_over:
            self._run_alone(PUT_FRAMES, drop, space.soft_frames)
        self._make_room_ahead(0, None)
        while True:
            n_over = self._n_pages() - layout.max_pages
            if n_over <= 0:
                break
            space.truncate_log()
            n_steps = min(n_over, layout.log_frames // 8)
            # As a script, because execute() steps only once through a pragma without result columns.
            self._cursor.executescript(f"PRAGMA incremental_vacuum({n_steps})")
        space.truncate_log()
        space.apply_limits()
