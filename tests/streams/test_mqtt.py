"""MQTT against a real Mosquitto: sessions, kills, redelivery, back-pressure, TLS, passwords, bad payloads."""

import base64
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import pytest
from broker import INSTALL, Broker, make_certificates, resident_bytes
from consumer import CONTRACT, InkScorer, consume, make_rule
from support import require_tool

from drip.datasets import load_mnist
from drip.errors import DripError, StreamError
from drip.pipeline import observe, run
from drip.store import RetentionStore
from drip.streams import open_source
from drip.streams.mqtt_address import PASSWORD_VARIABLE, MqttAddress
from drip.testing import check_source


@pytest.fixture(scope="module")
def digits():
    """Real digits as PNG, all different."""
    return [sample.data for sample in load_mnist().samples(range(2000))]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("drip.streams.mqtt._HEARTBEAT_S", 0.2)


@pytest.fixture
def broker(tmp_path):
    running = Broker(tmp_path).start()
    yield running
    running.stop()


@pytest.fixture
def publisher(broker):
    client = broker.publisher()
    yield client
    client.close()


def take(source, n, max_samples=32, timeout_s=20):
    """The first n samples; what was taken is acknowledged."""
    samples, deadline = [], time.monotonic() + timeout_s
    batches = source.batches(max_samples)
    for batch in batches:
        samples += batch
        if len(samples) >= n:
            next(batches)
            break
        assert time.monotonic() < deadline, f"{len(samples)} of {n} samples came"
    batches.close()
    return samples


def subscribe(broker, **options):
    """Make the session, as a first run does."""
    batches = open_source(broker.url(**options)).batches(1)
    assert next(batches) == []
    batches.close()


def kept_of(digits):
    """Contents that the rule keeps, by an independent pass."""
    samples = list(load_mnist().samples(range(len(digits))))
    decisions = make_rule().decide_many(observe(samples, InkScorer(), prepare=CONTRACT.prepare))
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


def test_mqtt_keeps_the_contract_of_sources(broker, publisher, digits, monkeypatch):
    monkeypatch.setattr("drip.streams.mqtt.time.time", lambda: 1.5e9)

    def opened():
        name = f"contract-{next(numbers)}"
        subscribe(broker, client=name)
        publisher.send_all(digits[:4])
        return Ended(open_source(broker.url(client=name)), 4)

    numbers = iter(range(100))
    check_source(opened)


def test_message_becomes_a_sample_with_topic_properties_and_type(broker, publisher, digits):
    subscribe(broker)
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
    assert abs(fourth.time_s - time.time()) < 60
    assert (fifth.id, fifth.data, fifth.label) == ("in/e/e", digits[2], 3)


def test_clock_that_jumps_back_loses_nothing(broker, publisher, digits, monkeypatch, tmp_path):
    subscribe(broker)
    times = iter(range(10**9, 0, -(10**7)))
    monkeypatch.setattr("drip.streams.mqtt.time.time", lambda: float(next(times)))
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


def test_bad_payloads_go_to_quarantine_with_their_reason_and_the_others_are_kept(
    broker, publisher, digits, tmp_path
):
    subscribe(broker)
    bad = {
        b"neither image nor sound": "payload with a media type",
        b'{"id": 1, "data": "%%%"}': "data in base64",
        b'{"id": 1, "da': "JSON object",
        b"": "got 0 bytes",
        digits[5][:100]: "complete image",
        b"x" * 5000: "at most 4000 bytes is needed, got 5000",
    }
    for payload in bad:
        publisher.send(payload)
    publisher.send(digits[0], label="no class")
    publisher.send(digits[1])
    tally = consume(broker.url(max_bytes=4000), tmp_path / "kept", 1)
    assert (tally.n_seen, tally.n_quarantined) == (8, 7)
    with RetentionStore.open_readonly(tmp_path / "kept") as store:
        reasons = [aside.reason for aside in store.quarantined()]
    assert len(reasons) == 7
    for word in [*bad.values(), "class index from 0 or a class name, got 'no class'"]:
        assert any(word in reason for reason in reasons), word


def test_idle_stream_gives_an_empty_batch_every_second(broker, monkeypatch):
    monkeypatch.undo()
    batches = open_source(broker.url()).batches(8)
    start = time.monotonic()
    assert list(islice(batches, 2)) == [[], []]
    assert 1.5 < time.monotonic() - start < 4
    batches.close()


