"""Exports kept samples in layouts that training tools read: an image folder, or WebDataset shards.

Reads any iterable of stored samples. An output appears complete or not at all.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from drip.errors import DripError, ExportError, InputError
from drip.files import atomic_writer, sync_directory, write_atomically
from drip.media import SUFFIXES
from drip.store.records import LABELS, Labels, StoredSample, class_of

# Types that a store may have besides those that DRIP decodes. JSON samples get ".data.json", because
# ".json" is the record of a sample.
_FURTHER_EXTENSIONS = {
    "image/tiff": "tif",
    "audio/x-wav": "wav",
    "audio/vnd.wave": "wav",
    "audio/x-flac": "flac",
    "application/json": "data.json",
    "text/plain": "txt",
}
_EXTENSIONS = {kind: suffix.removeprefix(".") for kind, suffix in SUFFIXES.items()} | _FURTHER_EXTENSIONS
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_NAME = 80  # characters; file systems allow 255 bytes for the whole name


def file_stem(record: StoredSample) -> str:
    """A file name for a sample: unique by its key, readable by its id, and never a path."""
    # Ids come from outside. A slash could leave the folder, a leading dot would hide the file, and WebDataset
    # treats everything after the first dot as the extension.
    readable = _UNSAFE.sub("-", record.sample.id).strip("-")[:_MAX_NAME]
    return f"{record.key:09d}-{readable}" if readable else f"{record.key:09d}"


def extension_of(media_type: str) -> str:
    """The usual file extension of a media type, or ``bin``.

    >>> extension_of("image/png"), extension_of("application/x-unknown")
    ('png', 'bin')
    """
    return _EXTENSIONS.get(media_type.partition(";")[0].strip().lower(), "bin")


def record_json(
    record: StoredSample, labels: Labels, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Everything about a sample except its bytes, as JSON values.

    Infinite numbers become text, because JSON has none. ``class_name`` is null without a class or names.
    """
    decision = record.decision
    index = class_of(record, labels)
    return {
        "annotator": record.annotator,
        "class": index,
        "class_name": None if index is None or class_names is None else _class_name(index, class_names),
        "content_hash": record.content_hash,
        "human_label": record.human_label,
        "id": record.sample.id,
        "keep_probability": decision.keep_probability,
        "key": record.key,
        "label_state": record.label_state.value,
        "media_type": record.sample.media_type,
        "meta": dict(record.sample.meta),
        "policy_digest": record.policy_digest,
        "predicted_class": record.predicted_class,
        "priority": _json_number(decision.priority),
        "reason": decision.reason,
        "scores": {name: _json_number(value) for name, value in record.scores.items()},
        "time_s": record.sample.time_s,
        "true_label": record.sample.label,
    }


