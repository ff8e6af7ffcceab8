"""Rules for streams that are not i.i.d.: a score behind gates, at a rate that is held."""

from __future__ import annotations

from abc import abstractmethod
from math import isfinite
from typing import Any, ClassVar, NamedTuple, Self
from zlib import crc32

import numpy as np

from drip.errors import InputError
from drip.rules.base import BaseRule, ThresholdRule
from drip.rules.chance import MixedMarginRule
from drip.rules.parts import (
    AdaptationLog,
    ClassGaussians,
    ClassShares,
    DuplicateGate,
    OutlierGate,
    PopulationGate,
    RateController,
    RunningQuantile,
    Target,
    held_out_distances,
)
from drip.rules.parts.gaussians import N_FINE, N_NUMBERS, project
from drip.rules.state import count, restore_generator
from drip.types import Decisions, FloatArray, JsonObject, Observations
from drip.windows import check_count, is_real

_WINDOW = 500
_LOGGED_STEP = 0.25
_DRAWN = ("new-world-draw", "new-world-not-drawn")
_LOGGED = ("limit", "second-population", "new-world")


class _Choice(NamedTuple):
    """What a rule does with an arrival, but for exploration.

    Attributes:
        retain: Whether it keeps it.
        reason: Why or why not.
        certainty: How probable it was that it keeps it.
        priority: Rank for a store that is full, in [0, 1].
    """

    retain: bool
    reason: str
    certainty: float
    priority: float


