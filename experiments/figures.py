"""The figures as SVG text: the same records give the same bytes, and lines differ without colour."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reading import DATASETS, Evidence, Place, Series
from experiments.statistics import Comparison, compare
from experiments.tables import against, dataset_name, kept, percent

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "drip",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
}
# Okabe and Ito's colours, of clearly different lightness; every arm also has its own dashes and marker.
# markers nest, so lines on top of each other still show both.
_LOOKS: Mapping[str, dict[str, Any]] = {
    "all": {"color": "#000000", "linestyle": "-", "marker": None},
    "baseline": {"color": "#777777", "linestyle": (0, (1, 1.5)), "marker": None},
    "drip": {"color": "#0072b2", "linestyle": "-", "marker": "o", "markersize": 3.0},
    "drip.normalised": {
        "color": "#009e73",
        "linestyle": (0, (5, 1.5, 1, 1.5)),
        "marker": "^",
        "markersize": 6.0,
        "markerfacecolor": "none",
    },
    "random": {
        "color": "#d55e00",
        "linestyle": (0, (4, 2)),
        "marker": "s",
        "markersize": 6.5,
        "markerfacecolor": "none",
    },
    "margin": {"color": "#999933", "linestyle": (0, (2, 1)), "marker": "D", "markersize": 4.0},
}
_SPARE = ("v", "P", "X", "<", ">", "*")
_LABEL_GAP = 0.075
_PAPER_WORDS = {"baseline": "d1", "all": "d13_full", "drip": "d13_hat", "random": "d13_random"} | {
    "drip.normalised": "d13_hat, normalised"
}
_WORDS = {"all": "all data", "drip": "DRIP", "drip.normalised": "DRIP, normalised"}


def figures(evidence: Evidence) -> dict[str, str]:
    """Every figure that the records allow, as SVG text by name."""
    found: dict[str, str] = {}
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        drawn: dict[str, Figure | None] = {
            "fig2": score_histograms(evidence),
            "fig4": dpw_curves(evidence, ("cifar10",), words=_PAPER_WORDS),
            "fig5": dpw_curves(evidence, DATASETS, words=_WORDS),
            "fig6": noise_curves(evidence, "cifar10"),
            **{f"rules-{dataset}": forest(evidence, dataset) for dataset in DATASETS},
        }
        for name, figure in drawn.items():
            if figure is not None:
                found[name] = svg(figure)
    return found


def svg(figure: Figure) -> str:
    """A figure as SVG without date and version of the program."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def score_histograms(evidence: Evidence) -> Figure | None:
    """Fig. 2: scores of one class with the window, by data set and reading, where a histogram was kept."""
    panels: list[tuple[str, Mapping[str, Any]]] = []
    for dataset in DATASETS:
        for arm in ("paper.raw.window", "paper.normalised.window"):
            for regime in ("full", "head"):
                series = evidence.get(Place("table1", regime, dataset), arm)
                held = (
                    [run.extra["histogram"] for run in series.runs.values() if "histogram" in run.extra]
                    if series
                    else []
                )
                if held:
                    reading = "raw" if "raw" in arm else "normalised"
                    panels.append((f"{dataset_name(dataset)}, class {held[0]['class']}, {reading}", held[0]))
                    break
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(7.6, 0.4 + 2.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, histogram) in zip(axes, panels, strict=False):
        _histogram(axis, title, histogram)
    figure.supxlabel("score", fontsize=9)
    figure.supylabel("samples", fontsize=9)
    return figure


def dpw_curves(evidence: Evidence, datasets: Sequence[str], words: Mapping[str, str]) -> Figure | None:
    """Figs. 4 and 5: accuracy over the part of the stream that is discarded."""
    shown = [dataset for dataset in datasets if evidence.values_of("discard", "dpw", "head", dataset)]
    if not shown:
        return None
    figure, axes = _panels(len(shown))
    for axis, dataset in zip(axes, shown, strict=False):
        place = Place("dpw", "head", dataset)
        values = [float(value) for value in evidence.values_of("discard", "dpw", "head", dataset)]
        arms = ["all", "baseline", *evidence.selecting(place.at(discard=values[0]))]
        curves = {arm: [evidence.get(place.at(discard=value), arm) for value in values] for arm in arms}
        _curves(axis, [100 * value for value in values], curves, words)
        axis.set_title(dataset_name(dataset), fontsize=9)
        axis.set_xlabel("discard percentage window (%)")
    return figure


def noise_curves(evidence: Evidence, dataset: str) -> Figure | None:
    """Fig. 6: accuracy over the part of data set 3 that is spoilt, by kind of noise."""
    kinds = evidence.values_of("kind", "noise", "head", dataset)
    if not kinds:
        return None
    figure, axes = _panels(len(kinds))
    values = [float(value) for value in evidence.values_of("fraction", "noise", "head", dataset)]
    for axis, kind in zip(axes, kinds, strict=False):
        place = Place("noise", "head", dataset).at(kind=kind)
        arms = ["all", *evidence.selecting(place.at(fraction=values[0]))]
        curves = {arm: [evidence.get(place.at(fraction=value), arm) for value in values] for arm in arms}
        _curves(axis, [100 * value for value in values], curves, _WORDS)
        axis.set_title(
            {"label": "wrong labels", "input": "noisy inputs"}.get(str(kind), str(kind)), fontsize=9
        )
        axis.set_xlabel("share of data set 3 that is spoilt (%)")
    return figure


