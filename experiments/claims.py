"""The paper's claims judged by our runs: holds, does not hold, inconclusive or not tested.

Numbers and outcomes only; the words around them are in the templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from experiments.cells import Scalar
from experiments.reading import DATASETS, Evidence, Place, Series, paper, size_ratio
from experiments.statistics import LEVEL, Comparison, compare

Outcome = Literal["holds", "does not hold", "inconclusive", "not tested"]

READINGS = {
    "table1": ("paper.raw.window", "paper.raw.peak", "paper.normalised.window", "paper.normalised.peak"),
    "dpw": ("drip", "drip.normalised"),
    "noise": ("drip", "drip.normalised"),
}
"""Readings of the paper's rule, by study; the first one gives the verdict."""
NOISY = ("cifar10", "tomato")
"""Data sets of the study of noise: that of the paper's Fig. 6, and a second one."""


@dataclass(frozen=True)
class Finding:
    """What one data set says of a claim.

    Attributes:
        dataset: Which.
        outcome: The verdict on it alone.
        uncorrected: The verdict by the interval without the correction for re-splits.
        lowest: The difference that was judged; of several settings the one with the smallest mean.
        highest: Of several settings the one with the largest mean; otherwise the same as ``lowest``.
        at: The settings of ``lowest`` and ``highest``; empty where there is one difference.
        published: What the paper gives for it, where it gives a number.
        missing: Settings with fewer than five runs.
    """

    dataset: str
    outcome: Outcome
    uncorrected: Outcome
    lowest: Comparison | None = None
    highest: Comparison | None = None
    at: tuple[Scalar, ...] = ()
    published: float | None = None
    missing: int = 0

    @property
    def mean(self) -> float | None:
        """The mean difference, where one difference decides."""
        return None if self.at or self.outcome == "not tested" or not self.lowest else self.lowest.mean


@dataclass(frozen=True)
class Verdict:
    """A claim judged in one regime with one reading of the paper's rule.

    Attributes:
        claim: Its table of ``paper.toml``.
        regime: ``full`` or ``head``; empty where the claim cannot be tested.
        arm: The reading of the paper's rule.
        outcome: All data sets together: fails with one of them, holds only with all.
        findings: By data set.
    """

    claim: Mapping[str, Any]
    regime: str
    arm: str
    outcome: Outcome
    findings: tuple[Finding, ...]

    def datasets(self, outcome: Outcome) -> list[str]:
        """Data sets with one outcome."""
        return [finding.dataset for finding in self.findings if finding.outcome == outcome]


def judge(evidence: Evidence, claim: Mapping[str, Any], regime: str, arm: str | None = None) -> Verdict:
    """The verdict on one claim.

    An interval decides: a claim holds when all of it supports the claim, does not hold when none of it
    does, and is inconclusive otherwise. The interval is the one corrected for re-splits.

    Args:
        evidence: The records.
        claim: A table of ``paper.toml``.
        regime: Where the arms were trained.
        arm: The reading of the paper's rule; None is the first of :data:`READINGS`.
    """
    rule = claim["rule"]
    if rule["kind"] == "untested":
        return Verdict(claim, "", "", "not tested", ())
    chosen = arm or READINGS[rule.get("study", "table1")][0]
    judged = {"difference": _difference, "published": _published, "sweep": _sweep, "decline": _decline}
    findings = tuple(
        judged[rule["kind"]](evidence, rule, Place(rule.get("study", "table1"), regime, dataset), chosen)
        for dataset in claim.get("datasets", _datasets(rule))
    )
    return Verdict(claim, regime, chosen, _together([finding.outcome for finding in findings]), findings)


