"""Files of data sets: where they are searched for, how they are downloaded, and how archives are read.

A set is searched for in a given folder, else in the folder that DRIP_DATA names, then in the cache. Downloads
go into the cache, are continued after an interruption and checked before they get their final name. Archives
are read in place, without unpacking them to disk.
"""

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

fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # pragma: no cover  # Windows: nothing keeps two processes from the same download
    fcntl = None

DATA_VARIABLE = "DRIP_DATA"
CACHE_VARIABLE = "DRIP_CACHE"

Progress = Callable[[int, int], None]
"""Called with the bytes so far and the total."""

Members = Iterator[tuple[str, Callable[[], bytes]]]
"""Names with a function that reads the member. In a compressed tar, call it before taking the next name."""

_Found = TypeVar("_Found")

_SCHEMES = ("http", "https", "file")
_ATTEMPTS = 4
_TIMEOUT_S = 60
_CHUNK = 1 << 18
_MEMBER_CHUNK = 1 << 20
_MAX_BYTES = 10_000_000  # of a file that a Session holds in memory
_INTERRUPTED = (http.client.HTTPException, OSError)


# -- where data sets are searched for ------------------------------------------------------------------


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
    """The folders to search, in order: only ``folder`` if it is given, else DRIP_DATA, then the cache.

    If the caller names a folder and the set is not in it, that is an error: silently using another copy would
    produce results on different data from what the caller expects.
    """
    if folder is not None:
        return [Path(folder)]
    named = os.environ.get(DATA_VARIABLE)
    return [*([Path(named)] if named else []), cache_folder(cache)]


def first_found(places: list[Path], find: Callable[[Path], _Found | None]) -> _Found | None:
    """The first result of ``find`` over the places that is not None."""
    return next((found for found in map(find, places) if found is not None), None)


def missing(
    name: str, wanted: str, places: list[Path], n_bytes: int, function: str = "drip.datasets.load"
) -> InputError:
    """The error for a data set that was not found, with the call that downloads it.

    >>> print(missing("cifar10", "cifar-10-python.tar.gz", [Path("/data")], 170_498_071))
    data set cifar10: cifar-10-python.tar.gz does not exist in /data;
    drip.datasets.load("cifar10", download=True) downloads it (170 MB)
    """
    searched = " or ".join(map(str, places))
    return InputError(
        f"data set {name}: {wanted} does not exist in {searched}; "
        f'{function}("{name}", download=True) downloads it ({n_bytes / 1e6:.0f} MB)',
        code="dataset-missing",
    )


