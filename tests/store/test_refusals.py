"""What is refused, in which words: what was expected, what came, what to do."""

from __future__ import annotations

import contextlib
import math
import sqlite3

import pytest
from making import BUDGET, keep, observation, put, sample

from drip.errors import InputError, StoreError
from drip.store import RetentionStore
from drip.types import Decision, Progress, Sample


def told(kind, action):
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "seen", "message"),
    [
        (
            Sample("", b"x", "image/png"),
            observation(),
            "sample.id must be 1 to 512 bytes of UTF-8 text, got ''; shorten it",
        ),
        (
            Sample("a", "text", "image/png"),
            observation(),
            "sample.data of 'a' must be bytes, got str; encode it",
        ),
        (
            sample("a", meta={"k": 1}),
            observation(),
            "sample.meta must map text to text, got {'k': 1}; convert it with str()",
        ),
        (
            sample("a", meta={1: "v"}),
            observation(),
            "sample.meta must map text to text, got {1: 'v'}; convert it with str()",
        ),
        (
            sample("a"),
            observation(content_hash="00"),
            (
                "observation.content_hash of sample 'a' must be the SHA-256 of its data in 64 "
                "hexadecimal digits or empty, got '00'; leave it empty to have it computed"
            ),
        ),
    ],
)
def test_an_unusable_sample_is_refused_with_what_to_do(store, given, seen, message):
    assert told(InputError, lambda: store.put(given, seen, keep())) == message
    assert store.stats().seen == 0


def test_ids_of_one_and_of_512_bytes_are_fine(store):
    put(store, "a")
    put(store, "é" * 256)
    assert len(store) == 2


def test_a_priority_that_is_no_number_is_refused_with_the_lowest_one(store):
    decision = Decision(True, math.nan, None, "word")
    assert told(InputError, lambda: store.put(sample("a"), observation(), decision)) == (
        "decision.priority of sample 'a' must be a number, got nan; use -inf for the lowest"
    )


def test_what_sqlite_cannot_hold_is_refused_as_input(store):
    assert told(InputError, lambda: put(store, "a", predicted_class=2**63)).startswith(
        "texts must be UTF-8 and integers fit 64 bits, got: "
    )
    assert told(InputError, lambda: put(store, "a", predicted_class=2**63)).endswith(
        "; clean the sample or decision"
    )
    put(store, "a", predicted_class=2**63 - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"synchronous": "off"}, "synchronous must be one of ('full', 'normal'), got 'off'"),
        ({"timeout_s": -1}, "timeout_s must be in [0, 1e6), got -1"),
        ({"timeout_s": 1e6}, "timeout_s must be in [0, 1e6), got 1000000.0"),
        ({"min_free_bytes": -1}, "min_free_bytes must not be negative, got -1"),
    ],
)
def test_an_option_outside_its_range_is_named(tmp_path, options, message):
    assert told(InputError, lambda: RetentionStore(tmp_path / "s", budget_bytes=BUDGET, **options)) == message


def test_waiting_for_nothing_is_allowed(tmp_path):
    with RetentionStore(tmp_path / "s", budget_bytes=BUDGET, timeout_s=0) as store:
        put(store)
        assert len(store) == 1


@pytest.mark.parametrize(
    ("label", "name", "kind", "message"),
    [
        (
            -1,
            1,
            InputError,
            "label must be a class index (an integer from 0), or None to take a label back, got -1",
        ),
        (
            2**31,
            1,
            InputError,
            f"label must be a class index (an integer from 0), or None to take a label back, got {2**31}",
        ),
        (
            0,
            "b",
            StoreError,
            (
                "exactly one kept sample is needed to label, got 0 for 'b'; "
                "use the key of an iterated sample (it may have been evicted)"
            ),
        ),
        (
            0,
            99,
            StoreError,
            (
                "exactly one kept sample is needed to label, got 0 for 99; "
                "use the key of an iterated sample (it may have been evicted)"
            ),
        ),
    ],
)
def test_a_label_that_cannot_be_given_is_refused(store, label, name, kind, message):
    put(store, "a")
    assert told(kind, lambda: store.set_label(name, label)) == message
    for fine in (0, 2**31 - 1):
        store.set_label(1, fine)
        assert store.sample(1).human_label == fine


def test_a_closed_and_a_readonly_store_name_the_file(store):
    with RetentionStore.open_readonly(store.path) as reader:
        assert told(StoreError, lambda: put(reader)) == (
            f"the store must be open for writing, got {store.path} with readonly=True; open it without"
        )
    store.close()
    assert told(StoreError, lambda: put(store)) == (
        f"the store must be open, got a closed one; open {store.path} again"
    )


def test_files_that_are_no_store_are_named_with_what_they_are(tmp_path):
    path = tmp_path / "s"
    assert told(StoreError, lambda: RetentionStore.open_readonly(path)) == (
        f"a store is needed to read from, got no file {path}; check the path"
    )
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
    assert told(StoreError, lambda: RetentionStore(path, budget_bytes=BUDGET)) == (
        f"{path} must be a drip store (application_id 0x44524950), got an SQLite file of another program "
        "(application_id 0x0, 1 tables); choose another path"
    )


@pytest.mark.parametrize("version", [0, 4])
def test_a_file_of_an_unknown_version_is_refused(store, version):
    store._connection.execute(f"PRAGMA user_version = {version}")
    store.close()
    assert told(StoreError, lambda: RetentionStore(store.path)) == (
        f"{store.path} must have schema version 1 to 3, got {version}; "
        "it was written by a newer drip: upgrade drip to read it"
    )


