"""The production loop: from a source through scorer and rule into a sink.

It knows protocols only: no model, no store, no broker. Decisions are made in the order of arrival.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from drip.errors import (
    DripError,
    InputError,
    NonFiniteError,
    PolicyError,
    SampleTooLargeError,
    TransactionFullError,
)
from drip.files import canonical_json, sha256_hex
from drip.media import decode_npy
from drip.rules import require_scores
from drip.types import (
    Decision,
    Decisions,
    DurableSink,
    Observation,
    Observations,
    Progress,
    Rule,
    Sample,
    Scorer,
    Sink,
    Source,
)

OnError = Literal["raise", "skip", "quarantine"]
_OF_THE_SAMPLE = (InputError, NonFiniteError)
"""What a scorer raises of one sample; any other error is of the model, and stops the run."""

Prepare = Callable[[bytes, str], NDArray[np.float32]]


@dataclass
class Tally:
    """What a run has done so far.

    Attributes:
        n_seen: Samples taken from the source.
        n_retained: Samples that the rule kept.
        n_discarded: Samples that the rule discarded.
        n_skipped: Samples that were skipped (``on_error="skip"``): they could not be decoded or scored, or
            the sink refused them.
        n_quarantined: Samples that went to quarantine for the same reasons (``on_error="quarantine"``).
        bytes_seen: Encoded bytes taken from the source.
        bytes_retained: Encoded bytes of the samples that the rule kept.
        seen_by_class: Decided samples per predicted class.
        retained_by_class: Kept samples per predicted class.
        discarded_by_reason: Discarded samples per reason of the rule, such as the gate that rejected them.
        seconds: Wall-clock seconds by stage: ``prepare``, ``score``, ``decide``, ``store``.
        interrupted: True when the run was asked to stop before the source ended.
        last_id: Id of the last committed sample, or None.
        last_time_s: Time of that sample in seconds since the epoch, or None.
    """

    n_seen: int = 0
    n_retained: int = 0
    n_discarded: int = 0
    n_skipped: int = 0
    n_quarantined: int = 0
    bytes_seen: int = 0
    bytes_retained: int = 0
    seen_by_class: dict[int, int] = field(default_factory=dict)
    retained_by_class: dict[int, int] = field(default_factory=dict)
    discarded_by_reason: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("prepare", "score", "decide", "store"), 0.0)
    )
    interrupted: bool = False
    last_id: str | None = None
    last_time_s: float | None = None

    @property
    def retention(self) -> float:
        """Keep rate of the decided samples; NaN before the first."""
        decided = self.n_retained + self.n_discarded
        return self.n_retained / decided if decided else float("nan")

    def _count(self, observed: _Observed, decisions: Decisions) -> None:
        if observed.observations is None:
            return
        kept, classes = decisions.retain, observed.observations.classes
        self.n_retained += int(kept.sum())
        self.n_discarded += int((~kept).sum())
        self.bytes_retained += sum(
            len(sample.data) for sample, keep in zip(observed.samples, kept.tolist(), strict=True) if keep
        )
        for counts, members in ((self.seen_by_class, classes), (self.retained_by_class, classes[kept])):
            for number, count in zip(*np.unique(members, return_counts=True), strict=True):
                counts[int(number)] = counts.get(int(number), 0) + int(count)
        for reason, count in Counter(
            decisions.reasons[row] for row in np.flatnonzero(~kept).tolist()
        ).items():
            self.discarded_by_reason[reason] = self.discarded_by_reason.get(reason, 0) + count


def prepare_npy(data: bytes, media_type: str) -> NDArray[np.float32]:  # noqa: ARG001  # the type is checked by the format's magic
    """Decode npy bytes as they are: for samples that already are model inputs."""
    return decode_npy(data).astype(np.float32)


def run(
    source: Source | Iterable[Sample],
    scorer: Scorer,
    rule: Rule,
    sink: Sink,
    *,
    prepare: Prepare = prepare_npy,
    batch_size: int = 32,
    on_error: OnError = "raise",
    policy_digest: str = "",
    on_progress: Callable[[Tally], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Tally:
    """Decide on every sample of a source and hand it to the sink.

    Samples are scored in batches of up to ``batch_size`` and decided one after the other in the order
    of arrival. With a :class:`~drip.types.DurableSink` the samples of a batch, their decisions, the
    rule's state and the source's position commit together; a run that was killed continues after the last
    committed batch when it is started again on the same sink.

    An empty batch means that nothing arrived: a waiting source yields one now and then, so
    ``on_progress`` and ``stop`` are served meanwhile; nothing is committed for it.

    A plain iterable of samples is read ahead by up to one batch; give it a method ``batches`` when
    code after its ``yield`` acknowledges. After an exception create a new source and rule: they may have
    advanced beyond the last commit.

    Args:
        source: Where samples come from.
        scorer: Turns decoded inputs into observations.
        rule: A calibrated rule.
        sink: Receives every sample, kept or not.
        prepare: Bytes and media type to one model input, such as :meth:`InputSpec.prepare`.
        batch_size: Largest number of samples scored at once, at least 1.
        on_error: What happens to a sample that cannot be decoded or scored, or that the sink rejects (it can
            never fit, or has an id, label or text that cannot be kept): ``raise`` stops, ``skip`` skips and
            counts it, ``quarantine`` hands it to the sink with the reason and counts it.
        policy_digest: Identifies the policy. The saved state of the rule is restored only if the interrupted
            run had the same one. Empty: the digest of the rule itself.
        on_progress: Called after every batch, even an empty one.
        stop: Asked after every batch, even an empty one; True ends the run cleanly.

    Returns:
        The counts of this call.

    Raises:
        InputError: an argument is outside its range, or a bad sample with ``on_error="raise"``.
        ModelError: a model that cannot be scored; or with ``on_error="raise"`` a sample with NaN logits.
        PolicyError: the sink's saved state does not belong to the rule.
        StoreError: the sink cannot accept a sample; earlier commits are safe.
    """
    _check_arguments(scorer, rule, sink, batch_size, on_error)
    policy_digest = policy_digest or rule_digest(rule)
    _resume(source, rule, sink, policy_digest)
    tally = Tally()
    for batch in _batches(source, batch_size):
        if not batch:
            if _is_asked_to_stop(tally, on_progress, stop):
                break
            continue
        observed = _observe(batch, scorer, prepare, tally.seconds)
        if on_error == "raise":
            observed.raise_first()
        writes: list[Callable[[], None]] = []
        refused: set[int] = set()
        clock = perf_counter()
        if observed.observations is not None:
            decisions = rule.decide_many(observed.observations)
            rows = zip(observed.samples, observed.observations, decisions, strict=True)
            writes += [
                partial(_put, sink, on_error, partial(refused.add, index), *row)
                for index, row in enumerate(rows)
            ]
            tally._count(observed, decisions)  # noqa: SLF001  # the loop is its only writer
        clock = _lap(tally.seconds, "decide", clock)
        if isinstance(sink, DurableSink):
            if on_error == "quarantine":
                writes += [
                    partial(sink.quarantine, sample, str(error)) for sample, error in observed.failures
                ]
            cursor = source.cursor if isinstance(source, Source) else None
            writes.append(partial(sink.save_progress, Progress(cursor, rule.state(), policy_digest)))
        _commit(sink, writes)
        _lap(tally.seconds, "store", clock)
        tally.n_seen += len(batch)
        tally.bytes_seen += sum(len(sample.data) for sample in batch)
        n_bad = len(observed.failures) + len(refused)
        tally.n_quarantined += n_bad if on_error == "quarantine" else 0
        tally.n_skipped += n_bad if on_error == "skip" else 0
        tally.last_id, tally.last_time_s = batch[-1].id, batch[-1].time_s
        if _is_asked_to_stop(tally, on_progress, stop):
            break
    return tally


def observe(
    samples: Iterable[Sample],
    scorer: Scorer,
    *,
    prepare: Prepare = prepare_npy,
    batch_size: int = 256,
    on_progress: Callable[[int], None] | None = None,
) -> Observations:
    """Score samples without deciding: what calibration needs.

    Args:
        samples: Any number of samples; they are decoded batch by batch.
        scorer: Turns decoded inputs into observations.
        prepare: Bytes and media type to one model input.
        batch_size: Samples scored at once.
        on_progress: Called after every batch with the number scored so far.

    Raises:
        InputError: no sample, or one that cannot be decoded, by its id.
        ModelError: a sample that the model cannot score, by its id.
    """
    parts: list[Observations] = []
    n_scored = 0
    for batch in _read_ahead(samples, batch_size):
        observed = _observe(batch, scorer, prepare, {})
        observed.raise_first()
        if observed.observations is not None:
            parts.append(observed.observations)
        n_scored += len(batch)
        if on_progress is not None:
            on_progress(n_scored)
    if not parts:
        raise InputError("the source contains no samples; check its path", code="source-empty")
    return Observations.concatenate(parts)


@dataclass
class _Observed:
    """A batch after scoring: the scored samples, their observations, and the failed ones."""

    samples: list[Sample] = field(default_factory=list)
    observations: Observations | None = None
    failures: list[tuple[Sample, DripError]] = field(default_factory=list)

    def raise_first(self) -> None:
        """Raise the first failure with the sample's id."""
        for sample, error in self.failures:
            raise error.within(f"sample {sample.id!r}") from error


