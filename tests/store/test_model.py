"""The store against a model of dictionaries: any sequence of operations, both evictions, all budgets."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from making import observation, sample

from drip.errors import StoreError, TransactionFullError
from drip.store import Outcome, RetentionStore
from drip.store.connection import disk_bytes
from drip.types import Decision, Progress

SMALL, LARGE = 420_000, 900_000
NUMBERS = st.integers(0, 60)
PUTS = st.tuples(
    NUMBERS,  # sample id
    st.integers(0, 40),  # content
    st.booleans(),  # retain
    st.sampled_from([-float("inf"), 0.0, 0.25, 0.5, 0.75, float("inf")]),
    st.integers(0, 3),  # predicted class
)


class RolledBackError(Exception):
    """Leaves a transaction on purpose."""


@dataclass
class Row:
    """What the model remembers of a decision."""

    name: str
    content: bytes
    priority: float
    outcome: Outcome
    predicted_class: int
    label: int | None = None
    repeats: int = 0


def content_of(number):
    """Half of the contents are small, the others so big that a small store holds few."""
    return bytes([number]) * (number + 1 if number % 2 else number * 700 + 1)


class Model(RuleBasedStateMachine):
    """Dictionaries that say what a store of unlimited size and exact evictions would hold."""

    @initialize(eviction=st.sampled_from(["priority", "fifo"]), budget_bytes=st.sampled_from([SMALL, LARGE]))
    def open(self, eviction, budget_bytes):
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.path = self.folder / "s"
        self.eviction = eviction
        self.budget_bytes = budget_bytes
        self.store = RetentionStore.open(
            self.path, budget_bytes=budget_bytes, eviction=eviction, audit_rows=10_000
        )
        self.rows: dict[int, Row] = {}
        self.next_key = 1
        self.quarantined: dict[bytes, str] = {}
        self.n_quarantine_dropped = 0
        self.n_redelivered = 0
        self.progress = None

    def kept(self):
        return {key: row for key, row in self.rows.items() if row.outcome is Outcome.KEPT}

    def put_in_store(self, one):
        number, content, retain, priority, predicted_class = one
        decision = Decision(retain, priority, None, "word")
        self.store.put(sample(f"s{number}", content_of(content)), observation(predicted_class), decision)

    def put_in_model(self, one):
        """Evictions are followed, not foretold: they must be the right ones whenever they come."""
        number, content, retain, priority, predicted_class = one
        name, data = f"s{number}", content_of(content)
        for recorded, row in self.rows.items():
            if (row.name, row.content) == (name, data):
                if not (retain and row.outcome is Outcome.DISCARDED):
                    self.n_redelivered += 1
                    return
                del self.rows[recorded]  # the later decision takes its place
                break
        key = self.next_key
        self.next_key += 1
        outcome = Outcome.KEPT if retain else Outcome.DISCARDED
        twins = [row for row in self.kept().values() if row.content == data]
        if retain and twins:
            outcome = Outcome.DUPLICATE
            twins[0].repeats += 1
        self.rows[key] = Row(name, data, priority, outcome, predicted_class)

    def follow_evictions(self, incoming=None):
        stored = {record.key for record in self.store}
        expected = self.kept()
        assert stored <= expected.keys()
        gone = expected.keys() - stored
        older = {key: row for key, row in expected.items() if key != incoming}
        rank = (lambda k: (expected[k].priority, k)) if self.eviction == "priority" else (lambda k: k)
        assert gone - {incoming} == set(sorted(older, key=rank)[: len(gone - {incoming})])
        if incoming in gone:
            assert self.eviction == "priority"
            assert max(row.priority for row in older.values()) > expected[incoming].priority
        for key in gone:
            self.rows[key].outcome = Outcome.EVICTED

    @rule(one=PUTS)
    def put(self, one):
        self.put_in_both(one)

    def put_in_both(self, one):
        key = self.next_key
        self.put_in_store(one)
        self.put_in_model(one)
        self.follow_evictions(key if self.next_key > key else None)

    @rule(several=st.lists(PUTS, max_size=4), cursor=st.text(max_size=5), fails=st.booleans())
    def transaction(self, several, cursor, fails):
        progress = Progress(cursor, {"n": len(self.rows)}, "")
        before = {key: replace(row) for key, row in self.rows.items()}
        numbers = self.n_redelivered, self.next_key
        try:
            with self.store.transaction():
                for one in several:
                    self.put_in_both(one)
                self.store.save_progress(progress)
                if fails:
                    raise RolledBackError  # noqa: TRY301  # it has to leave the block
            self.follow_evictions()
            self.progress = progress
        except (RolledBackError, StoreError) as error:
            if isinstance(error, StoreError) and not isinstance(error, TransactionFullError):
                raise
            self.rows = before
            self.n_redelivered, self.next_key = numbers

    @rule(number=NUMBERS, content=st.integers(0, 24))
    def quarantine(self, number, content):
        data = b"broken" + content_of(content)
        self.store.quarantine(sample(f"s{number}", data), "cannot be decoded")
        self.quarantined.setdefault(data, f"s{number}")
        left = [row.sample.data for row in self.store.quarantined()]
        n_dropped = len(self.quarantined) - len(left)
        assert list(self.quarantined)[n_dropped:] == left
        self.n_quarantine_dropped += n_dropped
        for data in list(self.quarantined)[:n_dropped]:
            del self.quarantined[data]
        self.follow_evictions()

    @precondition(lambda self: self.kept())
    @rule(data=st.data(), label=st.none() | st.integers(0, 3))
    def label(self, data, label):
        key = data.draw(st.sampled_from(sorted(self.kept())))
        self.store.set_label(key, label)
        self.rows[key].label = label
        self.follow_evictions()

    @rule(cursor=st.text(max_size=5))
    def save_progress(self, cursor):
        self.progress = Progress(cursor, {"list": [1, 2.5, None]}, "")
        self.store.save_progress(self.progress)
        self.follow_evictions()

    @rule(budget_bytes=st.none() | st.sampled_from([SMALL, LARGE]))
    def reopen(self, budget_bytes):
        self.store.close()
        self.store = RetentionStore.open(self.path, budget_bytes=budget_bytes)
        self.budget_bytes = budget_bytes or self.budget_bytes
        stats = self.store.stats()
        if stats.quarantine_dropped > self.n_quarantine_dropped:
            for data in list(self.quarantined)[: stats.quarantine_dropped - self.n_quarantine_dropped]:
                del self.quarantined[data]
            self.n_quarantine_dropped = stats.quarantine_dropped
        audited = {row.key for row in self.store.audit()}
        self.follow_evictions()
        assert audited == self.rows.keys()
        assert self.store.check().problems == ()

    @invariant()
    def the_budget_holds(self):
        if hasattr(self, "store"):
            assert disk_bytes(self.path) <= self.budget_bytes

    @invariant()
    def the_store_is_what_the_model_says(self):
        if not hasattr(self, "store"):
            return
        kept = self.kept()
        assert {
            record.key: (record.sample.id, record.sample.data, record.human_label, record.repeats)
            for record in self.store
        } == {key: (row.name, row.content, row.label, row.repeats) for key, row in kept.items()}
        assert {row.key: row.outcome for row in self.store.audit()} == {
            k: r.outcome for k, r in self.rows.items()
        }
        assert self.store.load_progress() == self.progress
        stats = self.store.stats()
        outcomes = [row.outcome for row in self.rows.values()]
        assert (stats.seen, stats.kept, stats.discarded, stats.evicted, stats.duplicates) == (
            len(outcomes),
            outcomes.count(Outcome.KEPT),
            outcomes.count(Outcome.DISCARDED),
            outcomes.count(Outcome.EVICTED),
            outcomes.count(Outcome.DUPLICATE),
        )
        assert (stats.redelivered, stats.quarantined) == (self.n_redelivered, len(self.quarantined))
        assert stats.kept_bytes == sum(len(row.content) for row in kept.values())
        for index, counts in stats.classes.items():
            assert counts.kept == sum(row.predicted_class == index for row in kept.values())

    @invariant()
    def what_the_writer_remembers_of_the_file_is_true(self):
        if not hasattr(self, "store"):
            return
        writer = self.store._writer
        space, ring, table = writer.space, writer.ring, writer.quarantine_table
        assert space.log_frames >= space._gauge.n_frames()
        believed = space.free_pages
        assert believed <= space.look_up_free_pages()
        space.free_pages = believed
        one = self.store._connection.execute
        assert one("SELECT count(*), total(row_bytes) FROM audit").fetchone() == (ring.rows, ring.bytes)
        count = "SELECT count(*), total(row_bytes) FROM quarantine"
        assert one(count).fetchone() == (table.rows, table.bytes)
        assert writer.recorder.next_key == self.next_key

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            with RetentionStore.open(self.path) as store:
                assert store.check().problems == ()
            shutil.rmtree(self.folder)


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=40 if Phase.shrink in settings().phases else 8,
    stateful_step_count=40,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
