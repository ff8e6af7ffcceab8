"""What all rules share: checks, saved state, and the families threshold, window, ranked and chance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import inf
from typing import Any, ClassVar, Self

import numpy as np

from drip.errors import InputError, PolicyError
from drip.rules.state import number, numbers, restore_generator
from drip.types import (
    BoolArray,
    Decision,
    Decisions,
    FloatArray,
    JsonObject,
    Observation,
    Observations,
    Rule,
)
from drip.windows import (
    MIN_CLASS_COUNT,
    Method,
    Window,
    check_count,
    check_fraction,
    check_method,
    complement,
    fit_windows,
    is_inside,
    mean_and_deviation,
    pool,
    sort_by_class,
    windows_from_json,
    windows_to_json,
)


class BaseRule(ABC):
    """A rule: subclasses say which columns they read, how they calibrate and how they decide.

    Subclasses set :attr:`name` and implement :meth:`_decide`; rules that calibrate add :meth:`_calibrate`,
    :meth:`state` and :meth:`_restore`. ``params`` returns the constructor's arguments, so a policy
    file can rebuild the rule.
    """

    name: ClassVar[str]
    state_version: ClassVar[int] = 1

    @property
    def needs(self) -> frozenset[str]:
        """Names that the rule reads besides the predicted class: ``logits``, ``features``, score names."""
        return frozenset()

    @property
    @abstractmethod
    def params(self) -> JsonObject:
        """The constructor's arguments, JSON-serialisable."""

    @classmethod
    def for_retention(cls, retention: float, **params: Any) -> Self:
        """The rule with this keep rate as its target."""
        return cls(retention=retention, **params)  # type: ignore[call-arg]  # rules without it override this

    def calibrate(self, observations: Observations) -> Self:
        """Calibrate on observations that are representative of production.

        Raises:
            InputError: no observation, a missing column, NaN or infinite values.
        """
        if not len(observations):
            raise InputError(f"the rule {self.name!r} was given no calibration samples", code="source-empty")
        self._check(observations)
        self._calibrate(observations)
        return self

    def decide(self, observation: Observation) -> Decision:
        """Decide on one observation, in the order of arrival.

        Raises:
            InputError: a missing column, NaN or infinite values.
            PolicyError: the rule was not calibrated.
        """
        # One code path for one sample and for many: two would drift apart in the last bit.
        return self.decide_many(Observations.of(observation))[0]

    def decide_many(self, observations: Observations) -> Decisions:
        """The same decisions as :meth:`decide` row by row, in one call.

        Raises:
            InputError: a missing column, NaN or infinite values.
            PolicyError: the rule was not calibrated.
        """
        # Check before anything changes: a rejected batch must leave state and generator untouched.
        self._check(observations)
        return self._decide(observations)

    def state(self) -> JsonObject:
        """Everything that decisions depend on besides :attr:`params`; JSON-serialisable.

        Raises:
            PolicyError: the rule was not calibrated.
        """
        return {}

    def restore(self, state: JsonObject) -> Self:
        """Continue from a saved :meth:`state`.

        Raises:
            KeyError, TypeError, ValueError: the state is damaged or belongs to another rule.
        """
        self._restore(state)
        return self

    def restore_version(self, state: JsonObject, version: int) -> Self:
        """Restore a state that was saved by the given version of the rule.

        Raises:
            PolicyError: the version is not :attr:`state_version`.
        """
        # A state of another layout may parse and still mean something else, so the version decides, not the parser.
        if version != self.state_version:
            raise PolicyError(
                f"the state of the rule {self.name!r} has version {version!r}, but this DRIP reads "
                f"{self.state_version}; calibrate again",
                code="rule-state",
            )
        return self.restore(state)

    @abstractmethod
    def _decide(self, observations: Observations) -> Decisions:
        """Decide on checked observations."""

    def _calibrate(self, observations: Observations) -> None:  # noqa: B027  # a default, not a duty
        """Calibrate on checked observations; rules without calibration keep this."""

    def _restore(self, state: JsonObject) -> None:  # noqa: B027  # a default, not a duty
        """Restore a state; rules without state keep this."""

    def _check_classes(self, observations: Observations, n_classes: int) -> None:
        classes = observations.classes
        outside = (classes < 0) | (classes >= n_classes)
        if outside.any():
            row = int(np.argmax(outside))
            raise InputError(
                f"row {row} has class {int(classes[row])}, but {self.name!r} was calibrated for {n_classes} "
                "classes; calibrate it with the model that scores the stream",
                code="policy-other-classes",
            )

    def _uncalibrated(self) -> PolicyError:
        return PolicyError(
            f"the rule {self.name!r} is not calibrated; calibrate it or load a policy",
            code="rule-not-calibrated",
        )

    def _check(self, observations: Observations) -> None:
        columns: dict[str, Any] = {"logits": observations.logits, **observations.named_scores}
        if observations.features is not None:
            columns["features"] = observations.features
        require_scores(self, columns, "use a scorer that provides it")
        for name in sorted(self.needs):
            finite = np.isfinite(columns[name])
            if not finite.all():
                rows = finite if finite.ndim == 1 else finite.all(axis=1)
                raise InputError(
                    f"{name} of row {int(np.argmin(rows))} is NaN or infinite; quarantine that sample",
                    code="sample-non-finite",
                )


