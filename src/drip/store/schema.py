"""The tables, their version, and how an older file becomes a newer one.

The file says what it is in two header fields: ``application_id`` ("DRIP") and ``user_version``.
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

# One number runs through the store: audit.id = kept.id = blobs.id = the number of the decision. Age, the
# audit mark of an eviction and the blob's place therefore need no further index.
# An eviction leaves the audit alone: a row that says KEPT and has no kept row was evicted.
# Blobs have their own table: SQLite rewrites a whole row on UPDATE, so a label beside a megabyte would cost
# a megabyte, and a scan over the metadata would read the images. They come last for the same reason.
# References are checked by check(); enforcing them at every insert would buy nothing that it does not find.
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
    # A decision is the same one when sample id, content and policy are: a redelivery after a resume is
    # ignored, and a second policy over the same stream is not.
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
    # The first 96 bits tell contents apart as well as all 256, and random keys are what makes a big index
    # slow: half the bytes, half the pages that a put may find anywhere. Batches in the order of the keys, a
    # small index of what is new that is merged into a big one, small pages, a bigger cache or log: none made
    # the last of a million rows faster. Indices that begin with the age, (id >> 14, ...), do, since a put
    # then changes the newest part alone; but a duplicate or a victim had to be looked for in every part.
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

# version -> what turns a file of that version into the next one. Statements add (columns, tables) or write no
# more than saving the progress does, so that a migration fits the log's share of any budget.
MIGRATIONS: Mapping[int, Sequence[str]] = MappingProxyType(
    {
        1: ("ALTER TABLE kept ADD COLUMN annotator TEXT", "DROP INDEX kept_sample"),
        2: ("UPDATE progress SET cursor = coalesce(json_quote(cursor), 'null')",),
    }
)


def is_there(path: Path) -> bool:
    """Whether there is a file to open; nothing is made beside one that is no store.

    Raises:
        StoreError: no file, or one of another program or of a newer version of drip.
    """
    if not path.exists():
        return False
    if not path.is_file():
        kind = "folder" if path.is_dir() else "device or pipe"
        message = f"a file is needed at {path}, got a {kind}; choose another path"
        raise StoreError(message)
    # With a log beside it the file alone does not tell; then a writer is at work or was killed.
    if path.stat().st_size and not path.with_name(path.name + "-wal").exists():
        with closing(connect(path, mode="immutable", timeout_s=0)) as connection:
            identify(connection, path)
    return True


def identify(connection: sqlite3.Connection, path: Path) -> int | None:
    """The schema version of the file, None for an empty database.

    Raises:
        StoreError: the file belongs to another program or to a newer version of drip.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (n_objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id == 0 and version == 0 and n_objects == 0:
        return None
    if application_id != APPLICATION_ID:
        message = (
            f"{path} must be a drip store (application_id {APPLICATION_ID:#x}), "
            f"got an SQLite file of another program (application_id {application_id:#x}, "
            f"{n_objects} tables); choose another path"
        )
        raise StoreError(message)
    if not 1 <= version <= VERSION:
        message = (
            f"{path} must have schema version 1 to {VERSION}, got {version}; "
            "it was written by a newer drip: upgrade drip to read it"
        )
        raise StoreError(message)
    return int(version)


def create(connection: sqlite3.Connection, fill: Callable[[sqlite3.Cursor], None]) -> None:
    """Make the tables of the newest version and what ``fill`` adds, in one transaction."""
    _run(connection, STATEMENTS, fill)


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a file of ``version`` to :data:`VERSION`, one version and one transaction at a time."""
    if version < VERSION:  # a killed writer's log may be full already
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
