"""Result files: one JSON line per cell, appended as it finishes, safe against kills and second processes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from drip.errors import InputError
from experiments.cells import Cell, Unit, config_hash

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Record:
    """One line; the README lists the metrics.

    Attributes:
        cell: What was measured.
        config: Everything besides the code that the numbers depend on.
        metrics: Numbers by name.
        extra: What only one study has.
        commit: The commit that measured, with ``+`` when the tree differed from it.
        versions: Packages by name.
    """

    cell: Cell
    config: dict[str, Any]
    metrics: dict[str, float]
    extra: dict[str, Any] = field(default_factory=dict)
    commit: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def config_hash(self) -> str:
        """Hash of the configuration."""
        return config_hash(self.config)

    def to_json(self) -> str:
        """The line, without its end."""
        line = {
            "id": self.cell.id,
            **asdict(self.cell.unit),
            "arm": self.cell.arm,
            "settings": dict(self.cell.settings),
            "config": self.config,
            "config_hash": self.config_hash,
            "commit": self.commit,
            "versions": self.versions,
            "metrics": {name: round(value, 6) for name, value in self.metrics.items()},
            "extra": self.extra,
        }
        return json.dumps(line, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Record:
        """A line read back.

        Raises:
            InputError: the line is no record, or its id or hash does not fit its content.
        """
        try:
            line = json.loads(text)
            unit = Unit(line["study"], line["regime"], line["dataset"], line["seed"])
            record = cls(
                unit.cell(line["arm"], **line["settings"]),
                line["config"],
                line["metrics"],
                line["extra"],
                line["commit"],
                line["versions"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"a result line is needed, got {text[:80]!r}: {error!r}; "
                "remove the line, and its cell is measured again"
            ) from error
        wrong = {name: value for name, value in record.metrics.items() if not _finite(value)}
        if wrong:
            raise InputError(f"metrics must be finite numbers, got {wrong} in {record.cell.id!r}")
        if (record.cell.id, record.config_hash) != (line["id"], line["config_hash"]):
            raise InputError(f"id and hash must fit the line's content, got {line['id']!r}; was it edited?")
        return record


class Ledger:
    """The result files of a folder.

    Args:
        folder: Where ``<study>-<regime>-<dataset>.jsonl`` lie.
        locks: Folder for the claims of running processes; default ``.locks`` in ``folder``.
    """

    def __init__(self, folder: Path = RESULTS, locks: Path | None = None) -> None:
        self._folder = folder
        self._locks = locks or folder / ".locks"

    def path(self, unit: Unit) -> Path:
        """The file of a unit's records."""
        return self._folder / f"{unit.study}-{unit.regime}-{unit.dataset}.jsonl"

    def records(self, pattern: str = "*") -> Iterator[Record]:
        """All records of the files that match ``<study>-<regime>-<dataset>``; of one id the last.

        A last line without its end is what a kill left of a write: it does not count.

        Raises:
            InputError: a line is no record, by file and number.
        """
        for path in sorted(self._folder.glob(f"{pattern}.jsonl")):
            found: dict[str, Record] = {}
            for number, line in enumerate(path.read_text().splitlines(keepends=True), start=1):
                if not line.endswith("\n"):
                    break
                try:
                    record = Record.from_json(line)
                except InputError as error:
                    raise InputError(f"{path.name}, line {number}: {error}") from error
                found[record.cell.id] = record
            yield from found.values()

    def hashes(self, unit: Unit) -> dict[str, str]:
        """Configuration hash by id of what the unit's file holds, of all its seeds."""
        name = self.path(unit).stem
        return {record.cell.id: record.config_hash for record in self.records(name)}

    def append(self, record: Record) -> None:
        """Write one line to disk before returning; a torn line at the end is cut off first."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.path(record.cell.unit).open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _cut_torn_line(file.fileno())
            file.write(record.to_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def claim(self, unit: Unit) -> Iterator[bool]:
        """Whether this process got the unit, until the block ends; a killed process holds nothing."""
        self._locks.mkdir(parents=True, exist_ok=True)
        name = f"{unit.study}-{unit.regime}-{unit.dataset}-{unit.seed:04d}.lock"
        with (self._locks / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _cut_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    end = size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end < size:
        os.ftruncate(descriptor, end)
