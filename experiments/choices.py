"""What our readings of the paper do to accuracy: one row per open point of `docs/decisions.md`."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.reading import DATASETS, Evidence, Place, paired
from experiments.sections import WINDOW, prose
from experiments.statistics import Comparison
from experiments.table1 import discard_fraction
from experiments.tables import dataset_name, grid

_RETENTION = 0.61
_TEXT = """
Where the paper is silent or contradicts itself, `docs/decisions.md` names a default (A1 to A13). Each row is
the accuracy under the other reading minus that under the default, all else equal, and every arm at the same
count. Readings without a row were not varied.
"""


@dataclass(frozen=True)
class _Choice:
    """One open point: the other reading against the default.

    Attributes:
        name: Row of the table.
        arms: Arm of the other reading, arm of the default.
        setting: What differs when it is not the arm: name, other value, default value.
    """

    name: str
    arms: tuple[str, str]
    setting: tuple[str, str, str] | None = None


_CHOICES = (
    _Choice("A1 normalised heatmap, not raw", ("paper.normalised.window", WINDOW)),
    _Choice("A5 histogram peak, not window", ("paper.raw.peak", WINDOW)),
    _Choice("A7 calibrated on data set 1, not D1c", ("drip", "drip"), ("calibration", "d1", "d1c")),
    _Choice("A7 calibrated on data set 2, not D1c", ("drip", "drip"), ("calibration", "d2", "d1c")),
    _Choice("A9 predicted labels, not true", ("drip", "drip"), ("labels", "predicted", "true")),
)


def choices(evidence: Evidence) -> list[str]:
    """The section of the page; empty without results."""
    lines: list[str] = []
    for regime, words in (("full", "Full training"), ("head", "Head-only")):
        cells: dict[tuple[str, str], Comparison | None] = {
            (choice.name, dataset_name(dataset)): _difference(evidence, regime, dataset, choice)
            for choice in _CHOICES
            for dataset in DATASETS
        }
        found = grid("other reading", [choice.name for choice in _CHOICES], _columns(cells), cells)
        if found.cells:
            lines += [f"{words}, points:", "", *found.markdown(), ""]
            lines += prose(found.sentence("other readings", "the defaults"))
    return ["## What our readings of the paper do", "", *prose(_TEXT), *lines] if lines else []


def _columns(cells: dict[tuple[str, str], Comparison | None]) -> list[str]:
    return list(dict.fromkeys(column for (_, column), cell in cells.items() if cell is not None))


def _difference(evidence: Evidence, regime: str, dataset: str, choice: _Choice) -> Comparison | None:
    place = Place("table1", regime, dataset)
    if choice.setting is None:
        here = there = place.at(budget="epochs", dpw=discard_fraction(dataset))
    else:
        name, other, usual = choice.setting
        usually = place.at(retention=_RETENTION)
        here, there = usually.at(**{name: other}), usually.at(**{name: usual})
    first, second = evidence.get(here, choice.arms[0]), evidence.get(there, choice.arms[1])
    return None if first is None or second is None else paired(first, second)
