"""Data reduction on the Dry Bean split, compared with the published procedures, and up to a million rows.

Every run is a process of its own: one timed call after a warm-up on 300 rows, with the growth of the peak
resident size. Needs DRIP_DATA with `tabular/dry_bean.csv.gz`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from timing import require_idle, write

FRACTIONS = (0.1, 0.5, 0.9)
SIZES = (10_000, 100_000, 1_000_000)
GROWTH_FRACTION = 0.01
LIMIT_MIB = 4096
METHODS = {
    "SRS": {},
    "PRD": {},
    "CLC": {},
    "MMS": {},
    "DES": {},
    "PHL": {"radius": 0.05, "dimension": 2, "max_neighbours": 1000},
    "NRMD": {},
}
GROWING = ("SRS", "MMS", "CLC", "DES", "NRMD")
NESTED = ("SRS", "PRD", "MMS", "PHL", "NRMD")  # one fit gives all fractions
AIMS = {"PRD": 10, "DES": 10, "NRMD": 2, "PHL": 10}
SLOW = ("PRD", "PHL")  # their baselines take minutes and run once
PUBLISHED_S = {  # measured once with the published package on this split, at the three fractions
    "SRS": (0.002, 0.002, 0.010),
    "PRD": (7.6, 68.4, 155.0),
    "CLC": (0.058, 0.32, 0.54),
    "MMS": (0.032, 0.047, 0.21),
    "DES": (0.32, 0.80, 1.2),
    "NRMD": (0.11, 0.15, 0.07),
    "PHL": (6.8, 10.2, 17.0),
}


def beans() -> tuple[Any, Any]:
    """Features in [0, 1] and classes of the 10,208 training rows."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415  # only in the child process

    with gzip.open(Path(os.environ["DRIP_DATA"]) / "tabular" / "dry_bean.csv.gz", "rt") as lines:
        cells = [line.strip().split(",") for line in lines][1:]
    values = np.array([row[:-1] for row in cells], dtype=np.float64)
    classes = np.unique([row[-1] for row in cells], return_inverse=True)[1]
    values = (values - values.min(axis=0)) / np.ptp(values, axis=0)
    order = np.random.RandomState(2024).permutation(len(values))  # the split of the study
    kept, _, labels, _ = train_test_split(values[order], classes[order], test_size=0.25, random_state=0)
    return kept, labels


def beans_drawn(n: int) -> tuple[Any, Any]:
    """Rows drawn with replacement, with normal noise of deviation 0.01."""
    values, classes = beans()
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(values), n)
    return values[rows] + rng.normal(0.0, 0.01, (n, values.shape[1])), classes[rows]


def variants(method: str) -> dict[str, Callable[..., Any]]:
    """How a method is called: (values, classes, fraction) -> points and labels, or None."""
    import published_reduction as published  # noqa: PLC0415  # only in the child process

    from drip.reduction import create  # noqa: PLC0415

    plain = {
        "SRS": published.stratified_random,
        "PRD": published.protodash,
        "CLC": published.cluster_centroids,
        "MMS": published.maxmin,
        "DES": published.distance_entropy,
        "PHL": published.persistent_homology,
        "NRMD": published.matrix_decomposition,
    }[method]

    def ours(values: Any, classes: Any, fraction: float) -> Any:
        return create(method, fraction=fraction, random_state=0, **METHODS[method]).fit_resample(
            values, classes
        )

    def once(values: Any, classes: Any, fraction: float) -> Any:
        sampler = create(method, fraction=fraction, random_state=0, **METHODS[method]).fit(values, classes)
        return [sampler.at(p) for p in FRACTIONS if p <= fraction]

    return {"drip": ours, "drip, one fit": once, "published": plain}


def child(method: str, way: str, n: int, fraction: float) -> None:
    """One run; prints seconds, memory and, on the split itself, epsilon as JSON."""
    from drip.reduction import epsilon_representativeness  # noqa: PLC0415

    values, classes = beans() if n == 0 else beans_drawn(n)
    call = variants(method)[way]
    call(values[:300], classes[:300], 0.1)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _status_mib("VmRSS")
    start = time.perf_counter()
    result = call(values, classes, fraction)
    seconds = time.perf_counter() - start
    peak = _status_mib("VmHWM")
    record = {"seconds": seconds, "growth_mib": peak - before, "peak_mib": peak}
    if way != "drip, one fit" and n == 0:
        points, labels = kept(result, values, classes)
        found = epsilon_representativeness(values, classes, points, labels)
        record |= {"rows": len(points), "epsilon": found.epsilon}
    print(json.dumps(record))


