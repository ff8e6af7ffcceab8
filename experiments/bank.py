"""What is computed once per data set: frozen features of every row and view, and encoded sizes.

The backbone runs once over every row; its maps stay in memory-mapped files.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drip.datasets import AudioDataset, ImageDataset
from drip.errors import InputError
from drip.files import sha256_hex, write_atomically
from drip.types import IntArray, JsonObject

_CHUNK = 64
_SAVE_EVERY = 16


@dataclass(frozen=True)
class Bank:
    r"""Feature maps of the rows of several views, one after the other.

    Row ``r`` of view number ``v`` has the index ``v * n_rows + r``.

    Attributes:
        views: Names of the views, in order.
        maps: Per view the activations that enter the head, float16, shape (n_rows, K, \*positions).
        inputs: Per view what the linear head reads, float32: their means over the positions, shape
            (n_rows, K), or every position, shape (n_rows, K times positions).
        flatten: Whether the head reads every position.
    """

    views: tuple[str, ...]
    maps: tuple[NDArray[np.float16], ...]
    inputs: tuple[NDArray[np.float32], ...]
    flatten: bool = False

    @property
    def n_rows(self) -> int:
        """Rows of one view."""
        return len(self.maps[0])

    def index(self, rows: IntArray, view: str = "clean") -> IntArray:
        """Indices of the given rows in one view."""
        if view not in self.views:
            raise InputError(f"view {view!r}: not in the bank; choose one of {', '.join(self.views)}")
        return rows + self.views.index(view) * self.n_rows

    def rows(self, index: IntArray) -> IntArray:
        """Rows of the data set that indices refer to."""
        return index % self.n_rows

    def take_maps(self, index: IntArray) -> NDArray[np.float32]:
        r"""Maps at indices, float32, shape (n, K, \*positions)."""
        return _take(self.maps, index, self.n_rows).astype(np.float32)

    def take_inputs(self, index: IntArray) -> NDArray[np.float32]:
        """The head's inputs at indices, shape (n, n_features)."""
        return _take(self.inputs, index, self.n_rows)


def build_bank(
    folder: Path,
    backbone: nn.Module,
    inputs: Callable[[IntArray, str], Tensor],
    n_rows: int,
    views: Sequence[str],
    key: dict[str, Any],
    *,
    view_keys: Mapping[str, JsonObject] | None = None,
    flatten: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Bank:
    r"""The bank of a backbone over a data set, computed where it is not in ``folder`` yet.

    A killed build goes on where it was; a second process waits for the first.

    Args:
        folder: Cache folder.
        backbone: Inputs (n, ...) to maps (n, K, \*positions); is put into eval mode.
        inputs: Rows and view to the backbone's inputs.
        n_rows: Rows of the data set.
        views: Names of the views.
        key: What the maps of every view depend on: data set, weights, size; JSON-serialisable.
        view_keys: What those of one view depend on besides its name.
        flatten: Whether the head reads every position instead of their mean.
        on_progress: Called with view, rows done and rows in all.
    """
    backbone.eval()
    folder.mkdir(parents=True, exist_ok=True)
    maps, entering = [], []
    for view in views:
        digest = sha256_hex(
            json.dumps({**key, **(view_keys or {}).get(view, {}), "view": view}, sort_keys=True).encode()
        )[:16]
        base = folder / f"bank-{digest}"
        with base.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not base.with_suffix(".inputs.npy").exists():
                _compute(base, backbone, inputs, n_rows, view, flatten, on_progress)
        maps.append(np.load(base.with_suffix(".maps.npy"), mmap_mode="r"))
        entering.append(np.load(base.with_suffix(".inputs.npy"), mmap_mode="r"))
    return Bank(tuple(views), tuple(maps), tuple(entering), flatten)


def _compute(
    base: Path,
    backbone: nn.Module,
    inputs: Callable[[IntArray, str], Tensor],
    n_rows: int,
    view: str,
    flatten: bool,  # noqa: FBT001  # handed through
    on_progress: Callable[[str, int, int], None] | None,
) -> None:
    """Fill ``.maps.npy`` in chunks, remembering how far it got; ``.inputs.npy`` marks the end."""
    partial, done_path = base.with_suffix(".maps.part"), base.with_suffix(".done")
    done = int(done_path.read_text()) if partial.exists() and done_path.exists() else 0
    if not done:
        done_path.unlink(missing_ok=True)  # one of an earlier build would vouch for the new file's zeros
    maps: np.memmap[Any, Any] | None = None
    for number, start in enumerate(range(done, n_rows, _CHUNK)):
        rows = np.arange(start, min(start + _CHUNK, n_rows))
        with torch.inference_mode():
            output = backbone(inputs(rows, view)).numpy()
        if maps is None:
            mode = "r+" if done else "w+"
            shape = (n_rows, *output.shape[1:])
            maps = np.lib.format.open_memmap(
                partial, mode, None if done else np.float16, None if done else shape
            )
        maps[rows] = output
        if number % _SAVE_EVERY == _SAVE_EVERY - 1 or rows[-1] == n_rows - 1:
            maps.flush()
            write_atomically(done_path, str(int(rows[-1]) + 1).encode())
            if on_progress is not None:
                on_progress(view, int(rows[-1]) + 1, n_rows)
    filled = np.lib.format.open_memmap(partial, "r")
    parts = []
    for start in range(0, n_rows, 1024):
        part = filled[start : start + 1024].astype(np.float32).reshape(-1, *_flat(filled.shape))
        parts.append(part.reshape(len(part), -1) if flatten else part.mean(2))
    partial.replace(base.with_suffix(".maps.npy"))
    temporary = base.with_suffix(".inputs.part")
    with temporary.open("wb") as file:
        np.save(file, np.concatenate(parts))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(base.with_suffix(".inputs.npy"))
    done_path.unlink(missing_ok=True)


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


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[1], int(np.prod(shape[2:]))


def _take(parts: Sequence[NDArray[Any]], index: IntArray, n_rows: int) -> NDArray[Any]:
    """Rows of the parts as if they were one array."""
    result = np.empty((len(index), *parts[0].shape[1:]), parts[0].dtype)
    part_of = index // n_rows
    for number, part in enumerate(parts):
        mine = part_of == number
        if mine.all():
            return part[index - number * n_rows]
        result[mine] = part[index[mine] - number * n_rows]
    return result
