from __future__ import annotations

import re
from dataclasses import replace
from math import isnan, nan, sqrt

import numpy as np
import pytest

from drip.errors import InputError
from drip.policy import Policy, RuleSpec
from drip.report import Arm, compare, findings, standard_error, to_html, verdict


def said(report):
    return " ".join(findings(report))


def test_the_paired_error_counts_only_the_samples_on_which_two_arms_differ():
    first = np.array([1, 1, 1, 1, 0, 0, 1, 1, 1, 1], dtype=np.bool_)
    second = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1], dtype=np.bool_)
    found = compare(Arm("a", 0.8, 0, 0, 0, correct=first), Arm("b", 0.6, 0, 0, 0, correct=second), 10)
    assert found.paired
    assert found.value == pytest.approx(0.2)
    differences = first.astype(float) - second.astype(float)
    assert found.standard_error == pytest.approx(differences.std() / sqrt(10))
    assert found.plus_minus == pytest.approx(2.576 * found.standard_error)


def test_without_vectors_the_two_binomial_variances_add():
    found = compare(Arm("a", 0.9, 0, 0, 0), Arm("b", 0.8, 0, 0, 0), 100)
    assert found.standard_error == pytest.approx(sqrt(0.9 * 0.1 / 100 + 0.8 * 0.2 / 100))
    assert not found.paired


@pytest.mark.parametrize(("accuracy", "n_test"), [(nan, 10), (0.5, 0)])
def test_an_unknown_accuracy_has_no_error(accuracy, n_test):
    assert isnan(standard_error(accuracy, n_test))


def test_an_interval_that_includes_zero_is_inconclusive(make_report):
    # Two samples differ, both in favour of DRIP: 0.20 points, 2.576 * sqrt(2 - 4/1000) / 1000 = 0.36 points.
    report = make_report()
    assert verdict(report).outcome == "inconclusive"
    first = findings(report)[0]
    assert first.startswith("DRIP against random selection: inconclusive in this run.")
    assert "95.00 %" in first
    assert "94.80 %" in first
    assert "+0.20 \u00b1 0.36 points (99 % confidence interval)" in first
    assert "With 120 kept samples each" in first


def test_equal_accuracies_are_inconclusive_and_not_called_equal(make_report):
    report = make_report(arms=[make_report.arm("drip", 950, 120), make_report.arm("random", 950, 120)])
    assert verdict(report).outcome == "inconclusive"
    assert "equal" not in said(report)


def masked(text):
    """The text without its numbers and their signs."""
    return re.sub(r"[+\u2212]?\d[\d.,]*", "#", text)


def test_words_do_not_depend_on_which_arm_is_ahead_by_chance(make_report):
    """Two machines train slightly different models: their reports may differ in numbers only."""
    pages = set()
    for n_right in [
        (950, 950, 950, 950, 950),
        (950, 951, 952, 951, 953),
        (953, 951, 950, 952, 949),
        (949, 953, 951, 951, 951),
    ]:
        names = ("baseline", "all-data", "drip", "random", "margin")
        arms = [
            make_report.arm(name, right, 0 if name == "baseline" else 120, errors=0.6 + 0.01 * (right - 950))
            for name, right in zip(names, n_right, strict=True)
        ]
        report = make_report(arms=arms)
        pages.add((masked(said(report)), masked(to_html(report).split("<h2>Arms</h2>")[0])))
    assert len(pages) == 1
    assert not re.search(r"\b(ahead|behind|better than|worse than|equal|gains|loses)\b", said(report))


def test_an_interval_that_excludes_zero_is_called_better_with_the_warning_of_one_run(make_report):
    # Twenty samples differ: 2.00 points, 2.576 * sqrt(20 - 400/1000) / 1000 = 1.14 points.
    report = make_report(arms=[make_report.arm("drip", 950, 120), make_report.arm("random", 930, 120)])
    assert verdict(report).outcome == "better"
    assert verdict(report).headline == "DRIP is better than random selection in this run"
    assert "+2.00 \u00b1 1.14 points (99 % confidence interval), which excludes zero" in said(report)
    assert "repeat the run with other seeds" in verdict(report).sentence