def kept(result: Any, values: Any, classes: Any) -> tuple[Any, Any]:
    """Points and labels, from a pair of both, from the points of each class, or from row numbers."""
    if isinstance(result, tuple):
        return result
    if isinstance(result, list):
        return np.concatenate(result), np.repeat(np.unique(classes), [len(points) for points in result])
    return values[result], classes[result]


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def run(method: str, way: str, n: int, fraction: float) -> dict[str, Any]:
    """Start a child process and read its result."""
    arguments = [sys.executable, __file__, "--child", method, way, str(n), str(fraction)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{method} {way} {n} {fraction} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "load": os.getloadavg()[0]}


def compare(repetitions: int) -> list[dict[str, Any]]:
    """Every method at every fraction, ours and published, in random order within each round."""
    cases = [(method, way, p) for method in METHODS for way in ("drip", "published") for p in FRACTIONS]
    cases += [(method, "drip, one fit", FRACTIONS[-1]) for method in NESTED]
    runs: dict[tuple[str, str, float], list[dict[str, Any]]] = {case: [] for case in cases}
    order = random.Random(0)  # noqa: S311  # an order, not a secret
    for round_number in range(repetitions):
        for method, way, p in order.sample(cases, len(cases)):
            if round_number == 0 or way != "published" or method not in SLOW:
                runs[method, way, p].append(run(method, way, 0, p))
    return [
        {"bench": "beside published", "method": method, "way": way, "fraction": p, "runs": found}
        for (method, way, p), found in runs.items()
    ]


def grow(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """One run of each growing method at each size."""
    return [
        {"bench": "growth", "method": method, "n": n, "fraction": GROWTH_FRACTION}
        | run(method, "drip", n, GROWTH_FRACTION)
        for n in sizes
        for method in GROWING
    ]


def show(records: list[dict[str, Any]]) -> None:
    """The ratios over the three fractions together, and the growth."""
    seconds = {
        (r["method"], r["way"], r["fraction"]): median(run["seconds"] for run in r["runs"])
        for r in records
        if r["bench"] == "beside published"
    }
    for method in METHODS if seconds else ():
        ours, plain = (sum(seconds[method, way, p] for p in FRACTIONS) for way in ("drip", "published"))
        package = sum(PUBLISHED_S[method])
        once = (
            f", with one fit {seconds[method, 'drip, one fit', FRACTIONS[-1]]:.3f} s"
            if method in NESTED
            else ""
        )
        aim = f"; aim {AIMS[method]}x" if method in AIMS else ""
        print(
            f"{method:<5}{ours:8.3f} s, published procedure {plain:8.3f} s = {plain / ours:6.1f}x, "
            f"published package {package:8.3f} s = {package / ours:6.1f}x{once}{aim}"
        )
    for record in records:
        if record["bench"] == "growth":
            verdict = "within" if record["peak_mib"] <= LIMIT_MIB else "ABOVE"
            print(
                f"{record['method']:<5} {record['n']:>9,} rows {record['seconds']:9.2f} s, peak "
                f"{record['peak_mib']:7.0f} MiB, {verdict} {LIMIT_MIB}"
            )


def main() -> None:
    """Run both parts, print the ratios, write every run."""
    if sys.argv[1:2] == ["--child"]:
        method, way, n, fraction = sys.argv[2:]
        child(method, way, int(n), float(fraction))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", action="store_true", help="run on a busy machine too; the load is recorded")
    parser.add_argument("--repetitions", type=int, default=5, help="rounds; the slow baselines run once")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="rows of the largest table that grows")
    arguments = parser.parse_args()
    if not arguments.busy:
        require_idle()
    records = compare(arguments.repetitions)
    show(records)
    grown = grow(tuple(n for n in SIZES if n <= arguments.largest))
    show(grown)
    write("reduction", records + grown)


if __name__ == "__main__":
    main()
