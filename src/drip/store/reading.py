"""Reading a store in chunks that hold no lock in between, and checking all of it for damage in one snapshot."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from drip.errors import StoreError
from drip.store import codec
from drip.store.connection import disk_bytes, explained
from drip.store.eviction import ClassCounters
from drip.store.quarantine import Quarantine, media_type_and_rejection
from drip.store.records import (
    AuditRow,
    CheckReport,
    LabelState,
    Origin,
    Outcome,
    QuarantinedSample,
    StoredSample,
    StoreStats,
)
from drip.store.settings import ProgressRow, read_origins
from drip.types import Decision, Progress, Sample

_MAX_PROBLEMS = 100  # a damaged file may have one on every page
_CHUNK = 256  # rows without their blobs, which may be megabytes each and are read one by one

_KEPT = """SELECT kept.id, sample_id, content_hash, media_type, digest, priority, keep_probability, reason,
    predicted_class, true_label, human_label, repeats, time_s, scores, meta, annotator
    FROM kept JOIN policies ON policies.id = kept.policy"""
# Outcome 1 is KEPT, 3 is EVICTED. An eviction does not touch the audit; it shows as a missing kept row.
_AUDIT = """SELECT audit.id, sample_id, digest,
    CASE WHEN outcome = 1 AND NOT EXISTS (SELECT 1 FROM kept WHERE kept.id = audit.id) THEN 3
        ELSE outcome END,
    retain, priority, keep_probability, reason, predicted_class, label, n_bytes, time_s, scores, logits
    FROM audit JOIN policies ON policies.id = audit.policy WHERE audit.id > ? ORDER BY audit.id LIMIT ?"""
# The audit's index finds most samples; those that outlived their audit row are searched one by one. An index
# on kept.sample_id, as version 1 had it, would cost every put and eviction another page.
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

    An iteration reads a chunk at a time, each after the last key. It keeps no read transaction open: that
    would stop the writer from resetting its log, and so from writing. The price is that samples put or
    evicted meanwhile may or may not appear.
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
        # After the last key instead of OFFSET, which would read all skipped rows again for every chunk.
        sql = f"{_KEPT} WHERE {' AND '.join(conditions)} ORDER BY kept.id LIMIT {_CHUNK}"
        last = 0
        while True:
            rows = self._rows(sql, (last, *values))
            for row in rows:
                blob = self._rows("SELECT data FROM blobs WHERE id = ?", (row[0],))
                if blob:  # otherwise it was evicted since its chunk was read
                    yield _stored_sample(row, blob[0][0])
            if len(rows) < _CHUNK:
                return
            last = rows[-1][0]

    def sample(self, key: int) -> StoredSample | None:
        """One kept sample, or None."""
        rows = self._rows(f"{_KEPT} WHERE kept.id = ?", (key,))
        blob = self._rows("SELECT data FROM blobs WHERE id = ?", (key,))
        return _stored_sample(rows[0], blob[0][0]) if rows and blob else None

    def keys_of(self, sample_id: str) -> list[int]:
        """Keys of the kept samples with this id; samples of different sources may have the same id."""
        return [key for (key,) in self._rows(_KEYS, (sample_id, sample_id))]

    def has(self, key: int) -> bool:
        """True if a sample with this key is kept."""
        return bool(self._rows("SELECT 1 FROM kept WHERE id = ?", (key,)))

    def progress(self) -> Progress | None:
        """The saved progress; inside a transaction the one that it has saved."""
        with explained(self._path, "read"):
            row = ProgressRow.stored(self._connection.cursor())
        try:
            return None if row is None else row.progress
        except StoreError as error:
            raise error.within(str(self._path)) from error

    def audit(self) -> Iterator[AuditRow]:
        """The recorded decisions, from the oldest to the newest."""
        last = 0
        while rows := self._rows(_AUDIT, (last, _CHUNK)):
            yield from map(_audit_row, rows)
            last = rows[-1][0]

    def quarantined(self) -> Iterator[QuarantinedSample]:
        """The samples in quarantine, from the oldest to the newest, one in memory at a time."""
        last = 0
        # One row per query, because here the data is in the row itself.
        while rows := self._rows(_QUARANTINE, (last, 1)):
            key, sample_id, column, reason, label, n_bytes, repeats, time_s, meta, data = rows[0]
            media_type, rejected = media_type_and_rejection(column, reason)
            sample = Sample(
                sample_id, data or b"", media_type, label, time_s, codec.decode_meta(meta), rejected
            )
            yield QuarantinedSample(key, sample, reason, n_bytes, repeats)
            last = key

    def origins(self) -> dict[str, Origin]:
        """What the scores were computed from, by policy digest."""
        with explained(self._path, "read"):
            return read_origins(self._connection.cursor())

    def count(self, table: str) -> int:
        """Number of rows of a table; ``table`` may end with a condition."""
        return int(self._rows(f"SELECT count(*) FROM {table}", ())[0][0])  # noqa: S608  # callers pass constants

    def stats(self, counters: ClassCounters, quarantine_dropped: int, budget_bytes: int) -> StoreStats:
        """The numbers that users see."""
        first_s, last_s = counters.span()
        # The writer keeps this number up to date from here on, so it is counted once.
        if counters.n_shadow is None:
            counters.n_shadow = self.count(f"kept WHERE {codec.IS_SHADOW}")
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
            kept_shadowed=counters.n_shadow,
            class_names=self._class_names(),
            classes={key: counters.classes[key].counts() for key in sorted(counters.classes)},
        )

    def _class_names(self) -> tuple[str, ...]:
        known = {origin.class_names for origin in self.origins().values() if origin.class_names}
        return known.pop() if len(known) == 1 else ()

    def discarded_by_reason(self) -> dict[str, int]:
        """Discards in the audit per reason, the most frequent first; reads every row of the audit."""
        sql = "SELECT reason, count(*) FROM audit WHERE retain = 0 GROUP BY reason ORDER BY 2 DESC, 1"
        return dict(self._rows(sql, ()))

    def committed_counters(self) -> tuple[ClassCounters, int]:
        """The counters in the file, and how many quarantined samples were deleted for newer ones."""
        with explained(self._path, "read"):
            cursor = self._connection.cursor()
            quarantine = Quarantine(cursor, 1, 1)
            quarantine.load()
            return ClassCounters.read(cursor), quarantine.dropped

    def _rows(self, sql: str, values: tuple[int | str, ...]) -> list[tuple[Any, ...]]:
        # fetchall() ends the read transaction; a cursor that is read row by row keeps it open.
        with explained(self._path, "read"):
            return self._connection.execute(sql, values).fetchall()


def _stored_sample(row: tuple[Any, ...], data: Any) -> StoredSample:
    key, sample_id, digest, media_type, policy, priority, probability, reason, predicted, *rest = row
    true_label, human_label, repeats, time_s, scores, meta, annotator = rest
    word, is_shadow = codec.decode_reason(reason)
    return StoredSample(
        key=key,
        sample=Sample(sample_id, data, media_type, true_label, time_s, codec.decode_meta(meta)),
        decision=Decision(not is_shadow, priority, probability, word),
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


# -- checking ----------------------------------------------------------------------------------------------


def check(connection: sqlite3.Connection, path: Path, budget_bytes: int) -> CheckReport:
    """Look for damage in the whole file.

    Complexity: one pass over all pages and one SHA-256 of every kept byte.
    """
    # Problems are collected, not raised: a damaged store usually has several, and each one is informative.
    problems: list[str] = []
    n_samples = 0
    try:
        connection.execute("BEGIN")  # one snapshot: a writer may go on meanwhile
        try:
            for (line,) in connection.execute(f"PRAGMA integrity_check({_MAX_PROBLEMS})").fetchall():
                if line != "ok":
                    problems.append(f"SQLite: {line}")
            for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check").fetchall():
                problems.append(f"row {row} of {table} refers to a row of {parent} that does not exist")
            n_samples = _check_blobs(connection, problems)
            problems.extend(_counter_problems(connection))
            problems.extend(_progress_problems(connection))
        finally:
            connection.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        problems.append(f"SQLite: {error}")
    n_bytes = disk_bytes(path)
    if n_bytes > budget_bytes:
        problems.append(f"the files have {n_bytes} bytes, more than the budget of {budget_bytes}")
    return CheckReport(str(path), n_samples, tuple(problems[:_MAX_PROBLEMS]))


def _check_blobs(connection: sqlite3.Connection, problems: list[str]) -> int:
    n_samples = 0
    sql = """SELECT kept.id, sample_id, content_hash, n_bytes, data
        FROM kept LEFT JOIN blobs ON blobs.id = kept.id"""
    with closing(connection.execute(sql)) as rows:
        for key, sample_id, digest, n_bytes, data in rows:
            n_samples += 1
            name = f"sample {sample_id!r} (key {key})"
            if data is None:
                problems.append(f"{name} has no data")
            elif not _is_sound(data, digest) or len(data) != n_bytes:
                problems.append(f"{name} has changed since it was kept (hash or size)")
    # Without data the sample was too large for the quarantine; its hash cannot be checked.
    sql = "SELECT id, sample_id, content_hash, data FROM quarantine WHERE data IS NOT NULL"
    with closing(connection.execute(sql)) as rows:
        for key, sample_id, digest, data in rows:
            if not _is_sound(data, digest):
                problems.append(f"quarantined sample {sample_id!r} (key {key}) has other data (hash)")
    return n_samples


def _is_sound(data: object, digest: object) -> bool:
    """True for bytes with that hash; in a damaged file a blob may be a value of any type."""
    return isinstance(data, bytes) and codec.sha256(data) == digest


def _counter_problems(connection: sqlite3.Connection) -> Iterator[str]:
    counters = ClassCounters.read(connection.cursor())
    sql = "SELECT predicted_class, count(*), sum(n_bytes) FROM kept GROUP BY predicted_class"
    rows = {key: (count, n_bytes) for key, count, n_bytes in connection.execute(sql).fetchall()}
    for key in sorted(rows.keys() | counters.classes.keys()):
        entry = counters.touch(key)
        if (entry.kept, entry.kept_bytes) != rows.get(key, (0, 0)):
            yield (
                f"class {key} counts (samples, bytes) {(entry.kept, entry.kept_bytes)}, but the kept rows "
                f"have {rows.get(key, (0, 0))}"
            )
        if entry.seen != entry.kept + entry.discarded + entry.evicted + entry.duplicates:
            yield f"the counts of class {key} do not add up: {entry.counts()}"
    # The other direction of the foreign key: a blob that nothing refers to would occupy the budget forever.
    sql = "SELECT count(*) FROM blobs WHERE id NOT IN (SELECT id FROM kept)"
    (n_orphans,) = connection.execute(sql).fetchone()
    if n_orphans:
        yield f"{n_orphans} blobs belong to no kept sample"


def _progress_problems(connection: sqlite3.Connection) -> Iterator[str]:
    try:
        row = ProgressRow.stored(connection.cursor())
        if row is not None:
            _ = row.progress
    except (StoreError, sqlite3.OperationalError) as error:  # the latter: not UTF-8
        yield f"progress: {error}"
