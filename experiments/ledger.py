"""Result files: one JSON line per run, appended as it finishes, safe against kills and second processes.

A line holds what differs from run to run: seed, metrics, and what only one study has. What many lines share
is stored once, in ``configurations.jsonl``, under the hash of its content: configurations, versions, lists of
metric names, and series. A series is one arm at one setting with its configuration, commit and versions.
Lines used to repeat all of that, and were five times as long.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from drip.errors import InputError
from experiments.cells import Cell, Unit, config_hash

RESULTS = Path(__file__).parent / "results"
SHARED = "configurations.jsonl"


@dataclass(frozen=True)
class Record:
    """One run; the README lists the metrics.

    Attributes:
        cell: What was measured.
        config: Everything besides the code that the numbers depend on.
        metrics: Numbers by name.
        extra: What only one study has.
        commit: The commit that measured, with ``+`` when the tree differed from it.
        versions: Packages by name.
        config_hash: Hash of the configuration; computed where it is not given.
    """

    cell: Cell
    config: Mapping[str, Any]
    metrics: dict[str, float]
    extra: dict[str, Any] = field(default_factory=dict)
    commit: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    config_hash: str = ""

    def __post_init__(self) -> None:
        """Compute the hash once: a page asks for it in every comparison."""
        if not self.config_hash:
            object.__setattr__(self, "config_hash", config_hash(self.config))


class Shared:
    """What the lines of a folder share, by the hash of its content.

    Args:
        folder: The folder of the result files.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SHARED
        self._values: dict[str, Any] = {}
        self._bytes_read = self._lines_read = 0

    def __getitem__(self, digest: str) -> Any:
        """The value with this hash.

        Raises:
            KeyError: no line has it.
        """
        if digest not in self._values:
            self._read_on()  # another process may have added it
        return self._values[digest]

    def add(self, *values: Any) -> list[str]:
        """Store values that are not there yet; returns their hashes."""
        digests = [config_hash(value) for value in values]
        if all(digest in self._values for digest in digests):
            return digests
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _cut_torn_line(file.fileno())
            self._read_on()  # under the lock, or two processes would both write it
            for digest, value in zip(digests, values, strict=True):
                if digest not in self._values:
                    file.write(_line({"hash": digest, "value": value}))
                    self._values[digest] = value
            file.flush()
            os.fsync(file.fileno())
        return digests

    def _read_on(self) -> None:
        """Read the lines that were added since the last time.

        Raises:
            InputError: a line is damaged or was edited, by file and number.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._bytes_read)
            for number, line in enumerate(file, start=self._lines_read + 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    held = json.loads(line)
                    digest, value = held["hash"], held["value"]
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(
                        f"{SHARED}, line {number}: damaged ({error!r}); restore the file from version control"
                    ) from error
                if config_hash(value) != digest:
                    raise InputError(
                        f"{SHARED}, line {number}: edited, its hash is {digest!r}; restore the file from "
                        "version control"
                    )
                self._values[digest] = value
                self._bytes_read += len(line)
                self._lines_read = number


class Ledger:
    """The result files of a folder.

    Args:
        folder: Where ``<study>-<regime>-<dataset>.jsonl`` and ``configurations.jsonl`` are.
        locks: Folder for the claims of running processes; default ``.locks`` in ``folder``.
    """

    def __init__(self, folder: Path = RESULTS, locks: Path | None = None) -> None:
        self._folder = folder
        self._locks = locks or folder / ".locks"
        self._shared = Shared(folder)

    def path(self, unit: Unit) -> Path:
        """The file of a unit's records."""
        return self._folder / f"{unit.study}-{unit.regime}-{unit.dataset}.jsonl"

    def records(self, pattern: str = "*") -> Iterator[Record]:
        """All records of the files that match ``<study>-<regime>-<dataset>``; of one id the last.

        A last line without its end is what a kill left of a write, and is ignored.

        Raises:
            InputError: a line is no record, by file and number.
        """
        for path in sorted(self._folder.glob(f"{pattern}.jsonl")):
            if path.name == SHARED:
                continue
            found: dict[str, Record] = {}
            for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = self._record(line)
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
        line = self._line(record)
        with self.path(record.cell.unit).open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _cut_torn_line(file.fileno())
            file.write(line)
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

    def _line(self, record: Record) -> bytes:
        """The line of a record; what it shares with others is on disk before it is returned.

        That order matters: a kill between the two leaves a series without a line, never a line without its
        series.
        """
        numbers = [round(value, 6) for value in record.metrics.values()]
        content = {"metrics": numbers, **({"extra": record.extra} if record.extra else {})}
        _line(content)  # refuse NaN before anything is written
        self._folder.mkdir(parents=True, exist_ok=True)
        config, names, versions = self._shared.add(record.config, list(record.metrics), record.versions)
        series = {
            "id": record.cell.series,
            "config": config,
            "commit": record.commit,
            "versions": versions,
            "metrics": names,
        }
        return _line({"series": self._shared.add(series)[0], "seed": record.cell.unit.seed, **content})

    def _record(self, line: bytes) -> Record:
        try:
            held = json.loads(line)
            series = self._shared[held["series"]]
            cell = Cell.parse(series["id"], held["seed"])
            config = self._shared[series["config"]]
            metrics = dict(zip(self._shared[series["metrics"]], held["metrics"], strict=True))
            extra, commit = held.get("extra", {}), series["commit"]
            versions = self._shared[series["versions"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"not a result line ({error!r}): {line[:80]!r}; remove it, and its run is measured again"
            ) from error
        wrong = {name: value for name, value in metrics.items() if not _finite(value)}
        if wrong:
            raise InputError(f"{cell.id!r}: not a finite number: {wrong}; remove the line, and measure again")
        return Record(cell, config, metrics, extra, commit, versions, series["config"])


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _cut_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    end = size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end < size:
        os.ftruncate(descriptor, end)
