"""Bars and order of the landmarks, against a reduction of the boundary matrix written here."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from tables import blobs, distance, grids, orders

from drip.reduction import PersistentHomologyLandmarks
from drip.reduction.persistent_homology import longest_bars


def longest_bar_by_reduction(distances, dimension):
    """Standard persistence algorithm over Z/2 on all simplices up to dimension q + 1."""
    n = len(distances)
    simplices = []
    for size in range(1, min(dimension + 2, n) + 1):
        for simplex in combinations(range(n), size):
            birth = max((distances[a][b] for a, b in combinations(simplex, 2)), default=0.0)
            simplices.append((birth, size, simplex))
    simplices.sort()
    place = {simplex: k for k, (_, _, simplex) in enumerate(simplices)}
    columns, longest = {}, 0.0
    for k, (death, size, simplex) in enumerate(simplices):
        column = {place[face] for face in combinations(simplex, size - 1)} if size > 1 else set()
        while column and max(column) in columns:
            column ^= columns[max(column)]
        if column:
            columns[max(column)] = column
            birth, dying, _ = simplices[max(column)]
            if dying == dimension + 1:
                longest = max(longest, death - birth)
        del k
    return longest


@pytest.mark.parametrize("dimension", [0, 1, 2])
@given(hnp.arrays(np.float64, st.tuples(st.integers(2, 9), st.just(3)), elements=st.integers(-3, 3)))
@settings(max_examples=40)
def test_longest_bar_is_that_of_the_standard_algorithm(dimension, points):
    distances = cdist(points, points)
    expected = longest_bar_by_reduction(distances, dimension)
    assert longest_bars([distances], dimension)[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dimension", [1, 2])
def test_longest_bar_agrees_where_there_are_holes(dimension):
    rng = np.random.default_rng(0)
    sphere = rng.normal(size=(60, 9, dimension + 1))
    sphere /= np.linalg.norm(sphere, axis=2, keepdims=True)
    matrices = [cdist(points, points) for points in sphere]
    matrices += [cdist(c, c) for c in [np.vstack([np.eye(dimension + 1), -np.eye(dimension + 1)])]]
    found = longest_bars(matrices, dimension)
    expected = [longest_bar_by_reduction(matrix, dimension) for matrix in matrices]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert (found > 0).any()


def test_bar_ends_where_a_centre_joins_all():
    turn = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    points = np.vstack([[[0.0, 0.0]], np.column_stack([np.cos(turn), np.sin(turn)])])
    distances = cdist(points, points)
    edge = 2 * np.sin(np.pi / 8)
    assert longest_bars([distances], 1)[0] == pytest.approx(1.0 - edge)
    assert longest_bar_by_reduction(distances, 1) == pytest.approx(1.0 - edge)


@pytest.mark.parametrize("mode", ["restricted", "multi"])
@pytest.mark.parametrize("landmarks", ["representative", "vital"])
@given(table=grids(max_rows=16, n_classes=2, largest=2), seed=st.integers(0, 50))
@settings(max_examples=20)
def test_order_is_by_bar_with_super_outliers_last(mode, landmarks, table, seed):
    values, labels = table
    sampler = PersistentHomologyLandmarks(
        1.0, radius=2.0, dimension=1, mode=mode, landmarks=landmarks, random_state=seed
    ).fit(values, labels)
    bars, outliers = {}, set()
    for i in range(len(values)):
        near = [
            j
            for j in range(len(values))
            if j != i and labels[j] == labels[i] and distance(values[i], values[j], "euclidean") <= 2.0
        ]
        if len(near) < 2:
            outliers.add(i)
        distances = cdist(values[near], values[near]) if near else np.zeros((0, 0))
        used = (0, 1) if mode == "multi" else (1,)
        bars[i] = max(longest_bar_by_reduction(distances, q) for q in used)
    sign = 1 if landmarks == "representative" else -1
    for order in orders(sampler, labels):
        ordinary = [i for i in order if i not in outliers]
        assert order[: len(ordinary)] == ordinary
        ranked = [sign * bars[i] for i in ordinary]
        assert ranked == pytest.approx(sorted(ranked), abs=1e-9)


def test_equal_scores_come_in_another_order_with_another_seed():
    values, labels = blobs(120)
    kept = {
        tuple(
            PersistentHomologyLandmarks(0.3, radius=0.5, random_state=seed)
            .fit(values, labels)
            .sample_indices_
        )
        for seed in range(3)
    }
    assert len(kept) == 3


def test_default_radius_gives_the_median_row_the_typical_number_of_neighbours():
    values, labels = blobs(300)
    sampler = PersistentHomologyLandmarks(0.1, typical_neighbours=6, random_state=0).fit(values, labels)
    for label, radius in enumerate(sampler.radii_):
        rows = values[labels == label]
        within = (cdist(rows, rows) <= radius).sum(axis=1) - 1
        assert np.median(within) in (6, 5.5, 6.5)


def test_more_neighbours_than_the_limit_are_cut_to_the_nearest():
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.column_stack([np.cos(turn), np.sin(turn)])
    values = np.vstack([[[0.0, 0.0]], ring, 2.0 * ring])
    few = PersistentHomologyLandmarks(1.0, radius=2.5, max_neighbours=12, random_state=0).fit(values)
    assert -few.scores_[0] == pytest.approx(longest_bars([cdist(ring, ring)], 1)[0])


def test_neighbourhood_of_equal_rows_has_no_bar():
    sampler = PersistentHomologyLandmarks(1.0, radius=1.0, mode="multi", random_state=0).fit([[1.0]] * 40)
    assert (sampler.scores_ == 0.0).all()
