"""MQTT 5 as a stream: messages are acknowledged only after the store's commit."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Self

from drip.errors import SourceError
from drip.media import MEDIA_TYPES
from drip.sources.messages import HEAD_BYTES, media_type_of, rejected, sample_of, sample_of_json
from drip.sources.mqtt.address import MqttAddress
from drip.sources.mqtt.connection import ConnectionLostError, Message, MqttConnection
from drip.types import Sample

_HEARTBEAT_S = 1.0
_SHORTEST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 60.0
# A shorter connection may have been taken over by another client with the same identifier. Not every broker
# reports this, so the pauses after such connections grow; otherwise both clients would keep disconnecting
# each other.
_SHORT_S = 10.0
_JSON = "application/json"
_HEADER_KEYS = ("id", "label", "time_s")

_log = logging.getLogger(__name__)


class MqttSource:
    """Messages of a topic filter from a broker that speaks MQTT 5; never ends.

    A payload is the encoded bytes of one sample: its media type is the message's content type, else that of
    the suffix of the topic's last level, else that of its first bytes. Or it is a JSON object as on standard
    input (content type ``application/json``, or no content type and a brace as the first byte). User
    properties ``id``, ``label`` and ``time_s`` set the fields of the sample, others become its ``meta``. The
    id is the topic and the property ``id``, or without it the topic and the content's digest: equal bytes on
    one topic are then one sample. A payload that cannot be parsed becomes a rejected sample.

    Delivery: at least once from publisher to store, and effectively once in the store. QoS 1 with a session
    that the broker keeps under the client identifier; a message is acknowledged only in the code after the
    ``yield``, so only when the store has committed it. A process that dies between commit and
    acknowledgement gets the message again (with the DUP flag), and the store recognises it by id, content
    and policy. While nobody is connected the broker queues messages, within its configuration: Mosquitto
    discards messages beyond ``max_queued_messages`` (1000) and, if killed, loses those it acknowledged since
    it last saved its state. Only a publisher that replays prevents that; ``docs/reference/streams.md`` has
    the settings and an example. With ``qos=0`` at most once.

    Back-pressure: the broker sends at most ``window`` messages ahead of their acknowledgements and keeps the
    rest; at most one batch is held here. An empty batch comes every second without a message, even while the
    connection is being restored. Reconnecting is tried forever, with random pauses that double up to a
    minute. The first connection must succeed within ``connect_s`` seconds.

    Args:
        address: Broker, topic, session and credentials.
        class_names: Names that labels may use, in the order of the logits.

    Raises:
        DripError: paho-mqtt is not installed.
    """

    def __init__(self, address: MqttAddress, class_names: Sequence[str] = ()) -> None:
        self._address = address
        self._classes = tuple(class_names)
        self._was_connected = False

    @classmethod
    def from_url(cls, url: str, class_names: Sequence[str] = ()) -> Self:
        """``mqtt://user@host:1883/topic/+?client=NAME``; see :meth:`MqttAddress.from_url`.

        Raises:
            SourceError: a part that is missing, unknown or outside its range.
        """
        return cls(MqttAddress.from_url(url), class_names)

    @property
    def cursor(self) -> str | None:
        """None: the broker's session is the position."""
        return None

    def seek(self, cursor: str) -> None:
        """Do nothing: the broker resends unacknowledged messages."""

    def batches(self, max_samples: int) -> Iterator[list[Sample]]:
        """Lists of up to ``max_samples`` samples, as many as have arrived; an empty one every idle second.

        Raises:
            SourceError: the first connection does not succeed in time, or the broker refuses it for good.
        """
        connection = MqttConnection(self._address, session_s=self._address.session_s)
        pause_s = _SHORTEST_PAUSE_S
        try:
            while True:
                yield from self._connect(connection)
                start = time.monotonic()
                try:
                    while True:
                        messages = _gather(connection, max_samples)
                        yield [self._sample(message) for message in messages]
                        # The consumer came back, so the batch is committed.
                        for message in messages:
                            connection.acknowledge(message)
                except ConnectionLostError as error:
                    # Messages that were gathered but not yielded are not acknowledged: the broker sends them
                    # again.
                    is_short = time.monotonic() - start < _SHORT_S
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if is_short else _SHORTEST_PAUSE_S
                    question = f"; is another client {self._address.client!r}?" if is_short else ""
                    _log.warning("%s%s; connecting again", error, question)
                yield from _idle(pause_s)
        finally:
            connection.close()

    def _connect(self, connection: MqttConnection) -> Iterator[list[Sample]]:
        start, pause_s = time.monotonic(), _SHORTEST_PAUSE_S
        while True:
            try:
                connection.open()
                connection.subscribe(self._address.topic, self._address.qos)
            except ConnectionLostError as error:
                waited_s = time.monotonic() - start
                if not self._was_connected and waited_s >= self._address.connect_s:
                    message = f"{error}; tried for {waited_s:.0f} s: check host, port and network"
                    raise SourceError(message) from error
            else:
                if self._was_connected and not connection.has_session:
                    _log.warning(
                        "%s has lost the session of %r; queued messages are lost unless the publisher sends "
                        "them again",
                        self._address.place,
                        self._address.client,
                    )
                self._was_connected = True
                return
            yield from _idle(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _sample(self, message: Message) -> Sample:
        topic, data, now = message.topic, bytes(message.payload), time.time()
        if len(data) > self._address.max_bytes:
            reason = f"the payload has {len(data)} bytes, more than max_bytes={self._address.max_bytes}"
            return rejected(topic, data[:HEAD_BYTES], reason, digest=hashlib.sha256(data).hexdigest())
        properties: Any = message.properties
        content_type = getattr(properties, "ContentType", None)
        is_json = data.startswith(b"{") if content_type is None else content_type.partition(";")[0] == _JSON
        if is_json:
            return sample_of_json(topic, data, class_names=self._classes, time_s=now)
        header = _header(getattr(properties, "UserProperty", ()))
        header["media_type"] = content_type or _media_type_of(topic) or media_type_of(data)
        return sample_of(topic, header, data, class_names=self._classes, time_s=now)


def _gather(connection: MqttConnection, max_samples: int) -> list[Message]:
    """Wait up to a second for a message, then take it and all that arrived with it."""
    messages = connection.messages
    deadline = time.monotonic() + _HEARTBEAT_S
    while len(messages) < max_samples:
        n_before = len(messages)
        wait_s = 0.0 if n_before else deadline - time.monotonic()
        if wait_s < 0:
            break
        connection.turn(wait_s)
        if n_before and len(messages) == n_before:
            break
    return [messages.popleft() for _ in range(min(max_samples, len(messages)))]


def _idle(pause_s: float) -> Iterator[list[Sample]]:
    """Empty batches for about this long; at random, or a thousand devices would connect at once."""
    deadline = time.monotonic() + pause_s * random.uniform(0.5, 1.5)  # noqa: S311  # not a secret
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, _HEARTBEAT_S))
        yield []


def _header(properties: Sequence[tuple[str, str]]) -> dict[str, Any]:
    header: dict[str, Any] = {name: text for name, text in properties if name in _HEADER_KEYS}
    meta: Mapping[str, str] = {name: text for name, text in properties if name not in _HEADER_KEYS}
    return {**header, "meta": meta}


def _media_type_of(topic: str) -> str | None:
    return MEDIA_TYPES.get(PurePosixPath(topic).suffix.lower())
