"""Where data sets are looked for: a given folder, DRIP_DATA, the cache; what is said when all lack them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from drip.errors import InputError

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


def missing(name: str, wanted: str, places: list[Path], n_bytes: int, function: str = "load") -> InputError:
    """The error of a data set that is nowhere, with the call of ``function`` that fetches it.

    >>> print(missing("cifar10", "cifar-10-python.tar.gz", [Path("/data")], 170_498_071))
    the data set cifar10 needs cifar-10-python.tar.gz in /data, got no such file;
    drip.datasets.load("cifar10", download=True) fetches 170 MB
    """
    searched = " or ".join(map(str, places))
    return InputError(
        f"the data set {name} needs {wanted} in {searched}, got no such file; "
        f'drip.datasets.{function}("{name}", download=True) fetches {n_bytes / 1e6:.0f} MB'
    )
