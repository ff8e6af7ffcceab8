"""Representativeness on the Dry Bean split of the study, a tenth kept, medians over ten starts."""

import gzip
from statistics import median

import numpy as np
import pytest
from sklearn.model_selection import train_test_split
from support import require_data

from drip.reduction import ClusterCentroids, MaxMin, ProtoDash, available, epsilon_representativeness


@pytest.fixture(scope="module")
def beans():
    """Features scaled to [0, 1] on all rows, a fixed shuffle, three quarters for training."""
    with gzip.open(require_data("tabular/dry_bean.csv.gz"), "rt") as lines:
        cells = [line.strip().split(",") for line in lines][1:]
    values = np.array([row[:-1] for row in cells], dtype=np.float64)
    labels = np.array([row[-1] for row in cells])
    values = (values - values.min(axis=0)) / np.ptp(values, axis=0)
    order = np.random.RandomState(2024).permutation(len(values))
    kept, _, names, _ = train_test_split(values[order], labels[order], test_size=0.25, random_state=0)
    assert kept.shape == (10_208, 16)
    return kept, names


def epsilon(table, sampler):
    values, labels = table
    points, kept = sampler.fit_resample(values, labels)
    return epsilon_representativeness(values, labels, points, kept)


@pytest.mark.parametrize(("metric", "most"), [("euclidean", 0.17), ("chebyshev", 0.135)])
def test_maxmin_covers_every_row_closely(beans, metric, most):
    found = [epsilon(beans, MaxMin(0.1, metric=metric, random_state=seed)).epsilon for seed in range(10)]
    assert median(found) <= most


def test_maxmin_radii_are_the_epsilons_of_every_smaller_fraction(beans):
    sampler = MaxMin(0.1, metric="chebyshev", random_state=0).fit(*beans)
    for fraction in (0.02, 0.1):
        found = epsilon_representativeness(*beans, indices=sampler.at(fraction))
        for radii, spread in zip(sampler.radii_, found.per_class.values(), strict=True):
            assert radii[spread.n_kept - 1] == pytest.approx(spread.epsilon, rel=1e-12)


@pytest.mark.slow
def test_centroids_cover_every_row_closely(beans):
    found = [epsilon(beans, ClusterCentroids(0.1, random_state=seed)).epsilon for seed in range(10)]
    assert median(found) <= 0.19


@pytest.mark.slow
def test_prototypes_cover_every_row_of_every_class(beans):
    found = [epsilon(beans, ProtoDash(0.1, random_state=seed)) for seed in range(3)]
    for label in found[0].per_class:
        assert median(spread.per_class[label].epsilon for spread in found) <= 0.25


@pytest.mark.parametrize("method", available().values(), ids=lambda method: method.name)
def test_no_class_is_lost(beans, method):
    values, labels = beans
    params = {"events": np.arange(len(values)) % 7} if method.abbreviation == "FES" else {}
    _, kept = method(0.001, random_state=0).fit_resample(
        values[:3000], labels[:3000], **{name: column[:3000] for name, column in params.items()}
    )
    assert len(set(kept)) == 7


def test_published_cut_of_the_matrix_decomposition_loses_two_classes(beans):
    values, labels = beans
    sampler = available()["matrix-decomposition"](0.1, stratify="global").fit(values, labels)
    lost = [label for label, count in sampler.sampling_strategy_.items() if count == 0]
    assert len(lost) == 2
    found = epsilon_representativeness(values, labels, indices=sampler.sample_indices_)
    assert found.epsilon == np.inf
    assert found.lost == lost