def _observe(
    batch: Sequence[Sample], scorer: Scorer, prepare: Prepare, seconds: dict[str, float]
) -> _Observed:
    clock = perf_counter()
    observed = _Observed()
    inputs: list[NDArray[np.float32]] = []
    for sample in batch:
        if sample.rejected is not None:
            observed.failures.append((sample, InputError(sample.rejected, code="payload-invalid")))
            continue
        try:
            inputs.append(prepare(sample.data, sample.media_type))
            observed.samples.append(sample)
        except InputError as error:
            observed.failures.append((sample, error))
        except Exception as error:  # noqa: BLE001  # a user's own decoder may raise anything on bad bytes
            failure = InputError(f"it cannot be decoded: {type(error).__name__}: {error}")
            failure.__cause__ = error
            observed.failures.append((sample, failure))
    clock = _lap(seconds, "prepare", clock)
    if inputs:
        _score(scorer, inputs, observed)
    _lap(seconds, "score", clock)
    return observed


def _score(scorer: Scorer, inputs: list[NDArray[np.float32]], observed: _Observed) -> None:
    """Score a batch; if that fails, score one by one, so a bad sample does not affect the others."""
    try:
        observed.observations = _complete(scorer.score(_stacked(inputs)), observed.samples)
    except _OF_THE_SAMPLE:
        candidates, observed.samples, parts = observed.samples, [], []
        for sample, values in zip(candidates, inputs, strict=True):
            try:
                parts.append(_complete(scorer.score(values[None]), [sample]))
                observed.samples.append(sample)
            except _OF_THE_SAMPLE as error:
                observed.failures.append((sample, error))
        observed.observations = Observations.concatenate(parts) if parts else None


