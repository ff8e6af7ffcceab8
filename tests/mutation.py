"""Counts what a mutation run killed, per module, and lists every survivor with its line.

Run from the repository's root; writes benchmarks/results/mutation.json:

    mutmut run && python tests/mutation.py                   every mutant of the rooms in pyproject.toml
    python tests/mutation.py --sample 400 src/drip/store     a random sample of a room, drawn per module

A run replaces the figures of the rooms that it looked at and leaves the others. mutmut leaves out functions
with decorators, such as properties and context managers.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULT = Path("benchmarks/results/mutation.json")
MINIMUM_KILLED = 0.8
KILLED = ("killed", "timeout")
NOT_RUN = "not checked"
SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|PRAGMA|BEGIN|COMMIT|ROLLBACK)\b")

# Mutants that no test can tell from the original, by the line they put in its place.
EQUIVALENT = {
    "left_count = counts[left - 1] if left > 0 else -2": "any number below a count",
    "right_count = counts[right + 1] if right + 1 < len(counts) else -2": "any number below a count",
    "elif width * _MAX_BINS < high - low:": "at equality both branches give the same number of bins",
    "return np.sort(np.exp(gaps), )[:, ::-1]": "the last axis is the default and the second of two",
    "ascending = np.sort(counts).astype(None)": "None is float64 in NumPy",
    "padded = np.full(n_blocks * size, ordered[": "no window reaches the padding",
    "return cast(": "cast does nothing at run time",
    "start = int(np.argmax(deviations < deviations.min() + tolerance))": (
        "a deviation equals the tolerance by accident only, and for equal scores the first wins anyway"
    ),
    "anchor = scaled[len(scaled) // 3]": "any score may be the anchor",
    "return values, labels.astype(np.int64,": "a copy has the same numbers",
    "grouped = values[np.argsort(small,": "every class is sorted afterwards",
    "return Decisions(retain, priority, retain.astype(None), reasons)": "None is float64 in NumPy",
    'chosen = draw[np.argsort(~retain[draw], kind="STABLE")]': "NumPy reads the first letter",
    "tied = held if": "both ways give the same number for this method, one of them sooner",
    "small = labels.astype(": "a wider integer sorts alike, only slower",
    'return int(np.searchsorted(ordered, upper, side="right") - np.searchsorted(ordered, lower, ))': (
        "left is the default"
    ),
    "edges = np.searchsorted(scaled, _bin_edges(scaled), )": "left is the default",
    "for reason, known in zip(decisions.reasons, discards.tolist(),": "both have one entry per row",
    'self._means = np.array(state["means"],': "the numbers of JSON become float64 anyway",
    'self._scales = np.array(state["scales"],': "the numbers of JSON become float64 anyway",
    'probabilities = np.array(state["probabilities"],': "the numbers of JSON become float64 anyway",
    "return Decisions(draw <= probability, priority, probability, [self.name] * len(observations))": (
        "a draw equals the probability once in 2**53"
    ),
    "retain = self._draw(observations) <= self._retention": "a draw equals the retention once in 2**53",
    "priority > 1.0 - self._retention, priority, np.full(n, float(self._retention)), "
    '["reservoir"] * n': "a draw equals the limit once in 2**53",
    'return deterministic(np.ones(n, dtype=np.bool_), np.zeros(n), "keep-all",': "nothing is discarded",
    "code = getattr(error, ": "1 is the code of errors in general, which gets the same advice as none",
    'connection.execute(f"PRAGMA synchronous = {synchronous.lower()}': "SQL knows no capital letters",
    "base = known or Settings(None,": "merge() has refused a new store without a budget",
    "middle = (low + high + 2) // 2": "any middle above the lower end finds the same frame",
    'self._stale_salt: bytes | None = ""': "equal to no salt, as None is",
    'return b"XXXX"': "any text shorter than a salt says that there is none",
    "template = None": "a template is remembered for speed alone",
    "self._operation_frames = None": "set before it is used",
    "self.log_frames = None": "counted when the writer opens",
    "self._next_key = None": "read from the file when the writer opens",
    "self._first_key = 2": "set when a transaction begins",
    "self._data_version = +1": "read from the file when the writer opens",
    "self._in_transaction = None": "as false as False",
    "self.bytes = None": "read from the file when the writer opens",
    "self.dropped = None": "read from the file when the writer opens",
    "self._retry_at = 1": "any time that has passed already",
    "is_busy = 2": "as true as one",
    "if self.log_frames < limit:": "at equality one more look finds the same",
    "shelf = Quarantine(cursor, 1, 2)": "only its count of dropped samples is read",
    "if self.first_s is None or time_s <= self.first_s:": "an equal time widens nothing",
    "if self.last_s is None or time_s >= self.last_s:": "an equal time widens nothing",
    "at_most = max(2, ": "the log always has room for more evictions than that",
    "n_freed = victim.n_bytes / layout.payload_bytes": "a bound may have a fraction",
}


def main() -> int:
    """Write the result; fail below the minimum share of killed mutants."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, help="run this many mutants first; else read what mutmut ran")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("paths", nargs="*", type=Path, help="folders or files to draw the sample from")
    options = parser.parse_args()
    command = "mutmut run && python tests/mutation.py"
    drawn = None
    if options.sample is not None:
        command = "python " + " ".join(sys.argv)
        drawn = sample(mutants_of(options.paths), options.sample, options.seed)
        subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", "1", *drawn], check=True)
    statuses = {}
    for line in run("results", "--all", "true").splitlines():
        mutant, _, status = (part.strip() for part in line.strip().partition(": "))
        if status:
            statuses[mutant] = status if drawn is None or mutant in drawn else NOT_RUN
    result = merge(json.loads(RESULT.read_text(encoding="utf-8")), statuses, command)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for room, figures in result["rooms"].items():
        print(room, {name: value for name, value in figures.items() if name != "command"})  # noqa: T201
    return int(any(figures["killed_share"] < MINIMUM_KILLED for figures in result["rooms"].values()))


