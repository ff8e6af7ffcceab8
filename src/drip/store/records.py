"""What the store gives back: kept samples, audit rows, quarantined samples, counts and check reports.

Data only; nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Literal, get_args

import numpy as np

from drip.types import Decision, FloatArray, Observation, Sample

Labels = Literal["true", "predicted", "human"]
"""Whose labels to take: those that came with the samples, the model's, or those that people gave."""
LABELS: tuple[str, ...] = get_args(Labels)


class LabelState(StrEnum):
    """Where the label of a kept sample comes from.

    ``UNLABELLED``: nobody knows; ``TRUE``: the label came with the sample; ``HUMAN``: a person gave it
    afterwards, which wins over a label that came with the sample.
    """

    UNLABELLED = "unlabelled"
    TRUE = "true"
    HUMAN = "human"


class Outcome(IntEnum):
    """What became of one decision; the numbers are part of the file format."""

    DISCARDED = 0
    KEPT = 1
    DUPLICATE = 2
    EVICTED = 3


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A kept sample with the decision on it.

    Attributes:
        key: Number of the decision in this store; unique, growing with age, equal to the audit row's.
        sample: The sample exactly as it arrived; ``sample.label`` is the label that came with it.
        decision: What the selector said; ``retain`` is False for what only shadow mode kept.
        predicted_class: What the model said.
        scores: The scores the decision was made from.
        content_hash: SHA-256 of the data, hexadecimal.
        policy_digest: Digest of the policy that decided; empty when unknown.
        human_label: The class index a person gave, or None.
        annotator: Who gave the human label; empty when unknown.
        repeats: How often the same content came again under another sample id.
    """

    key: int
    sample: Sample
    decision: Decision
    predicted_class: int
    scores: Mapping[str, float]
    content_hash: str
    policy_digest: str
    human_label: int | None = None
    annotator: str = ""
    repeats: int = 0

    @property
    def label_state(self) -> LabelState:
        """Where :attr:`label` comes from."""
        if self.human_label is not None:
            return LabelState.HUMAN
        return LabelState.UNLABELLED if self.sample.label is None else LabelState.TRUE

    @property
    def label(self) -> int | None:
        """The best known class index: the human one, else the one that came along, else None."""
        return self.sample.label if self.human_label is None else self.human_label


def class_of(record: StoredSample, labels: Labels) -> int | None:
    """The class index that a sample trains or is exported with, None when it has none.

    Args:
        record: The sample.
        labels: ``"true"``: the label that came with it; ``"human"``: the one a person gave;
            ``"predicted"``: what the model said.
    """
    if labels == "true":
        return record.sample.label
    return record.human_label if labels == "human" else record.predicted_class


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One decision, kept or not, with what a replay of another policy needs.

    Attributes:
        key: Number of the decision, from 1.
        sample_id: The sample's id.
        decision: What the selector said.
        outcome: What became of it; changes to ``EVICTED`` when the sample is evicted later.
        predicted_class: What the model said.
        scores: Scores by name.
        logits: float32 values as float64, shape (n_classes,); empty when the store does not keep them.
        label: The label that came with the sample, or None.
        n_bytes: Size of the sample.
        time_s: Time of the sample, or None.
        policy_digest: Digest of the policy that decided; empty when unknown.
    """

    key: int
    sample_id: str
    decision: Decision
    outcome: Outcome
    predicted_class: int
    scores: Mapping[str, float]
    logits: FloatArray
    label: int | None
    n_bytes: int
    time_s: float | None
    policy_digest: str

    @property
    def observation(self) -> Observation:
        """The observation as far as the audit remembers it: no features, logits rounded to float32."""
        return Observation(
            predicted_class=self.predicted_class,
            logits=np.array(self.logits, dtype=np.float64),
            scores=self.scores,
            time_s=self.time_s,
            n_bytes=self.n_bytes,
        )


@dataclass(frozen=True, slots=True)
class QuarantinedSample:
    """A sample that could not be decoded or scored.

    Attributes:
        key: Number of the row, growing with age.
        sample: The sample; ``data`` is empty when it was too big for the quarantine's share.
        reason: Why it was set aside.
        n_bytes: Size of the sample as it arrived.
        repeats: How often the same content came again under another sample id.
    """

    key: int
    sample: Sample
    reason: str
    n_bytes: int
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Counts of one predicted class.

    Attributes:
        seen: Decisions recorded; equals ``kept + discarded + evicted + duplicates``.
        kept: Samples in the store now.
        kept_bytes: Their data, in bytes.
        discarded: Decisions not to retain.
        evicted: Retained but dropped for the budget, on arrival or later.
        duplicates: Retained but the same content was there already.
    """

    seen: int = 0
    kept: int = 0
    kept_bytes: int = 0
    discarded: int = 0
    evicted: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The store in numbers.

    Attributes:
        seen: Decisions recorded; equals ``kept + discarded + evicted + duplicates``.
        kept: Samples in the store now.
        discarded: Decisions not to retain.
        evicted: Retained but dropped for the budget, on arrival or later.
        duplicates: Retained but the same content was there already.
        redelivered: Puts ignored because the same decision had been recorded before.
        quarantined: Samples in quarantine now.
        quarantine_dropped: Quarantined samples that gave way to newer ones.
        kept_bytes: Data of the kept samples, in bytes.
        disk_bytes: What the file, its log and its index take on disk now.
        budget_bytes: What they may take at any moment.
        first_time_s: Earliest time of a seen sample, or None.
        last_time_s: Latest time of a seen sample, or None.
        audit_rows: Rows of the audit now.
        classes: Counts by predicted class.
        audit_shadowed: Rows of the audit whose sample was kept although the rule discards (shadow mode).
        kept_shadowed: Samples in the store now that only shadow mode keeps; the rule keeps the others.
    """

    seen: int
    kept: int
    discarded: int
    evicted: int
    duplicates: int
    redelivered: int
    quarantined: int
    quarantine_dropped: int
    kept_bytes: int
    disk_bytes: int
    budget_bytes: int
    first_time_s: float | None
    last_time_s: float | None
    audit_rows: int
    classes: Mapping[int, ClassCounts]
    audit_shadowed: int = 0
    kept_shadowed: int = 0


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What :meth:`RetentionStore.check` found.

    Attributes:
        path: The file.
        n_samples: Kept samples whose data were hashed again.
        problems: One sentence each; empty when the store is sound.
    """

    path: str
    n_samples: int
    problems: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems
