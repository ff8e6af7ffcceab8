"""The contract checks pass what keeps the contract and catch what breaks it."""

from dataclasses import replace

import numpy as np
import pytest

from drip.rules import create
from drip.rules.base import BaseRule, ThresholdRule, deterministic
from drip.rules.chance import RandomRule
from drip.rules.uncertainty import MarginRule
from drip.testing import (
    ListSource,
    MemorySink,
    check_rule,
    check_sink,
    check_source,
    fake_observations,
    fake_samples,
)
from drip.types import Progress

OBSERVATIONS = fake_observations(120, 4, seed=1)


class _Margin(MarginRule):
    pass


class ForgetsState(RandomRule):
    def state(self):
        return {"generator": np.random.PCG64(0).state}


class DiscardsNan(_Margin):
    def _check(self, observations):
        pass

    def score(self, observations):
        return np.nan_to_num(super().score(observations), nan=0.0)


class RefusesWithoutRow(_Margin):
    def _check(self, observations):
        try:
            super()._check(observations)
        except ValueError as error:
            raise type(error)("logits must be finite") from error


class DependsOnBatch(_Margin):
    def score(self, observations):
        return super().score(observations) + len(observations)


class DependsOnOrder(ThresholdRule):
    def score(self, observations):
        return observations.logits[:, 0]

    def _calibrate(self, observations):
        self._limit = float(observations.logits[0, 0])


class InfinitePriority(_Margin):
    def score(self, observations):
        return super().score(observations) / 0.0 if len(observations) else np.zeros(0)


class WrongProbability(_Margin):
    def _decide(self, observations):
        decisions = super()._decide(observations)
        return replace(decisions, keep_probability=1.0 - decisions.keep_probability)


class DrawsBeforeChecking(RandomRule):
    @property
    def needs(self):
        return frozenset({"drip"})

    def decide_many(self, observations):
        self._rng.random()
        return super().decide_many(observations)


