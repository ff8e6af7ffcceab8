"""Replay: what another policy would have kept, computed from the decisions in a store's audit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from drip.errors import PolicyError
from drip.policy import Policy
from drip.rules import BaseRule, require_scores
from drip.store import AuditRow, Origin, RetentionStore
from drip.types import BoolArray, FloatArray, IntArray, Observations

_CHUNK = 4096
_N_PARTS = 10
_SCORE_KEYS = ("method", "heatmap", "layer", "layer_shape")


@dataclass(frozen=True, slots=True)
class ReplayCounts:
    """Decisions of one class, or of one part of the stream.

    Attributes:
        seen: Decisions.
        retained_before: What the recorded policies retained.
        retained_now: What the new policy retains.
        agreeing: Decisions that are the same.
        bytes_before: Encoded bytes of the samples that were retained.
        bytes_now: Encoded bytes of the samples that the new policy retains.
    """

    seen: int
    retained_before: int
    retained_now: int
    agreeing: int
    bytes_before: int
    bytes_now: int


@dataclass(frozen=True, slots=True)
class ReplayPart:
    """A tenth of the decisions, in the order of arrival.

    Attributes:
        first_time_s: Earliest time of a sample in it, or None.
        last_time_s: Latest time of a sample in it, or None.
        counts: Its decisions.
    """

    first_time_s: float | None
    last_time_s: float | None
    counts: ReplayCounts


@dataclass(frozen=True)
class ReplayReport:
    """What a policy would have retained. Budget and duplicates are ignored, so a store may keep less.

    Attributes:
        policy_digest: The new policy.
        rule: Its rule.
        class_names: In the order of the classes; or empty.
        counts: All replayed decisions.
        n_forgotten: Oldest decisions, which the audit no longer has.
        n_other_models: Decisions on scores of other models, which were left out.
        n_unknown_model: Replayed decisions for which the store has no model.
        classes: By predicted class.
        parts: Over time: up to ten parts of equal counts.
    """

    policy_digest: str
    rule: str
    class_names: tuple[str, ...]
    counts: ReplayCounts
    n_forgotten: int
    n_other_models: int
    n_unknown_model: int
    classes: Mapping[int, ReplayCounts]
    parts: tuple[ReplayPart, ...]


def replay(store_path: str | Path, policy: Policy) -> ReplayReport:
    """Decide again on the observations in a store's audit; the store is only read.

    Rows are decided in the order of arrival, starting from the rule's calibrated state like a new run.

    Args:
        store_path: The store.
        policy: The policy to try.

    Raises:
        PolicyError: the audit has no decision, or only decisions on another model or score definition.
        InputError: the audit lacks a score that the rule reads.
        StoreError: the store does not exist or is damaged.
    """
    rule = policy.to_rule()
    columns = _Columns()
    n_unknown = n_others = 0
    with RetentionStore.open_readonly(store_path) as store:
        origins = store.origins()
        serves = {digest: _serves(origin, policy) for digest, origin in origins.items()}
        rows = iter(store.audit())
        while chunk := list(islice(rows, _CHUNK)):
            ours = [row for row in chunk if serves.get(row.policy_digest, True)]
            n_others += len(chunk) - len(ours)
            n_unknown += sum(row.policy_digest not in origins for row in ours)
            if ours:
                columns.add(ours, rule.decide_many(_observations(ours, rule, policy)).retain)
        n_forgotten = store.stats().seen - len(columns) - n_others
    if not len(columns):
        raise _nothing_to_replay(store_path, n_others, policy, origins.values())
    return columns.report(policy, n_forgotten=n_forgotten, n_others=n_others, n_unknown=n_unknown)


def _serves(origin: Origin, policy: Policy) -> bool:
    """True if the decisions were made on the scores that the policy was calibrated on."""
    # Stores of earlier versions lack some keys; only those that both have can disagree.
    score, other = origin.score, policy.provenance.score
    same = all(score.get(key) == other.get(key) for key in _SCORE_KEYS if key in score and key in other)
    return same and policy.provenance.model_digest in origin.model_digests


def _nothing_to_replay(
    store_path: str | Path, n_others: int, policy: Policy, origins: Iterable[Origin]
) -> PolicyError:
    if not n_others:
        message = f"{store_path}: the audit has no decisions; run a stream into the store first"
        return PolicyError(message, code="audit-empty")
    found = sorted({f"{digest[:12]}..." for origin in origins for digest in origin.model_digests})
    message = (
        f"{store_path}: the decisions were made on another model or score ({', '.join(found)}) than the "
        f"policy's ({policy.provenance.model_digest[:12]}...); calibrate with the model that ran"
    )
    return PolicyError(message, code="audit-other-model")


def _observations(rows: list[AuditRow], rule: BaseRule, policy: Policy) -> Observations:
    names = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
    widths = {len(row.logits) for row in rows}
    if widths - {0, policy.n_classes}:
        raise _other_classes(f"{max(widths)} classes", policy)
    has_logits = 0 not in widths
    held = {*names, "logits"} if has_logits else set(names)
    require_scores(rule, held, _advice(rule.needs - held))
    classes = np.array([row.predicted_class for row in rows], dtype=np.int64)
    if classes.max() >= policy.n_classes:
        raise _other_classes(f"class {classes.max()}", policy)
    logits = np.stack([row.logits for row in rows]) if has_logits else np.zeros((len(rows), policy.n_classes))
    return Observations(
        classes=classes,
        logits=logits,
        named_scores={name: np.array([row.scores[name] for row in rows]) for name in names},
        primary=names[0] if names else "drip",
        time_s=np.array([np.nan if row.time_s is None else row.time_s for row in rows]),
        n_bytes=np.array([row.n_bytes for row in rows], dtype=np.int64),
    )


def _other_classes(found: str, policy: Policy) -> PolicyError:
    message = (
        f"the audit has decisions on {found}, but the policy is for {policy.n_classes} classes; calibrate "
        "with the model that ran"
    )
    return PolicyError(message, code="policy-other-classes")


def _advice(missing: frozenset[str]) -> str:
    if "features" in missing:
        return "the audit has no features, as they are too large; try this rule with drip run --shadow"
    if "logits" in missing:
        return "make the store with audit_logits=True"
    return "run a model or file that provides this score"


class _Columns:
    """The columns that the report needs, as arrays."""

    def __init__(self) -> None:
        self._parts: list[tuple[IntArray, IntArray, BoolArray, BoolArray, FloatArray]] = []

    def __len__(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    def add(self, rows: list[AuditRow], now: BoolArray) -> None:
        classes = np.array([row.predicted_class for row in rows], dtype=np.int64)
        sizes = np.array([row.n_bytes for row in rows], dtype=np.int64)
        before = np.array([row.decision.retain for row in rows], dtype=np.bool_)
        times = np.array([np.nan if row.time_s is None else row.time_s for row in rows], dtype=np.float64)
        self._parts.append((classes, sizes, before, now, times))

    def report(self, policy: Policy, *, n_forgotten: int, n_others: int, n_unknown: int) -> ReplayReport:
        classes, sizes, before, now, times = (np.concatenate(part) for part in zip(*self._parts, strict=True))

        def counts(rows: BoolArray | slice) -> ReplayCounts:
            return ReplayCounts(
                seen=len(sizes[rows]),
                retained_before=int(before[rows].sum()),
                retained_now=int(now[rows].sum()),
                agreeing=int((before[rows] == now[rows]).sum()),
                bytes_before=int(sizes[rows][before[rows]].sum()),
                bytes_now=int(sizes[rows][now[rows]].sum()),
            )

        edges = np.linspace(0, len(sizes), min(_N_PARTS, len(sizes)) + 1).round().astype(int).tolist()
        parts = []
        for start, end in pairwise(edges):
            known = times[start:end][np.isfinite(times[start:end])]
            first_s, last_s = (float(known.min()), float(known.max())) if len(known) else (None, None)
            parts.append(ReplayPart(first_s, last_s, counts(slice(start, end))))
        return ReplayReport(
            policy_digest=policy.digest,
            rule=policy.rule.name,
            class_names=policy.provenance.class_names,
            counts=counts(slice(None)),
            n_forgotten=n_forgotten,
            n_other_models=n_others,
            n_unknown_model=n_unknown,
            classes={int(number): counts(classes == number) for number in np.unique(classes)},
            parts=tuple(parts),
        )
