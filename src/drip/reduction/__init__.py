"""Fewer rows of a table that stand for all: reducers in the interface of scikit-learn and imbalanced-learn.

One method a file, discovered: `create("maxmin", fraction=0.1)`. Nothing here knows a model, a file or torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from drip.errors import InputError, missing_extra

try:
    import imblearn  # noqa: F401  # only to say early how to install it
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
    """Every method by name: those of this package and any defined since.

    >>> sorted(available())[:2]
    ['cluster-centroids', 'distance-entropy']
    """
    _load_all()
    root: Any = BaseReducer  # abstract: only its named descendants are methods
    return {method.name: method for method in _concrete(root)}


@cache
def _load_all() -> None:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)


def _concrete(base: type[BaseReducer]) -> list[type[BaseReducer]]:
    found = [base] if "name" in vars(base) else []
    return found + [method for child in base.__subclasses__() for method in _concrete(child)]


def create(name: str, **params: Any) -> BaseReducer:
    """A reducer by name, or by the abbreviation of the literature: ``maxmin`` or ``MMS``.

    Raises:
        InputError: no such method, or parameters that it does not take.

    >>> create("SRS", fraction=0.5).name
    'stratified-random'
    """
    methods = available()
    short = {method.abbreviation.lower(): method for method in methods.values()}
    key = str(name).lower()
    found = methods.get(key) or short.get(key)
    if found is None:
        raise InputError(f"method must be one of {', '.join(sorted(methods))}, got {name!r}")
    try:
        return found(**params)
    except TypeError as error:
        raise InputError(f"method {found.name!r} does not take these parameters: {error}") from error
