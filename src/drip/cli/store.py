"""`drip store`: inspect, check and export the kept samples."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from drip.cli.arguments import ClassNamesOption, JsonOption, StoreArgument, parse_names
from drip.cli.output import print_error, print_facts, print_json, print_table
from drip.errors import ExportError
from drip.files.format import byte_size
from drip.store.records import Labels

if TYPE_CHECKING:
    from drip.store import RetentionStore, StoreStats


app = typer.Typer(help="Inspect, check and export the kept samples.", no_args_is_help=True)


@app.command()
def stats(store: StoreArgument, *, json_output: JsonOption = False) -> None:
    """Count what was seen, kept, discarded, evicted and quarantined.

    Example: drip store stats kept.db
    """
    from drip.store import RetentionStore

    with RetentionStore.open_readonly(store) as kept:
        found, reasons = kept.stats(), kept.discarded_by_reason()
    if json_output:
        print_json({**asdict(found), "discarded_by_reason": reasons})
        return
    print_stats(found)
    if reasons:
        rows = [[reason, str(count)] for reason, count in reasons.items()]
        print_table("Discarded by reason, in the audit", ["reason", "samples"], rows)


@app.command()
def check(store: StoreArgument, *, json_output: JsonOption = False) -> None:
    """Check the file, every stored sample and every count.

    The exit code is 1 if something is wrong.

    Example: drip store check kept.db
    """
    from drip.store import RetentionStore

    with RetentionStore.open_readonly(store) as kept:
        report = kept.check()
    if json_output:
        print_json({**asdict(report), "ok": report.ok})
    elif report.ok:
        print_facts(f"Store {store}", {"checked": f"{report.n_samples} samples, no problem found"})
    for problem in report.problems if not json_output else ():
        print_error(problem, "store-damaged")
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def export(
    store: StoreArgument,
    *,
    to: Annotated[Path, typer.Option(help="New or empty folder to write to.")],
    layout: Annotated[
        Literal["folder", "webdataset"],
        typer.Option("--format", help="One folder per class, or WebDataset tar shards."),
    ] = "folder",
    labels: Annotated[Labels, typer.Option(help="Which labels to use as class names.")] = "true",
    class_names: ClassNamesOption = "",
    json_output: JsonOption = False,
) -> None:
    """Write the kept samples as an image folder or as WebDataset shards.

    Example: drip store export kept.db --to kept/ --labels predicted
    """
    from drip.store import RetentionStore

    names = parse_names(class_names) or None
    with RetentionStore.open_readonly(store) as kept:
        n_kept = len(kept)
        write = _write_shards if layout == "webdataset" else _write_folder
        n_written = write(kept, to, labels, names)
    if json_output:
        print_json({"to": str(to), "n_written": n_written, "n_left_out": n_kept - n_written})
    else:
        left_out = f"; {n_kept - n_written} have no {labels} label" if n_written < n_kept else ""
        print_facts(f"Exported to {to}", {"written": f"{n_written} samples{left_out}"})
    if n_kept and not n_written:
        print_error(
            f"no kept sample has a {labels} label; --labels predicted exports all {n_kept}", "labels-invalid"
        )
        raise typer.Exit(1)


def _write_folder(kept: RetentionStore, to: Path, labels: Labels, names: tuple[str, ...] | None) -> int:
    from drip.store import export_image_folder

    return export_image_folder(kept, to, labels=labels, class_names=names)


def _write_shards(kept: RetentionStore, to: Path, labels: Labels, names: tuple[str, ...] | None) -> int:
    from drip.store import export_webdataset

    if not len(kept):
        return 0
    was_there = to.exists()
    try:
        to.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise ExportError(
            f"{to.parent} does not exist; create it or choose another folder", code="path-missing"
        ) from error
    except OSError as error:
        raise ExportError(
            f"cannot write {to}: {error.strerror}; choose another folder", code="path-not-writable"
        ) from error
    pattern = f"{to}/shard-%06d.tar".replace("%", "%%", f"{to}".count("%"))
    try:
        export_webdataset(kept, pattern, labels=labels, class_names=names)
    except BaseException:
        if not was_there:
            with suppress(OSError):  # whole shards stay
                to.rmdir()
        raise
    return len(kept)


def _by_whom(stats: StoreStats) -> str:
    """The number of samples kept only because of shadow mode; empty if there are none."""
    if not stats.kept_shadowed:
        return ""
    n_retained = stats.kept - stats.kept_shadowed
    return f": {n_retained} by the rule, {stats.kept_shadowed} only because of shadow mode"


def print_stats(stats: StoreStats) -> None:
    """The counts as tables."""
    print_facts(
        "Store",
        {
            "seen": stats.seen,
            "kept": f"{stats.kept}, {byte_size(stats.kept_bytes)}{_by_whom(stats)}",
            "discarded": stats.discarded,
            "keep rate": f"{1 - stats.discarded / stats.seen:.1%}" if stats.seen else "-",
            "evicted": stats.evicted,
            "duplicates": stats.duplicates,
            "quarantined": stats.quarantined,
            "on disk": f"{byte_size(stats.disk_bytes)} of {byte_size(stats.budget_bytes)}",
        },
    )
    print_table(
        "By predicted class",
        ["class", "seen", "kept", "discarded", "evicted"],
        [
            [str(index), str(part.seen), str(part.kept), str(part.discarded), str(part.evicted)]
            for index, part in sorted(stats.classes.items())
        ],
    )
