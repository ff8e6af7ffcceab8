"""The production loop: order, delivery, bad samples, and resuming after a stop at any point."""

from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from drip.errors import (
    DripError,
    InputError,
    ModelError,
    NonFiniteError,
    SampleTooLargeError,
    StoreError,
    TransactionFullError,
)
from drip.media import encode_npy
from drip.pipeline import Tally, observe, prepare_npy, run
from drip.selectors import create
from drip.testing import ListSource, MemorySink, check_sink, check_source
from drip.types import DurableSink, Observations, Progress, Sample

N_FEATURES, N_CLASSES = 6, 3
WEIGHTS = np.random.default_rng(11).normal(size=(N_FEATURES, N_CLASSES))


class LinearScorer:
    """Logits by one matrix; the score is the largest of them."""

    provides = frozenset({"logits", "drip"})

    def __init__(self):
        self.batch_sizes = []

    def score(self, batch):
        self.batch_sizes.append(len(batch))
        if batch.shape[1:] != (N_FEATURES,):
            raise InputError(f"rows of {N_FEATURES} features are needed, got {batch.shape}")
        # Row by row: a matrix product may round differently for another number of rows.
        with np.errstate(invalid="ignore"):
            logits = np.stack([row.astype(np.float64) @ WEIGHTS for row in batch])
        return Observations(logits.argmax(1), logits, {"drip": logits.max(1)})


class StrictScorer(LinearScorer):
    """Refuses a batch with NaN, as the scorer for torch does."""

    def score(self, batch):
        observations = super().score(batch)
        if not np.isfinite(observations.logits).all():
            raise NonFiniteError("logits must be finite")
        return observations


def stream(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Sample(f"s{row}", encode_npy(rng.normal(size=N_FEATURES)), "application/x-npy", time_s=float(row))
        for row in range(n)
    ]


def broken(name):
    return Sample(name, b"not an array", "application/x-npy")


def poisoned(name, value=np.nan):
    return Sample(name, encode_npy(np.full(N_FEATURES, value)), "application/x-npy")


def wide(name):
    return Sample(name, encode_npy(np.zeros(N_FEATURES + 1)), "application/x-npy")


@cache
def calibration():
    return observe(stream(400, seed=1), LinearScorer())


def drip_selector():
    return create("drip", discard_fraction=0.4).calibrate(calibration())


RULES = {
    "drip": drip_selector,
    "margin": lambda: create("margin").calibrate(calibration()),
    "reservoir": lambda: create("reservoir", retention=0.5, seed=3),
    "random": lambda: create("random", retention=0.5, seed=3),
    "class-balanced-random": lambda: create("class-balanced-random", retention=0.5, seed=3).calibrate(
        calibration()
    ),
}


def record(sink):
    return [(sample.id, observation.predicted_class, decision) for sample, observation, decision in sink.puts]


class ListSink:
    """The least that a sink is: no transactions."""

    def __init__(self):
        self.ids = []

    def put(self, sample, observation, decision):  # noqa: ARG002
        self.ids.append(sample.id)


# -- order and delivery --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 7, 50, 64])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_decisions_come_in_order_of_arrival_and_do_not_depend_on_batch_size(rule, batch_size):
    one, many = MemorySink(), MemorySink()
    run(ListSource(stream(50)), LinearScorer(), RULES[rule](), one, batch_size=1)
    run(ListSource(stream(50)), LinearScorer(), RULES[rule](), many, batch_size=batch_size)
    assert [sample.id for sample, *_ in many.puts] == [f"s{row}" for row in range(50)]
    assert record(many) == record(one)


def test_pipeline_decides_as_the_selector_alone():
    sink = MemorySink()
    run(stream(60), LinearScorer(), drip_selector(), sink)
    observations = observe(stream(60), LinearScorer())
    decisions = drip_selector().decide_many(observations)
    assert [decision for *_, decision in sink.puts] == list(decisions)
    assert 0 < sum(decision.retain for decision in decisions) < 60


def test_observation_carries_time_size_and_hash_of_the_bytes():
    samples = stream(3)
    sink = MemorySink()
    run(samples, LinearScorer(), drip_selector(), sink)
    for sample, observation, _ in sink.puts:
        assert observation.time_s == sample.time_s
        assert observation.n_bytes == len(sample.data)
        assert len(observation.content_hash) == 64


