"""`drip replay`: what another policy would have kept, from a store's audit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from time import gmtime, strftime
from typing import TYPE_CHECKING, Annotated

import typer

from drip.cli.arguments import JsonOption
from drip.cli.output import print_facts, print_json, print_table
from drip.files.format import byte_size

if TYPE_CHECKING:
    from drip.workflow import ReplayReport


def replay(
    *,
    store: Annotated[Path, typer.Option(help="The store of a run, with or without *--shadow*.")],
    policy: Annotated[Path, typer.Option(help="The policy to try, of the model that ran.")],
    json_output: JsonOption = False,
) -> None:
    """Say what a new policy would have kept, before it is rolled out; the store is only read.

    Decides anew on the recorded classes, scores and logits. Rules that read features are refused. Budget,
    eviction and duplicates do not enter.

    Example: drip replay --store kept.db --policy new.json
    """
    from drip.policy import Policy
    from drip.workflow import replay as replay_store

    report = replay_store(store, Policy.load(policy))
    print_json(asdict(report)) if json_output else print_replay(report)


def print_replay(report: ReplayReport) -> None:
    """The report for people."""
    counts = report.counts
    facts = {
        "rule": f"{report.rule}, policy {report.policy_digest[:12]}...",
        "decisions": counts.seen,
        "retained then": f"{_share(counts.retained_before, counts.seen)}, {byte_size(counts.bytes_before)}",
        "retained now": f"{_share(counts.retained_now, counts.seen)}, {byte_size(counts.bytes_now)}",
        "same decision": _share(counts.agreeing, counts.seen),
    }
    left_out = {
        "forgotten by the audit": report.n_forgotten,
        "of other models": report.n_other_models,
        "of an unknown model": report.n_unknown_model,
    }
    print_facts("Replay", {**facts, **{name: number for name, number in left_out.items() if number}})
    names = dict(enumerate(report.class_names))
    rows = [(names.get(number, str(number)), part) for number, part in report.classes.items()]
    rows += [(_span(part.first_time_s, part.last_time_s), part.counts) for part in report.parts]
    print_table(
        "By predicted class, and over time",
        ["", "decisions", "retained then", "retained now", "same"],
        [
            [
                name,
                str(part.seen),
                _share(part.retained_before, part.seen),
                _share(part.retained_now, part.seen),
                f"{part.agreeing / part.seen:.1%}",
            ]
            for name, part in rows
        ],
    )


def _share(count: int, of: int) -> str:
    return f"{count} ({count / of:.1%})"


def _span(first_s: float | None, last_s: float | None) -> str:
    if first_s is None or last_s is None:
        return "time unknown"
    try:
        return " - ".join(strftime("%Y-%m-%d %H:%M:%S", gmtime(moment)) for moment in (first_s, last_s))
    except (OverflowError, ValueError, OSError):  # a sensor's clock may say anything
        return f"{first_s:.0f} - {last_s:.0f} s"
