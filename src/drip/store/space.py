"""Keeps the file and its log inside their shares: counts pages and frames, runs the checkpoints.

Knows nothing of samples. Both counts are bounds that cost an addition per put; only when a bound says
that a limit is near is the true number looked up.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from drip.errors import StoreError, TransactionFullError
from drip.store.budget import RESERVE_PAGES, Layout, LogGauge

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
