"""Members of archives, read in place: nothing is ever unpacked to a path that an archive names."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

Members = Iterator[tuple[str, Callable[[], bytes]]]
"""Names with a function that reads the member; of a compressed tar it must be called before the next name."""

_CHUNK = 1 << 20


def zip_members(path: Path) -> Members:
    """All members of a zip.

    Raises:
        zipfile.BadZipFile: no zip, or a damaged member.
        OSError: the file cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield name, partial(archive.read, name)


def tar_gz_members(path: Path) -> Members:
    """The regular files of a gzip-compressed tar, in one pass; the checksum at the end is checked.

    Raises:
        tarfile.TarError: no tar.
        EOFError: the file is cut.
        OSError: no gzip, a wrong checksum, or the file cannot be read.
        zlib.error: damaged bytes.
    """
    with gzip.open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name, content.read
        while stream.read(_CHUNK):
            pass
