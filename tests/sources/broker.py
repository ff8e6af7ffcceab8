"""A real Mosquitto on a free port, with certificates, passwords and a publisher for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from support import require_module, require_tool

INSTALL = "apt-get install mosquitto"


class Broker:
    """Starts, stops and kills a Mosquitto that keeps its state in one folder.

    As in Mosquitto's default configuration, SIGTERM saves the state and SIGKILL loses it.
    """

    def __init__(self, folder, *, tls=None, password_file=None, more=()):
        self._program = require_tool("mosquitto", INSTALL)
        require_module("paho.mqtt", 'pip install "drip-edge[mqtt]"')
        self._process = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        lines = [
            "user root",  # a broker started by root would switch to a user that cannot write here
            f"listener {self.port} 127.0.0.1",
            "persistence true",
            f"persistence_location {folder}/",
            "max_queued_messages 0",
            "max_inflight_messages 0",
            *more,
        ]
        if password_file is None:
            lines.append("allow_anonymous true")
        else:
            lines += ["allow_anonymous false", f"password_file {password_file}"]
        if tls is not None:
            lines += [f"certfile {tls / 'server.crt'}", f"keyfile {tls / 'server.key'}"]
            lines += [f"cafile {tls / 'ca.crt'}"]
        self._config = Path(folder) / "mosquitto.conf"
        self._config.write_text("\n".join(lines) + "\n")
        self._log = Path(folder) / "mosquitto.log"

    def start(self):
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", self._config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                if self._process.poll() is not None:
                    raise AssertionError(self._log.read_text()) from None
                time.sleep(0.02)
            else:
                return self

    def stop(self, number=signal.SIGTERM):
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    @property
    def pid(self):
        return 0 if self._process is None else self._process.pid

    def kill(self):
        self.stop(signal.SIGKILL)

    def url(self, topic="in/#", *, client="device", **options):
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"mqtt://127.0.0.1:{self.port}/{topic}?client={client}&{query}".rstrip("&")

    def publisher(self):
        return Publisher(self.port)


class Publisher:
    """Publishes with QoS 1, and remembers which messages the broker has acknowledged."""

    def __init__(self, port):
        from paho.mqtt.client import CallbackAPIVersion, Client, MQTTProtocolVersion

        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.max_inflight_messages_set(100)
        self._client.reconnect_delay_set(0.1, 0.5)
        self._acknowledged = set()  # by packet identifier, of which there are 65,535
        self._n_acknowledged = 0
        self._client.on_publish = self._on_publish
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _on_publish(self, _client, _data, number, *_):
        self._acknowledged.add(number)
        self._n_acknowledged += 1

    def send(self, payload, topic="in/camera", **properties):
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        sent = Properties(PacketTypes.PUBLISH)
        if content_type := properties.pop("content_type", None):
            sent.ContentType = content_type
        if properties:
            sent.UserProperty = [(name, str(value)) for name, value in properties.items()]
        return self._client.publish(topic, payload, qos=1, properties=sent).mid

    def send_all(self, payloads):
        numbers = {self.send(payload) for payload in payloads}
        while not numbers <= self._acknowledged:
            time.sleep(0.01)

    @property
    def n_acknowledged(self):
        return self._n_acknowledged

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


def make_certificates(folder):
    """A certificate authority and a server certificate that is valid only for localhost."""
    openssl = require_tool("openssl", "apt-get install openssl")

    def run(*arguments):
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    authority = ("-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=drip test authority", "-days", "2")
    run("req", "-x509", *key, *authority)
    run("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    signer = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    run("x509", "-req", "-in", "server.csr", "-out", "server.crt", *signer)
    return folder


def resident_bytes():
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
