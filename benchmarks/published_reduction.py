"""The published procedures of data reduction, written plainly from their descriptions, faults included.

Baselines of `bench_reduction.py`: what `drip.reduction` is timed against in the same run. Loops stay loops
where the published procedure loops. Each takes (values, classes, fraction) and returns rows, or points of
each class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gudhi import RipsComplex
from gudhi.subsampling import choose_n_farthest_points
from scipy.cluster.vq import kmeans
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from sklearn.model_selection import StratifiedShuffleSplit

RADIUS, DIMENSION = 0.05, 2  # of the landmarks, as published for this table


def stratified_random(values: Any, classes: Any, fraction: float) -> Any:
    """The test part of one stratified split with a fixed seed."""
    split = StratifiedShuffleSplit(n_splits=1, test_size=fraction, random_state=0)
    return next(split.split(values, classes))[1]


def protodash(values: Any, classes: Any, fraction: float) -> Any:
    """Linear kernel; all gradients computed again in a loop; weights from a general solver."""
    chosen = []
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        chosen.append(rows[_prototypes(values[rows], int(fraction * len(rows)))])
    return np.concatenate(chosen)


def _prototypes(points: Any, count: int) -> list[int]:
    mean = points @ points.mean(axis=0)
    own = np.einsum("ij,ij->i", points, points)
    columns = np.zeros((count, len(points)))
    chosen: list[int] = []
    weights = np.zeros(0)
    left = list(range(len(points)))
    while len(chosen) < count:
        best, pick = -np.inf, -1
        k = len(chosen)
        for candidate in left:
            if k:
                value = mean[candidate] - columns[:k, candidate] @ weights
            else:
                value = max(mean[candidate], 0.0) ** 2 / (2.0 * own[candidate])
            if value > best:
                best, pick = value, candidate
        left.remove(pick)
        chosen.append(pick)
        columns[k] = points @ points[pick]
        weights = np.append(weights, 0.0)
        if best > 0.0:
            weights = _weights(columns[: k + 1, chosen], mean[chosen], weights)
    return chosen


def _weights(kernel: Any, mean: Any, start: Any) -> Any:
    def loss(weights: Any) -> tuple[float, Any]:
        product = kernel @ weights
        return float(0.5 * weights @ product - mean @ weights), product - mean

    bounds = [(0.0, 1e4)] * len(start)
    return minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x


def cluster_centroids(values: Any, classes: Any, fraction: float) -> Any:
    """One run of k-means from random rows in every class."""
    np.random.seed(0)  # noqa: NPY002  # the library draws from the global state
    points = []
    for label in np.unique(classes):
        rows = values[classes == label]
        points.append(kmeans(rows, int(fraction * len(rows)), iter=1)[0])
    return points


def maxmin(values: Any, classes: Any, fraction: float) -> Any:
    """Farthest points by the library that the publication uses."""
    points = []
    for label in np.unique(classes):
        rows = values[classes == label]
        points.append(choose_n_farthest_points(rows, nb_points=int(fraction * len(rows)), starting_point=0))
    return points


def distance_entropy(values: Any, classes: Any, fraction: float) -> Any:
    """Entropy of every row in a loop, then a search for the row of each of the largest entropies."""
    base = stratified_random(values, classes, fraction / 2)
    pool = np.setdiff1d(np.arange(len(values)), base)
    prototypes = [values[base][classes[base] == label].mean(axis=0) for label in np.unique(classes)]
    entropies = []
    for row in pool:
        distances = [np.linalg.norm(values[row] - prototype) for prototype in prototypes]
        exponentials = [np.exp(distance) for distance in distances]
        shares = [value / sum(exponentials) for value in exponentials]
        entropies.append(-sum(share * np.log2(share) for share in shares))
    added = []
    for entropy in sorted(entropies, reverse=True)[: int(fraction * len(values)) - len(base)]:
        for place, value in enumerate(entropies):
            if value == entropy:
                added.append(pool[place])
                break
    return np.concatenate([base, added])


def matrix_decomposition(values: Any, classes: Any, fraction: float) -> Any:
    """Two scores by singular value decomposition, a cut over all classes."""
    labels = np.unique(classes)
    within = np.zeros(len(values))
    for label in labels:
        within[classes == label] = _scores(values[classes == label])
    one_hot = (classes[:, None] == labels[None]).astype(float)
    score = within * _scores(np.hstack([values, one_hot]))
    return np.argsort(-score)[: int(fraction * len(values))]


def _scores(rows: Any) -> Any:
    directions, singular, _ = np.linalg.svd(rows.T, full_matrices=False)
    weights = 1.0 / singular
    weights /= weights.sum()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    score = np.zeros(len(rows))
    for weight, direction in zip(weights, directions.T, strict=True):
        score += weight * -np.log(np.maximum(np.abs(unit @ direction), 1e-3))
    return score


def persistent_homology(values: Any, classes: Any, fraction: float) -> Any:
    """A tree and a Rips complex for every row; the first of the sorted scores count as super-outliers."""
    rng = np.random.default_rng(0)
    chosen = []
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        points = values[rows]
        scores = np.zeros(len(rows))
        n_outliers = 0
        for row in range(len(rows)):
            others = np.delete(points, row, axis=0)
            near = cKDTree(others).query_ball_point(points[row], RADIUS)
            if len(near) < 2:
                n_outliers += 1
                continue
            tree = RipsComplex(points=others[near]).create_simplex_tree(max_dimension=DIMENSION + 1)
            tree.compute_persistence()
            bars = tree.persistence_intervals_in_dimension(DIMENSION)
            lengths = [death - birth for birth, death in bars if np.isfinite(death)]
            scores[row] = max(lengths, default=0.0)
        order = np.argsort(scores)
        order = np.concatenate([order[n_outliers:], rng.permutation(order[:n_outliers])])
        chosen.append(rows[order[: round(fraction * len(rows))]])
    return np.concatenate(chosen)
