"""The writer's numbers match the file: announced pages, remembered counts, exact limits."""

from __future__ import annotations

import contextlib
import random
import re
import sqlite3
import threading

import pytest
from making import BUDGET, DROP, LOGITS, keep, observation, put, refused, sample

from drip.errors import StoreError, TransactionFullError
from drip.store import RetentionStore
from drip.store.budget import Layout
from drip.store.codec import ScoreCodec
from drip.store.eviction import AuditRing, ClassCounter, ClassCounters
from drip.store.put import prepare
from drip.store.reading import check
from drip.types import Decision, Progress, Sample


def announced_and_written(store, action):
    """Frames that an operation announced, and those that its commit wrote."""
    space = store._writer.space
    assert space.checkpoint(wait=True)
    assert space.log_frames == space._gauge.n_frames() == 0
    action()
    return space.log_frames, space._gauge.n_frames()


@pytest.mark.parametrize("n_bytes", [10, 5_000, 60_000, 200_000])
@pytest.mark.parametrize("kind", ["put", "quarantine", "progress"])
def test_an_operation_announces_what_it_writes_and_little_more(store, kind, n_bytes):
    n_bytes = min(n_bytes, 70_000) if kind == "quarantine" else n_bytes
    for i in range(20):
        put(store, f"s{i}", data=bytes([i]) * 3000)
    actions = {
        "put": lambda: put(store, "new", data=bytes(n_bytes)),
        "quarantine": lambda: store.quarantine(sample("q", bytes(n_bytes)), "broken"),
        "progress": lambda: store.save_progress(Progress("c", {"text": "x" * n_bytes}, "")),
    }
    announced, written = announced_and_written(store, actions[kind])
    assert n_bytes // 1024 < written <= announced <= written + 48


def test_a_label_announces_what_it_writes(store):
    put(store, "a")
    announced, written = announced_and_written(store, lambda: store.set_label("a", 1))
    assert 0 < written <= announced == 32


def test_a_discarded_large_sample_announces_no_pages_for_its_data(store):
    big = sample("big", bytes(100_000))
    announced, written = announced_and_written(store, lambda: store.put(big, observation(), DROP))
    assert 0 < written <= announced < 50


def test_only_progress_that_grows_evicts_samples_of_a_full_store(store):
    for i in range(400):
        put(store, f"s{i}", data=i.to_bytes(2, "big") * 1500)
    store.save_progress(Progress("c", {}, ""))
    before = store.stats().evicted
    store.save_progress(Progress("c", {"text": "x" * 100_000}, ""))
    grown = store.stats().evicted
    assert grown > before
    for i in range(20):
        store.save_progress(Progress(str(i), {"text": "x" * 100_000}, ""))
    assert store.stats().evicted == grown
    assert store.load_progress() == Progress("19", {"text": "x" * 100_000}, "")
    assert store.check().ok


def test_progress_that_can_never_fit_is_refused_with_its_size(store):
    limit = store._writer.space.layout.max_sample_bytes
    state = {"text": "x" * (limit - len('{"text":""}') - 64)}
    store.save_progress(Progress("ab", state, ""))
    with refused(StoreError, "store-budget", limit, BUDGET, limit + 64):
        store.save_progress(Progress("a" * 63, state, ""))
    assert store.load_progress().cursor == "ab"


def test_progress_that_changed_in_few_places_writes_only_these(store):
    numbers = [0.1] * 4000
    store.save_progress(Progress("9", {"text": "x" * 50_000, "numbers": numbers}, "p"))
    numbers[7], numbers[3990] = 1 / 3, -1.5e-300
    changed = Progress("a longer cursor", {"text": "x" * 50_000, "numbers": numbers}, "p")
    announced, written = announced_and_written(store, lambda: store.save_progress(changed))
    assert written <= 6 < announced <= written + 48
    assert store.load_progress() == changed
    assert store.check().ok


@pytest.mark.parametrize("changed", [Progress("b" * 80, {"n": 1}, "p"), Progress("b", {"n": 1, "m": 2}, "p")])
def test_progress_of_another_length_is_rewritten(store, changed):
    store.save_progress(Progress("b", {"n": 1}, "p"))
    store.save_progress(changed)
    assert store.load_progress() == changed


