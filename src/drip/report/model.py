"""The data of a report: numbers, vectors and pictures of one run, and how two of its models compare.

Plain data and its checks. This module does not format, draw, train or read a store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError
from drip.files.format import ratio
from drip.policy import Policy
from drip.types import BoolArray, FloatArray, IntArray
from drip.windows import Window

BASELINE, ALL_DATA, DRIP, RANDOM, MARGIN = "baseline", "all-data", "drip", "random", "margin"
"""Names of the arms that the findings compare; an arm of any other name only appears in the table."""

Z_99 = 2.576
"""Half of a 99 % confidence interval, in standard errors.

A report makes five comparisons. At 95 % each, nearly one run in four (1 - 0.95^5) would announce a
difference that is chance; at 99 % it is one in twenty. The first version of the report used two standard
errors, and its headline changed with the machine that trained the models.
"""


@dataclass(frozen=True)
class Arm:
    """One model trained on the training set plus what one rule kept of the production stream.

    Attributes:
        name: ``baseline``, ``all-data``, ``drip``, ``random``, ``margin``, or any other.
        accuracy: Part of the test set that the model classifies correctly, in [0, 1]; NaN when unknown.
        n_train: Number of samples that the model was trained on.
        n_kept: How many of them the rule kept from the production stream.
        bytes_kept: Encoded size of the kept samples, in bytes.
        seconds: Training time in seconds; NaN when unknown.
        correct: Which test samples the model classifies correctly, shape (n_test,), in the same order in
            every arm; or None. Two arms that both have it are compared sample by sample.
        errors_kept: Part of the deployed model's errors in the stream that the rule kept, in
            [0, 1]; or None.
    """

    name: str
    accuracy: float
    n_train: int
    n_kept: int
    bytes_kept: int
    seconds: float = nan
    correct: BoolArray | None = None
    errors_kept: float | None = None


@dataclass(frozen=True)
class GalleryItem:
    """One production sample with the model's outputs and the decision.

    Attributes:
        image: uint8, shape (height, width) in grey or (height, width, 3) in RGB.
        heatmap: Grad-CAM heatmap, shape (h, w), at least 0; scaled to its own maximum when drawn.
        predicted: Predicted class index.
        label: True class index, or None when unknown.
        score: DRIP score.
        retained: True when the sample was kept.
        distance: To the nearer end of the class's window, in standard deviations of the
            calibration scores that it was fitted on; positive outside, 0 or negative inside. Ignored for a class
            that never discards.
    """

    image: NDArray[np.uint8]
    heatmap: NDArray[np.floating[Any]]
    predicted: int
    label: int | None
    score: float
    retained: bool
    distance: float = nan

    @property
    def wrong(self) -> bool:
        """True when the label is known and differs from the prediction."""
        return self.label is not None and self.label != self.predicted


@dataclass(frozen=True)
class RunReport:
    """All numbers of one run.

    Attributes:
        title: Heading of the page.
        dataset: Name of the data set.
        split: Sizes in samples by name of the part, in order: ``train``, ``calibration``,
            ``production``, ``test``.
        model: Description of the network.
        command: The command line that repeats this run.
        seed: Seed of the run.
        policy: The calibrated policy. Without windows, the sections about windows are left out.
        arms: One per trained model, in the order of the table.
        n_test: Number of test samples.
        n_seen: Samples of the production stream.
        bytes_seen: Encoded size of the stream, in bytes.
        decision_ms: Time per decision in milliseconds, shape (n,); may be empty.
        gallery: Samples to show; may be empty.
        class_counts_seen: Production samples per *predicted* class, shape (n_classes,).
        class_counts_kept: How many of these the policy kept, shape (n_classes,).
        decision_includes: What the time per decision covers, and on which machine.
        n_errors: Production samples that the deployed model got wrong; None when unknown.
        gallery_choice: How the samples of the gallery were chosen.
        notes: Sentences to print below the findings, such as deviations from the protocol.
        version: Version of drip; empty means the installed one.
    """

    title: str
    dataset: str
    split: Mapping[str, int]
    model: str
    command: str
    seed: int
    policy: Policy
    arms: Sequence[Arm]
    n_test: int
    n_seen: int
    bytes_seen: int
    decision_ms: FloatArray
    gallery: Sequence[GalleryItem]
    class_counts_seen: IntArray
    class_counts_kept: IntArray
    decision_includes: str = ""
    n_errors: int | None = None
    gallery_choice: str = ""
    notes: Sequence[str] = ()
    version: str = ""

    def __post_init__(self) -> None:
        """Check that the numbers do not contradict each other: the page prints several of them twice.

        Raises:
            InputError: a vector's length does not match the test set or the classes, an accuracy differs
                from its own vector, two arms have the same name, or more was kept than seen.
        """
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise InputError(f"two arms have the same name in {names!r}; rename one")
        for arm in self.arms:
            if arm.correct is not None and arm.correct.shape != (self.n_test,):
                raise InputError(
                    f"arm {arm.name!r}: correct has shape {arm.correct.shape}, but the test set has "
                    f"{self.n_test} samples; give one entry per test sample"
                )
            # Half a sample is the tolerance: an accuracy that was saved with few digits still passes.
            if (
                arm.correct is not None
                and self.n_test
                and not abs(float(arm.correct.mean()) - arm.accuracy) < 0.5 / self.n_test
            ):
                raise InputError(
                    f"arm {arm.name!r}: accuracy is {arm.accuracy!r}, but the mean of correct is "
                    f"{float(arm.correct.mean()):.6f}; take both from one evaluation"
                )
            if not 0 <= arm.n_kept <= self.n_seen:
                raise InputError(
                    f"arm {arm.name!r}: n_kept is {arm.n_kept}, outside [0, {self.n_seen}]; "
                    "count samples of the production stream only"
                )
        for name in ("class_counts_seen", "class_counts_kept"):
            shape = np.shape(getattr(self, name))
            if shape != (self.policy.n_classes,):
                raise InputError(
                    f"{name} has shape {shape}, but the policy has {self.policy.n_classes} classes; "
                    "count with numpy.bincount(predicted, minlength=n_classes)"
                )
        if np.any(np.asarray(self.class_counts_kept) > np.asarray(self.class_counts_seen)):
            raise InputError("class_counts_kept exceeds class_counts_seen; count both on the same samples")

    def arm(self, name: str) -> Arm | None:
        """The arm with this name, or None."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def retention(self, arm: Arm) -> float:
        """Keep rate of an arm on the production stream, in [0, 1]; NaN for an empty stream."""
        return ratio(arm.n_kept, self.n_seen)

    @property
    def windows(self) -> tuple[Window, ...]:
        """One window per class, or none for a rule without windows."""
        return self.policy.windows if "windows" in self.policy.rule.state else ()

    @property
    def asked_retention(self) -> float | None:
        """The keep rate that the windows were calibrated for, in (0, 1); None without windows."""
        return self.policy.rule.params.get("retention") if self.windows else None

    def class_name(self, index: int | None) -> str:
        """Name of a class, or its number when the policy has no names; a question mark for None."""
        if index is None:
            return "?"
        names = self.policy.provenance.class_names
        return names[index] if 0 <= index < len(names) else str(index)


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more accurate one arm is than another on the same test samples.

    Attributes:
        value: Accuracy of the first minus that of the second, in [-1, 1].
        standard_error: Of the value, at least 0.
        paired: True when the arms were compared sample by sample.
    """

    value: float
    standard_error: float
    paired: bool

    @property
    def plus_minus(self) -> float:
        """Half of the 99 % confidence interval."""
        return Z_99 * self.standard_error

    @property
    def conclusive(self) -> bool:
        """True when the 99 % confidence interval excludes zero."""
        return abs(self.value) > self.plus_minus


def standard_error(accuracy: float, n_test: int) -> float:
    r"""Binomial standard error of one accuracy: :math:`\sqrt{a(1-a)/n}`.

    It covers which test samples were drawn. Another split or training seed changes the accuracy further.

    Args:
        accuracy: a, in [0, 1], or NaN.
        n_test: n, at least 0; NaN is returned for 0.

    >>> round(standard_error(0.9, 900), 6)
    0.01
    """
    if n_test < 1 or isnan(accuracy):
        return nan
    return sqrt(max(accuracy * (1.0 - accuracy), 0.0) / n_test)


def compare(first: Arm, second: Arm, n_test: int) -> Difference:
    r"""Difference in accuracy with its standard error, sample by sample where both arms have ``correct``.

    With b samples right in the first arm only and c in the second only, the difference is
    :math:`(b-c)/n` with the standard error :math:`\sqrt{b + c - (b-c)^2/n}\,/\,n`. Without ``correct``
    the two binomial variances add. That overstates the error, because the arms share their test set and
    most of their training set, so they mostly fail on the same samples.

    Args:
        first: One arm.
        second: The other.
        n_test: n, the number of test samples of both accuracies.

    References:
        McNemar (1947), Note on the sampling error of the difference between correlated proportions.

    >>> right = np.array([True, True, True, False])
    >>> compare(Arm("drip", 0.75, 8, 4, 0, correct=right), Arm("random", 0.5, 8, 4, 0,
    ...     correct=np.array([True, False, True, False])), 4).value
    0.25
    """
    if first.correct is not None and second.correct is not None and n_test:
        only_first = int(np.count_nonzero(first.correct & ~second.correct))
        only_second = int(np.count_nonzero(second.correct & ~first.correct))
        net = only_first - only_second
        variance = max(only_first + only_second - net * net / n_test, 0.0)
        return Difference(net / n_test, sqrt(variance) / n_test, paired=True)
    errors = (standard_error(first.accuracy, n_test), standard_error(second.accuracy, n_test))
    return Difference(first.accuracy - second.accuracy, sqrt(errors[0] ** 2 + errors[1] ** 2), paired=False)