def require_scores(rule: Rule, provides: Iterable[str], advice: str) -> None:
    """Check that everything a rule reads is there, before any sample is decided.

    Args:
        rule: The rule.
        provides: Names of the columns that observations will have: ``logits``, ``features``, score names.
        advice: What to do if one is missing.

    Raises:
        InputError: with the missing names and the advice; code ``rule-needs``.
    """
    available = frozenset(provides)
    missing = rule.needs - available
    if missing:
        raise InputError(
            f"the rule {rule.name!r} reads {', '.join(sorted(missing))}, but only "
            f"{', '.join(sorted(available)) or 'nothing'} is available; {advice}",
            code="rule-needs",
        )


def within_float64(values: FloatArray) -> FloatArray:
    """Values clipped to the largest finite number, because a priority must be finite."""
    largest = np.finfo(np.float64).max
    return np.clip(values, -largest, largest)


def deterministic(retain: BoolArray, priority: FloatArray, kept: str, discarded: str) -> Decisions:
    """Decisions of a rule without randomness: the keep probability is one or zero."""
    reasons = [kept if value else discarded for value in retain.tolist()]
    return Decisions(retain, priority, retain.astype(np.float64), reasons)


class ThresholdRule(BaseRule):
    """Keep the samples whose score reaches a calibrated threshold; the score is the priority.

    Args:
        retention: Keep rate on the calibration samples, in (0, 1).

    Subclasses implement :meth:`score`. Samples that tie at the threshold are all kept.
    """

    def __init__(self, retention: float = 0.6) -> None:
        check_fraction("retention", retention)
        self._retention = retention
        self._limit: float | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({"logits"})

    @property
    def params(self) -> JsonObject:
        """Retention."""
        return {"retention": self._retention}

    @abstractmethod
    def score(self, observations: Observations) -> FloatArray:
        """How much a sample is worth keeping, shape (n,): larger is better."""

    def state(self) -> JsonObject:
        """The threshold of the score."""
        if self._limit is None:
            raise self._uncalibrated()
        return {"limit": self._limit}

    def _calibrate(self, observations: Observations) -> None:
        # A value of the sample, not an interpolated quantile: "keep what reaches it" is then exact on calibration data.
        descending = np.sort(self.score(observations))[::-1]
        self._limit = float(descending[count_to_keep(len(descending), self._retention) - 1])

    def _restore(self, state: JsonObject) -> None:
        self._limit = number("limit", state["limit"])

    def _decide(self, observations: Observations) -> Decisions:
        if self._limit is None:
            raise self._uncalibrated()
        score = self.score(observations)
        return deterministic(score >= self._limit, score, self.name, "below-limit")


