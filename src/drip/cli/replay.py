"""`drip replay`: what another policy would have kept, from a store's audit."""

from __future__ import annotations

from dataclasses import asdict
from time import gmtime, strftime
from typing import TYPE_CHECKING

from drip.cli.arguments import JsonOption, PolicyArgument, StoreArgument, require_files
from drip.cli.output import print_facts, print_json, print_table
from drip.files.format import byte_size

if TYPE_CHECKING:
    from drip.workflow import ReplayReport


def replay(store: StoreArgument, policy: PolicyArgument, *, json_output: JsonOption = False) -> None:
    """Show what another policy would have kept.

    Recomputes each decision from the recorded class, scores and logits; the store is only read. Rules that
    read features cannot be replayed. Budget, eviction and duplicates are not simulated.

    Example: drip replay kept.db new.json
    """
    from drip.policy import Policy
    from drip.workflow import replay as replay_store

    require_files(policy)
    report = replay_store(store, Policy.load(policy))
    print_json(asdict(report)) if json_output else print_replay(report)


def print_replay(report: ReplayReport) -> None:
    """The report as tables."""
    counts = report.counts
    facts = {
        "rule": f"{report.rule}, policy {report.policy_digest[:12]}...",
        "decisions": counts.seen,
        "kept then": f"{_part(counts.retained_before, counts.seen)}, {byte_size(counts.bytes_before)}",
        "kept now": f"{_part(counts.retained_now, counts.seen)}, {byte_size(counts.bytes_now)}",
        "same decision": _part(counts.agreeing, counts.seen),
    }
    left_out = {
        "no longer in the audit": report.n_forgotten,
        "of other models": report.n_other_models,
        "of an unknown model": report.n_unknown_model,
    }
    print_facts("Replay", {**facts, **{name: number for name, number in left_out.items() if number}})
    names = dict(enumerate(report.class_names))
    rows = [(names.get(number, str(number)), part) for number, part in report.classes.items()]
    rows += [(_span(part.first_time_s, part.last_time_s), part.counts) for part in report.parts]
    print_table(
        "By predicted class, and over time",
        ["", "decisions", "kept then", "kept now", "same"],
        [
            [
                name,
                str(part.seen),
                _part(part.retained_before, part.seen),
                _part(part.retained_now, part.seen),
                f"{part.agreeing / part.seen:.1%}",
            ]
            for name, part in rows
        ],
    )


def _part(count: int, of: int) -> str:
    return f"{count} ({count / of:.1%})"


def _span(first_s: float | None, last_s: float | None) -> str:
    if first_s is None or last_s is None:
        return "time unknown"
    try:
        return " - ".join(strftime("%Y-%m-%d %H:%M:%S", gmtime(moment)) for moment in (first_s, last_s))
    except (OverflowError, ValueError, OSError):  # a sensor's clock may be far off
        return f"{first_s:.0f} - {last_s:.0f} s"
