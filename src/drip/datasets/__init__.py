"""Real data sets as arrays and as encoded samples, with the groups that a split must not tear. No torch.

Each set is looked for in a given folder, else in the one that DRIP_DATA names, then in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from drip.datasets.audio import AudioDataset
from drip.datasets.cifar10 import load_cifar10
from drip.datasets.images import ImageDataset
from drip.datasets.mnist import load_mnist
from drip.datasets.places import CACHE_VARIABLE, DATA_VARIABLE
from drip.datasets.speech_commands import load_speech_commands
from drip.datasets.splits import split_rows
from drip.datasets.tomato import load_tomato
from drip.errors import InputError

__all__ = [
    "CACHE_VARIABLE",
    "DATA_VARIABLE",
    "LOADERS",
    "AudioDataset",
    "ImageDataset",
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
"""The function that loads a data set, by its name; all take ``folder`` and ``cache`` by keyword."""


def load(
    name: str, *, folder: str | Path | None = None, cache: str | Path | None = None
) -> ImageDataset | AudioDataset:
    """A data set by name, with the defaults of its own function.

    Args:
        name: A key of :data:`LOADERS`.
        folder: The only folder to search. Default: the one that DRIP_DATA names, then the cache.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.

    Raises:
        InputError: no such name, the set is nowhere, or a file is damaged.

    >>> load("lena")
    Traceback (most recent call last):
    drip.errors.InputError: a data set of mnist, cifar10, tomato, speech_commands is needed, got 'lena'
    """
    if name not in LOADERS:
        raise InputError(f"a data set of {', '.join(LOADERS)} is needed, got {name!r}")
    return LOADERS[name](folder=folder, cache=cache)
