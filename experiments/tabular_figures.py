"""The figure of the study of tables, as SVG text: one panel per method with random beside it."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import STYLE, svg
from experiments.statistics import compare
from experiments.tabular_reading import ALL, METRIC, PROTOCOL, RANDOM, Runs, abbreviation, label, published

_COLUMNS = 3
_OURS: dict[str, Any] = {"color": "#0072b2", "linestyle": "-", "marker": "o", "markersize": 4.0}
_CHANCE: dict[str, Any] = {
    "color": "#d55e00",
    "linestyle": (0, (4, 2)),
    "marker": "s",
    "markersize": 5.5,
    "markerfacecolor": "none",
}
_STATED: dict[str, Any] = {"color": "#000000", "linestyle": ":", "marker": "x", "markersize": 5.0}


def figures(runs: Runs) -> dict[str, str]:
    """Every figure that the records allow, as SVG text by name."""
    arms = [arm for arm in runs.arms if abbreviation(arm) and arm != RANDOM]
    if not runs.fractions or not arms:
        return {}
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        return {f"tabular-{runs.dataset}": svg(_panels(runs, arms))}


def _panels(runs: Runs, arms: list[str]) -> Figure:
    rows = -(-len(arms) // _COLUMNS)
    figure = Figure(figsize=(8.4, 0.8 + 2.0 * rows), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for axis in axes[len(arms) :]:
        axis.set_visible(False)
    for axis, arm in zip(axes, arms, strict=False):
        _panel(axis, runs, arm)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    figure.supxlabel("rows kept (%)", fontsize=9)
    figure.supylabel("macro F1 (%), published protocol", fontsize=9)
    return figure


def _panel(axis: Axes, runs: Runs, arm: str) -> None:
    top = runs.series(ALL, PROTOCOL)
    if top is not None:
        axis.axhline(100 * top.summary(METRIC)[0], color="#777777", linewidth=0.9, label="all rows")
    for name, words, look in ((RANDOM, "random", _CHANCE), (arm, "the method", _OURS)):
        points = [(p, found) for p in runs.fractions if (found := runs.series(name, PROTOCOL, p)) is not None]
        if not points:
            continue
        at = [100 * p for p, _ in points]
        spread = [compare(found.values(METRIC)) for _, found in points]
        means = np.array([100 * each.mean for each in spread])
        halves = np.array([100 * (each.half or 0.0) for each in spread])
        axis.plot(at, means, label=words, linewidth=1.3, **look)
        axis.fill_between(at, means - halves, means + halves, color=look["color"], alpha=0.15, linewidth=0)
    stated = published(runs.dataset).get(METRIC, {}).get(abbreviation(arm))
    if stated:
        fractions = [p for p in published(runs.dataset)["fractions"] if p < 1]
        means = np.array([100 * mean for mean, _ in stated[: len(fractions)]])
        axis.plot(
            [100 * p for p in fractions], means, label="the method, published", linewidth=1.0, **_STATED
        )
    axis.set_title(label(arm), fontsize=9)
