"""Rows of a data set as a stream, for experiments, demonstrations and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from drip.datasets import LOADERS, AudioDataset, ImageDataset, load
from drip.errors import InputError, SourceError
from drip.files import sha256_hex
from drip.types import IntArray, Sample


class DatasetSource:
    """Chosen rows of a data set, in the given order, as encoded samples.

    Delivery: at least once. The cursor has the number of samples yielded so far, the name of the set, and a
    digest of the rows, so a position in other rows is not used.

    Args:
        dataset: Images or clips with labels.
        rows: Rows to yield, in order; default all.
    """

    def __init__(
        self, dataset: ImageDataset | AudioDataset, rows: Sequence[int] | IntArray | None = None
    ) -> None:
        self._dataset = dataset
        self._rows = np.arange(len(dataset)) if rows is None else np.asarray(rows)
        self._position = 0
        self._name = f"{dataset.name} ({sha256_hex(self._rows.astype(np.int64).tobytes())[:12]})"

    @classmethod
    def by_name(cls, name: str) -> Self:
        """All rows of a data set by name: ``mnist``, ``cifar10``, ``tomato`` or ``speech_commands``.

        Raises:
            SourceError: an unknown data set, or its files are missing; nothing is downloaded.
        """
        if name not in LOADERS:
            raise SourceError(f"unknown data set {name!r}; use {', '.join(LOADERS)}", code="source-url")
        try:
            return cls(load(name))
        except InputError as error:
            raise SourceError(str(error), code=error.code) from error

    def __len__(self) -> int:
        """The number of samples, including those before the cursor."""
        return len(self._rows)

    @property
    def cursor(self) -> str | None:
        """Number of samples yielded so far, and the name of the set with a digest of the rows."""
        return f"{self._position} of {self._name}"

    def seek(self, cursor: str) -> None:
        """Continue after the samples yielded before; from the start for other rows or another set.

        Raises:
            SourceError: not a position in this source.
        """
        position, _, name = cursor.partition(" of ")
        if name != self._name:
            position = "0"
        if not position.isdecimal() or int(position) > len(self._rows):
            raise SourceError(f"{cursor!r} is not a position from 0 to {len(self._rows)} in {self._name}")
        self._position = int(position)

    def batches(self, max_samples: int) -> Iterator[list[Sample]]:
        """Lists of up to ``max_samples`` samples."""
        while self._position < len(self._rows):
            rows = self._rows[self._position : self._position + max_samples]
            batch = list(self._dataset.samples(rows.tolist()))
            self._position += len(batch)
            yield batch
