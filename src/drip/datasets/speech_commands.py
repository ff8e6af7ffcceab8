"""Speech Commands: spoken words of one second at 16 kHz, with their speakers."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from drip.datasets.audio import AudioDataset
from drip.errors import InputError
from drip.files.fetch import (
    Progress,
    Source,
    cache_folder,
    data_places,
    fetch,
    missing,
    tar_gz_members,
    zip_members,
)

SUBSET = "speech_commands_9words.zip"
ARCHIVES = {"0.02": "speech_commands_v0.02.tar.gz", "0.01": "speech_commands_v0.01.tar.gz"}
SOURCES: Mapping[str, Source] = {
    "0.02": Source(
        url=f"http://download.tensorflow.org/data/{ARCHIVES['0.02']}",
        path=ARCHIVES["0.02"],
        n_bytes=2_428_923_189,
        sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    ),
    "0.01": Source(
        url=f"http://download.tensorflow.org/data/{ARCHIVES['0.01']}",
        path=ARCHIVES["0.01"],
        n_bytes=1_489_096_277,
        sha256="743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
    ),
}
N_SAMPLES = 16_000
SAMPLE_RATE = 16_000

_CLIP = re.compile(
    r"(?:\./)?(?P<word>[a-z]+)/(?P<speaker>[0-9a-f]+)_nohash_(?P<number>[0-9]+)\.(?P<kind>flac|wav)"
)
_DAMAGE = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    soundfile.SoundFileError,
)


def load_speech_commands(
    words: Iterable[str] | None = None,
    *,
    version: str | None = None,
    folder: str | Path | None = None,
    download: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    sources: Mapping[str, Source] = SOURCES,
) -> AudioDataset:
    """Speech Commands: one spoken word of one second per clip, 16 kHz, 16 bit, mono.

    Version 0.01 has 64,721 clips of 30 words, version 0.02 105,829 clips of 35 words. Read from the original
    archives or from ``speech_commands_9words.zip``: 400 clips of version 0.01 each of down, eight, five, go,
    left, one, right, up and zero. Clips that are shorter than a second are padded with zeros at the end. The
    samples are the FLAC files as they were found; where the originals are WAV, FLAC files are made. A clip
    takes 32 kB of memory, all of version 0.02 3.4 GB.

    Args:
        words: The words to load, in any order. None: all that are there.
        version: ``0.01`` or ``0.02``: only that original archive. None: the first of the subset,
            version 0.02 and version 0.01 that has all words; version 0.02 is fetched.
        folder: The only folder to search; where it lacks the set and ``download`` is set, the cache is next.
            Default: the one that DRIP_DATA names, then the cache.
        download: Fetch what is nowhere into the cache.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Called with the bytes that are there and the bytes of the whole while a file is fetched.
        sources: What is fetched for each version: the original archives, or copies of them elsewhere.

    Returns:
        Rows sorted by word, then by file name; labels number the sorted words. ``groups`` are the speakers
        (the part of the file name before ``_nohash_``), over all words. Rows of the subset are not rows of
        the full archives.

    Raises:
        InputError: no such version, no word, the set or a word is nowhere, or a file is damaged.
        DripError: the download fails.

    References:
        Warden, Speech Commands: A dataset for limited-vocabulary speech recognition, arXiv:1804.03209.
    """
    if version is not None and version not in ARCHIVES:
        raise InputError(f"version must be one of {', '.join(sorted(ARCHIVES))} or None, got {version!r}")
    wanted = None if words is None else frozenset([words] if isinstance(words, str) else words)
    if wanted is not None and not wanted:
        raise InputError("at least one word is needed, got none; None loads all that are there")
    names = (SUBSET, *ARCHIVES.values()) if version is None else (ARCHIVES[version],)
    places = data_places(folder, cache)
    found = [place / name for place in places for name in names if (place / name).is_file()]
    lacking: dict[Path, str] = {}
    for path in chain(found, _fetched(sources[version or "0.02"], cache, progress) if download else ()):
        if path in lacking:
            continue
        try:
            clips = _read(path, wanted)
        except _DAMAGE as error:
            raise InputError(
                f"a complete archive is needed at {path}, got: {error}; fetch it again"
            ) from error
        absent = sorted((wanted or frozenset()) - {clip.word for clip in clips})
        if clips and not absent:
            return _dataset(clips, path)
        lacking[path] = f"{path} without {', '.join(absent) or 'any clip'}"
    if lacking:
        raise InputError(f"an archive with all words is needed, got {'; '.join(lacking.values())}")
    raise missing("speech_commands", " or ".join(names), places, sources[version or "0.02"].n_bytes)


def _fetched(source: Source, cache: str | Path | None, progress: Progress | None) -> Iterator[Path]:
    """The archive from its source, when it is asked for."""
    yield fetch(source, cache_folder(cache), progress)


@dataclass(frozen=True, slots=True)
class _Clip:
    word: str
    file_name: str
    speaker: str
    pcm: NDArray[np.int16]
    encoded: bytes | None


def _dataset(clips: Sequence[_Clip], path: Path) -> AudioDataset:
    clips = sorted(clips, key=lambda clip: (clip.word, clip.file_name))
    words = sorted({clip.word for clip in clips})
    archive = path.name.partition(".tar")[0].removesuffix(".zip")
    speakers = {speaker: number for number, speaker in enumerate(sorted({clip.speaker for clip in clips}))}
    encoded = tuple(clip.encoded for clip in clips if clip.encoded is not None)
    return AudioDataset(
        name=f"Speech Commands ({archive}), {len(words)} words, {len(clips):,} clips",
        clips=np.stack([clip.pcm for clip in clips]),
        sample_rate=SAMPLE_RATE,
        labels=np.array([words.index(clip.word) for clip in clips], dtype=np.int64),
        class_names=tuple(words),
        groups=np.array([speakers[clip.speaker] for clip in clips], dtype=np.int64),
        encoded=encoded if len(encoded) == len(clips) else None,
    )


def _read(path: Path, words: frozenset[str] | None) -> list[_Clip]:
    members = zip_members if path.suffix == ".zip" else tar_gz_members
    clips = []
    for name, read in members(path):
        found = _CLIP.fullmatch(name)
        if found is None or (words is not None and found["word"] not in words):
            continue
        data = read()
        clips.append(
            _Clip(
                word=found["word"],
                file_name=f"{found['speaker']}_nohash_{found['number']}",
                speaker=found["speaker"],
                pcm=_decode(data, name),
                encoded=data if found["kind"] == "flac" else None,
            )
        )
    return clips


def _decode(data: bytes, name: str) -> NDArray[np.int16]:
    pcm, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    if rate != SAMPLE_RATE or pcm.ndim != 1:
        raise OSError(f"{name} of {rate} Hz and shape {pcm.shape} in place of {SAMPLE_RATE} Hz mono")
    clip = np.zeros(N_SAMPLES, dtype=np.int16)
    clip[: len(pcm)] = pcm[:N_SAMPLES]
    return clip
