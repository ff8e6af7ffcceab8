"""Counts what the last `mutmut run` killed, per module, and lists every survivor with its line.

Run from the repository's root after `mutmut run`; writes benchmarks/results/mutation.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

RESULT = Path("benchmarks/results/mutation.json")
MINIMUM_KILLED = 0.8

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
}


def main() -> int:
    """Write the result; fail below the minimum share of killed mutants."""
    outcomes = run("results", "--all", "true")
    counts: dict[str, Counter[str]] = {}
    survivors = []
    for line in outcomes.splitlines():
        mutant, _, status = (part.strip() for part in line.strip().partition(": "))
        if not status or status == "not checked":
            continue
        module = mutant.rpartition(".")[0]
        counts.setdefault(module, Counter())[status] += 1
        if status not in ("killed", "timeout"):
            survivors.append(survivor(mutant, status))
    total = sum(counts.values(), Counter())
    killed = total["killed"] + total["timeout"]
    content = {
        "command": "mutmut run && python tests/mutation.py",
        "tool": f"mutmut {version('mutmut')}",
        "killed_share": round(killed / max(total.total(), 1), 4),
        "total": dict(sorted(total.items())),
        "modules": {module: dict(sorted(counter.items())) for module, counter in sorted(counts.items())},
        "survivors": survivors,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{killed} of {total.total()} mutants killed; {RESULT}")  # noqa: T201  # a script
    return int(killed < MINIMUM_KILLED * total.total())


def survivor(mutant: str, status: str) -> dict[str, str | None]:
    """The mutant with the lines it takes out and puts in."""
    changed = run("show", mutant).splitlines()
    before = " ".join(line[1:].strip() for line in changed if line.startswith("-") and line[1:2] != "-")
    after = " ".join(line[1:].strip() for line in changed if line.startswith("+") and line[1:2] != "+")
    reason = next((why for line, why in EQUIVALENT.items() if after.startswith(line)), None)
    return {"mutant": mutant, "status": status, "from": before, "to": after, "equivalent_because": reason}


def run(*arguments: str) -> str:
    """What mutmut prints."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
