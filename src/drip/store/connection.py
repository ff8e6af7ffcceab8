"""The connection to a store's file: settings, the lock between writers, SQLite's errors in plain words."""

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
except ImportError:  # Windows does not have it
    fcntl = None

Synchronous = Literal["full", "normal"]
SYNCHRONOUS: tuple[str, ...] = ("full", "normal")

_RETRY_S = 0.01

# What to do about SQLite's primary result codes, with our error code. The rest is "store-io".
_ADVICE: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_BUSY: ("store-busy", "another process is writing to it; stop it or raise timeout_s"),
    sqlite3.SQLITE_LOCKED: ("store-busy", "another process is writing to it; stop it or raise timeout_s"),
    sqlite3.SQLITE_FULL: (
        "store-disk-full",
        "the disk is full or failing; what was committed is safe. Free some space and put again",
    ),
    sqlite3.SQLITE_READONLY: ("path-not-writable", "it is write-protected; use open_readonly()"),
    sqlite3.SQLITE_PERM: ("path-not-writable", "it is write-protected; use open_readonly()"),
    sqlite3.SQLITE_CANTOPEN: (
        "path-not-writable",
        "its folder does not exist or is write-protected; check the path, or use open_readonly()",
    ),
    sqlite3.SQLITE_CORRUPT: ("store-damaged", "the file is damaged; run check() on it or restore a copy"),
    sqlite3.SQLITE_NOTADB: ("store-invalid", "the file is not a DRIP store; choose another path"),
}


class WriterLock:
    """Keeps a second writer out while the first is open; the system releases it when a process dies.

    SQLite's own locks last for one transaction only, but the writer keeps budget, counts and free pages in
    memory between transactions. We lock an empty file beside the store: POSIX drops all of a process's locks
    on a file when any of its descriptors is closed, so a descriptor of the store itself would, on closing,
    release SQLite's locks too. On systems without ``flock`` there is no lock.

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
        except FileNotFoundError as error:
            message = f"{path}: the folder {path.parent} does not exist; check the path"
            raise StoreError(message, code="path-missing") from error
        except OSError as error:
            message = (
                f"{path}: its folder cannot be written ({error}); check the path, or use open_readonly()"
            )
            raise StoreError(message, code="path-not-writable") from error
        deadline = time.monotonic() + timeout_s
        while not self._take():
            if time.monotonic() >= deadline:
                self.release()
                message = (
                    f"{path}: another process or object has it open for writing; close that one, raise "
                    "timeout_s, or use open_readonly()"
                )
                raise StoreError(message, code="store-busy")
            time.sleep(_RETRY_S)

    def _take(self) -> bool:
        if fcntl is None:
            return True
        try:
            # Polled, since a blocking flock() has no timeout.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let the next writer in."""
        # The file stays: another process may be waiting on this very inode.
        os.close(self._descriptor)


def connect(path: Path, *, mode: str, timeout_s: float) -> sqlite3.Connection:
    """A connection in autocommit mode, with the settings that do not touch the file.

    Args:
        path: The store's file.
        mode: ``rwc`` creates the file, ``rw`` and ``ro`` need it to exist. ``immutable`` also reads from a
            folder that cannot be written; no writer may be open then.
        timeout_s: How long to wait for a lock, in seconds.
    """
    options = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    # Quoted, or a "?" or "%41" in a file name would be read as part of the URI.
    uri = f"file:{quote(os.fspath(path.absolute()))}?{options}"
    # Autocommit, because Python's own transaction control would commit at points of its own choosing.
    connection = sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None)
    # Statement journals and sorts are small; as temporary files they would be outside the budget.
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def configure_writer(connection: sqlite3.Connection, *, synchronous: Synchronous) -> None:
    """Apply the settings of a writer, which hold for its connection only."""
    # The store checkpoints by itself: SQLite's automatic checkpoint would let the log outgrow the budget.
    connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    connection.execute(f"PRAGMA synchronous = {synchronous.upper()}")
    # Some distributions overwrite freed pages with zeros by default. That doubles the writes of an
    # eviction, and on flash the old data survive anyway.
    connection.execute("PRAGMA secure_delete = OFF").fetchall()


def explain(error: sqlite3.Error, path: Path, doing: str) -> StoreError:
    """The error as a sentence that says what to do, chosen by SQLite's primary result code."""
    # The low byte is the primary code; the others tell variants apart.
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if primary == sqlite3.SQLITE_IOERR and "READ" not in name:
        primary = sqlite3.SQLITE_FULL  # some file systems report a full disk as a failed write or sync
    if isinstance(error, sqlite3.ProgrammingError):
        code, advice = "store-closed", "use a store in the thread that opened it, until it is closed"
    else:
        code, advice = _ADVICE.get(primary, ("store-io", "run check() on it"))
    return StoreError(f"{path}: cannot {doing} the store ({name}: {error}); {advice}", code=code)


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn SQLite's errors inside the block into :class:`StoreError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path, doing) from error


def disk_bytes(path: Path) -> int:
    """Size of the file, its log, its index and a rollback journal together, in bytes."""
    total = 0
    for suffix in ("", "-wal", "-shm", "-journal"):
        # SQLite removes these files when the last connection closes, so they may vanish at any moment.
        try:
            total += path.with_name(path.name + suffix).stat().st_size
        except FileNotFoundError:
            continue
    return total
