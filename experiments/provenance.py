"""Which commits, versions and configurations stand behind the records of a page."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from experiments.reading import Evidence, Place, Series
from experiments.sections import folded, prose
from experiments.tables import markdown


def provenance(evidence: Evidence, shown: Collection[tuple[str, str]] = (), notes: str = "") -> list[str]:
    """A section with the commits and versions of every result file, and folded what its runs depend on.

    Args:
        evidence: The records.
        shown: Only files of these studies and regimes; none means all.
        notes: What else is to be said of the records.
    """
    lines = ["## Where the numbers come from", ""]
    keys = [key for key in files(evidence) if not shown or key[:2] in shown]
    if not keys:
        return [*lines, "No records.", ""]
    rows = []
    for name, commits in evidence.commits.items():
        if name not in map("-".join, keys):
            continue
        held = [
            run for one in evidence.series.values() if one.place.file == name for run in one.runs.values()
        ]
        versions = sorted({", ".join(f"{k} {v}" for k, v in sorted(run.versions.items())) for run in held})
        rows.append([f"`{name}.jsonl`", ", ".join(commits), "; ".join(versions)])
    lines += ["A `+` after a commit means that the tree differed from it.", ""]
    lines += [*markdown(["file", "commits", "versions"], rows), "", *(prose(notes) if notes else [])]
    body = []
    for study, regime, dataset in keys:
        held_series = [
            one for one in evidence.series.values() if file_key(one.place) == (study, regime, dataset)
        ]
        chosen = of_everything(held_series)
        config = next(iter(chosen.runs.values())).config
        body += [
            f"{study}-{regime}-{dataset}, {chosen.arm}:",
            *json.dumps(config, indent=1, sort_keys=True).splitlines(),
            "",
        ]
    return [
        *lines,
        *folded("What each file's runs depend on, besides the code", ["```text", *body[:-1], "```", ""]),
    ]


def files(evidence: Evidence) -> list[tuple[str, str, str]]:
    """Study, regime and data set of every result file, in order."""
    return list(dict.fromkeys(file_key(place) for place in evidence.places()))


def file_key(place: Place) -> tuple[str, str, str]:
    """Study, regime and data set of a place."""
    return place.study, place.regime, place.dataset


def of_everything(held: Sequence[Series]) -> Series:
    """The arm that keeps everything, to tell the sizes of the sets; else the first."""
    return next((series for series in held if series.arm == "all"), held[0])
