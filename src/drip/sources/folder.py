"""A folder of files as a stream, in the order of their paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from drip.errors import SourceError
from drip.media import MEDIA_TYPES
from drip.sources.messages import HEAD_BYTES, printable, rejected, short_id
from drip.types import Sample

MAX_BYTES = 2**28
"""Largest file that is read into memory; an image of as many pixels as an input contract takes fits."""


class FolderSource:
    """Every image, audio file and array below a folder, in lexical order of the relative paths.

    The identity of a sample is its relative path, its time the file's modification time. With
    ``class_names`` the name of the folder that a file lies in is its true label. Pipes and devices are left
    out. A file of more than 256 MiB comes as a refused sample with its first 1024 bytes.

    Delivery: at least once. Files are never touched; the cursor is the folder and the path of the last
    file, so a restarted run continues behind it, and a run on another folder starts at its first file.
    Files that appear later and sort earlier are not seen by it.

    Args:
        folder: The folder; links to folders are not followed, hidden files and folders left out.
        class_names: Names of the classes in the order of the logits; or None for unlabelled files.

    Raises:
        SourceError: no such folder, one that cannot be listed, or no file of a known type in it.
    """

    def __init__(self, folder: str | Path, class_names: Sequence[str] | None = None) -> None:
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise SourceError(f"a folder is needed, got {str(folder)!r}; check the path")
        self._classes = {name: index for index, name in enumerate(class_names or ())}
        self._paths = dict(sorted(self._find()))
        if not self._paths:
            raise SourceError(
                f"files with the suffixes {', '.join(MEDIA_TYPES)} are needed, got none below {folder}"
            )
        self._last: str | None = None

    def __len__(self) -> int:
        """The number of files, those behind the cursor included."""
        return len(self._paths)

    @property
    def subfolders(self) -> tuple[str, ...]:
        """Sorted names of the folders that files lie in: the class names of a labelled folder."""
        return tuple(sorted({path.parent.name for path in self._paths.values()} - {""}))

    @property
    def cursor(self) -> str | None:
        """The folder, two slashes, and the relative path of the last yielded file."""
        return None if self._last is None else f"{self._place}//{self._last}"

    def seek(self, cursor: str) -> None:
        """Continue behind that file, whether it still exists or not; at the start for another folder."""
        place, _, last = cursor.rpartition("//")
        self._last = last if place == self._place else None

    def batches(self, max_samples: int) -> Iterator[list[Sample]]:
        """Lists of up to ``max_samples`` samples.

        Raises:
            SourceError: a file that was listed cannot be read.
        """
        last = self._last
        remaining = [name for name in self._paths if last is None or name > last]
        for start in range(0, len(remaining), max_samples):
            chunk = remaining[start : start + max_samples]
            batch = [self._read(name) for name in chunk]
            self._last = chunk[-1]
            yield batch

    @property
    def _place(self) -> str:
        return printable(self._folder.resolve())

    def _find(self) -> Iterator[tuple[str, Path]]:
        for root, folders, names in os.walk(self._folder, onerror=self._refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                place = Path(root) / name
                if place.suffix.lower() in MEDIA_TYPES and not name.startswith(".") and place.is_file():
                    path = place.relative_to(self._folder)
                    yield printable(path), path

    def _refuse(self, error: OSError) -> None:
        raise SourceError(f"a readable folder is needed at {error.filename}, got: {error}") from error

    def _read(self, name: str) -> Sample:
        path = self._paths[name]
        place = self._folder / path
        try:
            with place.open("rb") as file:
                n_bytes = place.stat().st_size
                data = file.read(HEAD_BYTES if n_bytes > MAX_BYTES else MAX_BYTES)
                modified = place.stat().st_mtime
        except OSError as error:
            raise SourceError(f"a readable file is needed at {place}, got: {error}") from error
        if n_bytes > MAX_BYTES:
            return rejected(name, data, f"a file of at most {MAX_BYTES} bytes is needed, got {n_bytes}")
        return Sample(
            id=short_id(name),
            data=data,
            media_type=MEDIA_TYPES[place.suffix.lower()],
            label=self._classes.get(place.parent.name),
            time_s=modified,
        )
