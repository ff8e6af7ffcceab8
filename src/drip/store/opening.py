"""Opens a store's file: lock it, connect, create or migrate the tables, apply settings, fit the budget.

Each step is a separate function, because each may fail and must leave the file usable by the next try.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drip.errors import StoreError
from drip.files import sync_directory
from drip.store import schema
from drip.store.budget import Layout, Space
from drip.store.connection import (
    Synchronous,
    WriterLock,
    configure_writer,
    connect,
    disk_bytes,
)
from drip.store.reading import Reader
from drip.store.settings import Settings, merge
from drip.store.writer import Writer, require_room


@dataclass(frozen=True, slots=True)
class OpenFile:
    """The open parts of a store.

    Attributes:
        path: The file.
        connection: To the file.
        reader: Reads through the connection.
        writer: Writes through the connection; None when open for reading only.
        close: Closes all parts in the right order.
    """

    path: Path
    connection: sqlite3.Connection
    reader: Reader
    writer: Writer | None
    close: Callable[[], None]


def open_for_reading(path: Path, *, timeout_s: float) -> OpenFile:
    """Open an existing store for reading.

    Raises:
        StoreError: the file does not exist, is not a store, or has a different schema version.
    """
    if not path.exists():
        message = f"{path} does not exist; check the path"
        raise StoreError(message, code="store-missing")
    if not path.is_file():
        message = f"{path} is not a file; check the path"
        raise StoreError(message, code="store-invalid")
    with ExitStack() as stack:
        connection = connect(path, mode="ro", timeout_s=timeout_s)
        stack.callback(connection.close)
        try:
            version = schema.identify(connection, path)
        except sqlite3.OperationalError as error:
            if not _lacks_index_only(error, path):
                raise
            connection.close()
            connection = connect(path, mode="immutable", timeout_s=timeout_s)
            stack.callback(connection.close)
            version = schema.identify(connection, path)
        if version is None:
            raise StoreError(f"{path} is empty, not a DRIP store; check the path", code="store-invalid")
        if version != schema.VERSION:
            message = (
                f"{path} has schema version {version}, older than {schema.VERSION}; open it once for "
                "writing, which migrates it"
            )
            raise StoreError(message, code="store-version")
        return OpenFile(path, connection, Reader(connection, path), None, stack.pop_all().close)


def _lacks_index_only(error: sqlite3.OperationalError, path: Path) -> bool:
    """True for a cleanly closed store in a folder where SQLite cannot create the log's index.

    Such a file is complete in itself and may be read as immutable. With a log beside it, that would miss what
    only the log contains.
    """
    primary = error.sqlite_errorcode & 0xFF
    log = path.with_name(path.name + "-wal")
    return primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) and not log.exists()


def open_for_writing(
    path: Path,
    asked: dict[str, Any],
    *,
    synchronous: Synchronous,
    timeout_s: float,
    min_free_bytes: int,
    policy_digest: str | None,
) -> OpenFile:
    """Open a store for writing; creates it where there is none, and shrinks it to a smaller budget.

    Args:
        path: The file.
        asked: The given settings by name, see :func:`drip.store.settings.merge`.
        synchronous: ``"full"`` or ``"normal"``.
        timeout_s: How long to wait for another writer or for a reader, in seconds.
        min_free_bytes: Refuse to write when the disk has less than this left.
        policy_digest: Digest of the policy that decides; None for that of the saved progress.

    Raises:
        InputError: a setting outside its range.
        StoreError: see :meth:`drip.store.RetentionStore.open`.
    """
    if not schema.is_there(path):
        # Before anything is created: a refused argument must not leave an empty file and a lock.
        settings = merge(None, path=path, **asked)
        Layout.plan(settings.budget_bytes, log_bytes=settings.log_bytes)
    with ExitStack() as stack:
        # Closed in the opposite order: the lock last, when nothing is open any more.
        lock = WriterLock(path, timeout_s)
        stack.callback(lock.release)
        connection = connect(path, mode="rwc", timeout_s=timeout_s)
        stack.callback(connection.close)
        configure_writer(connection, synchronous=synchronous)
        version = schema.identify(connection, path)
        if version is None:
            settings = _create(connection, path, asked)
        else:
            _use_log(connection, path)
            schema.migrate(connection, version)
            settings = _update_settings(connection, path, asked)
        reader = Reader(connection, path)
        if policy_digest is None:
            progress = reader.progress()
            policy_digest = "" if progress is None else progress.policy_digest
        space = Space(connection, path, _layout(connection, settings), timeout_s, min_free_bytes)
        stack.callback(space.close)
        space.apply_limits()
        writer = Writer(connection, path, space, settings, policy_digest)
        _fit_budget(writer, path)
        return OpenFile(path, connection, reader, writer, stack.pop_all().close)


def _create(connection: sqlite3.Connection, path: Path, asked: dict[str, Any]) -> Settings:
    settings = merge(None, path=path, **asked)
    layout = Layout.plan(settings.budget_bytes, log_bytes=settings.log_bytes)
    # Both pragmas only work before the first table exists, and before the switch to a write-ahead log.
    connection.execute(f"PRAGMA page_size = {layout.page_size}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    _use_log(connection, path)
    # Again: a creation that was killed may have fixed another page size, for which the budget is too small.
    _layout(connection, settings)
    schema.create(connection, settings.save)
    # Without this a power cut may lose the name of the file, and with it all synced data.
    sync_directory(path.parent)
    return settings


def _use_log(connection: sqlite3.Connection, path: Path) -> None:
    """Switch to a write-ahead log, so readers do not block the writer and a put costs one sync."""
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        message = (
            f"{path}: its file system does not support a write-ahead log with shared memory (SQLite uses "
            f"{mode!r}); choose a local file system"
        )
        raise StoreError(message)


def _layout(connection: sqlite3.Connection, settings: Settings) -> Layout:
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    return Layout.plan(settings.budget_bytes, page_size=int(page_size), log_bytes=settings.log_bytes)


def _update_settings(connection: sqlite3.Connection, path: Path, asked: dict[str, Any]) -> Settings:
    known = Settings.load(connection.cursor())
    settings = merge(known, path=path, **asked)
    layout = _layout(connection, settings)
    if settings == known:
        return settings
    if settings.budget_bytes < known.budget_bytes:
        # Checked before saving: otherwise a budget that can never be met would evict everything first.
        require_room(connection.cursor(), layout, path)
    connection.execute("BEGIN IMMEDIATE")
    settings.save(connection.cursor())
    connection.execute("COMMIT")
    return settings


def _fit_budget(writer: Writer, path: Path) -> None:
    """Shrink the files to the budget: it may be smaller than before, or a killed writer left a full log."""
    budget_bytes = writer.settings.budget_bytes
    if writer.is_over_budget or disk_bytes(path) > budget_bytes:
        writer.shrink()
    n_bytes = disk_bytes(path)
    if n_bytes > budget_bytes:
        message = (
            f"{path}: the files still have {n_bytes} bytes, more than budget_bytes={budget_bytes}, because a "
            "reader holds them; close the readers and open the store again"
        )
        raise StoreError(message, code="store-busy")
