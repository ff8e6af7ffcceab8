"""A watched folder as a stream: every file that is written into it becomes a sample once it is complete.

Completeness is judged by size, times and inode alone. Notifications of the kernel (inotify) would save the
polling, but they do not exist on network file systems and get lost when the queue is full, so a poll would
be needed anyway.
"""

from __future__ import annotations

import heapq
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from drip.errors import SourceError
from drip.media import MEDIA_TYPES
from drip.sources.messages import HEAD_BYTES, printable, rejected, short_id
from drip.sources.url import (
    DEFAULT_MAX_BYTES,
    folder_in,
    integer,
    number,
    parse_options,
    require_folder,
    split_url,
)
from drip.types import Sample

State = tuple[int, int, int, int]
"""Size, time of modification, time of change and inode. A file whose state changes is a new file."""

_WINDOW = 10_000  # files that one poll remembers: bounds the memory, however many are in the folder
_TOO_LARGE = ".too-large"
_CREATE = "CREATE TABLE IF NOT EXISTS consumed (path BLOB PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class _Found:
    modified_ns: int
    path: Path
    state: State


class WatchedFolderSource:
    """Existing files of a folder and its subfolders, and files that are written into it later; never ends.

    A file is complete when it is not empty and its size, times and inode stayed the same for ``settle_s``
    seconds of a monotonic clock. Writers that pause for longer write under a hidden name or another suffix
    and rename. Existing files are read first; each poll yields older modification times first. Nothing
    depends on that order: no file is lost if its name sorts earlier, its time is older, or the wall clock
    jumps back. A poll that finds nothing yields an empty batch.

    Links to files are read, links to folders not followed. Hidden files and folders and other suffixes are
    skipped. A file that vanishes before it is read is skipped. A file that cannot be read is logged, and
    tried again when it changes. A file of more than ``max_bytes`` becomes a rejected sample and is moved to
    ``.too-large``.

    Delivery: at least once. After its batch was committed, a file is handled as ``done`` says:

    * ``move:NAME``: moved into the subfolder NAME (default ``move:.done``). No record is needed,
      nothing is destroyed, and the folder itself shows which files were consumed.
    * ``delete``: removed; for devices, where the store is the only memory.
    * ``keep``: left in place; a small database in the folder (``.drip-consumed``) remembers it by path, size
      and time. Every poll costs a query per file: for folders of thousands of files, not of millions.

    A kill between commit and move delivers the file again, which the store recognises. A cursor in the order
    of times or names would need no move, but would lose a file that is written late under an early time or
    name.

    Args:
        folder: The folder; it must be writable.
        class_names: Names of the classes in the order of the logits; a file in a folder with such a name gets
            its label.
        settle_s: How long a file must stay the same, in seconds.
        poll_s: Time between polls, in seconds.
        done: What to do with a consumed file, see above.
        max_bytes: Largest file.

    Raises:
        SourceError: the folder does not exist or is not writable, or an unknown ``done``.
    """

    def __init__(
        self,
        folder: str | Path,
        class_names: Sequence[str] = (),
        *,
        settle_s: float = 1.0,
        poll_s: float = 0.5,
        done: str = "move:.done",
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._folder = Path(folder)
        require_folder(self._folder)
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise SourceError(
                f"{folder} is not writable, so consumed files cannot be marked; make it writable, or leave "
                "out watch: to read it once"
            )
        self._done = done
        self._target = _target_of(done)
        self._classes = {name: index for index, name in enumerate(class_names)}
        self._settle_s = settle_s
        self._poll_s = poll_s
        self._max_bytes = max_bytes
        self._pending: dict[Path, tuple[State, float]] = {}  # state, and since when it has not changed
        self._unreadable: dict[Path, State] = {}

    @classmethod
    def from_url(cls, url: str, class_names: Sequence[str] = ()) -> Self:
        """``watch:/folder?settle=1&poll=0.5&done=move:.done``; every option is optional.

        Raises:
            SourceError: an unknown option or value, or a folder that cannot be watched.
        """
        defaults = {"settle": "1", "poll": "0.5", "done": "move:.done", "max_bytes": str(DEFAULT_MAX_BYTES)}
        options = parse_options(split_url(url).query, defaults, "watch")
        return cls(
            folder_in(url),
            class_names,
            settle_s=number(options, "settle", 0.01, 86_400),
            poll_s=number(options, "poll", 0.01, 1),
            done=options["done"],
            max_bytes=integer(options, "max_bytes", 1, 2**31),
        )

    @property
    def cursor(self) -> str | None:
        """None: the folder itself shows which files were consumed."""
        return None

    def seek(self, cursor: str) -> None:
        """Do nothing: consumed files are not found again."""

    def batches(self, max_samples: int) -> Iterator[list[Sample]]:
        """Lists of up to ``max_samples`` samples; an empty one for every poll that finds nothing.

        Raises:
            SourceError: the folder cannot be listed, or a consumed file cannot be moved or removed.
        """
        with ConsumedFiles(self._folder if self._done == "keep" else None) as consumed:
            while True:
                ready, found_any = self._ready(consumed), False
                for start in range(0, len(ready), max_samples):
                    taken = [
                        (found, sample)
                        for found in ready[start : start + max_samples]
                        if (sample := self._read(found)) is not None
                    ]
                    if taken:
                        found_any = True
                        yield [sample for _, sample in taken]
                        # The batch is committed: only now may its files disappear from the folder.
                        for found, sample in taken:
                            self._finish(found, consumed, is_too_large=found.state[0] > len(sample.data))
                if not found_any:
                    time.sleep(self._poll_s)
                    yield []

    def _ready(self, consumed: ConsumedFiles) -> list[_Found]:
        """The files that stayed the same for long enough, oldest first."""
        now = time.monotonic()
        window = heapq.nsmallest(_WINDOW, self._candidates(consumed))
        before, self._pending = self._pending, {}
        ready = []
        for found in window:
            state, since = before.get(found.path, (None, now))
            since = since if state == found.state else now
            self._pending[found.path] = (found.state, since)
            if now - since >= self._settle_s:
                ready.append(found)
        return ready

    def _candidates(self, consumed: ConsumedFiles) -> Iterator[_Found]:
        unreadable, self._unreadable = self._unreadable, {}
        for root, folders, names in os.walk(self._folder, onerror=self._fail):
            here = Path(root)
            folders[:] = [
                name for name in folders if not name.startswith(".") and here / name != self._done_folder
            ]
            for name in names:
                if name.startswith(".") or Path(name).suffix.lower() not in MEDIA_TYPES:
                    continue
                path = here / name
                state = _state(path)
                if state is None or not state[0] or consumed.knows(*self._key(path, state)):
                    continue
                if unreadable.get(path) == state:
                    self._unreadable[path] = state
                    continue
                yield _Found(state[1], path, state)

    def _fail(self, error: OSError) -> None:
        if isinstance(error, FileNotFoundError) and Path(error.filename) != self._folder:
            return  # a subfolder that was removed since os.walk listed it
        raise SourceError(f"cannot list {error.filename}: {error}; make it readable or remove it") from error

    def _read(self, found: _Found) -> Sample | None:
        """The sample of a file; None when it vanished, changed or cannot be read."""
        path = found.path
        try:
            with path.open("rb") as file:
                # One byte more than the size at the last poll: a growing file then has a different state.
                data = file.read(HEAD_BYTES if found.state[0] > self._max_bytes else found.state[0] + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("cannot read %s: %s; it is tried again when it changes", path, error)
            self._unreadable[path] = found.state
            return None
        if _state(path) != found.state:  # written while it was read: wait until it is complete again
            return None
        name = printable(path.relative_to(self._folder))
        if found.state[0] > self._max_bytes:
            return rejected(
                name, data, f"the file has {found.state[0]} bytes, more than max_bytes={self._max_bytes}"
            )
        return Sample(
            id=short_id(name),
            data=data,
            media_type=MEDIA_TYPES[path.suffix.lower()],
            label=self._classes.get(path.parent.name),
            time_s=found.modified_ns / 1e9,
        )

    @property
    def _done_folder(self) -> Path | None:
        return None if self._target is None else self._folder / self._target

    def _key(self, path: Path, state: State) -> tuple[bytes, str]:
        return os.fsencode(path.relative_to(self._folder)), f"{state[0]} {state[1]}"

    def _finish(self, found: _Found, consumed: ConsumedFiles, *, is_too_large: bool) -> None:
        """Mark a committed file as consumed; a file that was rewritten since is a new file and stays."""
        self._pending.pop(found.path, None)
        if _state(found.path) != found.state:
            return
        target = self._folder / _TOO_LARGE if is_too_large else self._done_folder
        try:
            if target is not None:
                self._move(found.path, target / found.path.relative_to(self._folder))
            elif self._done == "delete":
                found.path.unlink(missing_ok=True)
            else:
                consumed.add(*self._key(found.path, found.state))
        except OSError as error:
            raise SourceError(
                f"{found.path} was stored but cannot be moved or removed: {error}; make the folder writable, "
                "or use done=keep"
            ) from error

    @staticmethod
    def _move(path: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        number_, free = 0, target
        while os.path.lexists(free):  # cameras reuse names: never overwrite an older file
            number_ += 1
            free = target.with_name(f"{target.stem}~{number_}{target.suffix}")
        with suppress(FileNotFoundError):
            path.rename(free)


def _target_of(done: str) -> Path | None:
    word, _, name = done.partition(":")
    if done in ("delete", "keep"):
        return None
    target = Path(name)
    if word != "move" or not name or target.is_absolute() or ".." in target.parts or target == Path():
        raise SourceError(
            "done must be delete, keep, or move: with the name of a subfolder, such as move:.done, "
            f"got {done!r}",
            code="source-url",
        )
    return target


def _state(path: Path) -> State | None:
    """State of a file; None if it does not exist or is something else, such as a pipe."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class ConsumedFiles:
    """Remembers paths and states of consumed files in a database in the folder, one row per file.

    Args:
        folder: The folder; None to remember nothing.

    Raises:
        SourceError: the database cannot be created, or the file is not one.
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
            raise SourceError(
                f"{path}, the record of consumed files, cannot be used: {error}; remove it to read all "
                "files again"
            ) from error

    def _forget_vanished(self, folder: Path) -> None:
        """Without this, the record of a folder whose files come and go would grow forever."""
        if self._connection is None:
            return
        last = b""
        find = "SELECT path FROM consumed WHERE path > ? ORDER BY path LIMIT 1000"
        while rows := self._connection.execute(find, (last,)).fetchall():
            last = rows[-1][0]
            gone = [row for row in rows if not os.path.lexists(os.path.join(os.fsencode(folder), row[0]))]  # noqa: PTH118  # bytes: names need not be UTF-8
            self._connection.executemany("DELETE FROM consumed WHERE path = ?", gone)

    def __enter__(self) -> Self:
        """Return the record itself."""
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