# -- acknowledgement -----------------------------------------------------------------------------------


def test_what_was_not_committed_comes_again_and_what_was_does_not(broker, publisher, digits):
    subscribe(broker)
    publisher.send_all(digits[:6])
    batches = open_source(broker.url()).batches(2)
    first = next(batches)
    second = next(batches)  # acknowledges the first
    batches.close()  # as a process that dies before its commit
    again = take(open_source(broker.url()), 4)
    assert [sample.data for sample in again] == digits[2:6]
    assert [sample.data for sample in first + second] == digits[:4]
    assert next(open_source(broker.url()).batches(2)) == []


def test_redelivery_of_what_the_store_has_is_not_stored_twice(broker, publisher, digits, tmp_path):
    subscribe(broker)
    publisher.send_all(digits[:8])
    for _ in range(2):  # the run stops behind its commit and before the acknowledgement
        consume(broker.url(), tmp_path / "kept", 8)
        with RetentionStore.open_readonly(tmp_path / "kept") as store:
            stats = store.stats()
            contents = {record.sample.data for record in store}
        assert stats.seen == 8
        assert len(contents) == stats.kept
    assert contents == kept_of(digits[:8])


def test_broker_that_is_stopped_and_started_loses_nothing(broker, publisher, digits, caplog):
    subscribe(broker)
    caplog.set_level(logging.WARNING)
    publisher.send_all(digits[:50])
    batches = open_source(broker.url()).batches(8)
    seen = [sample.data for _ in range(3) for sample in next(batches)]
    broker.stop()
    while batch := next(batches):  # what is in the socket's buffer still comes
        seen += [sample.data for sample in batch]
    broker.start()
    publisher.send_all(digits[50:60])
    while len(set(seen)) < 60:
        seen += [sample.data for sample in next(batches)]
    batches.close()
    assert set(seen) == set(digits[:60])
    assert len(seen) <= 60 + 64  # what could not be acknowledged came twice
    assert "connecting again" in caplog.text
    assert "lost the session" not in caplog.text


def test_killed_broker_has_lost_its_session_and_a_publisher_that_replays_makes_it_good(
    broker, publisher, digits, tmp_path, caplog
):
    subscribe(broker)
    caplog.set_level(logging.WARNING)
    consumer = threading.Thread(target=consume, args=(broker.url(), tmp_path / "kept", 400, 0.05))
    consumer.start()
    publisher.send_all(digits[:300])
    deadline = time.monotonic() + 20
    while not seen(tmp_path / "kept"):
        assert time.monotonic() < deadline
    broker.kill()  # what it has acknowledged and not written is gone
    broker.start()
    deadline = time.monotonic() + 20
    while "lost the session" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    publisher.send_all(digits[:400])  # the publisher's own record, from its start
    consumer.join(30)
    assert not consumer.is_alive()
    with RetentionStore.open_readonly(tmp_path / "kept") as store:
        stored = [record.sample.data for record in store]
        assert store.stats().seen == 400
    assert len(stored) == len(set(stored))
    assert set(stored) == kept_of(digits[:400])


def test_example_publisher_replays_what_a_killed_broker_lost(broker, digits, tmp_path):
    example = Path(__file__).parents[2] / "examples" / "mqtt_publisher.py"
    url = broker.url("digits/+", client="replayed")
    batches = open_source(url).batches(50)
    next(batches)
    command = [sys.executable, "-W", "error", example, "127.0.0.1", str(broker.port)]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    assert "the broker has them all" in first.stdout
    received = [sample.data for sample in next(batches)]
    broker.kill()
    broker.start()
    # Adds the same digits under new numbers, replays the old ones, and waits until somebody listens.
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as second:
        deadline = time.monotonic() + 30
        while len(received) < 250 or second.poll() is None:
            received += [sample.data for sample in next(batches)]
            assert time.monotonic() < deadline
    assert second.returncode == 0
    batches.close()
    assert set(received) == set(digits[:100])


