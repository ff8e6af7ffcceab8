"""What is missing, and how long it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from experiments.cells import Cell, Unit
from experiments.ledger import Ledger
from experiments.running import key


def print_plan(console: Console, ledger: Ledger, lacking: Mapping[Unit, Sequence[Cell]]) -> None:
    """One row per study, regime and data set: runs without all their cells, cells, core-hours."""
    cells: dict[tuple[str, str, str], int] = defaultdict(int)
    runs: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for unit, missing in lacking.items():
        cells[key(unit)] += len(missing)
        if missing:
            runs[key(unit)].append(unit.seed)
    table = Table("study", "regime", "data set", "runs missing", "cells missing", "core-hours")
    total = 0.0
    for name, count in cells.items():
        seconds = seconds_per_cell(ledger, name)
        hours = None if seconds is None else count * seconds / 3600
        total += hours or 0.0
        table.add_row(
            *name, ranges(runs[name]), str(count), "not measured yet" if hours is None else f"{hours:.1f}"
        )
    console.print(table)
    console.print(f"{sum(cells.values())} cells, at least {total:.1f} core-hours (training time alone)")


def seconds_per_cell(ledger: Ledger, name: tuple[str, str, str]) -> float | None:
    """Mean training time of a file's lines, or None where there is none."""
    times = [record.metrics["fit_s"] for record in ledger.records("-".join(name))]
    return sum(times) / len(times) if times else None


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in ascending order as ranges.

    >>> ranges([0, 1, 2, 5]), ranges([])
    ('0-2, 5', '')
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
