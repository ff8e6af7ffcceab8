"""The two limits of an open store, tested with SQLite alone: free pages, frames of the log, checkpoints."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from types import SimpleNamespace

import pytest
from making import refused

from drip.errors import StoreError, TransactionFullError
from drip.store.budget import RESERVE_PAGES, Layout, Space

PAGE = 1024
FRAME = PAGE + 24
LAYOUT = Layout(budget_bytes=800_000, page_size=PAGE, log_frames=400, max_pages=1000)
CACHE_AND_PINS = LAYOUT.cache_pages + 8


def connect(path):
    connection = sqlite3.connect(path, isolation_level=None, timeout=0.1, check_same_thread=False)
    for pragma in (f"page_size = {PAGE}", "journal_mode = WAL", "wal_autocheckpoint = 0"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


@pytest.fixture
def connection(tmp_path):
    with contextlib.closing(connect(tmp_path / "f")) as opened:
        opened.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
        yield opened


@pytest.fixture
def space(connection, tmp_path):
    opened = Space(connection, tmp_path / "f", LAYOUT, 0.1, 0)
    opened.apply_limits()
    assert opened.checkpoint(wait=True)
    yield opened
    opened.close()


@pytest.fixture
def reader(space, tmp_path):  # noqa: ARG001  # opened after the log was reset
    with contextlib.closing(connect(tmp_path / "f")) as opened:
        yield opened


def log_file(tmp_path):
    return tmp_path / "f-wal"


def patient(connection, tmp_path, timeout_s):
    """Another view of the same file, which waits so long for readers."""
    connection.execute(f"PRAGMA busy_timeout = {1000 * timeout_s:.0f}").fetchall()
    return Space(connection, tmp_path / "f", LAYOUT, timeout_s, 0)


def hold(reader):
    """Read from the log, and keep it."""
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM t").fetchone()


def write(connection, n_pages=1):
    """Commit a row that takes so many pages of its own."""
    n_bytes = 900 if n_pages == 1 else n_pages * (PAGE - 4)
    connection.execute("INSERT INTO t (data) VALUES (?)", (bytes(n_bytes),))


# -- the file ------------------------------------------------------------------------------------------


def test_free_pages_are_those_that_sqlite_still_allocates(connection, space):
    free = space.look_up_free_pages()
    assert space.free_pages == free
    connection.execute("BEGIN")
    for _ in range(free - 20):
        write(connection)
    connection.execute("COMMIT")
    with pytest.raises(sqlite3.OperationalError, match="full"):  # noqa: PT012  # one of many rows
        while True:
            write(connection)
    (n_rows,) = connection.execute("SELECT count(*) FROM t").fetchone()
    assert free - 16 < n_rows <= free
    assert 0 <= space.look_up_free_pages() <= 1
    assert connection.execute("PRAGMA page_count").fetchone() == (LAYOUT.max_pages - space.free_pages,)


def test_deleted_pages_are_free_again(connection, space):
    before = space.look_up_free_pages()
    write(connection, 20)
    assert before - 22 <= space.look_up_free_pages() <= before - 20
    connection.execute("DELETE FROM t")
    assert space.look_up_free_pages() == space.free_pages == before


def test_a_file_over_its_share_has_negative_free_pages(connection, space, tmp_path):
    write(connection, 50)
    (n_pages,) = connection.execute("PRAGMA page_count").fetchone()
    small = Space(connection, tmp_path / "f", Layout(800_000, PAGE, 400, n_pages - 7), 0.1, 0)
    assert small.free_pages == 0
    assert small.look_up_free_pages() == small.free_pages == -7
    small.close()
    space.look_up_free_pages()


def test_sqlite_gets_the_limits(connection, space):
    assert connection.execute("PRAGMA max_page_count").fetchone() == (LAYOUT.max_pages,)
    assert connection.execute("PRAGMA cache_size").fetchone() == (LAYOUT.cache_pages,)
    assert space.free_pages == space.look_up_free_pages() > 0
    assert space.soft_frames == LAYOUT.soft_frames == 200


def test_the_reserve_for_splits_is_never_given_away(space):
    free = space.look_up_free_pages()
    assert space.has_pages(free - RESERVE_PAGES)
    assert not space.has_pages(free - RESERVE_PAGES + 1)
    assert space.free_pages == free
    space.free_pages = 0
    assert space.has_pages(free - RESERVE_PAGES)


def test_the_file_is_read_only_when_the_remembered_pages_do_not_suffice(space):
    free = space.look_up_free_pages()
    space.free_pages = 10 + RESERVE_PAGES
    assert space.has_pages(10)
    assert space.free_pages == 10 + RESERVE_PAGES
    assert space.has_pages(11)
    assert space.free_pages == free


@pytest.mark.parametrize(("floor", "is_refused"), [(0, False), (700, False), (701, True)])
def test_the_disk_floor_may_be_reached_but_not_crossed(connection, tmp_path, monkeypatch, floor, is_refused):
    asked = []

    def statvfs(path):
        asked.append(path)
        return SimpleNamespace(f_bavail=7, f_frsize=100, f_bfree=1000, f_bsize=1000)

    space = Space(connection, tmp_path / "f", LAYOUT, 0.1, floor)
    monkeypatch.setattr(os, "statvfs", statvfs)
    if is_refused:
        with refused(StoreError, "store-disk-full", 700, 701):
            space.require_disk()
    else:
        space.require_disk()
    assert asked == ([tmp_path] if floor else [])
    space.close()


# -- the log -------------------------------------------------------------------------------------------


def n_frames(tmp_path):
    """What the log's file holds, where it was cut to nothing before."""
    return max(0, log_file(tmp_path).stat().st_size - 32) // FRAME