class ComposedRule(BaseRule):
    """Gates, then a score against a moving limit, with a floor for every class and a random share.

    In this order, for every arrival:

    1. An outlier, farther from its predicted class than calibration samples are, is discarded, and so is a
       sample of a second population that calibration did not have; not while the rule is so far behind its
       rate that the controller asks for everything, as when the world changes all at once.
    2. A near-duplicate of one of the last 256 kept samples is discarded.
    3. A score among the highest of the last 500 is kept; which share of them, a controller says that
       holds the target rate through drift. Where the second population has become the larger one, the
       world has changed: what the model makes of it says little, and a draw takes the score's place,
       with that share as its probability, until the world changes back or the rule is calibrated again.
    4. A class of which less than a quarter of the target share was kept lately gets this sample; one that
       has more than its ceiling does not.
    5. Of all arrivals, whatever the above says, a small share is kept at random; its probability is stored,
       so that what the rule never keeps can be estimated.

    What adapts is bounded, can be frozen, and is noted: see :attr:`adaptations`.

    Subclasses say which score. The priority is the score's rank among the last ones; where a draw takes
    its place, the draw's.

    Args:
        retention: Share of the stream to keep, in (0, 1); not with one of the next two.
        samples_per_hour: Target per time instead.
        bytes_per_day: Target per time instead, in encoded bytes.
        exploration: Share of what is kept that is drawn at random, in [0, 1).
        gates: Whether outliers, a second population and near-duplicates are discarded; needs features.
        floor: Share of the target that every class gets, in [0, 1]; 0 for none.
        ceiling: Largest share of one class in what is kept, in (0, 1]; 1 for none.
        frozen: Keep the calibrated limits and expect no second population; only the rate is controlled.
        seed: Seed of the draws.
    """

    def __init__(
        self,
        retention: float | None = None,
        *,
        samples_per_hour: float | None = None,
        bytes_per_day: float | None = None,
        exploration: float = 0.02,
        gates: bool = True,
        floor: float = 0.25,
        ceiling: float = 1.0,
        frozen: bool = False,
        seed: int = 0,
    ) -> None:
        if retention is None and samples_per_hour is None and bytes_per_day is None:
            retention = 0.6
        self._target = Target(retention, samples_per_hour, bytes_per_day)
        if not is_real(exploration) or not 0 <= exploration < 1:
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
            "ceiling": ceiling,
            "frozen": frozen,
            "seed": seed,
        }
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._rate = RateController(self._target)
        self._rule: ThresholdRule | None = None
        self._start(0)  # refuses a floor or ceiling outside its range

    @classmethod
    def for_retention(cls, retention: float, **params: Any) -> Self:
        """The rule that aims at keeping the share ``retention``."""
        return cls(retention, **params)

    @property
    def params(self) -> JsonObject:
        """The target, exploration, gates, floor, ceiling, frozen and seed."""
        return dict(self._params)

    @property
    def needs(self) -> frozenset[str]:
        """What the score reads, and features for the gates."""
        return self._scoring_rule().needs | ({"features"} if self._params["gates"] else frozenset())

    @abstractmethod
    def _scoring_rule(self) -> ThresholdRule:
        """A new rule whose score ranks the samples."""

    @property
    def adaptations(self) -> list[JsonObject]:
        """The last 32 changes that the rule made to itself, the oldest first.

        Each has the number of the ``arrival`` from 1, ``what`` changed and the new ``value``: of ``limit``,
        the score's limit, when it has moved by a quarter; of ``second-population`` and ``new-world``, the
        share of what calibration did not have, when rejecting it, or drawing, begins (0 when it ends).
        """
        return self._log.entries

    def state(self) -> JsonObject:
        """The state of every part."""
        if self._rule is None:
            raise self._uncalibrated()
        state = {
            "utility": self._rule.state(),
            "recent": self._recent.state(),
            "rate": self._rate.state(),
            "classes": self._classes.state(),
            "generator": self._rng.bit_generator.state,
            "arrivals": self._arrivals,
            "adaptations": self._log.state(),
        }
        if self._params["gates"]:
            state |= {
                "gaussians": self._gaussians.state(),
                "outliers": self._outliers.state(),
                "population": self._population.state(),
                "duplicates": self._duplicates.state(),
            }
        return state

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        self._rule = self._scoring_rule().calibrate(observations)
        self._start(n_classes)
        self._recent = RunningQuantile.spread(_WINDOW, self._rule.score(observations))
        if self._params["gates"]:
            features, classes = _features(observations), observations.classes
            order = np.lexsort((classes, *features.T))  # sums must not depend on the order of the samples
            features, classes = features[order], classes[order]
            coarse = features[:, :N_NUMBERS]
            self._gaussians.calibrate(coarse, classes, n_classes)
            self._outliers.calibrate(held_out_distances(coarse, classes, n_classes))
            self._population = PopulationGate(coarse.shape[1])
            self._duplicates.calibrate(features)

    def _restore(self, state: JsonObject) -> None:
        rule = self._scoring_rule().restore(state["utility"])
        self._start(count("n_classes", state["classes"]["n_classes"]))
        self._recent = RunningQuantile.restored(_WINDOW, state["recent"], n_values=_WINDOW)
        self._rate.restore(state["rate"])
        self._classes.restore(state["classes"])
        restore_generator(self._rng, state["generator"])
        self._arrivals = count("arrivals", state["arrivals"])
        self._log.restore(state["adaptations"])
        if self._params["gates"]:
            self._gaussians.restore(state["gaussians"], self._n_classes)
            self._outliers.restore(state["outliers"])
            self._population = PopulationGate(self._gaussians.n_features)
            self._population.restore(state["population"])
            self._duplicates.restore(state["duplicates"])
            if min(self._duplicates.n_features, N_NUMBERS) != self._gaussians.n_features:
                raise ValueError("all gates must be for the same features")
        self._rule = rule

    def _start(self, n_classes: int) -> None:
        self._n_classes = n_classes
        self._classes = ClassShares(n_classes, self._params["floor"], self._params["ceiling"])
        self._gaussians, self._outliers, self._duplicates = ClassGaussians(), OutlierGate(), DuplicateGate()
        self._arrivals = 0
        self._log = AdaptationLog(_LOGGED)

    def _check_arrivals(self, observations: Observations) -> None:
        self._check_classes(observations, self._n_classes)
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
        score = self._rule.score(observations)
        n = len(score)
        gated = self._params["gates"] and n
        features = self._gate_features(observations) if gated else np.empty((n, 0))
        retain, priority, probability = np.zeros(n, np.bool_), np.zeros(n), np.ones(n)
        reasons = []
        for row in range(n):
            value, label = float(score[row]), int(observations.classes[row])
            time_s = None if observations.time_s is None else float(observations.time_s[row])
            n_bytes = 0 if observations.n_bytes is None else int(observations.n_bytes[row])
            share = self._rate.share(time_s, n_bytes)
            self._classes.arrived(label)
            self._arrivals += 1
            choice = self._choose(value, label, features[row], share)
            chance = self._params["exploration"] * self._rate.target_share
            drawn = bool(self._rng.random() < chance)
            priority[row] = choice.priority
            probability[row] = choice.certainty + (1 - choice.certainty) * chance
            if choice.retain or drawn:
                retain[row] = True
                self._note_kept(label, features[row], n_bytes)
            reasons.append(choice.reason if choice.retain or not drawn else "exploration")
        return Decisions(retain, priority, probability, reasons)

    def _gate_features(self, observations: Observations) -> FloatArray:
        features = _features(observations)
        if features.shape[1] != self._duplicates.n_features:
            raise InputError(
                f"features must be {self._duplicates.n_features} numbers after the projection, got "
                f"{features.shape[1]}; calibrate {self.name!r} with the model that scores the stream"
            )
        return features

    def _choose(self, value: float, label: int, features: FloatArray, share: float) -> _Choice:
        priority = self._recent.rank(value)
        refusal = self._refusal(label, features, share) if self._params["gates"] else None
        if refusal is not None:
            return _Choice(False, refusal, 0.0, priority)
        if self._is_new_world:
            draw = float(self._rng.random())
            chosen, certainty, priority = draw < share, share, 1 - draw
            kept_as, refused_as = _DRAWN
        else:
            chosen = value >= self._limit_for(share, value)
            certainty, kept_as, refused_as = float(chosen), self.name, "below-limit"
        if self._classes.above_ceiling(label):
            return _Choice(False, "class-ceiling", 0.0, priority)
        if self._classes.below_floor(label, self._rate.target_share):
            return _Choice(True, kept_as if chosen else "class-floor", 1.0, priority)
        return _Choice(chosen, kept_as if chosen else refused_as, certainty, priority)

    def _limit_for(self, share: float, value: float) -> float:
        """The limit that a share of the last scores reach; takes in the next one."""
        limit = self._recent.limit(share)
        if not self._params["frozen"]:
            self._recent.add(value)
            if isfinite(limit):
                self._note("limit", limit, at_least=_LOGGED_STEP)
        return limit

    def _refusal(self, label: int, features: FloatArray, share: float) -> str | None:
        """Which gate an arrival does not pass, if any; every gate but the last learns from all arrivals."""
        frozen = self._params["frozen"]
        away = self._gaussians.whitened(features[:N_NUMBERS], label)
        is_usual = self._outliers.passes(float(away @ away), frozen=frozen)
        is_known = True
        if not frozen:
            is_known = self._population.passes(away)
            self._note("second-population", self._population.share if self._population.is_apart else 0.0)
            self._note("new-world", self._population.share if self._is_new_world else 0.0)
        if share < 1 and not (is_usual and is_known):
            return "second-population" if is_usual else "outlier"
        return None if self._duplicates.passes(features, frozen=frozen) else "near-duplicate"

    @property
    def _is_new_world(self) -> bool:
        return bool(self._params["gates"]) and self._population.is_new_world

    def _note(self, what: str, value: float, at_least: float | None = None) -> None:
        """Log a value: one that began or ended being 0, or moved by so much since it was logged last."""
        last = self._log.last(what)
        moved = (last > 0) != (value > 0) if at_least is None else abs(value - last) >= at_least
        if moved:
            self._log.note(self._arrivals, what, value)

    def _note_kept(self, label: int, features: FloatArray, n_bytes: int) -> None:
        self._rate.kept(n_bytes)
        self._classes.kept(label)
        if self._params["gates"]:
            self._duplicates.kept(features)


def _features(observations: Observations) -> FloatArray:
    assert observations.features is not None  # noqa: S101  # checked as a need
    return project(observations.features, N_FINE)


class AdaptiveMarginRule(ComposedRule):
    """The score is that of :class:`drip.rules.chance.MixedMarginRule`."""

    name: ClassVar[str] = "adaptive-margin"

    def _scoring_rule(self) -> ThresholdRule:
        return MixedMarginRule()


class AdaptiveRandomRule(ComposedRule):
    """What :class:`drip.rules.adaptive.ComposedRule` does around no preference at all.

    The score is a checksum of logits and seed in [0, 1): as good as a draw, and the same whenever the
    sample comes again.
    """

    name: ClassVar[str] = "adaptive-random"

    def _scoring_rule(self) -> ThresholdRule:
        return _Checksum(self._params["seed"])


class _Checksum(ThresholdRule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self._start = crc32(str(seed).encode())

    def score(self, observations: Observations) -> FloatArray:
        rows = np.ascontiguousarray(observations.logits, "<f8")
        return np.array([crc32(row.tobytes(), self._start) / 2**32 for row in rows], np.float64)
