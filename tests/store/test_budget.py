"""The shares of a budget, and the gauge that reads a log's length from its file."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
from making import refused

from drip.errors import StoreError
from drip.store.budget import MIB, Layout, LogGauge, index_bytes

MINIMUM = 397_856


@pytest.mark.parametrize(
    ("budget_bytes", "options", "shares"),
    [
        (450_000, {}, (1024, 192, 210)),
        (1_000_000, {}, (1024, 318, 619)),
        (4 * MIB, {}, (1024, 1000, 3040)),
        (128 * MIB - 1, {}, (1024, 32017, 98048)),
        (128 * MIB, {}, (4096, 8144, 24560)),
        (2048 * MIB, {}, (4096, 32577, 491456)),
        (8192 * MIB, {}, (4096, 65154, 2031488)),
        (10_000_000, {"page_size": 4096}, (4096, 606, 1823)),
        (10_000_000, {"log_bytes": 1_000_000}, (1024, 954, 8757)),
    ],
)
def test_a_budget_is_divided_without_wasting_a_page(budget_bytes, options, shares):
    layout = Layout.plan(budget_bytes, **options)
    assert layout.budget_bytes == budget_bytes
    assert {type(layout.log_frames), type(layout.max_pages)} == {int}
    assert (layout.page_size, layout.log_frames, layout.max_pages) == shares
    n_bytes = layout.max_pages * layout.page_size + index_bytes(layout.log_frames)
    n_bytes += 32 + layout.log_frames * (layout.page_size + 24)
    assert 0 <= budget_bytes - n_bytes < layout.page_size


def test_shares_of_audit_quarantine_cache_and_the_largest_sample():
    layout = Layout.plan(1_000_000)
    assert (layout.audit_bytes, layout.quarantine_bytes) == (158_464, 79_232)
    assert (layout.soft_frames, layout.cache_pages, layout.max_sample_bytes) == (159, 32, 225_792)
    large = Layout.plan(8192 * MIB)
    assert (large.audit_bytes, large.quarantine_bytes) == (2_080_243_712, 1_040_121_856)
    assert (large.soft_frames, large.cache_pages, large.max_sample_bytes) == (32_577, 16_288, 221_821_440)
    assert Layout(0, 1024, 100, 0).cache_pages == 32
    assert Layout(0, 1024, 100_000, 0).cache_pages == 16_384


@pytest.mark.parametrize("budget_bytes", [10**9 * n for n in (64, 100, 190, 200, 1000, 20_000, 10**6)])
def test_a_huge_budget_leaves_room_for_a_large_sample_that_fits_the_log(budget_bytes):
    layout = Layout.plan(budget_bytes)
    assert layout.max_sample_bytes > 110_000_000
    assert layout.max_pages <= 2**32 - 2  # https://sqlite.org/limits.html
    n_pages = layout.pages_of(layout.max_sample_bytes)
    n_maps = min(n_pages, layout.max_pages // 819 + 1)  # each page has one number of five bytes in a map
    assert n_pages + n_maps < 0.875 * layout.log_frames


def test_no_log_allows_a_sample_beyond_the_row_limit_of_sqlite():
    layout = Layout.plan(10**12, log_bytes=10**11)
    assert 0.99e9 < layout.max_sample_bytes < 1e9


def test_pages_of_a_row_and_of_its_pointer_maps():
    layout = Layout.plan(1_000_000)
    assert layout.payload_bytes == 1008
    assert [layout.pages_of(n) for n in (0, 1007, 1008, 5000)] == [2, 2, 3, 6]
    assert [layout.map_pages_of(n) for n in (0, 1, 3, 4, 127, 128, 1000)] == [0, 1, 3, 4, 4, 5, 11]
    assert [Layout(0, 4096, 1000, n).map_pages_of(600) for n in (1637, 1638)] == [3, 4]


def test_the_index_of_the_log_grows_in_blocks_and_the_first_has_a_header():
    assert [index_bytes(n) // 32_768 for n in (1, 4062, 4063, 8158, 8159)] == [1, 1, 2, 2, 3]


def test_the_smallest_budget_is_in_the_message_and_is_accepted():
    with refused(StoreError, "store-budget") as caught:
        Layout.plan(MINIMUM - 1)
    assert str(caught.value) == (
        f"budget_bytes={MINIMUM - 1} is too small; the minimum is {MINIMUM} with pages of 1024 bytes"
    )
    layout = Layout.plan(MINIMUM)
    assert (layout.log_frames, layout.max_pages) == (192, 160)
    with refused(StoreError, "store-budget", 4096):
        Layout.plan(1_000_000, page_size=4096)


@pytest.mark.parametrize("log_bytes", [201_247, 1_000_000 - 32_768 - 159 * 1024])
def test_a_log_that_is_too_small_or_too_large_is_refused(log_bytes):
    with refused(StoreError, "store-budget", log_bytes, 201_248, 163_840, 1_000_000):
        Layout.plan(1_000_000, log_bytes=log_bytes)


def test_the_smallest_and_the_largest_log_are_accepted():
    assert Layout.plan(1_000_000, log_bytes=201_248).log_frames == 192
    assert Layout.plan(1_000_000, log_bytes=1_000_000 - 32_768 - 163_840).max_pages >= 160


@pytest.mark.parametrize("page_size", [1024, 4096])
def test_the_gauge_counts_the_frames_of_the_current_generation(tmp_path, page_size):
    path = tmp_path / "s"
    gauge = LogGauge(path, page_size)
    assert gauge.n_frames() == 0
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("CREATE TABLE t (x BLOB)")

        def true_count():
            return connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]

        for n in (1, 5, 2, 40, 3):
            connection.execute("INSERT INTO t VALUES (zeroblob(?))", (n * page_size,))
            assert gauge.n_frames() == true_count() > 0
        before = gauge.n_frames()
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
        assert gauge.n_frames() == before
        gauge.mark_reset()
        assert gauge.n_frames() == 0
        for n in (1, 2, 1):
            connection.execute("INSERT INTO t VALUES (zeroblob(?))", (n * page_size,))
            assert 0 < gauge.n_frames() == true_count() < before
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert gauge.n_frames() == 0
        gauge.mark_reset()
        connection.execute("INSERT INTO t VALUES (1)")
        assert gauge.n_frames() == true_count()
    gauge.close()
    gauge.close()
    assert gauge._file is None
