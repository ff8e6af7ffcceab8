"""Scores sorted by class, windows of all classes, and arguments that are refused."""

from dataclasses import replace
from math import inf
from statistics import pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drip.errors import InputError
from drip.windows import (
    check_count,
    check_fraction,
    check_method,
    check_scores,
    fit_window,
    fit_windows,
    pool,
    sort_by_class,
)

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(finite, st.integers(0, 3))))
def test_sorting_by_class_loses_nothing(pairs):
    scores = np.array([score for score, _ in pairs])
    classes = np.array([label for _, label in pairs], dtype=np.int64)
    parts = sort_by_class(scores, classes, 4)
    assert [part.tolist() for part in parts] == [
        sorted(score for score, label in pairs if label == wanted) for wanted in range(4)
    ]


@pytest.mark.parametrize("n_classes", [256, 257, 65_536, 65_537])
def test_sorting_by_class_works_for_many_classes(n_classes):
    classes = np.array([n_classes - 1, 0, 255, n_classes - 1, 1])
    parts = sort_by_class(np.array([3.0, 1.0, 5.0, 2.0, 7.0]), classes, n_classes)
    assert len(parts) == n_classes
    assert parts[0].tolist() == [1.0]
    assert parts[1].tolist() == [7.0]
    assert sorted(parts[n_classes - 1].tolist())[:2] == [2.0, 3.0]
    assert sum(map(len, parts)) == 5


def test_sorting_leaves_the_input_as_it_was():
    scores = np.array([3.0, 1.0, 2.0])
    sort_by_class(scores, np.zeros(3, dtype=np.int64), 2)
    assert scores.tolist() == [3.0, 1.0, 2.0]


def test_windows_of_all_classes_come_in_their_order():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 1, 100), rng.normal(50, 1, 100)])
    parts = sort_by_class(scores, np.repeat([2, 0], 100), 3)
    high, empty, low = fit_windows(parts, fraction=0.3)
    peaks = fit_windows(parts, fraction=0.3, method="histogram_peak")
    assert peaks[::2] == tuple(fit_window(part, 0.3, "histogram_peak") for part in parts[::2])
    assert peaks[1] == replace(fit_window(pool(parts), 0.3, "histogram_peak"), n=0, pooled=True)
    assert fit_windows(parts, fraction=0.3, method="histogram_peak")[0] != high
    assert high.lower > 40
    assert low.upper < 10
    assert empty == replace(fit_window(pool(parts), 0.3), n=0, pooled=True)
    assert fit_windows(parts, fraction=0.3, method="histogram_peak")[0].calibration_discard >= 0.3
    assert fit_windows(parts, fraction=0.3, min_class_count=101)[0].pooled


def brute_force(scores, fraction):
    """Ends of the run with the smallest standard deviation, with nothing from the package."""
    ordered = sorted(scores)
    size = max(2, int(fraction * len(ordered) + 0.5))
    runs = [ordered[start : start + size] for start in range(len(ordered) - size + 1)]
    best = min(runs, key=pstdev)
    return best[0], best[-1]


@given(
    sizes=st.lists(st.integers(0, 12), min_size=2, max_size=5).filter(lambda sizes: sum(sizes) >= 8),
    min_class_count=st.integers(0, 14),
    seed=st.integers(0, 10_000),
)
def test_a_small_class_has_the_window_of_all_scores_and_others_their_own(sizes, min_class_count, seed):
    parts = [
        np.sort(np.random.default_rng((seed, label)).normal(label, 1, n)) for label, n in enumerate(sizes)
    ]
    together = [score for part in parts for score in part.tolist()]
    for part, window in zip(
        parts, fit_windows(parts, fraction=0.5, min_class_count=min_class_count), strict=True
    ):
        small = len(part) < max(min_class_count, 2)
        chosen_from = together if small else part.tolist()
        assert window.n == len(part)
        if not window.discards:  # one score too many in a window of few counts as ties
            assert len(chosen_from) < 10
            assert not window.pooled
            continue
        assert window.pooled == small
        assert (window.lower, window.upper) == brute_force(chosen_from, 0.5)
        held = sum(window.lower <= score <= window.upper for score in chosen_from)
        assert window.calibration_discard == held / len(chosen_from)
        assert window.scale == pytest.approx(pstdev(chosen_from))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (
            [np.zeros(0), np.zeros(0)],
            "0, the minimum is 50; all classes together: too few calibration scores: 0",
        ),
        (
            [np.zeros(1), np.zeros(0)],
            "1, the minimum is 50; all classes together: too few calibration scores: 1",
        ),
        (
            [np.ones(9), np.ones(60)],
            "9, the minimum is 50; all classes together: ties: the window would hold",
        ),
    ],
)
def test_a_small_class_never_discards_where_all_scores_have_no_window(parts, reason):
    window = fit_windows(parts, fraction=0.4)[0]
    assert window.never_because.startswith(f"too few calibration scores: {reason}")
    assert (window.lower, window.upper, window.n) == (inf, -inf, len(parts[0]))
    assert not window.pooled


