"""Containers, labels and dtypes come back as they came; sizes, cuts and epsilon are met by every method."""

from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imblearn.pipeline import make_pipeline
from scipy.sparse import (
    bsr_array,
    coo_matrix,
    csc_array,
    csr_array,
    dia_matrix,
    dok_array,
    issparse,
    lil_matrix,
)
from sklearn import config_context
from sklearn.base import clone
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import cross_val_score
from tables import blobs, fails, grids

from drip.reduction import (
    ClusterCentroids,
    ForgettingEvents,
    MaxMin,
    RankedReducer,
    StratifiedRandom,
    available,
    epsilon_representativeness,
)
from drip.reduction.base import class_sizes, kept_total

METHODS = list(available().values())
RANKED = [method for method in METHODS if issubclass(method, RankedReducer)]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
each_ranked = pytest.mark.parametrize("method", RANKED, ids=lambda method: method.name)


@each_ranked
@given(grids(max_rows=16), st.integers(1, 99))
@settings(max_examples=8)
def test_every_class_keeps_what_the_house_rule_says(method, table, percent):
    values, labels = table
    sampler = method(percent / 100, random_state=0).fit(values, labels)
    present, counts = np.unique(labels, return_counts=True)
    sizes = class_sizes(counts, kept_total(len(values), percent / 100), "proportional")
    kept = labels[sampler.sample_indices_]
    assert [(kept == label).sum() for label in present] == sizes.tolist()
    assert sampler.sampling_strategy_ == dict(zip(present.tolist(), sizes.tolist(), strict=True))
    assert (np.diff(sampler.sample_indices_) > 0).all()
    assert len(sampler.sample_weight_) == len(sampler.sample_indices_)


@each_ranked
def test_a_smaller_fraction_is_a_cut_of_the_same_order(method):
    values, labels = blobs(150)
    base = {"base_fraction": 0.1} if method.abbreviation == "DES" else {}
    sampler = method(0.6, random_state=3, **base).fit(values, labels)
    before = np.arange(0)
    for fraction in (0.1, 0.3, 0.6):
        kept = sampler.at(fraction)
        again = method(fraction, random_state=3, **base).fit(values, labels)
        assert kept.tolist() == again.sample_indices_.tolist()
        assert set(before) <= set(kept)
        before = kept
    assert sampler.sample_indices_.tolist() == before.tolist()


def test_a_cut_after_the_last_ordered_row_is_rejected():
    sampler = MaxMin(0.2, random_state=0).fit(*blobs(100))
    with fails():
        sampler.at(0.5)


@pytest.mark.parametrize("metric", ["euclidean", "chebyshev"])
@each_ranked
def test_epsilon_keeps_the_fewest_rows_of_the_order_that_reach_it(method, metric):
    values, labels = blobs(120)
    sampler = method(epsilon=1.2, metric=metric, random_state=0).fit(values, labels)
    found = epsilon_representativeness(values, labels, indices=sampler.sample_indices_, metric=metric)
    assert found.epsilon <= 1.2
    for label in range(3):
        rows = np.flatnonzero(labels == label)
        kept = np.intersect1d(sampler.sample_indices_, rows)
        if len(kept) > 1:
            last = kept[sampler.ranking_[kept].argmax()]
            fewer = np.setdiff1d(kept, [last])
            worse = epsilon_representativeness(values[rows], None, values[fewer], metric=metric)
            assert worse.epsilon > 1.2


def test_epsilon_that_is_just_reached_needs_no_further_row():
    values = np.arange(4.0)[:, None]
    sampler = ForgettingEvents(epsilon=2.0).fit(values, events=[3, 9, 2, 1])
    assert sampler.sample_indices_.tolist() == [1]
    assert MaxMin(epsilon=1.0, random_state=2).fit(values[:3]).radii_[0][-1] <= 1.0


@each_method
def test_epsilon_of_zero_covers_every_row(method):
    values = np.repeat(np.arange(6.0), 3)[:, None]
    labels = np.repeat([0, 1], 9)
    sampler = method(epsilon=0, random_state=0)
    points, kept = sampler.fit_resample(values, labels)
    assert epsilon_representativeness(values, labels, points, kept).epsilon == 0.0


