"""The quarantine for samples that could not be used: what it accepts, cuts, counts and deletes."""

from __future__ import annotations

import contextlib
import json
import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import BUDGET, put, refused, sample

from drip.errors import InputError
from drip.store import RetentionStore
from drip.store.quarantine import QuarantineRow
from drip.types import Sample


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


def test_a_rejected_sample_comes_back_with_its_reason(store):
    rejected = Sample("q", b"{", "application/octet-stream", rejected="not a JSON object " + "x" * 400)
    store.quarantine(rejected, rejected.rejected)
    store.quarantine(sample("r", b"broken"), "truncated")
    first, second = store.quarantined()
    assert (first.sample, first.reason) == (rejected, rejected.rejected)
    assert second.sample.rejected is None


def test_a_rejected_sample_of_an_earlier_version_is_read(store, path):
    store.quarantine(sample("q", b"{", meta={"error": "no JSON"}), "no JSON")
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE quarantine SET media_type = 'application/octet-stream; error=no JSON'")
    with RetentionStore.open_readonly(path) as again:
        (row,) = again.quarantined()
    assert (row.sample.media_type, row.sample.rejected) == ("application/octet-stream", "no JSON")


def test_a_full_quarantine_deletes_the_oldest_sample_and_counts_it(store):
    for i in range(30):
        store.quarantine(sample(f"q{i}", bytes([i]) * 20_000), "broken")
    left = [row.sample.id for row in store.quarantined()]
    assert left == [f"q{i}" for i in range(30)][-len(left) :]
    assert 0 < len(left) == 30 - store.stats().quarantine_dropped
    assert store.check().ok


def test_keys_of_the_quarantine_are_never_reused(path):
    keys = []
    with RetentionStore.open(path, budget_bytes=BUDGET) as store:
        most = store._writer.quarantine_table._max_row_bytes - 200
        for i in range(4):  # each needs the whole table
            store.quarantine(sample(f"q{i}", bytes([i]) * most), "broken")
            keys += [row.key for row in store.quarantined()]
        with contextlib.suppress(ZeroDivisionError), store.transaction():
            store.quarantine(sample("undone", bytes([9]) * most), "broken")
            _ = 1 / 0
    with RetentionStore.open(path) as store:
        store.quarantine(sample("q4", bytes([4]) * most), "broken")
        keys += [row.key for row in store.quarantined()]
        assert store.check().ok
    assert keys == [1, 2, 3, 4, 5]


def test_a_sample_too_large_for_the_quarantine_is_listed_without_its_data(store):
    store.quarantine(sample("q", bytes(900_000)), "broken")
    (row,) = store.quarantined()
    assert (row.sample.data, row.n_bytes) == (b"", 900_000)


