"""The tables of a store, their version, and the migration of older files.

Two fields of SQLite's file header identify a store: ``application_id`` ("DRIP") and ``user_version``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

from drip.errors import StoreError
from drip.store.connection import connect

APPLICATION_ID = 0x44524950  # "DRIP"
VERSION = 3

# The number of a decision is the key of all its rows: audit.id = kept.id = blobs.id. It increases over time,
# so age, the outcome of an evicted sample and the place of its blob need no further index.
# An eviction does not touch the audit, which would cost it another page: a row with outcome KEPT and without
# a kept row was evicted.
# Blobs have their own table: SQLite rewrites the whole row on UPDATE, so labelling a sample of one megabyte
# would write a megabyte, and a scan over the metadata would read all images. For the same reason they are the
# last column.
# Foreign keys are not enforced on insert: check() finds the same errors, and a put stays cheaper.
STATEMENTS: Sequence[str] = (
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE policies (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE)",
    """CREATE TABLE audit (
        id INTEGER PRIMARY KEY,
        sample_id TEXT NOT NULL,
        hash_prefix INTEGER NOT NULL,
        policy INTEGER NOT NULL REFERENCES policies (id),
        outcome INTEGER NOT NULL,
        retain INTEGER NOT NULL,
        priority REAL NOT NULL,
        keep_probability REAL,
        reason TEXT NOT NULL,
        predicted_class INTEGER NOT NULL,
        label INTEGER,
        n_bytes INTEGER NOT NULL,
        time_s REAL,
        row_bytes INTEGER NOT NULL,
        scores TEXT NOT NULL,
        logits BLOB
    )""",
    # Two decisions are the same if sample id, content and policy are equal. So a redelivery after a resume is
    # ignored, and a second policy may run on the same stream.
    "CREATE UNIQUE INDEX audit_once ON audit (sample_id, hash_prefix, policy)",
    """CREATE TABLE kept (
        id INTEGER PRIMARY KEY,
        sample_id TEXT NOT NULL,
        content_hash BLOB NOT NULL,
        media_type TEXT NOT NULL,
        policy INTEGER NOT NULL REFERENCES policies (id),
        priority REAL NOT NULL,
        keep_probability REAL,
        reason TEXT NOT NULL,
        predicted_class INTEGER NOT NULL,
        true_label INTEGER,
        human_label INTEGER,
        n_bytes INTEGER NOT NULL,
        repeats INTEGER NOT NULL DEFAULT 0,
        time_s REAL,
        scores TEXT NOT NULL,
        meta TEXT,
        annotator TEXT
    )""",
    # 96 bits tell contents apart as well as all 256 and halve this index. Random keys are what makes a big
    # index slow, because every put changes a page somewhere else. Tried without any gain at a million rows:
    # batches sorted by key, a small index of new rows merged into a big one, small pages, a larger cache, a
    # larger log. An index that starts with the age, (id >> 14, ...), is faster, since a put then changes only
    # its newest part; but a duplicate or a victim would have to be searched in every part.
    "CREATE UNIQUE INDEX kept_content ON kept (substr(content_hash, 1, 12))",
    "CREATE INDEX kept_priority ON kept (priority)",
    "CREATE TABLE blobs (id INTEGER PRIMARY KEY REFERENCES kept (id), data BLOB NOT NULL)",
    """CREATE TABLE quarantine (
        id INTEGER PRIMARY KEY,
        sample_id TEXT NOT NULL,
        content_hash BLOB NOT NULL,
        media_type TEXT NOT NULL,
        reason TEXT NOT NULL,
        true_label INTEGER,
        n_bytes INTEGER NOT NULL,
        repeats INTEGER NOT NULL DEFAULT 0,
        row_bytes INTEGER NOT NULL,
        time_s REAL,
        meta TEXT,
        data BLOB
    )""",
    "CREATE UNIQUE INDEX quarantine_content ON quarantine (content_hash)",
    """CREATE TABLE progress (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        policy INTEGER NOT NULL REFERENCES policies (id),
        cursor TEXT NOT NULL,
        selector_state TEXT NOT NULL
    )""",
    """CREATE TABLE tally (
        class INTEGER PRIMARY KEY,
        seen INTEGER NOT NULL,
        kept INTEGER NOT NULL,
        kept_bytes INTEGER NOT NULL,
        discarded INTEGER NOT NULL,
        evicted INTEGER NOT NULL,
        duplicates INTEGER NOT NULL,
        redelivered INTEGER NOT NULL,
        first_s REAL,
        last_s REAL
    )""",
    "INSERT INTO policies (id, digest) VALUES (0, '')",
    "INSERT INTO settings (name, value) VALUES ('quarantine_dropped', '0')",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)

# version -> statements that turn a file of that version into the next one. They only add columns or tables,
# or write no more than saving the progress does: a migration must fit the log of any budget.
# Version 1 -> 2 keeps the old index on the whole content hash, because rebuilding it could outgrow the log.
MIGRATIONS: Mapping[int, Sequence[str]] = MappingProxyType(
    {
        1: ("ALTER TABLE kept ADD COLUMN annotator TEXT", "DROP INDEX kept_sample"),
        2: ("UPDATE progress SET cursor = coalesce(json_quote(cursor), 'null')",),
    }
)


def is_there(path: Path) -> bool:
    """Whether there is a store to open. Creates nothing, so a refused path has no lock or log beside it.

    Raises:
        StoreError: the path is not a file, or the file belongs to another program or to a newer version of
        DRIP.
    """
    if not path.exists():
        return False
    if not path.is_file():
        kind = "folder" if path.is_dir() else "device or pipe"
        message = f"{path} is a {kind}, not a file; choose another path"
        raise StoreError(message, code="store-invalid")
    # With a log beside it the file alone may be incomplete: a writer is open, or was killed.
    if path.stat().st_size and not path.with_name(path.name + "-wal").exists():
        with closing(connect(path, mode="immutable", timeout_s=0)) as connection:
            identify(connection, path)
    return True


def identify(connection: sqlite3.Connection, path: Path) -> int | None:
    """The schema version of the file, None for an empty database.

    Raises:
        StoreError: the file belongs to another program or to a newer version of DRIP.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (n_objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id == 0 and version == 0 and n_objects == 0:
        return None
    if application_id != APPLICATION_ID:
        message = (
            f"{path} is not a DRIP store but an SQLite file of another program "
            f"(application_id {application_id:#x}, {n_objects} tables); choose another path"
        )
        raise StoreError(message, code="store-invalid")
    if not 1 <= version <= VERSION:
        message = f"{path} has schema version {version}, but this DRIP reads 1 to {VERSION}; upgrade DRIP"
        raise StoreError(message, code="store-version")
    return int(version)


def create(connection: sqlite3.Connection, fill: Callable[[sqlite3.Cursor], None]) -> None:
    """Create the tables of the newest version and let ``fill`` add rows, all in one transaction."""
    _run(connection, STATEMENTS, fill)


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a file of ``version`` to :data:`VERSION`, one version and one transaction at a time."""
    if version < VERSION:
        # A killed writer may have left a full log, and a migration on top would exceed the budget.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for current in range(version, VERSION):
        _run(connection, (*MIGRATIONS[current], f"PRAGMA user_version = {current + 1}"))


def _run(
    connection: sqlite3.Connection,
    statements: Sequence[str],
    fill: Callable[[sqlite3.Cursor], None] | None = None,
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            connection.execute(statement)
        if fill is not None:
            fill(connection.cursor())
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
