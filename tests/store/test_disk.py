"""The budget holds at every moment, and a full disk only fails the put that meets it."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import threading

import pytest
from making import keep, names, observation, put, refused, sample
from support import lacks
from tracing import build_tracer, trace

from drip.errors import StoreError
from drip.store import Outcome, RetentionStore
from drip.store.connection import disk_bytes

BUDGET = 600_000


class Watch(threading.Thread):
    """Looks at the sizes of the files all the time."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path = path
        self.most = 0
        self.n_looks = 0
        self.is_done = False

    def run(self):
        while not self.is_done:
            self.most = max(self.most, disk_bytes(self.path))
            self.n_looks += 1


@pytest.mark.parametrize("eviction", ["priority", "fifo"])
@pytest.mark.parametrize("budget_bytes", [BUDGET, 2_500_000])
def test_the_budget_holds_at_every_moment(tmp_path, eviction, budget_bytes):
    path = tmp_path / "s"
    rng = random.Random(3)
    largest = budget_bytes // 12
    with RetentionStore.open(path, budget_bytes=budget_bytes, eviction=eviction, timeout_s=0.05) as store:
        watch = Watch(path)
        watch.start()
        written = 0
        number = 0
        while written < 6 * budget_bytes:
            block = store.transaction() if number % 3 else contextlib.nullcontext()
            with block:
                for _ in range(3):
                    number += 1
                    data = rng.randbytes(int(rng.choice([10, 300, 5000, largest]) * (0.5 + rng.random() / 2)))
                    written += len(data)
                    put(store, f"s{number}", rng.random(), data)
            if number % 50 == 0:
                store.quarantine(sample(f"q{number}", rng.randbytes(3000)), "broken")
            assert disk_bytes(path) <= budget_bytes
        watch.is_done = True
        watch.join()
        assert store.check().problems == ()
        assert store.stats().evicted > 0
    assert 0 < watch.most <= budget_bytes


