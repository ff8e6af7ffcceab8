"""`drip reduce`: fewer rows of a table, or images of a folder, that stand for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from drip.cli.arguments import JsonOption, parse_numbers, parse_shape, require_writable
from drip.cli.output import print_facts, print_json, print_lines, print_table, progress_stages
from drip.files.format import byte_size, percent, significant
from drip.media import InputSpec, Resize

if TYPE_CHECKING:
    from drip.reduction.images import ImageOptions
    from drip.reduction.report import ReductionReport

MAX_JOBS = 256
_MOST_PROBLEMS = 20
Update = Callable[[str, int, int | None, str], None]


def reduce(
    data: Annotated[
        Path,
        typer.Argument(
            help="A table *.csv, *.tsv* or *.parquet*; or a folder of images: with class folders, with YOLO "
            "labels (*images/* beside *labels/*), with *--annotations*, or without labels.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(help="File for the kept rows, in the table's format; or for the list of kept images."),
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
        Literal["minmax", "standard", "none"] | None,
        typer.Option(
            help="Scaling of every feature before distances are taken; minmax for tables and none for images "
            "when not given. What is written is not scaled."
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of the class; one class when not given.")] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="Column that is kept but not looked at, such as a name; may be given several times."
        ),
    ] = None,
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
    annotations: Annotated[
        Path | None,
        typer.Option(help="COCO json file of the boxes in the images.", exists=True, dir_okay=False),
    ] = None,
    copy_to: Annotated[
        Path | None,
        typer.Option(help="New or empty folder for copies of the kept images and labels; boxes as YOLO."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Network for the features of images: *model.onnx* with the output *features*, or "
            "*package.module:factory* of a torch classifier or backbone; MobileNetV2 when not given."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The network's state_dict (torch.save); for MobileNetV2 also an npz file.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Shape of an input of a torch network; 3,224,224 when not given.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Mean per channel that training subtracted; ImageNet's when not given.")
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="Standard deviation per channel that it divided by; ImageNet's when not given."),
    ] = None,
    resize: Annotated[
        Resize | None,
        typer.Option(
            help="Other sizes: *stretch*, when not given, keeps all of the image, *crop* its middle."
        ),
    ] = None,
    min_images: Annotated[
        int | None,
        typer.Option(help="Least images of a category of boxes; as many as keep one when not given.", min=1),
    ] = None,
    cover: Annotated[
        bool, typer.Option("--cover", help="Keep further images until every class of boxes has one.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="File for a page with sizes, distances and cost.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            help="Compute the representativeness; *--no-check* for large tables, where it takes longest."
        ),
    ] = True,
    watts: Annotated[
        float | None,
        typer.Option(help="Power of one busy core in W, for an estimate of the energy where no sensor is."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the method.", min=0, max=2**32 - 1)] = 0,
    jobs: Annotated[int, typer.Option(help="Threads.", min=1, max=MAX_JOBS)] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of *--out* where it exists.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Keep the rows of a table, or the images of a folder, that stand for all; say how well and at what cost.

    All columns of a table but the label and the ignored ones must be numbers. Images are compared by the
    features of a network, within their class or the category of their boxes.

    Example: drip reduce table.csv --label Class --method maxmin --fraction 0.1 --out kept.csv --report r.html

    Example: drip reduce images/ --weights mobilenet_v2.npz --fraction 0.1 --out kept.txt --copy-to fewer/
    """
    asked = Asked(
        table={"label": label, "ignore": tuple(ignore or ()), "separator": separator,
               "index_column": index_column, "weight_column": weight_column},
        images={"annotations": annotations, "copy_to": copy_to, "model": model, "weights": weights,
                "shape": shape, "mean": mean, "std": std, "resize": resize, "min_images": min_images,
                "cover": cover},
    )  # fmt: skip
    options = {"fraction": fraction, "n_samples": n_samples, "epsilon": epsilon, "stratify": stratify,
               "min_per_class": min_per_class, "metric": metric, "scale": scale, "seed": seed, "jobs": jobs,
               "check": check, "watts": watts}  # fmt: skip
    require_outputs(data, out, report)
    with progress_stages() as update:
        found, more = asked.reduce(data, out, method, options, update, overwrite=overwrite)
    finish(found, out, report, more, json_output=json_output)


@dataclass(frozen=True, slots=True)
class Asked:
    """Options that are for tables alone, and for images alone."""

    table: dict[str, Any]
    images: dict[str, Any]

    def reduce(
        self, data: Path, out: Path, method: str, options: dict[str, Any], update: Update, *, overwrite: bool
    ) -> tuple[ReductionReport, dict[str, Any]]:
        """The report of a table or a folder, and what it lacks for scripts."""
        from drip.reduction.running import ReduceOptions

        how = ReduceOptions(method, **options)

        def tell(stage: str, done: int, total: int) -> None:
            update(stage, done, total, "")

        if not data.is_dir():
            from drip.reduction.tables import TableOptions, reduce_table

            self._refuse(self.images, "images")
            table = TableOptions(**self.table)
            return reduce_table(data, out, how, table, overwrite=overwrite, on_progress=tell).report, {}
        from drip.reduction.images import reduce_images

        self._refuse(self.table, "tables")
        kept = reduce_images(data, out, how, self.image_options(), overwrite=overwrite, on_progress=tell)
        return kept.reduced.report, {
            "coverage": None if kept.coverage is None else asdict(kept.coverage),
            "kept": list(kept.names),
        }

    def image_options(self) -> ImageOptions:
        """The options of images with the texts as values."""
        from drip.reduction.images import ImageOptions
        from drip.workflow.features import IMAGENET

        given = dict(self.images)
        shape, mean, std, resize = (given.pop(name) for name in ("shape", "mean", "std", "resize"))
        spec = InputSpec(
            parse_shape(shape) if shape else IMAGENET.shape,
            resize or IMAGENET.resize,
            parse_numbers(mean) if mean else IMAGENET.mean,
            parse_numbers(std) if std else IMAGENET.std,
        )
        return ImageOptions(**given, spec=None if spec == IMAGENET else spec)

    @staticmethod
    def _refuse(values: dict[str, Any], what: str) -> None:
        given = [f"--{name.replace('_', '-')}" for name, value in values.items() if value]
        if given:
            raise typer.BadParameter(f"these options are for {what}: {', '.join(given)}; leave them out")


def require_outputs(data: Path, out: Path, report: Path | None) -> None:
    """Refuse outputs that could not be written at the end, or that are the input or each other."""
    require_writable(out, data)
    if report is not None:
        require_writable(report, data)
        if report.resolve() == out.resolve():
            raise typer.BadParameter("two files are needed, got one path for --out and --report")


def finish(
    found: ReductionReport, out: Path, page: Path | None, more: dict[str, Any], *, json_output: bool
) -> None:
    """Write the page where one is wanted, and print the numbers."""
    from drip.reduction.report import write_reduction_html

    if page is not None:
        write_reduction_html(found, page)
    if json_output:
        print_json({**asdict(found), **more, "out": str(out), "report": None if page is None else str(page)})
    else:
        print_reduction(found, out, page)


def print_reduction(found: ReductionReport, out: Path, page: Path | None) -> None:
    """The numbers for people."""
    from drip.reduction.report import distance, energy_text

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
    if found.problems:
        print_lines([f"{len(found.problems)} problems:", *found.problems[:_MOST_PROBLEMS]])
