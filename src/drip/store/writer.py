"""The writing half of the store: transactions, puts, quarantine, progress and labels.

One writer per store. Every method validates before it writes; after the first write of an operation a
failure rolls the whole transaction back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from drip.errors import InputError, SampleTooLargeError, StoreError, TransactionFullError
from drip.store import codec
from drip.store.budget import EVICT_FRAMES, MICRO_BATCH_FRAMES, PUT_FRAMES, Layout, Space
from drip.store.eviction import AuditRing, ClassCounter, ClassCounters, Evictor
from drip.store.quarantine import Quarantine, Shelved
from drip.store.records import Outcome
from drip.store.schema import explain, explained
from drip.store.settings import ORIGIN, ProgressRow, Settings, frames_of
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


GROWTH_PAGES = 12  # pages that index and table splits of one put may take beside its own bytes

_INSERT_AUDIT = (
    "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_INSERT_KEPT = (
    "INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, 0, ?, ?, ?, NULL) ON CONFLICT DO NOTHING"
)
_INSERT_BLOB = "INSERT INTO blobs VALUES (?, ?)"
# The first term is the one that has an index; files of version 1 have one on the whole hash.
_SAME_CONTENT = "substr(content_hash, 1, 12) = substr(:digest, 1, 12) AND content_hash = :digest"
_FIND_SAME = f"SELECT 1 FROM kept WHERE {_SAME_CONTENT}"  # noqa: S608  # a constant
_COUNT_SAME = f"UPDATE kept SET repeats = repeats + :step WHERE {_SAME_CONTENT}"  # noqa: S608  # a constant
_RETAIN_SAME = f"""UPDATE kept SET priority = :priority, keep_probability = :probability, reason = :reason,
    policy = :policy, scores = :scores WHERE {_SAME_CONTENT} AND {codec.SHADOWED}"""  # noqa: S608  # constants
# As blobs, since the length of a text with a zero character ends there; the others are JSON.
_ROW_BYTES = """SELECT coalesce(length(meta), 0) + length(scores) + length(CAST(reason AS BLOB))
    + length(CAST(media_type AS BLOB)) FROM kept WHERE """
ROW_BYTES_BY_KEY = f"{_ROW_BYTES} id = ?"
_ROW_BYTES_OF_SAME = f"{_ROW_BYTES} {_SAME_CONTENT}"
_FIND_DECISION = """SELECT id, outcome, retain, predicted_class, row_bytes,
    EXISTS (SELECT 1 FROM kept WHERE kept.id = audit.id)
    FROM audit WHERE sample_id = ? AND hash_prefix = ? AND policy = ?"""
_REPLACE_DECISION = """UPDATE audit SET retain = 1, priority = ?, keep_probability = ?, reason = ?,
    row_bytes = ?, scores = ?, logits = ? WHERE id = ?"""
_NEXT_KEY = (
    "SELECT max(coalesce((SELECT max(id) FROM audit), 0), coalesce((SELECT max(id) FROM kept), 0)) + 1"
)


class Recorder:
    """Records decisions.

    A decision that is recorded already (same sample id, content and policy) is ignored, unless it keeps
    more than the recorded one: a sample that was discarded is kept after all, and one that only shadow mode
    keeps is retained by the rule. Then the later decision takes the place of the earlier one.

    Attributes:
        next_key: Number of the next decision.
    """

    def __init__(
        self,
        cursor: sqlite3.Cursor,
        space: Space,
        counters: ClassCounters,
        ring: AuditRing,
        evictor: Evictor,
    ) -> None:
        self._cursor = cursor
        self._space = space
        self._counters = counters
        self._ring = ring
        self._evictor = evictor
        self.next_key = 1

    def load(self) -> None:
        """Look up what the next decision's number is."""
        (self.next_key,) = self._cursor.execute(_NEXT_KEY).fetchone()

    def record(self, put: Incoming, policy: int) -> None:
        """Write a decision under the policy of that row."""
        space = self._space
        space.start_operation(put.n_frames)
        if self._ring.is_full:
            self._ring.trim(self._cursor, space)
        if not space.has_pages(put.audit_pages):
            self._evictor.make_room(put.audit_pages, None)
        entry = self._counters.touch(put.predicted_class)
        key = self.next_key
        sample = put.sample
        row = (
            key,
            sample.id,
            put.hash_prefix,
            policy,
            int(put.keep),  # Outcome.KEPT or Outcome.DISCARDED
            int(put.retain),
            put.priority,
            put.probability,
            put.reason,
            put.predicted_class,
            put.label,
            len(sample.data),
            put.time_s,
            put.row_bytes,
            put.scores,
            put.logits,
        )
        if not self._cursor.execute(_INSERT_AUDIT, row).rowcount:
            if not self._outdoes_recorded(put, policy):
                return
            self._cursor.execute(_INSERT_AUDIT, row)
        self.next_key = key + 1
        self._ring.rows += 1
        self._ring.bytes += put.row_bytes
        entry.seen += 1
        if put.time_s is not None:
            entry.span(put.time_s)
        if put.keep:
            self._keep(put, key, policy, entry)
        else:
            entry.discarded += 1
            space.free_pages -= put.audit_pages + GROWTH_PAGES

    def _outdoes_recorded(self, put: Incoming, policy: int) -> bool:
        """Meet the recorded decision: True when it was withdrawn and the later one is to be written anew."""
        values = (put.sample.id, put.hash_prefix, policy)
        key, outcome, was_retained, predicted_class, row_bytes, is_there = self._cursor.execute(
            _FIND_DECISION, values
        ).fetchone()
        is_discarded = outcome == Outcome.DISCARDED
        if not put.keep or not (is_discarded or (put.retain and not was_retained)):
            self._counters.touch(put.predicted_class).redelivered += 1
            return False
        if is_there:
            self._make_room_to_rewrite(put)
            self._retain(put, policy)
            decision = (put.priority, put.probability, put.reason, put.row_bytes, put.scores, put.logits)
            self._cursor.execute(_REPLACE_DECISION, (*decision, key))
            self._ring.bytes += put.row_bytes - row_bytes
            self._space.free_pages -= put.audit_pages + GROWTH_PAGES
            return False
        entry = self._counters.touch(predicted_class)
        entry.seen -= 1
        if is_discarded:
            entry.discarded -= 1
        elif outcome == Outcome.DUPLICATE:
            entry.duplicates -= 1
            self._cursor.execute(_COUNT_SAME, {"digest": put.digest, "step": -1})
        else:
            entry.evicted -= 1
        self._cursor.execute("DELETE FROM audit WHERE id = ?", (key,))
        self._ring.rows -= 1
        self._ring.bytes -= row_bytes
        return True

    def _keep(self, put: Incoming, key: int, policy: int, entry: ClassCounter) -> None:
        space = self._space
        sample = put.sample
        if not space.has_pages(put.n_pages):
            # Only now, since a duplicate needs no room and most samples are none.
            if self._cursor.execute(_FIND_SAME, {"digest": put.digest}).fetchall():
                self._count_duplicate(put, key, policy, entry)
                return
            if not self._evictor.make_room(put.n_pages, put.priority):
                self._mark(key, Outcome.EVICTED)
                entry.evicted += 1
                return
        row = (
            key,
            sample.id,
            put.digest,
            sample.media_type,
            policy,
            put.priority,
            put.probability,
            codec.encode_reason(put.reason, is_retained=put.retain),
            put.predicted_class,
            put.label,
            len(sample.data),
            put.time_s,
            put.scores,
            put.meta,
        )
        if not self._cursor.execute(_INSERT_KEPT, row).rowcount:
            self._count_duplicate(put, key, policy, entry)
            return
        self._cursor.execute(_INSERT_BLOB, (key, sample.data))
        entry.kept += 1
        entry.kept_bytes += len(sample.data)
        if not put.retain:
            self._counters.add_shadowed(1)
        space.free_pages -= put.n_pages + GROWTH_PAGES

    def _count_duplicate(self, put: Incoming, key: int, policy: int, entry: ClassCounter) -> None:
        self._make_room_to_rewrite(put)
        self._cursor.execute(_COUNT_SAME, {"digest": put.digest, "step": 1})
        self._mark(key, Outcome.DUPLICATE)
        entry.duplicates += 1
        if put.retain:
            self._retain(put, policy)
        self._space.free_pages -= put.audit_pages + GROWTH_PAGES

    def _make_room_to_rewrite(self, put: Incoming) -> None:
        """SQLite writes a row anew to change it, metadata and all, before it gives up the old one's pages."""
        space = self._space
        for (n_bytes,) in self._cursor.execute(_ROW_BYTES_OF_SAME, {"digest": put.digest}).fetchall():
            n_pages = space.layout.pages_of(n_bytes)
            if n_bytes > space.layout.payload_bytes:
                space.reserve_frames(n_pages + space.layout.map_pages_of(2 * n_pages))
                if not space.has_pages(n_pages):
                    self._evictor.make_room(n_pages, None)
                space.free_pages -= n_pages

    def _retain(self, put: Incoming, policy: int) -> None:
        """Give content that only shadow mode kept the decision of the rule that retains it."""
        values = {
            "digest": put.digest,
            "priority": put.priority,
            "probability": put.probability,
            "reason": codec.encode_reason(put.reason, is_retained=True),
            "policy": policy,
            "scores": put.scores,
        }
        self._counters.add_shadowed(-self._cursor.execute(_RETAIN_SAME, values).rowcount)

    def _mark(self, key: int, outcome: Outcome) -> None:
        self._cursor.execute("UPDATE audit SET outcome = ? WHERE id = ?", (int(outcome), key))