class WindowRule(BaseRule):
    """Discard scores inside the window of the predicted class; the distance to it is the priority.

    The distance is in standard deviations of the scores that the window was fitted on, so classes are
    comparable: those of the class, or of all classes together where the class has too few. A class that
    never discards has priority 1, like a sample one deviation outside.

    Args:
        retention: Keep rate of every class, in (0, 1): one minus the paper's DPW.
        method: ``min_std`` (section III-A) or ``histogram_peak`` (Algorithm 1).
        min_class_count: A class with fewer calibration scores uses the window of all classes together.

    Subclasses implement :meth:`score`. Windows for a score other than DRIP, or of the kept side, are saved
    under another :attr:`windows_key`, so ``Policy.windows`` never confuses them with equation 9.

    References:
        DRIP paper, sections III-A and III-B, equations 6, 7 and 9.
    """

    windows_key: ClassVar[str] = "windows"

    def __init__(
        self,
        retention: float = 0.6,
        method: Method = "min_std",
        min_class_count: int = MIN_CLASS_COUNT,
    ) -> None:
        check_fraction("retention", retention)
        check_method(method)
        check_count("min_class_count", min_class_count)
        self._retention = retention
        self._method: Method = method
        self._min_class_count = min_class_count
        self._windows: tuple[Window, ...] = ()

    @property
    def params(self) -> JsonObject:
        """Retention, method and minimum count."""
        return {
            "retention": self._retention,
            "method": self._method,
            "min_class_count": self._min_class_count,
        }

    @property
    def window_fraction(self) -> float:
        """Part of every class inside its window, in (0, 1)."""
        return complement(self._retention)

    @property
    def windows(self) -> tuple[Window, ...]:
        """One window per class; empty before calibration."""
        return self._windows

    @abstractmethod
    def score(self, observations: Observations) -> FloatArray:
        """The scores that windows are fitted to, shape (n,)."""

    def state(self) -> JsonObject:
        """The windows."""
        if not self._windows:
            raise self._uncalibrated()
        return {self.windows_key: windows_to_json(self._windows)}

    def calibrate_sorted(self, parts: Sequence[FloatArray]) -> Self:
        """Find the windows from the sorted scores of each class, as returned by :func:`sort_by_class`."""
        self._set(
            fit_windows(
                parts,
                fraction=self.window_fraction,
                method=self._method,
                min_class_count=self._min_class_count,
            )
        )
        return self

    def _calibrate(self, observations: Observations) -> None:
        scores, n_classes = self.score(observations), observations.logits.shape[1]
        self.calibrate_sorted(sort_by_class(scores, observations.classes, n_classes))

    def _restore(self, state: JsonObject) -> None:
        windows = windows_from_json(state[self.windows_key])
        if not windows:
            raise ValueError("there is no window; expected one per class")
        self._set(windows)

    def _set(self, windows: tuple[Window, ...]) -> None:
        self._windows = windows
        self._lower = np.array([window.lower for window in windows])
        self._upper = np.array([window.upper for window in windows])
        # A class whose scores are all equal has scale 0; distances then stay in units of the score.
        self._unit = np.array([window.scale or 1.0 for window in windows])

    def _distances(self, observations: Observations) -> tuple[BoolArray, BoolArray, FloatArray]:
        """Whether each score is inside its window, whether its class discards, and its distance in deviations."""
        if not self._windows:
            raise self._uncalibrated()
        self._check_classes(observations, len(self._windows))
        scores, classes = self.score(observations), observations.classes
        lower, upper = self._lower[classes], self._upper[classes]
        discards = lower < inf
        inside = is_inside(scores, classes, self._lower, self._upper)
        # Finite scores may still give an infinite quotient; it is clipped, not reported.
        with np.errstate(over="ignore"):
            outside = np.maximum(lower - scores, scores - upper) / self._unit[classes]
        return inside, discards, np.where(discards, within_float64(np.maximum(outside, 0.0)), 1.0)

    def _decide(self, observations: Observations) -> Decisions:
        inside, discards, distance = self._distances(observations)
        decisions = deterministic(~inside, distance, "outside-window", "inside-window")
        # The usual case needs no loop over the rows.
        if discards.all():
            return decisions
        reasons = [
            reason if known else "class-never-discards"
            for reason, known in zip(decisions.reasons, discards.tolist(), strict=True)
        ]
        return Decisions(decisions.retain, decisions.priority, decisions.keep_probability, reasons)


