"""`drip reduce table` and `drip reduce images`: write a representative subset and report its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from drip.cli.arguments import (
    JsonOption,
    is_model_file,
    parse_distance,
    parse_input_spec,
    parse_part,
    parse_watts,
    require_files,
    require_inputs,
    require_writable,
)
from drip.cli.output import print_facts, print_json, print_lines, print_table, progress_stages
from drip.files.format import byte_size, percent, significant
from drip.media import InputSpec

if TYPE_CHECKING:
    from drip.reduction.report import ReductionReport

MAX_JOBS = 256
_MOST_PROBLEMS = 20

app = typer.Typer(
    help="Reduce a table or a folder of images to a representative subset.", no_args_is_help=True
)


def parse_image_spec(text: str) -> InputSpec:
    """Parse an input spec, with the defaults of networks pretrained on ImageNet.

    Raises:
        typer.BadParameter: not an input spec.
    """
    from drip.workflow.features import IMAGENET

    return parse_input_spec(text, IMAGENET)


MethodOption = Annotated[
    str,
    typer.Option(
        help="stratified-random, maxmin, cluster-centroids (keeps the rows nearest to the centroids), "
        "protodash, distance-entropy, matrix-decomposition, persistent-homology, forgetting-events, "
        "representative-kmeans or moderate-coreset."
    ),
]
KeepOption = Annotated[
    float | None,
    typer.Option(
        parser=parse_part, metavar="RATE", help="Keep rate, in (0, 1]; 0.1 if no size option is given."
    ),
]
NumberOption = Annotated[
    int | None, typer.Option(help="Number of rows or images to keep, instead of --keep.", min=1)
]
StratifyOption = Annotated[
    Literal["proportional", "balanced", "global"],
    typer.Option(help="How many rows each class keeps; global selects across classes and may lose some."),
]
ReportOption = Annotated[
    Path | None, typer.Option(help="HTML report to write, with sizes, distances and cost.")
]
CheckOption = Annotated[
    bool,
    typer.Option(help="Measure how well the subset represents the input; slow for large inputs."),
]
WattsOption = Annotated[
    float | None,
    typer.Option(
        parser=parse_watts,
        metavar="WATTS",
        help="Power of one busy core in W, to estimate the energy without a sensor.",
    ),
]
SeedOption = Annotated[int, typer.Option(help="Random seed for the method.", min=0, max=2**32 - 1)]
JobsOption = Annotated[int, typer.Option(help="Threads.", min=1, max=MAX_JOBS)]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite/--no-overwrite", show_default=False, help="Replace the --out file if it exists."
    ),
]


@app.command("table")
def table(
    path: Annotated[
        Path, typer.Argument(metavar="TABLE", help="A .csv, .tsv or .parquet file.", show_default=False)
    ],
    *,
    out: Annotated[Path, typer.Option(help="File for the kept rows, in the table's format.")],
    label: Annotated[
        str | None, typer.Option(help="Column with the class labels; without it, all rows form one class.")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="Column to write but not use as a feature, such as a name; repeatable."),
    ] = None,
    method: MethodOption = "maxmin",
    keep: KeepOption = None,
    n_samples: NumberOption = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            parser=parse_distance,
            metavar="NUMBER",
            help="Largest distance from a row to a kept row of its class; instead of --keep.",
        ),
    ] = None,
    stratify: StratifyOption = "proportional",
    metric: Annotated[
        Literal["euclidean", "chebyshev"], typer.Option(help="Distance; chebyshev is L-infinity.")
    ] = "euclidean",
    scale: Annotated[
        Literal["minmax", "standard", "none"],
        typer.Option(help="Scaling of the features for distances; the written cells are not scaled."),
    ] = "minmax",
    separator: Annotated[
        str | None, typer.Option(help="Column separator; by default it depends on the file suffix.")
    ] = None,
    index_column: Annotated[
        str | None, typer.Option(help="Name of an additional first column with row numbers, from 0.")
    ] = None,
    weight_column: Annotated[
        str | None,
        typer.Option(help="Name of an additional last column with the number of rows that each represents."),
    ] = None,
    report: ReportOption = None,
    check: CheckOption = True,
    watts: WattsOption = None,
    seed: SeedOption = 0,
    jobs: JobsOption = 1,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Reduce a table to a representative subset of its rows.

    All columns except the label and the ignored ones must be numeric.

    Example: drip reduce table beans.csv --label Class --keep 0.1 --out kept.csv --report report.html
    """
    from drip.reduction.running import ReduceOptions
    from drip.reduction.tables import TableOptions, reduce_table

    require_files(path)
    require_outputs(out, report, path)
    options = ReduceOptions(
        method, keep, n_samples, epsilon, stratify,
        metric=metric, scale=scale, seed=seed, jobs=jobs, check=check, watts=watts,
    )  # fmt: skip
    columns = TableOptions(label, tuple(ignore or ()), separator, index_column, weight_column)
    with progress_stages() as update:
        found = reduce_table(path, out, options, columns, overwrite=overwrite, on_progress=_stage(update))
    finish(found.report, out, report, {}, json_output=json_output)


