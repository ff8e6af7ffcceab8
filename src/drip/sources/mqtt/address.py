"""Where an MQTT stream comes from: broker, topic, session, credentials; read from a URL. Knows no client."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from drip.errors import SourceError
from drip.sources.url import DEFAULT_MAX_BYTES, integer, number, parse_options, split_url

PASSWORD_VARIABLE = "DRIP_MQTT_PASSWORD"  # noqa: S105  # the variable's name
_WEEK_S = 7 * 86_400
_DEFAULTS = {
    "client": "",
    "qos": "1",
    "session": str(_WEEK_S),
    "window": "64",
    "keepalive": "60",
    "connect": "30",
    "max_bytes": str(DEFAULT_MAX_BYTES),
    "password_file": "",
    "cafile": "",
    "certfile": "",
    "keyfile": "",
}


@dataclass(frozen=True, slots=True)
class MqttAddress:
    """A broker, what to subscribe to, and as whom.

    Attributes:
        host: Name or address of the broker.
        port: 1883, or 8883 with TLS, where the URL has none.
        topic: Topic filter.
        client: Client identifier: the broker keeps the session under it.
        is_tls: True for ``mqtts:``.
        user: User name, or None.
        password: Password, or None; not in the representation.
        qos: 1, or 0 for streams that may lose.
        session_s: How long the broker keeps the session and its messages while nobody is connected.
        window: Messages that the broker may send ahead of their acknowledgements.
        keepalive_s: The broker gives a silent connection up after one and a half times this.
        connect_s: How long the first connection may take.
        max_bytes: Largest payload.
        cafile: Certificates that sign the broker's; or empty for those of the system.
        certfile: The client's own certificate; or empty.
        keyfile: Its key; or empty where the certificate's file has it.
    """

    host: str
    port: int
    topic: str
    client: str
    is_tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    qos: int = 1
    session_s: int = _WEEK_S
    window: int = 64
    keepalive_s: int = 60
    connect_s: float = 30.0
    max_bytes: int = DEFAULT_MAX_BYTES
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""

    @classmethod
    def from_url(cls, url: str, *, has_session: bool = True) -> Self:
        """The address in ``mqtt://user@host:1883/topic/+?client=cam1`` or ``mqtts://...``.

        The password comes from the file that ``password_file=`` names, else from the environment variable
        DRIP_MQTT_PASSWORD; never from the URL, which others on the machine can read.

        Args:
            url: The URL.
            has_session: False for a connection that the broker keeps nothing for: then it may choose the
                client identifier itself.

        Raises:
            SourceError: a part that is missing, unknown or outside its range; messages never repeat a URL.
        """
        place, _, query = url.partition("?")
        parts = split_url(place.replace("#", "%23"))  # to MQTT it is the wildcard of all levels
        options = parse_options(query, _DEFAULTS, parts.scheme)
        if parts.password is not None:
            raise SourceError(
                "a URL without a password is needed, as others can read it; put the password into the "
                f"environment variable {PASSWORD_VARIABLE} or into a file named by password_file="
            )
        topic = unquote(parts.path[1:])
        if not parts.hostname or not topic:
            raise SourceError(
                "a broker and a topic are needed, such as mqtt://host/cameras/+?client=device-1, "
                f"got the broker {parts.hostname or ''!r} and the topic {topic!r}"
            )
        if has_session and not options["client"]:
            raise SourceError(
                "a client identifier of its own is needed, under which the broker keeps what arrives while "
                "this device is away; add client=NAME to the URL"
            )
        is_tls = parts.scheme == "mqtts"
        _require_host(parts.hostname)
        _require_text("topic", topic)
        _require_filter(topic)
        if options["client"]:
            _require_text("client", options["client"])
        user = None if parts.username is None else unquote(parts.username)
        return cls(
            host=parts.hostname,
            port=_port(parts.netloc, 8883 if is_tls else 1883),
            topic=topic,
            client=options["client"],
            is_tls=is_tls,
            user=user,
            password=_password(user, options["password_file"]),
            qos=integer(options, "qos", 0, 1),
            session_s=integer(options, "session", 1, 2**32 - 1),
            window=integer(options, "window", 1, 65_535),
            keepalive_s=integer(options, "keepalive", 5, 65_535),
            connect_s=number(options, "connect", 0, 86_400),
            max_bytes=integer(options, "max_bytes", 1, 2**28),
            cafile=options["cafile"],
            certfile=options["certfile"],
            keyfile=options["keyfile"],
        )

    @property
    def place(self) -> str:
        """Host and port, for messages."""
        return f"{self.host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """How to encrypt; None for a plain connection.

        Raises:
            SourceError: a certificate or key that cannot be read.
        """
        if not self.is_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.cafile or None)
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile or None)
        except OSError as error:
            raise SourceError(
                f"readable certificates are needed (cafile={self.cafile!r}, certfile={self.certfile!r}, "
                f"keyfile={self.keyfile!r}), got: {error}"
            ) from error
        return context


def _require_host(host: str) -> None:
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise SourceError(f"a host name or address is needed, got {host!r}; correct the URL") from error


def _require_text(name: str, text: str) -> None:
    """MQTT 5, section 1.5.4: UTF-8 of at most 65,535 bytes without the character U+0000."""
    try:
        n_bytes = len(text.encode())
    except UnicodeError:
        n_bytes = 0
    if not 0 < n_bytes <= 65_535 or "\0" in text:
        shown = text if len(text) < 100 else f"{text[:100]}..."
        raise SourceError(
            f"{name} must be UTF-8 of 1 to 65535 bytes without a null character, got {shown!r}; "
            "correct the URL"
        )


def _require_filter(topic: str) -> None:
    """MQTT 5, section 4.7.1: a wildcard is a level of its own, and that of all levels the last one."""
    *before, last = topic.split("/")
    if "#" in "".join(before) or any("+" in level and level != "+" for level in (*before, last)):
        is_filter = False
    else:
        is_filter = "#" not in last or last == "#"
    if not is_filter:
        raise SourceError(
            f"a topic such as cameras/+/new or cameras/# is needed, got {topic!r}; each wildcard is a level "
            "of its own, and # the last one"
        )


def _port(netloc: str, default: int) -> int:
    try:
        port = urlsplit(f"//{netloc}").port
    except ValueError:
        port = 0
    if port == 0:
        raise SourceError("a port from 1 to 65535 is needed behind the host's colon; correct the URL")
    return default if port is None else port


def _password(user: str | None, path: str) -> str | None:
    if user is None:
        if path:
            raise SourceError("a user is needed with password_file=; write mqtt://USER@host/topic")
        return None
    if not path:
        return os.environ.get(PASSWORD_VARIABLE)
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise SourceError(f"a readable password file is needed at {path}, got: {error}") from error
