"""Checks whether a store is sound: SQLite's own checks, blobs against hashes, counters against rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from drip.errors import StoreError
from drip.store import codec
from drip.store.connection import disk_bytes
from drip.store.eviction import ClassCounters
from drip.store.records import CheckReport
from drip.store.settings import ProgressRow

_MAX_PROBLEMS = 100  # a damaged file may have one on every page


def check(connection: sqlite3.Connection, path: Path, budget_bytes: int) -> CheckReport:
    """Look for damage in the whole file.

    Complexity: one pass over all pages and one SHA-256 of every kept byte.
    """
    # Problems are collected and not raised: a damaged store usually has several, and each tells something.
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
                problems.append(f"{name} has other data than when it was kept (hash or size)")
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
    # The other direction of the foreign key: a blob that nothing refers to would occupy the budget for ever.
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
