"""Real data sets as arrays and encoded samples, with the groups that a split must keep together. No torch.

Each set is searched for in a given folder, else in the folder that DRIP_DATA names, then in the cache;
`download=True` downloads it from its original source into the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from drip.datasets.arrays import AudioDataset, ImageDataset
from drip.datasets.cifar10 import load_cifar10
from drip.datasets.mnist import load_mnist
from drip.datasets.speech_commands import load_speech_commands
from drip.datasets.splits import split_rows
from drip.datasets.tomato import load_tomato
from drip.errors import InputError
from drip.files.fetch import CACHE_VARIABLE, DATA_VARIABLE, Progress, RemoteFile

__all__ = [
    "CACHE_VARIABLE",
    "DATA_VARIABLE",
    "LOADERS",
    "AudioDataset",
    "ImageDataset",
    "Progress",
    "RemoteFile",
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
"""Loading functions by the name of the data set; all accept the keywords of :func:`load`."""


def load(
    name: str,
    *,
    folder: str | Path | None = None,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> ImageDataset | AudioDataset:
    """A data set by name, with the defaults of its own function in :data:`LOADERS`.

    Args:
        name: A key of :data:`LOADERS`.
        folder: The only folder to search. If the set is not in it and ``download`` is True, it is downloaded
            into the cache. Default: the folder that DRIP_DATA names, then the cache.
        download: Download the set into the cache if it is not found.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Called during a download with the bytes so far and the total.

    Raises:
        InputError: an unknown name, the set is not found, or a file is damaged.
        DripError: the download fails.

    >>> load("lena")
    Traceback (most recent call last):
    drip.errors.InputError: unknown data set 'lena'; use mnist, cifar10, tomato, speech_commands
    """
    if name not in LOADERS:
        raise InputError(f"unknown data set {name!r}; use {', '.join(LOADERS)}")
    return LOADERS[name](folder=folder, download=download, cache=cache, progress=progress)
