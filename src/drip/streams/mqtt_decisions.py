"""Decisions published over MQTT, behind the commit of the samples that they are about."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

from drip.errors import StreamError
from drip.streams.messages import short_id
from drip.streams.mqtt_address import MqttAddress
from drip.streams.mqtt_connection import ConnectionLostError, MqttConnection
from drip.types import Decision, DurableSink, Observation, Progress, Sample

_ANSWER_S = 10.0
_PAUSE_S = 0.5

_log = logging.getLogger(__name__)


class PublishingSink:
    """A sink that tells a topic what was decided, as soon as it is committed.

    One JSON object for a sample: ``id``, ``retain``, ``class``, ``reason``, ``priority``, ``scores`` and
    ``time_s``; or ``id`` and ``quarantined`` with the reason. Numbers that are not finite are null.

    Delivery: at least once, with QoS 1. A transaction returns when the broker has the decisions of its
    samples, so a source acknowledges only afterwards: what a kill leaves unpublished is delivered, decided
    (alike) and published again. While the broker is away the run waits for it, up to ``connect_s`` seconds.

    Args:
        sink: Where samples and decisions go.
        address: Broker, credentials, topic to publish to, and a client identifier that no source has.

    Raises:
        StreamError: a topic with wildcards.
    """

    def __init__(self, sink: DurableSink, address: MqttAddress) -> None:
        if set(address.topic) & set("+#"):
            raise StreamError(f"a topic without wildcards is needed to publish to, got {address.topic!r}")
        self._sink = sink
        # Between decisions the connection is silent for as long as the stream is.
        self._address = replace(address, keepalive_s=0)
        self._connection: MqttConnection | None = None
        self._pending: list[bytes] = []
        self._depth = 0

    @classmethod
    def to_url(cls, url: str, sink: DurableSink) -> Self:
        """Publish to ``mqtt://user@host/topic?client=NAME``, or ``mqtts:``, with the options of the source.

        Raises:
            StreamError: a part that is missing, unknown or outside its range.
        """
        return cls(sink, MqttAddress.from_url(url))

    def put(self, sample: Sample, observation: Observation, decision: Decision) -> None:
        """Hand on, and publish when it is committed."""
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
        """Hand on, and publish when it is committed."""
        self._sink.quarantine(sample, reason)
        self._say({"id": short_id(sample.id), "quarantined": reason})

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit as the sink does, then publish; nothing is published of what was rolled back.

        Raises:
            StreamError: the broker does not take the decisions.
        """
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

    def close(self) -> None:
        """Leave the broker; the sink stays open."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _say(self, content: dict[str, Any]) -> None:
        self._pending.append(json.dumps(content, allow_nan=False).encode())
        self._publish()

    def _publish(self) -> None:
        """Send what is pending and wait until the broker has it; within a transaction, wait for its end."""
        if self._depth or not self._pending:
            return
        start = time.monotonic()
        while True:
            try:
                self._send()
            except ConnectionLostError as error:
                self.close()
                if time.monotonic() - start >= self._address.connect_s:
                    raise StreamError(f"{error}; decisions are committed and not published") from error
                _log.warning("%s; connecting again to publish decisions", error)
                time.sleep(_PAUSE_S)
            else:
                self._pending.clear()
                return

    def _send(self) -> None:
        if self._connection is None:
            self._connection = MqttConnection(self._address, session_s=0)
            self._connection.open()
        self._connection.publish(self._address.topic, self._pending, within_s=_ANSWER_S)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
