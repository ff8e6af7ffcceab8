"""Run a stream through a model and its policy into a store; a run continues where the last one stopped.

A policy that differs from that of the last run only in its answers for populations continues as well: with the
state of its rule, to which the answers apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from drip.errors import DripError, InputError, PolicyError
from drip.pipeline import OnError, Tally, run
from drip.policy import Policy
from drip.rules.parts.populations import KNOWN, Populations
from drip.sources import open_publisher, open_source, split_recordings
from drip.store import Origin, RetentionStore, StoreStats
from drip.types import Decision, DurableSink, JsonObject, Observation, Progress, Sample, Source
from drip.workflow.models import FileScorer, Parts, parts_of
from drip.workflow.status import RunStatus

if TYPE_CHECKING:
    from torch import nn

    from drip.sources.mqtt.decisions import DecisionPublisher

_NEW_STORE_BYTES = 10**9
_Population = JsonObject
"""One of :attr:`drip.rules.adaptive.ComposedRule.populations`."""


class ShadowSink:
    """A store in shadow mode: it keeps every sample and records the rule's decision as it is.

    For trying a policy on a device: a bad window loses nothing, and ``drip replay`` can tell what any other
    policy would have kept. :attr:`drip.store.StoredSample.shadow` marks samples that the rule would have
    discarded.

    Args:
        store: Receives samples and decisions.
    """

    def __init__(self, store: RetentionStore) -> None:
        self._store = store

    def put(self, sample: Sample, observation: Observation, decision: Decision) -> None:
        """Keep the sample, whatever the decision, and record the decision."""
        self._store.put(sample, observation, decision, keep=True)

    def quarantine(self, sample: Sample, reason: str) -> None:
        """See :class:`drip.types.DurableSink`."""
        self._store.quarantine(sample, reason)

    def transaction(self) -> AbstractContextManager[None]:
        """See :class:`drip.types.DurableSink`."""
        return self._store.transaction()

    def save_progress(self, progress: Progress) -> None:
        """See :class:`drip.types.DurableSink`."""
        self._store.save_progress(progress)

    def load_progress(self) -> Progress | None:
        """See :class:`drip.types.DurableSink`."""
        return self._store.load_progress()


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run works.

    Attributes:
        budget_bytes: Largest size of the store on disk. None keeps the budget of an existing store; a new
            store gets 1 GB.
        eviction: ``priority`` or ``fifo``. None keeps that of an existing store; a new store gets
            ``priority``. In shadow mode None means ``fifo``: the rule under test must not choose what
            stays.
        shadow: Keep every sample, and record what the rule decides.
        accept_parent_windows: Accept windows for a quantised file that were fitted before quantisation.
        batch_size: Largest number of samples scored and committed together.
        on_error: What to do with a sample that cannot be decoded or scored; see
            :func:`drip.pipeline.run`.
        decisions_url: Where to publish decisions, see :func:`drip.sources.open_publisher`; empty to publish
            nothing.
    """

    budget_bytes: int | None = None
    eviction: Literal["priority", "fifo"] | None = None
    shadow: bool = False
    accept_parent_windows: bool = False
    batch_size: int = 32
    on_error: OnError = "quarantine"
    decisions_url: str = ""


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        tally: The counts of this run.
        stats: The counts of the store after this run.
        n_disagreements: Decisions that differ between the windows in the model file and the policy.
        error: Set when not one sample could be decoded, scored and kept.
        n_published: Decisions that the broker of ``decisions_url`` acknowledged.
        n_unpublished: Decisions that it did not acknowledge.
    """

    tally: Tally
    stats: StoreStats
    n_disagreements: int = 0
    error: DripError | None = None
    n_published: int = 0
    n_unpublished: int = 0


def run_url(
    model: nn.Module | FileScorer,
    policy: Policy | None,
    source_url: str,
    store_path: Path,
    options: RunOptions,
    *,
    status: RunStatus,
    on_progress: Callable[[int, int | None, str], None],
    stop: Callable[[], bool],
    on_population: Callable[[_Population], None] | None = None,
) -> RunResult:
    """Run the stream of a URL into a store file, and report progress and status.

    Args:
        model: The model, or model file.
        policy: The policy that decides; None means the one embedded in the model file.
        source_url: See :func:`drip.sources.open_source`.
        store_path: The store file; created when it does not exist.
        options: How the run works.
        status: Updated after every batch.
        on_progress: Called with the number of samples seen, the total if known, and the status line.
        stop: Called after every batch; True ends the run after that batch.
        on_population: Called once with every population that the rule recognises during the run and that
            nobody has answered for.

    Raises:
        PolicyError: there is no policy, or it is for another model; raised before a store is created.
        SourceError: the source cannot be opened or read, or the broker refuses the connection for good.
        StoreError: the store cannot be opened or written.
    """
    parts = parts_of(model, policy, accept_parent_windows=options.accept_parent_windows)
    status.describe(
        policy_digest=parts.policy.digest, model_digest=parts.digests[0], rule=parts.rule.name,
        shadow=options.shadow, source=source_url, store=str(store_path),
    )  # fmt: skip
    source = open_source(source_url, parts.class_names)
    total = len(source) if isinstance(source, Sized) else None
    publisher = open_publisher(options.decisions_url) if options.decisions_url else None
    budget_bytes = options.budget_bytes
    is_new = not store_path.exists() or not store_path.stat().st_size  # an empty file becomes a store too
    if budget_bytes is None and is_new:
        budget_bytes = _NEW_STORE_BYTES
    eviction = options.eviction or ("fifo" if options.shadow else None)
    with (
        nullcontext() if publisher is None else closing(publisher),
        RetentionStore.open(store_path, budget_bytes=budget_bytes, eviction=eviction) as store,
    ):
        _continue(parts, store)
        before = _populations_in(store)
        numbers = {KNOWN} if before is None else {each["number"] for each in before.counts}

        def follow(tally: Tally) -> None:
            populations = getattr(parts.rule, "populations", [])
            status.describe(
                n_disagreements=getattr(model, "n_disagreements", 0),
                adaptations=getattr(parts.rule, "adaptations", []),
                populations=populations,
            )
            for each in populations:
                if each["number"] not in numbers and each["answer"] is None and on_population is not None:
                    on_population(each)
                numbers.add(each["number"])
            if publisher is not None:
                publisher.flush()  # the broker may come back while no sample arrives
                status.describe(decisions=_published(publisher))
            status.update(tally, store)
            on_progress(tally.n_seen, total, status.line(tally))

        tally = _run(
            parts, source, store, batch_size=options.batch_size, on_error=options.on_error,
            shadow=options.shadow, publisher=publisher, on_progress=follow, stop=stop,
        )  # fmt: skip
        if publisher is not None:
            publisher.close()
            status.describe(decisions=_published(publisher))
        status.update(tally, store, at_once=True)
        result = RunResult(
            tally,
            store.stats(),
            getattr(model, "n_disagreements", 0),
            _nothing_usable(tally, store),
            n_published=0 if publisher is None else publisher.n_published,
            n_unpublished=0 if publisher is None else publisher.n_dropped,
        )
    if result.error is not None:
        status.fail(result.error)
    return result


def run_stream(
    model: nn.Module | FileScorer,
    policy: Policy,
    source: Source,
    store: RetentionStore,
    *,
    batch_size: int = 32,
    on_error: OnError = "quarantine",
    shadow: bool = False,
    accept_parent_windows: bool = False,
    on_progress: Callable[[Tally], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Tally:
    """Run a source through a model and a policy into a store; continues where the last run stopped.

    Args:
        model: The model that the policy was calibrated for, or a model file.
        policy: The policy that decides.
        source: Where samples come from.
        store: Where kept samples and decisions are written.
        batch_size: Largest number of samples scored and committed together.
        on_error: What to do with a sample that cannot be decoded or scored; see
            :func:`drip.pipeline.run`.
        shadow: Keep every sample, and record what the rule decides.
        accept_parent_windows: Accept windows for a quantised file that were fitted before quantisation.
        on_progress: Called after every batch.
        stop: Called after every batch; True ends the run after that batch.

    Raises:
        PolicyError: the policy is for another model, or incomplete.
        InputError: the rule reads a score that the model does not provide.
        StoreError: the store cannot be written.
    """
    parts = parts_of(model, policy, accept_parent_windows=accept_parent_windows)
    _continue(parts, store)
    return _run(
        parts, source, store, batch_size=batch_size, on_error=on_error, shadow=shadow,
        on_progress=on_progress, stop=stop,
    )  # fmt: skip


def _run(
    parts: Parts,
    source: Source,
    store: RetentionStore,
    *,
    batch_size: int,
    on_error: OnError,
    shadow: bool,
    on_progress: Callable[[Tally], None] | None,
    stop: Callable[[], bool] | None,
    publisher: DecisionPublisher | None = None,
) -> Tally:
    sink: DurableSink = ShadowSink(store) if shadow else store
    if publisher is not None:
        from drip.sources.mqtt.decisions import PublishingSink  # noqa: PLC0415  # needs the MQTT client

        sink = PublishingSink(sink, publisher)
    return run(
        split_recordings(source, parts.spec),
        parts.scorer,
        parts.rule,
        sink,
        prepare=parts.spec.prepare,
        batch_size=batch_size,
        on_error=on_error,
        policy_digest=parts.policy.digest,
        on_progress=on_progress,
        stop=stop,
    )


def _continue(parts: Parts, store: RetentionStore) -> None:
    """Note the policy, and hand it the saved state if the last policy differs only in its answers."""
    policy, origins = parts.policy, store.origins()
    family = "" if policy.family == policy.digest else policy.family
    if policy.digest not in origins or origins[policy.digest].family != family:
        digests = tuple(sorted({*parts.digests, policy.provenance.model_digest}))
        origin = Origin(digests, policy.provenance.score, family, parts.class_names)
        try:
            store.note_origin(policy.digest, origin)
        except InputError:  # hundreds of names do not fit; what the scores were computed from matters more
            store.note_origin(policy.digest, replace(origin, class_names=()))
    progress = store.load_progress()
    if (
        progress is not None
        and progress.policy_digest != policy.digest
        and _family_in(store, progress.policy_digest) == policy.family
    ):
        with store.transaction():
            store.save_progress(replace(progress, policy_digest=policy.digest))


def _family_in(store: RetentionStore, policy_digest: str) -> str:
    """The digest without answers of a policy that ran into a store."""
    origin = store.origins().get(policy_digest)
    return (origin.family if origin else "") or policy_digest


def _populations_in(store: RetentionStore) -> Populations | None:
    """The populations of the last run, or None if its rule does not look for them."""
    progress = store.load_progress()
    state = {} if progress is None else progress.rule_state
    if not isinstance(state, dict) or "population" not in state:
        return None
    try:
        return Populations.saved(state["population"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PolicyError(
            f"{store.path}: the saved populations are damaged ({error}); run drip store check, or restore a copy",
            code="rule-state",
        ) from error


def populations_of(store_path: Path) -> list[_Population]:
    """The populations of the last run into a store; a run may be writing to it.

    Raises:
        InputError: the rule of the run does not look for populations.
        PolicyError: its state is damaged.
        StoreError: the store does not exist or is damaged.
    """
    with RetentionStore.open_readonly(store_path) as store:
        return _known_to(store).counts


def answer_population(store_path: Path, policy: Policy, number: int, answer: str) -> Policy:
    """The policy with what a person says about a population of the last run; the store is only read.

    Args:
        store_path: The store of the run; it may go on meanwhile.
        policy: The policy of the run; it may have other answers.
        number: The population.
        answer: ``accept`` or ``ignore``.

    Raises:
        InputError: there is no such population, or there are more than 8 answers.
        PolicyError: the store's last run had another policy, or its state is damaged.
        StoreError: the store does not exist or is damaged.
    """
    with RetentionStore.open_readonly(store_path) as store:
        populations, progress = _known_to(store), store.load_progress()
        last = "" if progress is None else progress.policy_digest
        if _family_in(store, last) != policy.family:
            raise PolicyError(
                f"the last run into {store_path} used another policy ({last[:12]}...) than the given one "
                f"({policy.digest[:12]}...); give the policy of that run",
                code="policy-other-run",
            )
    params = policy.rule.params
    answers = populations.answers_with(params.get("answers", ()), number, answer)
    return replace(policy, rule=replace(policy.rule, params={**params, "answers": answers}))


def _known_to(store: RetentionStore) -> Populations:
    populations = _populations_in(store)
    if populations is None and store.load_progress() is None:
        raise InputError(
            f"{store.path}: no run has written to it yet; use drip run", code="population-unknown"
        )
    if populations is None:
        raise InputError(
            f"{store.path}: the rule of the last run does not look for populations; use adaptive-margin with the "
            "gate populations",
            code="population-unknown",
        )
    return populations


def _published(publisher: DecisionPublisher) -> JsonObject:
    """The state of publishing, for the status file."""
    return {
        "published": publisher.n_published,
        "waiting": publisher.n_waiting,
        "dropped": publisher.n_dropped,
        "problem": publisher.problem,
    }


def _nothing_usable(tally: Tally, store: RetentionStore) -> DripError | None:
    """The error of a run that could use no sample; its setup is wrong, so it must not end with success."""
    if not tally.n_seen or tally.n_quarantined + tally.n_skipped < tally.n_seen:
        return None
    reason = next((rejected.reason for rejected in store.quarantined()), "see --on-error raise")
    return DripError(
        f"none of the {tally.n_seen} samples could be decoded, scored and kept: {reason}",
        code="run-nothing-usable",
    )
