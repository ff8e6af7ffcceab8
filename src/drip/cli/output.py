"""What commands print: tables or JSON on standard output; errors and progress on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text


def print_error(message: str, code: str) -> None:
    """One line ``error[CODE]: message`` on standard error; line breaks in the message become spaces."""
    _print_line(f"error[{code}]: ", "bold red", message)


def print_note(message: str) -> None:
    """One line ``note: message`` on standard error: worth knowing, but not an error."""
    _print_line("note: ", "bold", message)


def _print_line(prefix: str, style: str, message: str) -> None:
    text = Text(prefix, style=style).append(" ".join(message.split()), style="default")
    Console(stderr=True, soft_wrap=True).print(text)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output; NaN becomes null."""
    sys.stdout.write(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def print_facts(title: str, facts: Mapping[str, object]) -> None:
    """A two-column table on standard output."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in facts.items():
        table.add_row(name, Text(str(value)))
    Console().print(table)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on standard output; all columns but the first are right-aligned."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


class _RateColumn(ProgressColumn):
    """Steps per second over the last half minute."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f}/s")


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """A bar on standard error, called with done, total (or None) and a note; silent without a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=None, note="")

        def update(done: int, total: int | None, note: str) -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


@contextmanager
def progress_stages() -> Iterator[Callable[[str, int, int | None, str], None]]:
    """One bar on standard error for each stage of long work; without a terminal, one line for each."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:

        def update(stage: str, done: int, total: int | None, note: str) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bar.stop_task(task)
                tasks[stage] = bar.add_task(stage, total=total, note=note)
                if not console.is_terminal:
                    console.print(stage)
            bar.update(tasks[stage], completed=done, total=total, note=note)

        yield update


def print_lines(lines: Sequence[str]) -> None:
    """Sentences on standard output, one per line."""
    console = Console()
    for line in lines:
        console.print(Text(f"- {line}"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
