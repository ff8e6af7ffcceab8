from __future__ import annotations

from dataclasses import replace
from math import isnan, nan, sqrt

import numpy as np
import pytest

from drip.errors import InputError
from drip.policy import Policy, RuleSpec
from drip.report import Arm, compare, findings, standard_error, verdict


def said(report):
    return " ".join(findings(report))


def test_the_paired_error_counts_only_the_samples_on_which_two_arms_differ():
    first = np.array([1, 1, 1, 1, 0, 0, 1, 1, 1, 1], dtype=np.bool_)
    second = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1], dtype=np.bool_)
    pair = compare(Arm("a", 0.8, 0, 0, 0, correct=first), Arm("b", 0.6, 0, 0, 0, correct=second), 10)
    assert (pair.only_first, pair.only_second) == (3, 1)
    assert pair.difference == pytest.approx(0.2)
    differences = first.astype(float) - second.astype(float)
    assert pair.standard_error == pytest.approx(differences.std() / sqrt(10))


def test_without_vectors_the_two_binomial_errors_add_in_quadrature():
    pair = compare(Arm("a", 0.9, 0, 0, 0), Arm("b", 0.8, 0, 0, 0), 100)
    assert pair.standard_error == pytest.approx(sqrt(0.9 * 0.1 / 100 + 0.8 * 0.2 / 100))
    assert pair.only_first is None


@pytest.mark.parametrize(("accuracy", "n_test"), [(nan, 10), (0.5, 0)])
def test_an_accuracy_that_was_not_measured_has_no_error(accuracy, n_test):
    assert isnan(standard_error(accuracy, n_test))


def test_a_difference_within_two_errors_is_called_no_better_than_random(make_report):
    # Two samples differ, both for DRIP: 0.20 points with 2 * sqrt(2 - 4/1000) / 1000 = 0.28 points.
    report = make_report()
    assert verdict(report).outcome == "no-gain"
    first = findings(report)[0]
    assert first.startswith("DRIP is no better than random in this run.")
    assert "95.00 %" in first
    assert "94.80 %" in first
    assert "+0.20 points" in first
    assert "0.28 points" in first
    assert "120 samples kept by each" in first


def test_equal_accuracies_are_called_no_better_and_equal(make_report):
    report = make_report(arms=[make_report.arm("drip", 950, 120), make_report.arm("random", 950, 120)])
    assert verdict(report).headline == "DRIP is no better than random in this run"
    assert verdict(report).sentence.endswith("They are equal.")


def test_a_difference_beyond_two_errors_is_called_better_with_the_warning_of_one_run(make_report):
    # Twenty samples differ: 2.00 points with 2 * sqrt(20 - 400/1000) / 1000 = 0.89 points.
    report = make_report(arms=[make_report.arm("drip", 950, 120), make_report.arm("random", 930, 120)])
    assert verdict(report).outcome == "better"
    assert "more than chance explains" in verdict(report).sentence
    assert "0.89 points" in verdict(report).sentence
    assert "one run with one seed" in verdict(report).sentence


def test_worse_than_random_is_said_so(make_report):
    report = make_report(arms=[make_report.arm("drip", 930, 120), make_report.arm("random", 950, 120)])
    assert findings(report)[0].startswith("DRIP is worse than random in this run.")
    assert "\u22122.00 points" in findings(report)[0]


def test_a_large_difference_in_many_disagreements_can_still_be_chance(make_report):
    arms = [make_report.arm("drip", 900, 120), make_report.arm("random", 895, 120, wrong_first=100)]
    report = make_report(arms=arms)
    # 100 right only in DRIP, 95 only in random: 0.5 points with two errors of 2.79 points.
    assert verdict(report).outcome == "no-gain"
    assert "2.79 points" in verdict(report).sentence


def test_unequal_counts_are_named_as_an_unequal_comparison(make_report):
    report = make_report(arms=[make_report.arm("drip", 950, 120), make_report.arm("random", 930, 100)])
    assert "DRIP kept 120 samples and random 100" in verdict(report).sentence
    assert "not equal" in verdict(report).sentence


@pytest.mark.parametrize("missing", ["drip", "random"])
def test_without_either_arm_the_worth_of_the_choice_is_unknown(make_report, missing):
    report = make_report(arms=[arm for arm in make_report().arms if arm.name != missing])
    assert verdict(report).outcome == "unknown"
    assert findings(report)


def test_an_accuracy_that_was_not_measured_is_not_compared(make_report):
    arms = [Arm("drip", nan, 420, 120, 1200), Arm("random", 0.9, 420, 120, 1200), Arm("margin", nan, 1, 1, 1)]
    report = make_report(arms=arms)
    assert verdict(report).outcome == "unknown"
    assert "nan" not in said(report)


def test_what_everything_kept_gains_is_said_with_what_drip_gains(make_report):
    text = said(make_report())
    assert "Keeping everything gains 6.00 points over keeping nothing." in text
    assert "Keeping DRIP's 60.0 % gains 5.00 points over keeping nothing." in text
    assert "Against keeping everything DRIP is 1.00 points behind, more than chance explains." in text
    assert "Against the smallest margin at the same count DRIP is 0.10 points behind, no more than" in text


