"""Whether a model file computes what it computed when it was written: its digest, and known answers.

A device has no package ``onnx``, so the digest is computed from the bytes of the file. The known answers are a
few inputs with their logits and scores. They are rounded to eight bits before they are scored: each takes a
quarter of its size as float32, and the answers belong to the rounded inputs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mmap
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from drip.errors import ModelError

KEY = "drip.known"
"""Where the known answers are among a file's properties, beside the metadata."""

ROW_TOLERANCE = 1e-4
"""Largest difference between a row alone and in a batch, in units of the largest logit or score.

Not zero: matrix products of a different size round differently."""

_MAX_INPUTS = 4
_MAX_BYTES = 1_000_000  # of all inputs, at one byte per value; two are written whatever they need

# Float kernels of other processors and versions differ in the last bits. In int8 one more value may then be
# rounded the other way, which moves the logits by about one step of the last layer's input.
_TOLERANCES = {"float32": 1e-3, "int8": 0.05}

Run = Callable[[NDArray[np.float32]], tuple[NDArray[Any], NDArray[Any]]]
"""Scores a batch: inputs (N, *shape) to logits (N, n_classes) and scores (N,)."""


# -- known answers ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownAnswers:
    """A few inputs of a model file, and what it returned for them when it was written.

    Attributes:
        inputs: Shape (n, *input shape).
        logits: Shape (n, n_classes).
        scores: Shape (n,).
        origin: ``samples`` for inputs from the user's data, else the kind of noise.
    """

    inputs: NDArray[np.float32]
    logits: NDArray[np.float32]
    scores: NDArray[np.float32]
    origin: str

    def to_text(self) -> str:
        """JSON for the property ``drip.known`` of a file; the inputs are already rounded."""
        lows, codes = zip(*map(_codes, self.inputs), strict=True)
        return json.dumps(
            {
                "origin": self.origin,
                "ranges": [list(pair) for pair in lows],
                "inputs": base64.b64encode(zlib.compress(np.stack(codes).tobytes(), 6)).decode(),
                "logits": [list(map(float, row)) for row in self.logits],
                "scores": list(map(float, self.scores)),
            }
        )

    @classmethod
    def parse(cls, text: str, shape: tuple[int, ...]) -> Self:
        """The answers in a file's property.

        Raises:
            ModelError: they are damaged; code ``model-file-damaged``.
        """
        try:
            content = json.loads(text)
            ranges = content["ranges"]
            wanted = (len(ranges), *shape)
            # the length is bounded before anything is decompressed into memory
            size = int(np.prod(wanted))
            unpacked = zlib.decompressobj().decompress(base64.b64decode(content["inputs"]), size + 1)
            codes = np.frombuffer(unpacked, np.uint8).reshape(wanted)
            inputs = np.stack([_values(pair, code) for pair, code in zip(ranges, codes, strict=True)])
            logits = np.array(content["logits"], np.float32)
            scores = np.array(content["scores"], np.float32)
            logits, scores = logits.reshape(len(inputs), -1), scores.reshape(len(inputs))
            return cls(inputs, logits, scores, str(content["origin"]))
        except (KeyError, TypeError, ValueError, zlib.error, RecursionError, MemoryError) as error:
            raise ModelError(
                f"the known answers are damaged ({error!r}); copy the file again", code="model-file-damaged"
            ) from error


def known_in(properties: Mapping[str, str], shape: tuple[int, ...]) -> KnownAnswers | None:
    """The known answers among a file's properties; None if it has none, as files of versions 1 and 2.

    Raises:
        ModelError: they are damaged; code ``model-file-damaged``.
    """
    return KnownAnswers.parse(properties[KEY], shape) if KEY in properties else None


