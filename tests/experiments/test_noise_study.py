"""Wrong labels and noisy inputs: who is touched, and what a filter sees of it."""

import numpy as np
import pytest
from made_up import made_up_regime

from experiments import noise
from experiments.arms import rules
from experiments.cells import Unit
from experiments.noise import FRACTIONS, NoisyWorkspace

UNIT = Unit("noise", "head", "mnist", 0)


@pytest.fixture(scope="module")
def bench():
    return NoisyWorkspace(UNIT, made_up_regime(2000, 5, ("clean", "noise")))


@pytest.mark.parametrize("kind", noise.KINDS)
def test_a_larger_fraction_touches_what_a_smaller_one_touches(bench, kind):
    before = set()
    for fraction in FRACTIONS:
        touched = bench.touched(kind, fraction).tolist()
        assert len(set(touched)) == len(touched) == round(fraction * len(bench.split.d3))
        assert before <= set(touched)
        before = set(touched)


def test_wrong_labels_are_another_class_each_equally_often_and_stay_wrong_the_same_way(bench):
    true = bench.regime.labels[bench.split.d3]
    before = true
    for fraction in FRACTIONS:
        given = bench.labels("label", fraction)
        changed = np.flatnonzero(given != true)
        assert sorted(changed) == sorted(bench.touched("label", fraction))
        held = np.flatnonzero(before != true)
        np.testing.assert_array_equal(given[held], before[held])
        before = given
    steps = np.bincount((before - true) % 5, minlength=5)[1:]
    assert np.abs(steps - steps.mean()).max() < 5 * np.sqrt(steps.mean())
    np.testing.assert_array_equal(bench.rows("label", 0.9), bench.split.d3)


def test_noisy_inputs_are_other_views_of_the_same_rows_with_their_true_labels(bench):
    rows = bench.rows("input", 0.4)
    n_rows = bench.regime.bank.n_rows
    np.testing.assert_array_equal(rows % n_rows, bench.split.d3)
    assert sorted(np.flatnonzero(rows >= n_rows)) == sorted(bench.touched("input", 0.4))
    np.testing.assert_array_equal(bench.labels("input", 0.4), bench.regime.labels[bench.split.d3])


@pytest.mark.parametrize("arm", ["drip", "margin", "random"])
def test_wrong_labels_do_not_move_a_filter(bench, arm):
    decided = [bench.spoilt_decided(rules()[arm], 0.6, "label", fraction) for fraction in FRACTIONS]
    for one in decided:
        np.testing.assert_array_equal(one.decisions.retain, decided[0].decisions.retain)


def test_the_filter_sees_noisy_inputs_where_they_are_and_the_clean_ones_as_before(bench):
    clean, spoilt = bench.spoilt_stream("input", 0.0), bench.spoilt_stream("input", 0.5)
    same = (clean.logits == spoilt.logits).all(1)
    assert sorted(np.flatnonzero(~same)) == sorted(bench.touched("input", 0.5))


def test_equal_counts_whatever_the_arm_and_training_rows_add_up():
    bench = NoisyWorkspace(UNIT, made_up_regime(2000, 5, ("clean", "noise"), epochs=1))
    counts = {}
    for cell in noise.cells(UNIT):
        if cell.get("fraction") not in (0.0, 0.5):
            continue
        metrics = noise.run(cell, bench).metrics
        if cell.arm == "all":
            assert metrics["n_train"] == len(bench.split.d1) + len(bench.split.d3)
            continue
        assert metrics["n_train"] == len(bench.split.d1) + metrics["n_kept"]
        counts.setdefault((cell.get("kind"), cell.get("fraction")), set()).add(metrics["n_kept"])
        if cell.get("fraction") == 0:
            assert metrics["spoilt_kept"] == 0
    assert all(len(found) == 1 for found in counts.values())
    assert counts["label", 0.0] == counts["label", 0.5] == counts["input", 0.0]
