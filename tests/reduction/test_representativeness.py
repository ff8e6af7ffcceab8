"""Distances to kept rows against loops; what is lost is infinite; the certificate holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from tables import blobs, distance, fails, grids

from drip.reduction import epsilon_representativeness, perceptron_certificate
from drip.reduction.neighbours import nearest, radius

METRICS = ["chebyshev", "euclidean"]


@pytest.mark.parametrize("metric", METRICS)
@given(grids(), st.integers(0, 1000))
@settings(max_examples=40)
def test_every_number_is_that_of_the_definition(metric, table, seed):
    values, labels = table
    rng = np.random.default_rng(seed)
    kept = np.flatnonzero(rng.random(len(values)) < 0.4)
    kept = kept if len(kept) else np.array([0])
    found = epsilon_representativeness(values, labels, indices=kept, metric=metric)
    gaps = []
    for i in range(len(values)):
        own = [distance(values[i], values[k], metric) for k in kept if labels[k] == labels[i]]
        gaps.append(min(own, default=np.inf))
    assert found.distances.tolist() == pytest.approx(gaps)
    assert found.epsilon == pytest.approx(max(gaps))
    for label, spread in found.per_class.items():
        rows = [gaps[i] for i in np.flatnonzero(labels == label)]
        assert (spread.n, spread.n_kept) == (len(rows), (labels[kept] == label).sum())
        assert spread.epsilon == pytest.approx(max(rows))
        assert spread.mean == pytest.approx(np.mean(rows))
        assert (label in found.lost) == np.isinf(max(rows))
    reachable = np.isfinite(gaps)
    for i in np.flatnonzero(reachable):
        nearest_kept = values[kept[found.nearest[i]]]
        assert distance(values[i], nearest_kept, metric) == pytest.approx(gaps[i])
    assert found.counts().sum() == reachable.sum()


@pytest.mark.parametrize("metric", METRICS)
def test_many_dimensions_in_small_blocks_give_what_few_give_in_a_tree(metric):
    rng = np.random.default_rng(0)
    values = rng.integers(-2, 3, (150, 4)).astype(float)
    wide = np.hstack([values, np.full((150, 30), 7.0)])
    tree, _ = nearest(values, values[::7], metric)
    blocks, rows = nearest(wide, wide[::7], metric, block_bytes=1 << 10)
    np.testing.assert_array_equal(tree, blocks)
    for i in range(150):
        assert distance(values[i], values[::7][rows[i]], metric) == blocks[i]


def test_kept_rows_are_at_distance_zero_in_many_dimensions_far_from_the_origin():
    rng = np.random.default_rng(1)
    wide = 1e6 + rng.normal(size=(80, 60))
    distances, rows = nearest(wide, wide[10:20], "euclidean")
    assert (distances[10:20] == 0.0).all()
    assert rows[10:20].tolist() == list(range(10))
    expected = [min(distance(row, kept, "euclidean") for kept in wide[10:20]) for row in wide]
    np.testing.assert_allclose(distances, expected, rtol=1e-14)


def test_neighbours_whose_expanded_squares_are_lost_in_rounding_are_told_apart():
    rng = np.random.default_rng(2)
    sides = np.repeat([[-1e3], [1e3]], 20, axis=0)  # far from the mean, so centring does not help
    wide = sides + 1e-6 * rng.normal(size=(40, 30))
    distances, rows = nearest(wide[::2], wide[1::2], "euclidean")
    gaps = np.linalg.norm(wide[::2, None] - wide[None, 1::2], axis=2)
    assert rows.tolist() == gaps.argmin(axis=1).tolist()
    np.testing.assert_allclose(distances, gaps.min(axis=1), rtol=1e-12)


def test_radius_is_the_largest_distance():
    values, _ = blobs(60)
    assert radius(values, values[:5], "euclidean") == nearest(values, values[:5], "euclidean")[0].max()


def test_quantiles_of_a_table_with_a_lost_class_are_infinite_where_it_begins():
    found = epsilon_representativeness(
        [[0.0]] * 8 + [[1.0]] * 2, [0] * 8 + [1] * 2, indices=[0], quantiles=[0.5, 0.95]
    )
    assert found.overall.quantiles == {0.5: 0.0, 0.95: np.inf}
    assert found.lost == [1]
    assert found.nearest.tolist() == [0] * 8 + [-1] * 2


def test_points_and_labels_may_stand_for_indices():
    values, labels = blobs(60)
    names = np.array(["x", "y", "z"])[labels]
    by_rows = epsilon_representativeness(values, names, indices=np.arange(0, 60, 5))
    by_points = epsilon_representativeness(values, names, values[::5], names[::5])
    assert by_rows.epsilon == by_points.epsilon
    assert by_rows.per_class == by_points.per_class
    assert by_rows.nearest.tolist() == by_points.nearest.tolist()


def test_without_labels_all_rows_are_one_class():
    found = epsilon_representativeness([[0.0], [4.0]], None, [[1.0]])
    assert (found.epsilon, list(found.per_class)) == (3.0, [None])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({}, "bad-argument"),
        ({"X_reduced": [[0.0]], "indices": [0]}, "bad-argument"),
        ({"indices": [5]}, "bad-argument"),
        ({"indices": []}, "bad-argument"),
        ({"indices": [0.5]}, "bad-argument"),
        ({"X_reduced": [[0.0, 1.0]], "y_reduced": [0]}, "table-invalid"),
        ({"X_reduced": [[0.0]], "y_reduced": [7]}, "labels-invalid"),
        ({"X_reduced": [[np.nan]], "y_reduced": [0]}, "table-invalid"),
        ({"indices": [0], "quantiles": [1.2]}, "bad-argument"),
        ({"indices": [0], "n_jobs": 0}, "bad-argument"),
        ({"indices": [0], "metric": "cosine"}, "bad-argument"),
    ],
)
def test_arguments_that_do_not_fit_are_rejected(arguments, code):
    with fails(code):
        epsilon_representativeness([[0.0], [1.0], [2.0]], [0, 0, 1], **arguments)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_accuracy_of_a_linear_classifier_lies_within_its_certificate(metric, n_classes):
    values, labels = blobs(300, n_classes=n_classes)
    model = LogisticRegression().fit(values, labels)
    for step in (2, 5, 20, 60):
        kept = np.unique(np.concatenate([np.arange(0, 300, step), np.arange(n_classes)]))
        found = perceptron_certificate(values, labels, kept, model.coef_, model.intercept_, metric=metric)
        assert found.lower <= model.score(values, labels) <= found.upper
        predicted = model.predict(values)
        same = predicted == predicted[kept[found.representativeness.nearest]]
        assert same[found.certified].all()


@pytest.mark.parametrize("metric", METRICS)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.integers(0, 20), st.sampled_from([1e-7, 1e-3]))
@settings(max_examples=50)
def test_margin_is_the_way_to_the_plane_in_the_metric(metric, plane, seed, little):
    weights, offset = np.array(plane[:2]), plane[2]
    if np.abs(weights).max() < 1e-3:
        return
    values = np.random.default_rng(seed).normal(size=(12, 2))
    labels = np.arange(12) % 2
    found = perceptron_certificate(values, labels, [0, 1], weights, offset, metric=metric)
    scores = values @ weights + offset
    direction = np.sign(weights) if metric == "chebyshev" else weights / np.linalg.norm(weights)
    towards = -np.sign(scores)[:, None] * direction
    before = values + towards * (found.margins - little)[:, None]
    beyond = values + towards * (found.margins + little)[:, None]
    there = found.margins > little
    assert (np.sign(before @ weights + offset) == np.sign(scores))[there].all()
    assert (np.sign(beyond @ weights + offset) == -np.sign(scores))[there].all()


def test_equal_margins_above_epsilon_make_the_accuracies_equal():
    values = np.array([[-5.0], [-4.0], [4.0], [5.0], [4.5]])
    found = perceptron_certificate(values, [0, 0, 1, 1, 0], [0, 2, 4], [[1.0]], [0.0])
    assert found.certified.all()
    assert found.lower == found.upper == pytest.approx(0.8)


def test_rows_nearer_to_the_plane_than_to_their_kept_row_are_not_certified():
    values = [[1.7], [1.0], [0.9], [0.8], [-1.0]]
    found = perceptron_certificate(values, [1, 1, 1, 1, 0], [0, 4], [2.0], 0.0)
    assert found.margins.tolist() == [1.7, 1.0, 0.9, 0.8, 1.0]
    assert found.certified.tolist() == [True, True, True, False, True]
    assert found.slack == 0.2


def test_lost_class_is_not_certified():
    found = perceptron_certificate([[0.0], [1.0]], ["a", "b"], [0], [1.0], -0.5)
    assert found.certified.tolist() == [True, False]
    assert (found.lower, found.upper) == (0.0, 1.0)


def test_planes_and_tables_that_are_no_numbers_are_rejected():
    values, labels = blobs(30, n_classes=2)
    plane = np.ones((1, 4))
    for wrong in ([["a"] * 4], [[1.0], [1.0, 2.0]], np.full((1, 4), np.nan)):
        with fails():
            perceptron_certificate(values, labels, [0, 1], wrong, [0.0])
    with fails("table-invalid"):
        perceptron_certificate([["a"]] * 30, labels, [0, 1], plane, [0.0])


def test_certificate_of_a_sparse_table_is_that_of_the_dense_one():
    values, labels = blobs(30, n_classes=2)
    plane = np.ones((1, 4)), [0.5]
    found = perceptron_certificate(csr_array(values), labels, [0, 1], *plane)
    assert found.slack == perceptron_certificate(values, labels, [0, 1], *plane).slack


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [3, 30])
@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_numbers_whose_squares_overflow_or_vanish_are_rejected(scale, d, metric):
    values, labels = blobs(30, d=d)
    with fails("table-invalid"):
        epsilon_representativeness(values * scale, labels, indices=[0, 1, 2], metric=metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [3, 30])
@pytest.mark.parametrize("power", [490, -490])
def test_distances_grow_with_the_table(power, d, metric):
    values, labels = blobs(30, d=d)
    plain = epsilon_representativeness(values, labels, indices=[0, 1, 2], metric=metric).distances
    found = epsilon_representativeness(values * 2.0**power, labels, indices=[0, 1, 2], metric=metric)
    np.testing.assert_allclose(found.distances / 2.0**power, plain, rtol=1e-12)


def test_planes_of_another_shape_are_rejected():
    with fails():
        perceptron_certificate(*blobs(30), [0, 1, 2], np.zeros((2, 4)), np.zeros(2))
