"""The report as a page: one row per arm, shared by the Markdown table and the HTML, and a section per topic.

The sections answer a reader's questions in order: the result and its uncertainty, the windows, the kept
samples, the heatmaps, the time per decision, and the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from drip.files import write_atomically
from drip.files.format import MISSING, byte_size, count, percent, points, ratio, seconds, significant
from drip.files.page import document, share_bar, text
from drip.report import figures
from drip.report.findings import decision_times, findings, verdict
from drip.report.gallery import gallery_section
from drip.report.model import (
    ALL_DATA,
    BASELINE,
    DRIP,
    MARGIN,
    RANDOM,
    Z_99,
    Arm,
    RunReport,
    compare,
    standard_error,
)
from drip.rules import RECOMMENDED
from drip.types import JsonObject

COLUMNS = (
    "Arm",
    "Accuracy",
    "Minus random",
    "Kept",
    "Keep rate",
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
    RECOMMENDED: (RECOMMENDED, "default rule"),
}
_MARKS = {"better": "\u25b2", "worse": "\u25bc", "inconclusive": "\u00b1", "unknown": "?"}

_CELLS: tuple[tuple[str, int, int | None], ...] = (
    ("Accuracy", 1, None),
    ("Minus random", 2, None),
    ("Kept", 3, 4),
    ("Stored", 5, 6),
    ("Model errors kept", 7, None),
    ("Training", 9, 8),
)
"""Cells of the HTML table: their name, the column of their value, the column of the small print below it."""

_SMALL = {6: "saves {}", 8: "on {} samples"}


@dataclass(frozen=True, slots=True)
class Row:
    """One arm as text.

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
    reach = Z_99 * standard_error(arm.accuracy, report.n_test)
    accuracy = percent(arm.accuracy, 2)
    if isfinite(reach):
        accuracy = f"{100 * arm.accuracy:.2f} \u00b1 {100 * reach:.2f} %"
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
            NONE if arm.errors_kept is None else percent(arm.errors_kept),
            count(arm.n_train),
            seconds(arm.seconds),
        ),
    )


def _difference(report: RunReport, arm: Arm, random: Arm | None) -> str:
    if random is None or arm is random:
        return NONE
    difference = compare(arm, random, report.n_test)
    if not isfinite(difference.value):
        return NONE
    value = points(difference.value).removesuffix(" points")
    return f"{value} \u00b1 {100 * difference.plus_minus:.2f}"


def uncertainty(report: RunReport) -> str:
    """What the plus-minus signs in the table mean, and what they do not cover.

    Args:
        report: The numbers of one run.
    """
    random = report.arm(RANDOM)
    text = f"\u00b1 is half of a 99 % confidence interval over the {count(report.n_test)} test samples. "
    if random is not None:
        paired = random.correct is not None and any(
            arm.correct is not None for arm in report.arms if arm is not random
        )
        text += (
            "\u201cMinus random\u201d is in points and compares the arms sample by sample (McNemar); it can "
            "exclude zero although the intervals of the two accuracies overlap. "
            if paired
            else "\u201cMinus random\u201d is in points and treats the arms as independent, which usually "
            "overstates its interval. "
        )
    return text + "No interval covers the training seed or the split: only repeated runs show their effect."


