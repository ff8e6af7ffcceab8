"""Runs without torch: sources that wait, shadow mode, origins."""

import numpy as np
import pytest

from drip.errors import InputError, PolicyError
from drip.media import NPY, InputSpec, encode_npy
from drip.pipeline import run
from drip.policy import Policy
from drip.rules import create
from drip.store import Origin, Outcome, RetentionStore
from drip.types import Observations, Sample
from drip.windows import complement
from drip.workflow import replay, run_stream

SPEC = InputSpec((4,))


class Plain:
    """A model file's scorer without a file: the values are the logits, their mean the score."""

    provides = frozenset({"logits", "drip"})
    digest, digests, layer, class_names, policy = "m" * 64, ("m" * 64,), "maps", (), None
    score_definition = {"method": "gradcam", "heatmap": "raw"}  # noqa: RUF012  # never changed
    spec = SPEC

    def require(self, policy, *, accept_parent_windows=False):  # noqa: ARG002  # the protocol's
        policy.require(self.digest)

    def compare(self, policy):
        pass

    def score(self, batch):
        values = batch.astype(np.float64)
        return Observations(values.argmax(axis=1), values, {"drip": values.mean(axis=1)})


class Waiting:
    """A source in which nothing arrives now and then."""

    cursor = None

    def __init__(self, samples, pattern):
        self.samples, self.pattern, self.acknowledged = samples, pattern, 0

    def seek(self, cursor):  # noqa: ARG002  # the protocol's
        pytest.fail("nothing to seek")

    def batches(self, max_samples):
        position = 0
        for size in self.pattern:
            batch = self.samples[position : position + min(size, max_samples)]
            position += len(batch)
            yield batch
            self.acknowledged += len(batch)


def samples_of(n, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)
    return [Sample(f"s{i}", encode_npy(row), NPY, time_s=float(i)) for i, row in enumerate(rows)]


def policy_of(fraction=0.4, **provenance):
    found = Plain().score(np.random.default_rng(1).normal(size=(400, 4)))
    facts = {"model_digest": Plain.digest, "score": Plain.score_definition, **provenance}
    return Policy.fit(
        found.scores, found.classes, n_classes=4, retention=complement(fraction), provenance=facts
    )


@pytest.fixture
def store(tmp_path):
    with RetentionStore.open(tmp_path / "kept.db", budget_bytes=3_000_000) as kept:
        yield kept


# -- sources that wait ---------------------------------------------------------------------------------


def test_an_empty_batch_is_served_and_nothing_is_committed_for_it(store, monkeypatch):
    progress, saved = [], []
    save = store.save_progress
    monkeypatch.setattr(store, "save_progress", lambda what: (saved.append(what), save(what)))
    source = Waiting(samples_of(6), [0, 2, 0, 0, 4, 0])
    run(
        source, Plain(), create("keep-all"), store, prepare=SPEC.prepare,
        on_progress=lambda tally: progress.append((tally.n_seen, tally.last_id)),
    )  # fmt: skip
    assert progress == [(0, None), (2, "s1"), (2, "s1"), (2, "s1"), (6, "s5"), (6, "s5")]
    assert len(saved) == 1 + 2  # the policy, and two batches
    assert source.acknowledged == 6


def test_a_stop_is_heard_while_nothing_arrives(store):
    def forever():
        while True:
            yield 0

    asked = iter([False, False, True])
    source = Waiting(samples_of(1), forever())
    tally = run(source, Plain(), create("keep-all"), store, stop=lambda: next(asked))
    assert tally.interrupted
    assert tally.n_seen == 0
    assert store.stats().seen == 0


# -- shadow --------------------------------------------------------------------------------------------


def test_a_stored_sample_says_that_the_rule_would_have_discarded_it(store):
    policy = policy_of()
    tally = run_stream(Plain(), policy, Waiting(samples_of(60), [32, 28]), store, shadow=True)
    rows = {row.key: row for row in store.audit()}
    assert {row.outcome for row in rows.values()} == {Outcome.KEPT}
    assert sum(row.decision.retain for row in rows.values()) == tally.n_retained < 60
    for stored in store:
        assert stored.decision == rows[stored.key].decision
    assert {stored.decision.reason for stored in store} == {"inside-window", "outside-window"}
    assert store.stats().audit_shadowed == tally.n_discarded
    assert store.check().ok


def test_a_run_under_the_shadow_and_one_without_share_a_store(store):
    policy, samples = policy_of(), samples_of(60)
    run_stream(Plain(), policy, Waiting(samples[:30], [30]), store, shadow=True)
    run_stream(Plain(), policy, Waiting(samples, [30, 30]), store)  # the first ones come again
    stats = store.stats()
    assert (stats.seen, stats.redelivered) == (60, 30)
    assert stats.kept == 30 + sum(row.decision.retain for row in list(store.audit())[30:])
    assert store.check().ok


