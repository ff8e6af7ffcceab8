"""Scores, logits, meta and hashes as SQLite values and back.

Pure functions; the hot path of ``put`` runs through here, hence the remembered templates.
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
_TEMPLATES_KEPT = 64
_MOST_SHOWN = 100
MAX_INTEGER = 2**63 - 1
_NUMBER = 24  # characters of the longest float
_LONG_NUMBER = 40  # of 128 bits, as in a generator's state
SHADOWED = "reason >= 'shadow:' AND reason < 'shadow;'"
"""The condition under which only shadow mode keeps a sample, in SQL."""

_SHADOW = "shadow:"
_ESCAPE = "\x1b"  # before a word of the rule's own that looks like a mark
_NO_META: Mapping[str, str] = MappingProxyType({})


class ScoreCodec:
    """Score mappings as JSON text.

    Infinite and NaN scores become the strings ``"inf"``, ``"-inf"`` and ``"nan"``, so that the text stays
    JSON that every reader accepts; :func:`decode_scores` gives the numbers back.

    >>> ScoreCodec().encode({"drip": 0.5, "contrast": float("inf")})
    '{"drip": 0.5, "contrast": "inf"}'
    """

    def __init__(self) -> None:
        self._templates: dict[tuple[str, ...], str] = {}

    def encode(self, scores: Mapping[str, float]) -> str:
        """JSON of ``scores`` in their own order; a stream's rows share their names, so a template does."""
        names = tuple(scores)
        template = self._templates.get(names)
        if template is None:
            if len(self._templates) >= _TEMPLATES_KEPT:
                self._templates.clear()
            parts = (json.dumps(name).replace("%", "%%") + ": %r" for name in names)
            template = self._templates[names] = "{" + ", ".join(parts) + "}"
        values = tuple(map(float, scores.values()))
        if isfinite(sum(values)):
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
    """Little-endian float32: half the size, and the rounding (6e-8 relative) is far below model noise."""
    return np.asarray(logits, dtype="<f4").tobytes()


def decode_logits(data: bytes | None) -> FloatArray:
    """The logits as float64; empty when none were kept."""
    return np.frombuffer(data or b"", dtype="<f4").astype(np.float64)


def encode_reason(reason: str, *, is_retained: bool) -> str:
    """The reason of a kept sample, marked where the rule would have discarded it (shadow mode)."""
    if not is_retained:
        return _SHADOW + reason
    return _ESCAPE + reason if reason.startswith((_SHADOW, _ESCAPE)) else reason


def decode_reason(text: str) -> tuple[str, bool]:
    """The reason, and whether the rule retained the sample.

    >>> decode_reason(encode_reason("inside-window", is_retained=False))
    ('inside-window', False)
    >>> decode_reason(encode_reason("shadow:play", is_retained=True))
    ('shadow:play', True)
    """
    if text.startswith(_SHADOW):
        return text.removeprefix(_SHADOW), False
    word = text.removeprefix(_ESCAPE)
    return (word if word.startswith((_SHADOW, _ESCAPE)) else text), True


def encode_meta(meta: Mapping[str, str]) -> str | None:
    """JSON of the free text pairs, None for none.

    Raises:
        InputError: a key or value that is not text.
    """
    if not meta:
        return None
    if not all(type(text) is str for pair in meta.items() for text in pair):
        message = f"sample.meta must map text to text, got {_shown(dict(meta))}; convert it with str()"
        raise InputError(message)
    return json.dumps(dict(meta))


def decode_meta(text: str | None) -> Mapping[str, str]:
    """The free text pairs; a read-only empty mapping for none."""
    return _NO_META if text is None else json.loads(text)


def content_digest(sample: Sample, observation: Observation, *, verify: bool) -> bytes:
    """The 32 bytes of the content hash.

    Args:
        sample: Whose data count.
        observation: May carry the hash.
        verify: Hash the data even so: what is stored under a wrong hash would swallow other samples.

    Raises:
        InputError: the observation's hash is not the SHA-256 of the data, or no hash at all.
    """
    if not observation.content_hash:
        return sha256(sample.data)
    try:
        digest = bytes.fromhex(observation.content_hash)
    except ValueError:
        digest = b""
    if len(digest) != 32 or (verify and digest != sha256(sample.data)):
        message = (
            f"observation.content_hash of sample {sample.id!r} must be the SHA-256 of its "
            f"data in 64 hexadecimal digits or empty, got {observation.content_hash!r}; "
            "leave it empty to have it computed"
        )
        raise InputError(message)
    return digest