def test_a_log_that_exists_at_opening_is_counted(connection, space, tmp_path):
    space.truncate_log()
    write(connection, 30)
    again = Space(connection, tmp_path / "f", LAYOUT, 0.1, 0)
    assert 30 < again.log_frames == n_frames(tmp_path)
    again.close()


def test_looking_up_the_log_replaces_what_was_announced(connection, space, tmp_path):
    space.truncate_log()
    assert space.log_frames == 0
    write(connection, 5)
    space.log_frames = 333
    space.look_up_log()
    assert space.log_frames == n_frames(tmp_path) > 5


def test_a_checkpoint_copies_everything_and_the_next_commit_starts_the_log_anew(connection, space, tmp_path):
    space.truncate_log()
    write(connection, 60)
    space.look_up_log()
    assert space.log_frames > 60
    assert space.checkpoint(wait=False)
    assert space.log_frames == 0
    copy = tmp_path / "copy"
    copy.write_bytes((tmp_path / "f").read_bytes())  # without the log
    with contextlib.closing(sqlite3.connect(copy)) as other:
        assert other.execute("SELECT length(data) FROM t").fetchall() == [(60 * (PAGE - 4),)]
    n_bytes = log_file(tmp_path).stat().st_size
    write(connection, 3)
    space.look_up_log()
    assert 3 < space.log_frames < 10
    assert log_file(tmp_path).stat().st_size == n_bytes


def test_frames_of_a_rolled_back_transaction_are_truncated(connection, space, tmp_path):
    space.truncate_log()
    connection.execute("BEGIN")
    for _ in range(3):
        write(connection, LAYOUT.cache_pages)  # more than the cache holds, so the log gets it
    connection.execute("ROLLBACK")
    assert n_frames(tmp_path) > LAYOUT.cache_pages
    assert space.checkpoint(wait=True)
    assert n_frames(tmp_path) == space.log_frames == 0
    write(connection)
    space.look_up_log()
    assert 0 < space.log_frames < 5


@pytest.mark.parametrize(("wait", "timeout_s"), [(False, 300.0), (True, 0.2)])
def test_a_checkpoint_blocked_by_a_reader_looks_up_the_log_and_restores_the_timeout(
    connection, reader, tmp_path, wait, timeout_s
):
    space = patient(connection, tmp_path, timeout_s)
    space.truncate_log()
    write(connection, 5)
    hold(reader)
    write(connection, 5)
    space.log_frames = 333
    start = time.perf_counter()
    assert not space.checkpoint(wait=wait)
    waited = time.perf_counter() - start
    assert waited > 0.19 if wait else waited < 100.0
    assert 10 < space.log_frames < 20
    assert connection.execute("PRAGMA busy_timeout").fetchone() == (1000 * timeout_s,)
    reader.execute("COMMIT")
    assert space.checkpoint(wait=wait)
    assert space.log_frames == 0
    space.close()


