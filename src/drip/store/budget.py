"""How a byte budget is divided between the file, its write-ahead log and the log's index.

Arithmetic, and a gauge that reads the log's length from its file; nothing here opens a database.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from drip.errors import StoreError, TransactionFullError

KIB = 1024
MIB = 1024 * KIB

_LOG_HEADER_BYTES = 32  # https://sqlite.org/walformat.html: header of the log, then frames
_FRAME_HEADER_BYTES = 24
_NO_SALT = bytes(8)
_INDEX_BLOCK_BYTES = 32 * KIB  # the -shm file grows in blocks, each indexing 4096 frames,
_INDEX_BLOCK_FRAMES = 4096  # of which the first block gives 34 to its own header
_INDEX_FIRST_LOST = 34

SMALL_PAGE = 1024
LARGE_PAGE = 4096
_LARGE_PAGE_FROM_BYTES = 128 * MIB

# Upper limits for one operation, against what the B-trees do: a put changes a page in each of 8 trees, an
# eviction in 4; a split or merge changes up to four more. That several trees split at once is possible, that
# all do is not to be expected; the estimates are replaced by counts long before they add up to a limit.
PUT_FRAMES = 32
EVICT_FRAMES = 8
MICRO_BATCH_FRAMES = 32 * PUT_FRAMES  # a transaction finds that much room in a log that has it
RESERVE_PAGES = 48  # free pages that an insert may need for splits; never given to blobs
FIXED_PAGES = 28  # schema, empty trees, pointer map
_MIN_PAGES = 160
_MIN_LOG_FRAMES = 192
_MAX_LOG_BYTES = 256 * MIB
_USUAL_LOG_BYTES = 64 * MIB
_MAX_PAGES = 2**32 - 2  # https://sqlite.org/limits.html
_MAX_ROW_BYTES = 10**9 - 4096  # there too: the longest row is 10**9 bytes
_AUDIT_SHARE = 4  # a quarter of the file at most
_QUARANTINE_SHARE = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """The shares of one budget, fixed while a store is open, so that their sum never exceeds it.

    ``max_pages * page_size + log_bytes + index_bytes <= budget_bytes``: SQLite itself refuses to grow the
    file beyond ``max_pages`` (PRAGMA max_page_count); the store resets the log before it outgrows
    ``log_frames``.

    Attributes:
        budget_bytes: What all files of the store may take together.
        page_size: Bytes of a database page.
        log_frames: Frames (a page and 24 bytes) the log may hold.
        max_pages: Pages the file may have.
    """

    budget_bytes: int
    page_size: int
    log_frames: int
    max_pages: int

    @classmethod
    def plan(cls, budget_bytes: int, *, page_size: int | None = None, log_bytes: int | None = None) -> Self:
        """Divide a budget.

        The log gets a quarter (a third where that is less than 1 MiB), 64 MiB at most up to a budget of
        1 GiB, then a sixteenth, 256 MiB at most: a bigger log takes bigger transactions and writes an index
        page once for more puts, a bigger file keeps more samples. Pages are small up to budgets where a
        log of 64 MiB no longer needs it: evictions touch scattered pages, each costs the log a whole one.

        Args:
            budget_bytes: The whole budget.
            page_size: Of an existing file; None chooses 1024 below 128 MiB and 4096 from there.
            log_bytes: The log's share; None as above.

        Raises:
            StoreError: the budget or the log's share is too small; the message names the minimum.

        >>> layout = Layout.plan(64 * 1024 * 1024)
        >>> layout.page_size, layout.log_frames, layout.max_pages
        (1024, 16008, 49024)
        """
        if page_size is None:
            page_size = LARGE_PAGE if budget_bytes >= _LARGE_PAGE_FROM_BYTES else SMALL_PAGE
        frame_bytes = page_size + _FRAME_HEADER_BYTES
        least_log_bytes = _LOG_HEADER_BYTES + _MIN_LOG_FRAMES * frame_bytes
        minimum = least_log_bytes + index_bytes(_MIN_LOG_FRAMES) + _MIN_PAGES * page_size
        if budget_bytes < minimum:
            message = (
                f"budget_bytes must be at least {minimum} (for pages of {page_size} bytes), "
                f"got {budget_bytes!r}; raise it"
            )
            raise StoreError(message)
        if log_bytes is None:
            share = max(budget_bytes // 4, min(budget_bytes // 3, MIB))
            most = min(max(_USUAL_LOG_BYTES, budget_bytes // 16), _MAX_LOG_BYTES)
            log_bytes = max(min(share, most), least_log_bytes)
        log_frames = (log_bytes - _LOG_HEADER_BYTES) // frame_bytes
        rest = budget_bytes - _LOG_HEADER_BYTES - log_frames * frame_bytes - index_bytes(log_frames)
        max_pages = min(rest // page_size, _MAX_PAGES)
        if log_frames < _MIN_LOG_FRAMES or max_pages < _MIN_PAGES:
            message = (
                f"log_bytes must be at least {least_log_bytes} and leave "
                f"{_MIN_PAGES * page_size} of the budget of {budget_bytes} to the file, "
                f"got {log_bytes!r}; leave it out to have it chosen"
            )
            raise StoreError(message)
        return cls(budget_bytes, page_size, log_frames, max_pages)

    @property
    def audit_bytes(self) -> int:
        """Share of the audit."""
        return self.max_pages * self.page_size // _AUDIT_SHARE

    @property
    def quarantine_bytes(self) -> int:
        """Share of the quarantine."""
        return self.max_pages * self.page_size // _QUARANTINE_SHARE

    @property
    def origins_bytes(self) -> int:
        """What may be remembered of policies beside quarantine and splits, in pages that are not full."""
        n_pages = self.max_pages - RESERVE_PAGES - FIXED_PAGES - self.max_pages // _QUARANTINE_SHARE
        return n_pages * self.payload_bytes * 5 // 6

    @property
    def soft_frames(self) -> int:
        """Length from which the log is reset when that takes no waiting.

        As late as the other half suffices for a transaction: a page that many puts change, such as one of
        an index over random values, is then copied into the file once for all of them.
        """
        return self.log_frames // 2

    @property
    def cache_pages(self) -> int:
        """Page cache of the writer, 64 MiB at most: also what a transaction holds back from the log.

        Small where the log is, since frames in the log are counted and changed pages in the cache only
        bounded by its size.
        """
        return max(32, min(self.log_frames // 4, self.log_frames - MICRO_BATCH_FRAMES, 16384))

    @property
    def max_sample_bytes(self) -> int:
        """Data and records of the biggest sample that passes the log and fits an otherwise empty file."""
        return self.max_sample_bytes_beside(0)

    def max_sample_bytes_beside(self, n_pages: int) -> int:
        """The same in a file in which ``n_pages`` are taken by what never gives way; may be negative."""
        shared = self.max_pages // _AUDIT_SHARE + self.max_pages // _QUARANTINE_SHARE
        in_file = self.max_pages - RESERVE_PAGES - FIXED_PAGES - shared - n_pages
        in_log = (
            self.log_frames - PUT_FRAMES - 2 * EVICT_FRAMES - self.log_frames // 8
        )  # the last: an audit trim
        # With each page goes its map, at worst one of its own, but no more than the file has.
        map_size = self.page_size // 8
        in_log = max(in_log - self.map_pages_of(in_log), in_log * map_size // (2 * map_size + 1))
        return min((min(in_file, in_log) - 2) * self.payload_bytes, _MAX_ROW_BYTES)

    @property
    def payload_bytes(self) -> int:
        """What an overflow page carries, less a little for row headers."""
        return self.page_size - 16

    def pages_of(self, n_bytes: int) -> int:
        """Pages that a row of ``n_bytes`` takes at most, its leaf included."""
        return n_bytes // self.payload_bytes + 2

    def map_pages_of(self, n_pages: int) -> int:
        """Pages of the pointer map and the free list that change when ``n_pages`` scattered pages do."""
        n_maps = self.max_pages // (self.page_size // 5) + 1
        return min(n_pages, n_maps) + n_pages // (self.page_size // 8)


def index_bytes(log_frames: int) -> int:
    """Size of the -shm file for a log of ``log_frames`` frames."""
    return _INDEX_BLOCK_BYTES * -(-(log_frames + _INDEX_FIRST_LOST) // _INDEX_BLOCK_FRAMES)


class LogGauge:
    """Reads how many frames the log holds from its file.

    After a reset SQLite writes the log from its beginning under a new salt and leaves the file's size as
    it is. So the frames of the current generation are those that carry the header's salt, they come
    first, and a binary search finds the last: a dozen small reads. Frames of a transaction in progress
    that left the page cache are counted too, which no SQLite interface of Python tells.

    A transaction that writes a page again which had left the cache already gives its further frames a salt
    of zeros; the commit puts in the right one. A rollback leaves these zeros behind: they are counted too,
    being no fewer than what counts, until :attr:`has_loose_frames` has the log cut.

    Reading this file is harmless; the database and its -shm must never be opened beside SQLite, since
    closing them would drop the process's POSIX locks.
    """

    def __init__(self, path: Path, page_size: int) -> None:
        self._path = path.with_name(path.name + "-wal")
        self._frame_bytes = page_size + _FRAME_HEADER_BYTES
        self._file: BinaryIO | None = None
        self._stale_salt: bytes | None = None
        self.has_loose_frames = False
        """True when the last frame that was counted belongs to an unfinished transaction, or to none."""

    def n_frames(self) -> int:
        """Frames in the current generation: at least those that count, at most what the file holds."""
        self.has_loose_frames = False
        if self._file is None:
            try:
                self._file = self._path.open("rb", buffering=0)
            except FileNotFoundError:
                return 0
        salt = self._salt()
        if len(salt) < 8 or salt == self._stale_salt:
            return 0
        low = 0
        high = max(0, (self._file.seek(0, 2) - _LOG_HEADER_BYTES) // self._frame_bytes)
        while low < high:
            middle = (low + high + 1) // 2
            self._file.seek(_LOG_HEADER_BYTES + (middle - 1) * self._frame_bytes + 8)
            found = self._file.read(8)
            if found in (salt, _NO_SALT):
                low = middle
                self.has_loose_frames = found == _NO_SALT
            else:
                high = middle - 1
        return low

    def mark_reset(self) -> None:
        """Say that the next commit will write the log from its beginning."""
        self._stale_salt = None
        if self.n_frames():
            self._stale_salt = self._salt()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _salt(self) -> bytes:
        if self._file is None:
            return b""
        self._file.seek(16)
        return self._file.read(8)


_RETRY_FRAMES = 64  # how far the log grows before a checkpoint that a reader blocked is tried again
_PINNED_PAGES = 8  # pages that an operation holds beside the cache


class Space:
    """The two limits of an open store.

    Attributes:
        layout: The shares.
        log_frames: At least as many frames as the log will hold when the current transaction commits.
        free_pages: At most as many pages as the file can still give.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        layout: Layout,
        timeout_s: float,
        min_free_bytes: int,
    ) -> None:
        self.layout = layout
        self._connection = connection
        self._path = path
        self._timeout_s = timeout_s
        self._min_free_bytes = min_free_bytes
        self._gauge = LogGauge(path, layout.page_size)
        self._retry_at = 0
        self._operation_frames = 0
        self.soft_frames = layout.soft_frames
        self.log_frames = self._gauge.n_frames()
        self.free_pages = 0

    def apply_limits(self) -> None:
        """Tell SQLite the file's limit and the page cache, which bounds a transaction's unwritten pages."""
        self._connection.execute(f"PRAGMA max_page_count = {self.layout.max_pages}").fetchall()
        self._connection.execute(f"PRAGMA cache_size = {self.layout.cache_pages}")
        self.look_up_free_pages()

    def close(self) -> None:
        """Close the log's gauge."""
        self._gauge.close()

    # -- the file ------------------------------------------------------------------------------------

    def look_up_free_pages(self) -> int:
        """Set and return :attr:`free_pages` to the true number; negative when the file is over its share."""
        (n_pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (n_unused,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        self.free_pages = self.layout.max_pages - n_pages + n_unused
        return self.free_pages

    def has_pages(self, n_pages: int) -> bool:
        """True when ``n_pages`` and the reserve for splits are free."""
        if self.free_pages >= n_pages + RESERVE_PAGES:
            return True
        return self.look_up_free_pages() >= n_pages + RESERVE_PAGES

    def require_disk(self) -> None:
        """Refuse to write when the disk is at its floor.

        Raises:
            StoreError: fewer than ``min_free_bytes`` are free.
        """
        if not self._min_free_bytes:
            return
        disk = os.statvfs(self._path.parent)
        free = disk.f_bavail * disk.f_frsize
        if free < self._min_free_bytes:
            message = (
                f"the disk of {self._path} must keep {self._min_free_bytes} bytes free (min_free_bytes), "
                f"got {free}; free some space and put again"
            )
            raise StoreError(message)

    # -- the log -------------------------------------------------------------------------------------

    def look_up_log(self) -> None:
        """Set :attr:`log_frames` to the true number; only between transactions."""
        self.log_frames = self._gauge.n_frames()

    def prepare_log(self, n_frames: int, soft_frames: int) -> None:
        """Between transactions: reset the log early enough for ``n_frames`` more.

        Args:
            n_frames: What the coming transaction may write.
            soft_frames: From here on the log is reset if that takes no waiting.

        Raises:
            StoreError: a reader has kept the log from being reset for ``timeout_s``.
        """
        limit = min(soft_frames, self.layout.log_frames - n_frames)
        if self.log_frames <= limit:
            return
        self.look_up_log()
        if self.log_frames <= limit:
            return
        must = self.log_frames + n_frames > self.layout.log_frames
        if must or self.log_frames >= self._retry_at:
            if self.checkpoint(wait=False):
                self._retry_at = 0
                return
            self._retry_at = self.log_frames + _RETRY_FRAMES
        if must and not self.checkpoint(wait=True) and self.log_frames + n_frames > self.layout.log_frames:
            message = (
                f"the log of {self._path} must be reset to stay inside the budget, but a reader has held "
                f"it for {self._timeout_s} s (timeout_s); end the reader's transaction and put again"
            )
            raise StoreError(message)

    def start_operation(self, n_frames: int) -> None:
        """Inside a transaction: announce that an operation begins that changes up to ``n_frames`` pages.

        Raises:
            TransactionFullError: the log could outgrow its share; nothing has been written for it.
        """
        self._operation_frames = 0
        self.reserve_frames(n_frames)
        self._operation_frames = n_frames

    def reserve_frames(self, n_frames: int) -> None:
        """Inside an operation: announce that a further step changes up to ``n_frames`` pages.

        Raises:
            TransactionFullError: the log could outgrow its share; nothing has been written beyond it.
        """
        self.log_frames += n_frames
        if self.log_frames <= self.layout.log_frames:
            return
        # What was changed so far is in the log's file, if it left the cache, or else in the cache. To come
        # are this step and what the operation has announced.
        known = self._gauge.n_frames() + self.layout.cache_pages + _PINNED_PAGES
        self.log_frames = min(self.log_frames, known + self._operation_frames + n_frames)
        if self.log_frames > self.layout.log_frames:
            self.log_frames -= n_frames
            frame_bytes = self.layout.page_size + 24
            message = (
                f"the transaction must fit the log's share of {self.layout.log_frames * frame_bytes} bytes "
                f"of the budget of {self.layout.budget_bytes}, "
                f"got {self.log_frames * frame_bytes} bytes so far "
                f"and up to {n_frames * frame_bytes} to come; put fewer samples in one transaction, "
                "end long readers, or raise budget_bytes or log_bytes"
            )
            raise TransactionFullError(message)

    def checkpoint(self, *, wait: bool) -> bool:
        """Copy the log into the file and let the next commit begin it anew; False when a reader is there."""
        if not wait:
            self._connection.execute("PRAGMA busy_timeout = 0").fetchall()
        try:
            self._gauge.n_frames()
            (is_busy, n_frames, _) = self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            if not is_busy and (not n_frames or self._gauge.has_loose_frames):
                # A rolled back transaction had left the cache. Its frames do not count, but the log goes on
                # under their salt, or they have none: the gauge could not tell them from new ones.
                (is_busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            is_busy = 1
        finally:
            if not wait:
                self._connection.execute(f"PRAGMA busy_timeout = {int(self._timeout_s * 1000)}").fetchall()
        if is_busy:
            self.look_up_log()
            return False
        self._gauge.mark_reset()
        self.log_frames = 0
        return True

    def truncate_log(self) -> None:
        """Copy the log into the file and cut both to size, waiting for readers.

        Raises:
            StoreError: a reader has been in the way for ``timeout_s``.
        """
        (is_busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            message = (
                f"the log of {self._path} must be reset, but a reader has held it for {self._timeout_s} s "
                "(timeout_s); end the reader's transaction and try again"
            )
            raise StoreError(message)
        self.look_up_log()
