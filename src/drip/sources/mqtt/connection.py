"""One MQTT 5 connection, driven by the thread that calls it: it has no thread or queue.

paho's own network thread would read messages as fast as they arrive, with QoS 0 without any bound. Here,
messages that the caller does not ask for stay with the broker, however fast the publisher is.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from drip.errors import SourceError, missing_extra
from drip.sources.mqtt.address import PASSWORD_VARIABLE, MqttAddress

try:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
    from paho.mqtt.client import MQTTMessage as Message
    from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode
    from paho.mqtt.subscribeoptions import SubscribeOptions
except ImportError as error:
    raise missing_extra("drip.sources.mqtt.source", "paho-mqtt", "mqtt") from error

__all__ = ["ConnectionLostError", "Message", "MqttConnection"]

_ANSWER_S = 10.0
_SOCKET_S = 5.0

# MQTT 5, section 3.2.2.2: the answers for which trying again cannot help.
_PERMANENT = {
    0x84: "the broker does not speak MQTT 5",
    0x85: "the broker does not accept the identifier in client=; choose another",
    0x86: f"check the user and the password in {PASSWORD_VARIABLE} or password_file=",
    0x87: f"check the user and the password in {PASSWORD_VARIABLE} or password_file=",
    0x8A: "the broker has banned this client",
    0x8C: "the broker requires another method of authentication",
}
_TAKEN_OVER = 0x8E
_TRANSIENT_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLWantReadError)


class ConnectionLostError(SourceError):
    """There is no connection now; a later attempt may succeed."""

    code = "broker-lost"


class MqttConnection:
    """A session with a broker that can outlive connections and processes.

    Args:
        address: Broker, credentials, client identifier.
        session_s: How long the broker keeps the session; 0 ends it with the connection.

    Attributes:
        messages: Messages that arrived; the caller removes them.
        has_session: True if the broker still had the session when the connection was last opened.

    Raises:
        SourceError: certificates that cannot be read.
    """

    def __init__(self, address: MqttAddress, *, session_s: int) -> None:
        self.messages: deque[Message] = deque()
        self.has_session = False
        self._address = address
        self._session_s = session_s
        self._answer: ReasonCode | None = None
        self._granted: list[ReasonCode] = []
        self._farewell: ReasonCode | None = None
        self._sent: set[int] = set()
        self._client = self._new_client()

    def open(self) -> None:
        """Connect and resume the session.

        Raises:
            ConnectionLostError: the broker cannot be reached, or is busy.
            SourceError: retrying cannot help, for example with a wrong password, certificate or protocol.
        """
        self._answer = self._farewell = None
        self.messages.clear()  # they were not acknowledged, so the broker sends them again
        self._connect()
        answer = self._wait_for_answer()
        if not answer.is_failure:
            return
        text = f"the broker at {self._address.place} refused client {self._address.client!r}: {answer}"
        if answer.value in _PERMANENT:
            raise SourceError(f"{text}; {_PERMANENT[answer.value]}", code="broker-refused")
        raise ConnectionLostError(text)

    def subscribe(self, topic: str, qos: int) -> None:
        """Subscribe, and wait for the broker's answer.

        Raises:
            ConnectionLostError: the connection broke.
            SourceError: the broker refuses, or grants a lower QoS.
        """
        self._granted = []
        options = SubscribeOptions(qos=qos, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        self._client.subscribe(topic, options=options)
        deadline = time.monotonic() + _ANSWER_S
        while not self._granted:
            if time.monotonic() > deadline:
                raise ConnectionLostError(f"{self._address.place} did not answer the subscription request")
            self.turn(0.1)
        (granted,) = self._granted
        if granted.is_failure or granted.value < qos:
            raise SourceError(
                f"the broker at {self._address.place} does not grant a subscription to {topic!r} with QoS "
                f"{qos}: {granted}; check the permissions of {self._address.user or 'anonymous clients'}",
                code="broker-refused",
            )

    def turn(self, wait_s: float) -> None:
        """Read and write for one turn, waiting up to ``wait_s`` seconds for the first event.

        Raises:
            ConnectionLostError: the connection broke.
            SourceError: another client has taken over the session.
        """
        code = self._client.loop(wait_s)
        if code == MQTTErrorCode.MQTT_ERR_SUCCESS:
            return
        if self._farewell is not None and self._farewell.value == _TAKEN_OVER:
            # Connecting again would disconnect the other client, which would connect again, and so on.
            raise SourceError(
                f"another client has connected to {self._address.place} as {self._address.client!r}; change "
                "client= of one of them",
                code="broker-refused",
            )
        raise ConnectionLostError(
            f"the connection to {self._address.place} was lost: {self._farewell or code.name}"
        )

    def acknowledge(self, message: Message) -> None:
        """Acknowledge a message, so the broker deletes it.

        Without a connection it is sent again, which does no harm.
        """
        if message.qos:
            self._client.ack(message.mid, message.qos)

    def publish(self, topic: str, payloads: Sequence[bytes], *, within_s: float) -> None:
        """Send with QoS 1, and wait until the broker has acknowledged all of them.

        Raises:
            ConnectionLostError: it did not acknowledge them in time; some may have arrived.
        """
        self._sent.clear()
        numbers = {self._client.publish(topic, payload, qos=1).mid for payload in payloads}
        deadline = time.monotonic() + within_s
        while not numbers <= self._sent:
            self.turn(0.1)
            if time.monotonic() > deadline:
                raise ConnectionLostError(f"{self._address.place} did not acknowledge the published messages")

    def close(self) -> None:
        """Disconnect; the broker keeps the session."""
        client = self._client
        client.disconnect()
        client.loop(0.0)
        # The callbacks refer back to this object. Without that cycle, the sockets are closed now and not at
        # the next garbage collection.
        client.on_connect = client.on_subscribe = client.on_disconnect = None
        client.on_publish = client.on_message = None

    def _new_client(self) -> Client:
        address = self._address
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=address.client,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,  # paho would acknowledge on arrival, before the commit
            reconnect_on_failure=False,
        )
        client.connect_timeout = _SOCKET_S
        if address.user is not None:
            client.username_pw_set(address.user, address.password)
        context = address.tls_context()
        if context is not None:
            client.tls_set_context(context)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = lambda _client, _data, message: self.messages.append(message)
        return client

    def _connect(self) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = self._session_s
        properties.ReceiveMaximum = self._address.window
        try:
            self._client.connect(
                self._address.host,
                self._address.port,
                keepalive=self._address.keepalive_s,
                clean_start=not self._session_s,
                properties=properties,
            )
        except _TRANSIENT_TLS as error:
            raise self._unreachable(error) from error
        except ssl.SSLError as error:
            raise SourceError(
                f"the TLS connection to {self._address.place} failed: {error}; give the "
                "certificate of the broker's CA with cafile=, and use the host name in the broker's certificate",
                code="broker-refused",
            ) from error
        except OSError as error:
            raise self._unreachable(error) from error

    def _wait_for_answer(self) -> ReasonCode:
        deadline = time.monotonic() + _ANSWER_S
        while self._answer is None:
            code = self._client.loop(0.1)
            if self._answer is None and (
                code != MQTTErrorCode.MQTT_ERR_SUCCESS or time.monotonic() > deadline
            ):
                raise self._unreachable(f"no answer ({self._farewell or code.name})")
        return self._answer

    def _unreachable(self, reason: object) -> ConnectionLostError:
        return ConnectionLostError(f"cannot reach the broker at {self._address.place}: {reason}")

    def _on_connect(
        self, _client: Client, _data: Any, flags: ConnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        self._answer = reason
        self.has_session = flags.session_present

    def _on_subscribe(
        self, _client: Client, _data: Any, _mid: int, granted: list[ReasonCode], _properties: object
    ) -> None:
        self._granted = granted

    def _on_publish(
        self, _client: Client, _data: Any, number: int, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            raise SourceError(
                f"the broker at {self._address.place} does not permit publishing: {reason}; check the "
                f"permissions of {self._address.user or 'anonymous clients'}",
                code="broker-refused",
            )
        self._sent.add(number)

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        if self._farewell is None:  # the first reason is the broker's own, the next ones are of the socket
            self._farewell = reason
