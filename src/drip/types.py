"""The data that crosses every boundary (sample, observation, decision) and the protocols between the rooms.

Data and protocols only: nothing here computes, reads a clock, or knows a model or a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
JsonObject = dict[str, Any]

_NO_META: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Sample:
    """One encoded item of a stream, exactly as it arrived.

    Attributes:
        id: Name that is unique within its source.
        data: The encoded bytes (JPEG, PNG, WAV, FLAC, npy); byte budgets count these.
        media_type: IANA media type of ``data``, such as ``image/png``.
        label: The true class index where known; never a prediction.
        time_s: Time of arrival or recording in seconds since the epoch, or None.
        meta: Free text pairs that travel with the sample.
        rejected: Why the source could not parse the payload, or None. The pipeline never decodes such a
            rejected sample; it goes to quarantine with this reason.
    """

    id: str
    data: bytes
    media_type: str
    label: int | None = None
    time_s: float | None = None
    meta: Mapping[str, str] = field(default_factory=lambda: _NO_META)
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that a rule may look at: one row of :class:`Observations`.

    Attributes:
        predicted_class: Index of the largest logit; the lowest index on ties.
        logits: Class scores before softmax, shape (n_classes,).
        scores: Scalars by name, such as ``drip`` or ``contrast``.
        features: Pooled features, shape (n_features,), or None.
        time_s: Time of the sample in seconds; data, not a clock.
        n_bytes: Size of the encoded sample in bytes.
        content_hash: SHA-256 of the encoded bytes, hexadecimal; empty when unknown.
    """

    predicted_class: int
    logits: FloatArray
    scores: Mapping[str, float]
    features: NDArray[np.floating[Any]] | None = None
    time_s: float | None = None
    n_bytes: int = 0
    content_hash: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision of a rule on one observation.

    Attributes:
        retain: True to keep the sample.
        priority: Order of eviction; a store over budget evicts the lowest priority first, then the oldest.
        keep_probability: Probability of keeping this observation, given the rule's state; None if the rule
            cannot tell.
        reason: A short constant word, for the audit: ``outside-window``, ``margin`` and the like.
    """

    retain: bool
    priority: float
    keep_probability: float | None
    reason: str


@dataclass(frozen=True)
class Observations(Sequence[Observation]):
    """Columns of n observations; an integer index or iteration yields :class:`Observation`.

    Attributes:
        classes: Predicted classes, int64, shape (n,).
        logits: float64, shape (n, n_classes).
        named_scores: Score columns by name, each float64 of shape (n,).
        primary: The name that :attr:`scores` returns.
        features: Pooled features, shape (n, n_features), or None.
        time_s: Seconds, float64, shape (n,), NaN where unknown; or None.
        n_bytes: Encoded sizes, int64, shape (n,); or None.
        content_hashes: SHA-256 of each encoded sample; or empty.
    """

    classes: IntArray
    logits: FloatArray
    named_scores: Mapping[str, FloatArray]
    primary: str = "drip"
    features: NDArray[np.floating[Any]] | None = None
    time_s: FloatArray | None = None
    n_bytes: IntArray | None = None
    content_hashes: tuple[str, ...] = ()

    @property
    def scores(self) -> FloatArray:
        """The primary score column, shape (n,)."""
        return self.named_scores[self.primary]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.classes)

    @overload
    def __getitem__(self, index: int) -> Observation: ...
    @overload
    def __getitem__(self, index: slice | IntArray | BoolArray) -> Observations: ...
    def __getitem__(self, index: int | slice | IntArray | BoolArray) -> Observation | Observations:
        """One row as :class:`Observation`, or a subset of the rows as :class:`Observations`."""
        if isinstance(index, (int, np.integer)):
            time_s = np.nan if self.time_s is None else float(self.time_s[index])
            return Observation(
                predicted_class=int(self.classes[index]),
                logits=self.logits[index],
                scores={name: float(column[index]) for name, column in self.named_scores.items()},
                features=None if self.features is None else self.features[index],
                time_s=None if np.isnan(time_s) else time_s,
                n_bytes=0 if self.n_bytes is None else int(self.n_bytes[index]),
                content_hash=self.content_hashes[index] if self.content_hashes else "",
            )
        rows = np.arange(len(self))[index]
        return replace(
            self,
            classes=self.classes[rows],
            logits=self.logits[rows],
            named_scores={name: column[rows] for name, column in self.named_scores.items()},
            features=None if self.features is None else self.features[rows],
            time_s=None if self.time_s is None else self.time_s[rows],
            n_bytes=None if self.n_bytes is None else self.n_bytes[rows],
            content_hashes=tuple(self.content_hashes[row] for row in rows) if self.content_hashes else (),
        )

    @classmethod
    def of(cls, *rows: Observation) -> Self:
        """Columns from single observations that all carry the same score names, and features all or none.

        Raises:
            InputError: no row, or only some rows with features.
        """
        if not rows:
            raise InputError("no observations were given")
        first = rows[0]
        features = [row.features for row in rows if row.features is not None]
        if len(features) not in (0, len(rows)):
            raise InputError(
                f"only {len(features)} of {len(rows)} observations have features; use one scorer for all of them"
            )
        return cls(
            classes=np.array([row.predicted_class for row in rows], dtype=np.int64),
            logits=np.stack([row.logits for row in rows]),
            named_scores={
                name: np.array([row.scores[name] for row in rows], dtype=np.float64) for name in first.scores
            },
            primary=next(iter(first.scores), "drip"),
            features=np.stack(features) if features else None,
            time_s=np.array([np.nan if row.time_s is None else row.time_s for row in rows]),
            n_bytes=np.array([row.n_bytes for row in rows], dtype=np.int64),
            content_hashes=tuple(row.content_hash for row in rows),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Observations]) -> Observations:
        """The rows of all parts, in order; the parts must carry the same columns."""
        first = parts[0]
        columns: dict[str, Any] = {
            "named_scores": {
                name: np.concatenate([part.named_scores[name] for part in parts])
                for name in first.named_scores
            },
            "content_hashes": tuple(value for part in parts for value in part.content_hashes),
        }
        for column in fields(first):
            if isinstance(getattr(first, column.name), np.ndarray):
                columns[column.name] = np.concatenate([getattr(part, column.name) for part in parts])
        return replace(first, **columns)


@dataclass(frozen=True)
class Decisions(Sequence[Decision]):
    """Columns of n decisions; iterating or indexing yields :class:`Decision`.

    Attributes:
        retain: bool, shape (n,).
        priority: float64, shape (n,).
        keep_probability: float64, shape (n,), or None where the rule has no such number.
        reasons: The short words, one per row.
    """

    retain: BoolArray
    priority: FloatArray
    keep_probability: FloatArray | None
    reasons: Sequence[str]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.retain)

    @overload
    def __getitem__(self, index: int) -> Decision: ...
    @overload
    def __getitem__(self, index: slice) -> Decisions: ...
    def __getitem__(self, index: int | slice) -> Decision | Decisions:
        """One row as :class:`Decision`, or a slice of the rows."""
        probability = self.keep_probability
        if isinstance(index, slice):
            return Decisions(
                self.retain[index],
                self.priority[index],
                None if probability is None else probability[index],
                self.reasons[index],
            )
        return Decision(
            retain=bool(self.retain[index]),
            priority=float(self.priority[index]),
            keep_probability=None if probability is None else float(probability[index]),
            reason=self.reasons[index],
        )


class Scorer(Protocol):
    """Turns decoded inputs into observations."""

    @property
    def provides(self) -> frozenset[str]:
        """Names that the observations carry: ``logits``, ``features`` and the score names."""
        ...

    def score(self, batch: NDArray[np.float32]) -> Observations:
        """Score decoded inputs, shape (n, input shape)."""
        ...


class Rule(Protocol):
    """A rule reads observations and returns decisions; it does no I/O and knows no model, clock or torch."""

    name: ClassVar[str]
    state_version: ClassVar[int]

    @property
    def needs(self) -> frozenset[str]:
        """Names of :attr:`Scorer.provides` that the rule reads."""
        ...

    @property
    def params(self) -> JsonObject:
        """The constructor's arguments, JSON-serialisable."""
        ...

    def calibrate(self, observations: Observations) -> Self:
        """Calibrate on observations that are representative of production; returns self."""
        ...

    def decide(self, observation: Observation) -> Decision:
        """Decide on one observation, in the order of arrival."""
        ...

    def decide_many(self, observations: Observations) -> Decisions:
        """The same as calling :meth:`decide` row by row, faster."""
        ...

    def state(self) -> JsonObject:
        """Everything that decisions depend on besides :attr:`params`; JSON-serialisable."""
        ...

    def restore(self, state: JsonObject) -> Self:
        """Continue from a saved :meth:`state`; returns self."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: what must survive a kill together with the samples.

    Attributes:
        cursor: The source's position after the last committed sample, or None.
        rule_state: The rule's state after that sample.
        policy_digest: Digest of the policy that decided.
    """

    cursor: str | None
    rule_state: JsonObject
    policy_digest: str


