"""Which kept samples are labelled first."""

import numpy as np
import pytest

from drip.errors import InputError
from drip.labelling import labelling_order
from drip.testing import fake_observations
from drip.types import Observations


def observations(features):
    n = len(features)
    return Observations(
        np.zeros(n, np.int64), np.zeros((n, 3)), {"drip": np.zeros(n)}, features=np.asarray(features)
    )


def test_every_choice_is_the_best_one_for_the_sum_of_nearest_similarities():
    features = np.random.default_rng(3).normal(size=(40, 6))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit @ unit.T
    order = labelling_order(observations(features), [1] * 40).tolist()
    assert sorted(order) == list(range(40))
    for k in range(40):
        # Two samples that are each other's nearest gain the same, so the sums are compared and not the rows.
        sums = [similarity[[*order[:k], row]].max(0).sum() for row in range(40)]
        assert sums[order[k]] == pytest.approx(max(sums), abs=1e-5)
    assert labelling_order(observations(features), [1] * 40, 7).tolist() == order[:7]


def test_a_new_population_has_two_turns_the_newest_first():
    given = fake_observations(30, 5, seed=0)
    populations = np.array([1] * 20 + [2] * 7 + [3] * 3)
    order = labelling_order(given, populations.tolist())
    assert populations[order[:10]].tolist() == [3, 3, 2, 2, 1, 3, 2, 2, 1, 2]
    assert sorted(order.tolist()) == list(range(30))


def test_every_group_of_similar_samples_comes_before_the_second_of_one():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), [40, 30, 20, 10])
    features = np.eye(4)[groups] + 0.05 * rng.normal(size=(100, 4))
    assert sorted(groups[labelling_order(observations(features), [1] * 100, 4)]) == [0, 1, 2, 3]


def test_a_repeat_of_a_chosen_sample_waits_for_everything_else():
    features = np.random.default_rng(0).normal(size=(12, 8))
    features[6:] = features[:6]
    order = labelling_order(observations(features), [1] * 12)
    assert sorted((order[:6] % 6).tolist()) == list(range(6))


def test_among_samples_that_are_all_alike_the_first_comes_first():
    for features in (np.ones((5, 8)), np.zeros((5, 8))):
        assert labelling_order(observations(features), [1] * 5).tolist() == [0, 1, 2, 3, 4]


def test_a_large_population_is_covered_by_a_part_of_it():
    rng = np.random.default_rng(1)
    groups = rng.integers(6, size=5_000)
    features = np.eye(6)[groups] + 0.02 * rng.normal(size=(5_000, 6))
    order = labelling_order(observations(features), [1] * 5_000, 60)
    assert len(set(order.tolist())) == 60
    assert sorted(groups[order[:6]]) == list(range(6))


def test_what_cannot_be_ordered_is_refused():
    given = fake_observations(4, 3)
    with pytest.raises(InputError, match="one population for each of 4"):
        labelling_order(given, [1, 1])
    with pytest.raises(InputError, match="needs features"):
        labelling_order(Observations(given.classes, given.logits, given.named_scores), [1] * 4)
    assert labelling_order(given[:0], []).tolist() == []
