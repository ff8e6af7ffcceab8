"""Sources of samples, one file per system; `open_source(url)` finds the one for a URL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from drip.errors import StreamError
from drip.streams.dataset import DatasetSource
from drip.streams.folder import FolderSource
from drip.types import Source

__all__ = ["SCHEMES", "DatasetSource", "FolderSource", "open_source"]

SCHEMES: dict[str, Callable[[str, Sequence[str]], Source]] = {
    "file": lambda url, names: FolderSource(Path(unquote(urlsplit(url).path)), names),
    "dataset": lambda url, _: DatasetSource.by_name(urlsplit(url).netloc or urlsplit(url).path),
}
"""Scheme of a URL to the function that opens it, with the class names that folders may stand for."""


def open_source(url: str, class_names: Sequence[str] = ()) -> Source:
    """The source that a URL names: a folder's path, ``file:///folder`` or ``dataset:mnist``.

    Args:
        url: The URL.
        class_names: Names in the order of the logits; files below a folder of such a name are labelled.

    Raises:
        StreamError: an unknown scheme, or a source that cannot be opened.
    """
    scheme = urlsplit(url).scheme
    if scheme in SCHEMES:
        return SCHEMES[scheme](url, class_names)
    if "://" in url:
        raise StreamError(
            f"a folder or a URL of {', '.join(f'{name}:' for name in SCHEMES)} is needed, got {url!r}"
        )
    return FolderSource(Path(url), class_names)