# -- one large file ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that can be downloaded.

    Attributes:
        url: Its URL; http, https or file.
        path: Its path below the cache folder, with ``/``.
        n_bytes: Its size.
        sha256: Its SHA-256, 64 hexadecimal digits.
    """

    url: str
    path: str
    n_bytes: int
    sha256: str


def fetch(source: RemoteFile, cache: Path, progress: Progress | None = None) -> Path:
    """The path of the file in the cache, downloaded if it is not there yet.

    The bytes go to ``<path>.part``, which is continued after an interruption if the server supports it (HTTP
    Range). Size and SHA-256 are checked before the file is synced and renamed, so a file under its final name
    is complete. Processes that fetch the same file wait for one another.

    Args:
        source: The file, its size and its digest.
        cache: Folder of downloads; created if it does not exist.
        progress: Called before the first and after every chunk of 256 KiB.

    Raises:
        InputError: a URL or a path that is not allowed.
        DripError: there is no network, the file does not exist or has changed, or the disk is full. A part
            that can be continued is kept, a wrong one is removed.
    """
    target = place_below(cache, source.path)
    if _is_complete(target, source):
        return target
    with locked(target):
        if not _is_complete(target, source):  # another process may have fetched it meanwhile
            partial = target.with_name(f"{target.name}.part")
            _check_space(target.parent, source.n_bytes - (partial.stat().st_size if partial.exists() else 0))
            _download(source, partial, progress)
            with _writing(target):
                partial.replace(target)
                sync_directory(target.parent)
    return target


def place_below(cache: Path, path: str) -> Path:
    """The path in the cache for a relative path from a list or an archive, which is not trusted.

    Raises:
        InputError: a path that could lead out of the cache.

    >>> place_below(Path("cache"), "mnist/labels.gz").as_posix()
    'cache/mnist/labels.gz'
    >>> place_below(Path("cache"), "../labels.gz")
    Traceback (most recent call last):
    drip.errors.InputError: '../labels.gz' is not a relative path below the cache
    """
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or ":" in path or not all(part.strip(".") for part in parts):
        raise InputError(f"{path!r} is not a relative path below the cache")
    return cache.joinpath(*parts)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold a lock on ``target`` among processes; creates its folder.

    The lock file is not removed: a process that waits for the removed file and one that creates a new file
    could both get the lock. The lock of a killed process is released by the system.

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
    """The response to a URL, starting at a byte; its status is 206 if the server supports that.

    Raises:
        InputError: a scheme other than http, https and file.
        DripError: no network, or a status that is an error.
    """
    if urlsplit(url).scheme not in _SCHEMES:
        raise InputError(f"{url!r} cannot be downloaded; use a URL that starts with {', '.join(_SCHEMES)}")
    headers = {"User-Agent": "drip-edge", "Accept-Encoding": "identity"}  # Range counts encoded bytes
    if first_byte:
        headers["Range"] = f"bytes={first_byte}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # schemes are checked above
    try:
        return _opener().open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            raise HttpStatusError(url, error.code, error.reason) from None
    except urllib.error.URLError as error:
        raise DripError(
            f"cannot download {url}: {error.reason}; check the network, or put the file into a folder "
            "and name it with folder=",
            code="download-failed",
        ) from error


class HttpStatusError(DripError):
    """A server answered with an HTTP status that is an error."""

    code = "download-failed"

    def __init__(self, url: str, status: int, reason: object) -> None:
        super().__init__(
            f"cannot download {url}: HTTP {status} {reason}; the file may have moved: get it elsewhere and "
            "name its folder with folder="
        )
        self.status = status


def _opener() -> urllib.request.OpenerDirector:
    # urllib's default opener also handles ftp: and data:, to which a server could redirect.
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


def _is_complete(target: Path, source: RemoteFile) -> bool:
    return target.is_file() and target.stat().st_size == source.n_bytes


def _download(source: RemoteFile, partial: Path, progress: Progress | None) -> None:
    """Fill ``partial``, continuing it after interruptions, and check it."""
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
            f"{source.url}: the download was interrupted after {n_bytes} of {source.n_bytes} bytes; call "
            "again to continue",
            code="download-failed",
        )
    if n_bytes > source.n_bytes or digest.hexdigest() != source.sha256:
        partial.unlink()
        raise DripError(
            f"{source.url}: the download has {n_bytes} bytes and SHA-256 {digest.hexdigest()[:12]}..., not "
            f"{source.n_bytes} bytes and {source.sha256[:12]}...; it was removed; call again",
            code="download-damaged",
        )


def _append(source: RemoteFile, handle: BinaryIO, digest: Any, progress: Progress | None) -> Any:
    """Append the server's response; start over if it ignores the range. Returns the digest so far."""
    done = handle.tell()
    try:
        response = open_url(source.url, done)
    except HttpStatusError as error:
        if not (done and error.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise
        response = open_url(source.url)
    except _INTERRUPTED:
        return digest
    with response:
        if done and _first_byte(response) != done:
            handle.truncate(0)  # the server sends the whole file again
            handle.seek(0)
            done, digest = 0, hashlib.sha256()
        if progress is not None:
            progress(done, source.n_bytes)
        while done <= source.n_bytes:  # one chunk too many proves that the file is longer
            try:
                chunk = response.read(_CHUNK)
            except _INTERRUPTED as error:
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
    """Position in the file at which the body of a response begins; 0 if the server sends the whole file."""
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
            f"{folder} has {free / 1e6:.0f} MB free, but the download needs {n_bytes / 1e6:.0f} MB; free "
            "space, or choose another folder with cache= or DRIP_CACHE",
            code="path-not-writable",
        )


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DripError(
            f"cannot write {place}: {error}; "
            f"{'free space and call again to continue' if full else 'choose another folder with cache='}",
            code="path-not-writable",
        ) from error


# -- many small files ----------------------------------------------------------------------------------


class Session:
    """A connection that stays open over many files. With a proxy, every file opens its own.

    One connection for 5,773 photographs saves that many TLS handshakes.

    Args:
        base_url: URL that the paths are appended to, with a slash at the end.
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
        """The content of a file; requested again after an interruption, a few times.

        Args:
            path: Relative to the base URL, not quoted.

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
                    self._connection.close()  # http.client opens it again with the next request
                continue
            if len(content) > _MAX_BYTES:
                raise DripError(f"{url} has more than {_MAX_BYTES} bytes", code="download-damaged")
            return content
        message = f"cannot download {url}: {last}; check the network and call again"
        raise DripError(message, code="download-failed") from last

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
                raise HttpStatusError(url, response.status, response.reason)
        with open_url(url) as response:  # a redirection, a proxy, or a file
            return bytes(response.read(_MAX_BYTES + 1))


# -- archives ------------------------------------------------------------------------------------------


def zip_members(path: Path) -> Members:
    """All members of a zip.

    Raises:
        zipfile.BadZipFile: not a zip file, or a damaged member.
        OSError: the file cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield name, partial(archive.read, name)


def tar_gz_members(path: Path) -> Members:
    """The regular files of a gzip-compressed tar, in one pass; the checksum at the end is checked.

    Raises:
        tarfile.TarError: not a tar file.
        EOFError: the file is truncated.
        OSError: not a gzip file, a wrong checksum, or the file cannot be read.
        zlib.error: damaged bytes.
    """
    with gzip.open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name, content.read
        while stream.read(_MEMBER_CHUNK):  # gzip compares its checksum only at the end of the file
            pass
