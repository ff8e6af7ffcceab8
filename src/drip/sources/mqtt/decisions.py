"""Decisions published over MQTT, after the commit of their samples."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, Self

from drip.errors import SourceError
from drip.sources.messages import short_id
from drip.sources.mqtt.address import MqttAddress
from drip.sources.mqtt.connection import ConnectionLostError, MqttConnection
from drip.types import Decision, DurableSink, Observation, Progress, Sample

MAX_WAITING = 10_000
"""Decisions that are kept for a broker that cannot be reached: a few megabytes."""

# A slow line must acknowledge a group within _ANSWER_S, or the group is sent again and again.
_AT_ONCE = 100
_ANSWER_S = 10.0
_SHORTEST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0

_log = logging.getLogger(__name__)


class DecisionPublisher:
    """Sends messages to a topic, and keeps a limited number of them while the broker cannot be reached.

    No method raises after :meth:`open` has returned. A failed attempt takes several seconds if the broker
    does not answer at all; the next one follows after a pause, which doubles up to a minute.

    Args:
        address: Broker, credentials and the topic to publish to.
        max_waiting: Messages that are kept; beyond that, the oldest are discarded.

    Attributes:
        n_published: Messages that the broker has acknowledged.
        n_dropped: Messages that were discarded.
        problem: Why the last attempt failed; empty if it succeeded.

    Raises:
        SourceError: a topic with wildcards.
    """

    def __init__(self, address: MqttAddress, *, max_waiting: int = MAX_WAITING) -> None:
        if set(address.topic) & set("+#"):
            message = f"cannot publish to {address.topic!r}: the topic has wildcards; name a single topic"
            raise SourceError(message, code="source-url")
        self.n_published = 0
        self.n_dropped = 0
        self.problem = ""
        # No keepalive: the network loop does not run between decisions, so pings would be missed on a quiet
        # stream.
        self._address = replace(address, keepalive_s=0)
        self._max_waiting = max_waiting
        self._connection: MqttConnection | None = None
        self._waiting: deque[bytes] = deque()
        self._pause_s = _SHORTEST_PAUSE_S
        self._next_s = -math.inf

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Publish to ``mqtt://user@host/topic``, or ``mqtts:``, with the options of the source.

        Raises:
            SourceError: a part that is missing, unknown or outside its range, or a topic with wildcards.
        """
        return cls(MqttAddress.from_url(url, has_session=False))

    @property
    def n_waiting(self) -> int:
        """Messages that the broker has not acknowledged yet."""
        return len(self._waiting)

    def open(self) -> None:
        """Connect; a broker that cannot be reached is tried again with the first message.

        Raises:
            SourceError: retrying cannot help, for example with a wrong password, certificate or protocol.
        """
        try:
            self._connected()
        except ConnectionLostError as error:
            self._failed(error)

    def add(self, messages: Sequence[bytes]) -> None:
        """Send these after the messages that are already waiting."""
        self._waiting.extend(messages)
        self.flush()
        while len(self._waiting) > self._max_waiting:
            self._waiting.popleft()
            self.n_dropped += 1

    def flush(self) -> None:
        """Send the waiting messages, unless the pause after the last failure is still running."""
        if not self._waiting or time.monotonic() < self._next_s:
            return
        was_connected = self._connection is not None
        try:
            try:
                self._send()
            except ConnectionLostError:
                if not was_connected:
                    raise
                self._disconnect()  # it may have broken unnoticed since the last decision
                self._send()
        except SourceError as error:
            self._failed(error)
        else:
            self.problem = ""
            self._pause_s = _SHORTEST_PAUSE_S

    def close(self) -> None:
        """Try once more to send the waiting messages, discard the rest, and disconnect."""
        self._next_s = -math.inf
        n_before = math.inf
        while self._waiting and self.n_waiting < n_before:  # as long as there is progress
            n_before = self.n_waiting
            self.flush()
        self.n_dropped += len(self._waiting)
        self._waiting.clear()
        self._disconnect()

    def _connected(self) -> MqttConnection:
        if self._connection is None:
            connection = MqttConnection(self._address, session_s=0)
            try:
                connection.open()
            except SourceError:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _send(self) -> None:
        deadline = time.monotonic() + _ANSWER_S
        while self._waiting and time.monotonic() < deadline:
            messages = list(islice(self._waiting, _AT_ONCE))
            self._connected().publish(self._address.topic, messages, within_s=_ANSWER_S)
            for _ in messages:
                self._waiting.popleft()
            self.n_published += len(messages)

    def _failed(self, error: SourceError) -> None:
        self._disconnect()
        if not self.problem:
            _log.warning("%s; decisions are kept and sent later", error)
        self.problem = str(error)
        self._next_s = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class PublishingSink:
    """A sink that publishes every decision as soon as it is committed.

    One JSON object per sample: ``id``, ``retain``, ``class``, ``reason``, ``priority``, ``scores`` and
    ``time_s``; or ``id`` and ``quarantined`` with the reason. Numbers that are not finite are null.

    Delivery: a decision is published only after its commit, and the samples have priority: a broker that
    cannot be reached, is slow or refuses neither stops the stream nor loses a sample. While it answers,
    delivery is at least once, with QoS 1. A transaction returns when the broker has acknowledged its
    decisions, so a source acknowledges only afterwards, and decisions that a kill leaves unpublished are
    delivered, decided (equally) and published again. For a source whose position commits with the samples,
    a kill may lose the decisions of one batch. While the broker cannot be reached, the last 10,000 decisions
    wait in memory; older ones are discarded and counted. A kill loses waiting decisions; the end of the run
    loses those that a last attempt cannot send. The store's audit has all of them.

    Args:
        sink: Where samples and decisions go.
        publisher: Where decisions are published; it stays open.
    """

    def __init__(self, sink: DurableSink, publisher: DecisionPublisher) -> None:
        self._sink = sink
        self._publisher = publisher
        self._pending: list[bytes] = []
        self._depth = 0

    def put(self, sample: Sample, observation: Observation, decision: Decision) -> None:
        """Pass on to the sink, and publish after the commit."""
        self._sink.put(sample, observation, decision)
        self._say(
            {
                "id": short_id(sample.id),
                "retain": bool(decision.retain),
                "class": int(observation.predicted_class),
                "reason": decision.reason,
                "priority": _finite(decision.priority),
                "scores": {name: _finite(value) for name, value in observation.scores.items()},
                "time_s": _finite(sample.time_s),
            }
        )

    def quarantine(self, sample: Sample, reason: str) -> None:
        """Pass on to the sink, and publish after the commit."""
        self._sink.quarantine(sample, reason)
        self._say({"id": short_id(sample.id), "quarantined": reason})

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit as the sink does, then publish; a transaction that was rolled back publishes nothing."""
        self._depth += 1
        try:
            with self._sink.transaction():
                yield
        except BaseException:
            self._pending.clear()
            raise
        finally:
            self._depth -= 1
        self._publish()

    def save_progress(self, progress: Progress) -> None:
        """As the sink."""
        self._sink.save_progress(progress)

    def load_progress(self) -> Progress | None:
        """As the sink."""
        return self._sink.load_progress()

    def _say(self, content: dict[str, Any]) -> None:
        self._pending.append(json.dumps(content, allow_nan=False).encode())
        self._publish()

    def _publish(self) -> None:
        """Publish committed decisions; inside a transaction, wait until it ends."""
        if self._depth:
            return
        messages, self._pending = self._pending, []
        self._publisher.add(messages)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
