"""The limits of a policy as the float32 numbers that a graph compares its scores with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drip.errors import PolicyError
from drip.policy import Policy

LOWER, UPPER = "drip.lower", "drip.upper"


def limits_of(policy: Policy | None, n_classes: int) -> NDArray[np.float32]:
    """Lower and upper limits per class, shape (2, n_classes).

    The lower limit is rounded up and the upper one down, so that for every float32 score s the
    comparison in the graph decides as the policy does: s >= l exactly where s >= the smallest float32
    that is not below l. Limits that come from float32 scores do not move. Classes that never discard,
    and all classes of a rule that is no window of the DRIP score, have +inf and -inf.

    Raises:
        PolicyError: The policy has another number of classes.

    >>> limits_of(None, 2).tolist()
    [[inf, inf], [-inf, -inf]]
    """
    limits = np.full((2, n_classes), [[np.inf], [-np.inf]], dtype=np.float32)
    if policy is None:
        return limits
    if policy.n_classes != n_classes:
        raise PolicyError(
            f"a policy of {n_classes} classes is needed, got one of {policy.n_classes}; "
            "calibrate again with this model"
        )
    recipe = policy.recipe
    if recipe.name == "drip" and recipe.params.get("score", "drip") == "drip":
        for index, window in enumerate(policy.windows):
            if window.discards:
                limits[:, index] = rounded_inward(window.lower, window.upper)
    return limits


def rounded_inward(lower: float, upper: float) -> tuple[np.float32, np.float32]:
    """The smallest float32 not below ``lower`` and the largest not above ``upper``.

    >>> low, high = rounded_inward(0.1, 0.1)
    >>> float(low) > 0.1 > float(high), [float(x) for x in rounded_inward(0.5, 0.75)]
    (True, [0.5, 0.75])
    """
    with np.errstate(over="ignore"):
        low, high = np.float32(lower), np.float32(upper)
    if float(low) < lower:
        low = np.nextafter(low, np.float32(np.inf))
    if float(high) > upper:
        high = np.nextafter(high, np.float32(-np.inf))
    return low, high