def known_answers(run: Run, inputs: NDArray[np.float32], origin: str) -> KnownAnswers:
    """Score a few inputs, each alone, with the file that will be written.

    Raises:
        ModelError: the results are not finite (``model-non-finite``), or a row's result depends on other
            rows or on earlier calls (``model-impure``).
    """
    size = int(np.prod(inputs.shape[1:]))
    n_rows = max(2, min(_MAX_INPUTS, _MAX_BYTES // size))
    rows = np.stack([rounded(row) for row in inputs[:n_rows]])
    require_pure(run, rows)
    logits, scores = _alone(run, rows)
    if not (np.isfinite(logits).all() and np.isfinite(scores).all()):
        raise ModelError(
            f"the model outputs NaN or infinity for {origin}; {_GIVE_SAMPLES}", code="model-non-finite"
        )
    return KnownAnswers(rows, logits.astype(np.float32), scores.astype(np.float32), origin)


_GIVE_SAMPLES = "give samples of its own with --data (in Python: samples=), or check its weights"


def require_pure(run: Run, rows: NDArray[np.float32]) -> None:
    """Check that a row's result depends on this row only.

    The rows are scored one by one, together, and the first once more.

    Raises:
        ModelError: a result differs; code ``model-impure``.
    """
    logits, scores = _alone(run, rows)
    again = run(rows[:1])
    together = run(rows)
    third = run(rows[:1])
    # NaN compares false; not finite results are reported elsewhere, with their reason
    for found in (again, third):
        if _differs(found, (logits[:1], scores[:1]), ROW_TOLERANCE, (logits, scores)):
            raise ModelError(
                "the model returns different results for the same input: it keeps state between calls, or draws "
                "random numbers, as dropout does in training mode; export it in evaluation mode",
                code="model-impure",
            )
    if _differs(together, (logits, scores), ROW_TOLERANCE, (logits, scores)):
        raise ModelError(
            "rows of a batch influence each other: a row alone and in a batch has different results, as with "
            "batch normalisation in training mode; export it in evaluation mode, or with a batch of one",
            code="model-impure",
        )


def require_answers(run: Run, known: KnownAnswers, *, is_int8: bool, n_rows: int = 2) -> None:
    """Check that a file still gives its known answers on this machine: rows together, then one alone.

    Raises:
        ModelError: it does not; code ``model-answers``.
    """
    tolerance = _TOLERANCES["int8" if is_int8 else "float32"]
    for count in (min(n_rows, len(known.inputs)), 1):
        found = run(known.inputs[:count])
        expected = known.logits[:count], known.scores[:count]
        if _differs(found, expected, tolerance, (known.logits, known.scores), nan_differs=True):
            error = np.abs(found[0] - expected[0]).max() if found[0].shape == expected[0].shape else np.nan
            raise ModelError(
                f"this machine gets other results than the file says: the logits of {count} known inputs "
                f"deviate by {error:.3g}, and the largest is {np.abs(known.logits).max():.3g}; use another "
                "version of ONNX Runtime" + (", or quantise with 7-bit weights" if is_int8 else ""),
                code="model-answers",
            )


def _alone(run: Run, rows: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    found = [run(row[None]) for row in rows]
    return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])


def _differs(
    found: tuple[NDArray[Any], NDArray[Any]],
    expected: tuple[NDArray[Any], NDArray[Any]],
    tolerance: float,
    all_values: tuple[NDArray[Any], NDArray[Any]],
    *,
    nan_differs: bool = False,
) -> bool:
    """Whether logits or scores differ by more than the tolerance times the largest of all."""
    if found[0].shape != expected[0].shape or found[1].shape != expected[1].shape:
        return True
    # With two nearly equal logits either class is right, and the score of the other class is another number.
    same = found[0].argmax(1) == expected[0].argmax(1)
    pairs = ((found[0], expected[0], all_values[0]), (found[1][same], expected[1][same], all_values[1]))
    largest = float(np.abs(all_values[0]).max(initial=0.0))
    for got, wanted, values in pairs:
        # scores of a ReLU may all be 0; then their unit is that of the logits
        scale = float(np.abs(values).max(initial=0.0)) or largest
        with np.errstate(invalid="ignore"):
            error = float(np.abs(got - wanted).max(initial=0.0))
        if error > tolerance * scale or (nan_differs and not error <= tolerance * scale):
            return True
    return False


def rounded(row: NDArray[np.float32]) -> NDArray[np.float32]:
    """An input with 256 equally spaced values between its least and its largest, as the file stores it."""
    return _values(*_codes(row))


def _codes(row: NDArray[np.float32]) -> tuple[tuple[float, float], NDArray[np.uint8]]:
    low, high = float(row.min()), float(row.max())
    span = (high - low) or 1.0
    codes = np.rint((row.astype(np.float64) - low) / span * 255)
    return (low, high), codes.astype(np.uint8)


def _values(pair: Iterable[float], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    low, high = map(float, pair)
    # float64 and clipped: the values must be the same on every machine, and never leave the range
    values = low + (high - low) * (codes.astype(np.float64) / 255)
    return np.clip(values, low, high).astype(np.float32)


# -- digest ----------------------------------------------------------------------------------------------

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# The typed fields of a tensor: float and double values are stored as they are, integers in any number of bytes.
_FLOATS, _INTEGERS = (4, 10), (5, 7, 11)
_SIZES = {2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 12: 4, 13: 8, 16: 2}
_EXTERNAL = 1


def file_digest(path: str | Path, windows: frozenset[str]) -> str:
    """The digest of a model file, from its bytes, as ``drip.onnx.model_file_digest`` computes it.

    Args:
        path: The file.
        windows: Names of the initialisers that the digest does not cover.

    Raises:
        ModelError: the file is not a readable ONNX message; code ``model-file-damaged``.
    """
    path = Path(path)
    try:
        # Mapped, not read: a large file would be in memory twice while it loads. It is closed when the last
        # part of it is released.
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _digest(memoryview(data), path.parent, windows)
    except (OSError, ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ModelError(
            f"the file is damaged ({error}); copy it again", code="model-file-damaged"
        ) from error


def _digest(data: memoryview, folder: Path, windows: frozenset[str]) -> str:
    model = _fields(data)
    graph = _fields(model[7][-1]) if 7 in model else {}
    digest = hashlib.sha256()
    tensors = {_text(tensor.get(8)): tensor for tensor in map(_fields, graph.get(5, []))}
    for name, tensor in sorted(tensors.items()):
        if name not in windows:
            shape = "x".join(map(str, _numbers(tensor.get(1, []))))
            kind = int(tensor.get(2, [0])[-1])
            digest.update(f"{name}\0{kind}\0{shape}\0".encode())
            for part in _stored(tensor, kind, folder):
                digest.update(part)
    for node in map(_fields, graph.get(1, [])):
        names = ([_text(node.get(7)), _text(node.get(4))], _texts(node.get(1, [])), _texts(node.get(2, [])))
        for listed in names:
            digest.update("".join(f"{name}\0" for name in (*listed, "")).encode())
        named = [(_text(_fields(one).get(1)), one) for one in node.get(5, [])]
        for _, attribute in sorted(named, key=lambda pair: pair[0]):
            digest.update(_ordered(attribute) + b"\0")
    operators = [(_text(one.get(1)), int(one.get(2, [0])[-1])) for one in map(_fields, model.get(8, []))]
    for domain, version in sorted(operators, key=lambda pair: pair[0]):
        digest.update(f"{domain}\0{version}\0".encode())
    return digest.hexdigest()


def _walk(data: memoryview) -> Iterator[tuple[int, int, Any, int]]:
    """Number, wire type, value and end of every field of a protobuf message."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        kind = key & 7
        value: Any
        if kind == _VARINT:
            value, position = _varint(data, position)
        elif kind == _BYTES:
            length, position = _varint(data, position)
            value, position = data[position : position + length], position + length
        elif kind in {_FIXED32, _FIXED64}:
            width = 4 if kind == _FIXED32 else 8
            value, position = data[position : position + width], position + width
        else:
            raise ValueError(f"unknown wire type {kind}")
        if position > end:
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, kind, value, position


def _fields(data: memoryview) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = defaultdict(list)
    for number, _, value, _ in _walk(data):
        found[number].append(value)
    return found


def _ordered(data: memoryview) -> bytes:
    """A message with its fields in ascending order of their numbers."""
    parts, start = [], 0
    for number, _, _, end in _walk(data):
        parts.append((number, bytes(data[start:end])))
        start = end
    return b"".join(part for _, part in sorted(parts, key=lambda pair: pair[0]))


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def _numbers(values: Iterable[Any]) -> Iterator[int]:
    """Integers of a repeated field, packed or not."""
    for value in values:
        if isinstance(value, int):
            yield value
            continue
        position = 0
        while position < len(value):
            number, position = _varint(value, position)
            yield number


def _text(values: list[Any] | None) -> str:
    return bytes(values[-1]).decode() if values else ""


def _texts(values: Iterable[Any]) -> Iterator[str]:
    return (bytes(value).decode() for value in values)


def _stored(tensor: Mapping[int, list[Any]], kind: int, folder: Path) -> Iterator[bytes | memoryview]:
    """The values of a tensor, little-endian, from whichever field has them."""
    if tensor.get(14, [0])[-1] == _EXTERNAL:
        yield _external(tensor, folder)
        return
    if 9 in tensor:
        yield tensor[9][-1]
        return
    if 6 in tensor:
        yield b"\0".join(map(bytes, tensor[6]))
        return
    yield from (value for number in _FLOATS for value in tensor.get(number, []))
    for number in _INTEGERS:
        if number in tensor:
            size = _SIZES[kind]
            mask = (1 << (8 * size)) - 1
            yield b"".join((one & mask).to_bytes(size, "little") for one in _numbers(tensor[number]))


def _external(tensor: Mapping[int, list[Any]], folder: Path) -> bytes:
    """Values that are stored in another file."""
    where = {_text(entry.get(1)): _text(entry.get(2)) for entry in map(_fields, tensor[13])}
    with (folder / where["location"]).open("rb") as file:
        file.seek(int(where.get("offset", 0)))
        return file.read(int(where["length"])) if "length" in where else file.read()
