"""`drip run`: decide on a stream and keep what the policy retains."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from drip.cli.arguments import (
    INTERRUPTED,
    JsonOption,
    ModelArgument,
    WeightsOption,
    parse_bytes,
    stop_on_signals,
)
from drip.cli.output import print_error, print_facts, print_json, print_lines, progress_bar
from drip.cli.store import print_stats
from drip.pipeline import OnError
from drip.report.quantities import byte_size

if TYPE_CHECKING:
    from drip.pipeline import Tally
    from drip.store import StoreStats

_NEW_STORE_BYTES = 10**9


def run(
    model: ModelArgument,
    *,
    policy: Annotated[Path, typer.Option(help="The policy of this model, from drip calibrate.")],
    source: Annotated[str, typer.Option(help="A folder of images, audio files or arrays, or a URL.")],
    store: Annotated[Path, typer.Option(help="The store's file; made when it does not exist.")],
    weights: WeightsOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Most bytes that the store takes on disk, such as 500MB or 2GiB; as before when not given, "
            "1GB for a new store."
        ),
    ] = None,
    eviction: Annotated[
        Literal["priority", "fifo"] | None,
        typer.Option(
            help="Over budget: drop the lowest *priority* first, or *fifo* the oldest; as before when not "
            "given, priority for a new store."
        ),
    ] = None,
    on_error: Annotated[
        OnError, typer.Option(help="A sample that cannot be decoded: *quarantine*, *skip* or *raise*.")
    ] = "quarantine",
    batch_size: Annotated[
        int, typer.Option(help="Samples scored at once; 1 decides each at once.", min=1)
    ] = 32,
    json_output: JsonOption = False,
) -> None:
    """Stream samples through the policy into a store; started again, it continues where it stopped.

    Example: drip run mymodel:build --weights w.pt --policy policy.json --source frames/ --store kept.db
    """
    from drip.models import load_model
    from drip.policy import Policy
    from drip.scoring import model_digest
    from drip.store import RetentionStore
    from drip.streams import open_source
    from drip.workflow import run_stream

    default = None if store.exists() else _NEW_STORE_BYTES
    budget_bytes = default if budget is None else parse_bytes(budget)
    with stop_on_signals() as stop, progress_bar("deciding") as update:
        rule, network = Policy.load(policy), load_model(model, weights)
        rule.require(model_digest(network))  # before a store is made
        stream = open_source(source, rule.provenance.class_names)
        total = len(stream) if isinstance(stream, Sized) else None
        with RetentionStore(store, budget_bytes=budget_bytes, eviction=eviction) as kept:
            tally = run_stream(
                network, rule, stream, kept, batch_size=batch_size, on_error=on_error, stop=stop,
                on_progress=lambda tally: update(tally.n_seen, total, f"{tally.retention:.1%} kept"),
            )  # fmt: skip
            stats = kept.stats()
            reason = next((aside.reason for aside in kept.quarantined()), "see --on-error raise")
    print_run(tally, stats, json_output=json_output)
    if tally.interrupted:
        print_error(INTERRUPTED)
        raise typer.Exit(130)
    if tally.n_seen and tally.n_quarantined + tally.n_skipped == tally.n_seen:
        print_error(f"none of {tally.n_seen} samples could be decoded, scored and kept: {reason}")
        raise typer.Exit(1)


def print_run(tally: Tally, stats: StoreStats, *, json_output: bool) -> None:
    """The counts of this call and the state of the store."""
    if json_output:
        print_json({"run": {**asdict(tally), "retention": tally.retention}, "store": asdict(stats)})
        return
    if not tally.n_seen:
        print_lines(["Nothing came behind the position of the last run; another store starts anew."])
    per_sample = sum(tally.seconds[stage] for stage in ("score", "decide")) / max(tally.n_seen, 1)
    print_facts(
        "This run",
        {
            "seen": f"{tally.n_seen} samples, {byte_size(tally.bytes_seen)}",
            "retained": f"{tally.n_retained} ({tally.retention:.1%}), {byte_size(tally.bytes_retained)}",
            "set aside": f"{tally.n_quarantined} in quarantine, {tally.n_skipped} skipped",
            "score and decide": f"{1e3 * per_sample:.2f} ms per sample",
        },
    )
    print_stats(stats)
