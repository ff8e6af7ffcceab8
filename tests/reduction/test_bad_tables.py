"""Data that cannot be reduced raise an error with a code; odd data have a documented result."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from tables import blobs, fails

from drip.reduction import (
    ClusterCentroids,
    DistanceEntropy,
    ForgettingEvents,
    ForgettingTracker,
    MatrixDecomposition,
    ProtoDash,
    RepresentativeKMeans,
    StratifiedRandom,
    available,
    create,
)
from drip.reduction.matrix_decomposition import direction_scores

METHODS = list(available().values())
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
readers = pytest.mark.parametrize(
    "method", [method for method in METHODS if method.reads_values], ids=lambda method: method.name
)
TABLE = blobs(40, n_classes=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@readers
def test_nan_and_infinity_are_rejected(method, value):
    values, labels = TABLE[0].copy(), TABLE[1]
    values[3, 1] = value
    with fails("table-invalid"):
        method().fit_resample(values, labels)


@readers
def test_numbers_whose_squares_overflow_are_rejected(method):
    with fails("table-invalid"):
        method().fit_resample(TABLE[0] * 1e160, TABLE[1])


@readers
def test_numbers_whose_squares_vanish_are_rejected(method):
    with fails("table-invalid"):
        method().fit_resample(TABLE[0] * 1e-160, TABLE[1])


@readers
def test_dates_are_rejected_and_no_array_fills_the_message(method):
    dated = pd.DataFrame({"a": TABLE[0][:, 0], "day": pd.Timestamp("2020-01-01")})
    for table in (dated, dated.assign(day=pd.Timestamp("2020-01-01", tz="UTC")), TABLE[0][:, 0]):
        with fails("table-invalid") as caught:
            method().fit(table, TABLE[1])
        assert "\n" not in str(caught.value)


@readers
def test_text_is_rejected(method):
    with fails("table-invalid"):
        method().fit_resample([["a"], ["b"], ["c"], ["d"]], [0, 0, 1, 1])


def test_random_rows_with_an_epsilon_need_numbers_too():
    with fails("table-invalid"):
        StratifiedRandom(epsilon=0.1).fit([[np.nan]] * 4, [0, 0, 1, 1])


@each_method
def test_one_row_per_class_is_kept_whole(method):
    params = {"estimator": None, "epochs": 2} if method.abbreviation == "FES" else {}
    points, kept = method(0.1, random_state=0, **params).fit_resample([[0.0, 1.0], [2.0, 3.0]], ["a", "b"])
    assert sorted(kept) == ["a", "b"]
    assert sorted(points) == [[0.0, 1.0], [2.0, 3.0]]


@each_method
def test_repeated_rows_are_kept_at_most_once_each(method):
    values = np.repeat(np.arange(5.0), 8)[:, None]
    labels = np.repeat([0, 1], 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = method(0.5, random_state=0).fit(values, labels)
    if hasattr(sampler, "sample_indices_"):
        assert len(np.unique(sampler.sample_indices_)) == 20
    else:
        assert len(sampler.points_) == 6  # the distinct rows of both classes


@each_method
def test_constant_columns_and_a_constant_table_are_reduced(method):
    values, labels = TABLE[0].copy(), TABLE[1]
    values[:, 2] = 7.0
    assert np.bincount(method(0.2, random_state=0).fit_resample(values, labels)[1]).sum() == 8
    sampler = method(0.2, random_state=0)
    kept = sampler.fit_resample(np.ones((40, 3)), labels)[1]
    assert len(kept) == (2 if method is ClusterCentroids else 8)
    if hasattr(sampler, "scores_"):
        assert not np.isnan(sampler.scores_).any()


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, np.nan, np.inf, "0.1", True])
@each_method
def test_fraction_outside_zero_and_one_is_rejected(method, fraction):
    with fails() as caught:
        method(fraction).fit(*TABLE)
    assert str(caught.value) == f"fraction must be a number in (0, 1], not {fraction!r}"


@pytest.mark.parametrize(
    "params",
    [
        {"fraction": 0.1, "n_samples": 3},
        {"n_samples": 0},
        {"n_samples": 41},
        {"n_samples": 2.0},
        {"n_samples": {0: 3}},
        {"epsilon": -1},
        {"epsilon": 0.1, "stratify": "global"},
        {"n_samples": {0: 1, 1: 1}, "stratify": "global"},
        {"stratify": None},
        {"min_per_class": 0},
        {"n_jobs": 0},
        {"n_jobs": 1.5},
        {"random_state": "x"},
        {"progress": 1},
        {"epsilon": False},
        {"metric": "cosine"},
    ],
)
@each_method
def test_wrong_parameters_are_rejected_by_name(method, params):
    with fails() as caught:
        method(**params).fit(*TABLE)
    assert next(iter(params)) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("PRD", {"sigma": 1e-200}),
        ("PRD", {"sigma": 1e200}),
        ("DES", {"temperature": 5e-324}),
        ("PRD", {"kernel": "cubic"}),
        ("PRD", {"sigma": 0}),
        ("PRD", {"tolerance": 2}),
        ("CLC", {"voting": "auto"}),
        ("CLC", {"batch_size": 0}),
        ("DES", {"temperature": 0}),
        ("DES", {"base_fraction": 0.5, "fraction": 0.1}),
        ("PHL", {"radius": -1}),
        ("PHL", {"dimension": 1.5}),
        ("PHL", {"mode": "all"}),
        ("PHL", {"landmarks": "best"}),
        ("RKMEANS", {"n_clusters": 41}),
        ("FES", {"epochs": 0}),
        ("FES", {"estimator": KMeans()}),
    ],
)
def test_wrong_parameters_of_a_method_are_rejected_by_name(name, params):
    with fails() as caught:
        create(name, **params).fit(*TABLE)
    assert next(iter(params)) in str(caught.value)


@pytest.mark.parametrize("scale", [1e-140, 1e100, 1e149])
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_prototypes_of_a_table_of_any_scale_are_those_of_the_scaled_one(kernel, scale):
    near = 2.0 ** np.floor(np.log2(scale))  # exact in binary, so no rounding differs
    expected = ProtoDash(0.5, kernel=kernel, random_state=0).fit(*TABLE)
    found = ProtoDash(0.5, kernel=kernel, random_state=0).fit(TABLE[0] * near, TABLE[1])
    assert found.ranking_.tolist() == expected.ranking_.tolist()


def test_prototypes_of_a_class_of_tiny_numbers():
    values, labels = TABLE[0].copy(), TABLE[1]
    values[labels == 0] *= 1e-160
    assert np.isfinite(ProtoDash(0.5, random_state=0).fit(values, labels).sample_weight_).all()


@each_method
def test_class_smaller_than_its_minimum_is_kept_whole(method):
    values, labels = blobs(60, n_classes=2)
    labels[:] = 0
    labels[:3] = 1
    _, kept = method(0.2, min_per_class=10, random_state=0).fit_resample(values, labels)
    assert np.bincount(kept).tolist() == [11, 3]  # 11 and 1 by their shares


@pytest.mark.parametrize(
    "labels",
    [
        [0] * 40,
        [0, 1] * 5,
        np.linspace(0, 1, 40),
        ["a", None] * 20,
        np.array([0.0, np.nan] * 20),
        pd.Series([1, pd.NA] * 20, dtype="Int64"),
        np.array([0.0, np.nan] * 20, dtype=object),
        np.array([1, "a"] * 20, dtype=object),
        np.eye(40) + np.eye(40)[::-1],
    ],
)
@each_method
def test_wrong_labels_are_rejected(method, labels):
    with fails("labels-invalid"):
        method().fit(TABLE[0], labels)


@each_method
def test_an_empty_table_and_a_single_row_are_rejected(method):
    for table in (np.empty((0, 3)), np.ones((1, 3))):
        with fails("table-invalid"):
            method().fit(table)


def test_rows_of_zeros_count_as_orthogonal_to_every_direction():
    values, labels = np.abs(TABLE[0].copy()) + 0.1, TABLE[1]
    values[[0, 1, 5]] = 0.0
    within = direction_scores(values)
    assert within[[0, 1, 5]] == pytest.approx(np.log(1000.0))
    assert within.max() <= np.log(1000.0) + 1e-12
    assert np.isfinite(MatrixDecomposition(0.2).fit(values, labels).scores_).all()


def test_distances_that_make_exponentials_overflow_still_have_an_entropy():
    sampler = DistanceEntropy(0.2, random_state=0).fit(TABLE[0] * 1e6, TABLE[1])
    assert not np.isnan(sampler.scores_).any()


def test_forgetting_events_without_labels_or_with_wrong_events_are_rejected():
    with fails("labels-invalid"):
        ForgettingEvents().fit(TABLE[0])
    for wrong in (np.zeros(39), np.full(40, np.nan), ["often"] * 40):
        with fails():
            ForgettingEvents().fit(*TABLE, events=wrong)


def test_tracker_rejects_rows_that_do_not_fit():
    for n_rows in (0, 2.5, "3"):
        with fails():
            ForgettingTracker(n_rows)
    tracker = ForgettingTracker(3)
    for rows in ([3], [-1], [1, 1], [0.5], ["a"]):
        with fails():
            tracker.update(rows, [True] * len(rows))
    with fails():
        tracker.update([0, 1], [True])
    tracker.update([], [])
    assert tracker.counts().tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "sampler", [ProtoDash(kernel="linear"), RepresentativeKMeans()], ids=["linear", "kmeans"]
)
def test_table_of_zeros_is_reduced(sampler):
    kept = sampler.set_params(random_state=0).fit_resample(np.zeros((40, 2)), TABLE[1])[1]
    assert len(kept) == 4
