"""One put: checks and encodes before a transaction, writes inside it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from drip.errors import InputError, SampleTooLargeError
from drip.store import codec
from drip.store.budget import GROWTH_PAGES, PUT_FRAMES, Layout, Space
from drip.store.eviction import AuditRing, ClassCounter, ClassCounters, Evictor
from drip.store.records import Outcome
from drip.types import Decision, Observation, Sample

_AUDIT_OVERHEAD_BYTES = 96  # of an audit row and its index entry, besides texts and logits

_INSERT_AUDIT = (
    "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_INSERT_KEPT = (
    "INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, 0, ?, ?, ?, NULL) ON CONFLICT DO NOTHING"
)
_INSERT_BLOB = "INSERT INTO blobs VALUES (?, ?)"
# Two terms for two indices: files created by version 1 have an index on the whole hash.
_SAME_CONTENT = "substr(content_hash, 1, 12) = substr(:digest, 1, 12) AND content_hash = :digest"
_FIND_SAME = f"SELECT 1 FROM kept WHERE {_SAME_CONTENT}"  # noqa: S608  # a constant
_COUNT_SAME = f"UPDATE kept SET repeats = repeats + :step WHERE {_SAME_CONTENT}"  # noqa: S608  # a constant
_RETAIN_SAME = f"""UPDATE kept SET priority = :priority, keep_probability = :probability, reason = :reason,
    policy = :policy, scores = :scores WHERE {_SAME_CONTENT} AND {codec.IS_SHADOW}"""  # noqa: S608  # constants
# CAST, because length() of a text ends at a zero character. The other columns are JSON, which cannot contain
# one.
_ROW_BYTES = """SELECT coalesce(length(meta), 0) + length(scores) + length(CAST(reason AS BLOB))
    + length(CAST(media_type AS BLOB)) FROM kept WHERE """
ROW_BYTES_BY_KEY = f"{_ROW_BYTES} id = ?"
_ROW_BYTES_OF_SAME = f"{_ROW_BYTES} {_SAME_CONTENT}"
_FIND_DECISION = """SELECT id, outcome, retain, predicted_class, row_bytes,
    EXISTS (SELECT 1 FROM kept WHERE kept.id = audit.id)
    FROM audit WHERE sample_id = ? AND hash_prefix = ? AND policy = ?"""
_REPLACE_DECISION = """UPDATE audit SET retain = 1, priority = ?, keep_probability = ?, reason = ?,
    row_bytes = ?, scores = ?, logits = ? WHERE id = ?"""
# From kept as well: a kept sample may outlive its audit row, and its key must not be given again.
_NEXT_KEY = (
    "SELECT max(coalesce((SELECT max(id) FROM audit), 0), coalesce((SELECT max(id) FROM kept), 0)) + 1"
)


@dataclass(slots=True)
class Incoming:
    """The encoded values of a put, and the room it needs.

    Not frozen, because freezing makes creating it slower, and every decision creates one.

    Attributes:
        sample: The sample.
        digest: SHA-256 of its data, 32 bytes.
        predicted_class: The model's prediction.
        retain: The rule's decision.
        keep: Whether the sample is kept; in shadow mode this is not the decision.
        priority: Never NaN.
        probability: Keep probability or None.
        reason: The decision's reason.
        label: The label that came with the sample, or None.
        time_s: Of the sample, else of the observation; None for NaN.
        scores: JSON.
        logits: float32 bytes, or None where the store does not keep them.
        meta: JSON or None.
        row_bytes: Bytes that the audit counts for its row.
        audit_pages: Upper limit of the pages of the audit row.
        n_pages: Upper limit of the pages of all rows.
        n_frames: Upper limit of the pages that change, without evictions.
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

    @property
    def kept_reason(self) -> str:
        """The reason as stored in the table of kept samples."""
        return codec.encode_reason(self.reason, is_shadow=not self.retain)


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
    """Check and encode a put; writes nothing.

    Args:
        sample: As for :meth:`drip.store.RetentionStore.put`.
        observation: As there.
        decision: As there.
        layout: The shares of the budget.
        max_bytes: Limit of what fits beside the rows that are never evicted.
        scores: Remembers templates.
        with_logits: Whether the audit keeps logits.
        keep: As there.

    Raises:
        InputError: NaN priority, a wrong content hash, an unusable id, text, label or time.
        SampleTooLargeError: the sample can never fit.
    """
    codec.require_sample(sample)
    priority = float(decision.priority)
    if priority != priority:  # noqa: PLR0124  # NaN, twice as fast as isnan
        # NaN has no place in an order, and SQLite would store it as NULL.
        message = f"sample {sample.id!r}: the priority of its decision is NaN; use -inf for the lowest"
        raise InputError(message)
    retain = bool(decision.retain)
    is_kept = retain if keep is None else bool(keep)
    digest = codec.content_digest(sample, observation, verify=is_kept)
    score_text = scores.encode(observation.scores)
    logits = codec.encode_logits(observation.logits) if with_logits else None
    meta = codec.encode_meta(sample.meta) if sample.meta else None
    n_texts = len(score_text) + codec.texts_bytes(sample, decision)
    n_logits = 0 if logits is None else len(logits)
    # An upper limit: audit row, its index and kept row have these texts, and their rows and cells cost a bit.
    n_history = 4 * n_texts + n_logits
    n_bytes = n_history
    if is_kept:
        n_bytes += len(sample.data) + (0 if meta is None else len(meta))
    if n_bytes > max_bytes:
        message = (
            f"sample {sample.id!r}: {n_bytes} bytes with its records, but the limit is {max_bytes} in a "
            f"store with budget_bytes={layout.budget_bytes}; raise budget_bytes or log_bytes, or shrink the "
            "sample"
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
        2 * n_texts + n_logits + _AUDIT_OVERHEAD_BYTES,  # texts once in the row, once in the index
        layout.pages_of(n_history),
        n_pages,
        PUT_FRAMES + n_pages + layout.map_pages_of(n_pages),
    )


