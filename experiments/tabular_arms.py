"""What the study of tables compares: every method that `drip.reduction` finds, and the published variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from drip.reduction import available, create
from drip.reduction.base import BaseReducer

FORGETTING = "forgetting-events"


@dataclass(frozen=True)
class Arm:
    """A method with arguments, under the name that results carry.

    Attributes:
        name: The arm.
        method: Name among :func:`drip.reduction.available`.
        params: Arguments besides fraction and seed, as pairs.
    """

    name: str
    method: str
    params: tuple[tuple[str, Any], ...] = ()

    def build(self, fraction: float, seed: int) -> BaseReducer:
        """The reducer for a fraction."""
        return create(self.method, fraction=fraction, random_state=seed, **dict(self.params))


_GLOBAL = ("stratify", "global")
VARIANTS = (
    Arm("stratified-random.global", "stratified-random", (_GLOBAL,)),
    Arm("protodash.linear", "protodash", (("kernel", "linear"),)),
    Arm("distance-entropy.global", "distance-entropy", (_GLOBAL,)),
    Arm("matrix-decomposition.global", "matrix-decomposition", (_GLOBAL,)),
)
"""Plain random sampling without classes, and what the published code does in place of the definitions."""


def arms() -> dict[str, Arm]:
    """Every arm that reduces, by name: all methods, then the variants."""
    return {arm.name: arm for arm in (*(Arm(name, name) for name in sorted(available())), *VARIANTS)}
