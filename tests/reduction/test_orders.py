"""Orders and scores equal those of a brute-force reading of each definition."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import blobs, distance, grids, orders

from drip.reduction import (
    DistanceEntropy,
    ForgettingEvents,
    ForgettingTracker,
    MatrixDecomposition,
    MaxMin,
    ModerateCoreset,
    RepresentativeKMeans,
    StratifiedRandom,
)

METRICS = ["euclidean", "chebyshev"]
ALL = 1.0


def farthest_first_by_definition(values, rows, start, metric):
    order, radii = [start], []
    while True:
        gaps = {i: min(distance(values[i], values[s], metric) for s in order) for i in rows}
        radii.append(max(gaps.values()))
        left = [i for i in rows if i not in order]
        if not left:
            return order, radii
        order.append(max(left, key=lambda i: (gaps[i], -i)))


@pytest.mark.parametrize("metric", METRICS)
@given(grids(), st.integers(0, 100))
@settings(max_examples=40)
def test_maxmin_order_and_radii_are_those_of_the_definition(metric, table, seed):
    values, labels = table
    sampler = MaxMin(ALL, metric=metric, random_state=seed).fit(values, labels)
    for order, radii, label in zip(orders(sampler, labels), sampler.radii_, np.unique(labels), strict=True):
        rows = np.flatnonzero(labels == label).tolist()
        expected, expected_radii = farthest_first_by_definition(values, rows, order[0], metric)
        assert order == expected
        np.testing.assert_allclose(radii, expected_radii, rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_maxmin_skips_no_row_that_a_pick_changes_on_generic_data(metric):
    values, labels = blobs(400, d=7)
    sampler = MaxMin(0.5, metric=metric, random_state=3).fit(values, labels)
    for order, label in zip(orders(sampler, labels), np.unique(labels), strict=True):
        rows = np.flatnonzero(labels == label)
        gaps = np.full(len(rows), np.inf)
        for k, pick in enumerate(order):
            if k:
                assert rows[gaps.argmax()] == pick
            norm = np.inf if metric == "chebyshev" else 2
            gaps = np.minimum(gaps, np.linalg.norm(values[rows] - values[pick], norm, axis=1))
        counts = sampler.sample_weight_[np.isin(sampler.sample_indices_, order)]
        assert counts.sum() == len(rows)


@pytest.mark.parametrize("metric", METRICS)
@given(grids(), st.integers(0, 100))
@settings(max_examples=30)
def test_maxmin_weights_count_the_rows_nearest_to_each_pick(metric, table, seed):
    values, labels = table
    sampler = MaxMin(0.4, metric=metric, random_state=seed).fit(values, labels)
    counts = dict.fromkeys(sampler.sample_indices_.tolist(), 0)
    for order, label in zip(orders(sampler, labels), np.unique(labels), strict=True):
        for i in np.flatnonzero(labels == label).tolist():
            own = i if i in order else min(order, key=lambda s: distance(values[i], values[s], metric))
            counts[own] += 1
    assert sampler.sample_weight_.tolist() == list(counts.values())


@given(grids(), st.integers(0, 100), st.sampled_from([0.3, 0.5, 1.0]))
@settings(max_examples=40)
def test_distance_entropy_keeps_the_base_and_then_the_largest_entropies(table, seed, fraction):
    values, labels = table
    sampler = DistanceEntropy(fraction, random_state=seed, temperature=2.0).fit(values, labels)
    base = sampler.base_indices_.tolist()
    prototypes = [values[[i for i in base if labels[i] == c]].mean(axis=0) for c in np.unique(labels)]
    entropies = {}
    for i in range(len(values)):
        weights = [math.exp(distance(values[i], m, "euclidean") / 2.0) for m in prototypes]
        shares = [weight / sum(weights) for weight in weights]
        entropies[i] = -sum(q * math.log2(q) for q in shares)
    for order in orders(sampler, labels):
        n_base = sum(1 for i in order if i in base)
        assert set(order[:n_base]) <= set(base)
        added = [entropies[i] for i in order[n_base:]]
        assert added == pytest.approx(sorted(added, reverse=True), abs=1e-9)
        for i in order[n_base:]:
            assert sampler.scores_[i] == pytest.approx(entropies[i], abs=1e-9)


def test_distance_entropy_draws_half_of_what_is_kept_as_base_by_the_house_rule():
    values, labels = blobs(200)
    sampler = DistanceEntropy(0.2, random_state=0).fit(values, labels)
    counts = np.bincount(labels)
    expected = np.floor(20 * counts / 200)
    drawn = np.bincount(labels[sampler.base_indices_])
    assert len(sampler.base_indices_) == 20
    assert (np.abs(drawn - expected) <= 1).all()
    assert set(sampler.base_indices_) <= set(sampler.sample_indices_)


def test_distance_entropy_global_adds_rows_whatever_their_class():
    values, labels = blobs(300)
    sampler = DistanceEntropy(0.3, stratify="global", random_state=0).fit(values, labels)
    added = np.setdiff1d(sampler.sample_indices_, sampler.base_indices_)
    others = np.setdiff1d(np.arange(300), sampler.sample_indices_)
    assert len(sampler.sample_indices_) == 90
    assert sampler.scores_[added].min() >= sampler.scores_[others].max()


def decomposition_score_by_definition(rows):
    directions, singular, _ = np.linalg.svd(rows.T, full_matrices=True)
    k = min(rows.shape)
    real = [i for i in range(k) if singular[i] > 1e-12 * singular[0]]
    total = sum(1 / singular[i] for i in real)
    scores = []
    for row in rows:
        length = math.sqrt(sum(x * x for x in row)) or 1.0
        cosines = {
            i: abs(sum(x * u for x, u in zip(row, directions[:, i], strict=True))) / length for i in real
        }
        scores.append(sum(-math.log(max(cosines[i], 1e-3)) / singular[i] / total for i in real))
    return np.array(scores)


@pytest.mark.parametrize("stratify", ["proportional", "global"])
def test_matrix_decomposition_scores_and_cut_are_those_of_the_definition(stratify):
    values, labels = blobs(60, d=3, seed=4)
    sampler = MatrixDecomposition(0.25, stratify=stratify).fit(values, labels)
    within = np.empty(60)
    for label in range(3):
        within[labels == label] = decomposition_score_by_definition(values[labels == label])
    scores = within * decomposition_score_by_definition(np.hstack([values, np.eye(3)[labels]]))
    np.testing.assert_allclose(sampler.scores_, scores, rtol=1e-9)
    groups = [np.arange(60)] if stratify == "global" else [np.flatnonzero(labels == c) for c in range(3)]
    for rows in groups:
        kept = np.isin(rows, sampler.sample_indices_)
        assert scores[rows[kept]].min() > scores[rows[~kept]].max()
    assert len(sampler.sample_indices_) == 15


@pytest.mark.parametrize("metric", METRICS)
@given(grids())
@settings(max_examples=30)
def test_moderate_coreset_orders_by_the_gap_to_the_median_distance(metric, table):
    values, labels = table
    sampler = ModerateCoreset(ALL, metric=metric).fit(values, labels)
    for order, label in zip(orders(sampler, labels), np.unique(labels), strict=True):
        rows = np.flatnonzero(labels == label)
        centre = [sum(column) / len(rows) for column in values[rows].T]
        lengths = {i: distance(values[i], centre, metric) for i in rows.tolist()}
        gaps = {i: abs(length - np.median(list(lengths.values()))) for i, length in lengths.items()}
        ranked = [gaps[i] for i in order]
        assert ranked == pytest.approx(sorted(gaps.values()), abs=1e-9)


@pytest.mark.parametrize("stratify", ["proportional", "global"])
def test_representative_kmeans_takes_clusters_in_turn_nearest_rows_first(stratify):
    values, labels = blobs(90, seed=2)
    sampler = RepresentativeKMeans(ALL, n_clusters=4, stratify=stratify, random_state=0).fit(values, labels)
    centroids = [values[sampler.clusters_ == k].mean(axis=0) for k in range(4)]
    length = [distance(v, centroids[k], "euclidean") for v, k in zip(values, sampler.clusters_, strict=True)]
    groups = np.zeros(90, dtype=int) if stratify == "global" else labels
    for order in orders(sampler, groups):
        place = {}
        for k in range(4):
            members = sorted((i for i in order if sampler.clusters_[i] == k), key=lambda i: length[i])
            place.update({i: rank for rank, i in enumerate(members)})
        assert order == sorted(order, key=lambda i: (place[i], length[i]))


def test_representative_kmeans_global_gives_equal_shares_of_every_cluster():
    values, labels = blobs(90, seed=2)
    sampler = RepresentativeKMeans(n_samples=12, n_clusters=4, stratify="global", random_state=0)
    sampler.fit(values, labels)
    assert np.bincount(sampler.clusters_[sampler.sample_indices_]).tolist() == [3, 3, 3, 3]


def test_stratified_random_draws_every_row_of_a_class_equally_often():
    labels = np.array([0] * 6 + [1] * 4)
    drawn = np.zeros(10)
    for seed in range(600):
        drawn[StratifiedRandom(0.5, random_state=seed).fit(np.zeros((10, 1)), labels).sample_indices_] += 1
    assert drawn[:6].sum() == 3 * 600
    assert np.abs(drawn / 600 - 0.5).max() < 0.1  # five standard deviations


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=12))
def test_tracker_counts_falls_from_right_to_wrong(history):
    tracker = ForgettingTracker(5)
    for right in history:
        tracker.update(np.arange(5), right)
    for row in range(5):
        seen = [right[row] for right in history]
        falls = sum(1 for before, now in pairwise(seen) if before and not now)
        assert tracker.counts()[row] == (falls if any(seen) else len(seen))
        assert (row in tracker.learned) == any(seen)


def test_forgetting_events_keeps_the_rows_with_most_events_of_each_class():
    rng = np.random.default_rng(0)
    events, labels = rng.integers(0, 6, 80), np.repeat([0, 1], 40)
    sampler = ForgettingEvents(0.25, random_state=0).fit(rng.random((80, 2)), labels, events=events)
    for rows in np.split(np.arange(80), 2):
        kept = np.isin(rows, sampler.sample_indices_)
        assert kept.sum() == 10
        assert events[rows[kept]].min() >= events[rows[~kept]].max()


def test_forgetting_events_breaks_ties_at_random():
    events, labels = np.zeros(40), np.repeat([0, 1], 20)
    kept = {
        tuple(
            ForgettingEvents(0.5, random_state=seed)
            .fit(np.zeros((40, 1)), labels, events=events)
            .sample_indices_
        )
        for seed in range(5)
    }
    assert len(kept) == 5


def test_forgetting_events_counts_for_itself_what_a_small_model_forgets():
    values, labels = blobs(150, seed=1)
    flipped = np.where(np.arange(150) % 10 == 0, (labels + 1) % 3, labels)  # wrong labels are never learned
    sampler = ForgettingEvents(0.2, epochs=10, random_state=0).fit(values * 0.2, flipped)
    wrong = np.arange(150) % 10 == 0
    assert sampler.scores_[wrong].mean() > 2 * sampler.scores_[~wrong].mean()
    assert sampler.scores_.max() <= 10