class RankedRule(BaseRule):
    """Keep the lowest scores of every predicted class; the distance below the class mean is the priority.

    Args:
        retention: Keep rate of every class, in (0, 1).
        min_class_count: A class with fewer calibration scores uses the threshold, mean and deviation of all
            classes together.

    Subclasses set :attr:`score_name`. Samples that tie at the threshold are all kept. The priority is in
    standard deviations of the calibration scores, so classes are comparable.
    """

    score_name: ClassVar[str]

    def __init__(self, retention: float = 0.6, min_class_count: int = MIN_CLASS_COUNT) -> None:
        check_fraction("retention", retention)
        check_count("min_class_count", min_class_count)
        self._retention = retention
        self._min_class_count = min_class_count
        self._limits: FloatArray | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The score."""
        return frozenset({self.score_name})

    @property
    def params(self) -> JsonObject:
        """Retention and minimum count."""
        return {"retention": self._retention, "min_class_count": self._min_class_count}

    def state(self) -> JsonObject:
        """Threshold, mean and standard deviation of every class.

        A threshold of null keeps everything. Calibration no longer writes it, but older policies have it.
        """
        if self._limits is None:
            raise self._uncalibrated()
        return {
            "limits": [None if limit == inf else limit for limit in self._limits.tolist()],
            "means": self._means.tolist(),
            "scales": self._scales.tolist(),
        }

    def _calibrate(self, observations: Observations) -> None:
        parts = sort_by_class(
            observations.named_scores[self.score_name], observations.classes, observations.logits.shape[1]
        )
        together = pool(parts)
        limits, means, scales = [], [], []
        for part in parts:
            # A quantile of few scores is noise, and to keep all of them misses the keep rate by far when
            # calibration samples are few. Mean and deviation follow, or priorities would have another unit.
            used = part if len(part) >= max(self._min_class_count, 1) else together
            limits.append(float(used[count_to_keep(len(used), self._retention) - 1]))
            mean, scale = mean_and_deviation(used)
            means.append(mean)
            scales.append(scale or 1.0)
        self._limits, self._means, self._scales = np.array(limits), np.array(means), np.array(scales)

    def _restore(self, state: JsonObject) -> None:
        limits = [inf if limit is None else number("limit", limit) for limit in state["limits"]]
        self._limits = np.array(limits)
        self._means = numbers("means", state["means"], None)
        self._scales = numbers("scales", state["scales"], None)
        if not len(self._limits) == len(self._means) == len(self._scales) or not (self._scales > 0).all():
            raise ValueError(
                "limits, means and scales must have one number per class, and scales must be above 0"
            )

    def _decide(self, observations: Observations) -> Decisions:
        if self._limits is None:
            raise self._uncalibrated()
        self._check_classes(observations, len(self._limits))
        scores, classes = observations.named_scores[self.score_name], observations.classes
        with np.errstate(over="ignore"):
            depth = within_float64((self._means[classes] - scores) / self._scales[classes])
        return deterministic(scores <= self._limits[classes], depth, self.name, "above-limit")


class ChanceRule(BaseRule):
    """Base of random rules: one uniform draw per observation, in the order of arrival.

    Args:
        retention: Keep rate, in (0, 1].
        seed: Seed of the draws.
    """

    def __init__(self, retention: float = 0.6, seed: int = 0) -> None:
        # Random rules accept 1, where a window or a quantile would be empty; True is not a rate.
        if isinstance(retention, bool) or retention != 1:
            check_fraction("retention", retention)
        check_count("seed", seed)
        self._retention = retention
        self._seed = seed
        self._rng = np.random.Generator(np.random.PCG64(seed))

    @property
    def params(self) -> JsonObject:
        """Retention and seed."""
        return {"retention": self._retention, "seed": self._seed}

    def state(self) -> JsonObject:
        """The state of the random generator (PCG64)."""
        return {"generator": self._rng.bit_generator.state}

    def _restore(self, state: JsonObject) -> None:
        restore_generator(self._rng, state["generator"])

    def _draw(self, observations: Observations) -> FloatArray:
        return self._rng.random(len(observations))


def count_to_keep(n: int, retention: float) -> int:
    """Number of n calibration samples to keep at a keep rate, rounded half up, at least 1.

    >>> count_to_keep(10, 0.25), count_to_keep(3, 0.01)
    (3, 1)
    """
    # As a decimal, not as a binary float: 0.29 of 100 is 29, and halves round up as on paper.
    return max(1, int(Fraction(str(retention)) * n + Fraction(1, 2)))


def softmax_ratios(logits: FloatArray) -> FloatArray:
    """Probabilities divided by the largest one, exp(logit - max), in descending order, shape (n, n_classes).

    The first column is one. An uncertainty summed over the other columns stays exact even where the largest
    probability rounds to 0.9999999999999999.
    """
    # Contiguous rows: otherwise NumPy may sum in an order that depends on layout and batch size, and a sample
    # could be decided differently alone than in a batch.
    rows = np.ascontiguousarray(logits, dtype=np.float64)
    with np.errstate(over="ignore"):  # a gap beyond float64 is a ratio of zero
        gaps = rows - rows.max(axis=1, keepdims=True)
    return np.sort(np.exp(gaps), axis=1)[:, ::-1]
