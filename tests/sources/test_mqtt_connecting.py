"""Connecting to a real Mosquitto: TLS, passwords, refusals, addresses."""

import gc
import logging
import socket
import subprocess
import sys
import threading
import time
from itertools import islice

import pytest
from broker import INSTALL, Broker, make_certificates
from consumer import SPEC, InkScorer, make_rule
from support import require_tool

from drip.errors import SourceError
from drip.pipeline import run
from drip.sources import open_source
from drip.sources.mqtt.address import PASSWORD_VARIABLE, MqttAddress
from drip.store import RetentionStore


@pytest.fixture
def broker(tmp_path, monkeypatch):
    monkeypatch.setattr("drip.sources.mqtt.source._HEARTBEAT_S", 0.2)
    running = Broker(tmp_path).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secure(tmp_path, certificates, monkeypatch):
    monkeypatch.setattr("drip.sources.mqtt.source._HEARTBEAT_S", 0.2)
    require_tool("mosquitto", INSTALL)
    tool = require_tool("mosquitto_passwd", INSTALL)
    passwords = tmp_path / "passwords"
    subprocess.run([tool, "-b", "-c", passwords, "sensor", "right"], check=True, capture_output=True)
    running = Broker(tmp_path, tls=certificates, password_file=passwords).start()
    yield running
    running.stop()


def secure_url(broker, certificates, host="localhost", **options):
    query = "&".join(f"{name}={value}" for name, value in {"connect": 60, **options}.items())
    return f"mqtts://sensor@{host}:{broker.port}/in/+?client=d&cafile={certificates / 'ca.crt'}&{query}"


def test_tls_and_a_password_from_environment_or_file(secure, certificates, monkeypatch, tmp_path):
    monkeypatch.setenv(PASSWORD_VARIABLE, "right")
    assert next(open_source(secure_url(secure, certificates)).batches(1)) == []
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    (tmp_path / "secret").write_text("right\n")
    url = secure_url(secure, certificates, password_file=tmp_path / "secret")
    assert next(open_source(url).batches(1)) == []


def test_wrong_password_is_an_error_at_once_and_not_repeated(secure, certificates, monkeypatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, "wr0ng-secret")
    start = time.monotonic()
    with pytest.raises(SourceError, match=f"Not authorized; check the user .*{PASSWORD_VARIABLE}") as caught:
        next(open_source(secure_url(secure, certificates, connect=300)).batches(1))
    assert caught.value.code == "broker-refused"
    assert time.monotonic() - start < 100  # one attempt
    assert "wr0ng-secret" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves the socket open
def test_certificate_of_another_authority_is_an_error_at_once(secure, monkeypatch, tmp_path):
    monkeypatch.setenv(PASSWORD_VARIABLE, "right")
    other = make_certificates(tmp_path)
    with pytest.raises(SourceError, match=r"certificate verify failed.*cafile=") as caught:
        next(open_source(secure_url(secure, other, connect=30)).batches(1))
    assert caught.value.code == "broker-refused"
    del caught
    gc.collect()  # here, where the warning is ignored


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves the socket open
def test_certificate_of_another_host_is_an_error_at_once(secure, certificates, monkeypatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, "right")
    with pytest.raises(SourceError, match="certificate") as caught:
        next(open_source(secure_url(secure, certificates, "127.0.0.1", connect=30)).batches(1))
    assert caught.value.code == "broker-refused"
    del caught
    gc.collect()


def test_broker_that_cannot_be_reached_is_an_error_after_the_time_to_connect():
    address = MqttAddress.from_url("mqtt://127.0.0.1:1/in?client=d&connect=0.3")
    assert address.port == 1
    with pytest.raises(SourceError, match=r"the broker at 127.0.0.1:1: .*refused.*tried for") as caught:
        list(open_source("mqtt://127.0.0.1:1/in?client=d&connect=0.3").batches(1))
    assert caught.value.code == "source-unavailable"


def test_clients_with_one_identifier_are_logged_and_do_not_throw_each_other_out_for_ever(broker, caplog):
    caplog.set_level(logging.WARNING)
    first = open_source(broker.url()).batches(1)
    assert next(first) == []
    second = open_source(broker.url()).batches(1)
    assert next(second) == []
    assert list(islice(first, 1)) == [[]]
    second.close()
    first.close()
    assert "is another client 'device'?" in caplog.text


