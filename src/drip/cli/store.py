"""`drip store` and `drip populations`: what a store contains, and what a person says about it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import gmtime, strftime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from drip.cli.arguments import (
    ClassNamesOption,
    JsonOption,
    StoreArgument,
    is_model_file,
    load_model_file,
    parse_names,
    require_files,
    require_writable,
)
from drip.cli.output import print_error, print_facts, print_json, print_lines, print_table
from drip.errors import ExportError, InputError, PolicyError
from drip.files.format import byte_size
from drip.store.records import Labels

if TYPE_CHECKING:
    from drip.policy import Policy
    from drip.store import RetentionStore, StoreStats
    from drip.types import JsonObject


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

    given = parse_names(class_names)  # before the store is opened: wrong usage comes first
    with RetentionStore.open_readonly(store) as kept:
        names = given or _known_names(kept)
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


def _known_names(kept: RetentionStore) -> tuple[str, ...] | None:
    """The names that the runs noted; None if they are unknown, or no names for folders."""
    from drip.store.exports import require_names

    names = kept.stats().class_names
    with suppress(InputError):
        require_names(names)
        return names or None
    return None


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
    names = dict(enumerate(stats.class_names))
    print_table(
        "By predicted class",
        ["class", "seen", "kept", "discarded", "evicted"],
        [
            [
                names.get(index, str(index)),
                str(part.seen),
                str(part.kept),
                str(part.discarded),
                str(part.evicted),
            ]
            for index, part in sorted(stats.classes.items())
        ],
    )


def populations(
    store: StoreArgument,
    answer: Annotated[
        Literal["accept", "ignore"] | None,
        typer.Argument(
            metavar="[ANSWER]",
            help="accept: keep up to four times its part of the stream. ignore: keep none.",
        ),
    ] = None,
    number: Annotated[
        int | None, typer.Argument(metavar="[NUMBER]", help="Number of the population.", min=2)
    ] = None,
    *,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Policy of the run, or its model file; needed for an answer."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Policy file to write.", show_default="replace --policy in one step"),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """List the kinds of input that a run has met, or answer for one.

    Population 1 is what calibration contained. Any other may be junk or a new camera; the inputs alone do not
    show which. An answer is written into the policy; the store is only read. Start drip run again with that
    policy: it continues where it stopped.

    Example: drip populations kept.db

    Example: drip populations kept.db ignore 2 --policy policy.json
    """
    if (answer is None) != (number is None):
        raise typer.BadParameter("give accept or ignore together with a number, such as accept 2")
    if answer is None or number is None:
        if policy is not None or out is not None:
            raise typer.BadParameter("--policy and --out are for an answer, such as accept 2")
        _list_populations(store, json_output=json_output)
        return
    if policy is None:
        raise typer.BadParameter("--policy is missing; give the policy of the run")
    if out is not None and is_model_file(str(out)):
        raise typer.BadParameter(
            "--out writes a policy file; drip model set-policy embeds it in a model file"
        )
    require_files(policy)
    require_writable(out or policy, store)
    from drip.workflow import answer_population

    answered = answer_population(store, _load_policy(policy), number, answer)
    if out is None and is_model_file(str(policy)):
        from drip.onnx import set_policy

        set_policy(policy, answered)
    else:
        answered.save(out or policy)
    answers = {each["number"]: each["answer"] for each in answered.rule.params["answers"]}
    if json_output:
        print_json({"policy": str(out or policy), "digest": answered.digest, "answers": answers})
        return
    facts: dict[str, object] = {f"population {each}": said for each, said in sorted(answers.items())}
    print_facts("Answers", {"policy": out or policy, **facts})
    print_lines(["Start drip run again with this policy; it continues where it stopped."])


def _load_policy(path: Path) -> Policy:
    from drip.policy import Policy

    if not is_model_file(str(path)):
        return Policy.load(path)
    embedded = load_model_file(str(path), None, 1).policy
    if embedded is None:
        raise PolicyError(
            f"{path}: contains no policy; give the policy file of the run", code="policy-missing"
        )
    return embedded


def _list_populations(store: Path, *, json_output: bool) -> None:
    from drip.workflow import populations_of

    found = populations_of(store)
    if json_output:
        print_json({"populations": found})
        return
    rows = [
        [
            f"{each['number']} (calibration)" if each["number"] == 1 else str(each["number"]),
            _since(each),
            f"{each['share']:.1%}",
            str(each["arrivals"]),
            str(each["kept"]),
            each["answer"] or "-",
        ]
        for each in found
    ]
    print_table("Populations", ["number", "since", "part now", "arrivals", "kept", "answer"], rows)


def announcement(population: JsonObject, store: Path) -> str:
    """What a run says once about a population that it has recognised."""
    return (
        f"a new kind of input since {_since(population)}: {population['share']:.0%} of the stream, "
        f"{population['kept']} of {population['arrivals']} kept. It is population {population['number']}; look at "
        f"what was kept of it, then accept or ignore it with drip populations {store}"
    )


def _since(population: JsonObject) -> str:
    """When its first sample arrived."""
    if not population["since"]:
        return "-"
    arrival = f"arrival {population['since']}"
    if population["since_s"] is None:
        return arrival
    try:
        return strftime("%Y-%m-%d %H:%M UTC", gmtime(population["since_s"]))
    except (OverflowError, ValueError, OSError):  # a sensor's clock may be far off
        return arrival
