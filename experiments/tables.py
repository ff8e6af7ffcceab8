"""Grids of comparisons, and how a number is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import numpy as np

from experiments.reading import RANDOM, Evidence, Place, paired, paper
from experiments.statistics import Comparison, holm

ALPHA = 0.05
FIGURES = "figures"
"""Folder of the figures below that of the documentation."""
BLANK = ""
_WIDEST = 140
_MINUS = "\u2212"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, its columns padded unless that makes lines too long."""
    table = [list(headers), *[list(row) for row in rows]]
    widths = [max(3, *(len(row[column]) for row in table)) for column in range(len(headers))]
    if sum(widths) + 3 * len(widths) > _WIDEST:
        widths = [3] * len(widths)
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in table]
    return [lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]]


def percent(share: float, digits: int = 1) -> str:
    """A share as percent without the unit; blank for NaN.

    >>> percent(0.6143), percent(float("nan"))
    ('61.4', '')
    """
    return f"{100 * share:.{digits}f}" if isfinite(share) else BLANK


def level(mean: float, sd: float, digits: int = 1) -> str:
    """Mean and standard deviation in percent.

    >>> level(0.978, 0.002), level(0.978, float("nan"))
    ('97.8 ± 0.2', '97.8')
    """
    return f"{percent(mean, digits)} ± {percent(sd, digits)}" if isfinite(sd) else percent(mean, digits)


def signed(difference: float, digits: int = 2) -> str:
    """A difference in percentage points without the unit.

    >>> signed(0.0123), signed(0.0)
    ('+1.23', '0.00')
    """
    text = f"{abs(100 * difference):.{digits}f}"
    return text if float(text) == 0 else f"{_MINUS if difference < 0 else '+'}{text}"


def interval(comparison: Comparison | None, mark: str = "") -> str:
    """A mean difference in points with half the width of its interval, and in brackets of the corrected one.

    >>> interval(Comparison(20, 0.0123, 0.01, 0.002, 0.005), "*")
    '+1.23 ±0.20 (±0.50)*'
    >>> interval(Comparison(3, 0.0123, 0.01))
    '+1.23 [3 runs]'
    """
    if comparison is None:
        return BLANK
    text = signed(comparison.mean)
    if comparison.half is None:
        return f"{text} [{runs(comparison.n)}]"
    text += f" ±{percent(comparison.half, 2)}"
    if comparison.corrected_half is not None:
        text += f" (±{percent(comparison.corrected_half, 2)})"
    return text + mark


def runs(n: int) -> str:
    """A number of runs in words.

    >>> runs(1), runs(20)
    ('1 run', '20 runs')
    """
    return f"{n} run" if n == 1 else f"{n} runs"


def joined(parts: Sequence[str]) -> str:
    """A list in words.

    >>> joined(["a", "b", "c"])
    'a, b and c'
    """
    return ", ".join(parts[:-1]) + f" and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def dataset_name(dataset: str) -> str:
    """A data set as tables call it."""
    return str(paper()["names"].get(dataset, dataset))


