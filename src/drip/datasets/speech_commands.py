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

from drip.datasets.arrays import AudioDataset
from drip.errors import InputError
from drip.files.fetch import (
    Progress,
    RemoteFile,
    cache_folder,
    data_places,
    fetch,
    missing,
    tar_gz_members,
    zip_members,
)

SUBSET = "speech_commands_9words.zip"
ARCHIVES = {"0.02": "speech_commands_v0.02.tar.gz", "0.01": "speech_commands_v0.01.tar.gz"}
SOURCES: Mapping[str, RemoteFile] = {
    "0.02": RemoteFile(
        url=f"http://download.tensorflow.org/data/{ARCHIVES['0.02']}",
        path=ARCHIVES["0.02"],
        n_bytes=2_428_923_189,
        sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    ),
    "0.01": RemoteFile(
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
    sources: Mapping[str, RemoteFile] = SOURCES,
) -> AudioDataset:
    """Speech Commands: one spoken word of one second per clip, 16 kHz, 16 bit, mono.

    Version 0.01 has 64,721 clips of 30 words, version 0.02 105,829 clips of 35 words. Read from the original
    archives or from ``speech_commands_9words.zip``: 400 clips of version 0.01 each of down, eight, five, go,
    left, one, right, up and zero. Clips that are shorter than a second are padded with zeros at the end.
    Samples from FLAC files are those files; WAV files are encoded as FLAC. A clip takes 32 kB of memory; all
    of version 0.02 takes 3.4 GB.

    Args:
        words: The words to load, in any order. None: all words in the archive.
        version: ``0.01`` or ``0.02``: only that original archive. None: the first of the subset,
            version 0.02 and version 0.01 that has all words; a download gets version 0.02.
        folder: The only folder to search. If the set is not in it and ``download`` is True, it is downloaded
            into the cache. Default: the folder that DRIP_DATA names, then the cache.
        download: Download the set into the cache if it is not found.
        cache: Folder of downloads. Default: DRIP_CACHE, else ``~/.cache/drip``.
        progress: Called during a download with the bytes so far and the total.
        sources: What to download for each version: the original archives, or copies of them elsewhere.

    Returns:
        Rows sorted by word, then by file name; labels number the sorted words. ``groups`` are the speakers
        (the part of the file name before ``_nohash_``), over all words. Rows of the subset are not rows of
        the full archives.

    Raises:
        InputError: an unknown version, no word, the set or a word is not found, or a file is damaged.
        DripError: the download fails.

    References:
        Warden, Speech Commands: A dataset for limited-vocabulary speech recognition, arXiv:1804.03209.
    """
    if version is not None and version not in ARCHIVES:
        raise InputError(f"version must be one of {', '.join(sorted(ARCHIVES))} or None, got {version!r}")
    wanted = None if words is None else frozenset([words] if isinstance(words, str) else words)
    if wanted is not None and not wanted:
        raise InputError("words is empty; name at least one word, or pass None to load all")
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
            message = f"{path} is damaged ({error}); download it again"
            raise InputError(message, code="dataset-damaged") from error
        absent = sorted((wanted or frozenset()) - {clip.word for clip in clips})
        if clips and not absent:
            return _dataset(clips, path)
        lacking[path] = f"{path} without {', '.join(absent) or 'any clip'}"
    if lacking:
        message = f"no archive has all words: {'; '.join(lacking.values())}"
        raise InputError(message, code="dataset-missing")
    raise missing("speech_commands", " or ".join(names), places, sources[version or "0.02"].n_bytes)


def _fetched(source: RemoteFile, cache: str | Path | None, progress: Progress | None) -> Iterator[Path]:
    """The downloaded archive; a generator, so nothing is downloaded if a local archive is enough."""
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
        raise OSError(
            f"{name} has a sample rate of {rate} Hz and shape {pcm.shape}, not {SAMPLE_RATE} Hz mono"
        )
    clip = np.zeros(N_SAMPLES, dtype=np.int16)
    clip[: len(pcm)] = pcm[:N_SAMPLES]
    return clip