class Recorder:
    """Writes decisions and kept samples inside the caller's transaction.

    A decision that is already recorded (same sample id, content and policy) is ignored, unless it keeps more
    than the recorded one: a sample that was discarded is now kept, or one that only shadow mode kept is now
    retained by the rule. Then the later decision replaces the earlier one.

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
        """Look up the number of the next decision."""
        (self.next_key,) = self._cursor.execute(_NEXT_KEY).fetchone()

    def record(self, put: Incoming, policy: int) -> None:
        """Write a decision under the policy with this row id."""
        space = self._space
        # Everything is announced before it is written, so a transaction that would outgrow the log
        # fails while it can still be rolled back.
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
        # The unique index finds a redelivery in the insert itself: looking first would read the same pages
        # twice for every decision.
        if not self._cursor.execute(_INSERT_AUDIT, row).rowcount:
            if not self._withdraw_recorded(put, policy):
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

    def _withdraw_recorded(self, put: Incoming, policy: int) -> bool:
        """Handle a decision that is recorded already; True if it was deleted and the new one must be written.

        A redelivery is only counted. Where the sample is still kept, its rows are updated in place. Otherwise
        (it was discarded, evicted or a duplicate) the old row goes and the new decision starts as a new one.
        """
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
        # The old decision may have been for another predicted class, whose counts must then go down.
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
            # Looked up only when room is short: a duplicate needs no room, but most samples are not
            # duplicates, and the unique index of kept contents finds it in the insert below.
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
            put.kept_reason,
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
            self._counters.add_shadow(1)
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
        """Make room to change a kept row, metadata and all.

        SQLite allocates the pages of the changed row before it frees those of the old one, so even a counter
        beside large metadata needs room for both.
        """
        space = self._space
        for (n_bytes,) in self._cursor.execute(_ROW_BYTES_OF_SAME, {"digest": put.digest}).fetchall():
            n_pages = space.layout.pages_of(n_bytes)
            # A row within one page is rewritten in that page; PUT_FRAMES covers it.
            if n_bytes > space.layout.payload_bytes:
                space.reserve_frames(n_pages + space.layout.map_pages_of(2 * n_pages))
                if not space.has_pages(n_pages):
                    self._evictor.make_room(n_pages, None)
                space.free_pages -= n_pages

    def _retain(self, put: Incoming, policy: int) -> None:
        """Replace the decision on content that only shadow mode kept with that of the rule that retains it."""
        values = {
            "digest": put.digest,
            "priority": put.priority,
            "probability": put.probability,
            "reason": put.kept_reason,
            "policy": policy,
            "scores": put.scores,
        }
        self._counters.add_shadow(-self._cursor.execute(_RETAIN_SAME, values).rowcount)

    def _mark(self, key: int, outcome: Outcome) -> None:
        self._cursor.execute("UPDATE audit SET outcome = ? WHERE id = ?", (int(outcome), key))