@dataclass(frozen=True)
class Grid:
    """Differences by row and column; Holm's correction runs over all of them.

    Attributes:
        corner: Heading of the rows.
        rows: Names in order.
        columns: Names in order.
        cells: Comparison by row and column; absent where there is none.
    """

    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Comparison]

    @cached_property
    def marks(self) -> dict[tuple[str, str], str]:
        """``*`` where the corrected p stays below 0.05 after Holm, ``°`` where only the plain one does."""
        keys = list(self.cells)
        plain = holm([self.cells[key].p for key in keys])
        strict = holm([self.cells[key].strictest_p for key in keys])
        return {
            key: "*" if s is not None and s < ALPHA else "°" if p is not None and p < ALPHA else ""
            for key, s, p in zip(keys, strict, plain, strict=True)
        }

    def markdown(
        self, columns: Sequence[str] | None = None, first: Sequence[Sequence[str]] = ()
    ) -> list[str]:
        """The table, or some of its columns; ``first`` are rows of text put before the others."""
        shown = self.columns if columns is None else columns
        rows = [
            [
                row,
                *(
                    interval(self.cells.get((row, column)), self.marks.get((row, column), ""))
                    for column in shown
                ),
            ]
            for row in self.rows
        ]
        return markdown([self.corner, *shown], [*first, *rows])

    def p_values(self) -> list[str]:
        """P-values in the places of the table: of the corrected t-test after Holm, and of Wilcoxon's test."""
        adjusted = dict(
            zip(self.cells, holm([cell.strictest_p for cell in self.cells.values()]), strict=True)
        )
        rows = []
        for row in self.rows:
            cells = [
                (adjusted[row, name], self.cells[row, name].wilcoxon) if (row, name) in self.cells else None
                for name in self.columns
            ]
            rows.append([row, *(BLANK if pair is None else " / ".join(map(_p, pair)) for pair in cells)])
        return markdown([self.corner, *self.columns], rows)

    def significant(self, sign: int, marks: str = "*") -> list[tuple[str, str]]:
        """Row and column of the marked cells above (1) or below (-1) zero."""
        return [
            key
            for key, mark in self.marks.items()
            if mark and mark in marks and sign * self.cells[key].mean > 0
        ]

    def sentence(self, subject: str, reference: str) -> str:
        """What the grid shows, in words."""
        tested = [cell for cell in self.cells.values() if cell.half is not None]
        if not tested:
            most = max((cell.n for cell in self.cells.values()), default=0)
            return (
                f"At most {runs(most)} of a pair: too few for an interval."
                if most
                else "Nothing to compare yet."
            )
        up, down = self.significant(1), self.significant(-1)
        parts = []
        for keys, side in ((up, "above it"), (down, "below it")):
            if keys:
                parts.append(
                    f"{_count(keys, tested)} {side}{_listed(keys) if len(keys) < len(tested) else ''}"
                )
        rest = len(tested) - len(up) - len(down)
        if rest:
            word = (
                "none differs"
                if rest == len(tested)
                else f"{rest} do not differ"
                if rest > 1
                else "1 does not differ"
            )
            parts.append(f"{word} beyond chance")
        return f"{len(tested)} comparisons of {subject} with {reference}: {'; '.join(parts)}."


def grid(
    corner: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], Comparison | None],
) -> Grid:
    """A grid of the comparisons that exist; rows without any are left out."""
    held = {key: cell for key, cell in cells.items() if cell is not None}
    used = {row for row, _ in held}
    return Grid(corner, tuple(row for row in rows if row in used), tuple(columns), held)


def against(
    evidence: Evidence, places: Mapping[str, Place], reference: str = RANDOM, corner: str = "arm"
) -> Grid:
    """Every selecting arm minus a reference: rows are arms, columns the named places."""
    arms = list(dict.fromkeys(arm for place in places.values() for arm in evidence.selecting(place)))
    cells = {
        (arm, name): evidence.difference(place, arm, reference)
        for arm in arms
        for name, place in places.items()
        if (place, arm) in evidence.series
    }
    return grid(corner, arms, list(places), cells)


def change(
    evidence: Evidence, pairs: Mapping[str, tuple[Place, Place]], arms: Sequence[str] | None = None
) -> Grid:
    """Every arm at a first place minus itself at a second."""
    cells: dict[tuple[str, str], Comparison | None] = {}
    for name, (first, second) in pairs.items():
        for arm in evidence.arms(first):
            a, b = evidence.series[first, arm], evidence.get(second, arm)
            if b is not None and a is not b and (arms is None or arm in arms):
                cells[arm, name] = paired(a, b)
    return grid("arm", sorted({arm for arm, _ in cells}), list(pairs), cells)


def kept(evidence: Evidence, place: Place) -> float:
    """Mean keep rate of the arms at a place; NaN where none is known."""
    shares = [evidence.series[place, arm].summary("retention")[0] for arm in evidence.selecting(place)]
    known = [share for share in shares if isfinite(share)]
    return float(np.mean(known)) if known else float("nan")


def over_setting(evidence: Evidence, base: Place, over: str, reference: str) -> Grid:
    """Selecting arms minus a reference: rows are the values of a setting in percent, columns arms."""
    values = evidence.values_of(over, base.study, base.regime, base.dataset)
    places = {f"{100 * float(value):g} %": base.at(**{over: value}) for value in values}
    turned = against(evidence, places, reference)
    cells = {(name, arm): cell for (arm, name), cell in turned.cells.items()}
    return grid(over, list(places), turned.rows, cells)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _count(keys: Sequence[object], tested: Sequence[object]) -> str:
    return "all" if len(keys) == len(tested) else str(len(keys))


def _listed(keys: Sequence[tuple[str, str]], at_most: int = 6) -> str:
    """Rows with their columns in brackets."""
    by_row: dict[str, list[str]] = {}
    for row, column in keys:
        by_row.setdefault(row, []).append(column)
    named = [f"{row}: {', '.join(columns)}" for row, columns in by_row.items()]
    left = len(named) - at_most
    return " (" + "; ".join(named[:at_most]) + (f"; and {left} more" if left > 0 else "") + ")"
