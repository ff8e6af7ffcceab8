"""The address of an MQTT stream: broker, topic, session and credentials, read from a URL.

Needs no MQTT client, so a URL is checked before the client is imported. No message repeats a URL or a value
of it that could be a password.
"""

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
    """A broker, a topic and the identity of this client.

    Attributes:
        host: Name or address of the broker.
        port: Default 1883, or 8883 with TLS.
        topic: Topic filter.
        client: Client identifier; the broker keeps the session under it.
        is_tls: True for ``mqtts:``.
        user: User name, or None.
        password: Password, or None; not in the representation.
        qos: 1, or 0 for streams that may lose messages.
        session_s: How long the broker keeps the session and its messages while nobody is connected.
        window: Messages that the broker may send ahead of their acknowledgements.
        keepalive_s: The broker closes a connection that is silent for one and a half times this.
        connect_s: How long the first connection may take.
        max_bytes: Largest payload.
        cafile: Certificates that sign the broker's; empty to use those of the system.
        certfile: The client's own certificate; or empty.
        keyfile: Its key; empty if the certificate file contains it.
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

        The password is read from the file that ``password_file=`` names, else from the environment variable
        DRIP_MQTT_PASSWORD; never from the URL, which other users of the machine can see.

        Args:
            url: The URL.
            has_session: False for a connection without a session: the broker may then choose the client
                identifier.

        Raises:
            SourceError: a part that is missing, unknown or outside its range.
        """
        place, _, query = url.partition("?")
        parts = split_url(place.replace("#", "%23"))  # in MQTT, # is a wildcard
        options = parse_options(query, _DEFAULTS, parts.scheme)
        if parts.password is not None:
            raise SourceError(
                "the URL contains a password, which other users of the machine can see; put it into the "
                f"environment variable {PASSWORD_VARIABLE} or into a file named by password_file=",
                code="source-url",
            )
        topic = unquote(parts.path[1:])
        if not parts.hostname or not topic:
            raise SourceError(
                f"the URL has no {'topic' if parts.hostname else 'broker'}; write it like "
                "mqtt://host/cameras/+?client=device-1",
                code="source-url",
            )
        if has_session and not options["client"]:
            raise SourceError(
                "the URL has no client identifier; add client=NAME, different for every device: the broker "
                "keeps messages under it while the device is away",
                code="source-url",
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
        """The TLS settings; None for a plain connection.

        Raises:
            SourceError: a certificate or key that cannot be read.
        """
        if not self.is_tls:
            return None
        named = {"cafile": self.cafile, "certfile": self.certfile, "keyfile": self.keyfile}
        try:
            for option, path in named.items():  # the errors of ssl do not name the file
                if path and not Path(path).exists():
                    missing = f"{option}={path} does not exist; check the path"
                    raise SourceError(missing, code="path-missing")  # not an OSError
            context = ssl.create_default_context(cafile=self.cafile or None)
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile or None)
        except OSError as error:
            files = ", ".join(f"{option}={path}" for option, path in named.items() if path)
            raise SourceError(f"cannot load the certificates ({files}): {error}") from error
        return context


def _require_host(host: str) -> None:
    try:
        host.encode("idna")
    except UnicodeError as error:
        message = f"{host!r} is not a valid host name; correct the URL"
        raise SourceError(message, code="source-url") from error


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
            "correct the URL",
            code="source-url",
        )


def _require_filter(topic: str) -> None:
    """MQTT 5, section 4.7.1: a wildcard fills a whole level, and # is only allowed as the last level."""
    *before, last = topic.split("/")
    if "#" in "".join(before) or any("+" in level and level != "+" for level in (*before, last)):
        is_filter = False
    else:
        is_filter = "#" not in last or last == "#"
    if not is_filter:
        raise SourceError(
            f"topic {topic!r}: a wildcard must fill a whole level, and # must be the last level, as in "
            "cameras/+/new or cameras/#",
            code="source-url",
        )


def _port(netloc: str, default: int) -> int:
    try:
        port = urlsplit(f"//{netloc}").port
    except ValueError:
        port = 0
    if port == 0:
        message = "the port after the host must be a number from 1 to 65535; correct the URL"
        raise SourceError(message, code="source-url")
    return default if port is None else port


def _password(user: str | None, path: str) -> str | None:
    if user is None:
        if path:
            message = "password_file= is given without a user; write mqtt://USER@host/topic"
            raise SourceError(message, code="source-url")
        return None
    if not path:
        return os.environ.get(PASSWORD_VARIABLE)
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except FileNotFoundError as error:
        message = f"password_file={path} does not exist; check the path"
        raise SourceError(message, code="path-missing") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read password_file={path}: {error}") from error