def verdicts(evidence: Evidence) -> list[tuple[Verdict, list[Verdict]]]:
    """Every claim in every regime that has runs for it, each with the verdicts by the other readings."""
    found = []
    for claim in paper()["claim"]:
        study = claim["rule"].get("study", "table1")
        judged = [judge(evidence, claim, regime) for regime in ("full", "head")]
        tested = [verdict for verdict in judged if verdict.outcome != "not tested"] or judged[-1:]
        for verdict in tested:
            others = READINGS[study][1:] if verdict.regime else ()
            found.append((verdict, [judge(evidence, claim, verdict.regime, arm) for arm in others]))
    return found


def outcome(comparison: Comparison, relation: str, bound: float, *, corrected: bool = True) -> Outcome:
    """Whether a mean is above a bound by its interval.

    Args:
        comparison: Mean and intervals.
        relation: ``greater`` and ``not_worse``: above ``bound``; ``equal``: within ± ``bound`` of zero.
        bound: In the unit of the mean.
        corrected: Use the interval corrected for re-splits where there is one.

    >>> outcome(Comparison(20, 0.01, 0.01, 0.002, 0.006), "greater", 0.0)
    'holds'
    >>> outcome(Comparison(20, 0.001, 0.01, 0.002, 0.006), "greater", 0.0)
    'inconclusive'
    >>> outcome(Comparison(3, 0.01, 0.01), "greater", 0.0)
    'not tested'
    """
    half = comparison.widest if corrected else comparison.half
    if half is None:
        return "not tested"
    low, high = comparison.mean - half, comparison.mean + half
    if relation == "equal":
        holds, fails = -bound < low and high < bound, high < -bound or low > bound
    else:
        holds, fails = low > bound, high < bound
    return "holds" if holds else "does not hold" if fails else "inconclusive"


def margin(dataset: str) -> float:
    """How far below another an arm may be and count as not below: what Table I gives as its deviation.

    One margin for all data sets would be wider than what there is to lose on the easiest of them.

    >>> margin("mnist"), margin("speech_commands")
    (0.001, 0.005)
    """
    stated = paper()["table1"][dataset]
    return float(max(stated["all"][1], stated["drip"][1]))


def _bound(rule: Mapping[str, Any], dataset: str) -> float:
    return -margin(dataset) if rule["relation"] == "not_worse" else 0.0


def _difference(evidence: Evidence, rule: Mapping[str, Any], place: Place, arm: str) -> Finding:
    found = evidence.difference(place, _arm(rule["a"], arm), _arm(rule["b"], arm))
    return _finding(place, found, rule["relation"], _bound(rule, place.dataset))


def _published(evidence: Evidence, rule: Mapping[str, Any], place: Place, arm: str) -> Finding:
    stated = paper()["table1"][place.dataset]
    if "b" in rule:
        gap = round(stated[rule["a"]][0] - stated[rule["b"]][0], 6)
        found = evidence.difference(place, _arm(rule["a"], arm), _arm(rule["b"], arm))
        return replace(_finding(place, found, rule["relation"], gap), published=gap)
    series = evidence.get(place, _arm(rule["a"], arm))
    values = np.empty(0) if series is None else series.values(rule["metric"])
    if not values.size or not np.isfinite(values).all():
        return Finding(place.dataset, "not tested", "not tested")
    mean = float(stated[rule["metric"]][0])
    # Savings are part of the stream and need no test set. The ratio is the one for accuracies, so their
    # interval is wider than necessary.
    found = compare(values - mean, None if series is None else size_ratio([series], series.runs))
    return replace(_finding(place, found, rule["relation"], rule["margin"]), published=mean)


