"""Downloads into the cache: streamed, checked, resumed, locked, put in place by a rename.

Only the standard library; `http`, `https` and `file` addresses; nothing is written outside the cache.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import importlib
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from drip.errors import DripError, InputError
from drip.files import sync_directory

fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # pragma: no cover  # Windows: downloads at once from two processes are not kept apart
    fcntl = None

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes of the whole."""

_CHUNK = 1 << 18
_ATTEMPTS = 4
_TIMEOUT_S = 60
_SCHEMES = ("http", "https", "file")
_CUT = (http.client.HTTPException, OSError)


@dataclass(frozen=True, slots=True)
class Source:
    """A file that can be fetched.

    Attributes:
        url: Its address; http, https or file.
        path: Its place below the cache folder, with ``/``.
        n_bytes: Its size.
        sha256: Its SHA-256, 64 hexadecimal digits.
    """

    url: str
    path: str
    n_bytes: int
    sha256: str


def fetch(source: Source, cache: Path, progress: Progress | None = None) -> Path:
    """The file in the cache, downloaded where it is not there yet.

    The bytes go to ``<path>.part``, which is continued after a cut where the server allows it (HTTP Range).
    Size and SHA-256 are checked before the file is synced and renamed: under its name it is whole. Processes
    that fetch the same file at once wait for one another.

    Args:
        source: Where the file is and what it must be.
        cache: Folder of downloads; made where it does not exist.
        progress: Called before the first and after every part of 256 KiB.

    Returns:
        The place of the file.

    Raises:
        InputError: an address or a place that is not allowed.
        DripError: no network, no such file, another content, no space. A part that can be continued is kept,
            a wrong one is removed.
    """
    target = place_below(cache, source.path)
    if _is_there(target, source):
        return target
    with locked(target):
        if not _is_there(target, source):
            partial = target.with_name(f"{target.name}.part")
            _check_space(target.parent, source.n_bytes - (partial.stat().st_size if partial.exists() else 0))
            _download(source, partial, progress)
            with _writing(target):
                partial.replace(target)
                sync_directory(target.parent)
    return target


def place_below(cache: Path, path: str) -> Path:
    """The place of a relative path below the cache.

    Raises:
        InputError: a path that leads elsewhere.

    >>> place_below(Path("cache"), "mnist/labels.gz").as_posix()
    'cache/mnist/labels.gz'
    >>> place_below(Path("cache"), "../labels.gz")
    Traceback (most recent call last):
    drip.errors.InputError: a path below the cache is needed, got '../labels.gz'
    """
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or ":" in path or not all(part.strip(".") for part in parts):
        raise InputError(f"a path below the cache is needed, got {path!r}")
    return cache.joinpath(*parts)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Wait for other processes that write ``target`` and keep them out; makes the folder.

    The lock file stays: to remove it could let two in at once. A killed process releases its lock.

    Raises:
        DripError: the folder cannot be written.
    """
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = target.with_name(f".{target.name}.lock").open("ab")
    with handle:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def open_url(url: str, first_byte: int = 0) -> Any:
    """The response of an address, from a byte on; status 206 where the server skips to it.

    Raises:
        InputError: neither http, https nor file.
        DripError: no network, or a status that is an error.
    """
    if urlsplit(url).scheme not in _SCHEMES:
        raise InputError(f"an address of {', '.join(_SCHEMES)} is needed, got {url!r}")
    headers = {"User-Agent": "drip-edge", "Accept-Encoding": "identity"}
    if first_byte:
        headers["Range"] = f"bytes={first_byte}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # schemes are checked above
    try:
        return _opener().open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            raise RefusedError(url, error.code, error.reason) from None
    except urllib.error.URLError as error:
        raise DripError(
            f"{url} is needed, got: {error.reason}; check the network, or put the file into a folder "
            "and name it with folder="
        ) from error


class RefusedError(DripError):
    """A server answered with a status that is an error."""

    def __init__(self, url: str, status: int, reason: object) -> None:
        super().__init__(f"{url} is needed, got HTTP {status} {reason}; the file may have moved: use folder=")
        self.status = status


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.FileHandler,
    ):
        opener.add_handler(handler())
    return opener


def _is_there(target: Path, source: Source) -> bool:
    return target.is_file() and target.stat().st_size == source.n_bytes


def _download(source: Source, partial: Path, progress: Progress | None) -> None:
    """Fill ``partial`` and check it; after a cut go on where it ended, a few times."""
    digest = hashlib.sha256()
    with _writing(partial), partial.open("ab+") as handle:
        _read_through(handle, digest)
        for _ in range(_ATTEMPTS):
            if handle.tell() >= source.n_bytes:
                break
            digest = _append(source, handle, digest, progress)
        handle.flush()
        os.fsync(handle.fileno())
        n_bytes = handle.tell()
    if n_bytes < source.n_bytes:
        raise DripError(
            f"{source.n_bytes} bytes of {source.url} are needed, got {n_bytes} before it was cut; "
            "call again to continue"
        )
    if n_bytes > source.n_bytes or digest.hexdigest() != source.sha256:
        partial.unlink()
        came = "more" if n_bytes > source.n_bytes else f"{digest.hexdigest()[:12]}..."
        raise DripError(
            f"{source.url} with {source.n_bytes} bytes and SHA-256 {source.sha256[:12]}... is needed, "
            f"got {came}; {partial} is removed, call again"
        )


def _append(source: Source, handle: BinaryIO, digest: Any, progress: Progress | None) -> Any:
    """Append what the server sends, from the start where it does not skip; returns the digest so far."""
    done = handle.tell()
    try:
        response = open_url(source.url, done)
    except RefusedError as error:
        if not (done and error.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise
        response = open_url(source.url)
    except _CUT:
        return digest
    with response:
        if done and _first_byte(response) != done:
            handle.truncate(0)
            handle.seek(0)
            done, digest = 0, hashlib.sha256()
        if progress is not None:
            progress(done, source.n_bytes)
        while done <= source.n_bytes:
            try:
                chunk = response.read(_CHUNK)
            except _CUT as error:
                chunk = getattr(error, "partial", b"")
            if not chunk:
                break
            handle.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(min(done, source.n_bytes), source.n_bytes)
    return digest


def _first_byte(response: Any) -> int:
    """Where the body of a response begins in the file; 0 where the server sends the whole."""
    if getattr(response, "status", None) != http.client.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else 0


def _read_through(handle: BinaryIO, digest: Any) -> None:
    handle.seek(0)
    while chunk := handle.read(_CHUNK):
        digest.update(chunk)


def _check_space(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise DripError(
            f"{n_bytes / 1e6:.0f} MB are needed in {folder}, got {free / 1e6:.0f} MB free; free space or "
            "choose another folder with cache= or DRIP_CACHE"
        )


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DripError(
            f"a writable file is needed at {place}, got: {error}; "
            f"{'free space and call again to continue' if full else 'choose another folder with cache='}"
        ) from error
