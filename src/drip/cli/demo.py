"""`drip demo`: the whole method on real digits, with a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from drip.cli.arguments import DpwOption, JsonOption, KeepOption, keep_rate
from drip.cli.output import (
    print_facts,
    print_json,
    print_lines,
    print_table,
    progress_stages,
)

if TYPE_CHECKING:
    from drip.report import RunReport


_FILES = {"report": "report.html", "model": "model.pt", "policy": "policy.json", "store": "kept.db"}


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the model, policy, store and report.")] = Path(
        "drip-demo"
    ),
    seed: Annotated[
        int, typer.Option(help="Random seed for the split and the training.", min=0, max=2**32 - 1)
    ] = 0,
    keep: KeepOption = None,
    dpw: DpwOption = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes per training.", min=1, show_default="10; 4 with the full data set"),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Run the whole method on real digits and write a report.

    Trains, calibrates, selects from a stream, retrains and compares. Uses the 10,000 digits in the package,
    or all 70,000 if the folder in DRIP_DATA contains them.
    """
    from drip.demo import DemoConfig, run_demo
    from drip.report import write_html

    rate = keep_rate(keep, dpw)
    with progress_stages() as on_stage:
        report = run_demo(DemoConfig(out, seed, 0.6 if rate is None else rate, epochs), on_stage)
    write_html(report, out / _FILES["report"])
    if json_output:
        print_json(report_facts(report))
    else:
        print_report(report, out)


def report_facts(report: RunReport) -> dict[str, object]:
    """The numbers of the table and the findings, as JSON values."""
    from drip.report import findings

    return {
        "dataset": report.dataset,
        "split": dict(report.split),
        "arms": [
            {
                "name": arm.name,
                "accuracy": arm.accuracy,
                "n_kept": arm.n_kept,
                "retention": report.retention(arm),
                "bytes_kept": arm.bytes_kept,
                "bytes_saved": report.bytes_seen - arm.bytes_kept,
                "errors_kept": arm.errors_kept,
            }
            for arm in report.arms
        ],
        "decision_ms_median": float(np.median(report.decision_ms)),
        "findings": findings(report),
    }


def print_report(report: RunReport, folder: Path) -> None:
    """Print a part of the report's table, what its uncertainty means, and the findings."""
    from drip.report import COLUMNS, findings, rows, uncertainty

    shown = ("Arm", "Accuracy", "Minus random", "Kept", "Keep rate", "Model errors kept")
    columns = [COLUMNS.index(name) for name in shown]
    print_table(
        f"{report.dataset}, test set of {report.n_test}",
        list(shown),
        [[row.cells[column] for column in columns] for row in rows(report)],
    )
    print_lines([uncertainty(report), *findings(report)])
    print_facts("", {name: folder / file for name, file in _FILES.items()})
