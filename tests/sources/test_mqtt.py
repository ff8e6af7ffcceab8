"""MQTT against a real Mosquitto: messages, sessions, kills, redelivery, back-pressure, bad payloads."""

import base64
import json
import logging
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import pytest
from broker import Broker, resident_bytes
from consumer import SPEC, InkScorer, consume, make_rule
from encoded_samples import png_declaring

from drip.datasets import load_mnist
from drip.errors import DripError
from drip.pipeline import observe
from drip.sources import open_source
from drip.sources.mqtt.connection import MqttConnection
from drip.store import RetentionStore
from drip.testing import check_source


@pytest.fixture(scope="module")
def digits():
    """Real digits as PNG, all different."""
    return [sample.data for sample in load_mnist().samples(range(2000))]


@pytest.fixture
def broker(tmp_path, monkeypatch):
    monkeypatch.setattr("drip.sources.mqtt.source._HEARTBEAT_S", 0.2)
    running = Broker(tmp_path).start()
    yield running
    running.stop()


@pytest.fixture
def publisher(broker):
    client = broker.publisher()
    yield client
    client.close()


def take(source, n, max_samples=32):
    """The first n samples, acknowledged."""
    samples = []
    batches = source.batches(max_samples)
    for batch in batches:
        samples += batch
        if len(samples) >= n:
            next(batches)
            break
    batches.close()
    return samples


def subscribe(broker, **options):
    """Create the session, as a first run does."""
    batches = open_source(broker.url(**options)).batches(1)
    assert next(batches) == []
    batches.close()


def kept_of(digits):
    """Contents that the rule keeps, by an independent pass over the digits."""
    samples = list(load_mnist().samples(range(len(digits))))
    decisions = make_rule().decide_many(observe(samples, InkScorer(), prepare=SPEC.prepare))
    return {data for data, keep in zip(digits, decisions.retain.tolist(), strict=True) if keep}


class Ended:
    """A source that ends after n samples, without its empty batches."""

    def __init__(self, source, n):
        self._source, self._n = source, n

    @property
    def cursor(self):
        return self._source.cursor

    def seek(self, cursor):
        self._source.seek(cursor)

    def batches(self, max_samples):
        n_seen = 0
        for batch in self._source.batches(max_samples):
            if batch:
                n_seen += len(batch)
                yield batch
            if n_seen >= self._n:
                return


# -- messages ------------------------------------------------------------------------------------------


def test_mqtt_is_a_source(broker, publisher, digits, monkeypatch):
    monkeypatch.setattr("drip.sources.mqtt.source.time.time", lambda: 1.5e9)

    def opened():
        name = f"client-{next(numbers)}"
        subscribe(broker, client=name)
        publisher.send_all(digits[:4])
        return Ended(open_source(broker.url(client=name)), 4)

    numbers = iter(range(100))
    check_source(opened)


def test_message_sets_topic_properties_and_type_of_the_sample(broker, publisher, digits):
    subscribe(broker)
    start_s = time.time()
    publisher.send(digits[0], "in/a", id="first", label=7, time_s=12.5, place="door")
    publisher.send(b"not looked at", "in/b", content_type="audio/wav")
    publisher.send(b"nor this", "in/c.flac")
    publisher.send(digits[1], "in/d")
    text = {"id": "e", "data": base64.b64encode(digits[2]).decode(), "label": 3}
    publisher.send(json.dumps(text).encode(), "in/e")
    publisher.send(b" " + json.dumps(text).encode(), "in/f", content_type="application/json; charset=utf-8")
    first, second, third, fourth, fifth, sixth = take(open_source(broker.url()), 6)
    assert (sixth.id, sixth.data) == ("in/f/e", digits[2])
    assert (first.id, first.data, first.media_type, first.label) == ("in/a/first", digits[0], "image/png", 7)
    assert (first.time_s, first.meta) == (12.5, {"place": "door"})
    assert second.media_type == "audio/wav"
    assert third.media_type == "audio/flac"
    assert fourth.id.startswith("in/d/")
    assert start_s - 1 <= fourth.time_s <= time.time() + 1
    assert (fifth.id, fifth.data, fifth.label) == ("in/e/e", digits[2], 3)