@runtime_checkable
class Source(Protocol):
    """A stream of samples in batches, with an honest statement of its delivery guarantee.

    Code after a ``yield`` in :meth:`batches` runs only when every sample of the batch has been
    committed by the sink, so a source may acknowledge there: at-least-once delivery. A source that
    waits yields an empty batch about every second while nothing arrives, so the consumer can stop or
    report; nothing is committed for it, and it moves no cursor.
    """

    def batches(self, max_samples: int) -> Iterator[Sequence[Sample]]:
        """Yield lists of up to ``max_samples`` samples until the end; an empty one: nothing arrived."""
        ...

    @property
    def cursor(self) -> str | None:
        """Position after the last yielded batch, or None where the source cannot seek."""
        ...

    def seek(self, cursor: str) -> None:
        """Continue after the given position; at the start when it is of another source."""
        ...


class Sink(Protocol):
    """Receives every sample with its observation and decision, kept or not."""

    def put(self, sample: Sample, observation: Observation, decision: Decision) -> None:
        """Record the decision and keep the sample if the decision says so.

        Raises:
            InputError: the sample cannot be kept (its id, label or text); nothing was written.
        """
        ...


@runtime_checkable
class DurableSink(Protocol):
    """A sink that survives a kill: puts, quarantine and progress of one transaction commit together.

    Three errors are part of the protocol, because the caller continues after them:

    **This sample cannot be kept.** :meth:`put` raises InputError, or SampleTooLargeError if the sample can
    never fit, however much is evicted. Nothing of this sample was written. The transaction stays usable: the
    caller may quarantine the sample in it and put the next ones.

    **This transaction is full.** Any write, or the end of the block, raises TransactionFullError if the sink
    cannot commit so much at once. The caller must let the error leave the block, which rolls back all of it.
    Then it retries the writes in two halves, each in a separate transaction, and so on down to a single
    write. If even a single write is too much, it is repeated outside of a transaction, where the sink may
    commit the evictions that it needs first. If that raises as well, the error is final.

    A kill between two halves delivers the first half again. So a sink ignores a put that it has recorded
    already: same sample id, same content, same policy. The caller saves the progress last, so it never
    gets ahead of the samples.

    Any other error is final, such as a full disk: the caller lets it leave the block and stops.
    :func:`drip.testing.check_sink` checks all of this.
    """

    def put(self, sample: Sample, observation: Observation, decision: Decision) -> None:
        """Record the decision and keep the sample if the decision says so.

        Raises:
            InputError: the sample cannot be kept (its id, label or text); nothing was written.
            SampleTooLargeError: the sample can never fit; nothing was written.
            TransactionFullError: the transaction is full: roll back, halve and retry.
            StoreError: the sink cannot write now.
        """
        ...

    def quarantine(self, sample: Sample, reason: str) -> None:
        """Quarantine a sample that could not be decoded, scored or kept. Accepts any sample.

        Raises:
            TransactionFullError: the transaction is full: roll back, halve and retry.
            StoreError: the sink cannot write now.
        """
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """Commit the writes of the block as one; roll back if an exception leaves it.

        Raises:
            TransactionFullError: from any write, or at the end: roll back, halve and retry.
        """
        ...

    def save_progress(self, progress: Progress) -> None:
        """Remember where the run is, in the current transaction.

        Raises:
            TransactionFullError: the transaction is full: roll back, halve and retry.
        """
        ...

    def load_progress(self) -> Progress | None:
        """The progress of the last committed transaction, or None in a new sink."""
        ...
