"""Reading a store: kept samples, audit, quarantine and counts, in pieces that hold no lock in between."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drip.errors import StoreError
from drip.store import codec
from drip.store.eviction import ClassCounters
from drip.store.quarantine import Quarantine, media_type_and_rejection
from drip.store.records import AuditRow, LabelState, Outcome, QuarantinedSample, StoredSample, StoreStats
from drip.store.schema import disk_bytes, explained
from drip.store.settings import ORIGIN, ProgressRow
from drip.types import Decision, JsonObject, Progress, Sample

_CHUNK = 256

_KEPT = """SELECT kept.id, sample_id, content_hash, media_type, digest, priority, keep_probability, reason,
    predicted_class, true_label, human_label, repeats, time_s, scores, meta, annotator
    FROM kept JOIN policies ON policies.id = kept.policy"""
# Outcome 1 is KEPT, 3 is EVICTED: an eviction leaves the audit alone.
_AUDIT = """SELECT audit.id, sample_id, digest,
    CASE WHEN outcome = 1 AND NOT EXISTS (SELECT 1 FROM kept WHERE kept.id = audit.id) THEN 3
        ELSE outcome END,
    retain, priority, keep_probability, reason, predicted_class, label, n_bytes, time_s, scores, logits
    FROM audit JOIN policies ON policies.id = audit.policy WHERE audit.id > ? ORDER BY audit.id LIMIT ?"""
# The audit's index finds the younger samples; those that outlived their audit row are looked through. An
# index on the kept samples would cost every put and eviction a page.
_KEYS = """SELECT id FROM kept WHERE id IN (SELECT id FROM audit WHERE sample_id = ?)
    UNION SELECT id FROM kept
        WHERE id < (SELECT coalesce(min(id), 9223372036854775807) FROM audit) AND sample_id = ?
    ORDER BY 1"""
_QUARANTINE = """SELECT id, sample_id, media_type, reason, true_label, n_bytes, repeats, time_s, meta, data
    FROM quarantine WHERE id > ? ORDER BY id LIMIT ?"""

_LABEL_STATES = {
    LabelState.HUMAN: "human_label IS NOT NULL",
    LabelState.TRUE: "human_label IS NULL AND true_label IS NOT NULL",
    LabelState.UNLABELLED: "human_label IS NULL AND true_label IS NULL",
}


class Reader:
    """Reads through one connection.

    An iteration asks for a chunk at a time, starting behind the last key: it keeps no read transaction
    open, so that it never pins the writer's log, and it may run while the store is written to. It gives
    what is there when it comes by, in the order of age.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def samples(
        self, *, predicted_class: int | None, label_state: LabelState | None, policy_digest: str | None
    ) -> Iterator[StoredSample]:
        """Kept samples; see :meth:`drip.store.RetentionStore.samples`."""
        conditions = ["kept.id > ?"]
        values: list[int | str] = []
        if predicted_class is not None:
            conditions.append("predicted_class = ?")
            values.append(int(predicted_class))
        if policy_digest is not None:
            conditions.append("digest = ?")
            values.append(policy_digest)
        if label_state is not None:
            conditions.append(_LABEL_STATES[label_state])
        sql = f"{_KEPT} WHERE {' AND '.join(conditions)} ORDER BY kept.id LIMIT {_CHUNK}"
        last = 0
        while True:
            rows = self._rows(sql, (last, *values))
            for row in rows:
                blob = self._rows("SELECT data FROM blobs WHERE id = ?", (row[0],))
                if blob:  # else evicted since its chunk was read
                    yield _stored_sample(row, blob[0][0])
            if len(rows) < _CHUNK:
                return
            last = rows[-1][0]

    def sample(self, key: int) -> StoredSample | None:
        """One kept sample, None when there is none."""
        rows = self._rows(f"{_KEPT} WHERE kept.id = ?", (key,))
        blob = self._rows("SELECT data FROM blobs WHERE id = ?", (key,))
        return _stored_sample(rows[0], blob[0][0]) if rows and blob else None

    def keys_of(self, sample_id: str) -> list[int]:
        """Keys of the kept samples with this id; ids of different sources may be the same."""
        return [key for (key,) in self._rows(_KEYS, (sample_id, sample_id))]

    def has(self, key: int) -> bool:
        """True when a sample with this key is kept."""
        return bool(self._rows("SELECT 1 FROM kept WHERE id = ?", (key,)))

    def progress(self) -> Progress | None:
        """The saved progress, that of the connection's open transaction included."""
        with explained(self._path, "read"):
            row = ProgressRow.stored(self._connection.cursor())
        try:
            return None if row is None else row.progress
        except StoreError as error:
            message = f"cannot read {self._path}: {error}"
            raise StoreError(message) from error

    def audit(self) -> Iterator[AuditRow]:
        """The recorded decisions, oldest first."""
        last = 0
        while rows := self._rows(_AUDIT, (last, _CHUNK)):
            yield from map(_audit_row, rows)
            last = rows[-1][0]

    def quarantined(self) -> Iterator[QuarantinedSample]:
        """The samples in quarantine, oldest first."""
        last = 0
        while rows := self._rows(_QUARANTINE, (last, 1)):
            key, sample_id, column, reason, label, n_bytes, repeats, time_s, meta, data = rows[0]
            media_type, rejected = media_type_and_rejection(column, reason)
            sample = Sample(
                sample_id, data or b"", media_type, label, time_s, codec.decode_meta(meta), rejected
            )
            yield QuarantinedSample(key, sample, reason, n_bytes, repeats)
            last = key

    def origins(self) -> dict[str, JsonObject]:
        """Where the scores come from, by policy digest."""
        sql = "SELECT name, value FROM settings WHERE substr(name, 1, ?) = ?"
        rows = self._rows(sql, (len(ORIGIN), ORIGIN))
        return {name.removeprefix(ORIGIN): json.loads(value) for name, value in rows}

    def count(self, table: str) -> int:
        """Rows of a table, or of those that a condition behind its name holds for."""
        return int(self._rows(f"SELECT count(*) FROM {table}", ())[0][0])  # noqa: S608  # a constant of the caller

    def stats(self, counters: ClassCounters, quarantine_dropped: int, budget_bytes: int) -> StoreStats:
        """The public numbers from the counters."""
        first_s, last_s = counters.span()
        if counters.shadowed is None:
            counters.shadowed = self.count(f"kept WHERE {codec.SHADOWED}")
        return StoreStats(
            seen=counters.total("seen"),
            kept=counters.total("kept"),
            discarded=counters.total("discarded"),
            evicted=counters.total("evicted"),
            duplicates=counters.total("duplicates"),
            redelivered=counters.total("redelivered"),
            quarantined=self.count("quarantine"),
            quarantine_dropped=quarantine_dropped,
            kept_bytes=counters.total("kept_bytes"),
            disk_bytes=disk_bytes(self._path),
            budget_bytes=budget_bytes,
            first_time_s=first_s,
            last_time_s=last_s,
            audit_rows=self.count("audit"),
            audit_shadowed=self.count("audit WHERE retain = 0 AND outcome != 0"),
            kept_shadowed=counters.shadowed,
            classes={key: counters.classes[key].counts() for key in sorted(counters.classes)},
        )

    def committed_counters(self) -> tuple[ClassCounters, int]:
        """The counters in the file, and how many quarantined samples gave way."""
        with explained(self._path, "read"):
            cursor = self._connection.cursor()
            shelf = Quarantine(cursor, 1, 1)
            shelf.load()
            return ClassCounters.read(cursor), shelf.dropped

    def _rows(self, sql: str, values: tuple[int | str, ...]) -> list[tuple[Any, ...]]:
        with explained(self._path, "read"):
            return self._connection.execute(sql, values).fetchall()


