"""Turns bytes from outside into samples: ids, the JSON header, media types by magic bytes, rejected samples.

Shared by the sources that read files and messages. The content of a message never ends a stream: a payload
that cannot be parsed becomes a rejected sample, which is counted and kept in quarantine.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from drip.errors import InputError
from drip.files import sha256_hex
from drip.media import NPY
from drip.types import Sample

MAX_HEADER_BYTES = 2**16
HEAD_BYTES = 1024
"""Bytes that are kept of a payload that is too large to be read whole."""
UNKNOWN = "application/octet-stream"
"""Media type of rejected samples."""

_MAX_ID_BYTES = 512  # as much as the store accepts
_MAX_META_BYTES = 8192
_MAX_REASON = 300
_MAX_LABEL = 2**31 - 1
_HEADER_KEYS = ("id", "media_type", "label", "time_s", "meta")
_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/wav"),
    (0, b"fLaC", "audio/flac"),
    (0, b"\x93NUMPY", NPY),
    (0, b"BM", "image/bmp"),
)
# Other names of the same types, as cameras, browsers and Python's own mimetypes write them.
_OTHER_NAMES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-bmp": "image/bmp",
    "image/x-ms-bmp": "image/bmp",
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/x-flac": "audio/flac",
    "application/npy": NPY,
}
_SAYS_NOTHING = {UNKNOWN, "binary/octet-stream", "application/binary", "image/*", "audio/*"}


def media_type_of(data: bytes) -> str | None:
    r"""The media type by the first bytes, or None.

    >>> media_type_of(b"\x93NUMPY\x01\x00"), media_type_of(b"text")
    ('application/x-npy', None)
    """
    for start, magic, media_type in _MAGIC:
        if data.startswith(magic, start):
            return media_type
    return None


def short_id(name: str) -> str:
    """The name; if it is longer than an id may be, a digest of the whole and the end of the name."""
    if len(name.encode()) <= _MAX_ID_BYTES:
        return name
    tail = name.encode()[-_MAX_ID_BYTES // 2 :].decode(errors="ignore")
    return f"{sha256_hex(name.encode())[:32]}...{tail}"


def printable(path: Path) -> str:
    """The path as valid text: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def rejected(place: str, data: bytes, reason: str, *, digest: str | None = None) -> Sample:
    """A payload that could not be parsed, as a rejected sample, so nothing disappears unnoticed.

    Args:
        place: Where it came from; the first part of its id. Or empty.
        data: The payload, or its first bytes if it is too large.
        reason: What is wrong with it.
        digest: SHA-256 of the whole payload if ``data`` is only a part of it.

    >>> rejected("door", b"?", "not a JSON object").rejected
    'not a JSON object'
    """
    # A reason may quote arbitrary bytes: stores, logs and MQTT get printable ASCII of bounded length.
    word = reason.encode("ascii", "backslashreplace").decode().replace('"', "'")
    word = word if len(word) <= _MAX_REASON else f"{word[:_MAX_REASON]}..."
    name = (digest or sha256_hex(data))[:32]
    return Sample(id=_named(place, name), data=data, media_type=UNKNOWN, rejected=word)


def sample_of(
    place: str,
    header: Mapping[str, Any],
    data: bytes,
    *,
    class_names: Sequence[str] = (),
    time_s: float | None = None,
) -> Sample:
    """The sample of a header and a payload; a rejected sample if the header is not valid.

    Args:
        place: Where it came from; the first part of its id. Or empty.
        header: ``id``, ``media_type``, ``label``, ``time_s`` and ``meta``, all optional: the default id is
            the content's digest, the default media type follows from the first bytes.
        data: The encoded bytes.
        class_names: Names that the label may use, in the order of the logits.
        time_s: Time of arrival, used if the header has none.
    """
    try:
        return _sample(place, header, data, class_names, time_s)
    except InputError as error:
        return rejected(place, data, str(error))


