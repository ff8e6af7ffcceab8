"""Draws the memory of `drip run` and the size of its store over time, from endurance_mqtt.py's results.

``python benchmarks/endurance_plot.py`` writes docs/images/endurance-mqtt.svg; needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from timing import RESULTS

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

PICTURES = Path(__file__).parents[1] / "docs" / "images"
STYLE = {"svg.hashsalt": "drip", "svg.fonttype": "none", "font.size": 9}
EVENTS = {"drip run killed": ("k", ":"), "broker stopped": ("0.5", "-")}
_MEGABYTE = 1e6


def main() -> None:
    """One panel a trial; told apart by line and grey, not by colour."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "endurance_mqtt.jsonl")
    parser.add_argument("--out", type=Path, default=PICTURES / "endurance-mqtt.svg")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    verdicts = [line for line in lines if line["kind"] == "verdict"]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            len(verdicts), 1, figsize=(7, 2.6 * len(verdicts)), squeeze=False, layout="constrained"
        )
        for verdict, axes in zip(verdicts, panels[:, 0], strict=True):
            rows = [row for row in lines if row["kind"] == "second" and row["trial"] == verdict["trial"]]
            draw(axes, rows, verdict)
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8
        )
        panels[-1, 0].set_xlabel("seconds")
        figure.savefig(arguments.out, metadata={"Date": None})


def draw(axes: Axes, rows: list[dict[str, Any]], verdict: dict[str, Any]) -> None:
    """Memory, store and what happened to them, of one trial."""
    pids = list(dict.fromkeys(row["run_pid"] for row in rows))
    for number, pid in enumerate(pids):  # a line for each process: a killed one is not joined to the next
        life = [row for row in rows if row["run_pid"] == pid and row["run_bytes"] and "event" not in row]
        times, sizes = [row["time_s"] for row in life], [row["run_bytes"] / _MEGABYTE for row in life]
        axes.plot(
            times, sizes, "k-", linewidth=1.5, label="resident memory of drip run" if not number else None
        )
    times, sizes = [row["time_s"] for row in rows], [row["store_bytes"] / _MEGABYTE for row in rows]
    axes.plot(times, sizes, "--", color="0.35", linewidth=1.2, label="store on disk")
    for event, (colour, style) in EVENTS.items():
        for number, row in enumerate(row for row in rows if row.get("event") == event):
            axes.axvline(
                row["time_s"], color=colour, linestyle=style, linewidth=0.9, label=None if number else event
            )
    budget_mb, n_messages = verdict["budget_bytes"] / _MEGABYTE, verdict["n_messages"]
    axes.set_title(f"{n_messages:,} messages, budget {budget_mb:.0f} MB", fontsize=9)
    axes.set_ylabel("MB")
    axes.set_ylim(bottom=0)


if __name__ == "__main__":
    main()
