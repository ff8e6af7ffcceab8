"""Atomic writing, so a file is either complete or untouched; digests; type checks of JSON entries."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from drip.errors import DripError, brief


def sha256_hex(data: bytes) -> str:
    """SHA-256 of ``data`` in hexadecimal, 64 characters.

    >>> sha256_hex(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and without spaces: equal values become equal bytes, so digests are stable.

    Raises:
        ValueError: NaN or infinite numbers, which JSON cannot express.

    >>> canonical_json({"b": 1, "a": [1.5]})
    b'{"a":[1.5],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable (fsync), so a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that replaces it when the block ends without an error.

    The order is write, fsync, rename, fsync of the folder: readers see the old file or the new one, never a
    part of it, even after a power cut. When the block raises, the temporary file is removed. If ``path`` is a
    link, its target is replaced.

    Raises:
        DripError: the folder does not exist or cannot be written, ``path`` is a folder, a device or a
            pipe, the disk is full.
    """
    path = path.resolve()
    try:
        _check_replaceable(path)
        handle = tempfile.NamedTemporaryFile(  # noqa: SIM115  # closed below, before the rename
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
        )
    except OSError as error:
        message = f"cannot write into {path.parent}: {error}; choose another path"
        raise DripError(message, code="path-not-writable") from error
    temporary = Path(handle.name)
    try:
        with handle:
            yield handle  # type: ignore[misc]  # the wrapper is a BinaryIO in all but its declared type
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o644)  # NamedTemporaryFile creates it for its owner only
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        message = f"cannot write {path}: {error}; free space or choose another path"
        raise DripError(message, code="path-not-writable") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _check_replaceable(path: Path) -> None:
    if not path.parent.exists():
        message = f"{path.parent} does not exist; create it or choose another path"
        raise DripError(message, code="path-missing")
    if path.is_dir():
        raise DripError(f"{path} is a folder; choose another path", code="path-not-writable")
    if path.exists() and not path.is_file():  # root could replace /dev/null with a file and break the machine
        raise DripError(f"{path} is a device or a pipe; choose another path", code="path-not-writable")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` with a file that contains ``data``; see :func:`atomic_writer`."""
    with atomic_writer(path) as handle:
        handle.write(data)


def expect_types(what: str, part: Any, **types: Any) -> None:
    """Check the types of entries from a JSON file; other entries are ignored.

    Args:
        what: Name of the object, for the message.
        part: The object.
        types: Expected type by key; ``[int]`` means a list of integers.

    Raises:
        KeyError: an entry is missing.
        TypeError: an entry has the wrong type.

    >>> expect_types("point", {"x": 1}, x=float)
    """
    if not isinstance(part, dict):
        raise TypeError(f"{what} is {brief(part)}")
    for key, kind in types.items():
        value = part[key]
        of_list = isinstance(kind, list)
        fits = _is_list(value, kind[0]) if of_list else _is_of(value, kind)
        if not fits:
            wanted = f"a list of {kind[0].__name__}" if of_list else kind.__name__
            raise TypeError(f"{key} of {what} is {brief(value)}, not {wanted}")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(_is_of(item, kind) for item in value)


def _is_of(value: Any, kind: type) -> bool:
    # JSON writes 1.0 as 1 in other languages; bool is an int in Python alone.
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