def test_clock_that_jumps_back_loses_no_message(broker, publisher, digits, monkeypatch, tmp_path):
    subscribe(broker)
    times = iter(range(10**9, 0, -(10**7)))
    monkeypatch.setattr("drip.sources.mqtt.source.time.time", lambda: float(next(times)))
    publisher.send_all(digits[:30])
    consume(broker.url(), tmp_path / "kept", 30)
    with RetentionStore.open_readonly(tmp_path / "kept") as store:
        assert {record.sample.data for record in store} == kept_of(digits[:30])
        assert store.stats().first_time_s < store.stats().last_time_s == 10**9


def test_labels_may_be_class_names(broker, publisher, digits):
    subscribe(broker)
    publisher.send(digits[0], label="dog")
    (sample,) = take(open_source(broker.url(), ["cat", "dog"]), 1)
    assert sample.label == 1


def test_bad_payloads_go_to_quarantine_with_their_reason_and_the_others_are_decided(
    broker, publisher, digits, tmp_path
):
    subscribe(broker)
    bad = {
        b"neither image nor sound": "no media type is given",
        b'{"id": 1, "data": "%%%"}': "data is not valid base64",
        b'{"id": 1, "da': "not valid JSON",
        b"": "the payload is empty",
        digits[5][:100]: "truncated or corrupt",
        png_declaring(60_000, 60_000): "3600000000",
        png_declaring(28, 9, rows=bytes(29 * 9)): "28 x 9 pixels, but the input spec says 28 x 28",
        b"x" * 5000: "the payload has 5000 bytes, more than max_bytes=4000",
    }
    for payload in bad:
        publisher.send(payload)
    publisher.send(digits[0], label="no class")
    publisher.send(digits[1])
    tally = consume(broker.url(max_bytes=4000), tmp_path / "kept", 1)
    assert (tally.n_seen, tally.n_quarantined) == (10, 9)
    with RetentionStore.open_readonly(tmp_path / "kept") as store:
        reasons = [quarantined.reason for quarantined in store.quarantined()]
    assert len(reasons) == 9
    for word in [*bad.values(), "class index from 0 or a class name, got 'no class'"]:
        assert any(word in reason for reason in reasons), word


@pytest.mark.slow
def test_idle_stream_gives_an_empty_batch_every_second(broker, monkeypatch):
    monkeypatch.undo()
    waits, turn = [], MqttConnection.turn
    monkeypatch.setattr(
        MqttConnection, "turn", lambda self, wait_s: (waits.append(wait_s), turn(self, wait_s))[1]
    )
    batches = open_source(broker.url()).batches(8)
    start = time.monotonic()
    assert list(islice(batches, 2)) == [[], []]
    assert time.monotonic() - start > 1.5
    assert max(waits) <= 1
    batches.close()


# -- acknowledgement -----------------------------------------------------------------------------------


def test_only_uncommitted_messages_are_delivered_again(broker, publisher, digits):
    subscribe(broker)
    publisher.send_all(digits[:6])
    batches = open_source(broker.url()).batches(2)
    taken = []
    while sum(map(len, taken)) < 4:  # a slow broker fills a batch only in part
        taken.append(next(batches))  # acknowledges the one before
    batches.close()  # like a process that dies before its commit
    n_committed = sum(map(len, taken[:-1]))
    again = take(open_source(broker.url()), 6 - n_committed)
    assert [sample.data for sample in again] == digits[n_committed:6]
    assert [sample.data for batch in taken for sample in batch] == digits[: sum(map(len, taken))]
    assert next(open_source(broker.url()).batches(2)) == []


@pytest.mark.slow
def test_redelivered_messages_are_not_stored_twice(broker, publisher, digits, tmp_path):
    subscribe(broker)
    publisher.send_all(digits[:8])
    for _ in range(2):  # the run stops after its commit and before the acknowledgement
        consume(broker.url(), tmp_path / "kept", 8)
        with RetentionStore.open_readonly(tmp_path / "kept") as store:
            stats = store.stats()
            contents = {record.sample.data for record in store}
        assert stats.seen == 8
        assert len(contents) == stats.kept
    assert contents == kept_of(digits[:8])


def test_restart_of_the_broker_loses_no_message(broker, publisher, digits, caplog):
    subscribe(broker)
    caplog.set_level(logging.WARNING)
    publisher.send_all(digits[:50])
    batches = open_source(broker.url()).batches(8)
    seen = [sample.data for _ in range(3) for sample in next(batches)]
    broker.stop()
    while batch := next(batches):  # data in the socket's buffer still arrives
        seen += [sample.data for sample in batch]
    broker.start()
    publisher.send_all(digits[50:60])
    while len(set(seen)) < 60:
        seen += [sample.data for sample in next(batches)]
    batches.close()
    assert set(seen) == set(digits[:60])
    assert len(seen) <= 60 + 64  # messages that could not be acknowledged arrived twice
    assert "connecting again" in caplog.text
    assert "lost the session" not in caplog.text


