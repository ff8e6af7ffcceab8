"""The paper's claims judged by our runs: holds, does not hold, inconclusive or not tested, with numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from experiments.cells import Scalar
from experiments.reading import DATASETS, Evidence, Place, Series, paper, size_ratio
from experiments.statistics import LEVEL, MIN_INTERVAL, Comparison, compare
from experiments.tables import dataset_name, interval, joined, percent, runs, signed

Outcome = Literal["holds", "does not hold", "inconclusive", "not tested"]

READINGS = {
    "table1": ("paper.raw.window", "paper.raw.peak", "paper.normalised.window", "paper.normalised.peak"),
    "dpw": ("drip", "drip.normalised"),
    "noise": ("drip", "drip.normalised"),
}
"""Arms that stand for the paper's rule, by study; the first is the one the verdict rests on."""
NOISY = ("cifar10", "tomato")
"""Data sets of the study of noise: the paper's Fig. 6 has the first; does it carry over to the second?"""


@dataclass(frozen=True)
class Finding:
    """What one data set says of a claim.

    Attributes:
        dataset: Which.
        outcome: The verdict on it alone.
        numbers: What it rests on, in words.
        plain: The outcome by the interval without the correction for re-splits.
        mean: The mean difference, where one difference decides.
    """

    dataset: str
    outcome: Outcome
    numbers: str
    plain: Outcome
    mean: float | None = None


@dataclass(frozen=True)
class Verdict:
    """A claim judged in one regime with one reading of the paper's rule.

    Attributes:
        claim: Its table of ``paper.toml``.
        regime: ``full`` or ``head``; empty where the claim cannot be tested.
        arm: What stood for DRIP.
        outcome: All data sets together: fails with one of them, holds only with all.
        findings: By data set.
    """

    claim: Mapping[str, Any]
    regime: str
    arm: str
    outcome: Outcome
    findings: tuple[Finding, ...]

    @property
    def reason(self) -> str:
        """Which data sets gave which outcome, in words."""
        if not self.findings:
            return str(self.claim["rule"].get("why", "no data set of it was run"))
        by_outcome: dict[str, list[str]] = {}
        for finding in self.findings:
            by_outcome.setdefault(finding.outcome, []).append(dataset_name(finding.dataset))
        if len(by_outcome) == 1:
            names = next(iter(by_outcome.values()))
            return {1: names[0], 2: "both data sets"}.get(len(names), f"all {len(names)} data sets")
        order = ("holds", "does not hold", "inconclusive", "not tested")
        told = [f"{outcome}: {joined(by_outcome[outcome])}" for outcome in order if outcome in by_outcome]
        return "; ".join(told)

    @property
    def brief(self) -> str:
        """The mean differences, from the smallest to the largest."""
        means = sorted(finding.mean for finding in self.findings if finding.mean is not None)
        if not means:
            return ""
        low, high = signed(means[0]), signed(means[-1])
        unit = "points per tenth of noise" if self.claim["rule"]["kind"] == "decline" else "points"
        return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


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
        return _finding(place, found, rule["relation"], gap, f", {signed(gap, 1)} in Table I")
    series = evidence.get(place, _arm(rule["a"], arm))
    values = np.empty(0) if series is None else series.values(rule["metric"])
    if not values.size or not np.isfinite(values).all():
        return _finding(place, None, rule["relation"], 0.0)
    mean = stated[rule["metric"]][0]
    numbers = f"{percent(float(values.mean()))} % here, {percent(mean, 0)} % in Table I; difference "
    # Savings are a share of the stream, which no test set measures: the ratio is that of accuracies, and
    # makes their interval wider than it need be.
    found = compare(values - mean, None if series is None else size_ratio([series], series.runs))
    finding = _finding(place, found, rule["relation"], rule["margin"])
    return replace(finding, numbers=numbers + finding.numbers)


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
        return Finding(place.dataset, "not tested", _too_few([]), "not tested")
    untested: list[Outcome] = ["not tested"] * (len(values) - len(cells))

    decides: Outcome = "does not hold" if every else "holds"  # one setting, by its widened interval
    all_say: Outcome = "holds" if every else "does not hold"  # each by its own

    def total(*, corrected: bool) -> Outcome:
        ones = [outcome(one, rule["relation"], bound, corrected=corrected) for one, _ in cells.values()]
        ones += untested
        many = [outcome(each, rule["relation"], bound, corrected=corrected) for _, each in cells.values()]
        return decides if decides in many else all_say if set(ones) == {all_say} else "inconclusive"

    best, worst = (pick(cells, key=lambda value: cells[value][0].mean) for pick in (max, min))
    numbers = (
        f"from {interval(cells[worst][0])} at {rule['over']} {worst} "
        f"to {interval(cells[best][0])} at {rule['over']} {best}"
    )
    if untested:
        numbers += f"; {len(cells)} of {len(values)} values of {rule['over']} "
        numbers += "has five runs" if len(cells) == 1 else "have five runs"
    return Finding(place.dataset, total(corrected=True), numbers, total(corrected=False))


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
        return Finding(place.dataset, "not tested", _too_few([]), "not tested")
    slopes = {
        side: np.polyfit(steps, np.array([series.values("accuracy", seeds) for series in held[side]]), 1)[0]
        / 10
        for side in "ab"
    }
    found = compare(slopes["a"] - slopes["b"], size_ratio(both, seeds))
    names = {side: _arm(rule[side], arm) for side in "ab"}
    slope = "; ".join(f"{names[side]} {signed(float(slopes[side].mean()))}" for side in "ab")
    return _finding(place, found, "greater", 0.0, f" per tenth of noise ({slope})")


def _at_level(evidence: Evidence, place: Place, a: str, b: str, confidence: float) -> Comparison | None:
    first, second = evidence.get(place, a), evidence.get(place, b)
    if first is None or second is None:
        return None
    seeds = sorted(set(first.runs) & set(second.runs))
    if not seeds:
        return None
    values = first.values("accuracy", seeds) - second.values("accuracy", seeds)
    return compare(values, size_ratio((first, second), seeds), confidence)


def _finding(place: Place, found: Comparison | None, relation: str, bound: float, note: str = "") -> Finding:
    if found is None or found.half is None:
        return Finding(
            place.dataset, "not tested", _too_few([] if found is None else [found.n]), "not tested"
        )
    plain = outcome(found, relation, bound, corrected=False)
    numbers = f"{interval(found)}{note}"
    return Finding(place.dataset, outcome(found, relation, bound), numbers, plain, found.mean)


def _too_few(counts: list[int]) -> str:
    return f"{runs(counts[0])}, {MIN_INTERVAL} are needed" if counts else "not run"


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