def export_image_folder(
    records: Iterable[StoredSample],
    folder: Path,
    *,
    labels: Labels,
    class_names: Sequence[str] | None = None,
) -> int:
    """Write ``<folder>/<class name>/<key>-<id>.<extension>`` and ``<folder>/records.jsonl``.

    This is the layout of ``torchvision.datasets.ImageFolder``. Everything is written and synced in a
    temporary folder beside the target, which is renamed at the end. Without any labelled sample nothing is
    created.

    Args:
        records: The samples, such as a store or ``store.samples(...)``.
        folder: A path that does not exist yet, or an empty folder.
        labels: ``"true"``, ``"predicted"`` or ``"human"``; samples without such a label are left out.
        class_names: Names by class index; None uses the numbers.

    Returns:
        How many samples were written.

    Raises:
        ExportError: the folder is not empty or cannot be written, or a class index has no name.
        InputError: unknown ``labels``, or names that are not usable as distinct folder names.
    """
    _require_labels(labels)
    if class_names is not None:
        require_names(class_names)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        message = f"{folder} already exists and is not an empty folder; choose another"
        raise ExportError(message, code="path-exists")
    if not folder.parent.exists():
        message = f"{folder.parent} does not exist; create it or choose another folder"
        raise ExportError(message, code="path-missing")
    try:
        # Beside the target, since a rename is atomic only inside one file system.
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    except OSError as error:
        message = f"{folder}: cannot be created ({error}); choose another folder"
        raise ExportError(message, code="path-not-writable") from error
    try:
        n_written = 0
        lines: list[str] = []
        for record in records:
            index = class_of(record, labels)
            if index is None:
                continue
            place = temporary / _class_name(index, class_names)
            place.mkdir(exist_ok=True)
            path = place / f"{file_stem(record)}.{extension_of(record.sample.media_type)}"
            write_atomically(path, record.sample.data)
            line = {"file": f"{place.name}/{path.name}", **record_json(record, labels, class_names)}
            lines.append(json.dumps(line, sort_keys=True) + "\n")
            n_written += 1
        if not n_written:
            temporary.rmdir()
            return 0
        # Collected and written once: an unfinished export must not look like a complete one.
        write_atomically(temporary / "records.jsonl", "".join(lines).encode())
        temporary.chmod(0o755)  # mkdtemp() makes folders that only their owner can read
        temporary.replace(folder)
        sync_directory(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if _is_write_failure(error):
            raise _write_error(folder, error) from error
        raise
    return n_written


def export_webdataset(
    records: Iterable[StoredSample],
    pattern: str,
    *,
    labels: Labels,
    class_names: Sequence[str] | None = None,
    max_count: int = 10_000,
) -> list[Path]:
    """Write WebDataset shards: tar files in which the members of a sample share the name before the dot.

    A sample has ``<stem>.cls`` (class index, if it has one), ``<stem>.<extension>`` (its bytes) and
    ``<stem>.json`` (scores, decision, labels), sorted by name. Equal samples produce equal bytes, because
    owners, times and modes are constant. Each shard is synced and renamed into place when it is complete.

    Args:
        records: The samples.
        pattern: Path with one number field, such as ``out/shard-%06d.tar``.
        labels: Which label is in ``.cls``; samples without such a label are written without it.
        class_names: Names by class index, for ``class_name`` in ``.json``.
        max_count: Samples per shard.

    Returns:
        The shards' paths, in order.

    Raises:
        ExportError: the folder cannot be written, a shard exists already, or a class has no name.
        InputError: unknown ``labels``, ``max_count`` below 1, or a pattern without a number field.
    """
    _require_labels(labels)
    if isinstance(max_count, bool) or not isinstance(max_count, int) or max_count < 1:
        message = f"max_count={max_count!r} is not a positive integer"
        raise InputError(message)
    try:
        # Formatted rather than parsed: any pattern that numbers the shards is fine.
        different = pattern % 0 != pattern % 1
    except (TypeError, ValueError):
        different = False
    if not different:
        message = f"pattern={pattern!r} has no number field; add one, as in shard-%06d.tar"
        raise InputError(message)
    paths: list[Path] = []
    remaining = iter(records)
    while (first := next(remaining, None)) is not None:
        path = Path(pattern % len(paths))
        if path.exists():
            message = f"{path} already exists; remove it or choose another pattern"
            raise ExportError(message, code="path-exists")
        try:
            with (
                atomic_writer(path) as handle,
                tarfile.open(fileobj=handle, mode="w", format=tarfile.GNU_FORMAT) as tar,
            ):
                for record in chain([first], islice(remaining, max_count - 1)):
                    _add(tar, record, labels, class_names)
        except (OSError, DripError) as error:
            if _is_write_failure(error):
                raise _write_error(path, error) from error
            raise
        paths.append(path)
    return paths


def _is_write_failure(error: BaseException) -> bool:
    """True for errors of drip.files; errors while reading the records have different types."""
    return isinstance(error, OSError) or type(error) is DripError


def _write_error(target: Path, error: BaseException) -> ExportError:
    # drip.files names its temporary file, which the user has never seen: name the target instead.
    cause = error.__cause__ or error
    code = error.code if isinstance(error, DripError) else "path-not-writable"
    message = f"{target}: writing failed ({cause}); free some space or choose another path"
    return ExportError(message, code=code)


def _add(
    tar: tarfile.TarFile, record: StoredSample, labels: Labels, class_names: Sequence[str] | None
) -> None:
    for extension, data in _members(record, record_json(record, labels, class_names)):
        entry = tarfile.TarInfo(f"{file_stem(record)}.{extension}")
        entry.size = len(data)
        entry.mode = 0o444
        tar.addfile(entry, io.BytesIO(data))


def _members(record: StoredSample, facts: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    members = {
        extension_of(record.sample.media_type): record.sample.data,
        "json": json.dumps(facts, sort_keys=True).encode(),
    }
    if facts["class"] is not None:
        members["cls"] = str(facts["class"]).encode()
    yield from sorted(members.items())


def _class_name(index: int, class_names: Sequence[str] | None) -> str:
    if class_names is None:
        return str(index)
    if not 0 <= index < len(class_names):
        message = f"class_names has {len(class_names)} names, but a sample has class {index}; add names"
        raise ExportError(message, code="labels-invalid")
    return class_names[index]


def _require_labels(labels: str) -> None:
    if labels not in LABELS:
        message = f"labels={labels!r} does not exist; choose one of {', '.join(LABELS)}"
        raise InputError(message)


def require_names(class_names: Sequence[str]) -> None:
    """Check that names can be distinct folders.

    Raises:
        InputError: one cannot, or two are the same folder (code ``labels-invalid``).
    """
    for name in class_names:
        if (
            not name
            or name in {".", ".."}
            or name.startswith(".")
            or "/" in name
            or "\\" in name
            or "\0" in name
        ):
            message = (
                f"class name {name!r} is not usable as a folder name; leave out slashes and leading dots"
            )
            raise InputError(message, code="labels-invalid")
    # casefold(): on macOS and Windows "Cat" and "cat" are the same folder.
    if len({name.casefold() for name in class_names}) != len(class_names) or "records.jsonl" in class_names:
        message = f"class_names {list(class_names)!r} are not distinct, or one is records.jsonl; rename them"
        raise InputError(message, code="labels-invalid")


def _json_number(value: float) -> float | str:
    return value if abs(value) < float("inf") else repr(value)
