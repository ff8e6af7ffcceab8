"""Sources of samples, one file per system; `open_source(url)` finds the one for a URL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drip.errors import SourceError
from drip.sources.dataset import DatasetSource
from drip.sources.folder import FolderSource
from drip.sources.stdin import StdinSource
from drip.sources.url import folder_in, split_url
from drip.sources.watch import WatchedFolderSource
from drip.types import Source

if TYPE_CHECKING:
    from drip.sources.mqtt.decisions import DecisionPublisher

__all__ = [
    "SCHEMES",
    "DatasetSource",
    "FolderSource",
    "StdinSource",
    "WatchedFolderSource",
    "open_publisher",
    "open_source",
]


def _open_mqtt(url: str, class_names: Sequence[str]) -> Source:
    from drip.sources.mqtt.source import MqttSource  # noqa: PLC0415  # the base install needs no MQTT client

    return MqttSource.from_url(url, class_names)


SCHEMES: dict[str, Callable[[str, Sequence[str]], Source]] = {
    "file": lambda url, names: FolderSource(folder_in(url), names),
    "watch": WatchedFolderSource.from_url,
    "dataset": lambda url, _: DatasetSource.by_name(split_url(url).netloc or split_url(url).path),
    "stdin": StdinSource.from_url,
    "mqtt": _open_mqtt,
    "mqtts": _open_mqtt,
}
"""Scheme of a URL to the function that opens it, with the class names that folders may stand for."""


def open_source(url: str, class_names: Sequence[str] = ()) -> Source:
    """The source that a URL names; a path without a scheme is a folder. ``docs/reference/streams.md`` lists them all.

    Args:
        url: The URL, such as ``file:///folder``, ``watch:/folder``, ``stdin:``, ``mqtts://host/topic`` or
            ``dataset:mnist``.
        class_names: Names in the order of the logits; files below a folder of such a name are labelled.

    Raises:
        SourceError: a malformed URL, an unknown scheme, or a source that cannot be opened.
        DripError: the scheme needs a package that is not installed; the message has the command.
    """
    scheme = split_url(url).scheme
    if scheme in SCHEMES:
        return SCHEMES[scheme](url, class_names)
    if "://" in url:
        raise SourceError(
            f"a folder or a URL of {', '.join(f'{name}:' for name in SCHEMES)} is needed, got {url!r}"
        )
    if not url:
        raise SourceError("a folder or a URL is needed, got an empty text; the current folder is '.'")
    return FolderSource(Path(url), class_names)


def open_publisher(url: str) -> DecisionPublisher:
    """Where decisions are published, connected; see :class:`drip.sources.mqtt.decisions.PublishingSink`.

    Args:
        url: ``mqtt://host/topic`` or ``mqtts:``, with the options of the source.

    Raises:
        SourceError: another scheme, a malformed URL, or a broker that refuses for good; one that is away
            is waited for while the run goes on.
        DripError: the MQTT client is not installed; the message has the command.
    """
    if split_url(url).scheme not in ("mqtt", "mqtts"):
        raise SourceError("a URL of mqtt: or mqtts: is needed to publish decisions; correct the URL")
    from drip.sources.mqtt.decisions import DecisionPublisher  # noqa: PLC0415  # as above

    publisher = DecisionPublisher.from_url(url)
    publisher.open()
    return publisher
