"""What the store refuses: the error's type and code, and that its message names the thing it is about."""

from __future__ import annotations

import contextlib
import math
import sqlite3

import pytest
from making import BUDGET, keep, observation, put, refused, sample

from drip.errors import InputError, StoreError
from drip.store import Origin, RetentionStore
from drip.types import Decision, Progress, Sample


@pytest.mark.parametrize(
    ("given", "seen", "code", "part"),
    [
        (Sample("", b"x", "image/png"), observation(), "sample-rejected", "sample.id=''"),
        (Sample("a", "text", "image/png"), observation(), "sample-rejected", "'a': data is str"),
        (sample("a", meta={"k": 1}), observation(), "sample-rejected", "{'k': 1}"),
        (sample("a", meta={1: "v"}), observation(), "sample-rejected", "{1: 'v'}"),
        (sample("a"), observation(content_hash="00"), "bad-argument", "'a': observation.content_hash='00'"),
    ],
)
def test_an_unusable_sample_is_refused_and_not_counted(store, given, seen, code, part):
    with refused(InputError, code, part):
        store.put(given, seen, keep())
    assert store.stats().seen == 0


def test_ids_of_one_and_of_512_bytes_are_accepted(store):
    put(store, "a")
    put(store, "é" * 256)
    assert len(store) == 2


def test_a_nan_priority_is_refused_with_advice(store):
    with refused(InputError, "bad-argument") as caught:
        store.put(sample("a"), observation(), Decision(True, math.nan, None, "word"))
    assert str(caught.value) == "sample 'a': the priority of its decision is NaN; use -inf for the lowest"


def test_an_integer_beyond_64_bits_is_refused_as_input(store):
    with refused(InputError, "sample-rejected", "64 bits"):
        put(store, "a", predicted_class=2**63)
    put(store, "a", predicted_class=2**63 - 1)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"synchronous": "off"}, "synchronous='off'"),
        ({"timeout_s": -1}, "timeout_s=-1"),
        ({"timeout_s": 1e6}, "timeout_s=1000000.0"),
        ({"min_free_bytes": -1}, "min_free_bytes=-1"),
    ],
)
def test_an_option_outside_its_range_is_named(tmp_path, options, part):
    with refused(InputError, "bad-argument", part):
        RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_refuses_a_negative_timeout(store):
    with refused(InputError, "bad-argument", "timeout_s=-1"):
        RetentionStore.open_readonly(store.path, timeout_s=-1)


def test_a_timeout_of_zero_is_accepted(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET, timeout_s=0) as store:
        put(store)
        assert len(store) == 1


@pytest.mark.parametrize(
    ("label", "name", "kind", "code", "part"),
    [
        (-1, 1, InputError, "bad-argument", "label=-1"),
        (2**31, 1, InputError, "bad-argument", f"label={2**31}"),
        (0, "b", StoreError, "sample-unknown", "'b'"),
        (0, 99, StoreError, "sample-unknown", "99"),
    ],
)
def test_a_label_out_of_range_or_of_an_unknown_sample_is_refused(store, label, name, kind, code, part):
    put(store, "a")
    with refused(kind, code, part):
        store.set_label(name, label)
    for fine in (0, 2**31 - 1):
        store.set_label(1, fine)
        assert store.sample(1).human_label == fine


def test_errors_of_a_closed_and_a_readonly_store_name_the_file(store):
    with (
        RetentionStore.open_readonly(store.path) as reader,
        refused(StoreError, "store-closed", store.path),
    ):
        put(reader)
    store.close()
    with refused(StoreError, "store-closed", store.path):
        put(store)


def test_a_missing_file_does_not_exist(tmp_path):
    path = tmp_path / "s"
    with refused(StoreError, "store-missing") as caught:
        RetentionStore.open_readonly(path)
    assert str(caught.value) == f"{path} does not exist; check the path"


def test_a_file_of_another_program_is_refused_with_its_identity(tmp_path):
    path = tmp_path / "s"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
    with refused(StoreError, "store-invalid", path, "application_id 0x0", "1 tables"):
        RetentionStore.open(path, budget_bytes=BUDGET)


@pytest.mark.parametrize("version", [0, 4])
def test_a_file_of_an_unknown_version_is_refused(store, version):
    store._connection.execute(f"PRAGMA user_version = {version}")
    store.close()
    with refused(StoreError, "store-version", store.path, f"version {version}", "1 to 3"):
        RetentionStore.open(store.path)


def test_a_nested_transaction_and_a_check_inside_one_are_refused(store):
    with store.transaction():
        with refused(StoreError, "store-transaction"):
            store.transaction().__enter__()
        with refused(StoreError, "store-transaction"):
            store.check()


def test_a_swallowed_failure_is_quoted(store):
    with (
        refused(StoreError, "store-transaction", "OverflowError"),
        store.transaction(),
        contextlib.suppress(InputError),
    ):
        put(store, "a", predicted_class=2**63)


