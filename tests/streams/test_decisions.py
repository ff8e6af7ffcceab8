"""Decisions over MQTT: only of what is committed, at least once, and read back from a real broker."""

import json
import threading
import time

import numpy as np
import pytest
from broker import Broker

from drip.errors import StreamError
from drip.streams import open_source
from drip.streams.mqtt_decisions import PublishingSink
from drip.testing import MemorySink, check_sink, fake_observations, fake_samples
from drip.types import Decision, DurableSink, Observation, Progress

KEEP = Decision(retain=True, priority=0.5, keep_probability=None, reason="margin")


@pytest.fixture
def broker(tmp_path, monkeypatch):
    monkeypatch.setattr("drip.streams.mqtt._HEARTBEAT_S", 0.2)
    running = Broker(tmp_path).start()
    yield running
    running.stop()


@pytest.fixture
def reader(broker):
    """What arrives on the topic, as a function that waits for so many."""
    batches = open_source(broker.url("out", client="reader")).batches(100)
    next(batches)

    def read(n):
        found, deadline = [], time.monotonic() + 15
        while len(found) < n:
            found += [json.loads(sample.data) for sample in next(batches)]
            assert time.monotonic() < deadline
        return found

    yield read
    batches.close()


def test_publishing_keeps_the_contract_of_sinks(broker):
    sinks = []

    def make():
        sinks.append(PublishingSink.to_url(broker.url("out", client=f"out-{len(sinks)}"), MemorySink()))
        return sinks[-1]

    check_sink(make, kept=lambda sink: sink._sink.kept)
    assert isinstance(sinks[0], DurableSink)
    for sink in sinks:
        sink.close()


def test_decisions_are_published_behind_the_commit_and_not_when_it_is_rolled_back(broker, reader):
    sink = PublishingSink.to_url(broker.url("out", client="out"), MemorySink())
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
    sink.close()


def test_decisions_wait_for_a_broker_that_is_away_and_then_say_so(broker, reader):
    sink = PublishingSink.to_url(broker.url("out", client="out", connect=20), MemorySink())
    samples, observations = fake_samples(3), fake_observations(3)
    sink.put(samples[0], observations[0], KEEP)
    broker.stop()
    starter = threading.Timer(1.0, broker.start)
    starter.start()
    sink.put(samples[1], observations[1], KEEP)
    starter.join()
    assert {content["id"] for content in reader(2)} == {"fake-0", "fake-1"}
    sink.close()
    broker.stop()
    sink = PublishingSink.to_url(broker.url("out", client="out", connect=0.5), MemorySink())
    with pytest.raises(StreamError, match="decisions are committed and not published"):
        sink.put(samples[2], observations[2], KEEP)


def test_topic_with_wildcards_is_refused():
    with pytest.raises(StreamError, match="without wildcards"):
        PublishingSink.to_url("mqtt://host/a/+?client=c", MemorySink())
