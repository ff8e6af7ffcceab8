"""The records that a store returns: kept samples, audit rows, quarantined samples, counts, check reports.

Data only; nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Literal, get_args

import numpy as np

from drip.types import Decision, FloatArray, JsonObject, Observation, Sample

Labels = Literal["true", "predicted", "human"]
"""Which labels to use: ``true`` came with the samples, ``predicted`` by the model, ``human`` by people."""
LABELS: tuple[str, ...] = get_args(Labels)


class LabelState(StrEnum):
    """Where the label of a kept sample comes from.

    ``UNLABELLED``: there is no label. ``TRUE``: the label came with the sample. ``HUMAN``: a person gave it
    afterwards; it overrides a label that came with the sample.
    """

    UNLABELLED = "unlabelled"
    TRUE = "true"
    HUMAN = "human"


class Outcome(IntEnum):
    """What happened to the sample of one decision; the numbers are part of the file format."""

    DISCARDED = 0
    KEPT = 1
    DUPLICATE = 2
    EVICTED = 3


@dataclass(frozen=True, slots=True)
class Origin:
    """What the scores under a policy were computed from; a replay compares it with its own policy.

    Attributes:
        model_digests: SHA-256 of the model, and of files made from it, hexadecimal.
        score: Score definition: method, layer and the like.
        family: :attr:`drip.policy.Policy.family` of the policy; empty where an earlier version did not note it.
        class_names: In the order of the logits; or empty.
    """

    model_digests: tuple[str, ...] = ()
    score: JsonObject = field(default_factory=dict)
    family: str = ""
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A kept sample with the decision on it.

    Attributes:
        key: Number of the decision in this store: unique, increasing, and the same in the audit.
        sample: The sample exactly as it arrived; ``sample.label`` is the label that came with it.
        decision: The rule's decision.
        predicted_class: The model's prediction.
        scores: The scores that the rule compared.
        content_hash: SHA-256 of the data, hexadecimal.
        policy_digest: Digest of the policy that decided; empty when unknown.
        human_label: The class index a person gave, or None.
        annotator: Who gave the human label; empty when unknown.
        repeats: How often the same content arrived again under another sample id.
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
    def shadow(self) -> bool:
        """True if only shadow mode kept the sample: the rule would have discarded it."""
        return not self.decision.retain

    @property
    def label_state(self) -> LabelState:
        """Where :attr:`label` comes from."""
        if self.human_label is not None:
            return LabelState.HUMAN
        return LabelState.UNLABELLED if self.sample.label is None else LabelState.TRUE

    @property
    def label(self) -> int | None:
        """The human label, else the one that came with the sample, else None."""
        return self.sample.label if self.human_label is None else self.human_label


def class_of(record: StoredSample, labels: Labels) -> int | None:
    """The class index with which a sample is trained or exported, or None.

    Args:
        record: The sample.
        labels: Which label to use.
    """
    if labels == "true":
        return record.sample.label
    return record.human_label if labels == "human" else record.predicted_class


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One decision, kept or not, with everything that a replay of another policy needs.

    Attributes:
        key: Number of the decision, from 1.
        sample_id: The sample's id.
        decision: The rule's decision.
        outcome: What happened to the sample; becomes ``EVICTED`` when it is evicted later.
        predicted_class: The model's prediction.
        scores: Scores by name.
        logits: float32 values as float64, shape (n_classes,); empty if the store does not keep them.
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
    def shadow(self) -> bool:
        """True if the rule discarded the sample, but shadow mode kept it."""
        return not self.decision.retain and self.outcome != Outcome.DISCARDED

    @property
    def observation(self) -> Observation:
        """The observation as far as the audit contains it: without features, logits rounded to float32."""
        return Observation(
            predicted_class=self.predicted_class,
            logits=np.array(self.logits, dtype=np.float64),
            scores=self.scores,
            time_s=self.time_s,
            n_bytes=self.n_bytes,
        )


@dataclass(frozen=True, slots=True)
class QuarantinedSample:
    """A sample that could not be decoded, scored or kept.

    Attributes:
        key: Number of the row, increasing over time.
        sample: The sample; ``data`` is empty if it is larger than the quarantine's share.
        reason: Why it is in quarantine.
        n_bytes: Size of the sample as it arrived.
        repeats: How often the same content arrived again under another sample id.
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
        discarded: Samples that were not kept.
        evicted: Samples evicted to stay inside the budget, on arrival or later.
        duplicates: Samples whose content was kept already.
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
        discarded: Samples that were not kept.
        evicted: Samples evicted to stay inside the budget, on arrival or later.
        duplicates: Samples whose content was kept already.
        redelivered: Puts ignored because the same decision was recorded before.
        quarantined: Samples in quarantine now.
        quarantine_dropped: Quarantined samples that were deleted for newer ones.
        kept_bytes: Data of the kept samples, in bytes.
        disk_bytes: Size of the file, its log and its index now.
        budget_bytes: Limit for that size at any moment.
        first_time_s: Earliest time of a seen sample, or None.
        last_time_s: Latest time of a seen sample, or None.
        audit_rows: Rows of the audit now.
        classes: Counts by predicted class.
        audit_shadowed: Rows of the audit with :attr:`AuditRow.shadow`.
        kept_shadowed: Samples in the store now with :attr:`StoredSample.shadow`.
        class_names: Names of the classes, if the policies that ran into the store agree on them; or empty.
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
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of :meth:`RetentionStore.check`.

    Attributes:
        path: The file.
        n_samples: Kept samples whose hash was checked.
        problems: One sentence each; empty if the store is sound.
    """

    path: str
    n_samples: int
    problems: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """True if the store is sound."""
        return not self.problems
