"""Scores, logits, reasons, metadata and hashes as SQLite values and back.

Pure functions. Every put passes through here, so some of them trade a line for speed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import isfinite
from types import MappingProxyType

import numpy as np

from drip.errors import InputError
from drip.types import Decision, FloatArray, JsonObject, Observation, Sample

MAX_ID_BYTES = 512
MAX_INTEGER = 2**63 - 1  # of SQLite
_TEMPLATES_KEPT = 64
_MOST_SHOWN = 100  # characters of a value in a message
_NUMBER = 24  # characters of the longest float
_LONG_NUMBER = 40  # characters of 128 bits, as in the state of a random generator

# The table of kept samples has no column for shadow mode, so its reasons carry a mark. The next three names
# and encode_reason/decode_reason below are the only code that knows it; everything else reads `shadow`.
_SHADOW = "shadow:"
_ESCAPE = "\x1b"  # prefix of a reason that a rule gave and that looks like a mark
IS_SHADOW = "reason >= 'shadow:' AND reason < 'shadow;'"
"""SQL condition on the table of kept samples: only shadow mode keeps it. ";" is the character after ":"."""

_NO_META: Mapping[str, str] = MappingProxyType({})


class ScoreCodec:
    """Score mappings as JSON text.

    Infinite and NaN scores become the strings ``"inf"``, ``"-inf"`` and ``"nan"``, because strict JSON has no
    such numbers; :func:`decode_scores` reads them back.

    >>> ScoreCodec().encode({"drip": 0.5, "contrast": float("inf")})
    '{"drip": 0.5, "contrast": "inf"}'
    """

    def __init__(self) -> None:
        self._templates: dict[tuple[str, ...], str] = {}

    def encode(self, scores: Mapping[str, float]) -> str:
        """JSON of ``scores`` in their own order."""
        # Rows of a stream have the same names, so a remembered template is faster than json.dumps().
        names = tuple(scores)
        template = self._templates.get(names)
        if template is None:
            if (
                len(self._templates) >= _TEMPLATES_KEPT
            ):  # names that change with every row must not fill memory
                self._templates.clear()
            parts = (json.dumps(name).replace("%", "%%") + ": %r" for name in names)
            template = self._templates[names] = "{" + ", ".join(parts) + "}"
        values = tuple(map(float, scores.values()))
        if isfinite(sum(values)):  # one check for all: a sum is finite only if its terms are
            return template % values
        finite_or_text = (value if isfinite(value) else repr(value) for value in values)
        return json.dumps(dict(zip(names, finite_or_text, strict=True)))


def decode_scores(text: str) -> dict[str, float]:
    """The numbers that :meth:`ScoreCodec.encode` wrote.

    >>> decode_scores('{"drip": 0.5, "contrast": "inf"}')
    {'drip': 0.5, 'contrast': inf}
    """
    return {name: float(value) for name, value in json.loads(text).items()}


def encode_logits(logits: FloatArray) -> bytes:
    """Logits as little-endian float32: half the size, with a relative rounding error of 6e-8."""
    return np.asarray(logits, dtype="<f4").tobytes()


def decode_logits(data: bytes | None) -> FloatArray:
    """The logits as float64; empty if the store does not keep them."""
    return np.frombuffer(data or b"", dtype="<f4").astype(np.float64)


def encode_reason(reason: str, *, is_shadow: bool) -> str:
    """The reason of a kept sample as stored in the file, with a mark if only shadow mode keeps the sample."""
    if is_shadow:
        return _SHADOW + reason
    return _ESCAPE + reason if reason.startswith((_SHADOW, _ESCAPE)) else reason


def decode_reason(text: str) -> tuple[str, bool]:
    """The reason, and whether only shadow mode keeps the sample.

    >>> decode_reason(encode_reason("inside-window", is_shadow=True))
    ('inside-window', True)
    >>> decode_reason(encode_reason("shadow:play", is_shadow=False))
    ('shadow:play', False)
    """
    if text.startswith(_SHADOW):
        return text.removeprefix(_SHADOW), True
    # Stores written before the escape existed may have a reason that starts with it: remove it only where
    # encode_reason() would have added it.
    word = text.removeprefix(_ESCAPE)
    return (word if word.startswith((_SHADOW, _ESCAPE)) else text), False


def encode_meta(meta: Mapping[str, str]) -> str | None:
    """JSON of the metadata, None if there are none.

    Raises:
        InputError: a key or value that is not text.
    """
    if not meta:
        return None
    if not all(type(text) is str for pair in meta.items() for text in pair):
        message = (
            f"sample.meta={_shown(dict(meta))} has a key or value that is not text; convert it with str()"
        )
        raise InputError(message, code="sample-rejected")
    return json.dumps(dict(meta))


def decode_meta(text: str | None) -> Mapping[str, str]:
    """The metadata; a read-only empty mapping if there are none."""
    return _NO_META if text is None else json.loads(text)


def content_digest(sample: Sample, observation: Observation, *, verify: bool) -> bytes:
    """The 32 bytes of the content hash.

    Args:
        sample: The sample.
        observation: May have the hash already.
        verify: Compare it with the data. A sample stored under a wrong hash would make the real owner of
            that hash a duplicate.

    Raises:
        InputError: the observation's hash is not the SHA-256 of the data, or not a hash at all.
    """
    if not observation.content_hash:
        return sha256(sample.data)
    try:
        digest = bytes.fromhex(observation.content_hash)
    except ValueError:
        digest = b""
    if len(digest) != 32 or (verify and digest != sha256(sample.data)):
        message = (
            f"sample {sample.id!r}: observation.content_hash={_shown(observation.content_hash)} is not the "
            "SHA-256 of its data in hexadecimal; leave it empty to have it computed"
        )
        raise InputError(message)
    return digest


def encode_label(sample: Sample) -> int | None:
    """The label that came with the sample as an integer, or None.

    Raises:
        InputError: a label that is not an integer of 64 bits.
    """
    if sample.label is None:
        return None
    try:
        label = int(sample.label)
    except (TypeError, ValueError, OverflowError):
        label = MAX_INTEGER + 1
    if not -MAX_INTEGER <= label <= MAX_INTEGER:
        message = (
            f"sample {sample.id!r}: label {_shown(sample.label)} is not a class index; use an integer or None"
        )
        raise InputError(message, code="sample-rejected")
    return label


def encode_time(sample: Sample, otherwise: float | None = None) -> float | None:
    """The sample's time in seconds, else the other one; None for NaN, which means unknown in columns.

    Raises:
        InputError: a time that is not a number.
    """
    time_s = otherwise if sample.time_s is None else sample.time_s
    if time_s is None:
        return None
    try:
        time_s = float(time_s)
    except (TypeError, ValueError, OverflowError) as error:
        message = f"sample {sample.id!r}: time_s {_shown(time_s)} is not a number; use seconds or None"
        raise InputError(message, code="sample-rejected") from error
    return None if time_s != time_s else time_s  # noqa: PLR0124  # NaN, twice as fast as isnan


def require_short(name: str, text: str) -> None:
    """Refuse anything but a text of at most 512 bytes.

    Raises:
        InputError: it is something else.
    """
    n_bytes = text_bytes(name, text)
    if n_bytes > MAX_ID_BYTES:
        message = f"{name} has {n_bytes} bytes, more than {MAX_ID_BYTES}: {_shown(text)}; shorten it"
        raise InputError(message)


def steady_json(name: str, value: JsonObject) -> str:
    """JSON of an object in which every number has a fixed width, NaN and infinity as Python writes them.

    Two states of a rule usually differ only in numbers. Their texts then have the same length and differ in a
    few places, and only these are written.

    Raises:
        InputError: a value that JSON does not have.

    >>> len(steady_json("rule_state", {"n": 1})) == len(steady_json("rule_state", {"n": 0.25}))
    True
    """
    try:
        return _steady(value)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{name}={_shown(value)} cannot be saved as JSON ({error}); use plain numbers and text"
        raise InputError(message) from error


def _steady(value: object) -> str:
    if type(value) is float and isfinite(value):  # first, as nearly all values are floats
        return repr(value).rjust(_NUMBER)
    if isinstance(value, dict):
        parts = (f"{_key(key)}:{_steady(entry)}" for key, entry in value.items())
        return "{" + ",".join(parts) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_steady, value)) + "]"
    text = json.dumps(value)
    if isinstance(value, str):
        return text
    return text.rjust(_NUMBER if len(text) <= _NUMBER else _LONG_NUMBER)


def _key(key: object) -> str:
    if not isinstance(key, str):
        # json.dumps() would turn 1 into "1", and the state would not come back as it was.
        message = f"the key {key!r} is not text"
        raise TypeError(message)
    return json.dumps(key)


def texts_bytes(sample: Sample, decision: Decision) -> int:
    """Length of id, media type and reason in UTF-8, in bytes.

    Raises:
        InputError: one of them is not UTF-8 text.
    """
    try:
        # One check for all three: they are nearly always ASCII.
        texts = sample.id + sample.media_type + decision.reason
        if texts.isascii():
            return len(texts)
    except TypeError:
        pass  # one is not text: reported below by its name
    return (
        text_bytes("sample.id", sample.id)
        + text_bytes("sample.media_type", sample.media_type)
        + text_bytes("decision.reason", decision.reason)
    )


def text_bytes(name: str, text: str) -> int:
    """Length of a text in UTF-8, in bytes.

    Raises:
        InputError: not text, or a text with half of a surrogate pair.
    """
    try:
        return len(text) if text.isascii() else len(text.encode())
    except (AttributeError, UnicodeEncodeError) as error:
        message = f"{name}={_shown(text)} is not UTF-8 text; convert or clean it"
        # A bad field of a sample is the sample's fault, and a run continues without the sample.
        code = "sample-rejected" if name.startswith("sample.") else None
        raise InputError(message, code=code) from error


def _shown(value: object) -> str:
    """A value for a message. Short, because the message may end as a reason in quarantine."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def sha256(data: bytes) -> bytes:
    """SHA-256 as 32 bytes."""
    return hashlib.sha256(data).digest()


def require_sample(sample: Sample) -> None:
    """Refuse a sample that the file cannot hold.

    Raises:
        InputError: an id that is not 1 to 512 bytes of text, or data that is not bytes.
    """
    try:
        n_bytes = len(sample.id.encode())
    except (AttributeError, UnicodeEncodeError):
        n_bytes = 0
    if not 0 < n_bytes <= MAX_ID_BYTES:
        message = f"sample.id={_shown(sample.id)} is not text of 1 to {MAX_ID_BYTES} bytes; rename the sample"
        raise InputError(message, code="sample-rejected")
    require_bytes(sample)


def require_bytes(sample: Sample) -> None:
    """Refuse data that is not bytes.

    Raises:
        InputError: the data is something else.
    """
    # Exactly bytes: SQLite would store a bytearray too, but its owner may change it after it was hashed.
    if type(sample.data) is not bytes:
        message = f"sample {sample.id!r}: data is {type(sample.data).__name__}, not bytes; encode it"
        raise InputError(message, code="sample-rejected")
