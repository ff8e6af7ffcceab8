"""Speed of the store: puts against a bare SQLite loop; late rows against early ones, of both.

Prints a table and writes the raw timings to benchmarks/results/store.jsonl. Run it on an idle machine:
    python benchmarks/bench_store.py [--folder /path/on/the/disk/to/measure]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from timing import require_idle, write

from drip.store import RetentionStore, schema
from drip.store.budget import Layout
from drip.types import Decision, Observation, Sample

BLOB_BYTES = 1024
N_CLASSES = 10
BATCH = 1000
BLOCK = 20 * BATCH
TARGETS = {"single": 0.8, "batch": 0.8, "late": 0.5}  # the control has none: it says what SQLite itself does
BUDGET_BYTES = 4 * 1024**3

Put = tuple[Sample, Observation, Decision]


def make_puts(first: int, count: int) -> list[Put]:
    """Random blobs with uniform random priorities: the hardest order for an index."""
    rng = random.Random(first)  # noqa: S311  # data of a benchmark
    generator = np.random.default_rng(first)
    logits = generator.normal(size=(count, N_CLASSES))
    return [
        (
            Sample(f"frame-{first + i:09d}", rng.randbytes(BLOB_BYTES), "image/png", time_s=float(first + i)),
            Observation(int(logits[i].argmax()), logits[i], {"drip": rng.random()}),
            Decision(True, rng.random(), 0.1, "reservoir"),
        )
        for i in range(count)
    ]


class Bare:
    """The least code that leaves the same rows in the same tables and indices under the same pragmas."""

    def __init__(self, path: Path) -> None:
        layout = Layout.plan(BUDGET_BYTES)
        self.connection = sqlite3.connect(path, isolation_level=None)
        for pragma in (
            f"page_size = {layout.page_size}",
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            "synchronous = FULL",
            "secure_delete = OFF",
            f"cache_size = {layout.cache_pages}",
            f"wal_autocheckpoint = {layout.soft_frames}",
        ):
            self.connection.execute(f"PRAGMA {pragma}").fetchall()
        schema.create(self.connection, lambda _: None)
        self.key = 0

    def put_all(self, puts: list[Put], *, batch: bool) -> None:
        """Insert, in one transaction or in one each."""
        execute = self.connection.execute
        if batch:
            execute("BEGIN IMMEDIATE")
        for sample, observation, decision in puts:
            if not batch:
                execute("BEGIN IMMEDIATE")
            self.key = key = self.key + 1
            digest = hashlib.sha256(sample.data).digest()
            scores = json.dumps(observation.scores)
            logits = observation.logits.astype("<f4").tobytes()
            execute(
                "INSERT OR IGNORE INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key,
                    sample.id,
                    int.from_bytes(digest[:8], "big", signed=True),
                    0,
                    1,
                    1,
                    decision.priority,
                    decision.keep_probability,
                    decision.reason,
                    observation.predicted_class,
                    sample.label,
                    len(sample.data),
                    sample.time_s,
                    200,
                    scores,
                    logits,
                ),
            )
            execute(
                "INSERT OR IGNORE INTO kept VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, 0, ?, ?, ?, NULL)",
                (
                    key,
                    sample.id,
                    digest,
                    sample.media_type,
                    0,
                    decision.priority,
                    decision.keep_probability,
                    decision.reason,
                    observation.predicted_class,
                    sample.label,
                    len(sample.data),
                    sample.time_s,
                    scores,
                    None,
                ),
            )
            execute("INSERT INTO blobs VALUES (?, ?)", (key, sample.data))
            if not batch:
                execute("COMMIT")
        if batch:
            execute("COMMIT")


def put_all(store: RetentionStore, puts: list[Put], *, batch: bool) -> None:
    """The same through the store."""
    with store.transaction() if batch else nullcontext():
        for put in puts:
            store.put(*put)


def timed(action: Callable[[], object]) -> float:
    """Seconds, wall clock."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def against_bare(folder: Path, name: str, rounds: int, count: int) -> Iterator[dict[str, Any]]:
    """Blocks of puts, store and bare loop by turns, the first of a round by turns too."""
    bare = Bare(folder / f"{name}.bare")
    is_batch = name == "batch"
    with RetentionStore.open(folder / f"{name}.drip", budget_bytes=BUDGET_BYTES) as store:
        for round_ in range(rounds + 1):
            puts = make_puts(round_ * count, count)
            actions = {
                "store": lambda puts=puts: put_all(store, puts, batch=is_batch),
                "bare": lambda puts=puts: bare.put_all(puts, batch=is_batch),
            }
            order = list(actions) if round_ % 2 else list(actions)[::-1]
            seconds = {key: timed(actions[key]) for key in order}
            if round_:  # the first warms the caches
                yield {"bench": name, "round": round_, "n_puts": count, **seconds}
    bare.connection.close()