def test_code_after_yield_runs_only_after_the_commit():
    events = []

    class Source:
        cursor = None

        def seek(self, cursor):
            pass

        def batches(self, max_samples):
            samples = stream(6)
            for start in range(0, 6, max_samples):
                yield samples[start : start + max_samples]
                events.append("acknowledged")

    class Sink(MemorySink):
        @contextmanager
        def transaction(self):
            with super().transaction():
                yield
            events.append("committed")

    run(Source(), LinearScorer(), drip_selector(), Sink(), batch_size=2)
    assert events == ["committed"] + ["committed", "acknowledged"] * 3  # the policy comes first


def test_failed_commit_is_not_acknowledged():
    class Sink(MemorySink):
        def save_progress(self, progress):  # noqa: ARG002
            raise StoreError("disk full")

    source = ListSource(stream(6))
    sink = Sink()
    with pytest.raises(StoreError):
        run(source, LinearScorer(), drip_selector(), sink, batch_size=2)
    assert source.acknowledged == 0
    assert sink.puts == []


def test_plain_iterable_is_never_read_ahead_by_more_than_one_batch():
    taken = 0

    def endless():
        nonlocal taken
        for sample in stream(64) * 10_000:
            taken += 1
            yield sample

    class Sink(ListSink):
        most = 0

        def put(self, sample, observation, decision):
            super().put(sample, observation, decision)
            self.most = max(self.most, taken - len(self.ids))

    sink = Sink()
    run(endless(), LinearScorer(), drip_selector(), sink, batch_size=8, stop=lambda: len(sink.ids) >= 800)
    assert taken == 800
    assert sink.most < 8


def test_batches_of_a_source_are_asked_for_with_the_batch_size():
    scorer = LinearScorer()
    run(ListSource(stream(10)), scorer, drip_selector(), ListSink(), batch_size=4)
    assert scorer.batch_sizes == [4, 4, 2]


def test_sink_without_transactions_gets_every_sample():
    sink = ListSink()
    assert not isinstance(sink, DurableSink)
    tally = run(stream(5), LinearScorer(), drip_selector(), sink, batch_size=2)
    assert sink.ids == ["s0", "s1", "s2", "s3", "s4"]
    assert tally.n_seen == 5


@pytest.mark.parametrize("make", [list, ListSource])
def test_empty_source_gives_an_empty_tally(make):
    tally = run(make([]), LinearScorer(), drip_selector(), MemorySink())
    assert (tally.n_seen, tally.n_retained, tally.interrupted) == (0, 0, False)
    assert np.isnan(tally.retention)


# -- tally and callbacks -------------------------------------------------------------------------------


def test_tally_counts_samples_bytes_and_classes():
    sink = MemorySink()
    samples = [*stream(40), broken("bad"), poisoned("nan")]
    tally = run(samples, LinearScorer(), drip_selector(), sink, batch_size=8, on_error="quarantine")
    kept = [(sample, observation) for sample, observation, decision in sink.puts if decision.retain]
    assert tally.n_seen == 42
    assert tally.n_retained == len(kept)
    assert tally.n_discarded == 40 - len(kept)
    assert tally.n_quarantined == 2
    assert tally.n_skipped == 0
    assert tally.bytes_seen == sum(len(sample.data) for sample in samples)
    assert tally.bytes_retained == sum(len(sample.data) for sample, _ in kept)
    assert tally.retention == len(kept) / 40
    for counts, rows in (
        (tally.seen_by_class, [o for _, o, _ in sink.puts]),
        (tally.retained_by_class, [o for _, o in kept]),
    ):
        classes = [row.predicted_class for row in rows]
        assert counts == {number: classes.count(number) for number in set(classes)}
    assert set(tally.seconds) == {"prepare", "score", "decide", "store"}
    assert all(value >= 0 for value in tally.seconds.values())


def test_stop_ends_after_the_batch_that_is_committed():
    sink, calls = MemorySink(), []

    def stop():
        calls.append(len(sink.puts))
        return len(calls) == 2

    tally = run(ListSource(stream(20)), LinearScorer(), drip_selector(), sink, batch_size=4, stop=stop)
    assert tally.interrupted
    assert tally.n_seen == 8
    assert calls == [4, 8]
    assert sink.progress.cursor == "8"


def test_run_that_reaches_the_end_is_not_interrupted():
    assert not run(stream(3), LinearScorer(), drip_selector(), MemorySink(), stop=lambda: False).interrupted


def test_progress_is_reported_after_every_batch():
    seen = []
    run(
        stream(10),
        LinearScorer(),
        drip_selector(),
        MemorySink(),
        batch_size=4,
        on_progress=lambda tally: seen.append((tally.n_seen, tally.n_retained + tally.n_discarded)),
    )
    assert seen == [(4, 4), (8, 8), (10, 10)]


# -- bad samples ---------------------------------------------------------------------------------------

