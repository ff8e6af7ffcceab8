"""What the criteria of `situations.toml` say of the records."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from experiments.situation_reading import Place, Result, Study, labelling, median_needs
from experiments.situations import SITUATIONS
from experiments.statistics import Comparison, compare, holm


@cache
def plan() -> dict[str, Any]:
    """What was written down before the runs: the content of ``situations.toml``."""
    return tomllib.loads(Path(__file__).with_name("situations.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Verdict:
    """One criterion.

    Attributes:
        name: Its name in ``situations.toml``, with the keep rate where it has one.
        asked: What was asked for.
        found: What was found; None without records.
        holds: Whether it was found.
    """

    name: str
    asked: float
    found: float | None
    holds: bool


def deciding(study: Study, arm: str) -> list[Result]:
    """The deciding cells of an arm."""
    keep = plan()["cells"]["keep"]
    return [
        one
        for one in study.results
        if one.arm == arm and one.keep in keep and one.place.situation in SITUATIONS
    ]


def to_gain(cells: Sequence[Result]) -> list[Result]:
    """Those in which all data are so much above random that a rule has something to gain."""
    return [one for one in cells if one.all_minus_random.mean > plan()["cells"]["to_gain"]]


def below_random(cells: Sequence[Result]) -> list[Result]:
    """Those in which the arm is below random after Holm's correction over all of them."""
    adjusted = holm([one.difference.p for one in cells])
    limit = 1 - plan()["challenge"]["level"]
    return [
        one
        for one, p in zip(cells, adjusted, strict=True)
        if one.difference.mean < 0 and p is not None and p < limit
    ]


def challenge(study: Study, challenger: str) -> Comparison | None:
    """The challenger minus the candidate: mean over all deciding cells, one value per run.

    None while a cell lacks a run that others have.
    """
    mine = {(one.place, one.keep): one for one in deciding(study, challenger)}
    theirs = {(one.place, one.keep): one for one in deciding(study, plan()["rules"]["candidate"])}
    shared = [key for key in mine if key in theirs]
    if len({one[key].seeds for one in (mine, theirs) for key in shared}) != 1:
        return None
    return compare(np.mean([mine[key].differences - theirs[key].differences for key in shared], axis=0))


def verdicts(study: Study, arm: str | None = None) -> list[Verdict]:
    """Every criterion, for the candidate or another arm; the order of labelling is the candidate's."""
    asked = plan()["criteria"]
    arm = arm or plan()["rules"]["candidate"]
    cells = deciding(study, arm)
    gaining = to_gain(cells)
    whole = {(one.place.situation, one.arm, one.keep): one for one in study.means.results}

    def mean(situation: str, keep: str | float, name: str = arm) -> float | None:
        one = whole.get((situation, name, float(keep)))
        return None if one is None else one.difference.mean

    def at_least(name: str, limit: float, found: float | None) -> Verdict:
        return Verdict(name, limit, found, found is not None and found >= limit)

    better = [one for one in gaining if one.difference.mean > 0]
    n_below = (
        len(below_random(cells)) if cells and all(one.difference.p is not None for one in cells) else None
    )
    found = [
        at_least("better_in", asked["better_in"], len(better) / len(gaining) if gaining else None),
        Verdict("worse_in", asked["worse_in"], n_below, n_below is not None and n_below <= asked["worse_in"]),
        at_least("median_needs", asked["median_needs"], median_needs(gaining) if gaining else None),
    ]
    for name, situation, by in (
        ("new_camera", "new-camera", arm),
        ("new_camera_accepted", "new-camera", f"{arm}.accepting"),
        ("long_tail", "long-tail", arm),
    ):
        for keep, limit in asked[name].items():
            found.append(at_least(f"{name} at {keep}", limit, mean(situation, keep, by)))
    for keep, limit in asked["scenes_needs"].items():
        one = whole.get(("scenes", arm, float(keep)))
        found.append(at_least(f"scenes_needs at {keep}", limit, None if one is None else one.ratio))
    for name, by, keeps in (
        ("junk", arm, plan()["cells"]["keep"]),
        ("junk_ignored", f"{arm}.ignoring", (0.05, 0.1, 0.2)),
    ):
        each = [mean("junk", keep, by) for keep in keeps]
        values = [value for value in each if value is not None]
        found.append(
            at_least(name, asked[name], float(np.mean(values)) if len(values) == len(each) else None)
        )
    kept = [whole.get(("junk", f"{arm}.ignoring", keep)) for keep in (0.05, 0.1, 0.2)]
    most = max((inf if one is None or one.marked is None else one.marked for one in kept), default=inf)
    limit = asked["junk_ignored_kept"]
    found.append(Verdict("junk_ignored_kept", limit, None if most == inf else most, most <= limit))
    if arm == plan()["rules"]["candidate"]:
        orders = plan()["labels"]
        gains = labelling(study.means.runs)
        for situation in orders["in"]:
            gain = gains.get((Place("", situation, ""), orders["at"]))
            found.append(
                at_least(f"labels in {situation}", orders["better_by"], None if gain is None else gain.mean)
            )
    return found