def test_ties_of_a_large_class_are_not_replaced_by_the_pooled_window():
    tied, own = fit_windows([np.ones(60), np.linspace(2.0, 9.0, 200)], fraction=0.4)
    assert tied.never_because.startswith("ties")
    assert own.discards


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan"), inf, True, "0.4", None])
def test_a_fraction_outside_the_open_unit_interval_is_refused(value):
    with pytest.raises(InputError, match=r"^share must be in \(0, 1\), got"):
        check_fraction("share", value)


@pytest.mark.parametrize("value", [5e-324, 0.4, 1 - 2**-53])
def test_a_fraction_inside_the_open_unit_interval_is_taken(value):
    check_fraction("share", value)


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", None])
def test_a_count_that_is_not_a_natural_number_is_refused(value):
    with pytest.raises(InputError, match=r"^n must be an integer of at least 0, got"):
        check_count("n", value)
    check_count("n", 0)
    check_count("n", 7)


@pytest.mark.parametrize("value", ["median", None, ["min_std"]])
def test_an_unknown_method_is_refused(value):
    with pytest.raises(InputError, match=r"^method must be one of min_std, histogram_peak, got"):
        check_method(value)


@pytest.mark.parametrize(
    "arguments",
    [{"fraction": 1.5}, {"fraction": 0.4, "method": "x"}, {"fraction": 0.4, "min_class_count": -1}],
)
def test_windows_refuse_arguments_outside_their_range(arguments):
    with pytest.raises(InputError, match=r"^(fraction|method|min_class_count) must be "):
        fit_windows([np.arange(30.0)], **arguments)


@pytest.mark.parametrize(
    ("scores", "classes", "n_classes", "message"),
    [
        ([1.0], [0], 1, r"^n_classes must be at least 2, got 1; a one-class model has nothing to contrast$"),
        ([1.0, 2.0], [0], 2, r"^scores and classes must be .* got shapes \(2,\) and \(1,\)$"),
        ([[1.0]], [[0]], 2, r"got shapes \(1, 1\) and \(1, 1\)$"),
        ([1.0], [0.0], 2, r"^classes must be integers, got dtype float64; pass predicted class indices$"),
        ([1.0, float("nan")], [0, 0], 2, r"^scores must be finite, got .*nan.* in row 1; quarantine"),
        ([1.0, 2.0, -inf], [0, 0, 0], 2, r"in row 2; quarantine that sample$"),
        ([1.0], [2], 2, r"^classes must be in \[0, 2\), got 2 to 2$"),
        ([1.0, 1.0], [-1, 1], 2, r"got -1 to 1$"),
    ],
)
def test_scores_and_classes_that_do_not_fit_are_refused(scores, classes, n_classes, message):
    with pytest.raises(InputError, match=message):
        check_scores(np.array(scores), np.array(classes), n_classes)


def test_checked_scores_are_float64_and_classes_int64():
    values, labels = check_scores(np.float32([0.5, 1.5]), np.uint8([1, 0]), 2)
    assert (values.dtype, labels.dtype) == (np.float64, np.int64)
    assert values.tolist() == [0.5, 1.5]
    assert labels.tolist() == [1, 0]
    assert [len(column) for column in check_scores([], [], 2)] == [0, 0]
