"""Writes one decision: its row in the audit and, where it says so, the sample; meets what is there already.

Works inside the caller's transaction; commits nothing.
"""

from __future__ import annotations

import sqlite3

from drip.store import codec
from drip.store.class_counters import ClassCounter, ClassCounters
from drip.store.eviction import AuditRing, Evictor
from drip.store.incoming import Incoming
from drip.store.records import Outcome
from drip.store.space import Space

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
