"""What the pages say of the study `situations`, and its tables for the appendix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isinf
from types import MappingProxyType
from typing import Any

import numpy as np

from experiments.appendix import Table, number, share
from experiments.situation_reading import (
    Place,
    Result,
    Study,
    labelling,
    median_needs,
)
from experiments.situation_study import ARMS, ORDERS
from experiments.situation_verdicts import Verdict, below_random, challenge, deciding, plan, to_gain, verdicts
from experiments.statistics import Comparison, holm
from experiments.tables import dataset_name, percent, signed

SITUATIONS: Mapping[str, str] = MappingProxyType(
    {
        "new-camera": "new camera, 20 %",
        "camera-from-a-day": "camera replaced",
        "new-speakers": "new speakers, 20 %",
        "telephone": "telephone, 20 %",
        "scenes": "near-duplicate scenes",
        "long-tail": "long tail 1:100",
        "unknown-class": "unknown class, 2 %",
        "junk": "junk, 30 %",
        "wrong-labels": "wrong labels, 20 %",
        "weak": "weak model",
        "mixed": "well mixed",
    }
)
"""How tables call a situation, in their order."""
PAIRS: Mapping[str, str] = MappingProxyType(
    {
        "new-camera+junk": "new camera, 20 %, and junk, 30 %",
        "new-camera+long-tail": "new camera, 20 %, and long tail",
        "scenes+junk": "scenes and junk, 30 %",
        "long-tail+wrong-labels": "long tail and wrong labels, 20 %",
    }
)
"""How tables call two at once."""
_ALL = {**SITUATIONS, **PAIRS}
CRITERIA: Mapping[str, str] = MappingProxyType(
    {
        "better_in": "cells better than random",
        "worse_in": "cells worse than random",
        "median_needs": "random needs, median",
        "new_camera": "new camera, {kept} kept",
        "new_camera_accepted": "the same, once accepted",
        "long_tail": "long tail, {kept} kept",
        "scenes_needs": "random needs for scenes, {kept} kept",
        "junk": "junk",
        "junk_ignored": "junk, once ignored",
        "junk_ignored_kept": "junk among the kept, once ignored",
        "labels": "labelling order, {situation}",
    }
)
"""The criteria of ``situations.toml`` in words."""
_PAGE_KEEP = (0.05, 0.2)
_PAGE_RULES = ("adaptive-margin", "margin", "novelty", "drip")
_COUNTED, _TIMES, _PARTS = ("worse_in",), ("median_needs", "scenes_needs"), ("better_in", "junk_ignored_kept")


def summary(study: Study) -> dict[str, Any] | None:
    """What the pages for readers say; None without records."""
    whole = {(one.place.situation, one.arm, one.keep): one for one in study.means.results if one.arm in ARMS}
    if not whole:
        return None
    planned = plan()["cells"]
    candidate = plan()["rules"]["candidate"]
    counts = sorted({len(one.seeds) for one in deciding(study, candidate)})
    judged = [_criterion(one) for one in verdicts(study)]
    return {
        "rules": _PAGE_RULES,
        "tables": [
            {
                "kept": percent(keep, 0),
                "rows": [row for name in SITUATIONS if (row := _row(whole, name, keep))],
            }
            for keep in _PAGE_KEEP
        ],
        "runs": str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
        "planned": planned["runs"],
        "complete": counts == [planned["runs"]],
        "cells": len(deciding(study, candidate)),
        "gaining": len(to_gain(deciding(study, candidate))),
        "candidate": candidate,
        "criteria": judged,
        "met": [one for one in judged if one["outcome"] == "met"],
        "missed": [one for one in judged if one["outcome"] == "not met"],
        "challengers": [
            {"name": name, "minus": _points(found.mean, found.half), "met": _n_met(study, name)}
            for name in plan()["rules"]["challengers"]
            if (found := challenge(study, name)) is not None
        ],
    }


def whole(found: Mapping[tuple[Place, float], Comparison]) -> list[dict[str, str]]:
    """What training the whole network says, one row per situation and keep rate."""
    return [
        {
            "name": SITUATIONS[place.situation],
            "dataset": dataset_name(place.dataset),
            "kept": percent(keep, 0),
            "runs": str(one.n),
            "minus": _points(one.mean, one.half),
        }
        for (place, keep), one in found.items()
    ]


def _row(
    whole: Mapping[tuple[str, str, float], Result], situation: str, keep: float
) -> dict[str, Any] | None:
    """One situation at one keep rate: random's value, and every rule's points over it."""
    held = {rule: whole[situation, rule, keep] for rule in _PAGE_RULES if (situation, rule, keep) in whole}
    if not held:
        return None
    return {
        "name": SITUATIONS[situation],
        "random": percent(next(iter(held.values())).random),
        "gains": [_gain(held[rule]) if rule in held else "" for rule in _PAGE_RULES],
    }


def _gain(one: Result) -> str:
    """Points over random; where there are some, how many times as many random samples do the same."""
    points = signed(one.difference.mean, 1)
    return f"{points} ({_times(one.ratio)})" if points.startswith("+") else points


def _times(ratio: float) -> str:
    """A ratio as tables write it.

    >>> _times(2.345), _times(16.2), _times(float("inf"))
    ('2.3x', '16x', '∞')
    """
    return "∞" if isinf(ratio) else f"{ratio:.{0 if ratio >= 9.95 else 1}f}x"


def _points(mean: float, half: float | None) -> str:
    return signed(mean) if half is None else f"{signed(mean)} ± {percent(half, 2)}"


def _n_met(study: Study, arm: str) -> str:
    found = verdicts(study, arm)
    return f"{sum(one.holds for one in found)} of {len(found)}"


def _criterion(one: Verdict) -> dict[str, str]:
    name, _, kept = one.name.partition(" at ")
    name, _, situation = name.partition(" in ")
    words = CRITERIA[name].format(
        kept=f"{float(kept or 0):.0%}".replace("%", " %"), situation=situation.replace("-", " ")
    )
    bound = "≤" if name in (*_COUNTED, "junk_ignored_kept") else "≥"
    return {
        "says": words,
        "asked": f"{bound} {_value(name, one.asked)}",
        "found": "" if one.found is None else _value(name, one.found),
        "outcome": "not measured" if one.found is None else "met" if one.holds else "not met",
    }


def _value(name: str, value: float) -> str:
    if name in _COUNTED:
        return f"{value:.0f}"
    if name in _TIMES:
        return _times(value)
    return f"{percent(value)} %" if name in _PARTS else signed(value, 1)


def tables(study: Study) -> list[Table]:
    """Every table of the study that has rows."""
    found = (
        Table("situations-means", _MEANS, tuple(_means(study))),
        Table("situations-rules", _RULES, tuple(_rules(study))),
        Table("situations-criteria", _CRITERIA, tuple(_criteria(study))),
        Table("situations-labels", _LABELS, tuple(_labels(study))),
        Table("situations", _CELLS, tuple(_cells(study))),
    )
    return [table for table in found if table.rows]


_GAIN = ("minus random", "± 95 %", "random needs", "from", "to", "everything minus random")
_MEANS = ("situation", "kept", "arm", "runs", "random", *_GAIN, "marked among the kept")
_CELLS = (
    *(
        "situation",
        "data set",
        "backbone",
        "kept",
        "arm",
        "runs",
        "nothing kept",
        "random",
        *_GAIN,
        "p, Holm",
    ),
    *("kept by the arm itself", "marked in the stream", "marked among the kept"),
)


def _compared(one: Result) -> tuple[str, ...]:
    needs = one.needs()
    ratios = (
        number(value) if np.isfinite(value) else "more than all"
        for value in (needs.ratio, needs.low, needs.high)
    )
    return share(one.difference.mean), share(one.difference.half), *ratios, share(one.all_minus_random.mean)


def _ordered(found: Sequence[Result]) -> list[Result]:
    names, arms = list(_ALL), list(ARMS)
    held = [one for one in found if one.arm in arms]
    return sorted(
        held,
        key=lambda one: (
            names.index(one.place.situation),
            one.place.dataset,
            one.place.backbone,
            one.keep,
            arms.index(one.arm),
        ),
    )


def _means(study: Study) -> Iterator[tuple[str, ...]]:
    for one in _ordered(study.means.results):
        yield (
            *(
                _ALL[one.place.situation],
                share(one.keep, 0),
                one.arm,
                str(len(one.seeds)),
                share(one.random),
            ),
            *(*_compared(one), share(one.marked, 1)),
        )


def _cells(study: Study) -> Iterator[tuple[str, ...]]:
    found = study.results
    adjusted: dict[int, float | None] = {}
    for arm in ARMS:  # Holm's correction runs over the deciding cells of an arm
        cells = deciding(study, arm)
        adjusted |= {
            id(one): p for one, p in zip(cells, holm([one.difference.p for one in cells]), strict=True)
        }
    for one in _ordered(found):
        at = one.place
        mine = study.runs[at, one.arm, one.keep]
        native, marked = (
            float(np.mean([mine[seed].get(name, np.nan) for seed in one.seeds]))
            for name in ("native_retention", "marked")
        )
        yield (
            *(_ALL[at.situation], dataset_name(at.dataset), at.backbone, share(one.keep, 0), one.arm),
            *(str(len(one.seeds)), share(float(one.curve[:, 0].mean())), share(one.random), *_compared(one)),
            *(number(adjusted.get(id(one)), 4), share(native, 1)),
            *(("", "") if one.marked is None else (share(marked, 1), share(one.marked, 1))),
        )


_RULES = (
    *(
        "arm",
        "deciding cells",
        "with something to gain",
        "better than random there",
        "worse than random (Holm)",
    ),
    *("mean over random", "median: random needs", "criteria met", "minus the candidate", "± 95 %"),
)


def _rules(study: Study) -> Iterator[tuple[str, ...]]:
    everywhere = plan()["cells"]["places"] * len(plan()["cells"]["keep"])
    for arm in ARMS:
        cells = deciding(study, arm)
        if len(cells) < everywhere:
            continue
        gaining = to_gain(cells)
        minus = None if arm == plan()["rules"]["candidate"] else challenge(study, arm)
        yield (
            *(arm, str(len(cells)), str(len(gaining)), str(sum(one.difference.mean > 0 for one in gaining))),
            str(len(below_random(cells))),
            share(float(np.mean([one.difference.mean for one in cells]))),
            *(number(median_needs(gaining)) if gaining else "", _n_met(study, arm)),
            *(("", "") if minus is None else (share(minus.mean), share(minus.half))),
        )


_CRITERIA = ("arm", "criterion", "asked", "found", "outcome")


def _criteria(study: Study) -> Iterator[tuple[str, ...]]:
    for arm in (row[0] for row in _rules(study)):
        for one in map(_criterion, verdicts(study, arm)):
            yield arm, one["says"], one["asked"], one["found"], one["outcome"]


_LABELS = (
    *("situation", "data set", "backbone", "labelled", "runs", "proposed order minus random order", "± 95 %"),
    *("marked among the labelled", "in random order"),
)


def _labels(study: Study) -> Iterator[tuple[str, ...]]:
    random, proposed = ORDERS
    for name in SITUATIONS:
        for (place, labelled), found in labelling(study.runs).items():
            if place.situation == name:
                marked = (
                    _mean(study.runs[place, arm, labelled], "marked_kept") for arm in (proposed, random)
                )
                yield (
                    *(SITUATIONS[name], dataset_name(place.dataset), place.backbone, share(labelled, 0)),
                    *(
                        str(found.n),
                        share(found.mean),
                        share(found.half),
                        *(share(part, 1) for part in marked),
                    ),
                )


def _mean(metrics: Mapping[int, Mapping[str, float]], name: str) -> float:
    return float(np.mean([run[name] for run in metrics.values()]))
