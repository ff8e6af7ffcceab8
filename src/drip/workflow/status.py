"""The state of a run, as a line on the terminal and as a JSON file for other programs.

Rates use a clock that never jumps; the time of day is only recorded, because NTP may set it at any moment.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import monotonic, time
from types import TracebackType
from typing import Any, Protocol, Self

from drip.errors import DripError, code_of
from drip.files import write_atomically
from drip.files.format import byte_size
from drip.pipeline import Tally
from drip.store import StoreStats
from drip.types import JsonObject

FORMAT = "drip-status"
FORMAT_VERSION = 1
_INTERVAL_S = 1.0
_RATE_SPAN_S = 10.0
_RATE_STEP_S = 0.1
_MOST_OF_THE_TIME = 20  # counting a large store is slow: spend at most a twentieth of the time on it


class _Counted(Protocol):
    def stats(self) -> StoreStats: ...


class RunStatus:
    """The status of one run, as a context manager around the run.

    The file is replaced in one step, at most once a second and at the end. A file that cannot be written
    does not stop the run; :attr:`problem` contains the reason.

    Args:
        path: The JSON file; None for no file.
        clock: A clock that never jumps, in seconds.
        wall: The time of day, in seconds since the epoch.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with RunStatus(Path(folder.name) / "status.json") as status:
    ...     status.describe(rule="drip")
    >>> found = json.loads((Path(folder.name) / "status.json").read_text())
    >>> found["state"], found["reason"], found["rule"]
    ('stopped', 'the source ended', 'drip')
    >>> folder.cleanup()
    """

    def __init__(
        self, path: Path | None, *, clock: Callable[[], float] = monotonic, wall: Callable[[], float] = time
    ) -> None:
        self.problem = ""
        self._path = path
        self._clock = clock
        self._wall = wall
        self._started, self._started_s = clock(), wall()
        self._facts: JsonObject = {}
        self._tally = Tally()
        self._stats: StoreStats | None = None
        self._failure: BaseException | None = None
        self._next_s = -math.inf
        self._history: deque[tuple[float, int]] = deque()

    def describe(self, **facts: Any) -> None:
        """Add facts to the file."""
        self._facts.update(facts)

    def update(self, tally: Tally, store: _Counted, *, at_once: bool = False) -> None:
        """Record the counts after a batch; count the store and write the file once a second."""
        now = self._clock()
        self._tally = tally
        if len(self._history) > 1 and now - self._history[-2][0] < _RATE_STEP_S:
            self._history.pop()
        self._history.append((now, tally.n_seen))
        while len(self._history) > 2 and now - self._history[1][0] >= _RATE_SPAN_S:
            self._history.popleft()
        if now < self._next_s and not at_once:
            return
        self._stats = store.stats()
        self._next_s = now + max(_INTERVAL_S, _MOST_OF_THE_TIME * (self._clock() - now))
        self._write("running", "")

    def fail(self, error: DripError) -> None:
        """Record that the run failed although it ends without an exception."""
        self._failure = error

    def line(self, tally: Tally) -> str:
        """Keep rate, bytes, quarantine and age of the last sample, for the terminal."""
        parts = [] if math.isnan(tally.retention) else [f"{tally.retention:.1%} kept"]
        if self._stats is not None:
            parts.append(f"{byte_size(self._stats.disk_bytes)} of {byte_size(self._stats.budget_bytes)}")
        if tally.n_quarantined:
            parts.append(f"{tally.n_quarantined} in quarantine")
        age_s = self._age_s()
        if age_s is not None and age_s < 86_400:  # older samples come from a folder, not from a stream
            parts.append(f"last {age_s:.0f} s old")
        return ", ".join(parts)

    def __enter__(self) -> Self:
        """Write that the run has started."""
        self._write("running", "starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write how the run ended."""
        failure = self._failure if error is None else error
        if isinstance(failure, KeyboardInterrupt):
            self._write("stopped", "interrupted at once")
        elif failure is not None:
            self._write("failed", str(failure) or type(failure).__name__, code_of(failure))
        else:
            self._write("stopped", "asked to stop" if self._tally.interrupted else "the source ended")

    def content(self, state: str, reason: str, code: str | None = None) -> JsonObject:
        """The content of the file; the code is that of the error that ended the run."""
        tally, age_s = self._tally, self._age_s()
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "state": state,
            "reason": reason,
            "code": code,
            "pid": os.getpid(),
            "time_s": self._wall(),
            "started_s": self._started_s,
            "running_for_s": self._clock() - self._started,
            **self._facts,
            "n_seen": tally.n_seen,
            "n_retained": tally.n_retained,
            "n_discarded": tally.n_discarded,
            "discarded_by_reason": tally.discarded_by_reason,
            "n_quarantined": tally.n_quarantined,
            "n_skipped": tally.n_skipped,
            "bytes_seen": tally.bytes_seen,
            "bytes_retained": tally.bytes_retained,
            "retention": None if math.isnan(tally.retention) else tally.retention,
            "samples_per_s": self._rate(),
            "last_sample_id": tally.last_id,
            "last_sample_time_s": None if age_s is None else tally.last_time_s,
            "last_sample_age_s": age_s,
            "store_counts": None if self._stats is None else _without_classes(self._stats),
        }

    def _rate(self) -> float | None:
        """Samples per second over the last ten seconds; None before two updates."""
        if len(self._history) < 2:
            return None
        (first_s, first), (last_s, last) = self._history[0], self._history[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else None

    def _age_s(self) -> float | None:
        last_s = self._tally.last_time_s
        return None if last_s is None or not math.isfinite(last_s) else max(0.0, self._wall() - last_s)

    def _write(self, state: str, reason: str, code: str | None = None) -> None:
        if self._path is None:
            return
        data = json.dumps(self.content(state, reason, code), indent=1).encode() + b"\n"
        try:
            write_atomically(self._path, data)
            self.problem = ""
        except DripError as error:
            self.problem = str(error)
            if state != "running":
                self._overwrite(self._path, data)

    def _overwrite(self, path: Path, data: bytes) -> None:
        """Write the end of the run over the old file: a full disk has no room for a second file."""
        try:
            with path.open("r+b") as file:
                file.write(data)
                file.truncate()
        except OSError:
            return  # the first problem is the reason; keep it
        self.problem = ""


def _without_classes(stats: StoreStats) -> JsonObject:
    numbers = asdict(stats)
    del numbers["classes"]
    return numbers
