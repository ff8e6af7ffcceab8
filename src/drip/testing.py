"""Contract checks and fakes for authors of rules, sources and sinks.

It gets instances and checks only shapes and errors; nothing in drip imports it. Checks raise AssertionError.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from drip.errors import (
    DripError,
    InputError,
    PolicyError,
    SampleTooLargeError,
    TransactionFullError,
)
from drip.types import (
    Decision,
    Decisions,
    DurableSink,
    JsonObject,
    Observation,
    Observations,
    Progress,
    Rule,
    Sample,
    Sink,
    Source,
)

RuleFactory = Callable[[], Rule]


def fake_observations(n: int, n_classes: int = 10, seed: int = 0) -> Observations:
    """Observations like those of a classifier with a pooling head: pooled features times a matrix.

    The ``drip`` score follows the largest logit and is never negative; ``contrast`` follows the margin.
    Some classes are more frequent than others. Equal arguments produce equal observations, and the classifier
    depends on ``n_classes`` alone, so other seeds are fresh data of the same stream.

    Args:
        n: Number of rows, at least 0.
        n_classes: Number of classes, at least 2.
        seed: Seed of the inputs.

    >>> observations = fake_observations(100, n_classes=3, seed=1)
    >>> len(observations), sorted(observations.named_scores), observations.logits.shape
    (100, ['contrast', 'drip'], (100, 3))
    """
    n_features = 24
    weights = np.random.default_rng(n_classes).normal(0.0, 1.0, (n_features, n_classes))
    rng = np.random.default_rng([seed, n_classes])
    features = np.maximum(rng.normal(0.2, 1.0, (n, n_features)), 0.0)
    logits = features @ weights + np.linspace(0.5, -0.5, n_classes)
    ranked = np.sort(logits, axis=1)
    noise = rng.normal(0.0, 0.01, (2, n))
    n_bytes = rng.integers(200, 4000, n)
    return Observations(
        classes=np.argmax(logits, axis=1),
        logits=logits,
        named_scores={
            "drip": np.maximum(ranked[:, -1] / 16.0 + noise[0], 0.0),
            "contrast": np.maximum((ranked[:, -1] - ranked[:, -2]) / 16.0 + noise[1], 0.0),
        },
        features=features,
        time_s=1.7e9 + np.arange(n) / 4.0,
        n_bytes=n_bytes,
        content_hashes=tuple(hashlib.sha256(f"{seed}/{row}".encode()).hexdigest() for row in range(n)),
    )


def fake_samples(n: int, seed: int = 0) -> list[Sample]:
    """Samples with distinct ids and bytes.

    >>> [sample.id for sample in fake_samples(2)]
    ['fake-0', 'fake-1']
    """
    rng = np.random.default_rng(seed)
    return [
        Sample(f"fake-{index}", rng.bytes(8 + index % 5), "application/octet-stream", label=index % 3)
        for index in range(n)
    ]


class ListSource:
    """A seekable source over a list; its cursor is the number of samples yielded so far.

    Delivery: at-least-once from the cursor; :attr:`acknowledged` counts the samples of batches after
    whose ``yield`` the consumer came back.

    Args:
        samples: The stream.

    >>> source = ListSource(fake_samples(5))
    >>> [len(batch) for batch in source.batches(2)], source.cursor, source.acknowledged
    ([2, 2, 1], '5', 5)
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._position = 0
        self.acknowledged = 0

    def batches(self, max_samples: int) -> Iterator[Sequence[Sample]]:
        """Yield lists of one to ``max_samples`` samples until the list ends."""
        while batch := self._samples[self._position : self._position + max_samples]:
            self._position += len(batch)
            yield batch
            self.acknowledged = self._position

    @property
    def cursor(self) -> str | None:
        """Number of samples yielded so far."""
        return str(self._position)

    def seek(self, cursor: str) -> None:
        """Continue after that many samples."""
        self._position = int(cursor)


