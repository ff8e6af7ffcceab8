"""A folder of files as a stream, in the order of their paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from drip.errors import StreamError
from drip.media import MEDIA_TYPES
from drip.types import Sample


class FolderSource:
    """Every image, audio file and array below a folder, in lexical order of the relative paths.

    The identity of a sample is its relative path, its time the file's modification time. With
    ``class_names`` the name of the folder that a file lies in is its true label.

    Delivery: at least once. Files are never touched; the cursor is the path of the last file, so a
    restarted run continues behind it. Files that appear later and sort earlier are not seen by it.

    Args:
        folder: The folder; links to folders are not followed.
        class_names: Names of the classes in the order of the logits; or None for unlabelled files.

    Raises:
        StreamError: no such folder, or no file of a known type in it.
    """

    def __init__(self, folder: str | Path, class_names: Sequence[str] | None = None) -> None:
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise StreamError(f"a folder is needed, got {str(folder)!r}; check the path")
        self._classes = {name: index for index, name in enumerate(class_names or ())}
        self._paths = sorted(self._find())
        if not self._paths:
            raise StreamError(
                f"files with the suffixes {', '.join(MEDIA_TYPES)} are needed, got none below {folder}"
            )
        self._cursor: str | None = None

    def __len__(self) -> int:
        """The number of files, those behind the cursor included."""
        return len(self._paths)

    @property
    def subfolders(self) -> tuple[str, ...]:
        """Sorted names of the folders that files lie in: the class names of a labelled folder."""
        return tuple(sorted({Path(path).parent.name for path in self._paths} - {""}))

    @property
    def cursor(self) -> str | None:
        """Relative path of the last yielded file."""
        return self._cursor

    def seek(self, cursor: str) -> None:
        """Continue behind the file with this relative path, whether it still exists or not."""
        self._cursor = cursor

    def batches(self, max_samples: int) -> Iterator[list[Sample]]:
        """Lists of up to ``max_samples`` samples.

        Raises:
            StreamError: a file that was listed cannot be read.
        """
        cursor = self._cursor
        remaining = [path for path in self._paths if cursor is None or path > cursor]
        for start in range(0, len(remaining), max_samples):
            chunk = remaining[start : start + max_samples]
            batch = [self._read(path) for path in chunk]
            self._cursor = chunk[-1]
            yield batch

    def _find(self) -> Iterator[str]:
        for root, _, names in os.walk(self._folder):
            for name in names:
                if Path(name).suffix.lower() in MEDIA_TYPES and not name.startswith("."):
                    yield (Path(root) / name).relative_to(self._folder).as_posix()

    def _read(self, path: str) -> Sample:
        place = self._folder / path
        try:
            data, modified = place.read_bytes(), place.stat().st_mtime
        except OSError as error:
            raise StreamError(f"a readable file is needed at {place}, got: {error}") from error
        return Sample(
            id=path,
            data=data,
            media_type=MEDIA_TYPES[place.suffix.lower()],
            label=self._classes.get(place.parent.name),
            time_s=modified,
        )
