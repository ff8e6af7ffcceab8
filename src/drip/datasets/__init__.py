"""Real data sets as arrays and encoded samples, with the groups that a split must not tear. No torch.

Each set is looked for in a given folder, else in the one that DRIP_DATA names, then in the cache;
`download=True` fetches it from its original source into the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from drip.datasets.audio import AudioDataset
from drip.datasets.cifar10 import load_cifar10
from drip.datasets.images import ImageDataset
from drip.datasets.mnist import load_mnist
from drip.datasets.speech_commands import load_speech_commands
from drip.datasets.splits import split_rows
from drip.datasets.tomato import load_tomato
from drip.errors import InputError
from drip.files.fetch import CACHE_VARIABLE, DATA_VARIABLE, Progress, Source

__all__ = [
    "CACHE_VARIABLE",
    "DATA_VARIABLE",
    "LOADERS",
    "AudioDataset",
    "ImageDataset",
    "Progress",
    "Source",
    "load",
    "load_cifar10",
    "load_mnist",
    "load_speech_commands",
    "load_tomato",
    "split_rows",
]

LOADERS: Mapping[str, Callable[..., ImageDataset | AudioDataset]] = {
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "tomato": load_tomato,
    "speech_commands": load_speech_commands,
}
"""The function that loads a data set, by its name; all take the keywords of :func:`load`."""


def load(
    name: str,
    *,
    folder: str | Path | None = None,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> ImageDataset | AudioDataset:
    """A data set by name, with the defaults of its own function.

    Args:
        name: A key of :data:`LOADERS`.
        folder: The only folder to search; where it lacks the set and ``download`` is set, the cache is next.
            Default: the one that DRIP_DATA names, then the cache.
        download: Fetch what is nowhere into the cache.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Called with the bytes that are there and the bytes of the whole while a file is fetched.

    Raises:
        InputError: no such name, the set is nowhere, or a file is damaged.
        DripError: the download fails.

    >>> load("lena")
    Traceback (most recent call last):
    drip.errors.InputError: a data set of mnist, cifar10, tomato, speech_commands is needed, got 'lena'
    """
    if name not in LOADERS:
        raise InputError(f"a data set of {', '.join(LOADERS)} is needed, got {name!r}")
    return LOADERS[name](folder=folder, download=download, cache=cache, progress=progress)
