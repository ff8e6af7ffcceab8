"""ProtoDash follows its definition step by step, with weights solved by trying every support."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tables import blobs

from drip.reduction import ProtoDash, epsilon_representativeness
from drip.reduction.proto_dash import GrowingProgramme, greedy_prototypes, median_distance

TOLERANCE = 1e-9


def kernel_matrix(points, sigma):
    if sigma == 0.0:
        return points @ points.T
    gaps = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    return np.exp(-gaps / (2 * sigma**2))


def best_weights(kernel, target, members):
    """The optimum over w >= 0 by trying every set of positive weights."""
    best, value = np.zeros(len(members)), 0.0
    for size in range(1, len(members) + 1):
        for support in combinations(range(len(members)), size):
            rows = [members[k] for k in support]
            weights, *_ = np.linalg.lstsq(kernel[np.ix_(rows, rows)], target[rows], rcond=1e-10)
            gain = weights @ target[rows] - 0.5 * weights @ kernel[np.ix_(rows, rows)] @ weights
            if (weights >= -1e-12).all() and gain > value + 1e-14:
                best, value = np.zeros(len(members)), gain
                best[list(support)] = weights
    return best, value


@pytest.mark.parametrize("sigma", [0.0, 0.7, 2.0])
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(2, 7), st.integers(1, 3)), elements=st.integers(-20, 20)),
)
@settings(max_examples=40)
def test_every_pick_has_the_largest_gradient_and_all_weights_are_optimal(sigma, whole):
    points = whole / 10.0
    found = greedy_prototypes(points, len(points), sigma, TOLERANCE)
    kernel = kernel_matrix(points, sigma)
    target = kernel.mean(axis=0)
    scale = max(1.0, float(np.abs(kernel).max()))
    assert sorted(found.order.tolist()) == list(range(len(points)))
    members = []
    for step, pick in enumerate(found.order.tolist()):
        weights, _ = best_weights(kernel, target, members)
        gradient = target - kernel[:, members] @ weights
        value = gradient
        if step == 0:
            own = np.diag(kernel)
            value = np.where(own > 0, np.maximum(target, 0) ** 2 / (2 * np.where(own > 0, own, 1)), 0.0)
        left = [j for j in range(len(points)) if j not in members]
        assert value[pick] >= value[left].max() - 1e-6 * scale
        members.append(pick)
    _, optimum = best_weights(kernel, target, members)
    reached = found.weights @ target[members]
    reached -= 0.5 * found.weights @ kernel[np.ix_(members, members)] @ found.weights
    assert (found.weights >= 0).all()
    assert reached == pytest.approx(optimum, abs=1e-7 * scale)


def test_weights_satisfy_the_optimality_conditions_on_many_rows():
    values, _ = blobs(300, d=5)
    sigma = median_distance(values, np.random.default_rng(0))
    found = greedy_prototypes(values, 120, sigma, 1e-6)
    kernel = kernel_matrix(values, sigma)
    gradient = kernel.mean(axis=0) - kernel[:, found.order] @ found.weights
    positive = found.weights > 0
    assert np.abs(gradient[found.order[positive]]).max() < 1e-10
    assert gradient[found.order[~positive]].max(initial=0.0) < 1e-6
    assert found.weights.sum() == pytest.approx(1.0, abs=0.01)


def test_programme_drops_weights_that_turn_negative_and_takes_them_back():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(40, 2))
    kernel = kernel_matrix(points, 3.0)
    programme = GrowingProgramme(kernel.mean(axis=0), 1e-9)
    dropped = False
    for candidate in range(40):
        programme.grow(candidate, kernel[candidate])
        dropped |= bool((programme.weights == 0).any())
        assert (programme.weights >= 0).all()
        assert programme.gradient[programme.members].max() < 1e-8
    assert dropped


def test_repeated_rows_get_no_second_weight():
    values = np.repeat([[0.0], [1.0], [5.0]], 4, axis=0)
    sampler = ProtoDash(n_samples=9, sigma=1.0).fit(values)
    weights = sampler.sample_weight_
    assert (weights > 0).sum() == 3
    assert len(set(sampler.sample_indices_)) == 9
    assert weights.sum() == pytest.approx(12.0)


def test_gaussian_prototypes_cover_where_those_of_the_linear_kernel_do_not():
    values, labels = blobs(600, d=4)
    epsilons = {}
    for kernel in ("gaussian", "linear"):
        sampler = ProtoDash(0.1, kernel=kernel, random_state=0).fit(values, labels)
        epsilons[kernel] = epsilon_representativeness(values, labels, indices=sampler.sample_indices_).epsilon
    assert epsilons["gaussian"] < epsilons["linear"]


def test_median_distance_falls_back_where_most_rows_are_equal():
    rng = np.random.default_rng(0)
    assert median_distance(np.array([[0.0]] * 9 + [[4.0]]), rng) == 4.0
    assert median_distance(np.zeros((5, 2)), rng) == 1.0
