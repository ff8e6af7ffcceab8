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
from drip.types import FloatArray, Observation, Sample

MAX_ID_BYTES = 512
_TEMPLATES_KEPT = 64
_SHADOW = "shadow:"
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
    return reason if is_retained else _SHADOW + reason


def decode_reason(text: str) -> tuple[str, bool]:
    """The reason, and whether the rule retained the sample.

    >>> decode_reason(encode_reason("inside-window", is_retained=False))
    ('inside-window', False)
    """
    return text.removeprefix(_SHADOW), not text.startswith(_SHADOW)


def encode_meta(meta: Mapping[str, str]) -> str | None:
    """JSON of the free text pairs, None for none.

    Raises:
        InputError: a key or value that is not text.
    """
    if not meta:
        return None
    if not all(type(text) is str for pair in meta.items() for text in pair):
        message = f"sample.meta must map text to text, got {dict(meta)!r}; convert it with str()"
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
        message = f"sample.id must be 1 to {MAX_ID_BYTES} bytes of UTF-8 text, got {sample.id!r}; shorten it"
        raise InputError(message)
    if type(sample.data) is not bytes:
        message = f"sample.data of {sample.id!r} must be bytes, got {type(sample.data).__name__}; encode it"
        raise InputError(message)