def test_killed_consumer_and_restarted_broker_lose_nothing_and_store_nothing_twice(
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
        deadline = time.monotonic() + 60
        while n_seen is not None and seen(path) < n_seen:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if n_seen is None:
            assert child.wait(timeout=60) == 0
        else:
            child.kill()
            child.wait()
        if n_seen == 500:
            broker.stop()
            broker.start()
    sender.join()
    with RetentionStore(path) as store:
        stored = [record.sample.data for record in store]
        stats = store.stats()
        assert store.check().ok
    assert stats.seen == len(digits)
    assert len(stored) == len(set(stored))
    assert set(stored) == kept_of(digits)


def seen(path):
    """How many samples a store has seen; it may be in the making."""
    try:
        with RetentionStore.open_readonly(path) as store:
            return store.stats().seen
    except DripError:
        return 0


# -- back-pressure -------------------------------------------------------------------------------------


def test_memory_stays_flat_with_a_fast_publisher_and_a_slow_consumer(broker):
    subscribe(broker, window=32)
    code = (
        "import sys; from broker import Publisher; p = Publisher(int(sys.argv[1]));\n"
        "p.send_all((b'BM%08d' % i + bytes(5000) for i in range(20_000)), 120); p.close()"
    )
    publisher = subprocess.Popen(
        [sys.executable, "-c", code, str(broker.port)],
        env={"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"},
    )
    batches = open_source(broker.url(window=32)).batches(16)
    n_seen, before = 0, 0
    while publisher.poll() is None or n_seen < 2000:
        n_seen += len(next(batches))
        time.sleep(0.005)
        if n_seen >= 500 and not before:
            before = resident_bytes()
    batches.close()
    assert publisher.returncode == 0
    assert n_seen < 20_000  # the broker holds the rest
    assert resident_bytes() - before < 10_000_000


# -- who may connect -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secure(tmp_path, certificates):
    require_tool("mosquitto", INSTALL)
    tool = require_tool("mosquitto_passwd", INSTALL)
    passwords = tmp_path / "passwords"
    subprocess.run([tool, "-b", "-c", passwords, "sensor", "right"], check=True, capture_output=True)
    running = Broker(tmp_path, tls=certificates, password_file=passwords).start()
    yield running
    running.stop()


def secure_url(broker, certificates, host="localhost", **options):
    query = "&".join(f"{name}={value}" for name, value in {"connect": 1, **options}.items())
    return f"mqtts://sensor@{host}:{broker.port}/in/+?client=d&cafile={certificates / 'ca.crt'}&{query}"


def test_tls_and_a_password_from_environment_or_file(secure, certificates, monkeypatch, tmp_path):
    monkeypatch.setenv(PASSWORD_VARIABLE, "right")
    assert next(open_source(secure_url(secure, certificates)).batches(1)) == []
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    (tmp_path / "secret").write_text("right\n")
    url = secure_url(secure, certificates, password_file=tmp_path / "secret")
    assert next(open_source(url).batches(1)) == []


def test_wrong_password_is_refused_at_once_and_not_repeated(secure, certificates, monkeypatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, "wr0ng-secret")
    start = time.monotonic()
    with pytest.raises(StreamError, match=f"Not authorized; check the user .*{PASSWORD_VARIABLE}") as caught:
        next(open_source(secure_url(secure, certificates, connect=30)).batches(1))
    assert time.monotonic() - start < 5
    assert "wr0ng-secret" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves the socket open
def test_certificate_of_another_authority_is_refused_at_once(secure, monkeypatch, tmp_path):
    monkeypatch.setenv(PASSWORD_VARIABLE, "right")
    other = make_certificates(tmp_path)
    with pytest.raises(StreamError, match=r"certificate verify failed.*cafile="):
        next(open_source(secure_url(secure, other, connect=30)).batches(1))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves the socket open
def test_certificate_of_another_host_is_refused_at_once(secure, certificates, monkeypatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, "right")
    with pytest.raises(StreamError, match="certificate"):
        next(open_source(secure_url(secure, certificates, "127.0.0.1", connect=30)).batches(1))


def test_broker_that_is_not_there_is_an_error_after_the_time_to_connect():
    address = MqttAddress.from_url("mqtt://127.0.0.1:1/in?client=d&connect=0.3")
    assert address.port == 1
    with pytest.raises(StreamError, match=r"a broker is needed at 127.0.0.1:1, got: .*refused.*tried for"):
        list(open_source("mqtt://127.0.0.1:1/in?client=d&connect=0.3").batches(1))


def test_clients_of_one_name_are_asked_about_and_do_not_chase_each_other(broker, caplog):
    caplog.set_level(logging.WARNING)
    first = open_source(broker.url()).batches(1)
    assert next(first) == []
    second = open_source(broker.url()).batches(1)
    assert next(second) == []
    assert list(islice(first, 1)) == [[]]
    second.close()
    first.close()
    assert "is another client 'device'?" in caplog.text


def test_broker_that_says_who_took_over_ends_the_stream():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def play():  # a broker's part, byte by byte: CONNACK, SUBACK, DISCONNECT "session taken over"
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x20\x03\x00\x00\x00")
                subscription = connection.recv(1000)
                connection.sendall(b"\x90\x04" + subscription[2:4] + b"\x00\x01")
                connection.sendall(b"\xe0\x02\x8e\x00")
                connection.recv(1000)

        player = threading.Thread(target=play)
        player.start()
        batches = open_source(f"mqtt://127.0.0.1:{listener.getsockname()[1]}/a?client=d").batches(1)
        with pytest.raises(StreamError, match=r"client identifier of its own.*change client="):
            list(islice(batches, 3))
        player.join()


def test_broker_that_grants_no_acknowledged_delivery_is_refused(tmp_path):
    broker = Broker(tmp_path, more=["max_qos 0"]).start()
    with pytest.raises(StreamError, match="with QoS 1 is needed"):
        next(open_source(broker.url()).batches(1))
    broker.stop()


# -- addresses -----------------------------------------------------------------------------------------


def test_address_from_a_url():
    address = MqttAddress.from_url("mqtts://me%40home@host/a/%2B/#?client=c&window=5&session=60")
    assert (address.host, address.port, address.topic) == ("host", 8883, "a/+/#")
    assert (address.user, address.client, address.window, address.session_s) == ("me@home", "c", 5, 60)
    assert MqttAddress.from_url("mqtt://host/$share/g/a?client=c").topic == "$share/g/a"


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("mqtt://host/a", "client=NAME"),
        ("mqtt://host?client=c", "a broker and a topic"),
        ("mqtt:///a?client=c", "a broker and a topic"),
        ("mqtt://host:99999/a?client=c", "a port"),
        ("mqtt://host/a?client=c&qos=2", "qos must be a number from 0 to 1, got '2'"),
        ("mqtt://host/a?client=c&window=x", "window must be"),
        ("mqtt://host/a?client=c&windw=3", "options of mqtt:"),
        ("mqtt://host/a?client=c&password_file=/x", "a user is needed"),
        ("mqtt://me@host/a?client=c&password_file=/nowhere", "password file"),
    ],
)
def test_unusable_address_is_refused(url, word):
    with pytest.raises(StreamError, match=word):
        open_source(url)