def test_worse_than_random_is_reported_in_the_same_words(make_report):
    better = make_report(arms=[make_report.arm("drip", 950, 120), make_report.arm("random", 930, 120)])
    worse = make_report(arms=[make_report.arm("drip", 930, 120), make_report.arm("random", 950, 120)])
    assert findings(worse)[0].startswith("DRIP is worse than random selection in this run.")
    assert "\u22122.00 \u00b1 1.14 points" in findings(worse)[0]
    assert masked(verdict(worse).sentence) == masked(verdict(better).sentence)


def test_a_large_difference_in_many_disagreements_can_still_be_chance(make_report):
    arms = [make_report.arm("drip", 900, 120), make_report.arm("random", 895, 120, wrong_first=100)]
    report = make_report(arms=arms)
    # 100 right only in DRIP, 95 only in random: 0.5 points, 2.576 standard errors are 3.60 points.
    assert verdict(report).outcome == "inconclusive"
    assert "+0.50 \u00b1 3.60 points" in verdict(report).sentence


def test_unequal_counts_are_named_as_an_unequal_comparison(make_report):
    report = make_report(arms=[make_report.arm("drip", 950, 120), make_report.arm("random", 930, 100)])
    assert "120 samples kept by DRIP but 100 by random selection" in verdict(report).sentence
    assert "unequal" in verdict(report).sentence


@pytest.mark.parametrize("missing", ["drip", "random"])
def test_without_either_arm_the_outcome_is_unknown(make_report, missing):
    report = make_report(arms=[arm for arm in make_report().arms if arm.name != missing])
    assert verdict(report).outcome == "unknown"
    assert findings(report)


def test_an_unknown_accuracy_is_not_compared(make_report):
    arms = [Arm("drip", nan, 420, 120, 1200), Arm("random", 0.9, 420, 120, 1200), Arm("margin", nan, 1, 1, 1)]
    report = make_report(arms=arms)
    assert verdict(report).outcome == "unknown"
    assert "nan" not in said(report)


def test_gains_over_keeping_nothing_are_reported(make_report):
    text = said(make_report())
    assert (
        "Keeping everything instead of nothing changes the accuracy by +6.00 \u00b1 1.93 points (better)."
        in text
    )
    assert "Keeping DRIP's 60.0 % instead of nothing changes it by +5.00 \u00b1 1.78 points (better)." in text
    assert "instead of everything changes it by \u22121.00 \u00b1 0.81 points (worse)." in text
    assert (
        "instead of as many with the smallest margins changes the accuracy by \u22120.10 \u00b1 0.26 " in text
    )
    assert "0.26 points (inconclusive)." in text


def test_a_stream_that_cannot_help_any_rule_is_named(make_report):
    arms = [make_report.arm("baseline", 950, 0), make_report.arm("all-data", 951, 200)]
    text = said(make_report(arms=arms))
    assert "(inconclusive; this run leaves little room for any rule to show a gain)" in text


def test_a_loss_against_keeping_nothing_is_reported(make_report):
    arms = [make_report.arm("baseline", 950, 0), make_report.arm("drip", 900, 120)]
    assert "instead of nothing changes it by \u22125.00 \u00b1 1.78 points (worse)." in said(
        make_report(arms=arms)
    )


def test_errors_kept_in_proportion_are_not_praised(make_report):
    text = said(make_report())
    assert (
        "Of the 100 samples that the deployed model got wrong, DRIP kept 58.0 %, random selection kept 61.0 %"
    ) in text
    assert "the smallest margin kept 95.0 %" in text
    assert "\u22122.00 \u00b1 12.62 points is inconclusive" in text
    assert "does not show that DRIP finds errors" in text


@pytest.mark.parametrize(("share", "word"), [(0.8, "more often"), (0.4, "less often")])
def test_errors_kept_out_of_proportion_are_named(make_report, share, word):
    report = make_report(arms=[make_report.arm("drip", 950, 120, errors=share)])
    assert f"DRIP keeps errors {word} than other samples: its keep rate is 60.0 %" in said(report)


def test_a_model_without_errors_in_the_stream_is_reported(make_report):
    assert "made no error" in said(make_report(n_errors=0))