def test_a_nested_transaction_and_a_check_inside_one_are_refused(store):
    with store.transaction():
        assert told(StoreError, lambda: store.transaction().__enter__()) == (
            "a transaction must be closed before the next begins, got a nested one; use the outer"
        )
        assert told(StoreError, store.check) == (
            "check() needs a committed state, got an open transaction; call it after the block"
        )


def test_a_swallowed_failure_is_quoted(store):
    with pytest.raises(StoreError) as caught, store.transaction(), contextlib.suppress(InputError):
        put(store, "a", predicted_class=2**63)
    assert str(caught.value) == (
        "every put of a transaction must succeed, got a swallowed failure "
        "(OverflowError('Python int too large to convert to SQLite INTEGER')); "
        "the transaction is rolled back: let the error leave its block"
    )


def test_settings_that_change_while_the_store_is_open_are_noticed(store):
    put(store, "a")
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        connection.execute("UPDATE settings SET value = '77' WHERE name = 'audit_rows'")
    assert told(StoreError, lambda: put(store, "b")) == (
        f"the settings of {store.path} must not change while it is open, got other ones from another "
        "process; open the store again"
    )
    assert not store._connection.in_transaction


def test_a_disk_at_its_floor_is_named_with_both_numbers(tmp_path):
    path = tmp_path / "s"
    with RetentionStore(path, budget_bytes=BUDGET, min_free_bytes=2**60) as store:
        message = told(StoreError, lambda: put(store))
    assert message.startswith(f"the disk of {path} must keep {2**60} bytes free (min_free_bytes), got ")
    assert message.endswith("; free some space and put again")
    assert int(message.split("got ")[1].split(";")[0]) > 1_000_000


def test_an_unknown_label_state_is_refused_with_the_known_ones(store):
    assert told(InputError, lambda: store.samples(label_state="maybe")) == (
        "label_state must be one of ['unlabelled', 'true', 'human'], got 'maybe'"
    )


def test_a_reader_that_blocks_the_log_is_named(store):
    space = store._writer.space
    put(store, "a")
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM kept").fetchone()
        put(store, "b")
        assert told(StoreError, lambda: space.prepare_log(space.layout.log_frames, 0)) == (
            f"the log of {store.path} must be reset to stay inside the budget, but a reader has held "
            "it for 0.1 s (timeout_s); end the reader's transaction and put again"
        )
        space.prepare_log(space.layout.log_frames - space.log_frames, 0)
    frames = space.log_frames
    space.prepare_log(space.layout.log_frames - frames, frames)
    assert space.log_frames == frames
    space.prepare_log(space.layout.log_frames - frames + 1, frames)
    assert space.log_frames == 0


def test_a_failing_write_names_the_file_and_the_cause(store):
    store.close()
    foreign = sqlite3.connect(store.path, isolation_level=None)
    with RetentionStore(store.path, timeout_s=0.05) as busy:
        foreign.execute("BEGIN IMMEDIATE")
        start = f"cannot write to {store.path}, got SQLITE_BUSY: database is locked; another process"
        assert told(StoreError, lambda: put(busy, "b")).startswith(start)
        assert told(StoreError, lambda: busy.transaction().__enter__()).startswith(start)
        foreign.close()


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
    with RetentionStore.open_readonly(store.path) as reader:
        assert told(StoreError, lambda: use(reader)) == (
            f"cannot read {store.path}, got SQLITE_ERROR: no such table: {table}; run check() on it"
        )


def test_a_failing_opening_names_the_file_and_the_cause(tmp_path):
    assert told(StoreError, lambda: RetentionStore(tmp_path, budget_bytes=BUDGET)) == (
        f"a file is needed at {tmp_path}, got a folder; choose another path"
    )
    text = tmp_path / "text"
    text.write_text("no database at all, " * 100)
    assert told(StoreError, lambda: RetentionStore(text, budget_bytes=BUDGET)).startswith(
        f"cannot open {text}, got SQLITE_NOTADB: file is not a database; it is damaged or no drip store: "
    )


@pytest.mark.parametrize(
    "origin", [{"a": math.nan}, {"a": object()}, object(), 5, {"a": {1, 2}}, {(1, 2): 3}]
)
def test_an_origin_that_is_no_json_is_refused(store, origin):
    message = told(InputError, lambda: store.note_origin("p", origin))
    assert message.startswith("origin must be an object of JSON with finite numbers, got one where ")
    assert message.endswith("; convert it")
    assert store.origins() == {}


@pytest.mark.parametrize(
    "use",
    [
        lambda store, text: store.note_origin(text, {}),
        lambda store, text: store.save_progress(Progress(None, {}, text)),
        lambda store, text: store.set_label("a", 1, annotator=text),
        lambda store, text: RetentionStore(
            store.path.with_name("b"), budget_bytes=BUDGET, policy_digest=text
        ),
    ],
)
def test_a_digest_or_a_name_of_any_length_is_refused(store, use):
    put(store, "a")
    for text in ("x" * 513, "\ud800", 5):
        assert " text, got " in told(InputError, lambda text=text: use(store, text))
    assert not store.path.with_name("b").exists()


def test_a_state_that_is_no_json_and_a_cursor_that_is_no_text_do_not_spoil_their_transaction(store):
    with store.transaction():
        put(store, "a")
        for progress in (Progress("c", {"a": object()}, "p"), Progress("\ud800", {}, "p")):
            assert told(InputError, lambda progress=progress: store.save_progress(progress)).startswith(
                ("selector_state must be an object of JSON, got ", "cursor must be UTF-8 text, got ")
            )
    assert len(store) == 1