def forest(evidence: Evidence, dataset: str) -> Figure | None:
    """Every rule minus random at the same count, by retention; thick: t-interval, thin: corrected."""
    retentions = evidence.values_of("retention", "table1", "head", dataset)[::-1]
    places = {
        f"{100 * float(value):g} %": Place("table1", "head", dataset).at(retention=value)
        for value in retentions
    }
    compared = against(evidence, places)
    if not compared.cells:
        return None
    arms = list(compared.rows)
    shown = [name for name in places if any((arm, name) in compared.cells for arm in arms)]
    figure = Figure(figsize=(1.6 + 1.9 * max(2, len(shown)), 1.0 + 0.23 * len(arms)), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False).ravel()
    for axis, name in zip(axes, shown, strict=True):
        for row, arm in enumerate(arms):
            if (arm, name) in compared.cells:
                _whisker(axis, row, compared.cells[arm, name], marked=compared.marks[arm, name] == "*")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"asked {name}, kept {percent(kept(evidence, places[name]), 0)} %", fontsize=9)
        axis.grid(visible=False, axis="x")
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].set_ylim(len(arms) - 0.4, -0.6)
    figure.supxlabel("accuracy minus random at the same count (points)", fontsize=9)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.5 * columns if count > 1 else 6.0, 2.8 * rows + 0.2), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes


def _curves(
    axis: Axes, xs: Sequence[float], curves: Mapping[str, Sequence[Series | None]], words: Mapping[str, str]
) -> None:
    """One line per arm with a 95 % band from five runs on; points without runs are left out."""
    spare, ends = cycle(_SPARE), []
    for arm, series in curves.items():
        points = [
            (x, compare(one.values("accuracy"))) for x, one in zip(xs, series, strict=True) if one is not None
        ]
        if not points:
            continue
        at = [x for x, _ in points]
        means = np.array([100 * found.mean for _, found in points])
        halves = np.array([100 * (found.half or 0.0) for _, found in points])
        look = _LOOKS.get(arm) or {
            "color": "#444444",
            "linestyle": ":",
            "marker": next(spare),
            "markersize": 4.0,
        }
        axis.plot(at, means, label=words.get(arm, arm), linewidth=1.3, **look)
        axis.fill_between(at, means - halves, means + halves, color=look["color"], alpha=0.12, linewidth=0)
        ends.append((words.get(arm, arm), float(means[-1]), look["color"]))
    axis.margins(x=0.02)
    axis.set_ylabel("accuracy (%)")
    _label_ends(axis, ends)


def _label_ends(axis: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Names of the lines at their right ends, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    placed = -1.0
    for word, end, color in sorted(ends, key=lambda each: each[1]):
        wanted = (end - low) / (high - low)
        placed = max(wanted, placed + _LABEL_GAP)
        axis.annotate(
            word,
            xy=(1.0, wanted),
            xytext=(1.05, placed),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=7.5,
            color=color,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _histogram(axis: Axes, title: str, histogram: Mapping[str, Any]) -> None:
    edges, counts = np.asarray(histogram["edges"]), np.asarray(histogram["counts"])
    axis.stairs(counts, edges, fill=True, color="#bbbbbb")
    axis.stairs(counts, edges, color="#444444", linewidth=0.8)
    axis.set_title(title, fontsize=9)
    axis.grid(visible=False)
    lower, upper = histogram["lower"], histogram["upper"]
    if lower is None or upper is None:
        return
    axis.set_ylim(0, 1.2 * counts.max())  # the words stand above the bars
    axis.axvspan(lower, upper, facecolor="none", edgecolor="#0072b2", hatch="////", alpha=0.5, linewidth=0)
    for limit, side, shift in ((lower, "right", -3), (upper, "left", 3)):
        axis.axvline(limit, color="#0072b2", linewidth=1.2, linestyle="--")
        word = "lower" if limit == lower and side == "right" else "upper"
        axis.annotate(
            word,
            (limit, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(shift, -8),
            textcoords="offset points",
            ha=side,
            fontsize=8,
        )


def _whisker(axis: Axes, row: int, cell: Comparison, *, marked: bool) -> None:
    mean = 100 * cell.mean
    if cell.corrected_half is not None:
        axis.plot(
            [mean - 100 * cell.corrected_half, mean + 100 * cell.corrected_half],
            [row, row],
            color="#888888",
            linewidth=0.9,
        )
    if cell.half is not None:
        axis.plot(
            [mean - 100 * cell.half, mean + 100 * cell.half], [row, row], color="#0072b2", linewidth=2.6
        )
    axis.plot(
        [mean],
        [row],
        marker="o",
        markersize=4.5,
        color="#0072b2",
        markeredgecolor="black",
        markeredgewidth=0.7,
        markerfacecolor="black" if marked else "white",
    )