def merge(result: dict[str, Any], statuses: dict[str, str], command: str) -> dict[str, Any]:
    """The former result with the figures of the rooms of which any mutant was run."""
    ran = {mutant: status for mutant, status in statuses.items() if status != NOT_RUN}
    rooms = {room_of(mutant) for mutant in ran}
    modules = {name: counts for name, counts in result["modules"].items() if room_of(name) not in rooms}
    survivors = [entry for entry in result["survivors"] if room_of(entry["mutant"]) not in rooms]
    counted: dict[str, Counter[str]] = {}
    for mutant, status in ran.items():
        counted.setdefault(mutant.rpartition(".")[0], Counter())[status] += 1
        if status not in KILLED:
            survivors.append(survivor(mutant, status))
    modules |= {module: dict(sorted(counter.items())) for module, counter in counted.items()}
    figures = {name: value for name, value in result["rooms"].items() if name not in rooms}
    for room in rooms:
        total = sum((counter for module, counter in counted.items() if room_of(module) == room), Counter())
        own = [entry for entry in survivors if room_of(entry["mutant"]) == room]
        figures[room] = {
            "command": command,
            "mutants": sum(room_of(mutant) == room for mutant in statuses),
            "run": total.total(),
            **dict(sorted(total.items())),
            "killed_share": round(sum(total[status] for status in KILLED) / total.total(), 4),
            "survivors_known_to_be_equivalent": sum(bool(entry["equivalent_because"]) for entry in own),
        }
    return {
        "tool": f"mutmut {version('mutmut')}",
        "rooms": dict(sorted(figures.items())),
        "modules": dict(sorted(modules.items())),
        "survivors": sorted(survivors, key=lambda entry: str(entry["mutant"])),
    }


def room_of(name: str) -> str:
    """``drip.store`` of ``drip.store.writer.x__mutmut_1``."""
    return ".".join(name.split(".")[:2])


def mutants_of(paths: list[Path]) -> dict[str, list[str]]:
    """All mutants by file."""
    from mutmut.mutation.file_mutation import mutate_file_contents  # needed for samples only
    from mutmut.utils.format_utils import get_mutant_name

    mutants = {}
    for file in sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))):
        names = mutate_file_contents(str(file), file.read_text(encoding="utf-8")).mutant_names
        mutants[str(file)] = [get_mutant_name(file, name) for name in names]
    return mutants


def sample(mutants: dict[str, list[str]], n: int, seed: int) -> list[str]:
    """``n`` mutants at random, from each file in proportion to how many it has."""
    total = sum(map(len, mutants.values()))
    shares = {file: min(n, total) * len(names) / total for file, names in mutants.items()}
    counts = {file: int(share) for file, share in shares.items()}
    by_remainder = sorted(counts, key=lambda file: counts[file] - shares[file])
    for file in by_remainder[: min(n, total) - sum(counts.values())]:
        counts[file] += 1
    generator = random.Random(seed)
    return [name for file, names in mutants.items() for name in generator.sample(names, counts[file])]


def survivor(mutant: str, status: str) -> dict[str, str | None]:
    """The mutant with the lines it takes out and puts in."""
    changed = run("show", mutant).splitlines()
    before = " ".join(line[1:].strip() for line in changed if line.startswith("-") and line[1:2] != "-")
    after = " ".join(line[1:].strip() for line in changed if line.startswith("+") and line[1:2] != "+")
    reason = next((why for line, why in EQUIVALENT.items() if after.startswith(line)), None)
    if reason is None and SQL.search(before) and before.lower() == after.lower():
        reason = "SQL does not tell capital from small letters"
    return {"mutant": mutant, "status": status, "from": before, "to": after, "equivalent_because": reason}


def run(*arguments: str) -> str:
    """What mutmut prints."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
