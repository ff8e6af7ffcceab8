"""Kills writers: forks a child that puts and acknowledges, kills it some time later, looks at what is left.

Run as a program, so what is forked is small: crashing.py FOLDER SEED N_KILLS. Prints a JSON line a kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from making import DROP, keep, observation, sample

from drip.errors import TransactionFullError
from drip.store import Outcome, RetentionStore
from drip.types import Progress

BUDGETS = (600_000, 900_000, 2_000_000)


def write(path: Path, budget_bytes: int, seed: int, acknowledge: int) -> None:
    """Put until killed; a line "first last" says that these numbers are durable."""
    rng = random.Random(seed)
    with RetentionStore.open(path, budget_bytes=budget_bytes, audit_rows=100_000) as store:
        progress = store.load_progress()
        number = 0 if progress is None else int(progress.cursor or 0)
        while True:
            n_puts = rng.choice([1, 1, 1, 3, 5])
            try:
                with store.transaction():
                    for i in range(number, number + n_puts):
                        put(store, i)
                    store.save_progress(Progress(str(number + n_puts), {}, "p"))
            except TransactionFullError:  # outside of a transaction a put may commit its evictions first
                n_puts = 1
                put(store, number)
                store.save_progress(Progress(str(number + 1), {}, "p"))
            os.write(acknowledge, f"{number} {number + n_puts}\n".encode())
            number += n_puts


def put(store: RetentionStore, number: int) -> None:
    """The same sample for the same number, so a put that is repeated after a kill is a redelivery."""
    rng = random.Random(number)
    data = number.to_bytes(8, "big") + rng.randbytes(rng.choice([10, 400, 3000, 9000]))
    store.put(sample(f"s{number}", data), observation(number % 3), keep(rng.random()) if number % 4 else DROP)


def kill_once(path: Path, rng: random.Random) -> list[int]:
    """The last acknowledged line."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        try:
            write(path, rng.choice(BUDGETS), rng.getrandbits(32), send)
        except BaseException:  # noqa: BLE001  # a forked child must end here, whatever happened
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(send)
    # Half of the kills come at once: they hit the creation or the opening. The others wait for the first
    # acknowledgement, however slow the machine is, so they hit a writer at work.
    is_early, wait_s = rng.random() < 0.5, rng.uniform(0, 0.15)
    first = b"" if is_early else os.read(receive, 1)
    time.sleep(0.2 * wait_s if is_early else wait_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(receive, "rb") as pipe:
        lines = [line for line in (first + pipe.read()).splitlines(keepends=True) if line.endswith(b"\n")]
    return [int(part) for part in lines[-1].split()] if lines else []


def problems_of(path: Path, last: list[int], n_before: int) -> tuple[list[str], int]:
    """What is wrong with the reopened store, and how many puts it has."""
    problems = []
    if not path.exists():
        return (["no file"] if last else []), 0
    with RetentionStore.open(path, budget_bytes=None if n_before else BUDGETS[-1]) as store:
        rows = list(store.audit())
        numbers = [int(row.sample_id[1:]) for row in rows]
        progress = store.load_progress()
        n_puts = 0 if progress is None else int(progress.cursor or 0)
        if n_puts < max([n_before, *last]):
            problems.append(f"acknowledged up to {last}, progress says {n_puts}")
        # A put outside of a transaction may be committed before its progress is. The audit may have lost its
        # oldest rows to its limit of bytes, but no others.
        oldest = numbers[0] if numbers else 0
        end = oldest + len(numbers)
        if numbers != list(range(oldest, end)) or end - n_puts not in (0, 1):
            problems.append(f"the audit must have the puts before {n_puts}, got {oldest} to {end}")
        kept = {record.sample.id for record in store if int(record.sample.id[1:]) >= oldest}
        if kept != {row.sample_id for row in rows if row.outcome is Outcome.KEPT}:
            problems.append("kept samples and the audit must agree")
        problems.extend(store.check().problems)
    return problems, n_puts


def main(folder: Path, seed: int, n_kills: int) -> None:
    rng = random.Random(seed)
    n_puts = 0
    path = folder / "0.drip"
    for kill in range(n_kills):
        if kill % 20 == 0:
            path = folder / f"{kill}.drip"
            n_puts = 0
        last = kill_once(path, rng)
        problems, n_puts = problems_of(path, last, n_puts)
        line = {"kill": kill, "last": last, "n_puts": n_puts, "problems": problems}
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
