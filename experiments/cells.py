"""What one line of a result file measures: its permanent id, and the hash of its configuration."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

Scalar = str | float | int


@dataclass(frozen=True)
class Unit:
    """The cells that one process works on at a time; they share data, split and deployed models.

    Attributes:
        study: A key of ``running.STUDIES``.
        regime: ``full``, ``head`` or ``table``.
        dataset: Name of the data set.
        seed: Number of the run: split, training order and draws follow from it.
    """

    study: str
    regime: str
    dataset: str
    seed: int

    def cell(self, arm: str, **settings: Scalar) -> Cell:
        """The cell of one arm at these settings."""
        return Cell(self, arm, tuple(sorted(settings.items())))


@dataclass(frozen=True)
class Cell:
    """One arm at one setting in one run.

    Attributes:
        unit: Study, regime, data set and seed.
        arm: What is compared, such as ``margin``.
        settings: Sorted pairs of name and value.

    >>> Unit("table1", "head", "tomato", 7).cell("margin", retention=0.3, budget="epochs").id
    'table1/head/tomato/budget=epochs,retention=0.3/margin/0007'
    """

    unit: Unit
    arm: str
    settings: tuple[tuple[str, Scalar], ...]

    @property
    def id(self) -> str:
        """The permanent name of the line."""
        return f"{self.series}/{self.unit.seed:04d}"

    @property
    def series(self) -> str:
        """The id without its seed: what all runs of this arm at these settings share."""
        unit, settings = self.unit, ",".join(f"{name}={value}" for name, value in self.settings)
        return f"{unit.study}/{unit.regime}/{unit.dataset}/{settings}/{self.arm}"

    @classmethod
    def parse(cls, series: str, seed: int) -> Cell:
        """The cell of a series and a seed.

        Raises:
            ValueError: the text is no series, or the seed no number of a run.

        >>> Cell.parse("dpw/head/mnist/discard=0.1/drip", 3).get("discard")
        0.1
        """
        study, regime, dataset, settings, arm = series.split("/")
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"{seed!r} is no seed")
        pairs = [pair.split("=") for pair in settings.split(",")] if settings else []
        return cls(
            Unit(study, regime, dataset, seed), arm, tuple((name, _scalar(value)) for name, value in pairs)
        )

    def get(self, name: str, default: Scalar | None = None) -> Any:
        """One setting."""
        return dict(self.settings).get(name, default)


def _scalar(text: str) -> Scalar:
    """A setting as it was before it became text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def config_hash(config: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a JSON value with sorted keys.

    >>> config_hash({"b": 1, "a": 2}) == config_hash({"a": 2, "b": 1})
    True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
