"""Where data sets are looked for: a given folder, DRIP_DATA, the cache; what is said when all lack them."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import importlib
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar
from urllib.parse import quote, urlsplit

from drip.errors import DripError, InputError
from drip.files import sync_directory

DATA_VARIABLE = "DRIP_DATA"
CACHE_VARIABLE = "DRIP_CACHE"

_Found = TypeVar("_Found")


def cache_folder(cache: str | Path | None = None) -> Path:
    """The folder for downloads: ``cache``, else what DRIP_CACHE names, else ``~/.cache/drip``.

    >>> cache_folder("/tmp/data").as_posix()
    '/tmp/data'
    """
    if cache is not None:
        return Path(cache)
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "drip"


def data_places(folder: str | Path | None, cache: str | Path | None) -> list[Path]:
    """The folders to search, in order: ``folder`` alone where it is given, else DRIP_DATA, then the cache.

    A folder that was named and lacks the set is not passed over for another copy in silence.
    """
    if folder is not None:
        return [Path(folder)]
    named = os.environ.get(DATA_VARIABLE)
    return [*([Path(named)] if named else []), cache_folder(cache)]


def first_found(places: list[Path], find: Callable[[Path], _Found | None]) -> _Found | None:
    """What ``find`` gives for the first place where it gives something."""
    return next((found for found in map(find, places) if found is not None), None)


def missing(
    name: str, wanted: str, places: list[Path], n_bytes: int, function: str = "drip.datasets.load"
) -> InputError:
    """The error of a data set that is nowhere, with the call of ``function`` that fetches it.

    >>> print(missing("cifar10", "cifar-10-python.tar.gz", [Path("/data")], 170_498_071))
    the data set cifar10 needs cifar-10-python.tar.gz in /data, got no such file;
    drip.datasets.load("cifar10", download=True) fetches 170 MB
    """
    searched = " or ".join(map(str, places))
    return InputError(
        f"the data set {name} needs {wanted} in {searched}, got no such file; "
        f'{function}("{name}", download=True) fetches {n_bytes / 1e6:.0f} MB'
    )


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


_MAX_BYTES = 10_000_000


class Session:
    """A connection that stays open from file to file; behind a proxy every file has its own.

    Args:
        base_url: What the paths are appended to, with a slash at the end.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        parts = urlsplit(base_url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        self._connection = None
        if parts.scheme in kinds and parts.hostname is not None:
            proxied = parts.scheme in urllib.request.getproxies()
            if not proxied or urllib.request.proxy_bypass(parts.hostname):
                self._connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=_TIMEOUT_S)

    def __enter__(self) -> Self:
        """The session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def get(self, path: str) -> bytes:
        """The content of a file; after a cut it is asked for again, a few times.

        Args:
            path: Relative to the base address, not quoted.

        Raises:
            DripError: no network, no such file, more than 10 MB.
        """
        url = self._base_url + quote(path)
        for _ in range(_ATTEMPTS):
            try:
                content = self._direct(url)
            except (http.client.HTTPException, OSError) as error:
                last: Exception = error
                if self._connection is not None:
                    self._connection.close()  # the next request opens it anew
                continue
            if len(content) > _MAX_BYTES:
                raise DripError(f"{url} of at most {_MAX_BYTES} bytes is needed, got more")
            return content
        raise DripError(f"{url} is needed, got: {last}; check the network and call again") from last

    def _direct(self, url: str) -> bytes:
        if self._connection is not None:
            self._connection.request("GET", urlsplit(url).path, headers={"User-Agent": "drip-edge"})
            response = self._connection.getresponse()
            content: bytes = response.read(_MAX_BYTES + 1)
            if response.length and len(content) <= _MAX_BYTES:
                raise http.client.IncompleteRead(content, response.length)
            if response.status == http.client.OK:
                return content
            if response.status < http.client.MULTIPLE_CHOICES or response.status >= http.client.BAD_REQUEST:
                raise RefusedError(url, response.status, response.reason)
        with open_url(url) as response:  # a redirection, a proxy, or a file
            return bytes(response.read(_MAX_BYTES + 1))


Members = Iterator[tuple[str, Callable[[], bytes]]]
"""Names with a function that reads the member; of a compressed tar it must be called before the next name."""

_MEMBER_CHUNK = 1 << 20


def zip_members(path: Path) -> Members:
    """All members of a zip.

    Raises:
        zipfile.BadZipFile: no zip, or a damaged member.
        OSError: the file cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield name, partial(archive.read, name)


def tar_gz_members(path: Path) -> Members:
    """The regular files of a gzip-compressed tar, in one pass; the checksum at the end is checked.

    Raises:
        tarfile.TarError: no tar.
        EOFError: the file is cut.
        OSError: no gzip, a wrong checksum, or the file cannot be read.
        zlib.error: damaged bytes.
    """
    with gzip.open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name, content.read
        while stream.read(_MEMBER_CHUNK):
            pass