@app.command("images")
def images(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of images: in class folders, with YOLO labels (images/ and labels/), with "
            "--annotations, or without labels.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="File for the list of kept images.")],
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="COCO JSON file with boxes.")
    ] = None,
    copy_to: Annotated[
        Path | None,
        typer.Option(
            help="New folder for copies of the kept images and labels; boxes are written as YOLO files."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Network for the features: model.onnx with the output features, or "
            "package.module:factory of a PyTorch network; MobileNetV2 by default."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Weights of the PyTorch network (state_dict); MobileNetV2 also from .npz."
        ),
    ] = None,
    input_spec: Annotated[
        InputSpec | None,
        typer.Option(
            parser=parse_image_spec,
            metavar="SPEC",
            help='Input spec of the PyTorch network, such as "3x96x96 resize=crop mean=0.5"; ImageNet by default.',
        ),
    ] = None,
    method: MethodOption = "maxmin",
    keep: KeepOption = None,
    n_samples: NumberOption = None,
    stratify: StratifyOption = "proportional",
    min_images: Annotated[
        int | None,
        typer.Option(help="Minimum number of images per box category; by default enough to keep one.", min=1),
    ] = None,
    cover: Annotated[
        bool,
        typer.Option(
            "--cover/--no-cover",
            show_default=False,
            help="Add images until every box class appears in at least one.",
        ),
    ] = False,
    report: ReportOption = None,
    check: CheckOption = True,
    watts: WattsOption = None,
    seed: SeedOption = 0,
    jobs: JobsOption = 1,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """List and copy a representative subset of a folder of images.

    Images are compared by network features, within their class or box category.

    Example: drip reduce images photos/ --weights mobilenet_v2.npz --keep 0.1 --out kept.txt --copy-to subset/
    """
    from drip.reduction.images import ImageOptions, reduce_images
    from drip.reduction.running import ReduceOptions
    from drip.workflow.features import open_backbone

    require_inputs(folder)
    model_file = model if model is not None and is_model_file(model) else None
    require_files(annotations, weights, model_file)
    require_outputs(out, report, folder, annotations, weights, model_file, copy_to=copy_to)
    options = ReduceOptions(
        method, keep, n_samples, None, stratify, seed=seed, jobs=jobs, check=check, watts=watts
    )
    # Both wings meet here: the reduction wing knows no model, so it gets the network from the device wing.
    network = open_backbone(model, weights, input_spec)
    how = ImageOptions(annotations, copy_to, min_images, cover)
    with progress_stages() as update:
        kept = reduce_images(
            folder, out, options, network, how, overwrite=overwrite, on_progress=_stage(update)
        )
    more = {
        "coverage": None if kept.coverage is None else asdict(kept.coverage),
        "kept": list(kept.names),
    }
    finish(kept.reduced.report, out, report, more, json_output=json_output)


def _stage(update: Callable[[str, int, int | None, str], None]) -> Callable[[str, int, int], None]:
    """The progress of a reduction as a stage of the bar, without a note."""
    return lambda stage, done, total: update(stage, done, total, "")


def require_outputs(
    out: Path, report: Path | None, *inputs: Path | str | None, copy_to: Path | None = None
) -> None:
    """Check that the outputs can be written, and are neither an input nor each other."""
    require_writable(out, *inputs)
    if report is not None:
        require_writable(report, *inputs)
        if report.resolve() == out.resolve():
            raise typer.BadParameter("--out and --report are the same file; choose different paths")
    if copy_to is not None and copy_to.resolve() in [path.resolve() for path in (out, report) if path]:
        raise typer.BadParameter("--copy-to is also a file to write; choose different paths")


def finish(
    found: ReductionReport, out: Path, page: Path | None, more: dict[str, Any], *, json_output: bool
) -> None:
    """Write the report, if there is one, and print the numbers."""
    from drip.reduction.report import write_reduction_html

    if page is not None:
        write_reduction_html(found, page)
    if json_output:
        print_json({**asdict(found), **more, "out": str(out), "report": None if page is None else str(page)})
    else:
        print_reduction(found, out, page)


def print_reduction(found: ReductionReport, out: Path, page: Path | None) -> None:
    """Print the numbers as tables."""
    from drip.reduction.report import distance, energy_text

    whole = found.overall
    facts = {
        "method": found.method,
        "kept": f"{whole.n_kept} of {whole.n} {found.rows} ({percent(whole.n_kept / whole.n)})",
        "time": f"{significant(found.seconds)} s ({significant(found.cpu_seconds)} s of processor time)",
        "energy": energy_text(found),
        "energy source": found.energy_source,
        "peak memory": byte_size(found.peak_bytes),
        "written": f"{out}" if page is None else f"{out}, {page}",
    }
    print_facts(found.title, facts)
    print_table(
        "By class: distance to the nearest kept neighbour, on the scaled features",
        [found.class_word, "all", "kept", "largest L\u221e", "mean L\u221e", "largest L2", "mean L2"],
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
    if found.problems:
        print_lines([f"{len(found.problems)} problems:", *found.problems[:_MOST_PROBLEMS]])
