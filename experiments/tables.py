"""Grids of comparisons and lists of numbers as Markdown, each with a sentence of what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import isfinite

import numpy as np

from experiments.reading import RANDOM, REFERENCES, Evidence, Place, Series, paired, paper
from experiments.statistics import Comparison, holm

ALPHA = 0.05
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
    """Mean share of the stream that every arm keeps at a place; NaN where none is known."""
    shares = [evidence.series[place, arm].summary("retention")[0] for arm in evidence.selecting(place)]
    known = [share for share in shares if isfinite(share)]
    return float(np.mean(known)) if known else float("nan")


def crossings(evidence: Evidence, base: Place, over: str, references: Sequence[str]) -> list[list[str]]:
    """Per selecting arm, where its mean crosses each reference's: between which values, in percent.

    Means that are equal are on neither side; many crossings are counted.
    """
    places = [
        base.at(**{over: value}) for value in evidence.values_of(over, base.study, base.regime, base.dataset)
    ]
    arms = list(dict.fromkeys(arm for place in places for arm in evidence.selecting(place)))
    return [
        [arm, *(_crossed(evidence, places, over, arm, reference) for reference in references)]
        for arm in arms
        if arm != RANDOM
    ]


def _crossed(evidence: Evidence, places: Sequence[Place], over: str, arm: str, reference: str) -> str:
    sides = []
    for place in places:
        found = evidence.difference(place, arm, reference)
        if found is not None and signed(found.mean, 6) != signed(0.0, 6):
            sides.append((f"{100 * float(dict(place.settings)[over]):g}", found.mean > 0))
    if not sides:
        return BLANK
    crossed = [f"{before}-{after}" for (before, was), (after, now) in pairwise(sides) if was != now]
    if len(crossed) > _MANY:
        return f"{len(crossed)} times, first {crossed[0]}, last {crossed[-1]}"
    return ", ".join(crossed) or ("always above" if sides[0][1] else "always below")


_MANY = 3
_DETAILS = (
    ("macro_f1", "macro F1"),
    ("worst_class_accuracy", "worst class"),
    ("ece", "ECE"),
    ("errors_kept", "errors kept"),
)


_USUAL = frozenset(
    (
        "accuracy",
        "n_train",
        "n_test",
        "n_stream",
        "n_items",
        "n_kept",
        "native_kept",
        "retention",
        "native_retention",
        "bytes_stream",
        "bytes_kept",
        "decide_us",
        "decide_peak_bytes",
        "state_bytes",
        "fit_s",
        "steps",
    )
)


def detail(evidence: Evidence, place: Place, marked: Grid | None = None, column: str = "") -> list[str]:
    """Every arm at one place with all that is measured of it; shares in percent, differences in points.

    Args:
        evidence: The records.
        place: Which.
        marked: A grid whose column is this place, for marks that count all of its cells.
        column: That column.
    """
    arms = [arm for arm in REFERENCES if evidence.get(place, arm)] + evidence.selecting(place)
    held = {arm: series for arm in arms if (series := evidence.get(place, arm)) is not None}
    compared, name_of = (marked, column) if marked is not None else (against(evidence, {"": place}), "")
    shown = [(name, title) for name, title in _DETAILS if any(_has(one, name) for one in held.values())]
    shown += [(name, title) for name, title in _unusual(held.values())]
    shown += [("bytes_share", "bytes")] if any(_has(one, "bytes_share") for one in held.values()) else []
    costs = [
        (name, title, scale)
        for name, title, scale in (("decide_us", "µs", 1), ("decide_peak_bytes", "peak kB", 1000))
        if any(_has(one, name) for one in held.values())
    ]
    streamed = any("retention_by_tenth" in run.extra for one in held.values() for run in one.runs.values())
    headers = [
        "arm",
        "runs",
        "accuracy",
        "minus random",
        "Wilcoxon p",
        "native",
        *(title for _, title in shown),
    ]
    headers += [title for _, title, _ in costs] + (["kept by tenth of the stream"] if streamed else [])
    rows = []
    for arm, series in held.items():
        cell, mark = compared.cells.get((arm, name_of)), compared.marks.get((arm, name_of), "")
        p = BLANK if cell is None or cell.wilcoxon is None else _p(cell.wilcoxon)
        row = [arm, str(len(series.runs)), level(*series.summary("accuracy")[:2]), interval(cell, mark), p]
        row += [
            percent(series.summary(name)[0]) for name in ("native_retention", *(name for name, _ in shown))
        ]
        means = [series.summary(name)[0] / scale for name, _, scale in costs]
        row += [f"{mean:.1f}" if isfinite(mean) else BLANK for mean in means]
        rows.append(row + ([_tenths(series)] if streamed else []))
    return markdown(headers, rows)


def over_setting(evidence: Evidence, base: Place, over: str, reference: str) -> Grid:
    """Selecting arms minus a reference: rows are the values of a setting in percent, columns arms."""
    values = evidence.values_of(over, base.study, base.regime, base.dataset)
    places = {f"{100 * float(value):g} %": base.at(**{over: value}) for value in values}
    turned = against(evidence, places, reference)
    cells = {(name, arm): cell for (arm, name), cell in turned.cells.items()}
    return grid(over, list(places), turned.rows, cells)


def metric_over(evidence: Evidence, base: Place, over: str, metric: str = "accuracy") -> list[str]:
    """Mean and deviation of a metric in percent: rows are the values of a setting, columns arms."""
    values = evidence.values_of(over, base.study, base.regime, base.dataset)
    places = {f"{100 * float(value):g} %": base.at(**{over: value}) for value in values}
    named = list(dict.fromkeys(arm for place in places.values() for arm in evidence.selecting(place)))
    arms = [
        arm
        for arm in (*REFERENCES, *named)
        if any(_has(evidence.get(place, arm), metric) for place in places.values())
    ]
    if not arms:
        return []
    rows = []
    for name, place in places.items():
        held = [evidence.get(place, arm) for arm in arms]
        rows.append([name, *(BLANK if one is None else level(*one.summary(metric)[:2]) for one in held)])
    return markdown([over, *arms], rows)


def _unusual(held: Iterable[Series]) -> list[tuple[str, str]]:
    """What only one study measures, by name and heading."""
    runs_of = [run for series in held for run in series.runs.values()]
    names = {name for run in runs_of for name in run.metrics} - _USUAL - {name for name, _ in _DETAILS}
    parts = list(dict.fromkeys(part for run in runs_of for part in run.extra.get("accuracy_by_part", {})))
    found = [(name, name.replace("_", " ")) for name in sorted(names)]
    found += [(f"part:{part}", f"on {part}") for part in parts] if len(parts) > 1 else []
    return found + (
        [("tenths_spread", "spread")] if any("retention_by_tenth" in run.extra for run in runs_of) else []
    )


def _tenths(series: Series) -> str:
    """Mean retention by tenth of the stream, in whole percent."""
    held = [
        run.extra["retention_by_tenth"] for run in series.runs.values() if "retention_by_tenth" in run.extra
    ]
    return " ".join(f"{100 * share:.0f}" for share in np.mean(held, axis=0)) if held else BLANK


def _has(series: Series | None, metric: str) -> bool:
    return series is not None and isfinite(series.summary(metric)[0])


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
