"""What a run showed, in plain sentences computed from its numbers; no sentence without a number behind it.

Pure functions; a result that does not favour DRIP is said in the same plain words as one that does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Literal

import numpy as np

from drip.files.format import byte_size, count, percent, points, ratio, significant
from drip.report.model import ALL_DATA, BASELINE, DRIP, MARGIN, RANDOM, Arm, RunReport, compare

_MAX_LISTED = 6


@dataclass(frozen=True, slots=True)
class Verdict:
    """DRIP against random in this run.

    Attributes:
        outcome: ``better``, ``worse``, ``no-gain`` (chance explains the difference), or ``unknown``.
        headline: A few words.
        sentence: The numbers behind them.
    """

    outcome: Literal["better", "worse", "no-gain", "unknown"]
    headline: str
    sentence: str


def findings(report: RunReport) -> list[str]:
    """What happened, most important first; what cannot be computed is left out or said to be missing.

    Differences count as more than chance when they exceed two standard errors; see
    :func:`drip.report.model.compare`.

    Args:
        report: The numbers of one run.

    Returns:
        Sentences of plain text, the comparison with random first.
    """
    first = verdict(report)
    sentences = [
        f"{first.headline}. {first.sentence}",
        _gain(report),
        _margin(report),
        _errors(report),
        _retention(report),
        _never(report),
        _surprise(report),
        _bytes(report),
        _time(report),
    ]
    return [sentence for sentence in sentences if sentence]


def verdict(report: RunReport) -> Verdict:
    """Whether DRIP did better than random, worse, or neither by more than chance.

    Args:
        report: The numbers of one run.
    """
    drip, random = report.arm(DRIP), report.arm(RANDOM)
    if drip is None or random is None:
        missing = "DRIP" if drip is None else "random"
        return Verdict(
            "unknown",
            "Not compared with random",
            f"The run has no {missing} arm: whether DRIP's choice is worth more than its count is unknown.",
        )
    if not isfinite(drip.accuracy) or not isfinite(random.accuracy):
        return Verdict(
            "unknown",
            "Not compared with random",
            "An accuracy was not measured, so whether DRIP's choice is worth more than its count is unknown.",
        )
    pair = compare(drip, random, report.n_test)
    kept = (
        f"with {count(drip.n_kept)} samples kept by each"
        if drip.n_kept == random.n_kept
        else f"but DRIP kept {count(drip.n_kept)} samples and random {count(random.n_kept)}, "
        "so the counts are not equal and neither is the comparison"
    )
    numbers = f"DRIP reaches {percent(drip.accuracy, 2)} and random {percent(random.accuracy, 2)}, {kept}. "
    kind = (
        "the paired difference"
        if pair.only_first is not None
        else "the difference, arms taken as independent"
    )
    error = f"two standard errors of {kind} are {points(2 * pair.standard_error, signed=False)}"
    if pair.difference == 0:
        return Verdict("no-gain", "DRIP is no better than random in this run", f"{numbers}They are equal.")
    gap = f"The difference is {points(pair.difference)}"
    if not pair.exceeds_chance:
        return Verdict(
            "no-gain",
            "DRIP is no better than random in this run",
            f"{numbers}{gap}; chance alone can explain that much ({error}).",
        )
    word: Literal["better", "worse"] = "better" if pair.difference > 0 else "worse"
    return Verdict(
        word,
        f"DRIP is {word} than random in this run",
        f"{numbers}{gap}, more than chance explains ({error}). "
        "It is one run with one seed, and this error does not cover what another seed would change: "
        "repeat it with others before relying on it.",
    )


def _gain(report: RunReport) -> str:
    baseline, everything, drip = (report.arm(name) for name in (BASELINE, ALL_DATA, DRIP))
    parts = []
    if baseline and everything and _measured(baseline, everything):
        room = compare(everything, baseline, report.n_test)
        if room.exceeds_chance and room.difference > 0:
            parts.append(
                f"Keeping everything gains {points(room.difference, signed=False)} over keeping nothing."
            )
        else:
            parts.append(
                f"Keeping everything instead of nothing changes the accuracy by {points(room.difference)}, "
                "no gain beyond chance (two standard errors are "
                f"{points(2 * room.standard_error, signed=False)}): "
                "this run leaves little room for any rule to show a gain."
            )
    if baseline and drip and _measured(baseline, drip):
        pair = compare(drip, baseline, report.n_test)
        share = percent(report.retention(drip))
        chance = "" if pair.exceeds_chance else ", no more than chance can explain"
        parts.append(f"Keeping DRIP's {share} {_change(pair.difference)} over keeping nothing{chance}.")
    if everything and drip and _measured(everything, drip):
        parts.append(f"Against keeping everything {_against(drip, everything, report.n_test)}.")
    return " ".join(parts)


def _margin(report: RunReport) -> str:
    margin, drip = report.arm(MARGIN), report.arm(DRIP)
    if not margin or not drip or not _measured(margin, drip):
        return ""
    same = "at the same count" if margin.n_kept == drip.n_kept else f"with {count(margin.n_kept)} samples"
    return f"Against the smallest margin {same} {_against(drip, margin, report.n_test)}."


def _against(drip: Arm, other: Arm, n_test: int) -> str:
    pair = compare(drip, other, n_test)
    if pair.difference == 0:
        return "DRIP is equal"
    side = "ahead" if pair.difference > 0 else "behind"
    chance = "more than chance explains" if pair.exceeds_chance else "no more than chance can explain"
    return f"DRIP is {points(pair.difference, signed=False)} {side}, {chance}"


def _change(difference: float) -> str:
    if difference == 0:
        return "gains nothing"
    return f"{'gains' if difference > 0 else 'loses'} {points(difference, signed=False)}"


def _errors(report: RunReport) -> str:
    shares = {
        name: arm.errors_kept_share
        for name in (DRIP, RANDOM, MARGIN)
        if (arm := report.arm(name)) is not None
        and arm.errors_kept_share is not None
        and isfinite(arm.errors_kept_share)
    }
    drip = report.arm(DRIP)
    if drip is None or DRIP not in shares or report.n_errors == 0:
        return "The deployed model made no error in the stream." if report.n_errors == 0 else ""
    names = {DRIP: "DRIP", RANDOM: "random", MARGIN: "the smallest margin"}
    listed = _join([f"{names[name]} kept {percent(share)}" for name, share in shares.items()])
    of = f"the {count(report.n_errors)} samples" if report.n_errors else "the samples"
    text = f"Of {of} that the deployed model got wrong, {listed}."
    retention = report.retention(drip)
    if not report.n_errors or not isfinite(retention):
        return text
    gap = shares[DRIP] - retention
    if abs(gap) <= 2.0 * sqrt(retention * (1.0 - retention) / report.n_errors):
        return (
            f"{text} DRIP keeps {percent(retention)} of all samples, so it does not single out the errors: "
            "chance alone can explain the difference."
        )
    more = "more often" if gap > 0 else "less often"
    return f"{text} DRIP keeps errors {more} than samples in general ({percent(retention)}), beyond chance."


def _retention(report: RunReport) -> str:
    n_seen, n_kept = int(np.sum(report.class_counts_seen)), int(np.sum(report.class_counts_kept))
    if not n_seen:
        return "The production stream was empty: nothing was decided."
    share = ratio(n_seen - n_kept, n_seen)
    if not report.windows or report.asked_discard is None:
        return f"The policy discarded {percent(share)} of {count(n_seen)} samples."
    asked = report.asked_discard
    relation = "as" if percent(share) == percent(asked) else "more than" if share > asked else "less than"
    text = (
        f"Asked to discard {percent(asked)} of every class (DPW), the policy discarded {percent(share)} "
        f"of {count(n_seen)} samples, {relation} asked"
    )
    expected = np.array([window.expected_discard for window in report.windows])
    forecast = float(np.sum(expected * report.class_counts_seen)) / n_seen
    text += f"; calibration led to expect {percent(forecast)}."
    if n_kept == 0:
        text += " Nothing at all was kept."
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


def _surprise(report: RunReport) -> str:
    """The class that departs most from what calibration expected, if by more than three standard errors."""
    worst: tuple[float, int, float, float, int] | None = None
    for index, window in enumerate(report.windows):
        n_seen = int(report.class_counts_seen[index])
        if not window.discards or not n_seen or not window.n:
            continue
        actual = 1.0 - int(report.class_counts_kept[index]) / n_seen
        pooled = (window.expected_discard * window.n + actual * n_seen) / (window.n + n_seen)
        error = sqrt(pooled * (1.0 - pooled) * (1.0 / n_seen + 1.0 / window.n))
        excess = abs(actual - window.expected_discard) / error if error else 0.0
        if worst is None or excess > worst[0]:
            worst = (excess, index, window.expected_discard, actual, n_seen)
    if worst is None or worst[0] <= 3.0:
        return ""
    _, index, expected, actual, n_seen = worst
    return (
        f"Class {report.class_name(index)} departs most from its calibration: {percent(expected)} expected, "
        f"{percent(actual)} of {count(n_seen)} samples discarded, more than three standard errors apart; "
        "production may differ from the calibration data there."
    )


def _bytes(report: RunReport) -> str:
    drip = report.arm(DRIP)
    if drip is None or not report.bytes_seen:
        return ""
    saved = report.bytes_seen - drip.bytes_kept
    return (
        f"DRIP stored {byte_size(drip.bytes_kept)} of {byte_size(report.bytes_seen)}, "
        f"which saves {percent(saved / report.bytes_seen)}; "
        "a random choice of as many samples saves about the same."
    )


def _time(report: RunReport) -> str:
    times = decision_times(report)
    if times is None:
        return ""
    includes = f" ({report.decision_includes})" if report.decision_includes else ""
    return (
        f"A decision took {significant(times[1])} ms in the median, "
        f"95 % took at most {significant(times[2])} ms{includes}."
    )


def decision_times(report: RunReport) -> tuple[float, float, float] | None:
    """Mean, median and 95th percentile of the time per decision in milliseconds; None without times."""
    finite = report.decision_ms[np.isfinite(report.decision_ms)]
    if not finite.size:
        return None
    return float(finite.mean()), float(np.median(finite)), float(np.quantile(finite, 0.95))


def _measured(*arms: Arm) -> bool:
    return all(isfinite(arm.accuracy) for arm in arms)


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