def _sweep(evidence: Evidence, rule: Mapping[str, Any], place: Place, arm: str) -> Finding:
    """Every or any value of a setting; where one of many decides, intervals are widened by Bonferroni."""
    a, b = _arm(rule["a"], arm), _arm(rule["b"], arm)
    bound, every = _bound(rule, place.dataset), rule["quantifier"] == "every"
    values = evidence.values_of(rule["over"], place.study, place.regime, place.dataset)
    cells: dict[Scalar, tuple[Comparison, Comparison]] = {}
    for value in values:
        at = place.at(**{rule["over"]: value})
        one, many = (_at_level(evidence, at, a, b, 1 - (1 - LEVEL) / n) for n in (1, len(values)))
        if one is not None and many is not None and one.half is not None:
            cells[value] = (one, many)
    if not cells:
        return Finding(place.dataset, "not tested", "not tested", missing=len(values))
    untested: list[Outcome] = ["not tested"] * (len(values) - len(cells))

    decides: Outcome = "does not hold" if every else "holds"  # one setting, by its widened interval
    all_say: Outcome = "holds" if every else "does not hold"  # each by its own

    def total(*, corrected: bool) -> Outcome:
        ones = [outcome(one, rule["relation"], bound, corrected=corrected) for one, _ in cells.values()]
        ones += untested
        many = [outcome(each, rule["relation"], bound, corrected=corrected) for _, each in cells.values()]
        return decides if decides in many else all_say if set(ones) == {all_say} else "inconclusive"

    worst, best = (pick(cells, key=lambda value: cells[value][0].mean) for pick in (min, max))
    return Finding(
        place.dataset,
        total(corrected=True),
        total(corrected=False),
        cells[worst][0],
        cells[best][0],
        (worst, best),
        missing=len(untested),
    )


def _decline(evidence: Evidence, rule: Mapping[str, Any], place: Place, arm: str) -> Finding:
    """Difference of the least-squares slopes of accuracy over a setting, in points per tenth of it."""
    values = list(evidence.values_of(rule["over"], place.study, place.regime, place.dataset))
    held: dict[str, list[Series]] = {}
    steps = []
    for value in values:
        at = place.at(**rule["fixed"], **{rule["over"]: value})
        pair = [evidence.get(at, _arm(rule[side], arm)) for side in ("a", "b")]
        if all(series is not None for series in pair):
            steps.append(float(value))
            for side, series in zip("ab", pair, strict=True):
                if series is not None:
                    held.setdefault(side, []).append(series)
    both = [*held.get("a", []), *held.get("b", [])]
    seeds = sorted(set.intersection(*(set(series.runs) for series in both))) if both else []
    if len(steps) < 2 or not seeds:
        return Finding(place.dataset, "not tested", "not tested")
    slopes = {
        side: np.polyfit(steps, np.array([series.values("accuracy", seeds) for series in held[side]]), 1)[0]
        / 10
        for side in "ab"
    }
    found = compare(slopes["a"] - slopes["b"], size_ratio(both, seeds))
    return _finding(place, found, "greater", 0.0)


def _at_level(evidence: Evidence, place: Place, a: str, b: str, confidence: float) -> Comparison | None:
    first, second = evidence.get(place, a), evidence.get(place, b)
    if first is None or second is None:
        return None
    seeds = sorted(set(first.runs) & set(second.runs))
    if not seeds:
        return None
    values = first.values("accuracy", seeds) - second.values("accuracy", seeds)
    return compare(values, size_ratio((first, second), seeds), confidence)


def _finding(place: Place, found: Comparison | None, relation: str, bound: float) -> Finding:
    if found is None or found.half is None:
        return Finding(place.dataset, "not tested", "not tested", found, found)
    uncorrected = outcome(found, relation, bound, corrected=False)
    return Finding(place.dataset, outcome(found, relation, bound), uncorrected, found, found)


def _together(outcomes: list[Outcome]) -> Outcome:
    if "does not hold" in outcomes:
        return "does not hold"
    if set(outcomes) == {"holds"}:
        return "holds"
    return "not tested" if set(outcomes) <= {"not tested"} else "inconclusive"


def _arm(name: str, drip: str) -> str:
    return drip if name == "drip" else name


def _datasets(rule: Mapping[str, Any]) -> tuple[str, ...]:
    return NOISY if rule.get("study") == "noise" else DATASETS
