"""Opening the SQLite file, for writing and beside a writer, and SQLite's errors in drip's words."""

from __future__ import annotations

import importlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from drip.errors import StoreError

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