def test_progress_under_another_policy_is_recorded_with_it(path):
    with RetentionStore.open(path, budget_bytes=BUDGET) as store:
        store.save_progress(Progress("b", {"n": 1}, "p"))
    with RetentionStore.open(path, policy_digest="q") as store:
        store.save_progress(Progress("b", {"n": 1}, "q"))
        assert store.load_progress() == Progress("b", {"n": 1}, "q")


def test_a_failed_transaction_leaves_the_progress_unchanged(store):
    store.save_progress(Progress("b", {"n": 1}, "p"))
    with contextlib.suppress(ZeroDivisionError), store.transaction():
        store.save_progress(Progress("c", {"n": 2}, "p"))
        assert store.load_progress() == Progress("c", {"n": 2}, "p")
        1 / 0  # noqa: B018
    assert store.load_progress() == Progress("b", {"n": 1}, "p")


def test_a_refused_transaction_says_how_much_it_needed(store):
    layout = store._writer.space.layout
    with refused(TransactionFullError, "store-transaction-full", BUDGET) as caught, store.transaction():
        for i in range(2000):
            put(store, f"s{i}", data=bytes([i % 256, i // 256]) * 500)
    numbers = re.findall(r"(\d+) bytes so far .* up to (\d+) .* limit is (\d+)", str(caught.value))
    ((got, to_come, limit),) = [tuple(map(int, found)) for found in numbers]
    assert limit == layout.log_frames * 1048
    assert got <= limit < got + to_come
    assert got % 1048 == to_come % 1048 == 0


def test_a_prepared_put_counts_texts_logits_and_data():
    layout = Layout.plan(BUDGET)
    scores = {"drip": 0.5}
    given = Sample("id", bytes(5000), "image/png", 3, 1.5, {"k": "é"})
    options = {"layout": layout, "max_bytes": layout.max_sample_bytes, "scores": ScoreCodec()}
    options |= {"with_logits": True}
    kept = prepare(given, observation(2, time_s=9.0), Decision(True, 0.5, 0.25, "margin"), **options)
    n_texts = len('{"drip": 0.5}') + len("id") + len("margin") + len("image/png")
    assert kept.sample is given
    assert (kept.predicted_class, kept.retain, kept.priority, kept.probability) == (2, True, 0.5, 0.25)
    assert (kept.reason, kept.label, kept.time_s, kept.scores) == ("margin", 3, 1.5, '{"drip": 0.5}')
    assert kept.logits == LOGITS.astype("<f4").tobytes()
    assert kept.meta == '{"k": "\\u00e9"}'
    assert kept.row_bytes == 2 * n_texts + 12 + 96
    assert kept.audit_pages == 2
    n_pages = layout.pages_of(4 * n_texts + 12 + 5000 + len(kept.meta))
    assert (kept.n_pages, kept.n_frames) == (n_pages, 32 + n_pages + layout.map_pages_of(n_pages))
    dropped = prepare(given, observation(2, time_s=9.0), Decision(False, 0.5, None, "margin"), **options)
    assert (dropped.retain, dropped.probability, dropped.n_pages) == (False, None, 2)
    plain = prepare(sample("id"), observation(time_s=9.0), keep(), **(options | {"with_logits": False}))
    assert (plain.logits, plain.meta, plain.label, plain.time_s) == (None, None, None, 9.0)
    assert plain.row_bytes == 2 * (len(scores) * 13 + 2 + 6 + 9) + 96
    unknown = prepare(sample("id", time_s=float("nan")), observation(), keep(), **options)
    assert unknown.time_s is None


def test_texts_are_counted_in_bytes_and_at_their_upper_limit():
    layout = Layout.plan(BUDGET)
    limit = layout.max_sample_bytes
    options = {"layout": layout, "max_bytes": limit, "scores": ScoreCodec(), "with_logits": False}
    n_history = 4 * (13 + 1 + 6 + 9)
    assert prepare(sample("a", bytes(limit - n_history)), observation(), keep(), **options).n_pages > 200
    with refused(StoreError, "sample-too-large", "'a'", limit + 1, limit, BUDGET):
        prepare(sample("a", bytes(limit - n_history + 1)), observation(), keep(), **options)


def test_the_chunk_of_an_audit_trim_depends_on_its_rows_and_the_log():
    assert AuditRing(100_000, 1, 1000).trim_frames == 2 * 64 + 8
    assert AuditRing(640, 1, 1000).trim_frames == 2 * 20 + 8
    assert AuditRing(1, 1, 1000).trim_frames == 2 + 8
    assert AuditRing(100_000, 1, 12).trim_frames == 2 * 12 + 8
    ring = AuditRing(5, 100, 1)
    for rows, n_bytes, is_full in ((4, 99, False), (5, 0, True), (0, 100, True)):
        ring.rows, ring.bytes = rows, n_bytes
        assert ring.is_full == is_full


def test_the_audits_bytes_are_capped_at_a_quarter_of_the_file(store):
    most = store._writer.space.layout.audit_bytes
    rng = random.Random(0)
    for i in range(300):
        store.put(sample(f"{i}" + "x" * 400), observation(), Decision(False, rng.random(), None, "word"))
    ring = store._writer.ring
    count = "SELECT count(*), sum(row_bytes) FROM audit"
    assert store._connection.execute(count).fetchone() == (ring.rows, ring.bytes)
    assert most - 20_000 < ring.bytes <= most + 1000
    assert store.check().ok


def test_time_spans_and_counters_of_a_class():
    entry = ClassCounter(3)
    for time_s in (5.0, 2.0, 9.0, 4.0):
        entry.span(time_s)
    assert (entry.first_s, entry.last_s) == (2.0, 9.0)
    counters = ClassCounters()
    assert counters.span() == (None, None)
    counters.touch(3).span(5.0)
    counters.touch(4).span(7.0)
    counters.touch(3).seen += 2
    counters.touch(4).seen += 3
    counters.touch(5)
    assert (counters.n_dirty, counters.total("seen"), counters.span()) == (3, 5, (5.0, 7.0))


def test_a_reader_sees_the_numbers_of_the_writer(store):
    for i in range(30):
        store.quarantine(sample(f"q{i}", bytes([i]) * 20_000), "broken")
    put(store, "a", predicted_class=4)
    store.put(sample("d", time_s=3.0), observation(0), DROP)
    with RetentionStore.open_readonly(store.path) as reader:
        stats = reader.stats()
        assert stats == store.stats()
    assert stats.quarantine_dropped == 27
    assert (stats.quarantined, stats.audit_rows, stats.seen, list(stats.classes)) == (3, 2, 2, [0, 4])
    assert stats.classes[4].seen == stats.classes[4].kept == stats.classes[0].discarded == 1
    assert stats.classes[4].kept_bytes == len(sample("a").data)


def test_an_audit_row_has_everything_a_replay_needs(store):
    store.save_progress(Progress(None, {}, "policy"))
    store.put(Sample("a", b"12345", "image/png", 2, 7.5), observation(3), Decision(True, 0.75, 0.5, "margin"))
    (row,) = store.audit()
    assert (row.key, row.sample_id, row.decision) == (1, "a", Decision(True, 0.75, 0.5, "margin"))
    assert (row.predicted_class, row.label, row.n_bytes, row.time_s) == (3, 2, 5, 7.5)
    assert (dict(row.scores), row.logits.tolist(), row.policy_digest) == (
        {"drip": 0.5},
        LOGITS.tolist(),
        "policy",
    )
    assert (row.observation.n_bytes, row.observation.predicted_class) == (5, 3)


def test_check_counts_the_samples_and_reports_wrong_counters(store):
    for i in range(3):
        put(store, f"s{i}")
    assert (store.check().n_samples, store.check().path) == (3, str(store.path))
    store._connection.execute("UPDATE tally SET kept = 5, seen = 9")
    store._connection.execute("INSERT INTO tally VALUES (8, 1, 1, 1, 0, 0, 0, 0, NULL, NULL)")
    n_bytes = sum(len(record.sample.data) for record in store)
    problems = store.check().problems
    assert (
        f"class 1 counts (samples, bytes) (5, {n_bytes}), but the kept rows have (3, {n_bytes})" in problems
    )
    assert "class 8 counts (samples, bytes) (1, 1), but the kept rows have (0, 0)" in problems
    assert any(text.startswith("the counts of class 1 do not add up: ClassCounts(") for text in problems)


def test_check_reports_files_beyond_the_budget(store):
    put(store, "a")
    store.path.with_name(store.path.name + "-journal").write_bytes(bytes(BUDGET))
    (problem,) = store.check().problems
    assert problem.startswith("the files have ")
    assert problem.endswith(f"more than the budget of {BUDGET}")


def test_a_log_held_by_a_reader_is_reported_with_the_time_waited(store):
    put(store, "a")
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM kept").fetchone()
    put(store, "b")
    with refused(StoreError, "store-busy", store.path, "0.1 s"):
        store._writer.space.truncate_log()
    assert not store._writer.space.checkpoint(wait=False)
    assert store._connection.execute("PRAGMA busy_timeout").fetchone() == (100,)
    reader.close()
    store._writer.space.truncate_log()
    assert store._writer.space.log_frames == 0
    assert store.path.with_name(store.path.name + "-wal").stat().st_size == 0


def test_a_checkpoint_does_not_truncate_the_log_and_restores_the_timeout(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET, timeout_s=2.0) as store:
        put(store, "a", data=bytes(50_000))
        log = store.path.with_name("s-wal")
        n_bytes = log.stat().st_size
        assert n_bytes > 50_000
        assert store._writer.space.checkpoint(wait=False)
        assert log.stat().st_size == n_bytes
        assert store._connection.execute("PRAGMA busy_timeout").fetchone() == (2000,)


def test_duplicates_in_a_full_store_cost_no_more_than_their_audit_rows(store):
    for i in range(400):
        put(store, f"s{i}", priority=float(i), data=i.to_bytes(2, "big") * 2500)
    newest = (399).to_bytes(2, "big") * 2500
    before = store.stats()
    assert before.evicted > 0
    for i in range(20):
        put(store, f"again{i}", priority=1000.0, data=newest)
    after = store.stats()
    assert after.duplicates == 20
    assert after.evicted <= before.evicted + 3
    assert [record.repeats for record in store][-1] == 20
    assert store.check().ok


def test_check_of_a_file_that_is_not_a_database_counts_nothing(tmp_path):
    path = tmp_path / "s"
    path.write_bytes(b"no database at all, " * 100)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        report = check(connection, path, 2000)
        assert (report.n_samples, report.ok) == (0, False)
        assert report.problems == ("SQLite: file is not a database",)
        assert len(check(connection, path, 1999).problems) == 2


def test_check_reports_references_to_missing_rows(store):
    put(store, "a")
    store._connection.execute("UPDATE kept SET policy = 77")
    assert "row 1 of kept refers to a row of policies that does not exist" in store.check().problems
    store._connection.execute("DELETE FROM kept")
    assert "1 blobs belong to no kept sample" in store.check().problems


def test_samples_can_be_filtered_by_policy(store):
    for digest in ("p1", "p2"):
        store.save_progress(Progress(None, {}, digest))
        put(store, digest)
    assert [record.sample.id for record in store.samples(policy_digest="p2")] == ["p2"]
    both = {"policy_digest": "p1", "predicted_class": 1, "label_state": "unlabelled"}
    assert [record.sample.id for record in store.samples(**both)] == ["p1"]


def test_a_given_policy_digest_is_recorded_until_progress_names_another(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET, policy_digest="first") as store:
        put(store, "a")
        with pytest.raises(ZeroDivisionError), store.transaction():  # noqa: PT012  # rolled back on purpose
            store.save_progress(Progress(None, {}, "lost"))
            raise ZeroDivisionError
        put(store, "b")
        with store.transaction():
            put(store, "c")
            store.save_progress(Progress(None, {}, "second"))
            put(store, "d")
    with RetentionStore.open(tmp_path / "s") as store:
        put(store, "e")
        assert [record.policy_digest for record in store] == ["first", "first", "first", "second", "second"]
        assert [row.policy_digest for row in store.audit()] == ["first"] * 3 + ["second"] * 2


def test_no_policy_is_named_for_puts_of_earlier_transactions(store):
    put(store, "a")
    with store.transaction():
        put(store, "b")
        store.save_progress(Progress(None, {}, "p"))
        put(store, "c")
    assert [record.policy_digest for record in store] == ["", "p", "p"]


def test_an_evictor_stops_after_the_given_number_of_evictions(store):
    for i in range(400):
        put(store, f"s{i}", data=i.to_bytes(2, "big") * 1500)
    writer = store._writer
    before = store.stats().evicted
    with store.transaction():
        assert writer._evictor.make_room(300, None, at_most=3)
    assert store.stats().evicted == before + 3
    assert store.check().ok


def test_more_room_than_an_empty_store_has_is_refused(store):
    put(store, "a")
    with refused(StoreError, "store-budget", BUDGET, 10_000, 1024) as caught, store.transaction():
        store._writer._evictor.make_room(10_000, None)
    free = int(re.search(r"empty store has (-?\d+)", str(caught.value))[1])
    assert 500 < free < 619
    assert len(store) == 1


def test_audit_rows_are_deleted_when_evicting_everything_is_not_enough(store):
    for i in range(100):
        store.put(sample(f"s{i}"), observation(), DROP)
    put(store, "a")
    evictor, ring = store._writer._evictor, store._writer.ring
    with pytest.raises(ZeroDivisionError), store.transaction():  # noqa: PT012  # rolled back on purpose
        free = store._writer.space.look_up_free_pages()
        assert evictor.make_room(free + 2 - 48, None)
        assert store.stats().kept == 0
        assert 0 < ring.rows < 101
        raise ZeroDivisionError
    assert (store.stats().kept, ring.rows) == (1, 101)


def test_a_new_sample_with_the_lowest_priority_is_not_stored(store):
    for i in range(200):
        put(store, f"s{i}", priority=1.0, data=i.to_bytes(2, "big") * 2500)
    before = {record.key for record in store}
    for i in range(20):
        put(store, f"low{i}", priority=0.5, data=i.to_bytes(2, "big") * 2501)
    after = {record.key for record in store}
    assert after <= before
    assert len(before - after) <= 3  # for their rows in the audit
    counts = store.stats().classes[1]
    assert counts.evicted == store.stats().evicted == 220 - len(after)
    put(store, "again", priority=1.0, data=(199).to_bytes(2, "big") * 2500)
    assert store.stats().classes[1].duplicates == 1


def test_a_put_waits_for_a_reader_that_ends_in_time(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET, timeout_s=60.0) as store:
        space = store._writer.space
        put(store, "a")
        reader = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM kept").fetchone()
        put(store, "b")
        timer = threading.Timer(0.2, reader.close)
        timer.start()
        space.prepare_log(space.layout.log_frames, 0)
        timer.join()
        assert space.log_frames == 0


def test_a_checkpoint_blocked_by_a_reader_is_retried_only_after_more_frames(store, monkeypatch):
    space = store._writer.space
    put(store, "a")
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM kept").fetchone()
        put(store, "b")
        space.prepare_log(1, 0)
        assert space.log_frames > 0
        calls = []
        monkeypatch.setattr(space, "checkpoint", lambda *, wait: calls.append(wait) or False)
        space.prepare_log(1, 0)
        assert calls == []
        put(store, "c", data=bytes(80_000))
        space.prepare_log(1, 0)
        assert calls == [False]


def test_a_given_log_size_applies_from_the_first_opening(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET, log_bytes=500_000) as store:
        layout = store._writer.space.layout
        assert layout == Layout.plan(BUDGET, log_bytes=500_000) != Layout.plan(BUDGET)
    with RetentionStore.open(tmp_path / "s") as store:
        assert store._writer.space.layout == layout


def test_a_file_keeps_its_page_size_when_the_budget_grows(tmp_path):
    RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET).close()
    with RetentionStore.open(tmp_path / "s", budget_bytes=200_000_000) as store:
        layout = store._writer.space.layout
        assert layout == Layout.plan(200_000_000, page_size=1024)
        assert store._connection.execute("PRAGMA page_size").fetchone() == (1024,)
        assert store._connection.execute("PRAGMA max_page_count").fetchone() == (layout.max_pages,)


def test_a_smaller_limit_of_audit_rows_takes_effect_when_the_store_opens(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET) as store:
        for i in range(40):
            store.put(sample(f"s{i}"), observation(), DROP)
    with RetentionStore.open(tmp_path / "s", audit_rows=5) as store:
        assert [row.sample_id for row in store.audit()] == [f"s{i}" for i in range(35, 40)]
        assert store.stats().seen == 40
