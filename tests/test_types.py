"""Rows and columns are two views of the same observations and decisions."""

from dataclasses import replace

import numpy as np
import pytest

from drip.errors import InputError
from drip.testing import fake_observations
from drip.types import Decision, Decisions, Observation, Observations


def assert_same(got, expected):
    assert got.primary == expected.primary
    assert got.classes.tolist() == expected.classes.tolist()
    np.testing.assert_array_equal(got.logits, expected.logits)
    assert set(got.named_scores) == set(expected.named_scores)
    for name, column in expected.named_scores.items():
        np.testing.assert_array_equal(got.named_scores[name], column)
    for name in ("features", "time_s", "n_bytes"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    assert got.content_hashes == expected.content_hashes


def bare(observations):
    return replace(observations, features=None, time_s=None, n_bytes=None, content_hashes=())


def test_a_row_has_the_values_of_its_columns():
    columns = fake_observations(5, 3)
    row = columns[3]
    assert row.predicted_class == columns.classes[3]
    assert type(row.predicted_class) is int
    assert row.logits.tolist() == columns.logits[3].tolist()
    assert row.scores == {name: column[3] for name, column in columns.named_scores.items()}
    assert row.features.tolist() == columns.features[3].tolist()
    assert (row.time_s, row.n_bytes) == (columns.time_s[3], columns.n_bytes[3])
    assert row.content_hash == columns.content_hashes[3]
    assert columns[np.int64(3)].content_hash == row.content_hash
    assert columns[-1].content_hash == columns.content_hashes[4]


def test_a_row_of_bare_columns_has_the_defaults():
    row = bare(fake_observations(5, 3))[2]
    assert (row.features, row.time_s, row.n_bytes, row.content_hash) == (None, None, 0, "")


def test_an_unknown_time_is_none():
    columns = replace(fake_observations(2, 3), time_s=np.array([np.nan, 7.0]))
    assert [row.time_s for row in columns] == [None, 7.0]


def test_columns_of_their_rows_are_the_same():
    columns = fake_observations(7, 4)
    assert_same(Observations.of(*columns), replace(columns, primary=next(iter(columns.named_scores))))
    row = Observation(1, np.array([0.0, 1.0]), {"x": 2.0})
    single = Observations.of(row)
    assert (single.primary, single.scores.tolist(), single.features) == ("x", [2.0], None)
    assert np.isnan(single.time_s[0])
    assert single.content_hashes == ("",)
    assert Observations.of(replace(row, scores={})).primary == "drip"


def test_columns_of_nothing_and_of_unequal_rows_are_refused():
    row = fake_observations(1, 3)[0]
    with pytest.raises(InputError, match="no observation"):
        Observations.of()
    with pytest.raises(InputError, match="1 of 2 observations have features"):
        Observations.of(row, replace(row, features=None))


@pytest.mark.parametrize("columns", [fake_observations(9, 3), bare(fake_observations(9, 3))])
@pytest.mark.parametrize(
    "rows", [slice(2, 7, 2), np.array([4, 0, 4]), np.arange(9) % 3 == 0, slice(0, 0), np.array([-1, -9])]
)
def test_a_subset_has_the_rows_in_order(columns, rows):
    subset = columns[rows]
    chosen = np.arange(9)[rows].tolist()
    assert len(subset) == len(chosen)
    for got, index in zip(subset, chosen, strict=True):
        assert got.content_hash == columns[index].content_hash
        assert got.scores == columns[index].scores
        assert got.logits.tolist() == columns[index].logits.tolist()
        assert (got.time_s, got.n_bytes) == (columns[index].time_s, columns[index].n_bytes)


@pytest.mark.parametrize("columns", [fake_observations(9, 3), bare(fake_observations(9, 3))])
def test_the_parts_make_the_whole_again(columns):
    assert_same(Observations.concatenate([columns[:2], columns[2:2], columns[2:]]), columns)


def test_the_primary_column_is_the_named_one():
    columns = replace(fake_observations(4, 3), primary="contrast")
    assert columns.scores is columns.named_scores["contrast"]


@pytest.mark.parametrize("probability", [None, np.array([1.0, 0.25, 0.0])])
def test_decisions_are_rows_and_slices(probability):
    columns = Decisions(
        np.array([True, True, False]), np.array([3.0, 2.0, 1.0]), probability, ["a", "b", "c"]
    )
    expected = None if probability is None else 0.25
    assert columns[1] == Decision(retain=True, priority=2.0, keep_probability=expected, reason="b")
    assert type(columns[1].retain) is bool
    assert list(columns[1:]) == list(columns)[1:]
    assert len(columns[1:]) == 2