def _stacked(inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    shapes = {values.shape for values in inputs}
    if len(shapes) > 1:
        raise InputError(
            f"inputs have different shapes: {sorted(shapes)}; use an InputSpec", code="sample-shape"
        )
    return np.stack(inputs)


def rule_digest(rule: Rule) -> str:
    """SHA-256 of a rule's name, arguments, state and state version, hexadecimal."""
    content = [rule.name, rule.params, rule.state(), rule.state_version]
    return sha256_hex(canonical_json(content))


def _check_arguments(scorer: Scorer, rule: Rule, sink: Sink, batch_size: int, on_error: OnError) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size!r}")
    if on_error not in get_args(OnError):
        raise InputError(f"on_error must be one of {', '.join(get_args(OnError))}, got {on_error!r}")
    if on_error == "quarantine" and not isinstance(sink, DurableSink):
        raise InputError(f"on_error='quarantine' needs a sink with a quarantine, got {type(sink).__name__}")
    require_scores(rule, scorer.provides, "configure the scorer for it")


def _resume(source: Source | Iterable[Sample], rule: Rule, sink: Sink, policy_digest: str) -> None:
    if not isinstance(sink, DurableSink):
        return
    progress = sink.load_progress()
    cursor = None if progress is None else progress.cursor
    if cursor is not None and isinstance(source, Source):
        source.seek(cursor)
    if progress is not None and progress.policy_digest == policy_digest:
        try:
            rule.restore(progress.rule_state)
        except (InputError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise PolicyError(
                f"the state saved in the sink does not match the rule {rule.name!r} ({error}); use the "
                "version of DRIP that wrote it, or start with a new store",
                code="rule-state",
            ) from error
    else:  # before the first sample, because the sink records the policy with each sample
        with sink.transaction():
            sink.save_progress(Progress(cursor, rule.state(), policy_digest))


def _put(
    sink: Sink,
    on_error: OnError,
    count_refusal: Callable[[], None],
    sample: Sample,
    observation: Observation,
    decision: Decision,
) -> None:
    try:
        sink.put(sample, observation, decision)
    except (SampleTooLargeError, InputError) as error:
        if on_error == "raise":
            raise
        count_refusal()  # go on: otherwise every new run would stop at this sample again
        if on_error == "quarantine" and isinstance(sink, DurableSink):
            sink.quarantine(sample, str(error))


def _commit(sink: Sink, writes: Sequence[Callable[[], None]]) -> None:
    """Write in one transaction, or in halves if the sink cannot commit so much at once.

    See :class:`~drip.types.DurableSink` for what a sink promises. The progress is the last write, so it never
    gets ahead of the samples.
    """
    transaction = sink.transaction() if isinstance(sink, DurableSink) else nullcontext()
    try:
        with transaction:
            for write in writes:
                write()
    except TransactionFullError:
        if len(writes) == 1:
            writes[0]()  # outside of a transaction, where the sink may commit the evictions it needs first
            return
        middle = len(writes) // 2
        _commit(sink, writes[:middle])
        _commit(sink, writes[middle:])


def _is_asked_to_stop(
    tally: Tally, on_progress: Callable[[Tally], None] | None, stop: Callable[[], bool] | None
) -> bool:
    if on_progress is not None:
        on_progress(tally)
    if stop is not None and stop():
        tally.interrupted = True
    return tally.interrupted


def _batches(source: Source | Iterable[Sample], batch_size: int) -> Iterator[Sequence[Sample]]:
    if isinstance(source, Source):
        return source.batches(batch_size)
    return _read_ahead(source, batch_size)


def _read_ahead(samples: Iterable[Sample], batch_size: int) -> Iterator[Sequence[Sample]]:
    iterator = iter(samples)
    while batch := list(islice(iterator, batch_size)):
        yield batch


def _complete(observations: Observations, samples: Sequence[Sample]) -> Observations:
    """Check that all values are finite; add the time, size and hash, which the scorer cannot know."""
    for name, column in {"logits": observations.logits, **observations.named_scores}.items():
        if not np.isfinite(column).all():
            raise NonFiniteError(f"the model outputs NaN or infinity as {name}; check the scale of the input")
    times = [np.nan if sample.time_s is None else sample.time_s for sample in samples]
    return replace(
        observations,
        time_s=np.array(times, dtype=np.float64),
        n_bytes=np.array([len(sample.data) for sample in samples], dtype=np.int64),
        content_hashes=tuple(sha256_hex(sample.data) for sample in samples),
    )


def _lap(seconds: dict[str, float], stage: str, since: float) -> float:
    now = perf_counter()
    seconds[stage] = seconds.get(stage, 0.0) + now - since
    return now
