"""The report of a reduction: sizes and representativeness per class, time, memory, energy and its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isinf, isnan
from pathlib import Path
from typing import Any

from drip.errors import InputError
from drip.files import write_atomically
from drip.files.format import MISSING, byte_size, count, percent, ratio, significant
from drip.files.page import document, share_bar, text

_MOST_LISTED = 200
_CAPTION = (
    "\u03b5 is the largest distance to the nearest kept neighbour of the same class, on the scaled features: "
    "by the largest difference of a feature (L\u221e) and by the Euclidean norm (L2). It depends on the "
    "worst case alone, so the mean is shown too. A small \u03b5 does not guarantee a good training set."
)


@dataclass(frozen=True, slots=True)
class ReducedClass:
    """One class, or all of them. Distances are on the scaled features, NaN if not computed.

    Attributes:
        name: The label.
        n: Number of rows.
        n_kept: Number of kept rows.
        epsilon_chebyshev: Largest distance from a row to the nearest kept row of its class, in the L-infinity
            norm; infinite if none is kept.
        mean_chebyshev: Mean of these distances.
        epsilon_euclidean: Largest distance in the Euclidean norm.
        mean_euclidean: Mean of these distances.
    """

    name: str
    n: int
    n_kept: int
    epsilon_chebyshev: float
    mean_chebyshev: float
    epsilon_euclidean: float
    mean_euclidean: float


@dataclass(frozen=True)
class ReductionReport:
    """The numbers of one reduction.

    Attributes:
        title: Heading.
        data: What was reduced.
        rows: Plural noun for rows: ``rows`` or ``images``.
        class_word: Noun for a class: ``class``, ``category`` or the name of the label column.
        method: Name of the method.
        parameters: Its parameters.
        features: Description of the features.
        overall: All classes together.
        classes: One per label, in order.
        seconds: Wall time of the method, without reading, checking and writing.
        cpu_seconds: Processor time of the method.
        joules: Energy of the method; NaN if unknown.
        energy_source: Where the joules come from.
        energy_measured: True if sensors measured them.
        peak_bytes: Largest resident size of the process.
        notes: Further sentences for the reader.
        problems: What was omitted from the data, one sentence each.
    """

    title: str
    data: str
    rows: str
    class_word: str
    method: str
    parameters: Mapping[str, Any]
    features: str
    overall: ReducedClass
    classes: tuple[ReducedClass, ...]
    seconds: float
    cpu_seconds: float
    joules: float
    energy_source: str
    energy_measured: bool
    peak_bytes: int
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the report does not contradict itself.

        Raises:
            InputError: the kept rows per class do not add up to the total.
        """
        if sum(part.n_kept for part in self.classes) != self.overall.n_kept:
            raise InputError("the kept rows per class do not add up to the total")


def write_reduction_html(report: ReductionReport, path: str | Path) -> None:
    """Write the report as a page; the file is replaced atomically.

    Raises:
        DripError: the folder does not exist or cannot be written.
    """
    write_atomically(Path(path), reduction_html(report).encode())


def reduction_html(report: ReductionReport) -> str:
    """The report as one self-contained HTML document."""
    return document(report.title, "\n".join((_header(report), _classes(report), _problems(report))))


def distance(value: float) -> str:
    """A distance with three digits; ``lost`` if it is infinite, because no row of the class was kept.

    >>> distance(0.12345), distance(float("inf")), distance(float("nan"))
    ('0.123', 'lost', 'n/a')
    """
    return "lost" if isinf(value) else significant(value)


def energy_text(report: ReductionReport) -> str:
    """Joules and their origin, such as ``12.3 J, measured``."""
    kind = _energy_kind(report)
    return f"{significant(report.joules)} J, {kind}" if kind else MISSING


def _energy_kind(report: ReductionReport) -> str:
    """``measured``, ``estimate``, ``part`` if the processor is missing, or empty if unknown."""
    if isnan(report.joules):
        return ""
    if report.energy_measured:
        return "measured"
    return "estimate" if "estimate:" in report.energy_source else "part"


def _header(report: ReductionReport) -> str:
    whole, kind = report.overall, _energy_kind(report)
    tiles = (
        (
            "Kept",
            percent(ratio(whole.n_kept, whole.n)),
            f"{count(whole.n_kept)} of {count(whole.n)} {report.rows}",
        ),
        (
            "Farthest from a kept neighbour",
            distance(whole.epsilon_chebyshev),
            "epsilon, largest difference (L\u221e)",
        ),
        (
            "Time",
            f"{significant(report.seconds)} s",
            f"{significant(report.cpu_seconds)} s of processor time",
        ),
        (
            "Energy",
            f"{significant(report.joules)} J" if kind else MISSING,
            f"{kind}, of the method alone" if kind else "no sensor; give watts for an estimate",
        ),
    )
    cells = "".join(
        f'<div class="tile"><span>{text(name)}</span><b>{text(value)}</b><small>{text(note)}</small></div>'
        for name, value, note in tiles
    )
    facts = (
        ("Data", report.data),
        ("Method", report.method),
        ("Parameters", ", ".join(f"{name} = {value}" for name, value in report.parameters.items())),
        ("Features", report.features),
        ("Peak memory", f"{byte_size(report.peak_bytes)}, of the whole process"),
        ("Energy source", report.energy_source),
    )
    listed = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts)
    notes = "".join(f'<p class="note">{text(note)}</p>' for note in report.notes)
    return (
        '<header>\n<p class="brand">DRIP <span>reduction report</span></p>\n'
        f'<h1>{text(report.title)}</h1>\n<div class="tiles">{cells}</div>\n'
        f'<dl class="facts">{listed}</dl>\n{notes}</header>'
    )


def _classes(report: ReductionReport) -> str:
    most = max(part.n for part in report.classes)
    lines = [
        f'<tr><th scope="row">{text(part.name)}</th>'
        f'<td class="drawing">{share_bar(part.n, part.n_kept, most)}</td>{_numbers(part)}</tr>'
        for part in report.classes
    ]
    heads = ("", report.rows.capitalize(), "Kept", "Keep rate", "\u03b5 L\u221e", "mean", "\u03b5 L2", "mean")
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
    total = f'<tr class="total"><th scope="row">all</th><td></td>{_numbers(report.overall)}</tr>'
    return (
        '<section>\n<h2>Classes</h2>\n<table class="retention"><thead><tr>'
        f'<th scope="col">{text(report.class_word)}</th>{head}</tr></thead><tbody>\n{"".join(lines)}\n'
        f'{total}</tbody></table>\n<p class="caption">{_CAPTION}</p>\n</section>'
    )


def _problems(report: ReductionReport) -> str:
    if not report.problems:
        return ""
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in report.problems[:_MOST_LISTED])
    more = len(report.problems) - _MOST_LISTED
    rest = f'<p class="caption">and {count(more)} more</p>' if more > 0 else ""
    head = "<h2>Omitted or unpaired files</h2>"
    return f'<section>\n{head}\n<ul class="findings">{items}</ul>{rest}\n</section>'


def _numbers(part: ReducedClass) -> str:
    values = (part.epsilon_chebyshev, part.mean_chebyshev, part.epsilon_euclidean, part.mean_euclidean)
    cells = [count(part.n), count(part.n_kept), percent(ratio(part.n_kept, part.n)), *map(distance, values)]
    return "".join(f"<td>{text(cell)}</td>" for cell in cells)
