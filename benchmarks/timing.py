"""What every benchmark shares: an idle machine, interleaved repetitions, raw timings as JSON lines."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_MAX_LOAD = 0.5


def parse_arguments(description: str | None) -> argparse.Namespace:
    """``--force`` times on a busy machine and writes nothing."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--force", action="store_true", help="time on a busy machine too, and write nothing")
    arguments = parser.parse_args()
    if not arguments.force:
        require_idle()
    return arguments


def require_idle(wait_s: float = 120.0) -> None:
    """Wait until the load average of the last minute is below 0.5; exit when it does not fall."""
    deadline = time.monotonic() + wait_s
    while os.getloadavg()[0] >= _MAX_LOAD:
        if time.monotonic() > deadline:
            sys.exit(
                f"an idle machine is needed (load below {_MAX_LOAD}), got {os.getloadavg()[0]:.2f}; "
                "stop other work, or pass --force to look without writing results"
            )
        time.sleep(5)


def interleave(
    variants: Mapping[str, Callable[[], object]], repetitions: int, *, warm_up: int = 2, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds of every repetition of every variant, in random order within each round."""
    order = random.Random(seed)  # noqa: S311  # an order, not a secret
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(-warm_up, repetitions):
        for name in order.sample(list(variants), len(variants)):
            start = time.perf_counter()
            variants[name]()
            if round_number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def machine() -> dict[str, Any]:
    """What the timings depend on besides the code."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version()}


def commit() -> str:
    """The commit that is timed."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return found.stdout.strip()


def write(name: str, records: list[dict[str, Any]]) -> None:
    """Replace ``results/<name>.jsonl`` by one JSON line per record, each with machine and commit."""
    shared = {"commit": commit(), "machine": machine()}
    lines = [json.dumps({**record, **shared}) + "\n" for record in records]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.jsonl").write_text("".join(lines))
