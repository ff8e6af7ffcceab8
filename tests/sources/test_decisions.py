"""Decisions over MQTT: only after the commit, at least once, read back from a real broker."""

import json
import time

import numpy as np
import pytest
from broker import Broker

from drip.errors import SourceError
from drip.sources import open_publisher, open_source
from drip.sources.mqtt.address import MqttAddress
from drip.sources.mqtt.decisions import DecisionPublisher, PublishingSink
from drip.testing import MemorySink, check_sink, fake_observations, fake_samples
from drip.types import Decision, DurableSink, Observation, Progress

KEEP = Decision(retain=True, priority=0.5, keep_probability=None, reason="margin")


@pytest.fixture
def broker(tmp_path, monkeypatch):
    monkeypatch.setattr("drip.sources.mqtt.source._HEARTBEAT_S", 0.2)
    monkeypatch.setattr("drip.sources.mqtt.decisions._LONGEST_PAUSE_S", 0.5)
    running = Broker(tmp_path).start()
    yield running
    running.stop()


@pytest.fixture
def reader(broker):
    """A function that waits for a number of messages on the topic."""
    batches = open_source(broker.url("out", client="reader")).batches(100)
    next(batches)

    def read(n):
        found = []
        while len(found) < n:
            found += [json.loads(sample.data) for sample in next(batches)]
        return found

    yield read
    batches.close()


def test_publishing_sink_is_a_sink(broker):
    publisher = open_publisher(broker.url("out", client="out"))
    check_sink(lambda: PublishingSink(MemorySink(), publisher), kept=lambda sink: sink._sink.kept)
    assert isinstance(PublishingSink(MemorySink(), publisher), DurableSink)
    assert publisher.n_published > 10
    publisher.close()
    assert publisher.n_dropped == 0


def test_decisions_are_published_after_the_commit_and_not_after_a_rollback(broker, reader):
    publisher = open_publisher(f"mqtt://127.0.0.1:{broker.port}/out")  # the broker chooses the client's name
    sink = PublishingSink(MemorySink(), publisher)
    samples, observations = fake_samples(4), fake_observations(4)

    def fail():
        with sink.transaction():
            sink.put(samples[0], observations[0], KEEP)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with sink.transaction():
        sink.put(samples[1], observations[1], KEEP)
        sink.quarantine(samples[2], "corrupt")
        sink.save_progress(Progress(None, {}, ""))
    odd = Observation(3, np.zeros(10), {"drip": float("nan")})
    sink.put(
        samples[3], odd, Decision(retain=False, priority=-np.inf, keep_probability=None, reason="typical")
    )
    first, second, third = reader(3)
    scores = {name: float(value) for name, value in observations[1].scores.items()}
    assert first == {
        "id": "fake-1", "retain": True, "class": observations[1].predicted_class, "reason": "margin",
        "priority": 0.5, "scores": scores, "time_s": None,
    }  # fmt: skip
    assert second == {"id": "fake-2", "quarantined": "corrupt"}
    assert (third["retain"], third["priority"], third["scores"]) == (False, None, {"drip": None})
    assert sink.load_progress() == Progress(None, {}, "")
    publisher.close()


def put_each(sink, samples, observations):
    for sample, observation in zip(samples, observations, strict=True):
        sink.put(sample, observation, KEEP)


def test_decisions_wait_for_a_stopped_broker_and_arrive_in_order(broker, reader, monkeypatch):
    publisher = open_publisher(broker.url("out", client="out"))
    sink = PublishingSink(MemorySink(), publisher)
    samples, observations = fake_samples(20), fake_observations(20)
    put_each(sink, samples[:1], observations[:1])
    broker.stop()
    start = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr("drip.sources.mqtt.decisions._ANSWER_S", 300.0)
        patch.setattr("drip.sources.mqtt.connection._ANSWER_S", 300.0)
        patch.setattr(time, "sleep", pytest.fail)
        put_each(sink, samples[1:], observations[1:])
    assert time.monotonic() - start < 100  # no put waits for an answer
    assert (publisher.n_published, publisher.n_waiting, publisher.n_dropped) == (1, 19, 0)
    assert "cannot reach the broker" in publisher.problem
    broker.start()
    time.sleep(0.6)
    publisher.flush()  # as the run does while nothing arrives
    assert (publisher.n_published, publisher.n_waiting, publisher.problem) == (20, 0, "")
    found = [content["id"] for content in reader(19)]
    assert found[-19:] == [sample.id for sample in samples[1:]]
    publisher.close()


def test_a_broker_that_stays_down_costs_the_oldest_decisions_and_no_sample(broker):
    publisher = DecisionPublisher(MqttAddress.from_url(broker.url("out", client="out")), max_waiting=5)
    broker.stop()
    publisher.open()
    memory = MemorySink()
    put_each(PublishingSink(memory, publisher), fake_samples(12), fake_observations(12))
    assert len(memory.kept) == 12
    assert (publisher.n_published, publisher.n_waiting, publisher.n_dropped) == (0, 5, 7)
    assert [json.loads(message)["id"] for message in publisher._waiting] == [
        f"fake-{i}" for i in range(7, 12)
    ]
    publisher.close()
    assert (publisher.n_waiting, publisher.n_dropped) == (0, 12)


@pytest.mark.slow
def test_a_backlog_of_thousands_is_sent_when_the_broker_is_up_again(broker, reader):
    broker.stop()
    publisher = open_publisher(broker.url("out", client="out"))
    publisher.add([b'{"n": %d}' % number for number in range(3000)])
    assert publisher.n_waiting == 3000
    broker.start()
    publisher.close()
    assert (publisher.n_published, publisher.n_dropped) == (3000, 0)
    assert {content["n"] for content in reader(3000)} == set(range(3000))


def test_a_broker_that_forbids_publishing_does_not_stop_the_stream(tmp_path):
    rules = tmp_path / "rules"
    rules.write_text("topic read #\n")
    running = Broker(tmp_path, more=[f"acl_file {rules}"]).start()
    try:
        publisher = open_publisher(running.url("out", client="out"))
        put_each(PublishingSink(MemorySink(), publisher), fake_samples(3), fake_observations(3))
        assert (publisher.n_published, publisher.n_waiting) == (0, 3)
        assert "does not permit publishing" in publisher.problem
        publisher.close()
        assert publisher.n_dropped == 3
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("mqtt://host/a/+?client=c", "has wildcards"),
        ("mqtt://host/#", "has wildcards"),
        ("mqtt://host", "the URL has no topic"),
        ("stdin:", "published over MQTT only"),
        ("out/", "published over MQTT only"),
        ("mqtt://[bad/a", "malformed"),
    ],
)
def test_url_that_decisions_cannot_be_published_to_is_an_error(url, word):
    with pytest.raises(SourceError, match=word) as caught:
        open_publisher(url)
    assert caught.value.code == "source-url"
