"""`drip run`: run a policy on a stream and keep what it selects."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from drip.cli.arguments import (
    INTERRUPTED,
    MAX_BATCH_SIZE,
    JsonOption,
    ModelArgument,
    ProviderOption,
    ThreadsOption,
    WeightsOption,
    is_model_file,
    load_model_file,
    load_torch_model,
    parse_bytes,
    require_file,
    require_files,
    require_status_path,
    stop_on_signals,
)
from drip.cli.output import print_facts, print_json, print_lines, print_note, progress_bar
from drip.cli.store import announcement, print_stats
from drip.files.format import byte_size
from drip.pipeline import OnError, Tally

if TYPE_CHECKING:
    from drip.workflow import RunResult


def run(
    model: ModelArgument,
    *,
    source: Annotated[str, typer.Option(help="Folder of images, audio files or arrays, or a URL.")],
    store: Annotated[Path, typer.Option(help="Store file; created if it does not exist.")],
    policy: Annotated[
        Path | None,
        typer.Option(help="Policy file for this model.", show_default="the policy in the model file"),
    ] = None,
    weights: WeightsOption = None,
    budget: Annotated[
        int | None,
        typer.Option(
            parser=parse_bytes,
            metavar="SIZE",
            help="Maximum size of the store on disk, such as 500MB or 2GiB.",
            show_default="unchanged; 1GB for a new store",
        ),
    ] = None,
    eviction: Annotated[
        Literal["priority", "fifo"] | None,
        typer.Option(
            help="What a full store evicts first: the lowest priority, or the oldest.",
            show_default="unchanged; priority for a new store, fifo with --shadow",
        ),
    ] = None,
    shadow: Annotated[
        bool,
        typer.Option(
            "--shadow/--no-shadow",
            help="Keep every sample; only record what the rule decides.",
            show_default=False,
        ),
    ] = False,
    on_error: Annotated[
        OnError, typer.Option(help="What to do with a sample that cannot be decoded or scored.")
    ] = "quarantine",
    batch_size: Annotated[
        int,
        typer.Option(
            help=f"Samples scored and committed together, 1 to {MAX_BATCH_SIZE}.",
            min=1,
            max=MAX_BATCH_SIZE,
        ),
    ] = 32,
    threads: ThreadsOption = 1,
    provider: ProviderOption = None,
    accept_parent_windows: Annotated[
        bool,
        typer.Option(
            "--accept-parent-windows/--no-accept-parent-windows",
            help="For an int8 file, accept windows fitted before quantisation.",
            show_default=False,
        ),
    ] = False,
    decisions: Annotated[
        str,
        typer.Option(metavar="URL", help="Publish every committed decision to mqtt://host/topic."),
    ] = "",
    status_file: Annotated[
        Path | None,
        typer.Option(help="Rewrite this JSON file every second; put it on tmpfs."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Decide on each sample of a stream and store the kept ones.

    The policy names the rule. Run the same command again to continue where it stopped. SIGTERM ends the
    run after the current batch.

    Example: drip run model.onnx --source frames/ --store kept.db --budget 2GB

    Example: drip run mymodel:build --weights w.pt --policy policy.json --source frames/ --store kept.db
    """
    from drip.policy import Policy
    from drip.workflow import RunOptions, RunStatus, run_url

    options = RunOptions(budget, eviction, shadow, accept_parent_windows, batch_size, on_error, decisions)
    str(store).encode()  # SQLite opens only UTF-8 names, and would fail after the lock file is made
    require_file(store)
    require_status_path(status_file)
    if status_file is not None and status_file.resolve() == store.resolve():
        raise typer.BadParameter("--store and --status-file are the same file; choose different paths")
    # Signals first: a SIGTERM while the model loads must also end the run in order. The status comes last,
    # so its end is written before anything else can fail.
    with stop_on_signals() as stop, progress_bar("deciding") as update, RunStatus(status_file) as status:
        require_files(policy)
        load = load_model_file if is_model_file(model) else load_torch_model
        network = load(model, weights, threads, provider)
        chosen = None if policy is None else Policy.load(policy)
        result = run_url(
            network, chosen, source, store, options, status=status, on_progress=update, stop=stop,
            on_population=lambda found: print_note(announcement(found, store)),
        )  # fmt: skip
    if status.problem:
        print_note(f"the run continued without its status file: {status.problem}")
    print_run(result, json_output=json_output)
    if result.tally.interrupted:
        print_note(INTERRUPTED)
        raise typer.Exit(130)
    if result.error is not None:
        raise result.error


def _by_reason(tally: Tally) -> str:
    """The number of discarded samples, and how many for each reason if there are several."""
    counts = sorted(tally.discarded_by_reason.items(), key=lambda pair: -pair[1])
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
    return f"{tally.n_discarded}: {reasons}" if reasons else "0"


def print_run(result: RunResult, *, json_output: bool) -> None:
    """The counts of this run and of the store."""
    tally, stats = result.tally, result.stats
    if json_output:
        counts = {**asdict(tally), "retention": tally.retention, "n_disagreements": result.n_disagreements}
        counts |= {"n_published": result.n_published, "n_unpublished": result.n_unpublished}
        print_json({"run": counts, "store": asdict(stats)})
        return
    if not tally.n_seen and tally.interrupted:
        print_lines(["No sample arrived before the run was stopped."])
    elif not tally.n_seen:
        print_lines(["No new samples since the last run. Use another --store to start over."])
    rate = f" ({tally.retention:.1%})" if tally.n_retained + tally.n_discarded else ""
    per_sample = sum(tally.seconds[stage] for stage in ("score", "decide")) / max(tally.n_seen, 1)
    print_facts(
        "This run",
        {
            "seen": f"{tally.n_seen} samples, {byte_size(tally.bytes_seen)}",
            "kept": f"{tally.n_retained}{rate}, {byte_size(tally.bytes_retained)}",
            "discarded": _by_reason(tally),
            "unreadable": f"{tally.n_quarantined} quarantined, {tally.n_skipped} skipped",
            "score and decide": f"{1e3 * per_sample:.2f} ms per sample",
        },
    )
    if stats.audit_shadowed:
        print_lines([f"--shadow kept {stats.audit_shadowed} samples that the rule discards."])
    if result.n_unpublished:
        print_lines([f"{result.n_unpublished} decisions were not published; the store's audit has them."])
    if result.n_disagreements:
        difference = f"The file's own output retain differs in {result.n_disagreements} decisions"
        print_lines([f"The policy decided. {difference}; drip model set-policy updates it."])
    print_stats(stats)