BAD = {
    "undecodable": broken,
    "nan": poisoned,
    "infinite": lambda name: poisoned(name, np.inf),
    "another-shape": wide,
}


@pytest.mark.parametrize("scorer", [LinearScorer, StrictScorer])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("kind", sorted(BAD))
@pytest.mark.parametrize("on_error", ["skip", "quarantine"])
def test_bad_sample_does_not_take_its_neighbours_with_it(kind, on_error, batch_size, scorer):
    good = stream(9)
    samples = [*good[:4], BAD[kind]("bad-1"), *good[4:], BAD[kind]("bad-2")]
    clean, sink = MemorySink(), MemorySink()
    run(good, LinearScorer(), drip_selector(), clean)
    tally = run(samples, scorer(), drip_selector(), sink, batch_size=batch_size, on_error=on_error)
    assert record(sink) == record(clean)
    assert (tally.n_skipped, tally.n_quarantined) == ((2, 0) if on_error == "skip" else (0, 2))
    assert tally.n_seen == 11
    names = [sample.id for sample, _ in sink.quarantined]
    assert names == ([] if on_error == "skip" else ["bad-1", "bad-2"])
    assert all(len(reason) > 20 for _, reason in sink.quarantined)


@pytest.mark.parametrize("kind", sorted(BAD))
def test_raise_names_the_sample_and_commits_nothing_of_its_batch(kind):
    sink = MemorySink()
    samples = [*stream(5), BAD[kind]("culprit"), *stream(2)]
    with pytest.raises((InputError, NonFiniteError), match="sample 'culprit': ") as caught:
        run(samples, LinearScorer(), drip_selector(), sink, batch_size=4)
    assert len(sink.puts) == 4
    assert isinstance(caught.value.__cause__, DripError)


def test_batch_of_bad_samples_only_is_survived():
    sink = MemorySink()
    samples = [broken("a"), poisoned("b"), wide("c"), *stream(2)]
    tally = run(
        ListSource(samples), LinearScorer(), drip_selector(), sink, batch_size=3, on_error="quarantine"
    )
    assert tally.n_quarantined == 3
    assert len(sink.puts) == 2
    assert sink.progress.cursor == "5"


def test_error_that_is_not_the_samples_fault_is_not_swallowed():
    class Scorer(LinearScorer):
        def score(self, batch):  # noqa: ARG002
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(stream(3), Scorer(), drip_selector(), MemorySink(), on_error="skip")


# -- arguments -----------------------------------------------------------------------------------------


def test_missing_score_is_named_with_what_the_scorer_gives():
    with pytest.raises(InputError, match=r"'lowest-contrast' reads contrast.*gives drip, logits"):
        run(stream(3), LinearScorer(), create("lowest-contrast"), MemorySink())


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one_is_refused(batch_size):
    with pytest.raises(InputError, match="batch_size"):
        run(stream(3), LinearScorer(), drip_selector(), MemorySink(), batch_size=batch_size)


def test_unknown_on_error_is_refused():
    with pytest.raises(InputError, match="raise, skip, quarantine"):
        run(stream(3), LinearScorer(), drip_selector(), MemorySink(), on_error="ignore")


def test_quarantine_needs_a_sink_that_has_one():
    with pytest.raises(InputError, match="ListSink"):
        run(stream(3), LinearScorer(), drip_selector(), ListSink(), on_error="quarantine")


# -- resuming ------------------------------------------------------------------------------------------


class InjectedError(Exception):
    """A kill, as far as a test in one process can have one."""


class Countdown:
    def __init__(self, n_calls):
        self.left = n_calls

    def __call__(self):
        if self.left == 0:
            raise InjectedError
        self.left -= 1


class FaultySink(MemorySink):
    """Fails at the n-th call of any of its methods; before the work, after it, or at the commit."""

    def __init__(self):
        super().__init__()
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
def test_run_stopped_at_any_point_continues_without_loss_or_double(rule, batch_size):
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


def test_finished_run_started_again_sees_nothing():
    sink = MemorySink()
    run(ListSource(stream(5)), LinearScorer(), drip_selector(), sink)
    assert run(ListSource(stream(5)), LinearScorer(), drip_selector(), sink).n_seen == 0
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
    run(ListSource(stream(4)), LinearScorer(), drip_selector(), sink, policy_digest="new policy")
    assert known == ["new policy"] * 2