def test_the_keep_rate_is_given_beside_the_asked_and_the_expected_one(make_report):
    text = said(make_report())
    assert "calibrated to keep 60.0 % of every class and expected to keep" in text
    assert "it kept 60.0 % of 200 samples." in text
    text = said(make_report(class_counts_kept=np.array([60, 50, 30])))
    assert "it kept 70.0 % of 200 samples." in text
    assert "The DRIP arm was trained with 120 of them; the policy itself kept 140." in text


def test_a_stream_of_which_nothing_was_kept_is_reported(make_report):
    assert "it kept 0.0 % of 200 samples." in said(make_report(class_counts_kept=np.array([0, 0, 0])))


def test_an_empty_stream_is_reported(make_report):
    none = np.zeros(3, dtype=np.int64)
    report = make_report(
        arms=[make_report.arm("drip", 950, 0)], n_seen=0, bytes_seen=0, class_counts_seen=none,
        class_counts_kept=none,
    )  # fmt: skip
    assert "The production stream was empty" in said(report)
    assert "nan" not in said(report)


def test_classes_that_never_discard_are_listed_with_the_reason(make_report):
    text = said(make_report())
    assert "1 of 3 class never discards: dog (ties: the window would hold" in text


def test_classes_with_a_pooled_window_are_listed(make_report):
    listed = "too few calibration samples and the window of all classes together"
    assert f"1 of 3 class has {listed}: <emu>." in said(make_report())
    policy = Policy.fit(np.arange(20.0), np.zeros(20, dtype=np.int64), n_classes=9, retention=0.7)
    counts = np.full(9, 200)
    text = said(make_report(policy=policy, class_counts_seen=counts, class_counts_kept=0 * counts))
    assert f"9 of 9 classes have {listed}: " in text
    assert "and 3 more." in text
    assert "differs most" not in text  # no class is expected to keep as much as all together


def test_many_classes_that_never_discard_are_summed_up(make_report):
    policy = Policy.fit(np.zeros(0), np.zeros(0, dtype=np.int64), n_classes=9, retention=0.7)
    counts = np.full(9, 1)
    report = make_report(policy=policy, class_counts_seen=counts, class_counts_kept=counts)
    assert "9 of 9 classes never discard" in said(report)
    assert "and 3 more." in said(report)


def test_a_class_far_from_its_calibration_is_named(make_report):
    assert "Class cat differs most from its calibration" in said(make_report())
    expected = make_report().policy.windows[0].expected_discard
    kept = np.array([round(120 * (1 - expected)), 50, 30])
    assert "differs most" not in said(make_report(class_counts_kept=kept))


def test_bytes_and_times_are_reported(make_report):
    text = said(make_report(decision_includes="network and decision"))
    assert "DRIP stored 1.20 kB of 2.00 kB (40.0 % saved); random selection stored 1.20 kB." in text
    assert "median time per decision was 0.600 ms, the 95th percentile 1.58 ms (network and decision)" in text
    assert "median time" not in said(make_report(decision_ms=np.array([])))


def test_a_rule_without_windows_has_no_sentences_about_windows(make_report):
    report = make_report(policy=Policy(RuleSpec("margin", {}, {"threshold": 0.5}), 3))
    text = said(report)
    assert "The policy kept 60.0 % of 200 samples." in text
    assert "never discard" not in text


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"n_test": 999}, "correct"),
        ({"n_seen": 100}, "n_kept"),
        ({"class_counts_seen": np.array([1, 2])}, "class_counts_seen"),
        ({"class_counts_seen": np.array([1, 1, 1])}, "class_counts_kept"),
    ],
)
def test_numbers_that_contradict_each_other_are_rejected(make_report, changes, name):
    with pytest.raises(InputError, match=name) as caught:
        make_report(**changes)
    assert caught.value.code == "bad-argument"


def test_two_arms_with_the_same_name_are_rejected(make_report):
    with pytest.raises(InputError, match="'drip'"):
        make_report(arms=[make_report.arm("drip", 900, 10), make_report.arm("drip", 901, 10)])


def test_an_accuracy_that_differs_from_its_own_vector_is_rejected(make_report):
    with pytest.raises(InputError, match=r"accuracy is 0\.95, but the mean of correct is 0\.900000"):
        make_report(arms=[replace(make_report.arm("drip", 900, 10), accuracy=0.95)])
