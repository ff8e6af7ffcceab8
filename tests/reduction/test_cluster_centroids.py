"""Centroids are the means of their clusters; with hard voting the nearest members are kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import blobs, fails, grids

from drip.reduction import ClusterCentroids, epsilon_representativeness
from drip.reduction.base import class_sizes, kept_total
from drip.reduction.kmeans import cluster


@given(grids(), st.integers(0, 50), st.sampled_from([0.2, 0.5, 1.0]))
@settings(max_examples=30)
def test_points_are_as_many_as_the_house_rule_says_or_the_distinct_rows_of_the_class(table, seed, fraction):
    values, labels = table
    sampler = ClusterCentroids(fraction, random_state=seed)
    points, kept = sampler.fit_resample(values, labels)
    present, counts = np.unique(labels, return_counts=True)
    sizes = class_sizes(counts, kept_total(len(values), fraction), "proportional")
    for label, size, count in zip(present, sizes, counts, strict=True):
        distinct = len(np.unique(values[labels == label], axis=0))
        assert (kept == label).sum() == min(size, distinct)
        assert sampler.sample_weight_[kept == label].sum() == count
        if size >= distinct:
            expected = np.unique(values[labels == label], axis=0)
            assert sorted(points[kept == label].tolist()) == expected.tolist()


def test_clusters_are_a_fixed_point_of_lloyds_algorithm():
    values, _ = blobs(300)
    found = cluster(values, 12, 0, max_iter=300)
    gaps = np.linalg.norm(values[:, None] - found.centroids[None], axis=2)
    assert (gaps.argmin(axis=1) == found.members).all()
    for k, centroid in enumerate(found.centroids):
        np.testing.assert_allclose(values[found.members == k].mean(axis=0), centroid, atol=1e-2)
    np.testing.assert_allclose(found.distances, gaps.min(axis=1))


def test_one_centroid_is_the_mean_of_its_class():
    values, labels = blobs(100)
    sampler = ClusterCentroids(n_samples={0: 1, 1: 1, 2: 1}, random_state=0)
    points, kept = sampler.fit_resample(values, labels)
    for label in range(3):
        expected = values[labels == label].mean(axis=0)
        np.testing.assert_allclose(points[kept == label][0], expected, atol=1e-12)


def test_hard_voting_keeps_the_member_that_is_nearest_to_the_centroid():
    values, labels = blobs(200)
    soft = ClusterCentroids(0.1, random_state=0).fit(values, labels)
    hard = ClusterCentroids(0.1, voting="hard", random_state=0).fit(values, labels)
    assert len(hard.sample_indices_) == len(soft.points_) == 20
    gaps = np.linalg.norm(values[:, None] - soft.points_[None], axis=2)
    assert set(gaps.argmin(axis=0)) == set(hard.sample_indices_)
    assert sorted(hard.sample_weight_) == sorted(soft.sample_weight_)


def test_hard_voting_meets_the_count_where_rows_repeat():
    values = np.repeat([[0.0], [1.0], [2.0]], 10, axis=0)
    sampler = ClusterCentroids(n_samples=12, voting="hard", random_state=0).fit(values)
    assert len(set(sampler.sample_indices_)) == 12
    assert sampler.sample_weight_.sum() == 30


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_epsilon_gives_points_that_cover_every_class_within_it(voting):
    values, labels = blobs(200)
    sampler = ClusterCentroids(epsilon=1.5, voting=voting, metric="chebyshev", random_state=0)
    points, kept = sampler.fit_resample(values, labels)
    assert epsilon_representativeness(values, labels, points, kept).epsilon <= 1.5
    assert len(points) < 150


def test_mini_batches_give_as_many_points():
    values, labels = blobs(400)
    points, _ = ClusterCentroids(0.05, batch_size=100, random_state=0).fit_resample(values, labels)
    assert len(points) == 20


def test_centroids_across_classes_have_no_label():
    values, labels = blobs(60)
    with fails():
        ClusterCentroids(stratify="global").fit(values, labels)
    kept = ClusterCentroids(0.2, stratify="global", voting="hard", random_state=0).fit(values, labels)
    assert len(kept.sample_indices_) == 12
