"""One decision, validated and encoded before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

from drip.errors import InputError, SampleTooLargeError
from drip.store import codec
from drip.store.budget import PUT_FRAMES, Layout
from drip.types import Decision, Observation, Sample

_AUDIT_OVERHEAD_BYTES = 96  # of an audit row and its index entry, beside texts and logits


@dataclass(slots=True)
class Incoming:
    """What a put writes, and how much room it takes.

    Attributes:
        sample: The sample.
        digest: SHA-256 of its data, 32 bytes.
        predicted_class: What the model said.
        retain: The decision.
        keep: What is done, which in shadow mode is not what was decided.
        priority: Never NaN.
        probability: Keep probability or None.
        reason: The decision's word.
        label: The label that came along, or None.
        time_s: Of the sample, else of the observation; None for NaN.
        scores: JSON.
        logits: float32 bytes, or None where the store keeps none.
        meta: JSON or None.
        row_bytes: What the audit counts for its row.
        audit_pages: Pages of the audit row at most.
        n_pages: Pages of all rows at most.
        n_frames: Pages that change at most, evictions not counted.
    """

    sample: Sample
    digest: bytes
    predicted_class: int
    retain: bool
    keep: bool
    priority: float
    probability: float | None
    reason: str
    label: int | None
    time_s: float | None
    scores: str
    logits: bytes | None
    meta: str | None
    row_bytes: int
    audit_pages: int
    n_pages: int
    n_frames: int

    @property
    def hash_prefix(self) -> int:
        """The first 64 bits of the digest, as SQLite's signed integer."""
        return int.from_bytes(self.digest[:8], "big", signed=True)


def prepare(
    sample: Sample,
    observation: Observation,
    decision: Decision,
    *,
    layout: Layout,
    max_bytes: int,
    scores: codec.ScoreCodec,
    with_logits: bool,
    keep: bool | None = None,
) -> Incoming:
    """Validate and encode.

    Args:
        sample: As for :meth:`drip.store.RetentionStore.put`.
        observation: As there.
        decision: As there.
        layout: The shares of the budget.
        max_bytes: The most that fits beside what never gives way.
        scores: Remembers templates.
        with_logits: Whether the audit keeps them.
        keep: As there.

    Raises:
        InputError: NaN priority, a wrong content hash, an unusable id, text, label or time.
        SampleTooLargeError: the sample can never fit.
    """
    codec.require_sample(sample)
    priority = float(decision.priority)
    if priority != priority:  # noqa: PLR0124  # NaN, twice as fast as isnan
        message = (
            f"decision.priority of sample {sample.id!r} must be a number, got {priority!r}; "
            "use -inf for the lowest"
        )
        raise InputError(message)
    retain = bool(decision.retain)
    is_kept = retain if keep is None else bool(keep)
    digest = codec.content_digest(sample, observation, verify=is_kept)
    score_text = scores.encode(observation.scores)
    logits = codec.encode_logits(observation.logits) if with_logits else None
    meta = codec.encode_meta(sample.meta) if sample.meta else None
    n_texts = len(score_text) + codec.texts_bytes(sample, decision)
    n_logits = 0 if logits is None else len(logits)
    n_history = 4 * n_texts + n_logits
    n_bytes = n_history
    if is_kept:
        n_bytes += len(sample.data) + (0 if meta is None else len(meta))
    if n_bytes > max_bytes:
        message = (
            f"a sample and what is recorded with it must fit {max_bytes} bytes in a store of "
            f"budget_bytes={layout.budget_bytes}, got {n_bytes} bytes for sample {sample.id!r}; "
            "raise budget_bytes or log_bytes, or shrink the sample"
        )
        raise SampleTooLargeError(message)
    n_pages = layout.pages_of(n_bytes)
    return Incoming(
        sample,
        digest,
        int(observation.predicted_class),
        retain,
        is_kept,
        priority,
        None if decision.keep_probability is None else float(decision.keep_probability),
        decision.reason,
        None if sample.label is None else codec.encode_label(sample),
        codec.encode_time(sample, observation.time_s),
        score_text,
        logits,
        meta,
        2 * n_texts + n_logits + _AUDIT_OVERHEAD_BYTES,
        layout.pages_of(n_history),
        n_pages,
        PUT_FRAMES + n_pages + layout.map_pages_of(n_pages),
    )