@each_method
def test_balanced_and_named_sizes_and_minimum_are_met(method):
    values, labels = blobs(120)
    counts = np.bincount(labels)
    for params, expected in (
        ({"n_samples": 30, "stratify": "balanced"}, [10, 10, 10]),
        ({"n_samples": {0: 3, 1: 1, 2: 5}}, [3, 1, 5]),
        ({"n_samples": 3, "min_per_class": 4}, [4, 4, 4]),
        ({"n_samples": 120}, counts.tolist()),
    ):
        _, kept = method(random_state=0, **params).fit_resample(values, labels)
        assert np.bincount(kept).tolist() == expected


@each_method
def test_threads_do_not_change_the_result(method):
    values, labels = blobs(150)
    alone = method(0.2, random_state=1).fit_resample(values, labels)
    many = method(0.2, random_state=1, n_jobs=2).fit_resample(values, labels)
    np.testing.assert_array_equal(alone[0], many[0])


@each_method
def test_rows_without_labels_are_one_class(method):
    values, _ = blobs(80)
    params = {"events": np.arange(80)} if method.abbreviation == "FES" else {}
    sampler = method(0.25, random_state=0)
    points, labels = sampler.fit_resample(values, **params)
    assert len(points) == 20
    assert labels is None
    assert sampler.sampling_strategy_ == {None: 20}


@each_method
def test_pandas_frame_keeps_columns_dtypes_and_text_labels(method):
    values, labels = blobs(90)
    frame = pd.DataFrame(values, columns=["p", "q", "r", "s"]).astype({"p": "float32"})
    frame.index = [f"row{i}" for i in range(90)]
    target = pd.Series(
        pd.Categorical(np.array(["ant", "bee", "cow"])[labels]), index=frame.index, name="kind"
    )
    sampler = method(0.2, random_state=0)
    points, kept = sampler.fit_resample(frame, target)
    assert points.columns.tolist() == ["p", "q", "r", "s"]
    assert points.dtypes.tolist() == frame.dtypes.tolist()
    assert (kept.name, kept.dtype) == ("kind", target.dtype)
    assert points.index.tolist() == kept.index.tolist()
    assert set(kept) == {"ant", "bee", "cow"}
    assert sampler.feature_names_in_.tolist() == ["p", "q", "r", "s"]
    if hasattr(sampler, "sample_indices_"):
        pd.testing.assert_frame_equal(points, frame.iloc[sampler.sample_indices_])
        assert len(sampler.sample_weight_) == len(points)


@each_method
def test_polars_frame_comes_back_as_one(method):
    values, labels = blobs(90)
    frame = pl.DataFrame({name: values[:, k] for k, name in enumerate("pqrs")})
    target = pl.Series("kind", np.array(["ant", "bee", "cow"])[labels].tolist())
    points, kept = method(0.2, random_state=0).fit_resample(frame, target)
    assert isinstance(points, pl.DataFrame)
    assert points.columns == list("pqrs")
    assert isinstance(kept, pl.Series)
    assert len(points) == len(kept) == 18


@each_method
def test_sparse_tables_give_what_dense_ones_give_as_sparse_tables(method):
    values, labels = blobs(80)
    values[np.abs(values) < 1.0] = 0.0
    dense, _ = method(0.2, random_state=0).fit_resample(values, labels)
    sparse, _ = method(0.2, random_state=0).fit_resample(csr_array(values), labels)
    assert issparse(sparse)
    np.testing.assert_allclose(sparse.toarray(), dense)
    for kind in (bsr_array, coo_matrix, csc_array, dia_matrix, dok_array, lil_matrix):
        other, _ = method(0.2, random_state=0).fit_resample(kind(values), labels)
        assert type(other) is kind
        np.testing.assert_allclose(other.toarray(), dense)


@pytest.mark.parametrize("dtype", ["<U3", "object", "int32", "uint8", "bool"])
@each_method
def test_labels_keep_their_dtype(method, dtype):
    values, labels = blobs(60, n_classes=2)
    target = np.array(["no", "yes"])[labels] if dtype in ("<U3", "object") else labels
    _, kept = method(0.2, random_state=0).fit_resample(values, target.astype(dtype))
    assert kept.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    "make",
    [
        lambda labels: pd.Series(labels, dtype="Int64"),
        lambda labels: pd.Series(np.array(["no", "yes"])[labels], dtype="string"),
        lambda labels: pl.Series(np.array(["no", "yes"])[labels].tolist()),
        lambda labels: pl.DataFrame({"kind": labels}),
    ],
    ids=["pandas Int64", "pandas string", "polars text", "polars column"],
)
def test_labels_of_other_libraries_keep_their_kind(make):
    values, labels = blobs(60, n_classes=2)
    sampler = MaxMin(0.2, random_state=0)
    _, kept = sampler.fit_resample(values, make(labels))
    assert type(kept) is type(make(labels))
    assert getattr(kept, "dtype", None) == getattr(make(labels), "dtype", None)
    plain = MaxMin(0.2, random_state=0).fit(values, labels)
    assert sampler.sample_indices_.tolist() == plain.sample_indices_.tolist()


