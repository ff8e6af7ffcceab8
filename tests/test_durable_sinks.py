"""Every durable sink of the package keeps the contract of DurableSink: limits, retries and redeliveries."""

import importlib
import inspect
import pkgutil
from contextlib import contextmanager

import pytest

import drip
from drip.errors import DripError, SampleTooLargeError, TransactionFullError
from drip.sources.mqtt.decisions import PublishingSink
from drip.store import RetentionStore
from drip.store.writer import Writer
from drip.testing import MemorySink, check_sink, fake_samples
from drip.types import DurableSink, Sample
from drip.workflow import ShadowSink

BUDGET = 1_000_000
TOO_LARGE = Sample("large", bytes(BUDGET), "application/octet-stream")
# 450 kB fit the file of a store with this budget, but not its log of 330 kB.
TOO_MANY = [Sample(f"many-{i}", bytes([i]) * 45_000, "application/octet-stream") for i in range(10)]


class Publisher:
    def add(self, messages):
        pass


def kept_ids(store):
    return [record.sample.id for record in store if not record.shadow]


def small_memory():
    return MemorySink(max_sample_bytes=500_000, max_writes=4)


@pytest.fixture
def new_store(tmp_path):
    opened = []

    def open_store():
        opened.append(RetentionStore.open(tmp_path / f"{len(opened)}.drip", budget_bytes=BUDGET))
        return opened[-1]

    yield open_store
    for store in opened:
        assert store.check().ok
        store.close()


CASES = {
    MemorySink: (lambda _: small_memory(), lambda sink: sink.kept),
    RetentionStore: (lambda new_store: new_store(), kept_ids),
    ShadowSink: (lambda new_store: ShadowSink(new_store()), lambda sink: kept_ids(sink._store)),
    PublishingSink: (lambda _: PublishingSink(small_memory(), Publisher()), lambda sink: sink._sink.kept),
}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_a_durable_sink_keeps_its_contract(kind, new_store):
    make, kept = CASES[kind]
    check_sink(lambda: make(new_store), kept=kept, too_large=TOO_LARGE, too_many=TOO_MANY)
    check_sink(lambda: make(new_store), kept=kept)


def test_no_durable_sink_is_left_out():
    found = set()
    for module in pkgutil.walk_packages(drip.__path__, "drip."):
        try:
            members = vars(importlib.import_module(module.name)).values()
        except DripError:  # an optional package is not installed
            continue
        found |= {member for member in members if inspect.isclass(member) and _is_durable(member)}
    # The store's own half, which RetentionStore calls with checked arguments.
    assert found - {DurableSink, Writer} == set(CASES)


def _is_durable(kind):
    return all(hasattr(kind, name) for name in ("put", "quarantine", "transaction", "save_progress"))


class SwallowsTooLarge(MemorySink):
    """Drops a sample that is too large without a word."""

    def put(self, sample, observation, decision):
        if len(sample.data) <= 500_000:
            super().put(sample, observation, decision)


class WrongError(MemorySink):
    def put(self, sample, observation, decision):
        if len(sample.data) > 500_000:
            raise TransactionFullError("it does not fit")
        super().put(sample, observation, decision)


class KeepsTooLarge(MemorySink):
    """Records a sample before it finds it too large."""

    def put(self, sample, observation, decision):
        super().put(sample, observation, decision)
        if len(sample.data) > 500_000:
            raise SampleTooLargeError("it does not fit")


class CommitsHalf(MemorySink):
    """Says that the transaction is full, but commits what has been written so far."""

    def __init__(self):
        super().__init__(max_sample_bytes=500_000, max_writes=4)

    @contextmanager
    def transaction(self):
        full = None
        with super().transaction():
            try:
                yield
            except TransactionFullError as error:
                full = error
        if full is not None:
            raise full


class RecordsTwice(MemorySink):
    def put(self, sample, observation, decision):
        self._recorded.clear()
        super().put(sample, observation, decision)


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        (SwallowsTooLarge, "must raise SampleTooLargeError, but nothing was raised"),
        (WrongError, "raises SampleTooLargeError, got TransactionFullError"),
        (KeepsTooLarge, "the sink keeps"),
        (CommitsHalf, "the sink keeps"),
        (
            lambda: MemorySink(max_sample_bytes=500_000),
            "must raise TransactionFullError, but nothing was raised",
        ),
        (RecordsTwice, "the sink keeps"),
    ],
)
def test_a_sink_that_breaks_the_contract_is_caught(sink, message):
    with pytest.raises(AssertionError, match=message):
        check_sink(sink, kept=lambda opened: opened.kept, too_large=TOO_LARGE, too_many=TOO_MANY)


def test_a_single_write_outside_of_a_transaction_always_fits():
    sink = MemorySink(max_writes=1)
    for sample in fake_samples(3):
        sink.quarantine(sample, "broken")
    assert len(sink.quarantined) == 3
