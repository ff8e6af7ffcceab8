"""Sources of samples, one file per system; `open_source(url)` opens the one that a URL names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from drip.errors import SourceError
from drip.media import InputSpec
from drip.sources.dataset import DatasetSource
from drip.sources.folder import FolderSource
from drip.sources.stdin import StdinSource
from drip.sources.url import folder_in, parse_options, require_no_fragment, split_url
from drip.sources.watch import WatchedFolderSource
from drip.types import Sample, Source

if TYPE_CHECKING:
    from drip.sources.mqtt.decisions import DecisionPublisher

__all__ = [
    "SCHEMES",
    "DatasetSource",
    "FolderSource",
    "RecordingWindows",
    "StdinSource",
    "WatchedFolderSource",
    "open_publisher",
    "open_source",
    "split_recordings",
]


def _open_mqtt(url: str, class_names: Sequence[str]) -> Source:
    from drip.sources.mqtt.source import MqttSource  # noqa: PLC0415  # the base install needs no MQTT client

    return MqttSource.from_url(url, class_names)


def _open_dataset(url: str, class_names: Sequence[str]) -> Source:  # noqa: ARG001  # as all in SCHEMES
    parts = split_url(url)
    require_no_fragment(parts)
    parse_options(parts.query, {}, "dataset")
    return DatasetSource.by_name(parts.netloc + parts.path)


def _open_file(url: str, class_names: Sequence[str]) -> Source:
    parse_options(split_url(url).query, {}, "file")
    return FolderSource(folder_in(url), class_names)


SCHEMES: dict[str, Callable[[str, Sequence[str]], Source]] = {
    "file": _open_file,
    "watch": WatchedFolderSource.from_url,
    "dataset": _open_dataset,
    "stdin": StdinSource.from_url,
    "mqtt": _open_mqtt,
    "mqtts": _open_mqtt,
}
"""The function that opens a URL with this scheme, given the URL and the names of the classes."""


def open_source(url: str, class_names: Sequence[str] = ()) -> Source:
    """Open the source that a URL names; a path without a scheme is a folder.

    The page ``docs/reference/streams.md`` lists all URLs, options and delivery guarantees.

    Args:
        url: The URL, such as ``file:///folder``, ``watch:/folder``, ``stdin:``, ``mqtts://host/topic`` or
            ``dataset:mnist``.
        class_names: Names in the order of the logits; a file in a folder with such a name gets its label.

    Raises:
        SourceError: a malformed URL, an unknown scheme, or a source that cannot be opened.
        DripError: the scheme needs a package that is not installed; the message has the command.
    """
    scheme = split_url(url).scheme
    if scheme in SCHEMES:
        return SCHEMES[scheme](url, class_names)
    if "://" in url:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise SourceError(f"{url!r} has an unknown scheme; use a folder or {known}", code="source-url")
    if not url:
        raise SourceError("the source is empty; write '.' for the current folder", code="source-url")
    return FolderSource(Path(url), class_names)


def open_publisher(url: str) -> DecisionPublisher:
    """Connect to a topic for decisions; :class:`drip.sources.mqtt.decisions.PublishingSink` publishes to it.

    Args:
        url: ``mqtt://host/topic`` or ``mqtts:``, with the options of the source.

    Raises:
        SourceError: another scheme, a malformed URL, or a broker that refuses the connection for good. A
            broker that cannot be reached is not an error: decisions wait until it can.
        DripError: the MQTT client is not installed; the message has the command.
    """
    if split_url(url).scheme not in ("mqtt", "mqtts"):
        raise SourceError("decisions are published over MQTT only; use mqtt: or mqtts:", code="source-url")
    from drip.sources.mqtt.decisions import DecisionPublisher  # noqa: PLC0415  # as above

    publisher = DecisionPublisher.from_url(url)
    publisher.open()
    return publisher


class RecordingWindows:
    """A source in which each window of a long recording is a sample, as the input spec says with ``hop``.

    The id of a window is that of the recording and its start: ``door.wav#t=12.5``. Delivery is that of the
    wrapped source, whose samples are acknowledged after their last window; the cursor is a place in a recording.

    Args:
        source: The source of recordings.
        spec: With a ``hop``.
    """

    _MARK = "window:"

    def __init__(self, source: Source, spec: InputSpec) -> None:
        self._source, self._spec = source, spec
        self._inside: tuple[int, str, str | None] | None = None  # windows done, sample, the cursor before it

    @property
    def cursor(self) -> str | None:
        """The source's own after a recording, else how many of its windows were yielded."""
        return self._source.cursor if self._inside is None else self._MARK + json.dumps(self._inside)

    def seek(self, cursor: str) -> None:
        """Continue after that window; a recording that has changed its name starts anew."""
        if not cursor.startswith(self._MARK):
            self._source.seek(cursor)
            return
        done, name, before = json.loads(cursor.removeprefix(self._MARK))
        self._inside = (done, name, before)
        if before is not None:
            self._source.seek(before)

    def batches(self, max_samples: int) -> Iterator[Sequence[Sample]]:
        """Lists of up to ``max_samples`` windows of one recording."""
        before = self._source.cursor
        for batch in self._source.batches(1):
            for sample in batch:
                windows = self._windows(sample)
                done = self._inside[0] if self._inside and self._inside[1] == sample.id else 0
                windows = islice(windows, done, None)
                part = list(islice(windows, max_samples))
                while part:
                    following = list(islice(windows, max_samples))
                    done += len(part)
                    self._inside = (done, sample.id, before) if following else None
                    yield part
                    part = following
                self._inside = None
            if not batch:
                yield batch
            before = self._source.cursor

    def _windows(self, sample: Sample) -> Iterator[Sample]:
        found = False
        if sample.rejected is None:
            for start_s, data in self._spec.windows(sample.data, sample.media_type):
                found = True
                time_s = None if sample.time_s is None else sample.time_s + start_s
                yield replace(
                    sample,
                    id=f"{sample.id}#t={start_s:.9g}",
                    data=data,
                    media_type="audio/wav",
                    time_s=time_s,
                )
        if not found:
            yield sample


def split_recordings(source: Source, spec: InputSpec) -> Source:
    """The source, or with a ``hop`` in the input spec the windows of its recordings."""
    return RecordingWindows(source, spec) if spec.hop else source