@pytest.mark.parametrize("is_batched", [False, True])
def test_a_reader_that_holds_the_log_makes_puts_fail_but_keeps_the_budget(tmp_path, is_batched):
    path = tmp_path / "s"
    with RetentionStore.open(path, budget_bytes=BUDGET, timeout_s=0.05) as store:
        put(store, "first")
        n_acknowledged = 0
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM kept").fetchone()
            with refused(StoreError, "store-busy", "reader"):
                for i in range(2000):
                    with store.transaction() if is_batched else contextlib.nullcontext():
                        put(store, f"s{i}", data=bytes([i % 256, i // 256]) * 500)
                    n_acknowledged += 1
                    assert disk_bytes(path) <= BUDGET
            assert disk_bytes(path) <= BUDGET
            assert n_acknowledged > 5
            reader.execute("ROLLBACK")
        put(store, "last", data=b"last")
        assert store.stats().seen == n_acknowledged + 2
        assert store.check().ok


def test_a_transaction_larger_than_the_log_is_rolled_back_as_a_whole(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET) as store:
        put(store, "before")
        with (
            refused(StoreError, "store-transaction-full"),
            store.transaction(),
        ):
            for i in range(2000):
                put(store, f"s{i}", data=bytes([i % 256, i // 256]) * 500)
        assert i > 20
        assert names(store) == ["before"]
        assert disk_bytes(store.path) <= BUDGET
        put(store, "after")
        assert store.check().ok


def test_a_smaller_budget_evicts_and_shrinks_before_the_store_opens(tmp_path):
    path = tmp_path / "s"
    with RetentionStore.open(path, budget_bytes=3_000_000) as store:
        for i in range(0, 1200, 20):
            with store.transaction():
                for j in range(i, i + 20):
                    put(store, f"s{j}", priority=j * 7919 % 1200, data=j.to_bytes(2, "big") * 700)
        before = {record.key: record.decision.priority for record in store}
    watch = Watch(path)
    watch.start()
    with RetentionStore.open(path, budget_bytes=BUDGET) as store:
        assert disk_bytes(path) <= BUDGET
        after = {record.key for record in store}
        assert 0 < len(after) < len(before)
        assert min(before[key] for key in after) > max(before[key] for key in before.keys() - after)
        assert store.stats().evicted == 1200 - len(after)
        assert store.check().problems == ()
        put(store, "new", priority=9999)
    with refused(StoreError, "store-budget"):
        RetentionStore.open(path, budget_bytes=1000)
    watch.is_done = True
    watch.join()
    assert watch.most <= 3_000_000


def test_priority_eviction_removes_the_lowest_then_the_oldest(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET) as store:
        kept: dict[int, float] = {}
        rng = random.Random(5)
        for i in range(300):
            put(store, f"s{i}", priority=float(rng.randrange(40)), data=rng.randbytes(rng.randrange(1, 9000)))
            now = {record.key: record.decision.priority for record in store}
            key = i + 1
            everything = {
                **kept,
                key: next(r.decision.priority for r in reversed(list(store.audit())) if r.key == key),
            }
            evicted = everything.keys() - now.keys()
            order = sorted(everything, key=lambda k: (everything[k], k))
            others = [k for k in order if k != key]
            assert evicted - {key} == set(others[: len(evicted - {key})])
            if key in evicted:  # those below it would not have made enough room
                assert everything[others[-1]] > everything[key]
            kept = now
        outcomes = {row.key: row.outcome for row in store.audit()}
        assert {key for key, outcome in outcomes.items() if outcome is Outcome.KEPT} == set(kept)
        assert Outcome.EVICTED in outcomes.values()


def test_fifo_eviction_removes_the_oldest_whatever_arrives(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET, eviction="fifo") as store:
        for i in range(200):
            put(store, f"s{i}", priority=-float(i), data=i.to_bytes(2, "big") * 2000)
        left = names(store)
        assert left == [f"s{i}" for i in range(200 - len(left), 200)]
        assert 5 < len(left) < 200


def test_a_clock_that_jumps_back_does_not_change_which_samples_are_the_oldest(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET, eviction="fifo") as store:
        for i in range(200):  # every sample an hour before the last one
            time_s = 1e9 - 3600.0 * i
            data = i.to_bytes(2, "big") * 2000
            store.put(sample(f"s{i}", data, time_s=time_s), observation(time_s=time_s), keep())
        left = names(store)
        assert left == [f"s{i}" for i in range(200 - len(left), 200)]
        assert store.stats().evicted == 200 - len(left) > 0
        assert store.check().ok


def test_the_disk_floor_is_kept(tmp_path):
    with (
        RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET, min_free_bytes=2**60) as store,
        refused(StoreError, "store-disk-full", "min_free_bytes"),
    ):
        put(store)
    with RetentionStore.open(tmp_path / "s", min_free_bytes=1) as store:
        put(store)
        assert len(store) == 1


FULL_DISK = """
import sys, pathlib
from drip.errors import StoreError
from drip.store import RetentionStore
from making import put, names
flag = pathlib.Path(sys.argv[2])
batched = sys.argv[3] == "batched"
with RetentionStore.open(sys.argv[1] + "/s", budget_bytes=450_000) as store:
    done = []
    n_errors = 0
    for i in range(150):
        if i % 15 == 10:
            flag.touch()
        try:
            if batched:
                with store.transaction():
                    put(store, f"s{i}", data=bytes([i]) * 300)
                    put(store, f"t{i}", data=bytes([i]) * 301)
            else:
                put(store, f"s{i}", data=bytes([i]) * (5000 if i % 2 else 300))
            done.append(i)
        except StoreError as error:
            assert error.code == "store-disk-full", error
            n_errors += 1
        if i % 15 == 14:
            flag.unlink()
            assert store.check().problems == (), store.check()
    audited = {row.sample_id for row in store.audit()}
    assert {f"s{i}" for i in done} == {name for name in audited if name[0] == "s"}
    assert n_errors > 0, n_errors
    put(store, "after")
    assert store.check().ok
"""


@pytest.mark.parametrize("kind", ["single", "batched"])
def test_a_full_disk_loses_nothing_and_the_store_goes_on_afterwards(tmp_path, kind):
    flag = tmp_path / "full"
    trace(build_tracer(tmp_path), tmp_path / "store", FULL_DISK, str(flag), kind, full_flag=flag)


def test_a_really_full_file_system_loses_nothing(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", mount]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        lacks("mounting a small tmpfs needs root; the test with a simulated full disk covers the rest")
    try:
        with RetentionStore.open(mount / "s", budget_bytes=3_000_000) as store:
            acknowledged = []
            with refused(StoreError, "store-disk-full"):
                for i in range(2000):
                    put(store, f"s{i}", data=i.to_bytes(2, "big") * 400)
                    acknowledged.append(f"s{i}")
            assert len(acknowledged) > 20
            assert names(store) == acknowledged
            assert store.check().ok
            subprocess.run(["mount", "-o", "remount,size=4m", mount], check=True)
            put(store, "after")
            assert names(store) == [*acknowledged, "after"]
            assert store.check().ok
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def test_a_read_only_folder_can_be_read(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    with RetentionStore.open(source / "s", budget_bytes=BUDGET) as store:
        put(store, "a")
    mount = tmp_path / "mount"
    mount.mkdir()
    command = ["mount", "--bind", "-o", "ro", source, mount]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        lacks("a read-only bind mount needs root")
    try:
        with RetentionStore.open_readonly(mount / "s") as store:
            assert names(store) == ["a"]
        with refused(StoreError, "path-not-writable", "open_readonly"):
            RetentionStore.open(mount / "s", budget_bytes=2 * BUDGET)
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def test_normal_synchronous_is_a_named_option(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=BUDGET, synchronous="normal") as store:
        put(store)
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (1,)
    with RetentionStore.open(tmp_path / "s") as store:
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
