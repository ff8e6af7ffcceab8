"""What one line of a result file stands for: its permanent id, its configuration and the hash of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Scalar = str | float | int


@dataclass(frozen=True)
class Unit:
    """The cells that one process works on at a time; they share data, split and deployed models.

    Attributes:
        study: ``table1``, ``dpw``, ``noise`` or ``streams``.
        regime: ``full`` or ``head``.
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
        unit, settings = self.unit, ",".join(f"{name}={value}" for name, value in self.settings)
        return "/".join((unit.study, unit.regime, unit.dataset, settings, self.arm, f"{unit.seed:04d}"))

    def get(self, name: str, default: Scalar | None = None) -> Any:
        """One setting."""
        return dict(self.settings).get(name, default)


def config_hash(config: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the configuration as sorted JSON.

    >>> config_hash({"b": 1, "a": 2}) == config_hash({"a": 2, "b": 1})
    True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
