"""The options behind the question mark of a source's URL, checked. Knows no system."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from drip.errors import SourceError

DEFAULT_MAX_BYTES = 16 * 2**20


def split_url(url: str) -> SplitResult:
    """The parts of a URL, or of a path.

    Raises:
        SourceError: it cannot be taken apart; the message never repeats the URL, which may have a password.

    >>> split_url("mqtt://host/topic").netloc
    'host'
    """
    try:
        return urlsplit(url)
    except ValueError:  # its message has the host's part, and with it a password
        raise SourceError(
            "a URL such as mqtt://host/topic or mqtt://[::1]/topic is needed, got one whose host is "
            "malformed; correct what stands between // and the next slash"
        ) from None


def folder_in(url: str) -> Path:
    """The folder that a URL such as ``watch:/folder`` or ``file:///folder`` names.

    Raises:
        SourceError: it names none: an empty path would be the current folder, unintended.

    >>> folder_in("watch:my%20photos?poll=2").as_posix(), folder_in("file://localhost/srv").as_posix()
    ('my photos', '/srv')
    """
    parts = split_url(url)
    host = "" if parts.netloc.lower() == "localhost" else parts.netloc  # RFC 8089: this machine, no folder
    folder = unquote(host + parts.path)
    if not folder:
        raise SourceError(f"a folder is needed, got {url!r}; the current folder is '.'")
    return Path(folder)


def parse_options(query: str, allowed: Mapping[str, str], scheme: str) -> dict[str, str]:
    """The options of a URL by name, over their defaults.

    Args:
        query: What stands behind the question mark.
        allowed: Default of every option.
        scheme: For the error.

    Raises:
        SourceError: an unknown option, one without a value, or one that comes twice.

    >>> parse_options("poll=2", {"poll": "0.5", "settle": "1"}, "watch")
    {'poll': '2', 'settle': '1'}
    """
    options = dict(allowed)
    given = set()
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in allowed or name in given or not value:
            raise SourceError(
                f"options of {scheme}: are {', '.join(f'{key}=' for key in allowed)} each once and with "
                f"a value, got {name}={'' if not value else '...'}; correct the URL"
            )
        given.add(name)
        options[name] = value
    return options


def integer(options: Mapping[str, str], name: str, low: int, high: int) -> int:
    """An option as a whole number.

    Raises:
        SourceError: no whole number, or one outside ``low`` to ``high``.

    >>> integer({"window": "64"}, "window", 1, 65_535)
    64
    """
    text = options[name]
    if not re.fullmatch("[0-9]{1,20}", text) or not low <= int(text) <= high:
        raise SourceError(f"{name} must be a whole number from {low} to {high}, got {text!r}")
    return int(text)


def number(options: Mapping[str, str], name: str, low: float, high: float) -> float:
    """An option as a number.

    Raises:
        SourceError: no number, or one outside ``low`` to ``high``.

    >>> number({"poll": "0.5"}, "poll", 0.0, 60.0)
    0.5
    """
    try:
        value = float(options[name])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise SourceError(f"{name} must be a number from {low:g} to {high:g}, got {options[name]!r}")
    return value