def test_a_stream_that_cannot_help_any_rule_is_said_so(make_report):
    arms = [make_report.arm("baseline", 950, 0), make_report.arm("all-data", 951, 200)]
    assert "leaves little room for any rule" in said(make_report(arms=arms))


def test_a_loss_against_nothing_kept_is_called_a_loss(make_report):
    arms = [make_report.arm("baseline", 950, 0), make_report.arm("drip", 900, 120)]
    assert "Keeping DRIP's 60.0 % loses 5.00 points over keeping nothing." in said(make_report(arms=arms))


def test_errors_kept_in_proportion_are_not_praised(make_report):
    text = said(make_report())
    assert (
        "Of the 100 samples that the deployed model got wrong, DRIP kept 58.0 %, random kept 61.0 %" in text
    )
    assert "the smallest margin kept 95.0 %" in text
    assert "does not single out the errors" in text


@pytest.mark.parametrize(("share", "word"), [(0.8, "more often"), (0.4, "less often")])
def test_errors_kept_out_of_proportion_are_named(make_report, share, word):
    report = make_report(arms=[make_report.arm("drip", 950, 120, errors=share)])
    assert f"DRIP keeps errors {word} than samples in general (60.0 %)" in said(report)


def test_a_model_without_errors_in_the_stream_is_said_so(make_report):
    assert "made no error" in said(make_report(n_errors=0))


def test_the_retention_is_compared_with_what_was_asked_for(make_report):
    text = said(make_report())
    assert (
        "Asked to discard 40.0 % of every class (DPW), the policy discarded 40.0 % of 200 samples, as" in text
    )
    text = said(make_report(class_counts_kept=np.array([60, 50, 30])))
    assert "discarded 30.0 % of 200 samples, less than asked" in text
    assert "The DRIP arm was trained with 120 of them; the policy itself kept 140." in text


def test_nothing_retained_is_said_so(make_report):
    text = said(make_report(class_counts_kept=np.array([0, 0, 0])))
    assert "discarded 100.0 % of 200 samples, more than asked" in text
    assert "Nothing at all was kept." in text


def test_an_empty_stream_is_said_so(make_report):
    none = np.zeros(3, dtype=np.int64)
    report = make_report(
        arms=[make_report.arm("drip", 950, 0)], n_seen=0, bytes_seen=0, class_counts_seen=none,
        class_counts_kept=none,
    )  # fmt: skip
    assert "The production stream was empty" in said(report)
    assert "nan" not in said(report)


def test_classes_that_never_discard_are_listed_with_the_reason(make_report):
    text = said(make_report())
    assert "2 of 3 classes never discard: dog (too few: 7 calibration scores, at least 20 are needed)" in text
    assert "and <emu> (too few: 0 calibration scores" in text


def test_many_classes_that_never_discard_are_summed_up(make_report):
    policy = Policy.fit(np.zeros(0), np.zeros(0, dtype=np.int64), n_classes=9, retention=0.7)
    counts = np.full(9, 1)
    report = make_report(policy=policy, class_counts_seen=counts, class_counts_kept=counts)
    assert "9 of 9 classes never discard" in said(report)
    assert "and 3 more." in said(report)


def test_a_class_far_from_its_calibration_is_named(make_report):
    assert "Class cat departs most from its calibration" in said(make_report())
    expected = make_report().policy.windows[0].expected_discard
    kept = np.array([round(120 * (1 - expected)), 50, 30])
    assert "departs most" not in said(make_report(class_counts_kept=kept))


def test_bytes_and_times_are_told(make_report):
    text = said(make_report(decision_includes="network and decision"))
    assert "DRIP stored 1.20 kB of 2.00 kB, which saves 40.0 %" in text
    assert "0.600 ms in the median, 95 % took at most 1.58 ms (network and decision)" in text
    assert "in the median" not in said(make_report(decision_ms=np.array([])))


def test_a_rule_without_windows_has_no_sentences_about_windows(make_report):
    report = make_report(policy=Policy(RuleSpec("margin", {}, {"threshold": 0.5}), 3))
    text = said(report)
    assert "The policy discarded 40.0 % of 200 samples." in text
    assert "never discard" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_test": 999}, "correct must have shape"),
        ({"n_seen": 100}, "n_kept must be in"),
        ({"class_counts_seen": np.array([1, 2])}, "class_counts_seen must have shape"),
        ({"class_counts_seen": np.array([1, 1, 1])}, "must not exceed"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(make_report, changes, message):
    with pytest.raises(InputError, match=message):
        make_report(**changes)


def test_two_arms_of_one_name_are_refused(make_report):
    with pytest.raises(InputError, match="different names"):
        make_report(arms=[make_report.arm("drip", 900, 10), make_report.arm("drip", 901, 10)])


def test_an_accuracy_that_its_own_vector_contradicts_is_refused(make_report):
    with pytest.raises(InputError, match="mean of correct"):
        make_report(arms=[replace(make_report.arm("drip", 900, 10), accuracy=0.95)])