_AUDIT_OVERHEAD_BYTES = 96  # of an audit row and its index entry, beside texts and logits


@dataclass(slots=True)
class Incoming:
    """What a put writes, and how much room it takes.

    Attributes:
        sample: The sample.
        digest: SHA-256 of its data, 32 bytes.
        predicted_class: What the model said.
        retain: The decision.
        keep: What is done, which in shadow mode is not what was decided.
        priority: Never NaN.
        probability: Keep probability or None.
        reason: The decision's word.
        label: The label that came along, or None.
        time_s: Of the sample, else of the observation; None for NaN.
        scores: JSON.
        logits: float32 bytes, or None where the store keeps none.
        meta: JSON or None.
        row_bytes: What the audit counts for its row.
        audit_pages: Pages of the audit row at most.
        n_pages: Pages of all rows at most.
        n_frames: Pages that change at most, evictions not counted.
    """

    sample: Sample
    digest: bytes
    predicted_class: int
    retain: bool
    keep: bool
    priority: float
    probability: float | None
    reason: str
    label: int | None
    time_s: float | None
    scores: str
    logits: bytes | None
    meta: str | None
    row_bytes: int
    audit_pages: int
    n_pages: int
    n_frames: int

    @property
    def hash_prefix(self) -> int:
        """The first 64 bits of the digest, as SQLite's signed integer."""
        return int.from_bytes(self.digest[:8], "big", signed=True)


