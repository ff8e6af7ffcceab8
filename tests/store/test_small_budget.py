"""A small store under steady eviction: what the production loop does with micro-batches of small samples."""

import numpy as np
import pytest

from drip.errors import TransactionFullError
from drip.store import RetentionStore
from drip.types import Decision, Observation, Progress, Sample

BUDGET = 1_000_000
OBSERVATION = Observation(1, np.zeros(10), {"drip": 0.5})


def small_samples(batch, n, rng):
    for index in range(n):
        sample = Sample(f"{batch}-{index}", rng.bytes(300), "image/png")
        yield sample, OBSERVATION, Decision(True, float(rng.random()), None, "margin")


def disk_bytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def put_in_halves(store, items):
    """What drip.pipeline does when a batch is more than the store commits at once."""
    try:
        with store.transaction():
            for item in items:
                store.put(*item)
    except TransactionFullError:
        if len(items) == 1:
            store.put(*items[0])
            return
        middle = len(items) // 2
        put_in_halves(store, items[:middle])
        put_in_halves(store, items[middle:])


def test_budget_holds_when_full_transactions_are_rolled_back_and_tried_in_halves(tmp_path):
    rng = np.random.default_rng(0)
    with RetentionStore.open(tmp_path / "kept.db", budget_bytes=BUDGET) as store:
        for batch in range(150):
            put_in_halves(store, list(small_samples(batch, 32, rng)))
            assert disk_bytes(tmp_path) <= BUDGET
        assert store.stats().seen == 150 * 32
        assert store.check().ok


@pytest.mark.slow
@pytest.mark.parametrize(("n", "n_refused"), [pytest.param(8, 0, id="8"), pytest.param(32, 1, id="32")])
def test_a_micro_batch_of_small_samples_fits_one_transaction_of_a_full_small_store(tmp_path, n, n_refused):
    """But for one batch at most: the one in which the store becomes full evicts for the first time."""
    rng = np.random.default_rng(0)
    with RetentionStore.open(tmp_path / "kept.db", budget_bytes=BUDGET) as store:
        for batch in range(4800 // n):
            items = list(small_samples(batch, n, rng))
            try:
                with store.transaction():
                    for item in items:
                        store.put(*item)
                    store.save_progress(Progress(str(batch), {"windows": [0.5] * 300}, "policy"))
            except TransactionFullError:
                n_refused -= 1
                put_in_halves(store, items)
        assert n_refused >= 0
        assert store.stats().seen == 4800
        assert disk_bytes(tmp_path) <= BUDGET
