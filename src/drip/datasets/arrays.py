"""Labelled images and audio clips in memory: model inputs, encoded samples, sizes. Reads no files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import soundfile
from numpy.typing import NDArray

from drip.errors import InputError
from drip.media import InputSpec, encode_png
from drip.types import IntArray, Sample

_Rows = Sequence[int] | IntArray


@dataclass(frozen=True)
class ImageDataset:
    """Labelled images of equal size in memory.

    Attributes:
        name: Name of the set and the part, such as ``MNIST, all 70,000 digits``.
        images: uint8, shape (n, height, width) or (n, height, width, 3).
        labels: True classes, int64, shape (n,).
        class_names: Names in the order of the labels.
        groups: Rows of one group must stay on one side of a split (photographs of one leaf), int64, shape
            (n,); None if rows are independent. See :func:`drip.datasets.split_rows`.
        encoded: The original file of every row; None to encode samples as PNG.
        media_type: Media type of the samples; ``image/png`` if ``encoded`` is None.

    Raises:
        InputError: there is not exactly one label, group or file per image.
    """

    name: str
    images: NDArray[np.uint8]
    labels: IntArray
    class_names: tuple[str, ...]
    groups: IntArray | None = None
    encoded: tuple[bytes, ...] | None = None
    media_type: str = "image/png"

    def __post_init__(self) -> None:
        """Check that there is one label, group and file per image."""
        check_columns(len(self.images), labels=self.labels, groups=self.groups, encoded=self.encoded)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    @property
    def spec(self) -> InputSpec:
        """How the samples of this set become inputs: values in [0, 1], channels first."""
        height, width = self.images.shape[1:3]
        return InputSpec(shape=(1 if self.images.ndim == 3 else 3, height, width))

    def inputs(self, rows: _Rows) -> NDArray[np.float32]:
        """The images of the given rows as :attr:`spec` prepares the samples, shape (n, C, H, W)."""
        pixels = self.images[np.asarray(rows, dtype=np.int64)].astype(np.float32) / np.float32(255)
        return pixels[:, None] if pixels.ndim == 3 else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    def samples(self, rows: Iterable[int]) -> Iterator[Sample]:
        """The given rows as encoded samples with their true labels, encoded one at a time.

        The id is the row with six digits. The bytes are those of :attr:`encoded`, else of a PNG file.
        """
        for row in rows:
            yield Sample(
                id=f"{row:06d}", data=self._data(row), media_type=self.media_type, label=int(self.labels[row])
            )

    def encoded_sizes(self, rows: _Rows) -> IntArray:
        """Encoded size of each row in :meth:`samples`, in bytes, int64, shape (n,).

        Complexity: without :attr:`encoded`, every row is encoded; about 0.1 ms per row of 32 x 32.
        """
        return np.array([len(self._data(row)) for row in np.asarray(rows, dtype=np.int64)], dtype=np.int64)

    def _data(self, row: int) -> bytes:
        return encode_png(self.images[row]) if self.encoded is None else self.encoded[row]


def check_columns(n: int, **columns: Sequence[object] | IntArray | None) -> None:
    """Check that every column has one entry per sample.

    Raises:
        InputError: a column has a different length.

    >>> check_columns(2, labels=[0, 1], groups=None)
    """
    for name, column in columns.items():
        if column is not None and len(column) != n:
            raise InputError(
                f"{name} has {len(column)} entries for {n} samples; select the same rows in every column"
            )


def duplicate_groups(images: NDArray[np.uint8]) -> IntArray | None:
    """One group per distinct image, so exact copies are never on both sides of a split.

    Groups are numbered in the order of their first row.

    Args:
        images: uint8, shape (n, ...).

    Returns:
        int64, shape (n,); None if no image occurs twice.

    >>> duplicate_groups(np.array([[1, 2], [0, 0], [1, 2]], np.uint8)).tolist()
    [0, 1, 0]
    >>> duplicate_groups(np.array([[1, 2], [0, 0]], np.uint8)) is None
    True
    """
    seen: dict[bytes, int] = {}
    groups = [
        seen.setdefault(blake2b(image.tobytes(), digest_size=16).digest(), len(seen)) for image in images
    ]
    return None if len(seen) == len(groups) else np.array(groups, dtype=np.int64)


@dataclass(frozen=True)
class AudioDataset:
    """Labelled mono clips of equal length in memory.

    Attributes:
        name: Name of the set and the part, such as ``Speech Commands, 9 words, 3,600 clips``.
        clips: 16-bit PCM, int16, shape (n, n_samples).
        sample_rate: Hz.
        labels: True classes, int64, shape (n,).
        class_names: Names in the order of the labels.
        groups: Rows of one group must stay on one side of a split (one speaker), int64, shape (n,); None
            if rows are independent. See :func:`drip.datasets.split_rows`.
        encoded: The original file of every row; None to encode samples as FLAC.
        media_type: Media type of the samples; ``audio/flac`` if ``encoded`` is None.

    Raises:
        InputError: there is not exactly one label, group or file per clip.
    """

    name: str
    clips: NDArray[np.int16]
    sample_rate: int
    labels: IntArray
    class_names: tuple[str, ...]
    groups: IntArray | None = None
    encoded: tuple[bytes, ...] | None = None
    media_type: str = "audio/flac"

    def __post_init__(self) -> None:
        """Check that there is one label, group and file per clip."""
        check_columns(len(self.clips), labels=self.labels, groups=self.groups, encoded=self.encoded)

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.labels)

    @property
    def spec(self) -> InputSpec:
        """How the samples of this set become inputs: values in [-1, 1), one channel, cut or zero-padded."""
        return InputSpec(shape=(1, self.clips.shape[1]), resize="crop", sample_rate_hz=self.sample_rate)

    def inputs(self, rows: _Rows) -> NDArray[np.float32]:
        """The clips of the given rows as :attr:`spec` prepares the samples, shape (n, 1, n_samples)."""
        chosen = self.clips[np.asarray(rows, dtype=np.int64)]
        return (chosen.astype(np.float32) / np.float32(32768))[:, None]

    def samples(self, rows: Iterable[int]) -> Iterator[Sample]:
        """The given rows as encoded samples with their true labels, encoded one at a time.

        The id is the row with six digits. The bytes are those of :attr:`encoded`, else of a FLAC file.
        """
        for row in rows:
            yield Sample(
                id=f"{row:06d}", data=self._data(row), media_type=self.media_type, label=int(self.labels[row])
            )

    def encoded_sizes(self, rows: _Rows) -> IntArray:
        """Encoded size of each row in :meth:`samples`, in bytes, int64, shape (n,).

        Complexity: without :attr:`encoded`, every row is encoded; about 1 ms per second of audio.
        """
        return np.array([len(self._data(row)) for row in np.asarray(rows, dtype=np.int64)], dtype=np.int64)

    def _data(self, row: int) -> bytes:
        if self.encoded is None:
            return encode_flac(self.clips[row], self.sample_rate)
        return self.encoded[row]


def encode_flac(clip: NDArray[np.int16], sample_rate: int) -> bytes:
    """A mono clip, int16 of shape (n_samples,), as lossless FLAC.

    >>> encode_flac(np.zeros(1600, np.int16), 16000)[:4]
    b'fLaC'
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, clip, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