# -- replay and origins --------------------------------------------------------------------------------


def test_replay_tells_models_apart_and_counts_what_is_unknown(store):
    samples = samples_of(90)
    old, new = policy_of(0.4), policy_of(0.7)
    run_stream(Plain(), old, Waiting(samples[:30], [30]), store)
    run(Waiting(samples[30:60], [30]), Plain(), create("keep-all"), store, prepare=SPEC.prepare)
    store.note_origin(policy_of(0.5).digest, Origin(("x" * 64,)))
    run(
        Waiting(samples[60:], [30]), Plain(), create("keep-all"), store, prepare=SPEC.prepare,
        policy_digest=policy_of(0.5).digest,
    )  # fmt: skip
    report = replay(store.path, new)
    assert (report.counts.seen, report.n_unknown_model, report.n_other_models) == (60, 30, 30)
    values = np.stack([SPEC.prepare(sample.data, NPY) for sample in samples[:60]])
    found = Plain().score(values)
    assert report.counts.retained_now == new.retains(found.scores, found.classes).sum()


def test_replay_of_another_models_store_is_refused(store):
    run_stream(Plain(), policy_of(), Waiting(samples_of(9), [9]), store)
    with pytest.raises(PolicyError, match=r"mmmmmmmmmmmm.*xxxxxxxxxxxx") as caught:
        replay(store.path, policy_of(model_digest="x" * 64))
    assert caught.value.code == "audit-other-model"


def test_replay_of_another_score_is_refused(store):
    run_stream(Plain(), policy_of(), Waiting(samples_of(9), [9]), store)
    with pytest.raises(PolicyError) as caught:
        replay(store.path, policy_of(score={"heatmap": "normalised"}))
    assert caught.value.code == "audit-other-model"


def test_replay_of_rows_of_unknown_models_with_other_classes_is_refused(store):
    run(Waiting(samples_of(9), [9]), Plain(), create("keep-all"), store, prepare=SPEC.prepare)
    scores, classes = np.arange(60.0), np.arange(60) % 3
    three = Policy.fit(scores, classes, n_classes=3, retention=0.6)
    with pytest.raises(PolicyError, match=r"4 classes.*3 classes") as caught:
        replay(store.path, three)
    assert caught.value.code == "policy-other-classes"


def test_times_in_a_replay_may_jump_or_be_missing(store):
    samples = [
        Sample(sample.id, sample.data, NPY, time_s=time_s)
        for sample, time_s in zip(samples_of(40), [5.0, -1e30, float("nan"), None] * 10, strict=True)
    ]
    run_stream(Plain(), policy_of(), Waiting(samples, [20, 20]), store)
    report = replay(store.path, policy_of(0.6))
    assert sum(part.counts.seen for part in report.parts) == 40
    assert {(part.first_time_s, part.last_time_s) for part in report.parts} == {(-1e30, 5.0)}


def test_origins_survive_and_are_bounded(store):
    origin = Origin(("a",), {"layer": "features"})
    store.note_origin("p" * 64, origin)
    store.note_origin("q" * 64, Origin())
    store.note_origin("p" * 64, origin)
    with RetentionStore.open_readonly(store.path) as reader:
        assert reader.origins() == {"p" * 64: origin, "q" * 64: Origin()}
    with pytest.raises(InputError, match="4096"):
        store.note_origin("p", Origin((), {"layer": "x" * 5000}))
    assert store.check().ok


def test_an_origin_finds_room_in_a_full_store(tmp_path):
    rng = np.random.default_rng(0)
    with RetentionStore.open(tmp_path / "small.db", budget_bytes=450_000) as store:
        samples = [Sample(f"s{i}", encode_npy(rng.normal(size=4)), NPY) for i in range(50)]
        arrays = [encode_npy(rng.normal(size=400)) for _ in range(200)]
        big = [Sample(f"b{i}", data, NPY, meta={"note": "x" * 300}) for i, data in enumerate(arrays)]
        observation = Plain().score(rng.normal(size=(1, 4)))[0]
        decision = create("keep-all").decide(observation)
        for sample in [*samples, *big]:
            store.put(sample, observation, decision)
        assert store.stats().evicted > 0
        for number in range(20):
            store.note_origin(f"{number:064}", Origin((), {"layer": "x" * 4000}))
        assert len(store.origins()) == 20
        assert store.check().ok
