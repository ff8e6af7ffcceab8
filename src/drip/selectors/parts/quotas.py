"""Shares of the predicted classes in what is kept: a floor for each, a ceiling for all."""

from __future__ import annotations

from math import exp

import numpy as np

from drip.errors import InputError
from drip.selectors.states import count, packed, unpacked
from drip.thresholds import is_real
from drip.types import JsonObject

_MEMORY = 1000


class ClassShares:
    r"""Arrivals and kept samples of every predicted class, older ones forgotten.

    Both are counted with weights :math:`e^{-a/1000}` of their age a in arrivals. A class is below its floor
    when less than ``floor`` times the target share of its own arrivals was kept, with one sample in hand; it
    is above its ceiling when it has more than ``ceiling`` of all that was kept.

    Args:
        n_classes: Number of classes.
        floor: Share of the target that every class gets, in [0, 1]; 0 for none.
        ceiling: Largest share of one class in what is kept, in (0, 1]; 1 for none.
    """

    def __init__(self, n_classes: int, floor: float = 0.25, ceiling: float = 1.0) -> None:
        if not is_real(floor) or not 0 <= floor <= 1:
            raise InputError(f"floor must be in [0, 1], got {floor!r}")
        if not is_real(ceiling) or not 0 < ceiling <= 1:
            raise InputError(f"ceiling must be in (0, 1], got {ceiling!r}")
        self._floor, self._ceiling = floor, ceiling
        self._arrived = np.zeros(n_classes)
        self._kept = np.zeros(n_classes)

    def arrived(self, predicted_class: int) -> None:
        """One more arrival of a class."""
        self._arrived *= exp(-1 / _MEMORY)
        self._kept *= exp(-1 / _MEMORY)
        self._arrived[predicted_class] += 1

    def kept(self, predicted_class: int) -> None:
        """That arrival was kept."""
        self._kept[predicted_class] += 1

    def below_floor(self, predicted_class: int, share: float) -> bool:
        """Whether a class has less than its floor of a target share."""
        due = self._floor * share * self._arrived[predicted_class] - self._kept[predicted_class]
        return bool(due >= 1)

    def above_ceiling(self, predicted_class: int) -> bool:
        """Whether a class has more than its part of what is kept, counted once there are 20."""
        total = self._kept.sum()
        enough = 20
        return bool(total >= enough and self._kept[predicted_class] > self._ceiling * total)

    def state(self) -> JsonObject:
        """The two counts of every class."""
        return {
            "n_classes": len(self._arrived),
            "arrived": packed(self._arrived, "<f8"),
            "kept": packed(self._kept, "<f8"),
        }

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`."""
        n_classes = count("n_classes", state["n_classes"])
        arrived, kept = (unpacked(name, state[name], n_classes, dtype="<f8") for name in ("arrived", "kept"))
        if (arrived < 0).any() or (kept < 0).any():
            raise ValueError("arrived and kept must be counts, got a negative one")
        self._arrived, self._kept = arrived, kept
