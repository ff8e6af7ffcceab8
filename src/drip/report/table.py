"""The table of arms as rows of text, and as Markdown; the page prints the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from drip.report.model import (
    ALL_DATA,
    BASELINE,
    DRIP,
    MARGIN,
    RANDOM,
    Arm,
    RunReport,
    compare,
    standard_error,
)
from drip.report.quantities import byte_size, count, percent, points, seconds

COLUMNS = (
    "Arm",
    "Accuracy",
    "Minus random",
    "Kept",
    "Share kept",
    "Bytes kept",
    "Bytes saved",
    "Model errors kept",
    "Trained on",
    "Training",
)
NONE = "\u2013"
_TITLES = {
    BASELINE: ("baseline", "nothing kept"),
    ALL_DATA: ("all-data", "everything kept"),
    DRIP: ("DRIP", "outside the window"),
    RANDOM: ("random", "drawn at random"),
    MARGIN: ("margin", "smallest margin"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One arm in words.

    Attributes:
        arm: The arm itself.
        explanation: What it kept, in a few words; may be empty.
        cells: One text per column of :data:`COLUMNS`.
    """

    arm: Arm
    explanation: str
    cells: tuple[str, ...]


def rows(report: RunReport) -> list[Row]:
    """One row per arm, in the report's order.

    Args:
        report: The numbers of one run.
    """
    return [_row(report, arm) for arm in report.arms]


def _row(report: RunReport, arm: Arm) -> Row:
    title, explanation = _TITLES.get(arm.name, (arm.name, ""))
    random = report.arm(RANDOM)
    error = standard_error(arm.accuracy, report.n_test)
    accuracy = percent(arm.accuracy, 2)
    if isfinite(error):
        accuracy = f"{100 * arm.accuracy:.2f} \u00b1 {100 * error:.2f} %"
    saved = report.bytes_seen - arm.bytes_kept
    share_saved = f" ({percent(saved / report.bytes_seen)})" if report.bytes_seen else ""
    return Row(
        arm,
        explanation,
        (
            title,
            accuracy,
            _difference(report, arm, random),
            count(arm.n_kept),
            percent(report.retention(arm)),
            byte_size(arm.bytes_kept),
            f"{byte_size(saved)}{share_saved}",
            NONE if arm.errors_kept_share is None else percent(arm.errors_kept_share),
            count(arm.n_train),
            seconds(arm.seconds),
        ),
    )


def _difference(report: RunReport, arm: Arm, random: Arm | None) -> str:
    if random is None or arm is random:
        return NONE
    pair = compare(arm, random, report.n_test)
    if not isfinite(pair.difference):
        return NONE
    return f"{points(pair.difference).removesuffix(' points')} \u00b1 {100 * pair.standard_error:.2f}"


def uncertainty(report: RunReport) -> str:
    """What the plus-minus signs of the table mean, and what they leave out.

    Args:
        report: The numbers of one run.
    """
    random = report.arm(RANDOM)
    text = (
        f"\u00b1 behind an accuracy is the binomial standard error of {count(report.n_test)} test samples, "
        "one run. "
    )
    if random is not None:
        paired = random.correct is not None and any(
            arm.correct is not None for arm in report.arms if arm is not random
        )
        text += (
            "\u201cMinus random\u201d is in points with the standard error of the paired difference "
            "(McNemar: only test samples on which the two arms disagree count). "
            if paired
            else "\u201cMinus random\u201d is in points with both standard errors added in quadrature, "
            "as if the arms had separate test sets; that usually overstates the error. "
        )
    return text + "Neither error covers the random seed or the split: only repeated runs show these."


def to_markdown_table(report: RunReport) -> str:
    """The table of arms in Markdown, with a line that says what the errors are.

    Args:
        report: The numbers of one run.

    Returns:
        Markdown that ends with a newline; a bar in a name is escaped.
    """
    lines = [_line(COLUMNS), _line(["---"] + ["---:"] * (len(COLUMNS) - 1))]
    lines += [
        _line([cell.replace("\n", " ").replace("|", "\\|") for cell in row.cells]) for row in rows(report)
    ]
    return "\n".join([*lines, "", uncertainty(report), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