def test_events_reach_the_sampler_through_a_pipeline_with_metadata_routing():
    values, labels = blobs(60, n_classes=2)
    with config_context(enable_metadata_routing=True):
        sampler = ForgettingEvents(0.5, random_state=0)
        pipeline = make_pipeline(sampler, GradientBoostingClassifier(n_estimators=2))
        pipeline.fit(values, labels, events=np.arange(60))
    assert pipeline[0].scores_.tolist() == list(range(60))


def test_centroids_of_whole_number_columns_are_not_rounded():
    frame = pd.DataFrame({"a": [0, 1, 10, 11], "b": [0.0, 0.0, 1.0, 1.0]})
    points, kept = ClusterCentroids(0.5, random_state=0).fit_resample(frame, [0, 0, 1, 1])
    assert points["a"].tolist() == [0.5, 10.5]
    assert kept == [0, 1]
    table = np.array([[0], [1], [10], [11]], dtype=np.float32)
    assert ClusterCentroids(0.5, random_state=0).fit_resample(table, [0, 0, 1, 1])[0].dtype == np.float32


def test_random_rows_of_a_table_with_text_and_gaps_keep_them():
    frame = pd.DataFrame({"word": ["x", None, "z", "w"] * 5, "number": [1.0, np.nan] * 10})
    points, _ = StratifiedRandom(0.5, random_state=0).fit_resample(frame, [0, 1] * 10)
    pd.testing.assert_frame_equal(points, frame.loc[points.index])


def test_random_rows_of_a_table_with_dates_and_nullable_columns_keep_them():
    frame = pd.DataFrame({"day": pd.Timestamp("2020-01-01"), "number": np.arange(20.0)})
    frame["count"] = pd.array([None, *range(19)], dtype="Int64")
    points, _ = StratifiedRandom(0.5, random_state=0).fit_resample(frame, [0, 1] * 10)
    pd.testing.assert_frame_equal(points, frame.loc[points.index])
    with fails("table-invalid"):
        StratifiedRandom(0.5).fit(frame[["number"]][:0], [])


def test_fraction_may_be_a_fraction():
    assert len(StratifiedRandom(Fraction(1, 10)).fit_resample(*blobs(100))[0]) == 10


@each_method
def test_reducer_is_cloned_with_its_parameters_and_works_in_a_pipeline(method):
    values, labels = blobs(150)
    sampler = method(0.3, random_state=0, min_per_class=2)
    assert clone(sampler).get_params() == sampler.get_params()
    pipeline = make_pipeline(sampler, GradientBoostingClassifier(n_estimators=5, random_state=0))
    assert cross_val_score(pipeline, values, labels, cv=2).mean() > 0.5


@each_method
def test_progress_ends_at_the_whole(method):
    seen = []
    method(0.2, random_state=0, progress=lambda done, total: seen.append((done, total))).fit(*blobs(60))
    if seen:
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1][0] == seen[-1][1]
    long = {"CLC", "FES", "MMS", "PHL", "PRD"}
    assert bool(seen) == (method.abbreviation in long)


@each_method
def test_only_the_global_cut_loses_a_class_and_its_epsilon_is_infinite(method):
    rng = np.random.default_rng(0)
    values = np.vstack([rng.normal(0, 1, (300, 3)), rng.normal(0, 0.01, (3, 3))])
    labels = np.array([0] * 300 + [1] * 3)
    _, kept = method(0.02, random_state=0).fit_resample(values, labels)
    assert set(kept) == {0, 1}
    if method is not ClusterCentroids:
        sampler = method(n_samples=1, stratify="global", random_state=0).fit(values, labels)
        assert len(sampler.sample_indices_) == 1
        found = epsilon_representativeness(values, labels, indices=sampler.sample_indices_)
        assert found.epsilon == np.inf
        assert 0 in sampler.sampling_strategy_.values()