@pytest.mark.slow
def test_publisher_that_replays_restores_what_a_killed_broker_lost(
    broker, publisher, digits, tmp_path, caplog
):
    subscribe(broker)
    caplog.set_level(logging.WARNING)
    consumer = threading.Thread(target=consume, args=(broker.url(), tmp_path / "kept", 400, 0.05))
    consumer.start()
    publisher.send_all(digits[:300])
    while not seen(tmp_path / "kept"):
        assert consumer.is_alive()
    broker.kill()  # messages that it acknowledged and did not save are lost
    broker.start()
    while "lost the session" not in caplog.text:
        assert consumer.is_alive()
        time.sleep(0.05)
    publisher.send_all(digits[:400])  # the publisher's own record, from its start
    consumer.join()
    with RetentionStore.open_readonly(tmp_path / "kept") as store:
        stored = [record.sample.data for record in store]
        assert store.stats().seen == 400
    assert len(stored) == len(set(stored))
    assert set(stored) == kept_of(digits[:400])


@pytest.mark.slow
def test_example_publisher_replays_what_a_killed_broker_lost(broker, digits, tmp_path):
    example = Path(__file__).parents[2] / "examples" / "mqtt_publisher.py"
    url = broker.url("digits/+", client="replayed")
    batches = open_source(url).batches(50)
    next(batches)
    command = [sys.executable, "-W", "error", example, "127.0.0.1", str(broker.port)]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "the broker has them all" in first.stdout
    received = []
    while len(received) < 50:
        received += [sample.data for sample in next(batches)]
    broker.kill()
    broker.start()
    # It adds the same digits under new numbers, replays the old ones, and waits for a subscriber.
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as second:
        while len(received) < 250 or second.poll() is None:
            received += [sample.data for sample in next(batches)]
    assert second.returncode == 0
    batches.close()
    assert set(received) == set(digits[:100])


@pytest.mark.slow
def test_killed_consumer_and_restarted_broker_lose_no_digit_and_store_none_twice(
    broker, publisher, digits, tmp_path
):
    subscribe(broker, window=40)
    path = tmp_path / "kept"
    arguments = [broker.url(window=40), path, str(len(digits)), "0.01"]
    command = [sys.executable, Path(__file__).with_name("consumer.py"), *arguments]
    sender = threading.Thread(target=publisher.send_all, args=(digits,))
    sender.start()
    for n_seen in (100, 500, 900, None):
        child = subprocess.Popen(command)
        while n_seen is not None and seen(path) < n_seen:
            assert child.poll() is None
            time.sleep(0.02)
        if n_seen is None:
            assert child.wait() == 0
        else:
            child.kill()
            child.wait()
        if n_seen == 500:
            broker.stop()
            broker.start()
    sender.join()
    with RetentionStore.open(path) as store:
        stored = [record.sample.data for record in store]
        stats = store.stats()
        assert store.check().ok
    assert stats.seen == len(digits)
    assert len(stored) == len(set(stored))
    assert set(stored) == kept_of(digits)


def seen(path):
    """How many samples a store has seen; 0 while it is being created."""
    try:
        with RetentionStore.open_readonly(path) as store:
            return store.stats().seen
    except DripError:
        return 0


# -- back-pressure -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_stays_flat_with_a_fast_publisher_and_a_slow_consumer(broker):
    subscribe(broker, window=32)
    code = (
        "import sys; from broker import Publisher; p = Publisher(int(sys.argv[1]));\n"
        "p.send_all((b'BM%08d' % i + bytes(5000) for i in range(20_000))); p.close()"
    )
    publisher = subprocess.Popen(
        [sys.executable, "-c", code, str(broker.port)],
        env={"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"},
    )
    batches = open_source(broker.url(window=32)).batches(16)
    n_seen, before = 0, 0
    while publisher.poll() is None or n_seen < 2000:
        n_seen += len(next(batches))
        # Slower in the end, so that even a publisher on a busy machine is ahead.
        time.sleep(0.005 if n_seen < 5000 else 0.2)
        if n_seen >= 500 and not before:
            before = resident_bytes()
    batches.close()
    assert publisher.returncode == 0
    assert n_seen < 20_000  # the broker holds the rest
    assert resident_bytes() - before < 10_000_000
