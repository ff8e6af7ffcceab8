"""The budget at every moment, for any size of batches, metadata and texts; and puts that can never fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from making import keep, names, observation, put, refused, sample
from test_small_budget import disk_bytes, put_in_halves

from drip.errors import InputError, SampleTooLargeError, StoreError
from drip.store import Origin, RetentionStore
from drip.types import Decision, Progress


class WatchedStore:
    """A store whose files are measured before every statement and behind every put and commit."""

    def __init__(self, store, folder):
        self._store = store
        self._folder = folder
        self.most_bytes = 0
        store._connection.set_trace_callback(self.look)

    def look(self, _statement=""):
        self.most_bytes = max(self.most_bytes, disk_bytes(self._folder))

    def transaction(self):
        return self._store.transaction()

    def put(self, *items):
        self._store.put(*items)
        self.look()


def some_samples(n, n_bytes, n_meta, rng, retained):
    for index in range(n):
        meta = {"x": "y" * n_meta} if n_meta else {}
        decision = Decision(bool(rng.random() < retained), float(rng.random()), None, "margin")
        yield sample(f"{n}-{index}", rng.bytes(n_bytes), meta=meta), observation(), decision


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget_bytes", "n", "n_bytes", "n_meta", "retained"),
    [
        (400_000, 1500, 150, 0, 1.0),
        (600_000, 3000, 150, 0, 1.0),
        (600_000, 300, 300, 3000, 1.0),
        (600_000, 1500, 150, 0, 0.5),
        (600_000, 2000, 10, 0, 0.0),
        (1_000_000, 300, 300, 9000, 1.0),
        (2_000_000, 5000, 150, 0, 1.0),
        (2_000_000, 60, 90_000, 0, 1.0),
    ],
)
def test_a_batch_of_any_size_stays_inside_the_budget(tmp_path, budget_bytes, n, n_bytes, n_meta, retained):
    rng = np.random.default_rng(3)
    with RetentionStore.open(tmp_path / "s", budget_bytes=budget_bytes) as store:
        watched = WatchedStore(store, tmp_path)
        put_in_halves(watched, list(some_samples(n, n_bytes, n_meta, rng, retained)))
        put_in_halves(watched, list(some_samples(n - 1, n_bytes, n_meta, rng, retained)))
        watched.look()
        assert store.stats().seen == 2 * n - 1
        assert 100_000 < watched.most_bytes <= budget_bytes
        assert store.check().ok


def test_frames_of_an_unfinished_transaction_are_counted_and_cut_after_a_rollback(store):
    space = store._writer.space
    with pytest.raises(ZeroDivisionError), store.transaction():  # noqa: PT012  # rolled back on purpose
        for i in itertools.count():
            put(store, f"s{i}", data=i.to_bytes(2, "big") * 200)
            n_frames = space._gauge.n_frames()
            if space._gauge.has_loose_frames:
                break
        n_bytes = store.path.with_name("s-wal").stat().st_size
        assert n_frames == (n_bytes - 32) // (space.layout.page_size + 24)
        raise ZeroDivisionError
    assert space._gauge.has_loose_frames
    assert space.checkpoint(wait=True)
    assert store.path.with_name("s-wal").stat().st_size == 0


# -- puts that can never fit --------------------------------------------------------------------------------

HUGE = 900_000


@pytest.mark.parametrize(
    ("given", "decision"),
    [
        (sample("bad", meta={"x": "y" * HUGE}), keep()),
        (sample("bad", bytes(HUGE)), keep()),
        (sample("bad"), Decision(True, 1.0, None, "r" * HUGE)),
        (sample("bad"), Decision(False, 1.0, None, "r" * HUGE)),
        (sample("bad"), Decision(True, 1.0, None, "\U0001f600" * 25_000)),
    ],
)
def test_a_put_that_can_never_fit_is_refused_before_anything_is_evicted(path, given, decision):
    with RetentionStore.open(path, budget_bytes=600_000) as store:
        for i in range(200):
            put(store, f"s{i}", data=i.to_bytes(2, "big") * 1500)
        before, stats = names(store), store.stats()
        for shadow in (None, True):
            with refused(SampleTooLargeError, "sample-too-large", "'bad'"):
                store.put(given, observation(), decision, keep=shadow)
        assert names(store) == before
        assert store.stats() == stats


@pytest.mark.parametrize("budget_bytes", [600_000, 2_000_000])
def test_a_large_rule_state_leaves_less_room_for_the_largest_sample(path, budget_bytes):
    with RetentionStore.open(path, budget_bytes=budget_bytes) as store:
        most = store._writer.space.layout.max_sample_bytes
        store.save_progress(Progress("c", {"text": "x" * (most - 100)}, ""))
        for i in range(50):
            put(store, f"s{i}", data=bytes([i]) * 1000)
        before = names(store)
        limit = store._writer._max_sample_bytes
        with pytest.raises(SampleTooLargeError):
            put(store, "big", data=bytes(limit), priority=9.0)
        assert names(store) == before
        put(store, "fits", data=bytes(limit - 200), priority=9.0)
        assert "fits" in names(store)
        assert store.check().ok


def test_large_metadata_count_as_room_that_an_eviction_frees(path):
    with RetentionStore.open(path, budget_bytes=600_000) as store:
        for i in range(300):
            store.put(sample(f"s{i}", meta={"x": "y" * 3000}), observation(), keep())
        n_kept = len(store)
        store.put(sample("new", meta={"x": "y" * 3000}), observation(), keep())
        assert len(store) >= n_kept - 3


@pytest.mark.slow
def test_duplicates_count_the_pages_of_their_audit_rows(path):
    with RetentionStore.open(path, budget_bytes=600_000) as store:
        put(store, "first", data=b"same")
        for i in range(3000):
            store.put(sample(f"again{i}", b"same"), observation(), keep())
            assert store._writer.space.free_pages <= free_pages(store)
        assert store.stats().duplicates == 3000


def free_pages(store):
    space = store._writer.space
    believed = space.free_pages
    found = space.look_up_free_pages()
    space.free_pages = believed
    return found


@pytest.mark.parametrize(
    "given",
    [
        sample("bad", label=2**70),
        sample("bad", label="cat"),
        sample("bad", label=float("nan")),
        sample("bad", time_s="noon"),
        sample("\ud800", b"x"),
    ],
)
def test_an_unusable_label_time_or_text_is_refused_and_does_not_spoil_its_transaction(store, given):
    with store.transaction():
        put(store, "a")
        with refused(InputError, "sample-rejected"):
            store.put(given, observation(), keep())
        put(store, "b")
    assert names(store) == ["a", "b"]


def test_more_origins_than_fit_are_refused_before_anything_is_evicted_for_them(path):
    with RetentionStore.open(path, budget_bytes=450_000) as store:
        origin = Origin((), {"x": "y" * 3967})
        for i in range(22):
            store.note_origin(f"p{i}", origin)
        for i in range(22, 26):
            with refused(StoreError, "store-budget", 90_720):
                store.note_origin(f"p{i}", origin)
        assert len(store.origins()) == 22
        store.quarantine(sample("q"), "broken")
        assert store.check().ok


def test_a_budget_too_small_for_the_progress_is_refused_before_anything_is_evicted(path):
    with RetentionStore.open(path, budget_bytes=2_000_000) as store:
        store.save_progress(Progress("c", {"x": "y" * 200_000}, ""))
        put(store, "a")
    with refused(StoreError, "store-budget", 400_000, path):
        RetentionStore.open(path, budget_bytes=400_000)
    with RetentionStore.open(path) as store:
        assert (names(store), store.budget_bytes) == (["a"], 2_000_000)


def test_a_label_and_a_repeat_make_room_to_rewrite_a_row_with_large_metadata(path):
    with RetentionStore.open(path, budget_bytes=2_000_000, eviction="fifo") as store:
        for i in range(40):
            store.put(sample(f"s{i}", meta={"x": f"{i}" * 40_000}), observation(), keep())
        for i in range(30):
            newest = max(record.key for record in store)
            store.set_label(newest, i)
            store.put(sample(f"r{i}", store.sample(newest).sample.data), observation(), keep())
            store.put(sample(f"n{i}", meta={"x": "y" * 10_000 * i}), observation(), keep())
            assert store.stats().disk_bytes <= 2_000_000
        assert store.stats().duplicates == 30
        assert store.check().ok
