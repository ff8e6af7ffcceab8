"""Which files of a folder were consumed, in a small database beside them: nothing of it is held in memory."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Self

from drip.errors import StreamError

_CREATE = "CREATE TABLE IF NOT EXISTS consumed (path BLOB PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID"


class ConsumedFiles:
    """Paths and states of consumed files; one row per file, so its size follows the folder's.

    Args:
        folder: The folder; None remembers nothing.

    Raises:
        StreamError: the file cannot be made or is no such database.
    """

    def __init__(self, folder: Path | None) -> None:
        self._connection: sqlite3.Connection | None = None
        if folder is None:
            return
        path = folder / ".drip-consumed"
        try:
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.execute(_CREATE)
            self._forget_vanished(folder)
        except sqlite3.Error as error:
            self.close()
            raise StreamError(
                f"the record of consumed files is needed at {path}, got: {error}; remove it to begin anew"
            ) from error

    def _forget_vanished(self, folder: Path) -> None:
        if self._connection is None:
            return
        last = b""
        find = "SELECT path FROM consumed WHERE path > ? ORDER BY path LIMIT 1000"
        while rows := self._connection.execute(find, (last,)).fetchall():
            last = rows[-1][0]
            gone = [row for row in rows if not os.path.lexists(os.path.join(os.fsencode(folder), row[0]))]  # noqa: PTH118  # names that are no UTF-8
            self._connection.executemany("DELETE FROM consumed WHERE path = ?", gone)

    def __enter__(self) -> Self:
        """The record itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()

    def knows(self, path: bytes, state: str) -> bool:
        """True when this path was consumed in this state."""
        if self._connection is None:
            return False
        find = "SELECT 1 FROM consumed WHERE path = ? AND state = ?"
        return self._connection.execute(find, (path, state)).fetchone() is not None

    def add(self, path: bytes, state: str) -> None:
        """Remember a path in its state; durable when this returns."""
        if self._connection is not None:
            self._connection.execute("INSERT OR REPLACE INTO consumed VALUES (?, ?)", (path, state))
