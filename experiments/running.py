"""Finds what is missing, estimates its time, and measures it line by line."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable

from drip.errors import InputError
from experiments import dpw, longer, noise, situation_study, table1, tabular
from experiments.arms import PAPER_RULES, rules
from experiments.cells import Cell, Unit, config_hash
from experiments.head import head_regime
from experiments.ledger import Ledger, Record
from experiments.protocol import groups_have_one_class
from experiments.regimes import Regime
from experiments.situation_full import FullSituations
from experiments.situation_study import SituationRegime
from experiments.tabular_workspace import Table, TabularWorkspace
from experiments.tabular_workspace import arms as reducing_arms

STUDIES: dict[str, ModuleType] = {
    module.NAME: module for module in (table1, longer, dpw, noise, situation_study, tabular)
}
STREAMED: tuple[str, ...] = ("mnist", "cifar10", "tomato", "speech_commands")
DATASETS: tuple[str, ...] = (*STREAMED, *tabular.DATASETS)
REGIMES: tuple[str, ...] = ("head", "full", "table")
DEFAULT_SEEDS = {
    ("table1", "full"): 20,
    ("table1", "head"): 20,
    ("longer", "full"): 5,
    ("dpw", "head"): 10,
    ("noise", "head"): 10,
    ("situations", "head"): 10,
    ("situations", "full"): 5,
    ("tabular", "table"): 10,
}
"""How many runs each study asks for, by regime."""

_ASKED: dict[str, tuple[str, ...]] = {
    "noise": ("cifar10", "tomato"),
    "tabular": ("dry_bean",),
}


def units(
    studies: Sequence[str] | None = None,
    regimes: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    seeds: int | None = None,
) -> list[Unit]:
    """The units asked for, run 0 of everything first; where nothing is named, what the studies ask for.

    Raises:
        InputError: a study, regime or data set that does not exist.
    """
    _require_known("study", studies, tuple(STUDIES))
    _require_known("regime", regimes, REGIMES)
    _require_known("dataset", datasets, DATASETS)
    found = [
        Unit(study, regime, dataset, seed)
        for (study, regime), default in DEFAULT_SEEDS.items()
        if study in (studies or STUDIES) and regime in (regimes or REGIMES)
        for dataset in datasets or _ASKED.get(study, getattr(STUDIES[study], "DATASETS", STREAMED))
        if dataset in getattr(STUDIES[study], "DATASETS", STREAMED)
        for seed in range(seeds or default)
    ]
    return sorted(found, key=lambda unit: unit.seed)


def missing(ledger: Ledger, wanted: Sequence[Unit]) -> dict[Unit, list[Cell]]:
    """The cells of each unit that have no line yet (those of another configuration have one)."""
    files = {key(unit): unit for unit in wanted}
    held = {name: ledger.hashes(unit) for name, unit in files.items()}
    return {
        unit: [cell for cell in STUDIES[unit.study].cells(unit) if cell.id not in held[key(unit)]]
        for unit in wanted
    }


def key(unit: Unit) -> tuple[str, str, str]:
    """What one result file holds."""
    return unit.study, unit.regime, unit.dataset


def print_plan(console: Console, ledger: Ledger, lacking: Mapping[Unit, Sequence[Cell]]) -> None:
    """One row per study, regime and data set: runs without all their cells, cells, core-hours."""
    cells: dict[tuple[str, str, str], int] = defaultdict(int)
    runs: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for unit, missing in lacking.items():
        cells[key(unit)] += len(missing)
        if missing:
            runs[key(unit)].append(unit.seed)
    table = RichTable("study", "regime", "data set", "runs missing", "cells missing", "core-hours")
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


def measure(
    console: Console,
    ledger: Ledger,
    wanted: Sequence[Unit],
    cache_folder: Path,
    device: str = "cpu",
    *,
    arms: Sequence[str] | None = None,
    n_rows: int | None = None,
) -> None:
    """Measure what the units lack, leaving out those that another process works on.

    Each line is on disk before the next cell starts. A line of another configuration is measured again.

    Args:
        console: Where progress goes.
        ledger: Where lines go.
        wanted: What to measure.
        cache_folder: For features and trained models.
        device: Where the full regime trains.
        arms: Only these; None takes all.
        n_rows: At most so many rows of every data set; part of the configuration.

    Raises:
        InputError: an arm that does not exist.
    """
    _require_known(
        "arm",
        arms,
        (
            "baseline",
            "all",
            *PAPER_RULES,
            *rules(),
            *situation_study.ARMS,
            *situation_study.ORDERS,
            *reducing_arms(),
        ),
    )
    torch.set_num_threads(1)

    def on_progress(view: str, done: int, total: int) -> None:
        console.print(f"features of the view {view}: {done} of {total} rows")

    regime_of = cache(
        lambda study, regime, dataset: open_regime(
            STUDIES[study], regime, dataset, cache_folder, device, n_rows, on_progress
        )
    )
    for unit in wanted:
        with ledger.claim(unit) as mine:
            if mine:
                _measure_unit(console, ledger, unit, regime_of(*key(unit)), arms)


def open_regime(
    study: ModuleType,
    regime: str,
    dataset: str,
    cache_folder: Path,
    device: str,
    n_rows: int | None,
    on_progress: Callable[[str, int, int], None],
) -> Regime | Table | SituationRegime | FullSituations:
    """The regime of a data set, with the views that a study needs; a table for the study of tables.

    Raises:
        InputError: a regime or data set that the study does not have.
    """
    if regime not in study.REGIMES:
        raise InputError(
            f"study {study.NAME!r}: has no regime {regime!r}; choose {' or '.join(study.REGIMES)}"
        )
    if regime == "table":
        return Table(dataset, n_rows)
    if study is situation_study:
        if regime == "full":
            return FullSituations(dataset, cache_folder, device, on_progress)
        return SituationRegime(dataset, cache_folder, on_progress)
    if regime == "head":
        return head_regime(
            dataset,
            cache_folder,
            views=study.views(dataset),
            n_rows=n_rows,
            on_progress=on_progress,
        )
    from experiments.full import FullRegime  # noqa: PLC0415  # it imports far more than the other regime needs

    return FullRegime.of(dataset, cache=cache_folder, device=device, limit=n_rows)


def _measure_unit(
    console: Console,
    ledger: Ledger,
    unit: Unit,
    regime: Regime | Table | SituationRegime | FullSituations,
    arms: Sequence[str] | None,
) -> None:
    study = STUDIES[unit.study]
    held = ledger.hashes(unit)
    dealing = {"groups": "within class"} if groups_have_one_class(regime.labels, regime.groups) else {}
    configs = {
        cell: {**regime.config, **study.config(cell), **dealing}
        for cell in study.cells(unit)
        if not arms or cell.arm in arms
    }
    lacking = [cell for cell, config in configs.items() if held.get(cell.id) != config_hash(config)]
    bench: Any = None
    for cell in lacking:
        if bench is None:
            bench = study.workspace(unit, regime)
            if isinstance(bench, TabularWorkspace):
                bench.wanted = lacking  # their networks are trained together
        outcome = study.run(cell, bench)
        ledger.append(Record(cell, configs[cell], outcome.metrics, outcome.extra, commit(), versions()))
        accuracy = outcome.metrics["accuracy"]
        console.print(
            f"{100 * accuracy:6.2f} %  {outcome.metrics['fit_s']:7.2f} s  {cell.id}", soft_wrap=True
        )


def _require_known(what: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    for name in given or ():
        if name not in known:
            raise InputError(f"{what} {name!r}: unknown; choose one of {', '.join(known)}")


@cache
def commit() -> str:
    """The commit that measures, with ``+`` when tracked code differs from it."""
    folder = Path(__file__).parent.parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=folder)  # noqa: S603, S607  # fixed words
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "experiments/*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def versions() -> dict[str, str]:
    """The packages that a number may depend on."""
    return {"drip": version("drip-edge"), "torch": torch.__version__, "numpy": version("numpy")}