def test_a_checkpoint_waits_for_a_reader_that_ends(connection, reader, tmp_path):
    space = patient(connection, tmp_path, 20.0)
    write(connection, 5)
    hold(reader)
    write(connection, 5)
    timer = threading.Timer(0.2, reader.execute, ["COMMIT"])
    timer.start()
    assert space.checkpoint(wait=True)
    timer.join()
    space.close()


def test_a_checkpoint_inside_a_transaction_is_postponed(connection, space):
    connection.execute("BEGIN IMMEDIATE")
    write(connection)
    assert not space.checkpoint(wait=False)
    connection.execute("ROLLBACK")


class Failing:
    """A connection whose checkpoints fail in a way of the test's choice."""

    def __init__(self, connection, code):
        self._connection = connection
        self._code = code

    def execute(self, sql):
        if "wal_checkpoint" in sql:
            error = sqlite3.OperationalError("as the test wants it")
            error.sqlite_errorcode = self._code
            raise error
        return self._connection.execute(sql)


@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_LOCKED_SHAREDCACHE]
)
def test_a_lock_only_postpones_a_checkpoint(connection, tmp_path, code):
    space = Space(Failing(connection, code), tmp_path / "f", LAYOUT, 0.1, 0)
    assert not space.checkpoint(wait=False)
    assert connection.execute("PRAGMA busy_timeout").fetchone() == (100,)
    space.close()


def test_a_disk_that_fails_in_a_checkpoint_is_an_error(connection, tmp_path):
    space = Space(Failing(connection, sqlite3.SQLITE_IOERR_WRITE), tmp_path / "f", LAYOUT, 0.1, 0)
    with pytest.raises(sqlite3.OperationalError, match="as the test wants it"):
        space.checkpoint(wait=False)
    assert connection.execute("PRAGMA busy_timeout").fetchone() == (100,)
    space.close()


def test_a_log_below_both_limits_is_left_alone(connection, space, tmp_path):
    space.truncate_log()
    write(connection, 20)
    space.look_up_log()
    held = space.log_frames
    for n_to_come, soft in ((1, held), (LAYOUT.log_frames - held, LAYOUT.log_frames)):
        space.prepare_log(n_to_come, soft)
        assert space.log_frames == held == n_frames(tmp_path)
    space.prepare_log(1, held - 1)
    assert space.log_frames == 0


def test_a_log_that_would_outgrow_its_share_is_reset(connection, space):
    space.truncate_log()
    write(connection, 20)
    space.look_up_log()
    space.prepare_log(LAYOUT.log_frames - space.log_frames + 1, LAYOUT.log_frames)
    assert space.log_frames == 0


def test_announced_frames_that_were_not_written_do_not_reset_the_log(connection, space, tmp_path):
    space.truncate_log()
    write(connection, 20)
    held = n_frames(tmp_path)
    space.log_frames = 390
    space.prepare_log(100, held)
    assert space.log_frames == held
    write(connection)
    assert n_frames(tmp_path) > held  # it was appended


def test_a_reader_postpones_a_reset_until_the_log_has_grown_a_little(connection, space, reader, monkeypatch):
    write(connection, 20)
    hold(reader)
    space.look_up_log()
    tries = []
    checkpoint = space.checkpoint
    monkeypatch.setattr(space, "checkpoint", lambda *, wait: tries.append(wait) or checkpoint(wait=wait))
    monkeypatch.setattr(space, "look_up_log", lambda: None)  # the test says how long the log is
    for n_more, n_tries in ((0, 1), (0, 1), (63, 1), (1, 2), (63, 2), (1, 3)):
        space.log_frames += n_more
        write(connection)  # after the frames that the reader reads
        space.prepare_log(1, 0)
        assert tries == [False] * n_tries
    reader.execute("COMMIT")
    space.log_frames += 64
    space.prepare_log(1, 0)
    assert space.log_frames == 0
    space.log_frames = 1
    space.prepare_log(1, 0)  # no reader: reset at once
    assert tries == [False] * 5


def test_a_reset_that_must_happen_waits_for_the_reader_and_then_fails(connection, space, reader):
    space.truncate_log()
    write(connection, 20)
    hold(reader)
    write(connection, 20)
    space.look_up_log()
    held = space.log_frames
    start = time.perf_counter()
    with refused(StoreError, "store-busy", "0.1 s"):
        space.prepare_log(LAYOUT.log_frames, 0)
    assert time.perf_counter() - start > 0.09
    space.prepare_log(LAYOUT.log_frames - held, LAYOUT.log_frames)  # fits after the others
    assert space.log_frames == held
    reader.execute("COMMIT")
    space.prepare_log(LAYOUT.log_frames, 0)
    assert space.log_frames == 0


