"""Parts of a source's URL, checked: folder, options and their numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISDIR
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from drip.errors import SourceError

DEFAULT_MAX_BYTES = 16 * 2**20


def split_url(url: str) -> SplitResult:
    """The parts of a URL, or of a path.

    Raises:
        SourceError: it is malformed; the message never repeats the URL, which may have a password.

    >>> split_url("mqtt://host/topic").netloc
    'host'
    """
    try:
        return urlsplit(url)
    except ValueError:
        # "from None": the message of urlsplit quotes the part with user and password.
        raise SourceError(
            "the host in the URL is malformed; correct the part between // and the next slash, as in "
            "mqtt://host/topic or mqtt://[::1]/topic",
            code="source-url",
        ) from None


def folder_in(url: str) -> Path:
    """The folder that a URL such as ``watch:/folder`` or ``file:///folder`` names.

    Raises:
        SourceError: it names none, or has a part after ``#``. An empty path would silently mean the current
            folder.

    >>> folder_in("watch:my%20photos?poll=2").as_posix(), folder_in("file://localhost/srv").as_posix()
    ('my photos', '/srv')
    """
    parts = split_url(url)
    host = "" if parts.netloc.lower() == "localhost" else parts.netloc  # RFC 8089: localhost is this machine
    folder = unquote(host + parts.path)
    require_no_fragment(parts)
    if not folder:
        raise SourceError(f"{url!r} names no folder; write '.' for the current one", code="source-url")
    return Path(folder)


def require_no_fragment(parts: SplitResult) -> None:
    """Check that a URL has no part after ``#``, which would silently be ignored.

    Raises:
        SourceError: it has one.
    """
    if parts.fragment:
        raise SourceError(
            f"{parts.scheme}: accepts nothing after #; write # in a name as %23", code="source-url"
        )


def require_folder(folder: Path) -> None:
    """Check that a folder exists.

    Raises:
        SourceError: it does not exist, is not a folder, or is in a folder that cannot be entered.
    """
    try:
        is_folder = S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError as error:
        raise SourceError(f"{folder} does not exist; check the path", code="path-missing") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise SourceError(f"cannot open {folder}: {error}; check the path") from error
    if not is_folder:
        raise SourceError(f"{folder} is not a folder; check the path")


def parse_options(query: str, allowed: Mapping[str, str], scheme: str) -> dict[str, str]:
    """The options of a URL by name, over their defaults.

    Args:
        query: The part of the URL after the question mark.
        allowed: Default of every option.
        scheme: For the error.

    Raises:
        SourceError: an option that is unknown, without a value, or given twice. The message never repeats a
            value, which may be a password.

    >>> parse_options("poll=2", {"poll": "0.5", "settle": "1"}, "watch")
    {'poll': '2', 'settle': '1'}
    """
    options = dict(allowed)
    given = set()
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in allowed:
            known = ", ".join(f"{key}=" for key in allowed) or "none"
            raise SourceError(f"{scheme}: has no option {name!r}; its options are {known}", code="source-url")
        if name in given or not value:
            problem = "has no value" if not value else "is given twice"
            raise SourceError(f"option {name}= of {scheme}: {problem}; correct the URL", code="source-url")
        given.add(name)
        options[name] = value
    return options


def integer(options: Mapping[str, str], name: str, low: int, high: int) -> int:
    """An option as a whole number.

    Raises:
        SourceError: not a whole number from ``low`` to ``high``.

    >>> integer({"window": "64"}, "window", 1, 65_535)
    64
    """
    text = options[name]
    if not re.fullmatch("[0-9]{1,20}", text) or not low <= int(text) <= high:
        message = f"{name} must be a whole number from {low} to {high}, got {text!r}"
        raise SourceError(message, code="source-url")
    return int(text)


def number(options: Mapping[str, str], name: str, low: float, high: float) -> float:
    """An option as a number.

    Raises:
        SourceError: not a number from ``low`` to ``high``.

    >>> number({"poll": "0.5"}, "poll", 0.0, 60.0)
    0.5
    """
    try:
        value = float(options[name])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        message = f"{name} must be a number from {low:g} to {high:g}, got {options[name]!r}"
        raise SourceError(message, code="source-url")
    return value