def _stored_sample(row: tuple[Any, ...], data: Any) -> StoredSample:
    key, sample_id, digest, media_type, policy, priority, probability, reason, predicted, *rest = row
    true_label, human_label, repeats, time_s, scores, meta, annotator = rest
    word, is_retained = codec.decode_reason(reason)
    return StoredSample(
        key=key,
        sample=Sample(sample_id, data, media_type, true_label, time_s, codec.decode_meta(meta)),
        decision=Decision(is_retained, priority, probability, word),
        predicted_class=predicted,
        scores=codec.decode_scores(scores),
        content_hash=digest.hex(),
        policy_digest=policy,
        human_label=human_label,
        annotator=annotator or "",
        repeats=repeats,
    )


def _audit_row(row: tuple[Any, ...]) -> AuditRow:
    key, sample_id, policy, outcome, retain, priority, probability, reason, predicted, *rest = row
    label, n_bytes, time_s, scores, logits = rest
    return AuditRow(
        key=key,
        sample_id=sample_id,
        decision=Decision(bool(retain), priority, probability, reason),
        outcome=Outcome(outcome),
        predicted_class=predicted,
        scores=codec.decode_scores(scores),
        logits=codec.decode_logits(logits),
        label=label,
        n_bytes=n_bytes,
        time_s=time_s,
        policy_digest=policy,
    )
