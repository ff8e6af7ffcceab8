"""The byte budget: how it is divided between file, log and index, and how an open store stays inside it.

SQLite can limit the pages of the file (``max_page_count``) but not the write-ahead log. So the store reads
the log's length from its file, and every operation announces how many pages it may change before it does.
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

# https://sqlite.org/walformat.html: the log is a header, then frames of a page each. The -shm file grows in
# blocks that index 4096 frames each; the first block uses the space of 34 of them for its own header.
_LOG_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_NO_SALT = bytes(8)
_INDEX_BLOCK_BYTES = 32 * KIB
_INDEX_BLOCK_FRAMES = 4096
_INDEX_FIRST_LOST = 34

SMALL_PAGE = 1024
LARGE_PAGE = 4096
_LARGE_PAGE_FROM_BYTES = 128 * MIB

# Upper limits of the pages that one operation changes. A put changes a page in each of 8 B-trees, an eviction
# in 4, and a split or merge changes up to four more. Several trees may split at once, but hardly all of them.
# Errors do not add up: estimates are replaced by counted frames long before they reach the limit.
PUT_FRAMES = 32
EVICT_FRAMES = 8
MICRO_BATCH_FRAMES = 32 * PUT_FRAMES  # a transaction starts with room for that many, if the log has it
GROWTH_PAGES = 12  # pages that splits of indices and tables may allocate per put, besides its own bytes
RESERVE_PAGES = 48  # free pages that are never given to blobs, because any insert may need them for splits
FIXED_PAGES = 28  # schema, empty trees, pointer map
_MIN_PAGES = 160
_MIN_LOG_FRAMES = 192
_MAX_LOG_BYTES = 256 * MIB
_USUAL_LOG_BYTES = 64 * MIB
_MAX_PAGES = 2**32 - 2  # https://sqlite.org/limits.html
_MAX_ROW_BYTES = 10**9 - 4096  # from the same page: a row has at most 10**9 bytes
_AUDIT_SHARE = 4  # at most a quarter of the file
_QUARANTINE_SHARE = 8  # at most an eighth
_RETRY_FRAMES = 64  # how far the log grows before a checkpoint that a reader blocked is tried again
_PINNED_PAGES = 8  # pages that an operation holds besides the cache


@dataclass(frozen=True, slots=True)
class Layout:
    """The shares of one budget, fixed while a store is open, so their sum never exceeds it.

    ``max_pages * page_size + log_bytes + index_bytes <= budget_bytes``. SQLite refuses to grow the file
    beyond ``max_pages`` (PRAGMA max_page_count); the store resets the log before it outgrows
    ``log_frames``.

    Attributes:
        budget_bytes: Limit for all files of the store together.
        page_size: Bytes of a database page.
        log_frames: Limit for the frames of the log; a frame is a page and 24 bytes.
        max_pages: Limit for the pages of the file.
    """

    budget_bytes: int
    page_size: int
    log_frames: int
    max_pages: int

    @classmethod
    def plan(cls, budget_bytes: int, *, page_size: int | None = None, log_bytes: int | None = None) -> Self:
        """Divide a budget.

        The log gets a quarter of the budget (a third where that is less than 1 MiB) but at most 64 MiB, from
        a budget of 1 GiB a sixteenth but at most 256 MiB. A larger log allows larger transactions and writes
        an index page once for more puts; a larger file keeps more samples.

        Pages are small for small budgets: evictions change scattered pages, and each change costs the log
        a whole page.

        Args:
            budget_bytes: The whole budget.
            page_size: Of an existing file; None chooses 1024 below 128 MiB and 4096 from there.
            log_bytes: The log's share; None chooses it as above.

        Raises:
            StoreError: the budget or the log's share is too small; the message has the minimum.

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
                f"budget_bytes={budget_bytes!r} is too small; the minimum is {minimum} with pages of "
                f"{page_size} bytes"
            )
            raise StoreError(message, code="store-budget")
        if log_bytes is None:
            share = max(budget_bytes // 4, min(budget_bytes // 3, MIB))
            most = min(max(_USUAL_LOG_BYTES, budget_bytes // 16), _MAX_LOG_BYTES)
            log_bytes = max(min(share, most), least_log_bytes)
        log_frames = (log_bytes - _LOG_HEADER_BYTES) // frame_bytes
        rest = budget_bytes - _LOG_HEADER_BYTES - log_frames * frame_bytes - index_bytes(log_frames)
        max_pages = min(rest // page_size, _MAX_PAGES)
        if log_frames < _MIN_LOG_FRAMES or max_pages < _MIN_PAGES:
            message = (
                f"log_bytes={log_bytes!r} does not fit budget_bytes={budget_bytes}: the log needs at least "
                f"{least_log_bytes} bytes and the file {_MIN_PAGES * page_size}; leave out log_bytes"
            )
            raise StoreError(message, code="store-budget")
        return cls(budget_bytes, page_size, log_frames, max_pages)

    @property
    def audit_bytes(self) -> int:
        """Share of the audit, in bytes."""
        return self.max_pages * self.page_size // _AUDIT_SHARE

    @property
    def quarantine_bytes(self) -> int:
        """Share of the quarantine, in bytes."""
        return self.max_pages * self.page_size // _QUARANTINE_SHARE

    @property
    def origins_bytes(self) -> int:
        """Limit for the records of policies, in addition to the quarantine and the reserve for splits."""
        # Five sixths: B-tree pages are not full.
        n_pages = self.max_pages - RESERVE_PAGES - FIXED_PAGES - self.max_pages // _QUARANTINE_SHARE
        return n_pages * self.payload_bytes * 5 // 6

    @property
    def soft_frames(self) -> int:
        """Length from which the log is reset if no reader is in the way.

        Half of the limit, so the other half is left for a transaction, and no earlier: a page that many
        puts change, such as one of an index over random keys, is then copied into the file once for all of
        them.
        """
        return self.log_frames // 2

    @property
    def cache_pages(self) -> int:
        """Page cache of the writer, at most 64 MiB; a transaction holds its changed pages there.

        Small where the log is small: frames in the log can be counted, but of the changed pages in the cache
        only the cache's size is known.
        """
        return max(32, min(self.log_frames // 4, self.log_frames - MICRO_BATCH_FRAMES, 16384))

    @property
    def max_sample_bytes(self) -> int:
        """Bytes of the largest sample, with its records, that fits the log and an otherwise empty file."""
        return self.max_sample_bytes_beside(0)

    def max_sample_bytes_beside(self, n_pages: int) -> int:
        """The same in a file in which rows that are never evicted occupy ``n_pages``; may be negative."""
        shared = self.max_pages // _AUDIT_SHARE + self.max_pages // _QUARANTINE_SHARE
        in_file = self.max_pages - RESERVE_PAGES - FIXED_PAGES - shared - n_pages
        # The last term leaves room to trim the audit.
        in_log = self.log_frames - PUT_FRAMES - 2 * EVICT_FRAMES - self.log_frames // 8
        # Each page may change a pointer map page, at worst a different one for each, but not more than the
        # file has.
        map_size = self.page_size // 8
        in_log = max(in_log - self.map_pages_of(in_log), in_log * map_size // (2 * map_size + 1))
        return min((min(in_file, in_log) - 2) * self.payload_bytes, _MAX_ROW_BYTES)

    @property
    def payload_bytes(self) -> int:
        """Bytes of data in an overflow page, less a little for row headers."""
        return self.page_size - 16

    def pages_of(self, n_bytes: int) -> int:
        """Upper limit of the pages of a row of ``n_bytes``, with its leaf."""
        return n_bytes // self.payload_bytes + 2

    def map_pages_of(self, n_pages: int) -> int:
        """Pages of the pointer map and the free list that change when ``n_pages`` scattered pages do."""
        n_maps = self.max_pages // (self.page_size // 5) + 1
        return min(n_pages, n_maps) + n_pages // (self.page_size // 8)


def index_bytes(log_frames: int) -> int:
    """Size of the -shm file for a log of ``log_frames`` frames."""
    return _INDEX_BLOCK_BYTES * -(-(log_frames + _INDEX_FIRST_LOST) // _INDEX_BLOCK_FRAMES)


class LogGauge:
    """Reads from the log's file how many frames it holds.

    After a reset SQLite writes the log from the beginning with a new salt and does not truncate the file. So
    the frames of the current generation are the first ones, with the salt of the header, and a binary search
    finds the last of them in about a dozen small reads. This also counts frames of a transaction in progress
    that left the page cache, which SQLite does not tell through Python.

    If a transaction changes a page again that had already left the cache, SQLite marks its further frames
    with a salt of zeros, and the commit writes the right one. A rollback leaves the zeros. They are counted
    as well, which is never too few, until :attr:`has_loose_frames` makes the next checkpoint truncate the
    log.

    Only the log may be read this way. Opening and closing the database or its -shm file ourselves would
    release the POSIX locks that SQLite holds on them in this process.
    """

    def __init__(self, path: Path, page_size: int) -> None:
        self._path = path.with_name(path.name + "-wal")
        self._frame_bytes = page_size + _FRAME_HEADER_BYTES
        self._file: BinaryIO | None = None
        self._stale_salt: bytes | None = None
        self.has_loose_frames = False
        """True when the last counted frame belongs to an unfinished or a rolled back transaction."""

    def n_frames(self) -> int:
        """Frames in the current generation: never fewer than SQLite uses."""
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
        """Note that the next commit will write the log from the beginning."""
        # Until then the file still has the old header and frames, which must not be counted.
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


class Space:
    """Keeps an open store inside its two limits: pages of the file and frames of the log.

    Both numbers are estimates on the safe side, corrected by the true ones when they reach a limit. Looking
    up the true ones for every put would cost more than the put.

    Attributes:
        layout: The shares.
        log_frames: Never fewer frames than the log will hold when the current transaction commits.
        free_pages: Never more pages than the file can still allocate.
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
        """Set SQLite's limit for the file, and the page cache, which limits unwritten pages."""
        self._connection.execute(f"PRAGMA max_page_count = {self.layout.max_pages}").fetchall()
        self._connection.execute(f"PRAGMA cache_size = {self.layout.cache_pages}")
        self.look_up_free_pages()

    def close(self) -> None:
        """Close the log's gauge."""
        self._gauge.close()

    # -- the file ------------------------------------------------------------------------------------

    def look_up_free_pages(self) -> int:
        """Set :attr:`free_pages` to the true number and return it; negative if the file is too large."""
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
                f"{self._path}: the disk has {free} bytes left, less than min_free_bytes="
                f"{self._min_free_bytes}; free some space and put again"
            )
            raise StoreError(message, code="store-disk-full")

    # -- the log -------------------------------------------------------------------------------------

    def look_up_log(self) -> None:
        """Set :attr:`log_frames` to the true number; only between transactions."""
        self.log_frames = self._gauge.n_frames()

    def prepare_log(self, n_frames: int, soft_frames: int) -> None:
        """Between transactions: reset the log early enough for ``n_frames`` more.

        Args:
            n_frames: Frames that the next transaction may write.
            soft_frames: From this length the log is reset if no reader is in the way.

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
                f"{self._path}: the log must be reset to stay inside the budget, but a reader has held it "
                f"for {self._timeout_s} s (timeout_s); end the reader's transaction and put again"
            )
            raise StoreError(message, code="store-busy")

    def start_operation(self, n_frames: int) -> None:
        """Inside a transaction: announce an operation that changes up to ``n_frames`` pages.

        Raises:
            TransactionFullError: the log could outgrow its share; the operation has written nothing.
        """
        self._operation_frames = 0
        self.reserve_frames(n_frames)
        self._operation_frames = n_frames

    def reserve_frames(self, n_frames: int) -> None:
        """Inside an operation: announce a further step that changes up to ``n_frames`` pages.

        Raises:
            TransactionFullError: the log could outgrow its share; this step has written nothing.
        """
        self.log_frames += n_frames
        if self.log_frames <= self.layout.log_frames:
            return
        # Count instead of estimating. Pages changed so far are in the log's file or still in the cache; this
        # step and what the operation announced are still to come.
        known = self._gauge.n_frames() + self.layout.cache_pages + _PINNED_PAGES
        self.log_frames = min(self.log_frames, known + self._operation_frames + n_frames)
        if self.log_frames > self.layout.log_frames:
            self.log_frames -= n_frames
            frame_bytes = self.layout.page_size + 24
            message = (
                f"the transaction does not fit the log: {self.log_frames * frame_bytes} bytes so far and up "
                f"to {n_frames * frame_bytes} for the next write, but the limit is "
                f"{self.layout.log_frames * frame_bytes} with budget_bytes={self.layout.budget_bytes}; put "
                "fewer samples in one transaction, end long readers, or raise budget_bytes or log_bytes"
            )
            raise TransactionFullError(message)

    def checkpoint(self, *, wait: bool) -> bool:
        """Copy the log into the file, so the next commit restarts it; False if a reader blocks it."""
        if not wait:
            # The timeout applies to checkpoints too; without this every put would wait for a slow reader.
            self._connection.execute("PRAGMA busy_timeout = 0").fetchall()
        try:
            self._gauge.n_frames()
            (is_busy, n_frames, _) = self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            if not is_busy and (not n_frames or self._gauge.has_loose_frames):
                # Frames of a rolled back transaction are in the file. The gauge could not tell them from
                # later ones, as both have the same salt or none; truncating removes them.
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
        """Copy the log into the file and truncate both, waiting for readers.

        Raises:
            StoreError: a reader is in the way for ``timeout_s``.
        """
        (is_busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            message = (
                f"{self._path}: the log must be reset, but a reader has held it for {self._timeout_s} s "
                "(timeout_s); end the reader's transaction and try again"
            )
            raise StoreError(message, code="store-busy")
        self.look_up_log()
