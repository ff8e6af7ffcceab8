"""SQLite's errors in plain words, the size of the files, and connections."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from making import refused

from drip.errors import StoreError
from drip.store.connection import connect, disk_bytes, explain, explained


@pytest.mark.parametrize(
    ("name", "code", "advice"),
    [
        ("SQLITE_BUSY", "store-busy", "timeout_s"),
        ("SQLITE_BUSY_SNAPSHOT", "store-busy", "timeout_s"),
        ("SQLITE_LOCKED", "store-busy", "timeout_s"),
        ("SQLITE_FULL", "store-disk-full", "free some space"),
        ("SQLITE_IOERR_WRITE", "store-disk-full", "free some space"),
        ("SQLITE_IOERR_READ", "store-io", "check()"),
        ("SQLITE_READONLY", "path-not-writable", "open_readonly()"),
        ("SQLITE_PERM", "path-not-writable", "open_readonly()"),
        ("SQLITE_CANTOPEN", "path-not-writable", "check the path"),
        ("SQLITE_CORRUPT", "store-damaged", "check()"),
        ("SQLITE_NOTADB", "store-invalid", "choose another path"),
        ("SQLITE_ERROR", "store-io", "check()"),
    ],
)
def test_an_error_says_file_cause_and_what_to_do(name, code, advice):
    error = sqlite3.OperationalError("cause")
    error.sqlite_errorcode = getattr(sqlite3, name)
    error.sqlite_errorname = name
    explained_error = explain(error, Path("kept.drip"), "write to")
    assert isinstance(explained_error, StoreError)
    assert explained_error.code == code
    assert str(explained_error).startswith(f"kept.drip: cannot write to the store ({name}: cause); ")
    assert advice in str(explained_error).lower()


@pytest.mark.parametrize(
    ("error", "code"),
    [(sqlite3.ProgrammingError("cause"), "store-closed"), (sqlite3.DatabaseError("cause"), "store-io")],
)
def test_an_error_without_a_result_code_is_named_by_its_type(error, code):
    explained_error = explain(error, Path("kept.drip"), "read")
    assert explained_error.code == code
    assert f"({type(error).__name__}: cause)" in str(explained_error)


def test_the_explained_error_has_its_cause():
    with (
        refused(StoreError, "store-io", "a: cannot open", "cause") as caught,
        explained(Path("a"), "open"),
    ):
        raise sqlite3.OperationalError("cause")
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


def test_the_size_counts_all_files_of_a_store_and_no_others(tmp_path):
    assert disk_bytes(tmp_path / "s") == 0
    for n_bytes, suffix in ((1, ""), (10, "-wal"), (100, "-shm"), (1000, "-journal"), (10_000, ".other")):
        (tmp_path / f"s{suffix}").write_bytes(bytes(n_bytes))
    assert disk_bytes(tmp_path / "s") == 1111


def test_a_connection_waits_for_its_timeout_and_keeps_temporary_tables_in_memory(tmp_path):
    path = tmp_path / "a %41?b#c"
    connection = connect(path, mode="rwc", timeout_s=1.5)
    assert path.exists()
    assert connection.isolation_level is None
    assert connection.execute("PRAGMA busy_timeout").fetchone() == (1500,)
    assert connection.execute("PRAGMA temp_store").fetchone() == (2,)
    connection.close()
    with pytest.raises(sqlite3.OperationalError):
        connect(tmp_path / "missing", mode="rw", timeout_s=1.5)
    reader = connect(path, mode="immutable", timeout_s=1.5)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("CREATE TABLE t (x)")
    reader.close()
