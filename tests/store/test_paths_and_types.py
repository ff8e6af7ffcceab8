"""A link to a store keeps the budget; NumPy's numbers come back as numbers; one writer at a time."""

import subprocess
import sys

import numpy as np
import pytest
from making import refused

from drip.errors import StoreError
from drip.store import RetentionStore
from drip.types import Decision, Observation, Sample

OBSERVATION = Observation(1, np.zeros(10), {"drip": 0.5})
KEEP = Decision(retain=True, priority=1.0, keep_probability=1.0, reason="margin")


@pytest.mark.slow
def test_a_link_to_a_store_keeps_log_and_budget_beside_the_real_file(tmp_path):
    card = tmp_path / "card"
    card.mkdir()
    link = tmp_path / "kept.db"
    link.symlink_to(card / "kept.db")
    rng = np.random.default_rng(0)
    with RetentionStore.open(link, budget_bytes=1_000_000) as store:
        for number in range(3000):
            store.put(Sample(str(number), rng.bytes(500), "image/png"), OBSERVATION, KEEP)
            if number % 100 == 0:
                assert sum(path.stat().st_size for path in card.iterdir()) <= 1_000_000
        assert store.stats().disk_bytes > 500_000
    assert [path.name for path in tmp_path.iterdir() if path.name != "card"] == ["kept.db"]


@pytest.mark.parametrize("time_s", [np.int64(3), np.float32(3.0), 3])
def test_times_of_any_number_type_come_back_as_seconds(tmp_path, time_s):
    sample = Sample("a", b"data", "image/png", time_s=time_s)
    with RetentionStore.open(tmp_path / "kept.db", budget_bytes=1_000_000) as store:
        store.put(sample, OBSERVATION, KEEP)
        store.quarantine(Sample("b", b"other", "image/png", time_s=time_s), "cut short")
        times = [next(iter(store)).sample.time_s, next(store.quarantined()).sample.time_s]
    assert times == [3.0, 3.0]
    assert all(type(value) is float for value in times)


def test_a_second_writer_is_refused_while_the_first_is_open(tmp_path):
    path = tmp_path / "kept.db"
    with RetentionStore.open(path, budget_bytes=1_000_000):
        code = (
            "import sys; from drip.store import RetentionStore; "
            "RetentionStore.open(sys.argv[1], timeout_s=0.1)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
        )
        assert "open for writing" in found.stderr
        with refused(StoreError, "store-busy", path):
            RetentionStore.open(path, timeout_s=0.1)
        with RetentionStore.open_readonly(path) as reader:
            assert len(reader) == 0
    with RetentionStore.open(path) as again:
        again.put(Sample("a", b"data", "image/png"), OBSERVATION, KEEP)