def sample_of_json(
    place: str, text: bytes, *, class_names: Sequence[str] = (), time_s: float | None = None
) -> Sample:
    """The sample of a JSON object: a header with the payload in base64 as ``data``; or a rejected sample.

    >>> sample_of_json("", b'{"id": "a", "data": "Qk0=", "label": 3}')
    Sample(id='a', data=b'BM', media_type='image/bmp', label=3, time_s=None, meta={}, rejected=None)
    """
    try:
        header = parse_header(text)
        data = _decoded(header.pop("data", None))
    except InputError as error:
        return rejected(place, text, str(error))
    return sample_of(place, header, data, class_names=class_names, time_s=time_s)


def parse_header(text: bytes) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        InputError: not JSON, or not an object.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: "[" a hundred thousand times
        raise _invalid(f"not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise _invalid(f"not a JSON object, but a {type(header).__name__}")
    return header


def _sample(
    place: str, header: Mapping[str, Any], data: bytes, class_names: Sequence[str], time_s: float | None
) -> Sample:
    unknown = set(header) - set(_HEADER_KEYS)
    if unknown:  # most likely a typing error: ignoring "lable" would silently lose the labels
        raise _invalid(f"unknown key {min(unknown)[:80]!r}; the keys are {', '.join(_HEADER_KEYS)}")
    if not data:
        raise _invalid("the payload is empty")
    given = _media_type(header.get("media_type") or UNKNOWN)
    media_type = (media_type_of(data) or given) if given in _SAYS_NOTHING else given
    if media_type == UNKNOWN and not header.get("media_type"):
        raise _invalid(f"no media type is given, and the first bytes {data[:8]!r} match no known one")
    return Sample(
        id=_named(place, _id(header.get("id")) or sha256_hex(data)[:32]),
        data=data,
        media_type=media_type,
        label=_label(header.get("label"), class_names),
        time_s=_time(header.get("time_s"), time_s),
        meta=_meta(header.get("meta")),
    )


def _invalid(message: str) -> InputError:
    return InputError(message, code="payload-invalid")


def _decoded(encoded: object) -> bytes:
    if not isinstance(encoded, str):
        raise _invalid(f"data must be text in base64, got {type(encoded).__name__}")
    if encoded[:5].lower() == "data:":  # browsers and Node-RED send data URIs
        form, _, encoded = encoded.partition(",")
        if not form.lower().endswith(";base64"):
            raise _invalid("data is a data: URI that is not in base64; send base64")
    # Senders break lines after 76 characters, use the alphabet of URLs, or leave the padding out.
    text = "".join(encoded.split()).replace("-", "+").replace("_", "/")
    if not text.endswith("="):
        text += "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _invalid(f"data is not valid base64: {error}") from error


def _named(place: str, name: str) -> str:
    return short_id(f"{place}/{name}" if place else name)


def _id(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not (isinstance(value, str) and value and _is_unicode(value)):
        raise _invalid(f"id must be non-empty text, got {value!r}")
    return value


def _media_type(value: object) -> str:
    if not (isinstance(value, str) and value.isascii() and value.isprintable() and len(value) <= 100):
        raise _invalid(f"media_type must be a name such as image/png, got {value!r}")
    name = value.partition(";")[0].strip().lower()
    return _OTHER_NAMES.get(name, name)


def _label(value: object, class_names: Sequence[str]) -> int | None:
    if value is None:
        return None
    if isinstance(value, str):
        if value in class_names:
            return list(class_names).index(value)
        if value.isascii() and value.isdecimal() and len(value) <= 10:
            value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_LABEL:
        raise _invalid(f"label must be a class index from 0 or a class name, got {value!r}")
    return value


def _time(value: object, default: float | None) -> float | None:
    if value is None:
        return default
    time_s = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            time_s = float(value)
    if not math.isfinite(time_s):
        raise _invalid(f"time_s must be seconds since the epoch, got {value!r}")
    return time_s


def _meta(value: object) -> Mapping[str, str]:
    pairs = {} if value is None else value
    if not isinstance(pairs, dict) or not all(
        isinstance(text, str) and _is_unicode(text) for pair in pairs.items() for text in pair
    ):
        raise _invalid("meta must map text to text")
    n_bytes = sum(len(text.encode()) for pair in pairs.items() for text in pair)
    if n_bytes > _MAX_META_BYTES:
        raise _invalid(f"meta has {n_bytes} bytes, more than {_MAX_META_BYTES}")
    return pairs


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which UTF-8 and SQLite cannot store
        return False
    return True
