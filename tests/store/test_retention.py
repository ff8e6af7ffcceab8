"""What a store keeps, counts, refuses and gives back."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from making import DROP, LOGITS, keep, names, observation, put, sample

from drip.errors import InputError, StoreError
from drip.files import sha256_hex
from drip.store import LabelState, Outcome, RetentionStore
from drip.types import Decision, DurableSink, Observation, Progress, Sample

BUDGET = 1_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kept.drip"


@pytest.fixture
def store(path):
    with RetentionStore(path, budget_bytes=BUDGET, timeout_s=0.2) as opened:
        yield opened


def test_a_store_is_a_durable_sink(store):
    assert isinstance(store, DurableSink)


def test_a_kept_sample_comes_back_as_it_went_in(store):
    original = Sample(
        "a/b", b"\x00\xff" * 999, "audio/flac", label=2, time_s=12.5, meta={"site": "nörd", "k": "%s"}
    )
    scores = {"drip": 0.1, 'odd "name" %': -math.inf, "nan": math.nan, "np": np.float32(0.5)}
    store.put(
        original,
        Observation(np.int64(1), LOGITS, scores),
        Decision(np.True_, np.float64(0.5), 0.25, "margin"),
    )
    (record,) = store
    assert record.sample == original
    assert record.decision == Decision(True, 0.5, 0.25, "margin")
    assert record.predicted_class == 1
    assert record.content_hash == sha256_hex(original.data)
    assert math.isnan(record.scores.pop("nan"))
    assert record.scores == {"drip": 0.1, 'odd "name" %': -math.inf, "np": 0.5}
    again = store.sample(record.key)
    assert math.isnan(again.scores.pop("nan"))
    assert again == record


def test_a_discarded_sample_is_audited_but_not_kept(store):
    store.put(sample("a", time_s=3.0, label=2), observation(), DROP)
    assert len(store) == 0
    (row,) = store.audit()
    assert (row.sample_id, row.outcome, row.decision, row.label) == ("a", Outcome.DISCARDED, DROP, 2)
    assert row.observation.scores == {"drip": 0.5}
    assert row.observation.logits.tolist() == LOGITS.tolist()
    assert row.observation.time_s == 3.0


def test_logits_can_be_left_out_of_the_audit(path):
    with RetentionStore(path, budget_bytes=BUDGET, audit_logits=False) as store:
        put(store)
        assert next(store.audit()).logits.size == 0


def test_counts_add_up(store):
    put(store, "a", predicted_class=0)
    put(store, "b", predicted_class=2)
    put(store, "c", data=b"data of a", predicted_class=2)
    put(store, "a", predicted_class=0)
    store.put(sample("d", time_s=9.0), observation(1, time_s=5.0), DROP)
    store.put(sample("e"), observation(1, time_s=5.0), DROP)
    stats = store.stats()
    assert (stats.seen, stats.kept, stats.discarded, stats.duplicates, stats.redelivered) == (5, 2, 2, 1, 1)
    assert (stats.first_time_s, stats.last_time_s) == (5.0, 9.0)
    assert stats.kept_bytes == sum(len(record.sample.data) for record in store)
    assert {key: counts.kept for key, counts in stats.classes.items()} == {0: 1, 1: 0, 2: 1}
    assert 0 < stats.disk_bytes <= stats.budget_bytes == BUDGET
    assert store.check().ok


def test_the_same_content_under_another_id_is_counted_not_stored_twice(store):
    put(store, "a", data=b"same")
    put(store, "b", data=b"same")
    (record,) = store
    assert (record.sample.id, record.repeats) == ("a", 1)
    assert [row.outcome for row in store.audit()] == [Outcome.KEPT, Outcome.DUPLICATE]


def test_the_same_id_with_other_content_is_another_sample(store):
    put(store, "a", data=b"one")
    put(store, "a", data=b"two")
    assert len(store) == 2


@pytest.mark.parametrize("decision", [keep(), DROP])
def test_a_redelivered_decision_is_ignored_after_reopening(path, decision):
    for _ in range(2):
        with RetentionStore(path, budget_bytes=BUDGET) as store:
            store.put(sample("a"), observation(), decision)
            assert store.stats().seen == len(list(store.audit())) == 1
    assert store is not None


def test_a_second_policy_over_the_same_stream_is_recorded(store):
    for digest in ("p1", "p2"):
        store.save_progress(Progress(None, {}, digest))
        store.put(sample("a"), observation(), DROP)
    assert [row.policy_digest for row in store.audit()] == ["p1", "p2"]


def test_a_first_progress_saved_after_the_puts_names_their_policy(store):
    with store.transaction():
        put(store, "a")
        store.save_progress(Progress("1", {"n": 1}, "p1"))
    assert next(iter(store)).policy_digest == next(store.audit()).policy_digest == "p1"


def test_samples_can_be_filtered(store):
    store.put(sample("a", label=1), observation(0), keep())
    store.put(sample("b"), observation(1), keep())
    store.set_label("b", 2)
    put(store, "c")
    assert [r.sample.id for r in store.samples(predicted_class=1)] == ["b", "c"]
    assert [r.sample.id for r in store.samples(label_state="human")] == ["b"]
    assert [r.sample.id for r in store.samples(label_state=LabelState.TRUE)] == ["a"]
    assert [r.sample.id for r in store.samples(label_state="unlabelled")] == ["c"]
    assert list(store.samples(policy_digest="other")) == []
    with pytest.raises(InputError, match="label_state must be one of"):
        store.samples(label_state="maybe")


def test_a_human_label_wins_and_can_be_taken_back(store):
    store.put(sample("a", label=1), observation(), keep())
    store.set_label("a", 2, annotator="ada")
    (record,) = store
    assert (record.label, record.label_state, record.sample.label, record.annotator) == (
        2,
        LabelState.HUMAN,
        1,
        "ada",
    )
    store.set_label(record.key, None)
    (record,) = store
    assert (record.label, record.label_state) == (1, LabelState.TRUE)


def test_a_label_needs_exactly_one_sample(store):
    put(store, "a", data=b"1")
    put(store, "a", data=b"2")
    for name in ("a", "missing", 99):
        with pytest.raises(StoreError, match="exactly one kept sample"):
            store.set_label(name, 0)
    for label in (-1, 2**31, True, np.True_, 1.7, 1.0, np.float64(1.0), "1", b"1", [1], float("nan")):
        with pytest.raises(InputError, match=r"class index \(an integer from 0\)"):
            store.set_label(1, label)


def test_an_integer_of_numpy_is_a_label(store):
    put(store, "a")
    store.set_label("a", np.int64(3))
    assert store.sample(1).human_label == 3


def test_quarantine_keeps_the_sample_and_the_reason(store):
    store.quarantine(sample("q", b"broken", label=1, meta={"a": "b"}), "cannot be decoded")
    store.quarantine(sample("q", b"broken"), "cannot be decoded")
    store.quarantine(sample("r", b"broken"), "cannot be decoded")
    (row,) = store.quarantined()
    assert (row.sample, row.reason, row.repeats) == (
        sample("q", b"broken", label=1, meta={"a": "b"}),
        "cannot be decoded",
        1,
    )
    assert store.stats().quarantined == 1


def test_a_full_quarantine_gives_up_the_oldest_and_counts_it(store):
    for i in range(30):
        store.quarantine(sample(f"q{i}", bytes([i]) * 20_000), "broken")
    left = [row.sample.id for row in store.quarantined()]
    assert left == [f"q{i}" for i in range(30)][-len(left) :]
    assert 0 < len(left) == 30 - store.stats().quarantine_dropped
    assert store.check().ok


def test_keys_of_the_quarantine_never_come_again(path):
    keys = []
    with RetentionStore(path, budget_bytes=BUDGET) as store:
        most = store._writer.quarantine_shelf._max_row_bytes - 200
        for i in range(4):  # each takes the whole shelf
            store.quarantine(sample(f"q{i}", bytes([i]) * most), "broken")
            keys += [row.key for row in store.quarantined()]
        with contextlib.suppress(ZeroDivisionError), store.transaction():
            store.quarantine(sample("undone", bytes([9]) * most), "broken")
            _ = 1 / 0
    with RetentionStore(path) as store:
        store.quarantine(sample("q4", bytes([4]) * most), "broken")
        keys += [row.key for row in store.quarantined()]
        assert store.check().ok
    assert keys == [1, 2, 3, 4, 5]


def test_a_sample_too_big_for_the_quarantine_is_listed_without_its_data(store):
    store.quarantine(sample("q", bytes(900_000)), "broken")
    (row,) = store.quarantined()
    assert (row.sample.data, row.n_bytes) == (b"", 900_000)


def test_progress_commits_with_the_transaction(path):
    with RetentionStore(path, budget_bytes=BUDGET) as store:
        assert store.load_progress() is None
        progress = Progress("c1", {"window": [1.5, math.inf]}, "p1")
        with store.transaction():
            put(store, "a")
            store.save_progress(progress)
        with contextlib.suppress(ZeroDivisionError), store.transaction():
            put(store, "b")
            store.quarantine(sample("q"), "broken")
            store.save_progress(Progress("c2", {}, "p2"))
            1 / 0  # noqa: B018
        assert store.load_progress() == progress
        assert names(store) == ["a"]
        put(store, "c")
    with RetentionStore(path) as store:
        assert store.load_progress() == progress
        assert [(record.sample.id, record.policy_digest) for record in store] == [("a", "p1"), ("c", "p1")]
        assert store.stats().quarantined == 0
        assert store.check().ok


def test_a_swallowed_failure_inside_a_transaction_rolls_it_back(store, monkeypatch):
    put(store, "before")
    with pytest.raises(StoreError, match="swallowed"), store.transaction():  # noqa: PT012  # goes on after it
        put(store, "a")
        monkeypatch.setattr(store._writer, "_keep", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            put(store, "b")
        monkeypatch.undo()
        with pytest.raises(StoreError, match="swallowed"):
            put(store, "c")
    assert names(store) == ["before"]
    assert store.check().ok


def test_a_refused_sample_does_not_spoil_its_transaction(store):
    with store.transaction():
        put(store, "a")
        with pytest.raises(InputError):
            put(store, "b", priority=math.nan)
    assert names(store) == ["a"]


def test_transactions_do_not_nest(store):
    with pytest.raises(StoreError, match="nested"), store.transaction(), store.transaction():
        pass


def test_a_nan_priority_is_refused_and_infinite_ones_are_fine(store):
    with pytest.raises(InputError, match="priority"):
        put(store, priority=math.nan)
    for i, priority in enumerate((math.inf, -math.inf, -1.5)):
        put(store, f"s{i}", priority)
    assert [record.decision.priority for record in store] == [math.inf, -math.inf, -1.5]


@pytest.mark.parametrize("name", ["", "x" * 513, "é" * 257, "\ud800", None])
def test_an_unusable_id_is_refused(store, name):
    with pytest.raises(InputError, match=r"sample\.id"):
        store.put(Sample(name, b"x", "image/png"), observation(), keep())


def test_other_unusable_values_are_refused(store):
    with pytest.raises(InputError, match="must be bytes"):
        store.put(sample(data=bytearray(b"x")), observation(), keep())
    with pytest.raises(InputError, match="meta"):
        store.put(sample(meta={"a": 1}), observation(), keep())
    with pytest.raises(InputError, match="64 bits"):
        store.put(sample(), observation(2**70), keep())
    with pytest.raises(InputError, match="UTF-8"):
        store.put(sample(), observation(), Decision(True, 1.0, None, "\ud800"))
    for content_hash in ("nonsense", "ab" * 31, sha256_hex(b"other")):
        with pytest.raises(InputError, match="content_hash"):
            store.put(sample(), observation(content_hash=content_hash), keep())
    store.put(sample(), observation(content_hash=sha256_hex(sample().data)), keep())
    assert len(store) == 1
    assert store.check().ok


def test_a_sample_that_can_never_fit_is_refused_by_name_and_size(store):
    limit = store._writer.space.layout.max_sample_bytes
    with pytest.raises(StoreError, match=rf"fit {limit} bytes.*got \d+ bytes for sample 'huge'"):
        put(store, "huge", data=bytes(limit + 1))
    assert store.stats().seen == 0


@pytest.mark.parametrize("budget_bytes", [450_000, 1_000_000, 3_000_000])
def test_the_biggest_sample_fits_whatever_was_there(tmp_path, budget_bytes):
    with RetentionStore(tmp_path / "s", budget_bytes=budget_bytes) as store:
        biggest = store._writer.space.layout.max_sample_bytes - 1000
        for round_ in range(3):
            for i in range(150):
                put(store, f"{round_}-{i}", data=f"{round_}-{i}".encode() * 100, priority=0.0)
            store.quarantine(sample(f"q{round_}", bytes([round_]) * (budget_bytes // 50)), "broken")
            put(store, f"big{round_}", data=bytes([round_]) * biggest, priority=1.0)
            assert f"big{round_}" in names(store)
        assert store.check().problems == ()


def test_a_new_store_needs_a_sensible_budget(path):
    with pytest.raises(StoreError, match=r"budget_bytes is needed"):
        RetentionStore(path)
    with pytest.raises(StoreError, match=r"budget_bytes must be at least 39\d{4} .* got 1000"):
        RetentionStore(path, budget_bytes=1000)
    for bad in (-1, 0, True, 1e6):
        with pytest.raises(InputError, match="budget_bytes must be a positive integer"):
            RetentionStore(path, budget_bytes=bad)
    with pytest.raises(StoreError, match="log_bytes must be at least"):
        RetentionStore(path, budget_bytes=BUDGET, log_bytes=BUDGET - 1)
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
        RetentionStore(path, budget_bytes=BUDGET, **bad)
    assert not path.exists()


def test_settings_are_remembered(path):
    RetentionStore(path, budget_bytes=BUDGET, eviction="fifo", audit_rows=7, audit_logits=False).close()
    with RetentionStore(path) as store:
        settings = store._writer.settings
    assert (settings.budget_bytes, settings.eviction, settings.audit_rows, settings.audit_logits) == (
        BUDGET,
        "fifo",
        7,
        False,
    )


def test_the_audit_is_a_ring(path):
    with RetentionStore(path, budget_bytes=BUDGET, audit_rows=40) as store:
        for i in range(100):
            store.put(sample(f"s{i}"), observation(), DROP)
            assert store.stats().audit_rows <= 40
        assert [row.sample_id for row in store.audit()][-30:] == [f"s{i}" for i in range(70, 100)]
        assert store.stats().seen == 100


def test_a_reader_sees_committed_rows_and_cannot_write(store, path):
    put(store, "a")
    with RetentionStore.open_readonly(path) as reader, store.transaction():
        put(store, "b")
        assert names(reader) == ["a"]
        assert reader.stats().kept == 1
        assert reader.budget_bytes == BUDGET
        assert reader.check().ok
        for write in (lambda: put(reader), lambda: reader.set_label("a", 1), reader.transaction):
            with pytest.raises(StoreError, match="readonly"):
                write()
        with pytest.raises(StoreError, match="open transaction"):
            store.check()


def test_iterating_while_writing_holds_no_lock(store):
    for i in range(600):
        put(store, f"s{i:03}")
    seen = []
    for record in store:
        seen.append(record.sample.id)
        if len(seen) == 300:
            put(store, "late")
    assert seen == [f"s{i:03}" for i in range(600)] + ["late"]


def test_a_closed_store_says_so(store):
    store.close()
    store.close()
    for use in (lambda: put(store), store.stats, lambda: list(store), lambda: len(store)):
        with pytest.raises(StoreError, match="closed"):
            use()


def test_a_second_writer_waits_for_the_first_to_close_and_then_sees_all(store, path):
    import threading

    put(store, "a")
    with pytest.raises(StoreError, match="another writer has it open"):
        RetentionStore(path, timeout_s=0.1)
    counts = []

    def wait():
        with RetentionStore(path, timeout_s=30) as second:
            counts.append(len(second))

    waiting = threading.Thread(target=wait)
    waiting.start()
    put(store, "b")
    store.close()
    waiting.join()
    assert counts == [2]


def test_a_foreign_program_that_writes_makes_a_put_wait_and_then_fail_clearly(path):
    import sqlite3

    with RetentionStore(path, budget_bytes=BUDGET, timeout_s=0.1) as store:
        foreign = sqlite3.connect(path, isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process is writing"):
            put(store, "a")
        foreign.execute("ROLLBACK")
        foreign.close()
        put(store, "a")
        assert names(store) == ["a"]


def test_a_store_stays_with_its_thread(store):
    import threading

    caught = []

    def use():
        try:
            put(store)
        except StoreError as error:
            caught.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "thread that opened it" in caught[0]


def test_foreign_damaged_and_missing_files_are_refused_with_their_path(tmp_path):
    foreign = tmp_path / "foreign.sqlite"
    with contextlib.closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE t (x)")
    before = foreign.read_bytes()
    text = tmp_path / "text"
    text.write_text("no database at all, " * 100)
    for path in (foreign, text, tmp_path, tmp_path / "no" / "folder"):
        with pytest.raises(StoreError, match=str(path)):
            RetentionStore(path, budget_bytes=BUDGET)
    for path in (foreign, text, tmp_path, tmp_path / "missing"):
        with pytest.raises(StoreError, match=str(path)):
            RetentionStore.open_readonly(path)
    assert foreign.read_bytes() == before
    assert not (tmp_path / "missing").exists()


def test_an_empty_file_becomes_a_store(path):
    path.touch()
    with RetentionStore(path, budget_bytes=BUDGET) as store:
        put(store)
        assert len(store) == 1


def test_a_newer_version_is_refused(path):
    RetentionStore(path, budget_bytes=BUDGET).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    for options in ({}, {"readonly": True}):
        with pytest.raises(StoreError, match=r"99.*upgrade drip"):
            RetentionStore(path, **options)


def test_a_file_of_version_1_is_migrated_with_all_its_rows(path):
    path.write_bytes((Path(__file__).parent / "data" / "version1.drip").read_bytes())
    with pytest.raises(StoreError, match="open it once for writing"):
        RetentionStore.open_readonly(path)
    with RetentionStore(path) as store:
        assert names(store) == [f"s{i}" for i in range(5)]
        assert [record.label for record in store] == [0, 1, 0, 1, None]
        assert store.load_progress() == Progress("c6", {"n": 6}, "ab" * 32)
        assert store.stats().seen == 6
        store.set_label(5, 2, annotator="ada")
        assert store.sample(5).annotator == "ada"
        put(store, "new")
        assert store.check().ok
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_check_finds_damage(path):
    with RetentionStore(path, budget_bytes=BUDGET) as store:
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
        "'s1' (key 2) must have data",
        "row 3 of blobs",
        "'q'",
        "kept rows and bytes",
        "add up",
    ):
        assert part in problems


def test_check_survives_a_damaged_page(path):
    with RetentionStore(path, budget_bytes=BUDGET) as store:
        for i in range(200):
            put(store, f"s{i}", data=bytes([i]) * 700)
    data = bytearray(path.read_bytes())
    data[40 * 1024 : 60 * 1024] = bytes(20 * 1024)
    path.write_bytes(data)
    with RetentionStore.open_readonly(path) as store:
        assert not store.check().ok


def test_the_room_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import drip.store"
    subprocess.run([sys.executable, "-c", code], check=True)
