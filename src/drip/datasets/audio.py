"""Labelled audio clips of equal length in memory: model inputs, encoded samples, sizes. Reads no files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

from drip.datasets.images import check_columns
from drip.media import InputSpec
from drip.types import IntArray, Sample

_Rows = Sequence[int] | IntArray


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
        InputError: labels, groups or files that are not one per clip.
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
        """Bytes of each row as :meth:`samples` gives it, int64, shape (n,).

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