def test_batch_that_is_more_than_a_sink_commits_at_once_survives_a_stop_between_its_parts():
    class SmallSink(FaultySink):
        """Commits three writes at most, and recognises what comes again."""

        def put(self, sample, observation, decision):
            self.n_writes += 1
            if self.n_writes > 3:
                raise TransactionFullError("full")
            if sample.id not in {other.id for other, *_ in self.puts}:
                super().put(sample, observation, decision)

        @contextmanager
        def transaction(self):
            self.n_writes = 0
            with super().transaction():
                yield

    whole = MemorySink()
    run(ListSource(stream(20)), LinearScorer(), RULES["reservoir"](), whole, policy_digest="p")
    for n_calls in range(70):
        sink = SmallSink()
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


def test_plain_iterable_has_no_position_but_keeps_the_selectors_state():
    sink = MemorySink()
    run(stream(6), LinearScorer(), RULES["reservoir"](), sink, policy_digest="p")
    assert sink.progress.cursor is None
    run(stream(6, seed=2), LinearScorer(), RULES["reservoir"](), sink, policy_digest="p")
    whole = MemorySink()
    run([*stream(6), *stream(6, seed=2)], LinearScorer(), RULES["reservoir"](), whole)
    assert record(sink) == record(whole)


def test_fakes_of_these_tests_keep_the_contracts():
    check_source(lambda: ListSource(stream(7)), acknowledged=lambda source: source.acknowledged)
    check_sink(FaultySink, kept=lambda sink: sink.kept)


# -- observing for calibration -------------------------------------------------------------------------


def test_observe_gives_all_rows_in_order_batch_by_batch():
    done = []
    scorer = LinearScorer()
    got = observe(iter(stream(10)), scorer, batch_size=4, on_progress=done.append)
    expected = LinearScorer().score(_inputs(stream(10)))
    np.testing.assert_array_equal(got.logits, expected.logits)
    assert done == [4, 8, 10]
    assert scorer.batch_sizes == [4, 4, 2]


def _inputs(samples):
    from drip.media import decode_npy

    return np.stack([decode_npy(sample.data).astype(np.float32) for sample in samples])


def test_observe_refuses_no_samples():
    with pytest.raises(InputError, match="at least one sample"):
        observe([], LinearScorer())


@pytest.mark.parametrize("kind", sorted(BAD))
def test_observe_names_the_bad_sample(kind):
    with pytest.raises((InputError, NonFiniteError), match="sample 'culprit'"):
        observe([*stream(3), BAD[kind]("culprit")], LinearScorer())


def test_tally_of_nothing_has_no_retention():
    assert np.isnan(Tally().retention)


class UnusableScorer(LinearScorer):
    """A model without a layer to score."""

    def score(self, batch):
        raise ModelError(f"no layer for {len(batch)} samples")


def test_unusable_model_stops_the_run_before_a_sample_is_lost():
    sink = MemorySink()
    with pytest.raises(ModelError, match="no layer"):
        run(ListSource(stream(5)), UnusableScorer(), RULES["drip"](), sink, on_error="quarantine")
    assert not sink.quarantined
    assert sink.load_progress().cursor is None


class SmallSink(MemorySink):
    """Takes no sample of the name ``large``."""

    def put(self, sample, observation, decision):
        if sample.id == "large":
            raise SampleTooLargeError("it does not fit")
        super().put(sample, observation, decision)


def test_sample_that_never_fits_is_set_aside_and_the_run_goes_on():
    samples = stream(5)
    samples[2] = replace(samples[2], id="large")
    sink = SmallSink()
    run(ListSource(samples), LinearScorer(), RULES["drip"](), sink, on_error="quarantine")
    assert [sample.id for sample, _ in sink.quarantined] == ["large"]
    assert len(record(sink)) == 4
    with pytest.raises(SampleTooLargeError):
        run(ListSource(samples), LinearScorer(), RULES["drip"](), SmallSink())


def test_new_limits_of_a_rule_are_not_replaced_by_the_saved_ones_of_the_old():
    sink = MemorySink()
    old, new = RULES["drip"](), create("drip", discard_fraction=0.9).calibrate(calibration())
    run(ListSource(stream(5)), LinearScorer(), old, sink)
    before = new.state()
    run(ListSource(stream(5)), LinearScorer(), new, sink)
    assert new.state() == before != old.state()


def test_decoder_that_raises_anything_costs_its_own_sample_only():
    def prepare(data, media_type):
        if data == b"boom":
            raise ZeroDivisionError("inside a user's decoder")
        return prepare_npy(data, media_type)

    samples = stream(4)
    samples[1] = replace(samples[1], data=b"boom")
    sink = MemorySink()
    run(ListSource(samples), LinearScorer(), RULES["drip"](), sink, prepare=prepare, on_error="quarantine")
    ((sample, reason),) = sink.quarantined
    assert sample.id == samples[1].id
    assert "ZeroDivisionError: inside a user's decoder" in reason
