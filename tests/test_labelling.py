"""Which kept samples are labelled first."""

import numpy as np
import pytest

from drip.errors import InputError
from drip.labelling import labelling_order
from drip.rules.parts.gaussians import project
from drip.testing import fake_observations
from drip.types import Observations


def observations(features, margins):
    logits = np.zeros((len(features), 3))
    logits[:, 0] = margins
    return Observations(
        np.zeros(len(features), np.int64), logits, {"drip": np.zeros(len(features))}, features=features
    )


def by_definition(given, rows):
    """The greedy choice written out, for one population."""
    odds = np.exp(given.logits)
    top = np.sort(odds / odds.sum(1, keepdims=True), axis=1)
    close = 1 - (top[:, -1] - top[:, -2])
    away = np.linalg.norm(rows[:, None] - rows, axis=2)
    cap = np.median(np.where(np.eye(len(rows), dtype=bool), np.inf, away).min(1))
    order = []
    while len(order) < len(rows):
        left = [row for row in range(len(rows)) if row not in order]
        order.append(max(left, key=lambda row: close[row] * min([cap, *away[row, order]])))
    return order


def test_the_order_is_the_greedy_choice_of_its_definition():
    given = fake_observations(40, 5, seed=3)
    expected = by_definition(given, project(given.features, 64))
    assert labelling_order(given, [1] * 40).tolist() == expected
    assert labelling_order(given, [1] * 40, 7).tolist() == expected[:7]


def test_populations_take_turns_the_newest_first():
    given = fake_observations(30, 5, seed=0)
    populations = np.array([1] * 20 + [2] * 7 + [3] * 3)
    order = labelling_order(given, populations.tolist())
    assert populations[order[:9]].tolist() == [3, 2, 1] * 3
    assert populations[order[9:17]].tolist() == [2, 1] * 4
    assert sorted(order.tolist()) == list(range(30))


def test_a_repeat_of_a_chosen_sample_waits_for_everything_else():
    features = np.random.default_rng(0).normal(size=(12, 8))
    features[6:] = features[:6]
    order = labelling_order(observations(features, np.linspace(0, 2, 12)), [1] * 12)
    assert sorted((order[:6] % 6).tolist()) == list(range(6))


def test_among_samples_that_are_all_alike_the_closest_call_comes_first():
    order = labelling_order(observations(np.ones((5, 8)), [3, 1, 2, 0, 4]), [1] * 5)
    assert order.tolist() == [3, 1, 2, 0, 4]


def test_what_cannot_be_ordered_is_refused():
    given = fake_observations(4, 3)
    with pytest.raises(InputError, match="one population for each of 4"):
        labelling_order(given, [1, 1])
    with pytest.raises(InputError, match="needs features"):
        labelling_order(Observations(given.classes, given.logits, given.named_scores), [1] * 4)
    assert labelling_order(given[:0], []).tolist() == []
