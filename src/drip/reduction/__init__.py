"""Representative subsets of tables: reducers with the interface of scikit-learn and imbalanced-learn.

One method per file: `create("maxmin", fraction=0.1)`. From the rest of drip, this wing uses only types, files
and errors, so it can be read and tested alone. No torch, except in `torch_forgetting`.
"""

from __future__ import annotations

from typing import Any

from drip.errors import InputError, missing_extra

try:
    import imblearn  # noqa: F401  # first, to name the command that installs it
except ImportError as error:
    raise missing_extra("drip.reduction", "imbalanced-learn", "reduction") from error

from drip.reduction.base import BaseReducer, RankedReducer, ScoredReducer
from drip.reduction.cluster_centroids import ClusterCentroids
from drip.reduction.distance_entropy import DistanceEntropy
from drip.reduction.forgetting import ForgettingEvents, ForgettingTracker
from drip.reduction.matrix_decomposition import MatrixDecomposition
from drip.reduction.max_min import MaxMin
from drip.reduction.moderate_coreset import ModerateCoreset
from drip.reduction.persistent_homology import PersistentHomologyLandmarks
from drip.reduction.proto_dash import ProtoDash
from drip.reduction.representative_kmeans import RepresentativeKMeans
from drip.reduction.representativeness import (
    Certificate,
    Representativeness,
    Spread,
    epsilon_representativeness,
    perceptron_certificate,
)
from drip.reduction.stratified_random import StratifiedRandom

__all__ = [
    "BaseReducer",
    "Certificate",
    "ClusterCentroids",
    "DistanceEntropy",
    "ForgettingEvents",
    "ForgettingTracker",
    "MatrixDecomposition",
    "MaxMin",
    "ModerateCoreset",
    "PersistentHomologyLandmarks",
    "ProtoDash",
    "RankedReducer",
    "RepresentativeKMeans",
    "Representativeness",
    "ScoredReducer",
    "Spread",
    "StratifiedRandom",
    "available",
    "create",
    "epsilon_representativeness",
    "perceptron_certificate",
]


def available() -> dict[str, type[BaseReducer]]:
    """Every method by name: the ones of this package and every named subclass defined elsewhere.

    >>> sorted(available())[:2]
    ['cluster-centroids', 'distance-entropy']
    """
    root: Any = BaseReducer  # abstract, and mypy accepts no abstract class as an argument
    return {method.name: method for method in _concrete(root)}


def _concrete(base: type[BaseReducer]) -> list[type[BaseReducer]]:
    found = [base] if "name" in vars(base) else []
    return found + [method for child in base.__subclasses__() for method in _concrete(child)]


def create(name: str, **params: Any) -> BaseReducer:
    """A reducer by name, or by its abbreviation in the literature: ``maxmin`` or ``MMS``.

    Raises:
        InputError: the method does not exist, or does not have these parameters.

    >>> create("SRS", fraction=0.5).name
    'stratified-random'
    """
    methods = available()
    short = {method.abbreviation.lower(): method for method in methods.values()}
    key = str(name).lower()
    found = methods.get(key) or short.get(key)
    if found is None:
        raise InputError(
            f"there is no method {name!r}; choose one of {', '.join(sorted(methods))}", code="method-unknown"
        )
    try:
        return found(**params)
    except TypeError as error:
        raise InputError(
            f"method {found.name!r} does not accept these parameters: {error}", code="method-unknown"
        ) from error