def encode_label(sample: Sample) -> int | None:
    """The label that came along as an integer, None for none.

    Raises:
        InputError: a label that is no integer, or none of 64 bits.
    """
    if sample.label is None:
        return None
    try:
        label = int(sample.label)
    except (TypeError, ValueError, OverflowError):
        label = MAX_INTEGER + 1
    if not -MAX_INTEGER <= label <= MAX_INTEGER:
        message = (
            f"sample.label of {sample.id!r} must be a class index or None, got {_shown(sample.label)}; "
            "leave it out"
        )
        raise InputError(message)
    return label


def encode_time(sample: Sample, otherwise: float | None = None) -> float | None:
    """The sample's time in seconds, else the other one; None for NaN, which stands for unknown in columns.

    Raises:
        InputError: a time that is no number.
    """
    time_s = otherwise if sample.time_s is None else sample.time_s
    if time_s is None:
        return None
    try:
        time_s = float(time_s)
    except (TypeError, ValueError, OverflowError) as error:
        message = (
            f"sample.time_s of {sample.id!r} must be seconds or None, got {_shown(time_s)}; leave it out"
        )
        raise InputError(message) from error
    return None if time_s != time_s else time_s  # noqa: PLR0124  # NaN, twice as fast as isnan


def require_short(name: str, text: str) -> None:
    """Refuse what is no text of at most 512 bytes.

    Raises:
        InputError: it is not.
    """
    if text_bytes(name, text) > MAX_ID_BYTES:
        message = f"{name} must be at most {MAX_ID_BYTES} bytes of text, got {_shown(text)}; shorten it"
        raise InputError(message)


def encode_json(name: str, value: JsonObject) -> str:
    """JSON of an object; NaN and infinity stand in it as Python writes and reads them.

    Raises:
        InputError: what JSON does not have.
    """
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{name} must be an object of JSON, got {_shown(value)} ({error}); convert it"
        raise InputError(message) from error


def steady_json(name: str, value: JsonObject) -> str:
    """JSON of an object, as long as before where only numbers have changed: each has a width of its own.

    The texts of a selector's states then differ in a few places, and only these are written.

    Raises:
        InputError: what JSON does not have.

    >>> len(steady_json("selector_state", {"n": 1})) == len(steady_json("selector_state", {"n": 0.25}))
    True
    """
    try:
        return _steady(value)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{name} must be an object of JSON, got {_shown(value)} ({error}); convert it"
        raise InputError(message) from error


def _steady(value: object) -> str:
    if type(value) is float and isfinite(value):  # nearly all there is, and quicker so
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
        message = f"keys must be text, got {key!r}"
        raise TypeError(message)
    return json.dumps(key)


def texts_bytes(sample: Sample, decision: Decision) -> int:
    """Length of id, media type and reason in UTF-8, in bytes; one look at all three, since most are ASCII.

    Raises:
        InputError: one of them is no such text.
    """
    try:
        texts = sample.id + sample.media_type + decision.reason
        if texts.isascii():
            return len(texts)
    except TypeError:
        pass  # told below, with the name
    return (
        text_bytes("sample.id", sample.id)
        + text_bytes("sample.media_type", sample.media_type)
        + text_bytes("decision.reason", decision.reason)
    )


def text_bytes(name: str, text: str) -> int:
    """Length of a text in UTF-8, in bytes.

    Raises:
        InputError: no text, or one with half of a surrogate pair.
    """
    try:
        return len(text) if text.isascii() else len(text.encode())
    except (AttributeError, UnicodeEncodeError) as error:
        message = f"{name} must be UTF-8 text, got {_shown(text)}; clean the sample or decision"
        raise InputError(message) from error


def _shown(value: object) -> str:
    """A value in an error message, which a quarantine may have to keep."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def sha256(data: bytes) -> bytes:
    """SHA-256 as 32 bytes."""
    return hashlib.sha256(data).digest()


def require_sample(sample: Sample) -> None:
    """Refuse what the file cannot hold.

    Raises:
        InputError: id not 1 to 512 bytes of text, or data that are not bytes.
    """
    try:
        n_bytes = len(sample.id.encode())
    except (AttributeError, UnicodeEncodeError):
        n_bytes = 0
    if not 0 < n_bytes <= MAX_ID_BYTES:
        message = (
            f"sample.id must be 1 to {MAX_ID_BYTES} bytes of UTF-8 text, got {_shown(sample.id)}; shorten it"
        )
        raise InputError(message)
    require_bytes(sample)


def require_bytes(sample: Sample) -> None:
    """Refuse data that are not bytes.

    Raises:
        InputError: they are not.
    """
    if type(sample.data) is not bytes:
        message = f"sample.data of {sample.id!r} must be bytes, got {type(sample.data).__name__}; encode it"
        raise InputError(message)