class SilentUse(BaseRule):
    @property
    def params(self):
        return {}

    def _decide(self, observations):
        n = len(observations)
        return deterministic(np.ones(n, dtype=np.bool_), np.zeros(n), "", "")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (ForgetsState, "decide bit for bit alike|makes bit-identical decisions"),
        (DiscardsNan, "nan in logits must raise InputError, but returned a value"),
        (RefusesWithoutRow, "names row"),
        (DependsOnBatch, "decide row by row equals decide_many"),
        (DependsOnOrder, "does not depend on the order"),
        (InfinitePriority, "JSON|finite"),
        (WrongProbability, "of a kept sample is above 0"),
        (DrawsBeforeChecking, "bit for bit|a refusal leaves the state|row by row"),
        (SilentUse, "every decision has a reason"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_broken_rule_is_caught(rule, message):
    def factory():
        broken = rule()
        broken.name = "broken"  # on the instance: a class with a name would count as a rule
        return broken

    with pytest.raises(AssertionError, match=message):
        check_rule(factory, OBSERVATIONS)


def test_too_few_observations_are_refused():
    with pytest.raises(ValueError, match="at least 40 observations, got 39"):
        check_rule(lambda: create("margin"), OBSERVATIONS[:39])


def test_a_shared_instance_is_caught():
    rule = create("margin")
    with pytest.raises(AssertionError, match="a new rule every time"):
        check_rule(lambda: rule, OBSERVATIONS)


def test_fakes_are_equal_for_equal_seeds_and_differ_for_others():
    first, same, other = (fake_observations(50, 4, seed=seed) for seed in (1, 1, 2))
    assert first.logits.tolist() == same.logits.tolist()
    assert first.content_hashes == same.content_hashes
    assert first.logits.tolist() != other.logits.tolist()
    assert (first.classes == first.logits.argmax(axis=1)).all()
    assert all((column >= 0).all() for column in first.named_scores.values())
    assert len(fake_observations(0)) == 0
    assert len({sample.data for sample in fake_samples(20)}) == 20


def test_the_fakes_keep_their_own_contracts():
    check_source(lambda: ListSource(fake_samples(7)), acknowledged=lambda source: source.acknowledged)
    check_source(lambda: ListSource(fake_samples(3)))
    check_sink(MemorySink, kept=lambda sink: sink.kept)
    check_sink(MemorySink)


class LosesOnSeek(ListSource):
    def seek(self, cursor):
        super().seek(str(int(cursor) + 1))


class AcknowledgesEarly(ListSource):
    def batches(self, max_samples):
        for batch in super().batches(max_samples):
            self.acknowledged = self._position
            yield batch


class NeverAcknowledges(ListSource):
    def batches(self, max_samples):
        yield from super().batches(max_samples)
        self.acknowledged = 0


class RejectsWithoutReason(ListSource):
    def batches(self, max_samples):
        for batch in super().batches(max_samples):
            yield [replace(sample, rejected="") for sample in batch]
            self.acknowledged = self._position


class TooLarge(ListSource):
    def batches(self, max_samples):
        yield from super().batches(max_samples + 1)


class Idle(ListSource):
    def batches(self, max_samples):
        yield []
        for batch in super().batches(max_samples):
            yield batch
            yield []


class SkipsWhileIdle(ListSource):
    def batches(self, max_samples):
        yield from super().batches(max_samples)
        self._position -= 1
        yield []


class LosesTail(ListSource):
    def batches(self, max_samples):
        for batch in super().batches(max_samples):
            if len(batch) == max_samples:
                yield batch


class Doubles(ListSource):
    def batches(self, max_samples):
        yield from super().batches(max_samples)
        yield self._samples[-1:]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LosesOnSeek, "without loss or double"),
        (AcknowledgesEarly, "not acknowledged before"),
        (NeverAcknowledges, "every consumed batch is acknowledged"),
        (RejectsWithoutReason, "a rejected sample has a reason"),
        (TooLarge, "batches have up to 1 samples, got 2"),
        (SkipsWhileIdle, "an empty batch does not move the cursor"),
        (LosesTail, "without loss or double"),
        (Doubles, "ids are unique"),
    ],
)
def test_a_broken_source_is_caught(source, message):
    with pytest.raises(AssertionError, match=message):
        check_source(lambda: source(fake_samples(7)), acknowledged=lambda opened: opened.acknowledged)


def test_an_empty_batch_means_that_nothing_arrived_and_is_no_error():
    check_source(lambda: Idle(fake_samples(7)))


def test_a_source_that_cannot_seek_is_no_error():
    class Forward(ListSource):
        @property
        def cursor(self):
            return None

        def seek(self, cursor):
            raise NotImplementedError(cursor)

    check_source(lambda: Forward(fake_samples(4)))


class KeepsEverything(MemorySink):
    @property
    def kept(self):
        return [sample.id for sample, _, _ in self.puts]


class NoRollback(MemorySink):
    def transaction(self):
        return MemorySink().transaction()


class ForgetsProgress(MemorySink):
    def save_progress(self, progress):
        pass


class RollsBackProgressOnly(MemorySink):
    def transaction(self):
        other = MemorySink()
        other.progress = self.progress
        return _Restoring(self)


class _Restoring:
    def __init__(self, sink):
        self.sink, self.before = sink, sink.progress

    def __enter__(self):
        return None

    def __exit__(self, kind, *_):
        if kind is not None:
            self.sink.progress = self.before


class StaleProgress(MemorySink):
    def __init__(self):
        super().__init__()
        self.progress = Progress(None, {}, "")


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        (KeepsEverything, "the sink keeps"),
        (NoRollback, "a failed transaction does not save progress"),
        (ForgetsProgress, "progress comes back"),
        (RollsBackProgressOnly, "the sink keeps"),
        (StaleProgress, "a new sink has no progress"),
    ],
)
def test_a_broken_sink_is_caught(sink, message):
    with pytest.raises(AssertionError, match=message):
        check_sink(sink, kept=lambda opened: opened.kept)
