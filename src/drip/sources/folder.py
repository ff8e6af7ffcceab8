"""A folder of files as a stream, in the order of their paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from drip.errors import SourceError
from drip.media import MEDIA_TYPES
from drip.sources.messages import HEAD_BYTES, printable, rejected, short_id
from drip.sources.url import require_folder
from drip.types import Sample

MAX_BYTES = 2**28
"""Largest file that is read into memory. An uncompressed image of 64 MP, the default limit of an input spec,
fits."""


class FolderSource:
    """Every image, audio file and array below a folder, in lexical order of their relative paths.

    The id of a sample is its relative path, its time the file's modification time. With ``class_names``, the
    name of the folder that contains a file is its label. Pipes and devices are skipped. A file of more than
    256 MiB becomes a rejected sample with its first 1024 bytes.

    Delivery: at least once. Files are never changed; the cursor is the folder and the path of the last file,
    so a restarted run continues after it, and a run on another folder starts at its first file. Files that
    appear later but sort earlier are not seen: watch the folder instead.

    Args:
        folder: The folder. Links to folders are not followed; hidden files and folders are skipped.
        class_names: Names of the classes in the order of the logits; or None for unlabelled files.

    Raises:
        SourceError: the folder does not exist, cannot be listed, or has no file of a known type.
    """

    def __init__(self, folder: str | Path, class_names: Sequence[str] | None = None) -> None:
        self._folder = Path(folder)
        require_folder(self._folder)
        self._classes = {name: index for index, name in enumerate(class_names or ())}
        self._paths = dict(sorted(self._find()))
        if not self._paths:
            raise SourceError(
                f"{folder} contains no files with the suffixes {', '.join(MEDIA_TYPES)}",
                code="source-empty",
            )
        self._last: str | None = None

    def __len__(self) -> int:
        """The number of files, including those before the cursor."""
        return len(self._paths)

    @property
    def subfolders(self) -> tuple[str, ...]:
        """Sorted names of the folders that contain files: the class names of a labelled folder."""
        return tuple(sorted({path.parent.name for path in self._paths.values()} - {""}))

    @property
    def cursor(self) -> str | None:
        """The folder, two slashes, and the relative path of the last yielded file."""
        return None if self._last is None else f"{self._place}//{self._last}"

    def seek(self, cursor: str) -> None:
        """Continue after that file, whether it still exists or not; from the start for another folder."""
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
        for root, folders, names in os.walk(self._folder, onerror=self._fail):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                place = Path(root) / name
                if place.suffix.lower() in MEDIA_TYPES and not name.startswith(".") and place.is_file():
                    path = place.relative_to(self._folder)
                    yield printable(path), path

    def _fail(self, error: OSError) -> None:
        raise SourceError(f"cannot list {error.filename}: {error}; make it readable or remove it") from error

    def _read(self, name: str) -> Sample:
        path = self._paths[name]
        place = self._folder / path
        try:
            with place.open("rb") as file:
                n_bytes = place.stat().st_size
                data = file.read(HEAD_BYTES if n_bytes > MAX_BYTES else MAX_BYTES)
                modified = place.stat().st_mtime
        except OSError as error:
            # Not a rejected sample: the file may be fine, and the run would never come back to it.
            raise SourceError(f"cannot read {place}: {error}; make it readable or remove it") from error
        if n_bytes > MAX_BYTES:
            return rejected(name, data, f"the file has {n_bytes} bytes, more than {MAX_BYTES}")
        return Sample(
            id=short_id(name),
            data=data,
            media_type=MEDIA_TYPES[place.suffix.lower()],
            label=self._classes.get(place.parent.name),
            time_s=modified,
        )