def test_a_log_that_just_suffices_does_not_wait(connection, reader, tmp_path):
    space = patient(connection, tmp_path, 300.0)
    space.truncate_log()
    write(connection, 20)
    hold(reader)
    write(connection, 20)
    space.look_up_log()
    start = time.perf_counter()
    space.prepare_log(LAYOUT.log_frames - space.log_frames, 0)
    assert time.perf_counter() - start < 100.0
    space.close()


@pytest.mark.parametrize(("n_left", "is_refused"), [(100, False), (101, True)])
def test_a_log_that_another_writer_reset_meanwhile_is_looked_up(space, monkeypatch, n_left, is_refused):
    def checkpoint(*, wait):
        space.log_frames = n_left if wait else space.log_frames
        return False  # a reader holds the new one

    monkeypatch.setattr(space, "checkpoint", checkpoint)
    monkeypatch.setattr(space, "look_up_log", lambda: None)
    space.log_frames = LAYOUT.log_frames
    with refused(StoreError, "store-busy") if is_refused else contextlib.nullcontext():
        space.prepare_log(LAYOUT.log_frames - 100, 0)
    assert space.log_frames == n_left


# -- a transaction -------------------------------------------------------------------------------------


def test_operations_and_their_steps_add_up(space):
    space.start_operation(10)
    assert space.log_frames == 10
    space.reserve_frames(7)
    assert space.log_frames == 17
    space.start_operation(LAYOUT.log_frames - 17)
    assert space.log_frames == LAYOUT.log_frames  # to the last frame
    space.log_frames = LAYOUT.log_frames - 10
    space.start_operation(10)
    assert space.log_frames == LAYOUT.log_frames  # without a look at the log


def test_frames_announced_but_not_written_are_available_again(space):
    space.start_operation(LAYOUT.log_frames)
    space.start_operation(50)  # nothing was written: at most what the cache holds is still to come
    assert space.log_frames == CACHE_AND_PINS + 50
    space.log_frames = LAYOUT.log_frames
    space.reserve_frames(30)  # and what the operation has announced
    assert space.log_frames == CACHE_AND_PINS + 50 + 30
    space.log_frames = LAYOUT.log_frames
    space.start_operation(20)  # the former operation is done
    assert space.log_frames == CACHE_AND_PINS + 20


def test_written_frames_count(connection, space, tmp_path):
    space.truncate_log()
    write(connection, 100)
    held = n_frames(tmp_path)
    space.log_frames = LAYOUT.log_frames
    space.reserve_frames(1)
    assert space.log_frames == held + CACHE_AND_PINS + 1


def test_looking_at_the_log_never_raises_the_estimate(connection, space):
    write(
        connection, LAYOUT.log_frames - CACHE_AND_PINS - 10
    )  # together with the cache more than the estimate
    space.log_frames = LAYOUT.log_frames - 20
    with pytest.raises(TransactionFullError):
        space.start_operation(21)
    assert space.log_frames == LAYOUT.log_frames - 20
    space.start_operation(20)
    assert space.log_frames == LAYOUT.log_frames


def test_a_step_that_could_outgrow_the_log_is_refused_with_the_numbers(space):
    room = LAYOUT.log_frames - CACHE_AND_PINS
    space.log_frames = LAYOUT.log_frames
    space.start_operation(room)
    assert space.log_frames == LAYOUT.log_frames
    with refused(TransactionFullError, "store-transaction-full", 400 * FRAME, 3 * FRAME, 800_000):
        space.reserve_frames(3)
    assert space.log_frames == LAYOUT.log_frames


def test_a_transaction_never_writes_more_than_was_announced(connection, space, tmp_path):
    space.truncate_log()
    connection.execute("BEGIN")
    n_done = 0
    with pytest.raises(TransactionFullError):  # noqa: PT012  # one of many steps
        while True:
            space.start_operation(12)
            write(connection, 6)
            n_done += 1
    connection.execute("COMMIT")
    assert n_done > LAYOUT.log_frames // 12
    assert n_frames(tmp_path) <= space.log_frames <= LAYOUT.log_frames
