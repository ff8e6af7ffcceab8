"""What a report is made of: the numbers, vectors and pictures of one run, frozen.

Plain data and its checks; nothing here formats, draws, trains or reads a store.
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
from drip.windows import Window, complement

BASELINE, ALL_DATA, DRIP, RANDOM, MARGIN = "baseline", "all-data", "drip", "random", "margin"
"""Names of the arms that the findings compare; an arm of any other name only appears in the table."""


@dataclass(frozen=True)
class Arm:
    """One model trained on the training set plus what one rule kept of the production stream.

    Attributes:
        name: ``baseline``, ``all-data``, ``drip``, ``random``, ``margin``, or any other.
        accuracy: Share of the test set that is right, in [0, 1]; NaN when it was not measured.
        n_train: Samples that the model was trained on.
        n_kept: Samples of the production stream that were kept, among them.
        bytes_kept: Encoded size of these, in bytes.
        seconds: Training time in seconds; NaN when it was not measured.
        correct: Which test samples are right, shape (n_test,), in the order of every other arm; or
            None. Two arms that have it are compared as pairs.
        errors_kept_share: Share of the production samples the deployed model got wrong that the rule
            kept, in [0, 1]; or None.
    """

    name: str
    accuracy: float
    n_train: int
    n_kept: int
    bytes_kept: int
    seconds: float = nan
    correct: BoolArray | None = None
    errors_kept_share: float | None = None


@dataclass(frozen=True)
class GalleryItem:
    """One production sample with what the model saw in it and what was decided.

    Attributes:
        image: uint8, shape (height, width) in grey or (height, width, 3) in RGB.
        heatmap: Grad-CAM heatmap, shape (h, w), at least 0; scaled to its own maximum when drawn.
        predicted: Predicted class index.
        label: True class index, or None where unknown.
        score: DRIP score.
        retained: What the rule decided.
        distance: From the nearest limit of the class's window, in standard deviations of the class's
            calibration scores; positive outside, 0 or negative inside. Ignored for a class
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
        """True when the true class is known and is another one."""
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
        command: The command line that makes this report again.
        seed: Seed of the run.
        policy: The calibrated policy; sections that need windows are left out for rules without.
        arms: One per trained model, in the order of the table.
        n_test: Samples behind every accuracy.
        n_seen: Samples of the production stream.
        bytes_seen: Encoded size of these, in bytes.
        decision_ms: Time per decision in milliseconds, shape (n,); may be empty.
        gallery: Samples to show; may be empty.
        class_counts_seen: Production samples per *predicted* class, shape (n_classes,).
        class_counts_kept: How many of these the policy kept, shape (n_classes,).
        decision_includes: What the time per decision covers, and on which machine.
        n_errors: Production samples that the deployed model got wrong; None where it is unknown.
        gallery_choice: How the samples of the gallery were chosen.
        notes: Sentences to print below the findings, such as deviations from the protocol.
        version: Version of drip; empty for the installed one.
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
        """Check what would otherwise print as a contradiction.

        Raises:
            InputError: vectors of another length than the test set or the classes, an accuracy that
                its own vector contradicts, two arms of one name, or more kept than seen.
        """
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise InputError(f"arms must have different names, got {names!r}; rename one")
        for arm in self.arms:
            if arm.correct is not None and arm.correct.shape != (self.n_test,):
                raise InputError(
                    f"arm {arm.name!r}: correct must have shape ({self.n_test},), got {arm.correct.shape}; "
                    "give one entry per test sample"
                )
            if (
                arm.correct is not None
                and self.n_test
                and not abs(float(arm.correct.mean()) - arm.accuracy) < 0.5 / self.n_test
            ):
                raise InputError(
                    f"arm {arm.name!r}: accuracy must be the mean of correct, "
                    f"{float(arm.correct.mean()):.6f}, got {arm.accuracy!r}; take both from one evaluation"
                )
            if not 0 <= arm.n_kept <= self.n_seen:
                raise InputError(
                    f"arm {arm.name!r}: n_kept must be in [0, {self.n_seen}], got {arm.n_kept}; "
                    "count samples of the production stream only"
                )
        for name in ("class_counts_seen", "class_counts_kept"):
            shape = np.shape(getattr(self, name))
            if shape != (self.policy.n_classes,):
                raise InputError(
                    f"{name} must have shape ({self.policy.n_classes},), got {shape}; "
                    "count with numpy.bincount(predicted, minlength=n_classes)"
                )
        if np.any(np.asarray(self.class_counts_kept) > np.asarray(self.class_counts_seen)):
            raise InputError("class_counts_kept must not exceed class_counts_seen; count the same samples")

    def arm(self, name: str) -> Arm | None:
        """The arm of this name, or None."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def retention(self, arm: Arm) -> float:
        """Share of the production stream that the arm kept, in [0, 1]; NaN for an empty stream."""
        return ratio(arm.n_kept, self.n_seen)

    @property
    def windows(self) -> tuple[Window, ...]:
        """One window per class, or none for a rule without windows."""
        return self.policy.windows if "windows" in self.policy.rule.state else ()

    @property
    def asked_discard(self) -> float | None:
        """The discard fraction (DPW) that calibration was asked for, in (0, 1); None without windows."""
        retention = self.policy.rule.params.get("retention")
        return complement(retention) if self.windows and retention is not None else None

    def class_name(self, index: int | None) -> str:
        """Name of a class; its number where the policy has no names, a question mark for None."""
        if index is None:
            return "?"
        names = self.policy.provenance.class_names
        return names[index] if 0 <= index < len(names) else str(index)


@dataclass(frozen=True, slots=True)
class Paired:
    """The difference between two arms on the same test samples.

    Attributes:
        difference: Accuracy of the first minus that of the second, in [-1, 1].
        standard_error: Of the difference, at least 0.
        only_first: Test samples that only the first arm gets right; None when not counted in pairs.
        only_second: Test samples that only the second arm gets right; None when not counted in pairs.
    """

    difference: float
    standard_error: float
    only_first: int | None = None
    only_second: int | None = None

    @property
    def exceeds_chance(self) -> bool:
        """True when the difference is larger than two standard errors."""
        return abs(self.difference) > 2.0 * self.standard_error


def standard_error(accuracy: float, n_test: int) -> float:
    r"""Binomial standard error of one accuracy: :math:`\sqrt{a(1-a)/n}`.

    It covers which test samples were drawn; neither the split nor the training seed.

    Args:
        accuracy: a, in [0, 1], or NaN.
        n_test: n, at least 0; 0 gives NaN.

    >>> round(standard_error(0.9, 900), 6)
    0.01
    """
    if n_test < 1 or isnan(accuracy):
        return nan
    return sqrt(max(accuracy * (1.0 - accuracy), 0.0) / n_test)


def compare(first: Arm, second: Arm, n_test: int) -> Paired:
    r"""Difference in accuracy with its standard error, paired where both arms say what they got right.

    With b samples right in the first arm only and c in the second only, the difference is
    :math:`(b-c)/n` with the standard error :math:`\sqrt{b + c - (b-c)^2/n}\,/\,n`. Without these
    counts the two binomial errors add in quadrature, which is larger: the arms share their test set.

    Args:
        first: One arm.
        second: The other.
        n_test: n, test samples behind both accuracies.

    References:
        McNemar (1947), Note on the sampling error of the difference between correlated proportions.

    >>> right = np.array([True, True, True, False])
    >>> compare(Arm("drip", 0.75, 8, 4, 0, correct=right), Arm("random", 0.5, 8, 4, 0,
    ...     correct=np.array([True, False, True, False])), 4).difference
    0.25
    """
    if first.correct is not None and second.correct is not None and n_test:
        only_first = int(np.count_nonzero(first.correct & ~second.correct))
        only_second = int(np.count_nonzero(second.correct & ~first.correct))
        net = only_first - only_second
        variance = max(only_first + only_second - net * net / n_test, 0.0)
        return Paired(net / n_test, sqrt(variance) / n_test, only_first, only_second)
    errors = (standard_error(first.accuracy, n_test), standard_error(second.accuracy, n_test))
    return Paired(first.accuracy - second.accuracy, sqrt(errors[0] ** 2 + errors[1] ** 2))
