"""`drip run`: decide on a stream and keep what the policy retains."""

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
    ThreadsOption,
    WeightsOption,
    load_any_model,
    parse_bytes,
    require_file,
    require_status_path,
    stop_on_signals,
)
from drip.cli.output import print_error, print_facts, print_json, print_lines, progress_bar
from drip.cli.store import print_stats
from drip.files.format import byte_size
from drip.pipeline import OnError

if TYPE_CHECKING:
    from drip.workflow import RunResult


def run(
    model: ModelArgument,
    *,
    source: Annotated[str, typer.Option(help="A folder of images, audio files or arrays, or a URL.")],
    store: Annotated[Path, typer.Option(help="The store's file; made when it does not exist.")],
    policy: Annotated[
        Path | None,
        typer.Option(
            help="The policy of this model, with its rule, from drip calibrate; the model file's own when "
            "not given."
        ),
    ] = None,
    weights: WeightsOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Most bytes that the store takes on disk, such as 500MB or 2GiB, at most 16TB; as before "
            "when not given, 1GB for a new store."
        ),
    ] = None,
    eviction: Annotated[
        Literal["priority", "fifo"] | None,
        typer.Option(
            help="Over budget: drop the lowest *priority* first, or *fifo* the oldest; as before when not "
            "given, priority for a new store, fifo with *--shadow*."
        ),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Keep every sample and only record what the rule says.")
    ] = False,
    on_error: Annotated[
        OnError, typer.Option(help="A sample that cannot be decoded: *quarantine*, *skip* or *raise*.")
    ] = "quarantine",
    batch_size: Annotated[
        int,
        typer.Option(
            help=f"Samples scored and committed at once, at most {MAX_BATCH_SIZE}, as they are in memory "
            "together; 1 decides each at once.",
            min=1,
            max=MAX_BATCH_SIZE,
        ),
    ] = 32,
    threads: ThreadsOption = 1,
    accept_parent_limits: Annotated[
        bool,
        typer.Option(
            "--accept-parent-limits",
            help="Take limits for an int8 file that were fitted before quantisation.",
        ),
    ] = False,
    decisions: Annotated[
        str,
        typer.Option(
            help="Also publish each decision, once it is committed, to *mqtt://host/topic* or *mqtts:*; a "
            "broker that is away does not stop the run."
        ),
    ] = "",
    status_file: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with state, counts and rates, replaced once a second; best in a folder in memory."
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Stream samples through the policy into a store; started again, it continues where it stopped.

    The policy names the rule: another rule is another policy. SIGTERM ends the run after its current batch.

    Example: drip run model.onnx --source frames/ --store kept.db --budget 2GB

    Example: drip run mymodel:build --weights w.pt --policy policy.json --source frames/ --store kept.db
    """
    from drip.policy import Policy
    from drip.workflow import RunOptions, RunStatus, run_url

    n_bytes = None if budget is None else parse_bytes(budget)
    options = RunOptions(n_bytes, eviction, shadow, accept_parent_limits, batch_size, on_error, decisions)
    require_file(store)
    require_status_path(status_file)
    with stop_on_signals() as stop, progress_bar("deciding") as update, RunStatus(status_file) as status:
        network = load_any_model(model, weights, threads)
        rule = None if policy is None else Policy.load(policy)
        result = run_url(network, rule, source, store, options, status=status, on_progress=update, stop=stop)
    if status.problem:
        print_error(f"the run went on without its status file: {status.problem}")
    print_run(result, json_output=json_output)
    if result.tally.interrupted:
        print_error(INTERRUPTED)
        raise typer.Exit(130)
    if result.problem:
        print_error(result.problem)
        raise typer.Exit(1)


def print_run(result: RunResult, *, json_output: bool) -> None:
    """The counts of this call and the state of the store."""
    tally, stats = result.tally, result.stats
    if json_output:
        counts = {**asdict(tally), "retention": tally.retention, "n_disagreements": result.n_disagreements}
        counts |= {"n_published": result.n_published, "n_unpublished": result.n_unpublished}
        print_json({"run": counts, "store": asdict(stats)})
        return
    if not tally.n_seen and tally.interrupted:
        print_lines(["Nothing came before the run was asked to stop."])
    elif not tally.n_seen:
        print_lines(["Nothing came behind the position of the last run; another store starts anew."])
    share = f" ({tally.retention:.1%})" if tally.n_retained + tally.n_discarded else ""
    per_sample = sum(tally.seconds[stage] for stage in ("score", "decide")) / max(tally.n_seen, 1)
    print_facts(
        "This run",
        {
            "seen": f"{tally.n_seen} samples, {byte_size(tally.bytes_seen)}",
            "retained": f"{tally.n_retained}{share}, {byte_size(tally.bytes_retained)}",
            "set aside": f"{tally.n_quarantined} in quarantine, {tally.n_skipped} skipped",
            "score and decide": f"{1e3 * per_sample:.2f} ms per sample",
        },
    )
    if stats.audit_shadowed:
        n_shadowed = f"{stats.audit_shadowed} samples were kept that the rule discards (--shadow)."
        print_lines([n_shadowed])
    if result.n_unpublished:
        print_lines([f"{result.n_unpublished} decisions were not published; the store's audit has them."])
    if result.n_disagreements:
        n_unlike = result.n_disagreements
        print_lines([f"The file's own limits decide {n_unlike} samples unlike the policy, which counts."])
    print_stats(stats)
