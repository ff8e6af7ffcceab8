"""Encoded sizes of a data set's samples, computed once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from drip.datasets import AudioDataset, ImageDataset
from drip.files import sha256_hex
from drip.types import IntArray


def encoded_sizes(data: ImageDataset | AudioDataset, cache: Path) -> IntArray:
    """Bytes of every sample as a store would keep it, shape (n,), int64; kept in the cache folder."""
    key = sha256_hex(f"{data.name} {len(data)}".encode())[:16]
    path = cache / f"sizes-{key}.npy"
    if not path.exists():
        sizes = data.encoded_sizes(np.arange(len(data)))
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.part.npy")
        np.save(temporary, sizes)
        temporary.replace(path)
    return np.asarray(np.load(path), np.int64)
