"""The production loop after a stop at any point: no loss, no duplicate, the right state."""

from contextlib import contextmanager, suppress

import pytest
from linear_stream import (
    RULES,
    LinearScorer,
    broken,
    calibration,
    drip_rule,
    poisoned,
    record,
    stream,
)

from drip.errors import PolicyError
from drip.pipeline import run
from drip.rules import create
from drip.testing import ListSource, MemorySink, check_sink, check_source
from drip.types import Progress


class InjectedError(Exception):
    """Simulates a kill inside one process."""


class Countdown:
    def __init__(self, n_calls):
        self.left = n_calls

    def __call__(self):
        if self.left == 0:
            raise InjectedError
        self.left -= 1


class FaultySink(MemorySink):
    """Fails at the n-th call of any of its methods: before the work, after it, or at the commit."""

    def __init__(self, **limits):
        super().__init__(**limits)
        self.fault = Countdown(-1)

    def put(self, sample, observation, decision):
        self.fault()
        super().put(sample, observation, decision)
        self.fault()

    def quarantine(self, sample, reason):
        self.fault()
        super().quarantine(sample, reason)
        self.fault()

    def save_progress(self, progress):
        self.fault()
        super().save_progress(progress)
        self.fault()

    @contextmanager
    def transaction(self):
        with super().transaction():
            self.fault()
            yield
            self.fault()
        self.fault()  # committed, but the caller never hears of it


class FaultySource(ListSource):
    def __init__(self, samples, fault):
        super().__init__(samples)
        self._fault = fault

    def batches(self, max_samples):
        for batch in super().batches(max_samples):
            self._fault()
            yield batch
            self._fault()


def mixed_stream():
    good = stream(12)
    return [*good[:3], broken("bad"), *good[3:8], poisoned("nan"), *good[8:]]


@pytest.mark.parametrize("rule", ["drip", "reservoir", "random", "class-balanced-random"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_run_stopped_at_any_point_continues_without_loss_or_duplicate(rule, batch_size):
    whole = MemorySink()
    samples = mixed_stream()
    options = {"batch_size": batch_size, "on_error": "quarantine", "policy_digest": "p"}
    run(ListSource(samples), LinearScorer(), RULES[rule](), whole, **options)
    template = RULES[rule]().state()
    n_faults = 0
    while True:
        sink = FaultySink()
        sink.fault = Countdown(n_faults)
        try:
            run(
                FaultySource(samples, sink.fault),
                LinearScorer(),
                RULES[rule]().restore(template),
                sink,
                **options,
            )
        except InjectedError:
            sink.fault = Countdown(-1)
            run(ListSource(samples), LinearScorer(), RULES[rule]().restore(template), sink, **options)
        else:
            break
        n_faults += 1
        assert record(sink) == record(whole)
        assert sink.quarantined == whole.quarantined
        assert sink.progress == whole.progress
    assert n_faults > 40 // batch_size


def test_batch_size_may_change_between_the_runs():
    whole, sink = MemorySink(), MemorySink()
    run(ListSource(stream(20)), LinearScorer(), RULES["reservoir"](), whole)
    run(ListSource(stream(20)), LinearScorer(), RULES["reservoir"](), sink, batch_size=3, stop=lambda: True)
    assert len(sink.puts) == 3
    run(ListSource(stream(20)), LinearScorer(), RULES["reservoir"](), sink, batch_size=8)
    assert record(sink) == record(whole)


def test_finished_run_started_again_sees_no_sample():
    sink = MemorySink()
    run(ListSource(stream(5)), LinearScorer(), drip_rule(), sink)
    assert run(ListSource(stream(5)), LinearScorer(), drip_rule(), sink).n_seen == 0
    assert len(sink.puts) == 5


def test_state_of_another_policy_is_not_restored_but_the_position_is():
    sink = MemorySink()
    sink.progress = Progress("4", {"generator": "of another rule"}, "old policy")
    tally = run(ListSource(stream(6)), LinearScorer(), RULES["reservoir"](), sink, policy_digest="new policy")
    assert tally.n_seen == 2
    fresh = MemorySink()
    run(ListSource(stream(6)[4:]), LinearScorer(), RULES["reservoir"](), fresh)
    assert record(sink) == record(fresh)
    assert sink.progress.policy_digest == "new policy"


def test_sink_knows_the_policy_before_its_first_sample():
    known = []

    class Sink(MemorySink):
        def put(self, sample, observation, decision):
            known.append(self.progress.policy_digest)
            super().put(sample, observation, decision)

    sink = Sink()
    sink.progress = Progress("2", {}, "old policy")
    run(ListSource(stream(4)), LinearScorer(), drip_rule(), sink, policy_digest="new policy")
    assert known == ["new policy"] * 2


def test_batch_committed_in_halves_survives_a_stop_between_them():
    whole = MemorySink()
    run(ListSource(stream(20)), LinearScorer(), RULES["reservoir"](), whole, policy_digest="p")
    for n_calls in range(70):
        sink = FaultySink(max_writes=3)
        sink.fault = Countdown(n_calls)
        options = {"batch_size": 10, "policy_digest": "p"}
        with suppress(InjectedError):
            run(ListSource(stream(20)), LinearScorer(), RULES["reservoir"](), sink, **options)
        sink.fault = Countdown(-1)
        run(ListSource(stream(20)), LinearScorer(), RULES["reservoir"](), sink, **options)
        assert record(sink) == record(whole)
        assert sink.progress == whole.progress


def test_state_of_the_same_policy_is_restored():
    sink, selector = MemorySink(), RULES["reservoir"]()
    before = selector.state()
    run(ListSource(stream(6)), LinearScorer(), selector, sink, policy_digest="p", batch_size=2)
    assert sink.progress == Progress("6", selector.state(), "p")
    assert selector.state() != before


@pytest.mark.parametrize("state", [{}, {"windows": None}, {"windows": [{"lower": True}]}, {"windows": []}])
def test_a_saved_state_that_does_not_fit_the_rule_is_refused_before_the_first_sample(state):
    sink = MemorySink()
    sink.progress = Progress("2", state, "policy")
    with pytest.raises(PolicyError) as caught:
        run(ListSource(stream(4)), LinearScorer(), drip_rule(), sink, policy_digest="policy")
    assert caught.value.code == "rule-state"
    assert sink.puts == []


def test_plain_iterable_has_no_position_but_resumes_the_rule_state():
    sink = MemorySink()
    run(stream(6), LinearScorer(), RULES["reservoir"](), sink, policy_digest="p")
    assert sink.progress.cursor is None
    run(stream(6, seed=2), LinearScorer(), RULES["reservoir"](), sink, policy_digest="p")
    whole = MemorySink()
    run([*stream(6), *stream(6, seed=2)], LinearScorer(), RULES["reservoir"](), whole)
    assert record(sink) == record(whole)


def test_fakes_of_these_tests_keep_their_contracts():
    check_source(lambda: ListSource(stream(7)), acknowledged=lambda source: source.acknowledged)
    check_sink(FaultySink, kept=lambda sink: sink.kept)


def test_new_windows_of_a_rule_are_not_replaced_by_saved_ones():
    sink = MemorySink()
    old, new = RULES["drip"](), create("drip", retention=0.1).calibrate(calibration())
    run(ListSource(stream(5)), LinearScorer(), old, sink)
    before = new.state()
    run(ListSource(stream(5)), LinearScorer(), new, sink)
    assert new.state() == before != old.state()
