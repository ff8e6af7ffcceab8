"""`drip reduce`: fewer rows of a table that stand for all."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from drip.cli.arguments import JsonOption, require_writable
from drip.cli.output import print_facts, print_json, print_lines, print_table, progress_stages
from drip.report.quantities import byte_size, percent, significant

if TYPE_CHECKING:
    from drip.report.reduction import ReductionReport

MAX_JOBS = 256


def reduce(
    data: Annotated[Path, typer.Argument(help="A table *.csv, *.tsv* or *.parquet*.", show_default=False)],
    *,
    out: Annotated[
        Path, typer.Option(help="File for the kept rows, of the table's format, with all its columns.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="stratified-random, maxmin, cluster-centroids (keeps the rows next to the centroids), "
            "protodash, distance-entropy, matrix-decomposition, persistent-homology, forgetting-events, "
            "representative-kmeans or moderate-coreset."
        ),
    ] = "maxmin",
    fraction: Annotated[
        float | None, typer.Option(help="Share to keep, in (0, 1]; a tenth when no size is given.")
    ] = None,
    n_samples: Annotated[int | None, typer.Option(help="Number to keep.")] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Largest distance from a row to a kept row of its class, on the scaled features."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of the class; one class when not given.")] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="Column that is kept but not looked at, such as a name; may be given several times."
        ),
    ] = None,
    stratify: Annotated[
        Literal["proportional", "balanced", "global"],
        typer.Option(help="Sizes of classes; *global* is one cut over all and may lose some."),
    ] = "proportional",
    min_per_class: Annotated[int, typer.Option(help="Least that a class keeps.", min=1)] = 1,
    metric: Annotated[
        Literal["euclidean", "chebyshev"],
        typer.Option(help="Distance of the method; chebyshev is L-infinity."),
    ] = "euclidean",
    scale: Annotated[
        Literal["minmax", "standard", "none"],
        typer.Option(
            help="Scaling of every feature before distances are taken; the kept file is not scaled."
        ),
    ] = "minmax",
    separator: Annotated[
        str | None,
        typer.Option(help="Character between columns of a text table; by its suffix when not given."),
    ] = None,
    index_column: Annotated[
        str | None, typer.Option(help="Name of a further first column with the row's number, from 0.")
    ] = None,
    weight_column: Annotated[
        str | None, typer.Option(help="Name of a further last column with the rows that each stands for.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="File for a page with sizes, distances and cost.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Compute the representativeness, which takes long where many rows are kept.")
    ] = True,
    watts: Annotated[
        float | None,
        typer.Option(help="Power of one busy core in W, for an estimate of the energy where no sensor is."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the method.", min=0, max=2**32 - 1)] = 0,
    jobs: Annotated[int, typer.Option(help="Threads.", min=1, max=MAX_JOBS)] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the kept file where it exists.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Keep the rows of a table that stand for all, and say how well they do and what it cost.

    All columns but the label and the ignored ones must be numbers.

    Example: drip reduce table.csv --label Class --method maxmin --fraction 0.1 --out kept.csv --report r.html
    """
    from drip.workflow.reducing import ReduceOptions
    from drip.workflow.tables import reduce_table

    options = ReduceOptions(
        method, fraction, n_samples, epsilon, stratify, min_per_class, metric, scale, seed, jobs, check, watts
    )
    require_outputs(data, out, report)
    with progress_stages() as update:
        found = reduce_table(
            data, out, options, label=label, ignore=ignore or (), separator=separator, overwrite=overwrite,
            index_column=index_column, weight_column=weight_column,
            on_progress=lambda stage, done, total: update(stage, done, total, ""),
        )  # fmt: skip
    finish(found.report, out, report, json_output=json_output)


def require_outputs(data: Path, out: Path, report: Path | None) -> None:
    """Refuse outputs that could not be written at the end, or that are the input or each other."""
    require_writable(out, data)
    if report is not None:
        require_writable(report, data)
        if report.resolve() == out.resolve():
            raise typer.BadParameter("two files are needed, got one path for --out and --report")


def finish(found: ReductionReport, out: Path, page: Path | None, *, json_output: bool) -> None:
    """Write the page where one is wanted, and print the numbers."""
    from drip.report.reduction import write_reduction_html

    if page is not None:
        write_reduction_html(found, page)
    if json_output:
        print_json({**asdict(found), "out": str(out), "report": None if page is None else str(page)})
    else:
        print_reduction(found, out, page)


def print_reduction(found: ReductionReport, out: Path, page: Path | None) -> None:
    """The numbers for people."""
    from drip.report.reduction import distance, energy_text

    whole = found.overall
    facts = {
        "method": found.method,
        "kept": f"{whole.n_kept} of {whole.n} {found.rows} ({percent(whole.n_kept / whole.n)})",
        "time": f"{significant(found.seconds)} s, of processors {significant(found.cpu_seconds)} s",
        "energy": energy_text(found),
        "its source": found.energy_source,
        "peak memory": byte_size(found.peak_bytes),
        "written": f"{out}" if page is None else f"{out}, {page}",
    }
    print_facts(found.title, facts)
    print_table(
        "By class; distances to the nearest kept one, on the scaled features",
        [found.class_word, "all", "kept", "farthest L\u221e", "mean L\u221e", "farthest L2", "mean L2"],
        [
            [
                part.name, str(part.n), str(part.n_kept),
                *(distance(value) for value in (
                    part.epsilon_chebyshev, part.mean_chebyshev, part.epsilon_euclidean, part.mean_euclidean
                )),
            ]
            for part in (*found.classes, whole)
        ],
    )  # fmt: skip
    print_lines(found.notes)