def to_markdown_table(report: RunReport) -> str:
    """The table of arms in Markdown, with a line on what the plus-minus signs mean.

    Args:
        report: The numbers of one run.

    Returns:
        Markdown that ends with a newline; a vertical bar in a name is escaped.
    """
    lines = [_line(COLUMNS), _line(["---"] + ["---:"] * (len(COLUMNS) - 1))]
    lines += [
        _line([cell.replace("\n", " ").replace("|", "\\|") for cell in row.cells]) for row in rows(report)
    ]
    return "\n".join([*lines, "", uncertainty(report), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_html(report: RunReport, path: str | Path) -> None:
    """Write the page; the file is replaced in one step.

    Args:
        report: The numbers of one run.
        path: The file, such as ``report.html``.

    Raises:
        DripError: the folder does not exist or cannot be written.
    """
    write_atomically(Path(path), to_html(report).encode())


def to_html(report: RunReport) -> str:
    """The page as one self-contained HTML document; equal numbers produce equal text.

    Everything from the report is escaped, and pictures are data URIs.

    Args:
        report: The numbers of one run.
    """
    body = "\n".join(
        part
        for part in (
            _header(report),
            _findings_section(report),
            _arms_section(report),
            _classes_section(report),
            _retention_section(report),
            gallery_section(report),
            _times_section(report),
            _footer(report),
        )
        if part
    )
    return document(report.title, body)


def _header(report: RunReport) -> str:
    outcome = verdict(report)
    facts = [
        ("Data set", text(report.dataset)),
        ("Model", text(report.model)),
        ("Seed", text(report.seed)),
        ("drip", text(_version(report))),
        ("Run again with", f"<code>{text(report.command)}</code>"),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return (
        '<header>\n<p class="brand">DRIP <span>run report</span></p>\n'
        f"<h1>{text(report.title)}</h1>\n"
        f'<p class="verdict {outcome.outcome}"><b aria-hidden="true">{_MARKS[outcome.outcome]}</b> '
        f"<strong>{text(outcome.headline)}.</strong> {text(outcome.sentence)}</p>\n"
        f"{_tiles(report)}\n{_split(report)}\n"
        f'<dl class="facts">{listed}</dl>\n</header>'
    )


def _tiles(report: RunReport) -> str:
    drip, random, times = report.arm(DRIP), report.arm(RANDOM), decision_times(report)
    tiles: list[tuple[str, str, str]] = []
    if drip is not None:
        if random is not None and isfinite(drip.accuracy) and isfinite(random.accuracy):
            # Not two accuracies side by side: the eye would rank them, however little separates them.
            difference = _difference(report, drip, random)
            tiles.append(("Accuracy, DRIP minus random", difference, f"points; {verdict(report).outcome}"))
        else:
            tiles.append(("Accuracy with DRIP", percent(drip.accuracy, 2), ""))
        tiles.append(
            (
                "Kept of the stream",
                percent(report.retention(drip)),
                f"{count(drip.n_kept)} of {count(report.n_seen)} samples",
            )
        )
        saved = report.bytes_seen - drip.bytes_kept
        tiles.append(
            (
                "Storage saved",
                percent(ratio(saved, report.bytes_seen)),
                f"{byte_size(saved)} of {byte_size(report.bytes_seen)}",
            )
        )
    if times is not None:
        tiles.append(
            (
                "Time per decision",
                f"{significant(times[1])} ms",
                f"median; 95 % within {significant(times[2])} ms",
            )
        )
    cells = "".join(
        f'<div class="tile"><span>{text(name)}</span><b>{text(value)}</b><small>{text(note)}</small></div>'
        for name, value, note in tiles
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


def _split(report: RunReport) -> str:
    total = sum(report.split.values())
    if not total:
        return ""
    bars = "".join(f'<i style="flex-grow:{max(size, 0)}"></i>' for size in report.split.values())
    legend = "".join(
        f"<li><i></i><b>{text(name)}</b> {count(size)} <small>{percent(size / total)}</small></li>"
        for name, size in report.split.items()
    )
    return f'<div class="split"><div class="parts" aria-hidden="true">{bars}</div><ul>{legend}</ul></div>'


def _findings_section(report: RunReport) -> str:
    # The first finding is the verdict, which is already in the header.
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in findings(report)[1:])
    notes = "".join(f'<p class="note">{text(note)}</p>' for note in report.notes)
    return f'<section>\n<h2>What happened</h2>\n<ul class="findings">{items}</ul>\n{notes}</section>'


def _arms_section(report: RunReport) -> str:
    if not report.arms:
        return ""
    reaches = [Z_99 * standard_error(arm.accuracy, report.n_test) for arm in report.arms]
    pairs = [(arm.accuracy, reach) for arm, reach in zip(report.arms, reaches, strict=True)]
    scale = figures.accuracy_scale(pairs)
    random = report.arm(RANDOM)
    reference = None if random is None else random.accuracy
    names = ["Arm", *(name for name, _, _ in _CELLS)]
    names.insert(2, "99 % interval, in %")
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    lines = []
    for row, reach in zip(rows(report), reaches, strict=True):
        kind = "drip" if row.arm.name == DRIP else "other"
        drawing = "" if scale is None else figures.interval(row.arm.accuracy, reach, scale, reference, kind)
        small = f"<small>{text(row.explanation)}</small>" if row.explanation else ""
        cells = [_cell(row, *cell) for cell in _CELLS]
        cells.insert(1, f'<td class="drawing">{drawing}</td>')
        title = f'<th scope="row">{text(row.cells[0])}{small}</th>'
        lines.append(f'<tr class="{kind}">{title}{"".join(cells)}</tr>')
    axis = "" if scale is None else figures.interval_axis(scale)
    foot = f'<tr class="axis-row"><td></td><td></td><td class="drawing">{axis}</td><td colspan="5"></td></tr>'
    reading = "Dot: accuracy; bar: its 99 % confidence interval; dashed line: the random arm. "
    return (
        '<section>\n<h2>Arms</h2>\n<p class="lead">An arm is a model trained on the training set plus what '
        "one rule kept of the production stream. All arms have the same test set.</p>\n"
        f'<table class="arms"><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(lines)
        + f"\n{foot}</tbody></table>\n"
        f'<p class="caption">{reading}{text(uncertainty(report))}</p>\n</section>'
    )


def _cell(row: Row, name: str, column: int, below: int | None) -> str:
    small = ""
    if below is not None:
        small = f" <small>{text(_SMALL.get(below, '{}').format(row.cells[below]))}</small>"
    return f'<td data-label="{text(name)}"><span>{text(row.cells[column])}{small}</span></td>'


def _classes_section(report: RunReport) -> str:
    if not report.windows:
        return ""
    histograms = report.policy.histograms
    scales = figures.score_scales(histograms, figures.PANEL_START, figures.PANEL_STOP)
    panels = []
    for index, window in enumerate(report.windows):
        name = report.class_name(index)
        n_seen = int(report.class_counts_seen[index])
        actual = ratio(int(report.class_counts_kept[index]), n_seen)
        asked = report.asked_retention
        shares = (
            ("asked", MISSING if asked is None else percent(asked)),
            ("in-sample", percent(1.0 - window.calibration_discard)),
            ("expected", percent(1.0 - window.expected_discard)),
            ("actual", percent(actual)),
        )
        listed = "".join(
            f"<div><dt>{label}</dt><dd>{value.removesuffix(' %')}</dd></div>" for label, value in shares
        )
        drawing = (
            figures.class_histogram(histograms[index], window, scales[index], name) if histograms else ""
        )
        note = "too few scores: window and keep rates of all classes together" if window.pooled else ""
        if not window.discards:
            note = str(window.never_because)
        why = f'<p class="why">{text(note)}</p>' if note else ""
        panels.append(
            f'<figure class="{"" if window.discards else "keeps"}"><figcaption><b>{text(name)}</b> '
            f"<small>{count(window.n)} scores</small></figcaption>{drawing}{why}<dl>{listed}</dl></figure>"
        )
    shared = len({(scale.low, scale.high) for scale in scales}) == 1
    axis = "All classes share one axis" if shared else "Every class has its own axis"
    return (
        '<section>\n<h2>Windows per class</h2>\n<p class="lead">The DRIP score is the mean of the '
        "Grad-CAM heatmap of the predicted class. Calibration finds the densest run of scores of each class: "
        "its window. In production a sample whose score is inside the window of its predicted class is "
        "typical and is discarded; a sample outside is kept.</p>\n"
        f'<div class="panels">{"".join(panels)}</div>\n'
        '<p class="caption">Histograms of the calibration scores. The window is shaded, dashed lines mark '
        f"its lower and upper end. {axis}; heights are relative to the fullest bin of the class. "
        "Below, keep rates in per cent: <b>asked</b> of calibration, <b>in-sample</b> on the "
        "calibration scores, <b>expected</b> on new scores (cross-validation), <b>actual</b> in "
        "production.</p>\n</section>"
    )


def _retention_section(report: RunReport) -> str:
    seen = np.asarray(report.class_counts_seen)
    kept = np.asarray(report.class_counts_kept)
    most, total_seen, total_kept = int(seen.max(initial=0)), int(seen.sum()), int(kept.sum())
    lines = []
    for index, (n_seen, n_kept) in enumerate(zip(seen.tolist(), kept.tolist(), strict=True)):
        never = bool(report.windows) and not report.windows[index].discards
        mark = " <small>never discards</small>" if never else ""
        lines.append(
            f'<tr><th scope="row">{text(report.class_name(index))}{mark}</th>'
            f'<td class="drawing">{share_bar(n_seen, n_kept, most)}</td>'
            f"<td>{count(n_seen)}</td><td>{count(n_kept)}</td>"
            f"<td>{text(percent(ratio(n_kept, n_seen)))}</td></tr>"
        )
    return (
        '<section>\n<h2>Kept per class</h2>\n<table class="retention"><thead><tr>'
        '<th scope="col">Predicted class</th><th scope="col"></th><th scope="col">Seen</th>'
        '<th scope="col">Kept</th><th scope="col">Keep rate</th></tr></thead><tbody>\n'
        f'{"".join(lines)}\n<tr class="total"><th scope="row">all</th>'
        f"<td></td><td>{count(total_seen)}</td><td>{count(total_kept)}</td>"
        f"<td>{text(percent(ratio(total_kept, total_seen)))}</td></tr></tbody></table>\n"
        '<p class="caption">Outline: production samples that the model assigned to the class; filled: kept '
        "by the policy.</p>\n</section>"
    )


def _times_section(report: RunReport) -> str:
    times = decision_times(report)
    if times is None:
        return ""
    finite = report.decision_ms[np.isfinite(report.decision_ms)]
    listed = "".join(
        f"<div><dt>{name}</dt><dd>{significant(value)} ms</dd></div>"
        for name, value in zip(("mean", "median", "95th percentile"), times, strict=True)
    )
    includes = f"A decision includes: {text(report.decision_includes)}. " if report.decision_includes else ""
    beyond = int(np.count_nonzero(finite > 2.0 * times[2]))
    cut = f" {count(beyond)} longer ones are beyond the axis." if beyond else ""
    return (
        f'<section class="times-section">\n<h2>Time per decision</h2>\n<dl class="numbers">{listed}</dl>\n'
        f"{figures.time_histogram(finite, times[1:])}\n"
        f'<p class="caption">{includes}{count(len(finite))} decisions, in milliseconds; dashed: median and '
        f"95th percentile.{cut}</p>\n</section>"
    )


def _footer(report: RunReport) -> str:
    provenance = report.policy.provenance
    facts = [
        ("Rule", report.policy.rule.name),
        ("Parameters", _pairs(report.policy.rule.params)),
        ("Target layer", provenance.layer),
        ("Score", _pairs(provenance.score)),
        ("Calibrated on", f"{provenance.data} ({count(provenance.n_samples)} samples)".strip()),
        ("Model digest", provenance.model_digest),
        ("Policy digest", report.policy.digest),
    ]
    listed = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts if value
    )
    return (
        f'<footer>\n<h2>Policy</h2>\n<dl class="facts">{listed}</dl>\n'
        f"<p>Written by drip {text(_version(report))}. "
        "This file is self-contained: it loads nothing and runs no script.</p>\n</footer>"
    )


def _pairs(values: JsonObject) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def _version(report: RunReport) -> str:
    if report.version:
        return report.version
    import drip  # noqa: PLC0415  # the package root may import every room; this one must not at import

    return drip.__version__