def prepare(
    sample: Sample,
    observation: Observation,
    decision: Decision,
    *,
    layout: Layout,
    max_bytes: int,
    scores: codec.ScoreCodec,
    with_logits: bool,
    keep: bool | None = None,
) -> Incoming:
    """Validate and encode.

    Args:
        sample: As for :meth:`drip.store.RetentionStore.put`.
        observation: As there.
        decision: As there.
        layout: The shares of the budget.
        max_bytes: The most that fits beside what never gives way.
        scores: Remembers templates.
        with_logits: Whether the audit keeps them.
        keep: As there.

    Raises:
        InputError: NaN priority, a wrong content hash, an unusable id, text, label or time.
        SampleTooLargeError: the sample can never fit.
    """
    codec.require_sample(sample)
    priority = float(decision.priority)
    if priority != priority:  # noqa: PLR0124  # NaN, twice as fast as isnan
        message = (
            f"decision.priority of sample {sample.id!r} must be a number, got {priority!r}; "
            "use -inf for the lowest"
        )
        raise InputError(message)
    retain = bool(decision.retain)
    is_kept = retain if keep is None else bool(keep)
    digest = codec.content_digest(sample, observation, verify=is_kept)
    score_text = scores.encode(observation.scores)
    logits = codec.encode_logits(observation.logits) if with_logits else None
    meta = codec.encode_meta(sample.meta) if sample.meta else None
    n_texts = len(score_text) + codec.texts_bytes(sample, decision)
    n_logits = 0 if logits is None else len(logits)
    n_history = 4 * n_texts + n_logits
    n_bytes = n_history
    if is_kept:
        n_bytes += len(sample.data) + (0 if meta is None else len(meta))
    if n_bytes > max_bytes:
        message = (
            f"a sample and what is recorded with it must fit {max_bytes} bytes in a store of "
            f"budget_bytes={layout.budget_bytes}, got {n_bytes} bytes for sample {sample.id!r}; "
            "raise budget_bytes or log_bytes, or shrink the sample"
        )
        raise SampleTooLargeError(message)
    n_pages = layout.pages_of(n_bytes)
    return Incoming(
        sample,
        digest,
        int(observation.predicted_class),
        retain,
        is_kept,
        priority,
        None if decision.keep_probability is None else float(decision.keep_probability),
        decision.reason,
        None if sample.label is None else codec.encode_label(sample),
        codec.encode_time(sample, observation.time_s),
        score_text,
        logits,
        meta,
        2 * n_texts + n_logits + _AUDIT_OVERHEAD_BYTES,
        layout.pages_of(n_history),
        n_pages,
        PUT_FRAMES + n_pages + layout.map_pages_of(n_pages),
    )
