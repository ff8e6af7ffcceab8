"""Command line of the experiments: plan, run, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from drip.errors import DripError, InputError
from experiments.ledger import RESULTS, Ledger
from experiments.running import DATASETS, STUDIES, measure, missing, print_plan, units

app = typer.Typer(
    help="Reproduce the DRIP paper and compare selection rules.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()
DOCS = Path(__file__).parent.parent / "docs"
CACHE = Path(__file__).parent.parent / ".cache" / "experiments"

Study = Annotated[list[str] | None, typer.Option("--study", help=f"One of {', '.join(STUDIES)}; repeatable.")]
Data = Annotated[
    list[str] | None, typer.Option("--dataset", help=f"One of {', '.join(DATASETS)}; repeatable.")
]
RegimeName = Annotated[list[str] | None, typer.Option("--regime", help="head or full; repeatable.")]
Seeds = Annotated[
    int | None, typer.Option("--seeds", min=1, help="Runs 0 to n-1; default: what the study asks for.")
]
Results = Annotated[Path, typer.Option("--results", help="Folder of the result files.")]


@app.command()
def plan(
    study: Study = None,
    dataset: Data = None,
    regime: RegimeName = None,
    seeds: Seeds = None,
    results: Results = RESULTS,
) -> None:
    """Show what is missing, and estimate the core-hours from what was measured."""
    ledger = Ledger(results)
    print_plan(console, ledger, missing(ledger, units(study, regime, dataset, seeds)))


@app.command()
def run(
    study: Study = None,
    dataset: Data = None,
    regime: RegimeName = None,
    seeds: Seeds = None,
    results: Results = RESULTS,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Only this arm; repeatable.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=100, help="A quick look at so many rows; needs other --results.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the full regime trains: cpu or cuda.")] = "cpu",
    cache: Annotated[Path, typer.Option(help="Folder for features and trained models.")] = CACHE,
) -> None:
    """Measure what is missing, run by run; may be killed and started again, also twice at once."""
    usual = results.resolve() == RESULTS.resolve()
    if usual and rows is not None:
        raise InputError(f"--rows {rows}: its lines would replace the full ones; add --results FOLDER")
    ledger = Ledger(results, CACHE / "locks" if usual else None)  # claims belong to results, not to a cache
    measure(console, ledger, units(study, regime, dataset, seeds), cache, device, arms=arm, n_rows=rows)


@app.command()
def report(
    results: Results = RESULTS,
    docs: Annotated[Path, typer.Option(help="Folder of the documentation.")] = Path(__file__).parent.parent
    / "docs",
) -> None:
    """Write the pages, tables and figures that are made from the result files."""
    from experiments.report import write  # noqa: PLC0415

    for path in write(results, docs):
        console.print(path)


def main() -> None:
    """Run a command; what cannot be done ends in one line, not in a traceback."""
    try:
        app()
    except DripError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
