"""What a store keeps, counts, refuses and returns."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys

import numpy as np
import pytest
from making import BUDGET, DROP, LOGITS, keep, names, observation, put, refused, sample

from drip.errors import InputError, StoreError
from drip.files import sha256_hex
from drip.store import LabelState, Outcome, RetentionStore
from drip.types import Decision, DurableSink, Observation, Progress, Sample


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
    with RetentionStore.open(path, budget_bytes=BUDGET, audit_logits=False) as store:
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


def test_the_same_content_under_another_id_is_counted_but_not_stored_twice(store):
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
        with RetentionStore.open(path, budget_bytes=BUDGET) as store:
            store.put(sample("a"), observation(), decision)
            assert store.stats().seen == len(list(store.audit())) == 1
    assert store is not None


def test_a_second_policy_over_the_same_stream_is_recorded(store):
    for digest in ("p1", "p2"):
        store.save_progress(Progress(None, {}, digest))
        store.put(sample("a"), observation(), DROP)
    assert [row.policy_digest for row in store.audit()] == ["p1", "p2"]


def test_a_first_progress_after_the_puts_names_their_policy(store):
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
    with refused(InputError, "bad-argument", "label_state"):
        store.samples(label_state="maybe")


def test_a_human_label_overrides_and_can_be_removed(store):
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
        with refused(StoreError, "sample-unknown", repr(name)):
            store.set_label(name, 0)
    for label in (-1, 2**31, True, np.True_, 1.7, 1.0, np.float64(1.0), "1", b"1", [1], float("nan")):
        with refused(InputError, "bad-argument", "label="):
            store.set_label(1, label)


def test_an_integer_of_numpy_is_a_label(store):
    put(store, "a")
    store.set_label("a", np.int64(3))
    assert store.sample(1).human_label == 3


def test_progress_commits_with_the_transaction(path):
    with RetentionStore.open(path, budget_bytes=BUDGET) as store:
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
    with RetentionStore.open(path) as store:
        assert store.load_progress() == progress
        assert [(record.sample.id, record.policy_digest) for record in store] == [("a", "p1"), ("c", "p1")]
        assert store.stats().quarantined == 0
        assert store.check().ok


def test_a_swallowed_failure_inside_a_transaction_rolls_it_back(store, monkeypatch):
    put(store, "before")
    with refused(StoreError, "store-transaction", "ZeroDivisionError"), store.transaction():
        put(store, "a")
        monkeypatch.setattr(store._writer.recorder, "_keep", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            put(store, "b")
        monkeypatch.undo()
        with refused(StoreError, "store-transaction"):
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
    with refused(StoreError, "store-transaction"), store.transaction(), store.transaction():
        pass


def test_a_nan_priority_is_refused_and_infinite_ones_are_fine(store):
    with refused(InputError, "bad-argument", "priority"):
        put(store, priority=math.nan)
    for i, priority in enumerate((math.inf, -math.inf, -1.5)):
        put(store, f"s{i}", priority)
    assert [record.decision.priority for record in store] == [math.inf, -math.inf, -1.5]


@pytest.mark.parametrize("name", ["", "x" * 513, "é" * 257, "\ud800", None])
def test_an_unusable_id_is_refused(store, name):
    with refused(InputError, "sample-rejected", "sample.id"):
        store.put(Sample(name, b"x", "image/png"), observation(), keep())


def test_other_unusable_values_are_refused(store):
    with refused(InputError, "sample-rejected", "bytearray"):
        store.put(sample(data=bytearray(b"x")), observation(), keep())
    with refused(InputError, "sample-rejected", "meta"):
        store.put(sample(meta={"a": 1}), observation(), keep())
    with refused(InputError, "sample-rejected", "64 bits"):
        store.put(sample(), observation(2**70), keep())
    with refused(InputError, "bad-argument", "decision.reason"):
        store.put(sample(), observation(), Decision(True, 1.0, None, "\ud800"))
    for content_hash in ("nonsense", "ab" * 31, sha256_hex(b"other")):
        with refused(InputError, "bad-argument", "content_hash"):
            store.put(sample(), observation(content_hash=content_hash), keep())
    store.put(sample(), observation(content_hash=sha256_hex(sample().data)), keep())
    assert len(store) == 1
    assert store.check().ok


def test_a_sample_that_can_never_fit_is_refused_by_name_and_size(store):
    limit = store._writer.space.layout.max_sample_bytes
    with refused(StoreError, "sample-too-large", limit, "'huge'"):
        put(store, "huge", data=bytes(limit + 1))
    assert store.stats().seen == 0


@pytest.mark.parametrize("budget_bytes", [450_000, 1_000_000, 3_000_000])
def test_the_largest_sample_fits_whatever_the_store_contains(tmp_path, budget_bytes):
    with RetentionStore.open(tmp_path / "s", budget_bytes=budget_bytes) as store:
        biggest = store._writer.space.layout.max_sample_bytes - 1000
        for round_ in range(3):
            for i in range(150):
                put(store, f"{round_}-{i}", data=f"{round_}-{i}".encode() * 100, priority=0.0)
            store.quarantine(sample(f"q{round_}", bytes([round_]) * (budget_bytes // 50)), "broken")
            put(store, f"big{round_}", data=bytes([round_]) * biggest, priority=1.0)
            assert f"big{round_}" in names(store)
        assert store.check().problems == ()


def test_the_audit_deletes_its_oldest_rows(path):
    with RetentionStore.open(path, budget_bytes=BUDGET, audit_rows=40) as store:
        for i in range(100):
            store.put(sample(f"s{i}"), observation(), DROP)
            assert store.stats().audit_rows <= 40
        assert [row.sample_id for row in store.audit()][-30:] == [f"s{i}" for i in range(70, 100)]
        assert store.stats().seen == 100


def test_iterating_while_writing_holds_no_lock(store):
    for i in range(600):
        put(store, f"s{i:03}")
    seen = []
    for record in store:
        seen.append(record.sample.id)
        if len(seen) == 300:
            put(store, "late")
    assert seen == [f"s{i:03}" for i in range(600)] + ["late"]


def test_the_store_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import drip.store"
    subprocess.run([sys.executable, "-c", code], check=True)
