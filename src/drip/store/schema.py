"""The tables, their version, and how an older file becomes a newer one.

The file says what it is in two header fields: ``application_id`` ("DRIP") and ``user_version``.
"""

from __future__ import annotations

import importlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote

from drip.errors import StoreError

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


fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # Windows has none
    fcntl = None

Synchronous = Literal["full", "normal"]
SYNCHRONOUS: tuple[str, ...] = ("full", "normal")


class WriterLock:
    """Keeps a second writer out for as long as the first is open; a kill releases it.

    SQLite's own locks last for a transaction, but budget, counts and the room that is left are known to
    one writer only. The lock is on an empty file beside the store, since closing a second descriptor of
    the store itself would release SQLite's locks. Where the system has no ``flock`` nothing is locked.

    Args:
        path: The store's file.
        timeout_s: How long to wait for the other writer, in seconds.

    Raises:
        StoreError: another writer is open, or the folder cannot be written.
    """

    def __init__(self, path: Path, timeout_s: float) -> None:
        place = path.with_name(path.name + "-lock")
        try:
            self._descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(
                f"a file in an existing folder that can be written is needed, got: {error}; check the path, "
                "or use readonly=True"
            ) from error
        deadline = time.monotonic() + timeout_s
        while not self._take():
            if time.monotonic() >= deadline:
                self.release()
                raise StoreError(
                    f"{path} must be free to be written, another writer has it open; a store has one writer "
                    "at a time: stop it, wait for it with timeout_s, or use readonly=True"
                )
            time.sleep(0.01)

    def _take(self) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let the next writer in."""
        os.close(self._descriptor)


def connect(path: Path, *, mode: str, timeout_s: float) -> sqlite3.Connection:
    """A connection in autocommit mode with the settings that do not touch the file.

    Args:
        path: The store's file.
        mode: ``rwc`` creates, ``rw`` and ``ro`` want the file to exist, ``immutable`` also reads from a
            folder that cannot be written (no writer may be at work).
        timeout_s: How long to wait for a lock, in seconds.
    """
    options = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    uri = f"file:{quote(os.fspath(path.absolute()))}?{options}"
    connection = sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None)
    # Statement journals and sorts stay in memory: they are small, and a temporary file would be outside
    # the budget.
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def configure_writer(connection: sqlite3.Connection, *, synchronous: Synchronous) -> None:
    """The settings of a writer that hold for its connection only.

    Checkpoints are the store's own business (the budget depends on them). Freed pages are not
    overwritten with zeros, which some distributions make the default: it would double the writes of an
    eviction and is no protection on flash.
    """
    connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    connection.execute(f"PRAGMA synchronous = {synchronous.upper()}")
    connection.execute("PRAGMA secure_delete = OFF").fetchall()


def explain(error: sqlite3.Error, path: Path, doing: str) -> StoreError:
    """The error as a sentence that says what to do, by SQLite's primary result code."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        advice = (
            "another process is writing to it; a store has one writer at a time: stop it or raise timeout_s"
        )
    elif code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and "READ" not in name):
        advice = (
            "the disk is full or failing; what was acknowledged is safe: free some space and put again, "
            "the store need not be reopened"
        )
    elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        advice = "it cannot be written: open it with readonly=True or change its permissions"
    elif code == sqlite3.SQLITE_CANTOPEN:
        advice = (
            "a file in an existing folder that can be written is needed: check the path, or use readonly=True"
        )
    elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        advice = "it is damaged or no drip store: run check() on it, restore a copy or choose another path"
    elif isinstance(error, sqlite3.ProgrammingError):
        advice = "a store is used by the thread that opened it, until it is closed"
    else:
        advice = "run check() on it"
    return StoreError(f"cannot {doing} {path}, got {name}: {error}; {advice}")


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn SQLite's errors inside the block into :class:`StoreError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path, doing) from error


def disk_bytes(path: Path) -> int:
    """What the file, its log, its index and a rollback journal take on disk now, by their sizes."""
    total = 0
    for suffix in ("", "-wal", "-shm", "-journal"):
        try:
            total += path.with_name(path.name + suffix).stat().st_size
        except FileNotFoundError:
            continue
    return total
