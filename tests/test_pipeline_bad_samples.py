"""The production loop with samples that cannot be decoded, scored or kept."""

from dataclasses import replace

import pytest
from linear_stream import (
    BAD,
    RULES,
    LinearScorer,
    StrictScorer,
    broken,
    drip_rule,
    poisoned,
    record,
    stream,
    wide,
)

from drip.errors import (
    DripError,
    InputError,
    ModelError,
    NonFiniteError,
    SampleTooLargeError,
)
from drip.pipeline import observe, prepare_npy, run
from drip.rules import create
from drip.store import RetentionStore
from drip.testing import ListSource, MemorySink
from drip.types import Sample
from drip.workflow import ShadowSink


@pytest.mark.parametrize("scorer", [LinearScorer, StrictScorer])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("kind", sorted(BAD))
@pytest.mark.parametrize("on_error", ["skip", "quarantine"])
def test_bad_sample_does_not_affect_its_neighbours(kind, on_error, batch_size, scorer):
    good = stream(9)
    samples = [*good[:4], BAD[kind]("bad-1"), *good[4:], BAD[kind]("bad-2")]
    clean, sink = MemorySink(), MemorySink()
    run(good, LinearScorer(), drip_rule(), clean)
    tally = run(samples, scorer(), drip_rule(), sink, batch_size=batch_size, on_error=on_error)
    assert record(sink) == record(clean)
    assert (tally.n_skipped, tally.n_quarantined) == ((2, 0) if on_error == "skip" else (0, 2))
    assert tally.n_seen == 11
    names = [sample.id for sample, _ in sink.quarantined]
    assert names == ([] if on_error == "skip" else ["bad-1", "bad-2"])
    assert all(len(reason) > 20 for _, reason in sink.quarantined)


def test_rejected_sample_is_quarantined_with_its_reason_and_never_decoded():
    def decode(data, media_type):
        assert data != b"payload"
        return prepare_npy(data, media_type)

    bad = Sample("bad", b"payload", "application/x-npy", rejected="the header is not a JSON object")
    sink = MemorySink()
    tally = run([*stream(3), bad], LinearScorer(), drip_rule(), sink, prepare=decode, on_error="quarantine")
    assert (tally.n_seen, tally.n_quarantined) == (4, 1)
    assert sink.quarantined == [(bad, "the header is not a JSON object")]


@pytest.mark.parametrize("kind", sorted(BAD))
def test_raise_names_the_sample_and_commits_nothing_of_its_batch(kind):
    sink = MemorySink()
    samples = [*stream(5), BAD[kind]("culprit"), *stream(2)]
    with pytest.raises((InputError, NonFiniteError), match="sample 'culprit': ") as caught:
        run(samples, LinearScorer(), drip_rule(), sink, batch_size=4)
    assert len(sink.puts) == 4
    assert isinstance(caught.value.__cause__, DripError)


def test_batch_with_only_bad_samples_is_quarantined():
    sink = MemorySink()
    samples = [broken("a"), poisoned("b"), wide("c"), *stream(2)]
    tally = run(ListSource(samples), LinearScorer(), drip_rule(), sink, batch_size=3, on_error="quarantine")
    assert tally.n_quarantined == 3
    assert len(sink.puts) == 2
    assert sink.progress.cursor == "5"


def test_error_that_is_not_about_a_sample_is_raised():
    class Scorer(LinearScorer):
        def score(self, batch):  # noqa: ARG002
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(stream(3), Scorer(), drip_rule(), MemorySink(), on_error="skip")


@pytest.mark.parametrize("kind", sorted(BAD))
def test_observe_names_the_bad_sample(kind):
    with pytest.raises((InputError, NonFiniteError), match="sample 'culprit'"):
        observe([*stream(3), BAD[kind]("culprit")], LinearScorer())


class UnusableScorer(LinearScorer):
    """A model without a layer to score."""

    def score(self, batch):
        raise ModelError(f"no layer for {len(batch)} samples")


def test_unusable_model_stops_the_run_before_a_sample_is_lost():
    sink = MemorySink()
    with pytest.raises(ModelError, match="no layer"):
        run(ListSource(stream(5)), UnusableScorer(), RULES["drip"](), sink, on_error="quarantine")
    assert not sink.quarantined
    assert sink.load_progress().cursor is None


def test_sample_that_never_fits_is_quarantined_and_the_run_goes_on():
    samples = stream(5)
    n_bytes = len(samples[0].data)
    samples[2] = replace(samples[2], data=samples[2].data + b"more", id="large")
    options = {"prepare": lambda data, _: prepare_npy(data[:n_bytes], "")}
    sink = MemorySink(max_sample_bytes=n_bytes)
    run(ListSource(samples), LinearScorer(), RULES["drip"](), sink, on_error="quarantine", **options)
    assert [sample.id for sample, _ in sink.quarantined] == ["large"]
    assert len(record(sink)) == 4
    sink = MemorySink(max_sample_bytes=n_bytes)
    with pytest.raises(SampleTooLargeError):
        run(ListSource(samples), LinearScorer(), RULES["drip"](), sink, **options)


def test_decoder_that_raises_any_error_loses_only_its_own_sample():
    def prepare(data, media_type):
        if data == b"boom":
            raise ZeroDivisionError("inside a user's decoder")
        return prepare_npy(data, media_type)

    samples = stream(4)
    samples[1] = replace(samples[1], data=b"boom")
    sink = MemorySink()
    run(ListSource(samples), LinearScorer(), RULES["drip"](), sink, prepare=prepare, on_error="quarantine")
    ((sample, reason),) = sink.quarantined
    assert sample.id == samples[1].id
    assert "ZeroDivisionError: inside a user's decoder" in reason


REFUSED = {
    "metadata": {"meta": {"x": "y" * 900_000}},
    "id": {"id": "x" * 900_000},
    "media type": {"media_type": "\ud800"},
    "label": {"label": 2**70},
}


@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize("kind", sorted(REFUSED))
@pytest.mark.parametrize("on_error", ["skip", "quarantine"])
def test_sample_that_a_store_refuses_neither_stops_the_run_nor_loses_another_sample(
    tmp_path, on_error, kind, shadow
):
    samples = stream(40)
    for place in (7, 8):
        samples[place] = replace(samples[place], **REFUSED[kind])
    prepared = {"prepare": lambda data, _: prepare_npy(data, "")}
    with RetentionStore.open(tmp_path / "kept.db", budget_bytes=600_000) as store:
        sink = ShadowSink(store) if shadow else store
        rule = create("reservoir", retention=1.0, seed=3)
        tally = run(ListSource(samples), LinearScorer(), rule, sink, on_error=on_error, **prepared)
        assert (tally.n_quarantined, tally.n_skipped) == ((2, 0) if on_error == "quarantine" else (0, 2))
        assert [record.sample.id for record in store] == [
            sample.id for place, sample in enumerate(samples) if place not in (7, 8)
        ]
        reasons = [row.reason for row in store.quarantined()]
        assert len(reasons) == tally.n_quarantined
        assert all(len(reason) > 20 for reason in reasons)
        again = run(ListSource(samples), LinearScorer(), rule, sink, on_error=on_error, **prepared)
        assert again.n_seen == 0
