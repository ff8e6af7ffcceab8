"""A publisher that sends messages again which a killed broker may have lost.

Messages wait in a file. After every reconnection, those acknowledged within the last minute are sent again. This is
longer than the broker's interval between two saves (Mosquitto's autosave_interval), so nothing is lost when it dies.
The store recognises repeated samples and keeps them once.

    python mqtt_publisher.py HOST [PORT]        # without HOST: only write the file
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from paho.mqtt.client import CallbackAPIVersion, Client, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from drip.datasets import load_mnist

REPLAY_S = 60.0
IN_FLIGHT = 100
NOBODY_LISTENS = 0x10  # MQTT 5: the broker accepted the message but had no subscriber to keep it for


class Outbox:
    """Messages in a file, each with the time when the broker acknowledged it, if it did."""

    def __init__(self, path: str) -> None:
        self._rows = sqlite3.connect(path, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode = WAL")
        self._rows.execute(
            "CREATE TABLE IF NOT EXISTS outbox "
            "(number INTEGER PRIMARY KEY, payload BLOB, acknowledged_s REAL)"
        )

    def add(self, payload: bytes) -> None:
        """Add a message; it is on disk when this returns."""
        self._rows.execute("INSERT INTO outbox (payload) VALUES (?)", (payload,))

    def waiting(self) -> Iterator[tuple[int, bytes]]:
        """Number and payload of the messages that the broker has not acknowledged."""
        yield from self._rows.execute("SELECT number, payload FROM outbox WHERE acknowledged_s IS NULL")

    def acknowledge(self, number: int) -> None:
        """Note that the broker has this message."""
        self._rows.execute("UPDATE outbox SET acknowledged_s = ? WHERE number = ?", (time.time(), number))

    def doubt(self) -> None:
        """After a reconnection: send recently acknowledged messages again, delete older ones."""
        since_s = time.time() - REPLAY_S
        self._rows.execute("DELETE FROM outbox WHERE acknowledged_s < ?", (since_s,))
        self._rows.execute("UPDATE outbox SET acknowledged_s = NULL")


class Publisher:
    """Sends the waiting messages of an outbox over one connection."""

    def __init__(self, outbox: Outbox, host: str, port: int) -> None:
        self._outbox = outbox
        self._in_flight: dict[int, int] = {}
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_publish = self._on_publish
        self._client.connect(host, port)
        while not self._client.is_connected():
            self._turn()

    def send_all(self) -> None:
        """Send until no message waits; raises OSError when the connection breaks."""
        while waiting := list(islice(self._outbox.waiting(), IN_FLIGHT)):
            for number, payload in waiting:
                properties = Properties(PacketTypes.PUBLISH)
                properties.ContentType, properties.UserProperty = "image/png", [("id", str(number))]
                sent = self._client.publish("digits/camera", payload, qos=1, properties=properties)
                self._in_flight[sent.mid] = number
            while self._in_flight:
                self._turn()
        self._client.disconnect()

    def _turn(self) -> None:
        if self._client.loop(0.1):
            raise ConnectionError("the connection broke")

    def _on_publish(self, _client: Client, _data: object, packet: int, reason: Any, _more: object) -> None:
        number = self._in_flight.pop(packet)
        if reason.value < NOBODY_LISTENS:
            self._outbox.acknowledge(number)
        else:
            time.sleep(0.1)  # keep it until there is a subscriber


def publish(outbox: Outbox, host: str, port: int) -> None:
    """Send all messages, reconnecting as often as necessary."""
    while True:
        outbox.doubt()
        try:
            Publisher(outbox, host, port).send_all()
        except OSError as error:
            print(f"no broker at {host}:{port} ({error}); trying again")
            time.sleep(1)
        else:
            return


def main() -> None:
    """Write digits to the file, and send them if a host is given."""
    outbox = Outbox("outbox.sqlite")
    for sample in load_mnist().samples(range(100)):
        outbox.add(sample.data)
    print(f"{len(list(outbox.waiting()))} digits wait in outbox.sqlite")
    if len(sys.argv) > 1:
        publish(outbox, sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1883)
        print("the broker has them all")


if __name__ == "__main__":
    main()