def test_password_in_a_url_is_refused_and_appears_nowhere(monkeypatch):
    with pytest.raises(StreamError, match=PASSWORD_VARIABLE) as caught:
        open_source("mqtt://me:hunter2@host/a?client=c")
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv(PASSWORD_VARIABLE, "hunter2")
    assert "hunter2" not in repr(MqttAddress.from_url("mqtt://me@host/a?client=c"))


def test_missing_certificate_is_named():
    with pytest.raises(StreamError, match=r"nowhere\.crt"):
        next(open_source("mqtts://host/a?client=c&cafile=/nowhere.crt").batches(1))


def test_without_paho_the_install_line_is_given():
    code = (
        "import sys; sys.modules['paho'] = None\n"
        "from drip.streams import open_source\nfrom drip.errors import DripError\n"
        "try:\n    open_source('mqtt://host/a?client=c')\nexcept DripError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "drip-edge[mqtt]"' in done.stdout


def test_run_can_be_stopped_while_nothing_arrives(broker, tmp_path):
    asked = []
    with RetentionStore(tmp_path / "kept", budget_bytes=5_000_000) as store:
        tally = run(
            open_source(broker.url()), InkScorer(), make_rule(), store,
            prepare=CONTRACT.prepare, stop=lambda: bool(asked) or asked.append(1),
        )  # fmt: skip
    assert (tally.n_seen, tally.interrupted) == (0, True)