class MemorySink:
    """A sink in memory with transactions, quarantine and progress. Nothing survives the process.

    With limits it raises the same errors as a small store, so a caller's reaction can be tested.

    Args:
        max_sample_bytes: Larger samples raise SampleTooLargeError; None for no limit.
        max_writes: More writes in one transaction raise TransactionFullError; None for no limit.

    Attributes:
        puts: Every (sample, observation, decision) so far, without redeliveries.
        quarantined: Every (sample, reason) so far.
        progress: The last saved progress, or None.

    >>> sink = MemorySink(max_writes=1)
    >>> with sink.transaction():
    ...     sink.quarantine(Sample("a", b"", "image/png"), "empty")
    ...     sink.quarantine(Sample("b", b"", "image/png"), "empty")
    Traceback (most recent call last):
    ...
    drip.errors.TransactionFullError: the transaction has more than 1 writes; retry in halves
    >>> sink.quarantined
    []
    """

    def __init__(self, *, max_sample_bytes: int | None = None, max_writes: int | None = None) -> None:
        self.puts: list[tuple[Sample, Observation, Decision]] = []
        self.quarantined: list[tuple[Sample, str]] = []
        self.progress: Progress | None = None
        self._max_sample_bytes = max_sample_bytes
        self._max_writes = max_writes
        self._n_writes: int | None = None  # in the open transaction
        # What identifies a decision, in the order of the puts. A dict, as a rollback removes the last ones.
        self._recorded: dict[tuple[str, bytes, str], None] = {}

    @property
    def kept(self) -> list[str]:
        """Ids of the retained samples, in the order of arrival."""
        return [sample.id for sample, _, decision in self.puts if decision.retain]

    def put(self, sample: Sample, observation: Observation, decision: Decision) -> None:
        """Record sample, observation and decision, unless this is a redelivery."""
        if self._max_sample_bytes is not None and len(sample.data) > self._max_sample_bytes:
            raise SampleTooLargeError(
                f"sample {sample.id!r}: {len(sample.data)} bytes, but the limit is {self._max_sample_bytes}"
            )
        key = (sample.id, sample.data, "" if self.progress is None else self.progress.policy_digest)
        if key not in self._recorded:
            self._count_write()
            self._recorded[key] = None
            self.puts.append((sample, observation, decision))

    def quarantine(self, sample: Sample, reason: str) -> None:
        """Remember the two."""
        self._count_write()
        self.quarantined.append((sample, reason))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Undo the writes of the block when an exception leaves it."""
        before = (len(self.puts), len(self.quarantined), self.progress)
        self._n_writes = 0
        try:
            yield
        except BaseException:
            del self.puts[before[0] :], self.quarantined[before[1] :]
            while len(self._recorded) > len(self.puts):
                self._recorded.popitem()
            self.progress = before[2]
            raise
        finally:
            self._n_writes = None

    def save_progress(self, progress: Progress) -> None:
        """Remember the progress."""
        self._count_write()
        self.progress = progress

    def load_progress(self) -> Progress | None:
        """The last saved progress."""
        return self.progress

    def _count_write(self) -> None:
        if self._n_writes is None or self._max_writes is None:
            return
        if self._n_writes >= self._max_writes:
            raise TransactionFullError(
                f"the transaction has more than {self._max_writes} writes; retry in halves"
            )
        self._n_writes += 1


def check_rule(factory: RuleFactory, observations: Observations, *, seed: int = 0) -> None:
    """Check the contract of :class:`drip.types.Rule`.

    Decisions do not depend on how the stream is cut into batches, on the memory layout or on a restart
    from the saved state. Non-finite values and missing columns raise an error that names row and column and
    change nothing. Calibration ignores the order of its samples. Priorities are finite.

    Args:
        factory: Returns a new, uncalibrated rule, each time with equal arguments.
        observations: At least 40 rows with every column that the rule reads; half of them calibrate it.
        seed: Seed of the random batch sizes and permutations.

    Raises:
        AssertionError: the rule breaks the contract; the message says where.
        ValueError: fewer than 40 observations.
    """
    if len(observations) < 40:
        raise ValueError(f"check_rule needs at least 40 observations, got {len(observations)}")
    rng = np.random.default_rng(seed)
    half = len(observations) // 2
    calibration, stream = observations[:half], observations[half:]
    _check_description(factory)
    _check_uncalibrated(factory, stream)
    rule = factory()
    _hold(rule.calibrate(calibration) is rule, "calibrate returns the rule itself")
    start = _json_round_trip("state", rule.state())
    expected = _restored(factory, start).decide_many(stream)
    _check_decisions(expected, len(stream))
    _check_equal("the calibrated and the restored rule", rule.decide_many(stream), expected)

    single = _restored(factory, start)
    rows = [single.decide(row) for row in stream]
    _hold(rows == list(expected), "decide row by row equals decide_many")
    for _ in range(5):
        _check_batches(factory, start, stream, expected, rng)
    fortran = replace(stream, logits=np.asfortranarray(stream.logits))
    _check_equal("another memory layout", _restored(factory, start).decide_many(fortran), expected)

    shuffled = factory().calibrate(calibration[rng.permutation(half)])
    _hold(shuffled.state() == start, "calibration does not depend on the order of its samples")
    _check_refusals(factory, start, calibration, stream, rng)


def _check_description(factory: RuleFactory) -> None:
    first, second = factory(), factory()
    _hold(first is not second, "the factory gives a new rule every time")
    _hold(bool(first.name) and isinstance(first.name, str), "a rule has a name")
    _hold(isinstance(first.state_version, int), "state_version is an integer")
    _hold(isinstance(first.needs, frozenset), "needs is a frozenset")
    _hold(_json_round_trip("params", first.params) == second.params, "params are the same every time")


def _check_uncalibrated(factory: RuleFactory, stream: Observations) -> None:
    """Either the rule works without calibration, or it says that it is not calibrated."""
    uses: tuple[Callable[[Rule], object], ...] = (
        lambda rule: rule.decide_many(stream),
        lambda rule: rule.decide(stream[0]),
        lambda rule: rule.state(),
    )
    for use in uses:
        try:
            use(factory())
        except PolicyError as error:
            _hold(
                error.code == "rule-not-calibrated",
                f"an uncalibrated rule says so, got {error.code}: {error}",
            )


def _check_decisions(decisions: Decisions, n: int) -> None:
    _hold(len(decisions) == n == len(decisions.reasons), "there is one decision per observation")
    _hold(decisions.retain.dtype == np.bool_, "retain is boolean")
    _hold(bool(np.isfinite(decisions.priority).all()), "priorities are finite")
    _hold(all(isinstance(word, str) and word for word in decisions.reasons), "every decision has a reason")
    probability = decisions.keep_probability
    if probability is not None:
        _hold(bool(((probability >= 0) & (probability <= 1)).all()), "keep probabilities are in [0, 1]")
        _hold(
            bool((probability[decisions.retain] > 0).all()),
            "the keep probability of a kept sample is above 0",
        )
        _hold(
            bool((probability[~decisions.retain] < 1).all()),
            "the keep probability of a discarded sample is below 1",
        )


def _check_batches(
    factory: RuleFactory,
    start: JsonObject,
    stream: Observations,
    expected: Decisions,
    rng: np.random.Generator,
) -> None:
    """Random batches, some of them empty, with a restart from JSON before each."""
    cuts = np.sort(rng.integers(0, len(stream) + 1, 6))
    state, position = start, 0
    for stop in [*cuts.tolist(), len(stream)]:
        rule = _restored(factory, state)
        _check_equal(
            f"the batch of rows {position} to {stop} after a restart",
            rule.decide_many(stream[position:stop]),
            expected[position:stop],
        )
        state, position = _json_round_trip("state", rule.state()), stop


def _check_refusals(
    factory: RuleFactory,
    start: JsonObject,
    calibration: Observations,
    stream: Observations,
    rng: np.random.Generator,
) -> None:
    rule = _restored(factory, start)
    _refused("calibration without samples", factory().calibrate, calibration[:0])
    for name in sorted(rule.needs):
        row = int(rng.integers(1, min(len(stream), len(calibration))))
        for value in (np.nan, np.inf, -np.inf):
            bad = _with_value(stream, name, row, value)
            what = f"{value} in {name}"
            message = _refused(what, rule.decide_many, bad)
            _hold(f"row {row}" in message, f"the error about {what} names row {row}, got: {message}")
            _refused(what, rule.decide, bad[row])
            _refused(what, factory().calibrate, _with_value(calibration, name, row, value))
        if name != "logits":
            message = _refused(f"no {name}", rule.decide_many, _without(stream, name))
            _hold(name in message, f"the error names the missing {name}, got: {message}")
    _hold(_json_round_trip("state", rule.state()) == start, "an error leaves the state unchanged")


def check_source(
    factory: Callable[[], Source],
    *,
    acknowledged: Callable[[Any], int] | None = None,
) -> None:
    """Check the contract of :class:`drip.types.Source` on a finite stream of at least 3 samples.

    A rejected sample has a reason. Batches have at most the requested size; an empty one means that nothing
    arrived, and moves no cursor; the
    samples do not depend on the size; after a seek to any cursor the stream continues without losing or
    repeating samples; nothing is acknowledged before the consumer comes back.

    Args:
        factory: Opens the same stream anew, from its start.
        acknowledged: Number of samples that a source has acknowledged so far, where that can be told.

    Raises:
        AssertionError: the rule breaks the contract; the message says where.
    """
    whole = [sample for batch in factory().batches(1) for sample in batch]
    ids = [sample.id for sample in whole]
    _hold(len(whole) >= 3, f"the stream has at least 3 samples, got {len(whole)}")
    _hold(len(set(ids)) == len(ids), "sample ids are unique")
    _hold(all(sample.rejected != "" for sample in whole), "a rejected sample has a reason")
    for size in (1, 2, 3, len(whole) + 1):
        source, seen = factory(), 0
        cursors: list[tuple[str | None, int]] = []
        before = source.cursor
        for batch in source.batches(size):
            _hold(len(batch) <= size, f"batches have up to {size} samples, got {len(batch)}")
            _hold(list(batch) == whole[seen : seen + len(batch)], "samples do not depend on the batch size")
            if acknowledged is not None:
                _hold(acknowledged(source) <= seen, "a batch is not acknowledged before it was consumed")
            seen += len(batch)
            _hold(bool(batch) or source.cursor == before, "an empty batch does not move the cursor")
            before = source.cursor
            cursors.append((source.cursor, seen))
            _hold(source.cursor == cursors[-1][0], "reading the cursor does not move it")
        _hold(seen == len(whole), f"batches of {size} give all {len(whole)} samples, got {seen}")
        if acknowledged is not None:
            _hold(acknowledged(source) == seen, "every consumed batch is acknowledged")
        for cursor, position in cursors:
            if cursor is not None:
                _check_seek(factory(), cursor, whole[position:])


def _check_seek(source: Source, cursor: str, rest: Sequence[Sample]) -> None:
    source.seek(cursor)
    got = [sample for batch in source.batches(2) for sample in batch]
    _hold(got == list(rest), f"after seek({cursor!r}) come {len(rest)} samples, without loss or double")


def check_sink(
    factory: Callable[[], Sink],
    *,
    kept: Callable[[Any], Collection[str]] | None = None,
    too_large: Sample | None = None,
    too_many: Sequence[Sample] = (),
) -> None:
    """Check the contract of :class:`drip.types.Sink`, and of :class:`drip.types.DurableSink` if it is one.

    Args:
        factory: Opens a new, empty sink with room for ten small samples and those of ``too_many``.
        kept: Returns the ids of the samples in a sink, if it can tell.
        too_large: A sample that can never fit, if a durable sink has such a limit.
        too_many: Samples that fit the sink but not one transaction, if a durable sink has such a limit.

    Raises:
        AssertionError: the rule breaks the contract; the message says where.
    """
    sink, samples = factory(), fake_samples(10)
    decisions = [Decision(index % 3 != 0, float(index), 0.5, "check") for index in range(10)]
    expected: set[str] = set()
    for sample, observation, decision in zip(samples, _observations_of(samples), decisions, strict=True):
        sink.put(sample, observation, decision)
        expected |= {sample.id} if decision.retain else set()
        _check_kept(sink, kept, expected)
    durable = factory()
    if isinstance(durable, DurableSink):
        _check_transactions(durable, kept)
        if too_large is not None:
            _check_too_large(_durable(factory), too_large, kept)
        if too_many:
            _check_too_many(_durable(factory), too_many, kept)


def _durable(factory: Callable[[], Sink]) -> DurableSink:
    sink = factory()
    assert isinstance(sink, DurableSink)  # noqa: S101  # check_sink has looked
    return sink


_KEEP = Decision(retain=True, priority=1.0, keep_probability=1.0, reason="check")
_PROGRESS = Progress("cursor", {"limit": 0.25, "nested": [1, None]}, "digest")


def _observations_of(samples: Sequence[Sample]) -> Observations:
    """Observations with the true hashes and sizes of these samples, which a sink may verify."""
    return replace(
        fake_observations(len(samples), 3),
        n_bytes=np.array([len(sample.data) for sample in samples], dtype=np.int64),
        content_hashes=tuple(hashlib.sha256(sample.data).hexdigest() for sample in samples),
    )


def _put(sink: DurableSink, sample: Sample) -> None:
    sink.put(sample, _observations_of([sample])[0], _KEEP)


def _check_transactions(sink: DurableSink, kept: Callable[[Any], Collection[str]] | None) -> None:
    samples = fake_samples(3)
    rejected = replace(samples[2], rejected="not a JSON object")
    _hold(sink.load_progress() is None, "a new sink has no progress")
    with sink.transaction():
        _put(sink, samples[0])
        sink.save_progress(_PROGRESS)
    _hold(sink.load_progress() == _PROGRESS, "progress comes back as it was saved")

    def fail() -> None:
        with sink.transaction():
            _put(sink, samples[1])
            sink.quarantine(rejected, "not a JSON object")
            sink.save_progress(replace(_PROGRESS, cursor="later"))
            raise _RollbackError

    try:
        fail()
    except _RollbackError:
        pass
    else:
        raise AssertionError("an exception leaves the transaction")
    _hold(sink.load_progress() == _PROGRESS, "a failed transaction does not save progress")
    _check_kept(sink, kept, {samples[0].id})
    with sink.transaction():
        sink.quarantine(rejected, "not a JSON object")
        sink.save_progress(replace(_PROGRESS, cursor=None))
    _hold(sink.load_progress() == replace(_PROGRESS, cursor=None), "progress is replaced")
    _check_kept(sink, kept, {samples[0].id})
    for _ in range(2):
        with sink.transaction():
            _put(sink, samples[1])
    _check_kept(sink, kept, {samples[0].id, samples[1].id})  # the second put is a redelivery


def _check_too_large(
    sink: DurableSink, too_large: Sample, kept: Callable[[Any], Collection[str]] | None
) -> None:
    before, after = fake_samples(2)
    _raises(SampleTooLargeError, "a sample that can never fit", lambda: _put(sink, too_large))
    _check_kept(sink, kept, set())
    with sink.transaction():
        _put(sink, before)
        _raises(SampleTooLargeError, "a sample that can never fit", lambda: _put(sink, too_large))
        sink.quarantine(too_large, "too large")
        _put(sink, after)
    _check_kept(sink, kept, {before.id, after.id})


def _check_too_many(
    sink: DurableSink, too_many: Sequence[Sample], kept: Callable[[Any], Collection[str]] | None
) -> None:
    def put_all(samples: Sequence[Sample]) -> None:
        with sink.transaction():
            for sample in samples:
                _put(sink, sample)
            sink.save_progress(replace(_PROGRESS, cursor="later"))

    def put_in_halves(samples: Sequence[Sample]) -> None:
        try:
            put_all(samples)
        except TransactionFullError:
            if len(samples) == 1:
                _put(sink, samples[0])
            else:
                put_in_halves(samples[: len(samples) // 2])
                put_in_halves(samples[len(samples) // 2 :])

    sink.save_progress(_PROGRESS)
    _raises(TransactionFullError, "a transaction with too much", lambda: put_all(too_many))
    _hold(sink.load_progress() == _PROGRESS, "a full transaction does not save progress")
    _check_kept(sink, kept, set())
    put_in_halves(too_many)
    _check_kept(sink, kept, {sample.id for sample in too_many})


def _raises(error: type[DripError], what: str, write: Callable[[], object]) -> None:
    try:
        write()
    except DripError as caught:
        _hold(type(caught) is error, f"{what} raises {error.__name__}, got {caught!r}")
    else:
        raise AssertionError(f"contract broken: {what} must raise {error.__name__}, but nothing was raised")


class _RollbackError(Exception):
    pass


def _check_kept(sink: Any, kept: Callable[[Any], Collection[str]] | None, expected: set[str]) -> None:
    if kept is not None:
        ids = list(kept(sink))
        _hold(sorted(ids) == sorted(expected), f"the sink keeps {sorted(expected)}, got {sorted(ids)}")


def _restored(factory: RuleFactory, state: JsonObject) -> Rule:
    rule = factory()
    _hold(rule.restore(_json_round_trip("state", state)) is rule, "restore returns the rule itself")
    return rule


def _json_round_trip(what: str, value: JsonObject) -> JsonObject:
    try:
        copy: JsonObject = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{what} must be JSON without NaN: {error}") from error
    _hold(copy == value, f"{what} must come back from JSON as it was, got {copy} for {value}")
    return copy


def _check_equal(what: str, got: Decisions, expected: Decisions) -> None:
    same = (
        np.array_equal(got.retain, expected.retain)
        and got.priority.tobytes() == expected.priority.tobytes()
        and (got.keep_probability is None) == (expected.keep_probability is None)
        and np.array_equal(_or_zero(got), _or_zero(expected))
        and list(got.reasons) == list(expected.reasons)
    )
    _hold(same, f"{what} makes bit-identical decisions")


def _or_zero(decisions: Decisions) -> Any:
    return 0.0 if decisions.keep_probability is None else decisions.keep_probability


def _refused(what: str, use: Callable[..., object], argument: Observations | Observation) -> str:
    try:
        use(argument)
    except InputError as error:
        return str(error)
    except DripError as error:
        raise AssertionError(f"{what} must raise InputError, got {error!r}") from error
    raise AssertionError(f"{what} must raise InputError, but returned a value")


def _with_value(observations: Observations, name: str, row: int, value: float) -> Observations:
    if name in ("logits", "features"):
        matrix = np.array(getattr(observations, name), dtype=np.float64)
        matrix[row, -1] = value
        return (
            replace(observations, logits=matrix)
            if name == "logits"
            else replace(observations, features=matrix)
        )
    column = observations.named_scores[name].copy()
    column[row] = value
    return replace(observations, named_scores={**observations.named_scores, name: column})


def _without(observations: Observations, name: str) -> Observations:
    if name == "features":
        return replace(observations, features=None)
    rest = {key: column for key, column in observations.named_scores.items() if key != name}
    return replace(observations, named_scores=rest)


def _hold(condition: bool, promise: str) -> None:  # noqa: FBT001  # a condition
    if not condition:
        raise AssertionError(f"contract broken: {promise}")
