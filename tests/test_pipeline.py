"""The production loop: order, delivery, counts, arguments, and observing for calibration."""

from contextlib import contextmanager

import numpy as np
import pytest
from linear_stream import RULES, LinearScorer, broken, drip_rule, poisoned, record, stream

from drip.errors import (
    InputError,
    StoreError,
)
from drip.pipeline import Tally, observe, run
from drip.rules import create
from drip.testing import ListSource, MemorySink
from drip.types import DurableSink


class ListSink:
    """A minimal sink, without transactions."""

    def __init__(self):
        self.ids = []

    def put(self, sample, observation, decision):  # noqa: ARG002
        self.ids.append(sample.id)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 50, 64])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_decisions_are_in_order_of_arrival_and_do_not_depend_on_batch_size(rule, batch_size):
    one, many = MemorySink(), MemorySink()
    run(ListSource(stream(50)), LinearScorer(), RULES[rule](), one, batch_size=1)
    run(ListSource(stream(50)), LinearScorer(), RULES[rule](), many, batch_size=batch_size)
    assert [sample.id for sample, *_ in many.puts] == [f"s{row}" for row in range(50)]
    assert record(many) == record(one)


def test_pipeline_decides_like_the_rule_alone():
    sink = MemorySink()
    run(stream(60), LinearScorer(), drip_rule(), sink)
    observations = observe(stream(60), LinearScorer())
    decisions = drip_rule().decide_many(observations)
    assert [decision for *_, decision in sink.puts] == list(decisions)
    assert 0 < sum(decision.retain for decision in decisions) < 60


def test_observation_has_time_size_and_hash_of_the_bytes():
    samples = stream(3)
    sink = MemorySink()
    run(samples, LinearScorer(), drip_rule(), sink)
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

    run(Source(), LinearScorer(), drip_rule(), Sink(), batch_size=2)
    assert events == ["committed"] + ["committed", "acknowledged"] * 3  # the policy comes first


def test_failed_commit_is_not_acknowledged():
    class Sink(MemorySink):
        def save_progress(self, progress):  # noqa: ARG002
            raise StoreError("disk full")

    source = ListSource(stream(6))
    sink = Sink()
    with pytest.raises(StoreError):
        run(source, LinearScorer(), drip_rule(), sink, batch_size=2)
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
    run(endless(), LinearScorer(), drip_rule(), sink, batch_size=8, stop=lambda: len(sink.ids) >= 800)
    assert taken == 800
    assert sink.most < 8


def test_source_is_asked_for_batches_of_the_batch_size():
    scorer = LinearScorer()
    run(ListSource(stream(10)), scorer, drip_rule(), ListSink(), batch_size=4)
    assert scorer.batch_sizes == [4, 4, 2]


def test_sink_without_transactions_gets_every_sample():
    sink = ListSink()
    assert not isinstance(sink, DurableSink)
    tally = run(stream(5), LinearScorer(), drip_rule(), sink, batch_size=2)
    assert sink.ids == ["s0", "s1", "s2", "s3", "s4"]
    assert tally.n_seen == 5


@pytest.mark.parametrize("make", [list, ListSource])
def test_empty_source_gives_an_empty_tally(make):
    tally = run(make([]), LinearScorer(), drip_rule(), MemorySink())
    assert (tally.n_seen, tally.n_retained, tally.interrupted) == (0, 0, False)
    assert np.isnan(tally.retention)


def test_tally_counts_samples_bytes_and_classes():
    sink = MemorySink()
    samples = [*stream(40), broken("bad"), poisoned("nan")]
    tally = run(samples, LinearScorer(), drip_rule(), sink, batch_size=8, on_error="quarantine")
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

    tally = run(ListSource(stream(20)), LinearScorer(), drip_rule(), sink, batch_size=4, stop=stop)
    assert tally.interrupted
    assert tally.n_seen == 8
    assert calls == [4, 8]
    assert sink.progress.cursor == "8"


def test_run_that_reaches_the_end_is_not_interrupted():
    assert not run(stream(3), LinearScorer(), drip_rule(), MemorySink(), stop=lambda: False).interrupted


def test_progress_is_reported_after_every_batch():
    seen = []
    run(
        stream(10),
        LinearScorer(),
        drip_rule(),
        MemorySink(),
        batch_size=4,
        on_progress=lambda tally: seen.append((tally.n_seen, tally.n_retained + tally.n_discarded)),
    )
    assert seen == [(4, 4), (8, 8), (10, 10)]


def test_missing_score_is_named():
    with pytest.raises(InputError) as caught:
        run(stream(3), LinearScorer(), create("lowest-contrast"), MemorySink())
    assert caught.value.code == "rule-needs"
    assert "contrast" in str(caught.value)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one_is_refused(batch_size):
    with pytest.raises(InputError, match="batch_size"):
        run(stream(3), LinearScorer(), drip_rule(), MemorySink(), batch_size=batch_size)


def test_unknown_on_error_is_refused():
    with pytest.raises(InputError, match="raise, skip, quarantine"):
        run(stream(3), LinearScorer(), drip_rule(), MemorySink(), on_error="ignore")


def test_quarantine_needs_a_sink_that_has_one():
    with pytest.raises(InputError, match="ListSink"):
        run(stream(3), LinearScorer(), drip_rule(), ListSink(), on_error="quarantine")


def test_observe_returns_all_rows_in_order():
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


def test_observe_needs_at_least_one_sample():
    with pytest.raises(InputError) as caught:
        observe([], LinearScorer())
    assert caught.value.code == "source-empty"


def test_empty_tally_has_no_keep_rate():
    assert np.isnan(Tally().retention)