def test_the_quarantines_share_is_used_to_the_last_byte(store):
    table = store._writer.quarantine_table
    most = table._max_bytes
    n_texts = 3 * len("q0") + len("broken") + len("image/png") + 160
    for i in range(4):
        data = bytes([i]) * (most // 4 - n_texts)
        assert table.row_bytes(QuarantineRow.of(sample(f"q{i}", data), "broken")) == most // 4
        store.quarantine(sample(f"q{i}", data), "broken")
    assert (table.rows, table.bytes, table.dropped) == (4, most // 4 * 4, 0)
    store.quarantine(sample("q4", b"more", meta={"k": "é"}), "ü")
    assert (table.rows, table.dropped) == (4, 1)
    last = 3 * 2 + len("ü".encode()) + len("image/png") + len('{"k": "\\u00e9"}') + 160 + 4
    assert table.bytes == most // 4 * 3 + last
    assert [row.sample.id for row in store.quarantined()] == ["q1", "q2", "q3", "q4"]
    remembered = (table.rows, table.bytes, table.dropped)
    table.load()
    assert (table.rows, table.bytes, table.dropped) == remembered


def test_a_quarantined_sample_at_the_limit_keeps_its_data_and_one_beyond_does_not(store):
    most = store._writer.quarantine_table._max_row_bytes
    n_texts = 3 * 1 + len("broken") + len("image/png") + 160
    store.quarantine(sample("a", bytes(most - n_texts)), "broken")
    (whole,) = store.quarantined()
    assert len(whole.sample.data) == whole.n_bytes == most - n_texts
    store.quarantine(Sample("b", bytes(most - n_texts + 1), "audio/wav", 7, 2.5), "broken")
    (bare,) = store.quarantined()
    assert (bare.sample, bare.n_bytes) == (Sample("b", b"", "audio/wav", 7, 2.5), most - n_texts + 1)


def test_only_the_same_content_under_another_id_counts_as_a_repeat_in_quarantine(store):
    for name in ("q", "q", "q", "r"):
        store.quarantine(sample(name, b"broken"), "broken")
    (row,) = store.quarantined()
    assert (row.sample.id, row.repeats) == ("q", 1)


# -- values that are too long or unusable ----------------------------------------------------------------------


@pytest.mark.parametrize("budget_bytes", [400_000, 600_000, 5_000_000])
def test_texts_of_any_length_are_cut_and_evict_almost_nothing(path, budget_bytes):
    with RetentionStore.open(path, budget_bytes=budget_bytes) as store:
        for i in range(200):
            put(store, f"s{i}", data=i.to_bytes(2, "big") * 1500)
        n_kept = len(store)
        store.quarantine(
            Sample("i" * 10**6, b"z", "m" * 10**6, meta={"x": "y" * 900_000, "small": "stays"}), "r" * 10**6
        )
        assert len(store) >= n_kept - 20
        (row,) = store.quarantined()
        assert (row.sample.id, row.sample.media_type) == ("i" * 512, "m" * 255)
        assert (row.sample.data, dict(row.sample.meta)) == (b"z", {"small": "stays"})
        assert row.reason == "r" * 1024 + (
            " [cut: id, 1000000 bytes; media type, 1000000 bytes; reason, 1000000 bytes; "
            "meta, 1 of 2 pairs left out]"
        )
        assert store.check().ok


def test_a_sample_within_the_limits_comes_back_whole(store):
    whole = Sample("é" * 256, b"z", "m" * 255, meta={"k": "v" * (4096 - len('{"k": ""}') - 2)})
    store.quarantine(whole, "é" * 512)
    (row,) = store.quarantined()
    assert (row.sample, row.reason) == (whole, "é" * 512)


def test_many_small_pairs_of_metadata_are_kept_up_to_the_limit(store):
    meta = {f"key {i}": "é" * 5 for i in range(1000)}
    store.quarantine(sample("q", meta=meta), "broken")
    (row,) = store.quarantined()
    n_kept = len(row.sample.meta)
    assert dict(list(meta.items())[:n_kept]) == row.sample.meta
    assert 3900 < len(json.dumps(row.sample.meta)) <= 4096
    assert row.reason == f"broken [cut: meta, {1000 - n_kept} of 1000 pairs left out]"


@given(
    sample_id=st.text(st.characters(), max_size=600),
    media_type=st.text(st.characters(), max_size=300),
    reason=st.text(st.characters(), max_size=1100),
    meta=st.dictionaries(st.text(st.characters()), st.text(st.characters(), max_size=2000) | st.integers()),
    label=st.none() | st.integers() | st.floats() | st.text(max_size=3),
    time_s=st.none() | st.floats() | st.text(max_size=3) | st.just(10**400),
)
@settings(
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_sample_is_accepted(store, sample_id, media_type, reason, meta, label, time_s):
    seen = store.stats().quarantined + store.stats().quarantine_dropped
    data = f"{seen} is new".encode()
    store.quarantine(Sample(sample_id, data, media_type, label, time_s, meta), reason)
    *_, row = store.quarantined()
    assert row.sample.data == data
    assert store._connection.execute("SELECT max(row_bytes) FROM quarantine").fetchone()[0] < 9_000


@pytest.mark.parametrize(
    ("given_sample", "part"),
    [
        (Sample("a", "text", "image/png"), "data is str"),
        (Sample(None, b"x", "image/png"), "id of a sample is NoneType"),
    ],
)
def test_values_of_the_wrong_type_are_refused_even_by_the_quarantine(store, given_sample, part):
    with refused(InputError, "sample-rejected", part):
        store.quarantine(given_sample, "broken")
