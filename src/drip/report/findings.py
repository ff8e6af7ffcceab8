"""What a run showed, in plain sentences that are computed from its numbers.

A small network on a small test set has a different accuracy on each machine: the order of floating-point
sums differs, and training amplifies it. So no sentence depends on which of two arms happens to be ahead by
less than the uncertainty: it states the difference with its 99 % confidence interval and says "inconclusive".
A result against DRIP gets the same words as one in its favour.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Literal

import numpy as np

from drip.files.format import byte_size, count, percent, points, ratio, significant
from drip.report.model import (
    ALL_DATA,
    BASELINE,
    DRIP,
    MARGIN,
    RANDOM,
    Arm,
    Difference,
    RunReport,
    compare,
)

_MAX_LISTED = 6

Outcome = Literal["better", "worse", "inconclusive", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """DRIP against random selection of as many samples, in this run.

    Attributes:
        outcome: ``better`` or ``worse`` when the 99 % confidence interval of the difference excludes
            zero, ``inconclusive`` when it does not, ``unknown`` when an arm or its accuracy is missing.
        headline: A few words; the same for every inconclusive run.
        sentence: The numbers.
    """

    outcome: Outcome
    headline: str
    sentence: str


def findings(report: RunReport) -> list[str]:
    """What happened, most important first.

    Args:
        report: The numbers of one run.

    Returns:
        Sentences of plain text, the comparison with random first. What cannot be computed is left out.
    """
    first = verdict(report)
    sentences = [
        f"{first.headline}. {first.sentence}",
        _gain(report),
        _margin(report),
        _errors(report),
        _retention(report),
        _never(report),
        _pooled(report),
        _surprise(report),
        _bytes(report),
        _time(report),
    ]
    return [sentence for sentence in sentences if sentence]


def verdict(report: RunReport) -> Verdict:
    """Whether DRIP's choice was worth more than a random one of the same size.

    Args:
        report: The numbers of one run.
    """
    drip, random = report.arm(DRIP), report.arm(RANDOM)
    if drip is None or random is None:
        missing = "DRIP" if drip is None else "random"
        return Verdict(
            "unknown",
            "DRIP was not compared with random selection",
            f"This run has no {missing} arm, so it does not show whether DRIP's choice matters.",
        )
    if not _measured(drip, random):
        return Verdict(
            "unknown",
            "DRIP was not compared with random selection",
            "An accuracy is missing, so this run does not show whether DRIP's choice matters.",
        )
    difference = compare(drip, random, report.n_test)
    outcome = _outcome(difference)
    counts = (
        f"With {count(drip.n_kept)} kept samples each,"
        if drip.n_kept == random.n_kept
        else f"With {count(drip.n_kept)} samples kept by DRIP but {count(random.n_kept)} by random "
        "selection, an unequal comparison,"
    )
    numbers = (
        f"{counts} DRIP reaches {percent(drip.accuracy, 2)} and random selection "
        f"{percent(random.accuracy, 2)}. The difference is {_plus_minus(difference)} "
        "(99 % confidence interval)"
    )
    if outcome == "inconclusive":
        # The wording must not favour either side: the sign of such a difference changes with the machine.
        return Verdict(
            outcome,
            "DRIP against random selection: inconclusive in this run",
            f"{numbers}, which includes zero: this run does not show which of the two is better.",
        )
    return Verdict(
        outcome,
        f"DRIP is {outcome} than random selection in this run",
        f"{numbers}, which excludes zero. The interval does not cover what another training seed or split "
        "would change: repeat the run with other seeds before relying on it.",
    )


def decision_times(report: RunReport) -> tuple[float, float, float] | None:
    """Mean, median and 95th percentile of the time per decision in milliseconds; None without times."""
    finite = report.decision_ms[np.isfinite(report.decision_ms)]
    if not finite.size:
        return None
    return float(finite.mean()), float(np.median(finite)), float(np.quantile(finite, 0.95))


def _outcome(difference: Difference) -> Outcome:
    if not difference.conclusive:
        return "inconclusive"
    return "better" if difference.value > 0 else "worse"


def _plus_minus(difference: Difference) -> str:
    """The difference with its interval, such as ``+0.20 ± 0.36 points``."""
    value = points(difference.value).removesuffix(" points")
    return f"{value} \u00b1 {points(difference.plus_minus, signed=False)}"


def _gain(report: RunReport) -> str:
    baseline, everything, drip = (report.arm(name) for name in (BASELINE, ALL_DATA, DRIP))
    parts = []
    if baseline and everything and _measured(baseline, everything):
        room = compare(everything, baseline, report.n_test)
        outcome = _outcome(room)
        # If keeping everything brings no gain, no rule can show one.
        rest = "" if outcome == "better" else "; this run leaves little room for any rule to show a gain"
        parts.append(
            f"Keeping everything instead of nothing changes the accuracy by {_plus_minus(room)} "
            f"({outcome}{rest})."
        )
    if baseline and drip and _measured(baseline, drip):
        parts.append(
            f"Keeping DRIP's {percent(report.retention(drip))} instead of nothing changes it by "
            f"{_against(drip, baseline, report.n_test)}."
        )
    if everything and drip and _measured(everything, drip):
        parts.append(
            f"Keeping them instead of everything changes it by {_against(drip, everything, report.n_test)}."
        )
    return " ".join(parts)


def _margin(report: RunReport) -> str:
    margin, drip = report.arm(MARGIN), report.arm(DRIP)
    if not margin or not drip or not _measured(margin, drip):
        return ""
    size = "as many" if margin.n_kept == drip.n_kept else f"the {count(margin.n_kept)}"
    return (
        f"Keeping DRIP's samples instead of {size} with the smallest margins changes the accuracy by "
        f"{_against(drip, margin, report.n_test)}."
    )


def _against(drip: Arm, other: Arm, n_test: int) -> str:
    difference = compare(drip, other, n_test)
    return f"{_plus_minus(difference)} ({_outcome(difference)})"


def _errors(report: RunReport) -> str:
    shares = {
        name: arm.errors_kept
        for name in (DRIP, RANDOM, MARGIN)
        if (arm := report.arm(name)) is not None and arm.errors_kept is not None and isfinite(arm.errors_kept)
    }
    drip = report.arm(DRIP)
    if drip is None or DRIP not in shares or report.n_errors == 0:
        return "The deployed model made no error in the stream." if report.n_errors == 0 else ""
    names = {DRIP: "DRIP", RANDOM: "random selection", MARGIN: "the smallest margin"}
    listed = _join([f"{names[name]} kept {percent(share)}" for name, share in shares.items()])
    of = f"the {count(report.n_errors)} samples" if report.n_errors else "the samples"
    text = f"Of {of} that the deployed model got wrong, {listed}."
    retention = report.retention(drip)
    if not report.n_errors or not isfinite(retention):
        return text
    # A rule that ignores errors keeps each of them with probability `retention`.
    gap = Difference(
        shares[DRIP] - retention, sqrt(retention * (1.0 - retention) / report.n_errors), paired=False
    )
    if not gap.conclusive:
        return (
            f"{text} DRIP keeps {percent(retention)} of all samples; the difference of {_plus_minus(gap)} is "
            "inconclusive, so this run does not show that DRIP finds errors."
        )
    more = "more often" if gap.value > 0 else "less often"
    return (
        f"{text} DRIP keeps errors {more} than other samples: its keep rate is {percent(retention)}, a "
        f"difference of {_plus_minus(gap)}."
    )


def _retention(report: RunReport) -> str:
    n_seen, n_kept = int(np.sum(report.class_counts_seen)), int(np.sum(report.class_counts_kept))
    if not n_seen:
        return "The production stream was empty, so no sample was decided."
    kept = f"kept {percent(ratio(n_kept, n_seen))} of {count(n_seen)} samples"
    if not report.windows or report.asked_retention is None:
        return f"The policy {kept}."
    discarded = np.array([window.expected_discard for window in report.windows])
    expected = 1.0 - float(np.sum(discarded * report.class_counts_seen)) / n_seen
    text = (
        f"The policy was calibrated to keep {percent(report.asked_retention)} of every class and expected to "
        f"keep {percent(expected)} of this stream; it {kept}."
    )
    drip = report.arm(DRIP)
    if drip is not None and drip.n_kept != n_kept:
        text += (
            f" The DRIP arm was trained with {count(drip.n_kept)} of them; "
            f"the policy itself kept {count(n_kept)}."
        )
    return text


def _never(report: RunReport) -> str:
    reasons = {
        report.class_name(index): window.never_because
        for index, window in enumerate(report.windows)
        if window.never_because is not None
    }
    if not reasons:
        return "Every class has a window and can discard." if report.windows else ""
    n_classes = len(report.windows)
    listed = [f"{name} ({reason})" for name, reason in list(reasons.items())[:_MAX_LISTED]]
    if len(reasons) > _MAX_LISTED:
        listed.append(f"{len(reasons) - _MAX_LISTED} more")
    verb = "class never discards" if len(reasons) == 1 else "classes never discard"
    return f"{len(reasons)} of {n_classes} {verb}: {_join(listed)}."


def _pooled(report: RunReport) -> str:
    names = [report.class_name(index) for index, window in enumerate(report.windows) if window.pooled]
    if not names:
        return ""
    listed = names[:_MAX_LISTED]
    if len(names) > _MAX_LISTED:
        listed.append(f"{len(names) - _MAX_LISTED} more")
    verb = "class has" if len(names) == 1 else "classes have"
    return (
        f"{len(names)} of {len(report.windows)} {verb} too few calibration samples and the window of all "
        f"classes together: {_join(listed)}."
    )


def _surprise(report: RunReport) -> str:
    """The class whose keep rate differs most from what calibration expected.

    Only if it differs by more than three standard errors: by chance, the largest of ten deviations exceeds
    two standard errors in one run of three, and three in one of forty.
    """
    worst: tuple[float, int, float, float, int] | None = None
    for index, window in enumerate(report.windows):
        n_seen = int(report.class_counts_seen[index])
        # A pooled window holds its part of all classes together; of one class it may hold any part.
        if not window.discards or window.pooled or not n_seen or not window.n:
            continue
        actual = 1.0 - int(report.class_counts_kept[index]) / n_seen
        # The expectation is an estimate from window.n scores, so the errors of both samples count.
        pooled = (window.expected_discard * window.n + actual * n_seen) / (window.n + n_seen)
        error = sqrt(pooled * (1.0 - pooled) * (1.0 / n_seen + 1.0 / window.n))
        excess = abs(actual - window.expected_discard) / error if error else 0.0
        if worst is None or excess > worst[0]:
            worst = (excess, index, window.expected_discard, actual, n_seen)
    if worst is None or worst[0] <= 3.0:
        return ""
    _, index, expected, actual, n_seen = worst
    return (
        f"Class {report.class_name(index)} differs most from its calibration: its expected keep rate is "
        f"{percent(1.0 - expected)}, but {percent(1.0 - actual)} of {count(n_seen)} samples were kept, more "
        "than three standard errors apart. Its production data may differ from its calibration data."
    )


def _bytes(report: RunReport) -> str:
    drip, random = report.arm(DRIP), report.arm(RANDOM)
    if drip is None or not report.bytes_seen:
        return ""
    saved = report.bytes_seen - drip.bytes_kept
    # The saving is not due to the choice: any rule that keeps as many samples saves about as much.
    beside = f"; random selection stored {byte_size(random.bytes_kept)}" if random is not None else ""
    return (
        f"DRIP stored {byte_size(drip.bytes_kept)} of {byte_size(report.bytes_seen)} "
        f"({percent(saved / report.bytes_seen)} saved){beside}."
    )


def _time(report: RunReport) -> str:
    times = decision_times(report)
    if times is None:
        return ""
    includes = f" ({report.decision_includes})" if report.decision_includes else ""
    return (
        f"The median time per decision was {significant(times[1])} ms, the 95th percentile "
        f"{significant(times[2])} ms{includes}."
    )


def _measured(*arms: Arm) -> bool:
    return all(isfinite(arm.accuracy) for arm in arms)


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
