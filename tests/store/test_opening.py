"""Opening a store: options, readers, other writers, files of other programs, damaged files."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from pathlib import Path

import pytest
from making import BUDGET, names, put, refused, sample

from drip.errors import InputError, StoreError
from drip.store import RetentionStore
from drip.types import Progress


def test_a_new_store_needs_a_valid_budget(path):
    with refused(StoreError, "store-missing", path, "budget_bytes"):
        RetentionStore.open(path)
    with refused(StoreError, "store-budget", "budget_bytes=1000", "minimum is 39"):
        RetentionStore.open(path, budget_bytes=1000)
    for bad in (-1, 0, True, 1e6):
        with refused(InputError, "bad-argument", "budget_bytes"):
            RetentionStore.open(path, budget_bytes=bad)
    with refused(StoreError, "store-budget", "log_bytes"):
        RetentionStore.open(path, budget_bytes=BUDGET, log_bytes=BUDGET - 1)
    assert not path.exists()


@pytest.mark.parametrize(
    "bad",
    [
        {"eviction": "random"},
        {"audit_rows": 0},
        {"synchronous": "off"},
        {"timeout_s": -1},
        {"timeout_s": math.nan},
        {"min_free_bytes": -1},
    ],
)
def test_other_bad_options_are_refused(path, bad):
    with pytest.raises(InputError):
        RetentionStore.open(path, budget_bytes=BUDGET, **bad)
    assert not path.exists()


def test_settings_are_remembered(path):
    RetentionStore.open(path, budget_bytes=BUDGET, eviction="fifo", audit_rows=7, audit_logits=False).close()
    with RetentionStore.open(path) as store:
        settings = store._writer.settings
    assert (settings.budget_bytes, settings.eviction, settings.audit_rows, settings.audit_logits) == (
        BUDGET,
        "fifo",
        7,
        False,
    )


def test_a_reader_sees_committed_rows_and_cannot_write(store, path):
    put(store, "a")
    with RetentionStore.open_readonly(path) as reader, store.transaction():
        put(store, "b")
        assert names(reader) == ["a"]
        assert reader.stats().kept == 1
        assert reader.budget_bytes == BUDGET
        assert reader.check().ok
        for write in (lambda: put(reader), lambda: reader.set_label("a", 1), reader.transaction):
            with refused(StoreError, "store-closed", "reading only"):
                write()
        with refused(StoreError, "store-transaction"):
            store.check()


def test_a_closed_store_refuses_every_use(store):
    store.close()
    store.close()
    for use in (lambda: put(store), store.stats, lambda: list(store), lambda: len(store)):
        with refused(StoreError, "store-closed", "closed"):
            use()


def test_a_second_writer_waits_for_the_first_to_close_and_then_sees_all(store, path):
    import threading

    put(store, "a")
    with refused(StoreError, "store-busy", path):
        RetentionStore.open(path, timeout_s=0.1)
    counts = []

    def wait():
        with RetentionStore.open(path, timeout_s=300) as second:
            counts.append(len(second))

    waiting = threading.Thread(target=wait)
    waiting.start()
    put(store, "b")
    store.close()
    waiting.join()
    assert counts == [2]


def test_another_program_that_writes_makes_a_put_wait_and_then_fail(path):
    import sqlite3

    with RetentionStore.open(path, budget_bytes=BUDGET, timeout_s=0.1) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with refused(StoreError, "store-busy", path):
            put(store, "a")
        other.execute("ROLLBACK")
        other.close()
        put(store, "a")
        assert names(store) == ["a"]


def test_a_store_cannot_be_used_in_another_thread(store):
    import threading

    caught = []

    def use():
        try:
            put(store)
        except StoreError as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert caught[0].code == "store-closed"
    assert "thread that opened it" in str(caught[0])


def test_files_of_other_programs_damaged_and_missing_ones_are_refused_with_their_path(tmp_path):
    other = tmp_path / "other.sqlite"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (x)")
    before = other.read_bytes()
    text = tmp_path / "text"
    text.write_text("no database at all, " * 100)
    places = ((other, "store-invalid"), (text, "store-invalid"), (tmp_path, "store-invalid"))
    for path, code in (*places, (tmp_path / "no" / "folder", "path-missing")):
        with refused(StoreError, code, path):
            RetentionStore.open(path, budget_bytes=BUDGET)
    for path, code in (*places, (tmp_path / "missing", "store-missing")):
        with refused(StoreError, code, path):
            RetentionStore.open_readonly(path)
    assert other.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [
        other,
        text,
    ]  # no lock, log or index beside a file that is not a store
    assert not tmp_path.with_name(f"{tmp_path.name}-lock").exists()


def test_an_empty_file_becomes_a_store(path):
    path.touch()
    with RetentionStore.open(path, budget_bytes=BUDGET) as store:
        put(store)
        assert len(store) == 1


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with refused(StoreError, "store-invalid", tmp_path / "pipe"):
        RetentionStore.open(tmp_path / "pipe", budget_bytes=BUDGET)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_newer_version_is_refused(path):
    RetentionStore.open(path, budget_bytes=BUDGET).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    for open_store in (RetentionStore.open, RetentionStore.open_readonly):
        with refused(StoreError, "store-version", 99, path):
            open_store(path)


def test_a_file_of_version_1_is_migrated_with_all_its_rows(path):
    path.write_bytes((Path(__file__).parent / "data" / "version1.drip").read_bytes())
    with refused(StoreError, "store-version", "open it once for writing"):
        RetentionStore.open_readonly(path)
    with RetentionStore.open(path) as store:
        assert names(store) == [f"s{i}" for i in range(5)]
        assert [record.label for record in store] == [0, 1, 0, 1, None]
        assert store.load_progress() == Progress("c6", {"n": 6}, "ab" * 32)
        assert store.stats().seen == 6
        store.set_label(5, 2, annotator="ada")
        assert store.sample(5).annotator == "ada"
        put(store, "new")
        assert store.check().ok
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)


def test_a_file_of_version_2_keeps_its_progress(path):
    path.write_bytes((Path(__file__).parent / "data" / "version2.drip").read_bytes())
    progress = Progress('ümlaut "7"  ', {"n": 6, "x": [0.1, -2.5e-300, None, True, "ä"]}, "ab" * 32)
    with RetentionStore.open(path) as store:
        assert store.load_progress() == progress
        store.save_progress(progress)
        assert store.load_progress() == progress
        assert store.check().ok


def test_a_migration_after_a_kill_keeps_the_log_within_its_share(path, tmp_path):
    killed, log = tmp_path / "killed", path.with_name(f"{path.name}-wal")
    path.write_bytes((Path(__file__).parent / "data" / "version2.drip").read_bytes())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        for letter in "abc":
            connection.execute("UPDATE progress SET selector_state = ?", (f'{{"x":"{letter * 60_000}"}}',))
        killed.write_bytes(path.read_bytes())
        killed.with_name("killed-wal").write_bytes(log.read_bytes())
    with RetentionStore.open(killed) as store:
        layout = store._writer.space.layout
        n_log_bytes = killed.with_name("killed-wal").stat().st_size
        assert n_log_bytes <= 32 + layout.log_frames * (layout.page_size + 24)
        assert store.load_progress().rule_state == {"x": "c" * 60_000}


@pytest.mark.parametrize("cursor", ["ü" * 62, "a" * 61 + "ü"])
def test_progress_after_a_cursor_of_version_2_that_is_not_ascii_is_whole(path, cursor):
    path.write_bytes((Path(__file__).parent / "data" / "version2.drip").read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE progress SET cursor = ?, selector_state = '{}'", (cursor,))
    with RetentionStore.open(path) as store:
        store.save_progress(Progress("new", {}, "ab" * 32))
        assert store.load_progress() == Progress("new", {}, "ab" * 32)


@pytest.mark.parametrize("damage", ["cursor = '\"c'", "selector_state = '{'", "cursor = CAST(x'ff' AS TEXT)"])
def test_damaged_progress_is_found_and_reported(path, damage):
    code = "store-io" if "CAST" in damage else "store-damaged"  # SQLite's own error has no result code
    with RetentionStore.open(path, budget_bytes=BUDGET) as store:
        store.save_progress(Progress("c", {"n": 1}, ""))
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE progress SET {damage}")
    with RetentionStore.open_readonly(path) as store:
        assert any("progress" in problem for problem in store.check().problems)
        with refused(StoreError, code, path):
            store.load_progress()
    with refused(StoreError, code, path):
        RetentionStore.open(path)


def test_check_finds_damage(path):
    with RetentionStore.open(path, budget_bytes=BUDGET) as store:
        for i in range(5):
            put(store, f"s{i}")
        store.quarantine(sample("q"), "broken")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE blobs SET data = 'x' WHERE id = 1")
        connection.execute("DELETE FROM blobs WHERE id = 2")
        connection.execute("DELETE FROM kept WHERE id = 3")
        connection.execute("UPDATE tally SET seen = seen + 1")
        connection.execute("UPDATE quarantine SET data = 'x'")
    with RetentionStore.open_readonly(path) as store:
        problems = "\n".join(store.check().problems)
    for part in (
        "'s0'",
        "'s1' (key 2) has no data",
        "row 3 of blobs",
        "'q'",
        "but the kept rows have",
        "do not add up",
    ):
        assert part in problems


def test_check_survives_a_damaged_page(path):
    with RetentionStore.open(path, budget_bytes=BUDGET) as store:
        for i in range(200):
            put(store, f"s{i}", data=bytes([i]) * 700)
    data = bytearray(path.read_bytes())
    data[40 * 1024 : 60 * 1024] = bytes(20 * 1024)
    path.write_bytes(data)
    with RetentionStore.open_readonly(path) as store:
        assert not store.check().ok
