"""The 64 projected features of observations, as rules read them that measure distances."""

from __future__ import annotations

import numpy as np

from drip.errors import InputError
from drip.selectors.parts.projections import project
from drip.types import FloatArray, IntArray, Observations


def projected(observations: Observations, name: str, n_features: int | None = None) -> FloatArray:
    """The projected features, shape (n, d), d at most 64.

    Args:
        observations: Observations with features, as a rule that needs them has checked.
        name: The rule that asks.
        n_features: The number d that the rule was calibrated for; None for any.

    Raises:
        InputError: another number of features.
    """
    assert observations.features is not None  # noqa: S101  # checked as a need
    features = project(observations.features)
    if n_features is not None and features.shape[1] != n_features:
        raise InputError(
            f"features must be {n_features} numbers after the projection, got {features.shape[1]}; "
            f"calibrate {name!r} with the model that scores the stream"
        )
    return features


def fixed_order(features: FloatArray, *columns: FloatArray | IntArray) -> IntArray:
    """Rows in an order that does not depend on the one they came in, so that sums over them round alike.

    >>> fixed_order(np.array([[2.0], [1.0], [1.0]]), np.array([0, 1, 0])).tolist()
    [2, 1, 0]
    """
    return np.lexsort((*columns, *features.T))