def late_rows(folder: Path, n_rows: int) -> Iterator[dict[str, Any]]:
    """Store and bare loop to ``n_rows`` in two files, by turns, so the disk's weather hits both alike.

    Blocks of 20,000 rows in batches of 1000; what making the puts takes is not timed.
    """
    bare = Bare(folder / "late.bare")
    with RetentionStore.open(folder / "late.drip", budget_bytes=BUDGET_BYTES) as store:
        for first in range(0, n_rows, BLOCK):
            starts = range(first, min(first + BLOCK, n_rows), BATCH)
            batches = [make_puts(start, BATCH) for start in starts]
            actions = {
                "store": lambda batches=batches: [put_all(store, puts, batch=True) for puts in batches],
                "bare": lambda batches=batches: [bare.put_all(puts, batch=True) for puts in batches],
            }
            order = list(actions) if first // BLOCK % 2 else list(actions)[::-1]
            seconds = {key: timed(actions[key]) for key in order}
            yield {"bench": "late", "first": first, "n_puts": BATCH * len(batches), **seconds}
    bare.connection.close()


def late_ratio(rows: list[dict[str, Any]], way: str) -> float:
    """Speed of the last tenth of the rows beside that of the first tenth."""
    tenth = max(1, len(rows) // 10)
    early, late = (
        sum(row[way] for row in part) / sum(row["n_puts"] for row in part)
        for part in (rows[:tenth], rows[-tenth:])
    )
    return float(early / late)


def summarise(rows: list[dict[str, Any]], n_rows: int) -> dict[str, tuple[float, str]]:
    """Ratio and a line of detail per benchmark; above 1 is faster than what it is compared with."""
    result = {}
    for name in ("single", "batch"):
        block = [row for row in rows if row["bench"] == name]
        if block:
            ratio = statistics.median(row["bare"] / row["store"] for row in block)
            per_put = statistics.median(row["store"] / row["n_puts"] for row in block) * 1e6
            result[name] = (ratio, f"{per_put:.1f} us a put, {len(block)} rounds of {block[0]['n_puts']}")
    late = [row for row in rows if row["bench"] == "late"]
    if late:
        last = late[-max(1, len(late) // 10) :]
        n_puts = sum(row["n_puts"] for row in last)
        for name, way in (("late", "store"), ("control", "bare")):
            per_put = sum(row[way] for row in last) / n_puts * 1e6
            result[name] = (late_ratio(late, way), f"{per_put:.1f} us a put after {n_rows} rows, {way}")
    return result


def main() -> int:
    """Run all and say whether the targets were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the stores are made; the disk that is measured")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="of the late-rows benchmark; 0 leaves it out"
    )
    parser.add_argument("--force", action="store_true", help="time on a busy machine too, and write nothing")
    options = parser.parse_args()
    if not options.force:
        require_idle()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        rows += against_bare(folder, "single", options.rounds, 500)
        rows += against_bare(folder, "batch", options.rounds, BATCH)
        rows += late_rows(folder, options.rows)
    versions = f"SQLite {sqlite3.sqlite_version}, Python {sys.version.split()[0]}"
    print(f"blobs of {BLOB_BYTES} bytes, {versions}")
    results = summarise(rows, options.rows)
    for bench, (ratio, detail) in results.items():
        print(f"{bench:8} {ratio:6.2f} (target {TARGETS.get(bench, 'none')})  {detail}")
    if not options.force:
        write("store", [{**row, "blob_bytes": BLOB_BYTES, "sqlite": sqlite3.sqlite_version} for row in rows])
    return int(any(results[bench][0] < target for bench, target in TARGETS.items() if bench in results))


if __name__ == "__main__":
    sys.exit(main())
