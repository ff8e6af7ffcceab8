"""Rules for streams that are not i.i.d.: a utility behind gates, at a rate that is held."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np

from drip.errors import InputError
from drip.selectors.base import BaseSelector, ThresholdSelector
from drip.selectors.parts import (
    ClassShares,
    DuplicateGate,
    OutlierGate,
    RateController,
    RunningQuantile,
    Target,
)
from drip.selectors.parts.projections import project
from drip.selectors.states import number, numbers, restore_generator
from drip.thresholds import check_count
from drip.types import Decisions, FloatArray, JsonObject, Observations

_WINDOW = 500
_ODD = "outlier-share"
_ODD_SHARE, _ODD_CREDIT = 0.02, 5.0


class ComposedSelector(BaseSelector):
    """Gates, then a utility against a moving limit, with a floor for every class and a random share.

    In this order, for every arrival:

    1. An outlier, unlike anything in calibration, is discarded; two in a hundred kept samples may be one.
    2. A near-duplicate of one of the last 256 kept samples is discarded.
    3. A utility among the highest of the last 500 is kept; which share of them, a controller says that
       holds the target rate through drift.
    4. A class of which less than a quarter of the target share was kept lately gets this sample.
    5. Of all arrivals, whatever the above says, a small share is kept at random; its probability is stored,
       so that what the rule never keeps can be estimated.

    Subclasses say which utility. The priority is the utility's rank among the last ones.

    Args:
        retention: Share of the stream to keep, in (0, 1); not with one of the next two.
        samples_per_hour: Target per time instead.
        bytes_per_day: Target per time instead, in encoded bytes.
        exploration: Share of what is kept that is drawn at random, in [0, 1).
        gates: Whether outliers and near-duplicates are discarded; needs features.
        floor: See :class:`drip.selectors.parts.ClassShares`.
        frozen: Keep the calibrated limits; only the rate is still controlled.
        seed: Seed of the draws.
    """

    def __init__(
        self,
        retention: float | None = None,
        *,
        samples_per_hour: float | None = None,
        bytes_per_day: float | None = None,
        exploration: float = 0.05,
        gates: bool = True,
        floor: float = 0.25,
        frozen: bool = False,
        seed: int = 0,
    ) -> None:
        if retention is None and samples_per_hour is None and bytes_per_day is None:
            retention = 0.6
        self._target = Target(retention, samples_per_hour, bytes_per_day)
        if isinstance(exploration, bool) or not 0 <= exploration < 1:
            raise InputError(f"exploration must be in [0, 1), got {exploration!r}")
        for name, value in (("gates", gates), ("frozen", frozen)):
            if not isinstance(value, bool):
                raise InputError(f"{name} must be True or False, got {value!r}")
        check_count("seed", seed)
        self._params: JsonObject = {
            **self._target.params,
            "exploration": exploration,
            "gates": gates,
            "floor": floor,
            "frozen": frozen,
            "seed": seed,
        }
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._rate = RateController(self._target)
        self._rule: ThresholdSelector | None = None
        self._start(0)  # refuses a floor outside its range

    @classmethod
    def for_retention(cls, retention: float, **params: Any) -> Self:
        """The rule that aims at keeping the share ``retention``."""
        return cls(retention, **params)

    @property
    def params(self) -> JsonObject:
        """The target, exploration, gates, floor, frozen and seed."""
        return dict(self._params)

    @property
    def needs(self) -> frozenset[str]:
        """What the utility reads, and features for the gates."""
        return self._utility_rule().needs | ({"features"} if self._params["gates"] else frozenset())

    @abstractmethod
    def _utility_rule(self) -> ThresholdSelector:
        """A new rule whose utility ranks the samples."""

    def state(self) -> JsonObject:
        """The state of every part."""
        if self._rule is None:
            raise self._uncalibrated()
        state = {
            "utility": self._rule.state(),
            "recent": self._recent.values,
            "rate": self._rate.state(),
            "classes": self._classes.state(),
            "odd_credit": self._odd_credit,
            "generator": self._rng.bit_generator.state,
        }
        if self._params["gates"]:
            state |= {"outliers": self._outliers.state(), "duplicates": self._duplicates.state()}
        return state

    def _calibrate(self, observations: Observations) -> None:
        self._rule = self._utility_rule().calibrate(observations)
        self._start(observations.logits.shape[1])
        values = np.sort(self._rule.utility(observations))
        spread = values[np.linspace(0, len(values) - 1, _WINDOW).round().astype(np.int64)]
        order = np.random.Generator(np.random.PCG64(0)).permutation(_WINDOW)
        self._recent = RunningQuantile(_WINDOW, spread[order].tolist())
        if self._params["gates"]:
            features = _features(observations)
            features = features[np.lexsort(features.T)]  # sums must not depend on the order of the samples
            self._outliers.calibrate(features)
            self._duplicates.calibrate(features)

    def _restore(self, state: JsonObject) -> None:
        rule = self._utility_rule().restore(state["utility"])
        self._start(len(state["classes"]["arrived"]))
        self._recent = RunningQuantile(_WINDOW, numbers("recent", state["recent"], _WINDOW).tolist())
        self._rate.restore(state["rate"])
        self._classes.restore(state["classes"])
        self._odd_credit = number("odd_credit", state["odd_credit"])
        restore_generator(self._rng, state["generator"])
        if self._params["gates"]:
            self._outliers.restore(state["outliers"])
            self._duplicates.restore(state["duplicates"])
            if self._duplicates.n_features != self._outliers.n_features:
                raise ValueError("both gates must be for the same features")
        self._rule = rule

    def _start(self, n_classes: int) -> None:
        self._classes = ClassShares(n_classes, self._params["floor"])
        self._outliers, self._duplicates = OutlierGate(), DuplicateGate()
        self._odd_credit = 0.0

    def _check_arrivals(self, observations: Observations) -> None:
        if self._rate.needs_time and (
            observations.time_s is None or not np.isfinite(observations.time_s).all()
        ):
            raise InputError(
                f"selector {self.name!r} aims at {self._target.params} and needs the time of every sample; "
                "use a source that gives times, or a retention"
            )
        if self._target.bytes_per_day is not None and observations.n_bytes is None:
            raise InputError(
                f"selector {self.name!r} aims at {self._target.params} and needs the size of every sample, "
                "got none; give n_bytes, or a retention"
            )

    def _decide(self, observations: Observations) -> Decisions:
        if self._rule is None:
            raise self._uncalibrated()
        self._check_arrivals(observations)
        utility = self._rule.utility(observations)
        n = len(utility)
        gated = self._params["gates"] and n
        features = self._gate_features(observations) if gated else np.empty((n, 0))
        retain, priority, probability = np.zeros(n, np.bool_), np.zeros(n), np.ones(n)
        reasons = []
        for row in range(n):
            value, label = float(utility[row]), int(observations.classes[row])
            time_s = None if observations.time_s is None else float(observations.time_s[row])
            n_bytes = 0 if observations.n_bytes is None else int(observations.n_bytes[row])
            share = self._rate.share(time_s, n_bytes)
            self._classes.arrived(label)
            priority[row] = self._recent.rank(value)
            chosen, reason = self._choose(value, label, features[row], share)
            chance = self._params["exploration"] * self._rate.target_share
            drawn = bool(self._rng.random() < chance)
            if not chosen:
                probability[row] = chance
            if chosen or drawn:
                retain[row] = True
                self._note_kept(label, features[row], n_bytes, odd=chosen and reason == _ODD)
            reasons.append(reason if chosen or not drawn else "exploration")
        return Decisions(retain, priority, probability, reasons)

    def _gate_features(self, observations: Observations) -> FloatArray:
        features = _features(observations)
        if features.shape[1] != self._outliers.n_features:
            raise InputError(
                f"features must be {self._outliers.n_features} numbers after the projection, got "
                f"{features.shape[1]}; calibrate {self.name!r} with the model that scores the stream"
            )
        return features

    def _choose(self, value: float, label: int, features: FloatArray, share: float) -> tuple[bool, str]:
        """Whether the rule itself keeps an arrival, and why or why not."""
        if self._params["gates"]:
            if not self._outliers.passes(features, frozen=self._params["frozen"]):
                return (True, _ODD) if self._odd_credit >= 1 else (False, "outlier")
            if not self._duplicates.passes(features):
                return False, "near-duplicate"
        limit = self._recent.limit(share)
        if not self._params["frozen"]:
            self._recent.add(value)
        if value >= limit:
            return True, self.name
        if self._classes.below_floor(label, self._rate.target_share):
            return True, "class-floor"
        return False, "below-limit"

    def _note_kept(self, label: int, features: FloatArray, n_bytes: int, *, odd: bool) -> None:
        self._rate.kept(n_bytes)
        self._classes.kept(label)
        self._odd_credit = min(self._odd_credit + _ODD_SHARE, _ODD_CREDIT) - odd
        if self._params["gates"]:
            self._duplicates.kept(features)


def _features(observations: Observations) -> FloatArray:
    assert observations.features is not None  # noqa: S101  # checked as a need
    return project(observations.features)