def test_settings_that_another_process_changes_are_noticed(store):
    put(store, "a")
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        connection.execute("UPDATE settings SET value = '77' WHERE name = 'audit_rows'")
    with refused(StoreError, "store-busy", store.path):
        put(store, "b")
    assert not store._connection.in_transaction


def test_a_disk_at_its_floor_is_refused_with_both_numbers(tmp_path):
    path = tmp_path / "s"
    with (
        RetentionStore.open(path, budget_bytes=BUDGET, min_free_bytes=2**60) as store,
        refused(StoreError, "store-disk-full", path, f"min_free_bytes={2**60}") as caught,
    ):
        put(store)
    assert int(str(caught.value).split("has ")[1].split(" bytes")[0]) > 1_000_000


def test_an_unknown_label_state_is_refused_with_the_known_ones(store):
    with refused(InputError, "bad-argument", "'maybe'", "unlabelled, true, human"):
        store.samples(label_state="maybe")


def test_a_reader_that_blocks_the_log_is_named(store):
    space = store._writer.space
    put(store, "a")
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM kept").fetchone()
        put(store, "b")
        with refused(StoreError, "store-busy", store.path, "0.1 s (timeout_s)"):
            space.prepare_log(space.layout.log_frames, 0)
        space.prepare_log(space.layout.log_frames - space.log_frames, 0)
    frames = space.log_frames
    space.prepare_log(space.layout.log_frames - frames, frames)
    assert space.log_frames == frames
    space.prepare_log(space.layout.log_frames - frames + 1, frames)
    assert space.log_frames == 0


def test_a_failing_write_names_the_file_and_the_cause(store):
    store.close()
    other = sqlite3.connect(store.path, isolation_level=None)
    with RetentionStore.open(store.path, timeout_s=0.05) as busy:
        other.execute("BEGIN IMMEDIATE")
        for write in (lambda: put(busy, "b"), lambda: busy.transaction().__enter__()):
            with refused(StoreError, "store-busy", store.path, "SQLITE_BUSY"):
                write()
        other.close()


@pytest.mark.parametrize(
    ("table", "use"),
    [
        ("settings", lambda reader: reader.budget_bytes),
        ("tally", lambda reader: reader.stats()),
        ("kept", len),
        ("audit", lambda reader: list(reader.audit())),
    ],
)
def test_a_failing_read_names_the_file_and_the_cause(store, table, use):
    store._connection.execute(f"DROP TABLE {table}")
    with (
        RetentionStore.open_readonly(store.path) as reader,
        refused(StoreError, "store-io", store.path, f"no such table: {table}"),
    ):
        use(reader)


def test_a_failing_opening_names_the_file_and_the_cause(tmp_path):
    with refused(StoreError, "store-invalid", f"{tmp_path} is a folder"):
        RetentionStore.open(tmp_path, budget_bytes=BUDGET)
    text = tmp_path / "text"
    text.write_text("no database at all, " * 100)
    with refused(StoreError, "store-invalid", text, "SQLITE_NOTADB"):
        RetentionStore.open(text, budget_bytes=BUDGET)


@pytest.mark.parametrize(
    "origin",
    [
        Origin((), {"a": math.nan}),
        Origin((), {"a": object()}),
        Origin((), {"a": {1, 2}}),
        Origin((), {(1, 2): 3}),
        object(),
    ],
)
def test_an_origin_that_json_cannot_represent_is_refused(store, origin):
    with refused(InputError, "bad-argument", "origin"):
        store.note_origin("p", origin)
    assert store.origins() == {}


def test_a_damaged_origin_is_reported_with_its_policy(store):
    store.note_origin("p" * 64, Origin(("m",), {"method": "drip"}))
    store._connection.execute("UPDATE settings SET value = '[' WHERE name LIKE 'origin %'")
    with refused(StoreError, "store-damaged", "p" * 12):
        store.origins()


@pytest.mark.parametrize(
    "use",
    [
        lambda store, text: store.note_origin(text, Origin()),
        lambda store, text: store.save_progress(Progress(None, {}, text)),
        lambda store, text: store.set_label("a", 1, annotator=text),
        lambda store, text: RetentionStore.open(
            store.path.with_name("b"), budget_bytes=BUDGET, policy_digest=text
        ),
    ],
)
def test_a_digest_or_a_name_that_is_too_long_or_not_text_is_refused(store, use):
    put(store, "a")
    for text in ("x" * 513, "\ud800", 5):
        with refused(InputError, "bad-argument"):
            use(store, text)
    assert not store.path.with_name("b").exists()


def test_an_unusable_state_or_cursor_does_not_spoil_its_transaction(store):
    with store.transaction():
        put(store, "a")
        for progress, part in (
            (Progress("c", {"a": object()}, "p"), "rule_state="),
            (Progress("\ud800", {}, "p"), "cursor="),
        ):
            with refused(InputError, "bad-argument", part):
                store.save_progress(progress)
    assert len(store) == 1
