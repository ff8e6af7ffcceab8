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
_MINUS = "\u2212"


def percent(share: float, digits: int = 1) -> str:
    """A share as percent without the unit; blank for NaN.

    >>> percent(0.6143), percent(float("nan"))
    ('61.4', '')
    """
    return f"{100 * share:.{digits}f}" if isfinite(share) else ""


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

    def significant(self, sign: int, marks: str = "*") -> list[tuple[str, str]]:
        """Row and column of the marked cells above (1) or below (-1) zero."""
        return [
            key
            for key, mark in self.marks.items()
            if mark and mark in marks and sign * self.cells[key].mean > 0
        ]


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
