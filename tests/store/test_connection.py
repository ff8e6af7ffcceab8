"""SQLite's errors in drip's words, and what the files take."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from drip.errors import StoreError
from drip.store.schema import connect, disk_bytes, explain, explained

WRITER = "another process is writing to it; a store has one writer at a time: stop it or raise timeout_s"
FULL = (
    "the disk is full or failing; what was acknowledged is safe: free some space and put again, "
    "the store need not be reopened"
)
READONLY = "it cannot be written: open it with readonly=True or change its permissions"
PLACE = "a file in an existing folder that can be written is needed: check the path, or use readonly=True"
DAMAGED = "it is damaged or no drip store: run check() on it, restore a copy or choose another path"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("SQLITE_BUSY", WRITER),
        ("SQLITE_BUSY_SNAPSHOT", WRITER),
        ("SQLITE_LOCKED", WRITER),
        ("SQLITE_FULL", FULL),
        ("SQLITE_IOERR_WRITE", FULL),
        ("SQLITE_IOERR_READ", "run check() on it"),
        ("SQLITE_READONLY", READONLY),
        ("SQLITE_PERM", READONLY),
        ("SQLITE_CANTOPEN", PLACE),
        ("SQLITE_CORRUPT", DAMAGED),
        ("SQLITE_NOTADB", DAMAGED),
        ("SQLITE_ERROR", "run check() on it"),
    ],
)
def test_an_error_names_file_cause_and_what_to_do(name, advice):
    error = sqlite3.OperationalError("cause")
    error.sqlite_errorcode = getattr(sqlite3, name)
    error.sqlite_errorname = name
    told = explain(error, Path("kept.drip"), "write to")
    assert isinstance(told, StoreError)
    assert str(told) == f"cannot write to kept.drip, got {name}: cause; {advice}"


def test_an_error_without_a_code_is_named_by_its_type():
    told = explain(sqlite3.ProgrammingError("cause"), Path("kept.drip"), "read")
    assert str(told) == (
        "cannot read kept.drip, got ProgrammingError: cause; "
        "a store is used by the thread that opened it, until it is closed"
    )
    told = explain(sqlite3.DatabaseError("cause"), Path("kept.drip"), "read")
    assert str(told) == "cannot read kept.drip, got DatabaseError: cause; run check() on it"


def test_the_cause_stays_with_the_explanation():
    with (
        pytest.raises(StoreError, match=r"cannot open a, got .*: cause") as caught,
        explained(Path("a"), "open"),
    ):
        raise sqlite3.OperationalError("cause")
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


def test_all_files_of_a_store_count_and_no_others(tmp_path):
    assert disk_bytes(tmp_path / "s") == 0
    for n_bytes, suffix in ((1, ""), (10, "-wal"), (100, "-shm"), (1000, "-journal"), (10_000, ".other")):
        (tmp_path / f"s{suffix}").write_bytes(bytes(n_bytes))
    assert disk_bytes(tmp_path / "s") == 1111


def test_a_connection_waits_as_told_and_keeps_temporary_tables_in_memory(tmp_path):
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
