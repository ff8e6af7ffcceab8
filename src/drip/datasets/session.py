"""Many small files of one server over one connection."""

from __future__ import annotations

import http.client
import urllib.request
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit

from drip.datasets.fetch import RefusedError, open_url
from drip.errors import DripError

_ATTEMPTS = 4
_TIMEOUT_S = 60
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
