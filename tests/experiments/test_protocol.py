"""The split, its guard, selection at equal counts, the metrics."""

import numpy as np
import pytest
from support import require_data

from drip.datasets import load
from drip.errors import InputError
from experiments.protocol import Split, at_count, evaluate, ranked


def parts(split):
    return {"d1": split.d1, "d2": split.d2_for_calibration, "d3": split.d3}


def test_data_set_2_is_read_while_scoring_only():
    split = Split(np.zeros(100, np.int64), seed=0)
    with pytest.raises(InputError, match="data set 2 is for scoring only"):
        _ = split.d2
    with split.scoring():
        assert len(split.d2) == 20
    with pytest.raises(InputError, match="for scoring only"):
        _ = split.d2

    def fails():
        with split.scoring():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    with pytest.raises(InputError, match="for scoring only"):
        _ = split.d2


@pytest.mark.parametrize("n_rows", [100, 5773, 12_000])
def test_every_row_lies_in_one_of_40_20_and_40_percent(n_rows):
    split = Split(np.zeros(n_rows, np.int64), seed=5)
    assert sorted(np.concatenate(list(parts(split).values()))) == list(range(n_rows))
    for rows, share in zip(parts(split).values(), (0.4, 0.2, 0.4), strict=True):
        assert abs(len(rows) - share * n_rows) <= 1


def test_d1c_is_a_fifth_of_data_set_1_that_does_not_train():
    split = Split(np.zeros(1000, np.int64), seed=2)
    assert sorted(np.concatenate([split.d1_fit, split.d1c])) == sorted(split.d1)
    assert len(split.d1c) == 80


def test_runs_have_splits_of_their_own_that_repeat():
    labels = np.zeros(1000, np.int64)
    first, again, other = Split(labels, 0), Split(labels, 0), Split(labels, 1)
    np.testing.assert_array_equal(first.d3, again.d3)
    np.testing.assert_array_equal(first.d1c, again.d1c)
    shared = len(set(first.d3.tolist()) & set(other.d3.tolist()))
    assert abs(shared - 160) < 5 * np.sqrt(1000 * 0.16 * 0.84)


def test_no_part_prefers_a_stretch_of_the_data_over_many_runs():
    """The split of data set 1 draws with the same seed as the split before: that must not show."""
    places = {name: np.zeros(10) for name in ("d1_fit", "d1c", "d3")}
    for seed in range(300):
        split = Split(np.zeros(2000, np.int64), seed)
        for name in places:
            places[name] += np.bincount(getattr(split, name) // 200, minlength=10)
    for counts in places.values():
        expected = counts.sum() / 10
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [("tomato", "plantvillage_tomato10_128.zip"), ("speech_commands", "speech_commands_9words.zip")],
)
def test_no_leaf_and_no_speaker_lies_on_both_sides(name, file):
    require_data(file)
    data = load(name)
    assert data.groups is not None
    assert 100 < len(np.unique(data.groups)) < len(data)
    for seed in range(20):
        split = Split(data.labels, seed, data.groups)
        sides = [split.d1_fit, split.d1c, split.d2_for_calibration, split.d3]
        assert sorted(np.concatenate(sides)) == list(range(len(data)))
        seen = [set(data.groups[rows].tolist()) for rows in sides]
        assert sum(map(len, seen)) == len(set.union(*seen))
        shares = [len(rows) / len(data) for rows in parts(split).values()]
        np.testing.assert_allclose(shares, (0.4, 0.2, 0.4), atol=0.02)
        assert len(split.d1c) / len(split.d1) == pytest.approx(0.2, abs=0.04)


@pytest.mark.slow
def test_every_class_of_leaves_is_in_every_part():
    require_data("plantvillage_tomato10_128.zip")
    data = load("tomato")
    for seed in range(20):
        split = Split(data.labels, seed, data.groups)
        for rows in (split.d1_fit, split.d1c, split.d2_for_calibration, split.d3):
            assert np.bincount(data.labels[rows], minlength=10).min() > 0


@pytest.mark.parametrize("count", [0, 1, 30, 31, 70, 100])
def test_the_count_is_exact_and_the_rules_own_choice_comes_first(count):
    retain = np.random.default_rng(0).permutation(np.arange(100) < 31)
    chosen = at_count(retain, count, np.random.default_rng(1))
    assert chosen.native == 31
    assert len(chosen.kept) == len(set(chosen.kept.tolist())) == count
    assert (np.diff(chosen.kept) > 0).all()
    own = set(np.flatnonzero(retain).tolist())
    if count <= 31:
        assert set(chosen.kept.tolist()) <= own
    else:
        assert own <= set(chosen.kept.tolist())
    again = at_count(retain, count, np.random.default_rng(1))
    np.testing.assert_array_equal(chosen.kept, again.kept)


def test_what_is_dropped_or_filled_in_is_drawn_uniformly():
    retain = np.arange(40) % 4 == 0  # 10 of 40
    filled, dropped = np.zeros(40), np.zeros(40)
    for seed in range(2000):
        filled[at_count(retain, 25, np.random.default_rng(seed)).kept] += 1
        dropped[at_count(retain, 5, np.random.default_rng(seed)).kept] += 1
    assert (filled[retain] == 2000).all()
    assert np.abs(filled[~retain] - 1000).max() < 5 * np.sqrt(500)
    assert (dropped[~retain] == 0).all()
    assert np.abs(dropped[retain] - 1000).max() < 5 * np.sqrt(500)


def test_ranking_takes_the_highest_and_draws_among_equals():
    priority = np.array([0.5, 0.9, 0.1, 0.5, 0.5, 0.95])
    taken = np.zeros(6)
    for seed in range(900):
        kept = ranked(priority, 3, np.random.default_rng(seed))
        assert len(set(kept.tolist())) == 3
        assert (np.diff(kept) > 0).all()
        taken[kept] += 1
    assert taken[[1, 5]].tolist() == [900, 900]
    assert taken[2] == 0
    assert np.abs(taken[[0, 3, 4]] - 300).max() < 5 * np.sqrt(200)


def test_metrics_of_a_case_worked_out_by_hand():
    # Truth 0, 0, 0, 1, 1, 2; said 0, 0, 1, 1, 0, 2: hits 2, 1, 1.
    # F1: 2*2/(3+3), 2*1/(2+2), 2*1/(1+1); all at confidence p = 1 / (1 + 3 / e**2) in one bin.
    said = np.array([0, 0, 1, 1, 0, 2])
    logits = 2.0 * np.eye(4)[said] - 100
    found = evaluate(logits, np.array([0, 0, 0, 1, 1, 2]), 4)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)  # class 3 is absent
    assert found["worst_class_accuracy"] == pytest.approx(1 / 2)
    assert found["ece"] == pytest.approx(abs(4 / 6 - 1 / (1 + 3 * np.exp(-2))))
    assert found["n_test"] == 6


def test_the_calibration_error_weighs_bins_by_their_rows():
    # Two classes; three rows at confidence 0.9 (one right), one at 0.6 (right).
    odds = np.log([9.0, 9.0, 9.0, 1.5])
    logits = np.stack([odds, np.zeros(4)], axis=1)
    found = evaluate(logits, np.array([0, 1, 1, 0]), 2)
    assert found["ece"] == pytest.approx((3 * abs(1 / 3 - 0.9) + abs(1 - 0.6)) / 4)


def test_a_sure_and_right_model_has_no_calibration_error():
    found = evaluate(1e4 * np.eye(3), np.arange(3), 3)
    assert (found["accuracy"], found["macro_f1"], found["ece"]) == (1.0, 1.0, 0.0)