def test_broker_that_reports_a_taken_over_session_ends_the_stream():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def play():  # the broker's bytes: CONNACK, SUBACK, DISCONNECT "session taken over"
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
        with pytest.raises(SourceError, match=r"another client has connected.*change client=") as caught:
            list(islice(batches, 3))
        assert caught.value.code == "broker-refused"
        player.join()


def test_broker_that_grants_no_acknowledged_delivery_is_an_error(tmp_path):
    broker = Broker(tmp_path, more=["max_qos 0"]).start()
    with pytest.raises(SourceError, match=r"does not grant a subscription .* with QoS 1") as caught:
        next(open_source(broker.url()).batches(1))
    assert caught.value.code == "broker-refused"
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
        ("mqtt://host?client=c", "the URL has no topic"),
        ("mqtt:///a?client=c", "the URL has no broker"),
        ("mqtt://host:99999/a?client=c", "the port after the host"),
        ("mqtt://host/a/#/b?client=c", "a wildcard must fill a whole level, and # must be the last level"),
        ("mqtt://host/a/b#?client=c", "a wildcard must fill a whole level"),
        ("mqtt://host/a+/b?client=c", "a wildcard must fill a whole level"),
        ("mqtt://host/a/b+?client=c", "a wildcard must fill a whole level"),
        ("mqtt://host/a?client=c&qos=2", "qos must be a whole number from 0 to 1, got '2'"),
        ("mqtt://host/a?client=c&window=x", "window must be"),
        ("mqtt://host/a?client=c&window=1.5", "window must be a whole number from 1 to 65535, got '1.5'"),
        ("mqtt://host/a?client=c&session=inf", "session must be a whole number"),
        ("mqtt://host/a?client=c&max_bytes=1e3", "max_bytes must be a whole number"),
        ("mqtt://host/a?client=c&windw=3", "mqtt: has no option 'windw'"),
        ("mqtt://host/a?client=c&password_file=/x", "without a user"),
    ],
)
def test_malformed_address_is_an_error(url, word):
    with pytest.raises(SourceError, match=word) as caught:
        open_source(url)
    assert caught.value.code == "source-url"


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("mqtt://me@host/a?client=c&password_file=/nowhere", "password_file=/nowhere does not exist"),
        ("mqtts://host/a?client=c&cafile=/nowhere.crt", "cafile=/nowhere.crt does not exist"),
    ],
)
def test_file_of_an_address_that_does_not_exist_is_an_error(url, word):
    with pytest.raises(SourceError, match=word) as caught:
        next(open_source(url).batches(1))
    assert caught.value.code == "path-missing"


def test_certificate_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "ca.crt").write_text("not a certificate")
    with pytest.raises(SourceError, match=r"cafile=.*ca\.crt"):
        next(open_source(f"mqtts://host/a?client=c&cafile={tmp_path / 'ca.crt'}").batches(1))


def test_password_in_a_url_is_an_error_and_appears_nowhere(monkeypatch):
    with pytest.raises(SourceError, match=PASSWORD_VARIABLE) as caught:
        open_source("mqtt://me:hunter2@host/a?client=c")
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv(PASSWORD_VARIABLE, "hunter2")
    assert "hunter2" not in repr(MqttAddress.from_url("mqtt://me@host/a?client=c"))


def test_without_paho_the_error_has_the_command_that_installs_it():
    code = (
        "import sys; sys.modules['paho'] = None\n"
        "from drip.sources import open_source\nfrom drip.errors import DripError\n"
        "try:\n    open_source('mqtt://host/a?client=c')\nexcept DripError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "drip-edge[mqtt]"' in done.stdout


def test_run_can_be_stopped_while_nothing_arrives(broker, tmp_path):
    asked = []
    with RetentionStore.open(tmp_path / "kept", budget_bytes=5_000_000) as store:
        tally = run(
            open_source(broker.url()), InkScorer(), make_rule(), store,
            prepare=SPEC.prepare, stop=lambda: bool(asked) or asked.append(1),
        )  # fmt: skip
    assert (tally.n_seen, tally.interrupted) == (0, True)
