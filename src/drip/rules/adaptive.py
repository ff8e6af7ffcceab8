"""Rules for streams that are not i.i.d.: gates, a moving threshold and a controller that holds the keep rate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from math import inf, isfinite
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from drip.errors import InputError
from drip.rules.base import BaseRule, ThresholdRule
from drip.rules.parts import (
    ClassGaussians,
    ClassShares,
    DuplicateGate,
    OutlierGate,
    PopulationGate,
    Populations,
    RateController,
    RunningQuantile,
    Target,
    held_out_distances,
)
from drip.rules.parts.gaussians import N_FINE, N_NUMBERS, project
from drip.rules.parts.populations import KNOWN, NEW, read_answers
from drip.rules.state import count, number, restore_generator
from drip.rules.uncertainty import MixedMarginRule
from drip.types import Decisions, FloatArray, JsonObject, Observations
from drip.windows import check_count, is_real

_WINDOW = 500
_QUOTA = 2.0  # of its part of the stream: enough to learn a new camera, and junk does little harm
_LOG_LENGTH = 32
_LOGGED_STEP = 0.25  # in units of the score; smaller moves of the threshold would fill the log in minutes
_DRAWN = ("shift-draw", "shift-not-drawn")
# A saved log refers to these by position: append only.
_LOGGED = ("limit", "population", "distribution-shift", "population-number")

GATES = ("duplicates", "outliers", "populations")
"""What a rule of this module can reject before its score is compared."""


class _Choice(NamedTuple):
    """What a rule decides on an arrival, before exploration.

    Attributes:
        retain: Whether to keep it.
        reason: Why or why not.
        certainty: Probability of keeping it.
        priority: Rank for eviction from a full store, in [0, 1].
        population: Number of its population.
        of_quota: Whether it is kept because its population had room.
    """

    retain: bool
    reason: str
    certainty: float
    priority: float
    population: int = KNOWN
    of_quota: bool = False


class ComposedRule(BaseRule):
    """Gates, then a moving threshold on a score, with a floor for every class and random exploration.

    For every arrival, in this order:

    1. The gate ``populations`` looks for a population that calibration did not contain. The inputs
       do not show whether it is junk or a new camera, so it gets a quota: twice its part of the stream, but at
       most half of the kept samples. The first arrivals that are not near-duplicates fill the quota. With
       ``quota=0`` the population is discarded. Its reason is ``population-2`` (``population-new`` before it is
       recognised); a person may accept or ignore it: see :class:`drip.rules.parts.Populations`.
       The gate ``outliers`` discards samples farther from their predicted class than calibration samples are.
       It is off by default, because it discards a new camera. Exception to both: the rule is so far below its
       keep rate that the controller asks for everything, as after a sudden change of the whole stream. An
       ignored population stays ignored even then.
    2. The gate ``duplicates`` discards a near-duplicate of one of the last 256 kept samples.
    3. A sample whose score is among the highest of the last 500 is kept. A controller sets how many of them
       are kept, so the keep rate holds through drift. With the gate ``populations``: when a population without
       an answer has become the larger one, the distribution has shifted and the model's output means little. A
       random draw then replaces the score, with the same probability, until the stream changes back or the rule
       is calibrated again.
    4. A class of which less than a quarter of the target was kept recently gets this sample; a class above its
       ceiling does not.
    5. Independently of the above, a small part of all arrivals is kept at random. Its probability is stored,
       so what the rule never keeps can be estimated.

    Every adaptation is bounded, can be frozen, and is logged: see :attr:`adaptations`.

    Subclasses name the score. The priority is the rank of the score among the last 500, or of the draw that
    replaces it.

    Args:
        retention: Keep rate, in (0, 1); excludes the next two.
        samples_per_hour: A target in samples per hour, instead of a keep rate.
        bytes_per_day: A target in encoded bytes per day, instead of a keep rate.
        exploration: Part of the kept samples that is drawn at random, in [0, 1).
        gates: Which of :data:`GATES` are on; each needs features. Policies of version 0.1.0 have True for all of
            them, without a quota, or False for none.
        quota: Part of the kept samples that a population without an answer may have, relative to its part of
            the stream.
        floor: Part of the target that every class gets, in [0, 1]; 0 for none.
        ceiling: Largest part of the kept samples that one class may have, in (0, 1]; 1 for none.
        frozen: Keep the calibrated thresholds and look for no further population; only the keep rate adapts.
        seed: Seed of the draws.
        answers: What a person said about populations, at most 8; ``drip populations`` writes it. A run with
            other answers continues with the saved state.
    """

    def __init__(
        self,
        retention: float | None = None,
        *,
        samples_per_hour: float | None = None,
        bytes_per_day: float | None = None,
        exploration: float = 0.02,
        gates: bool | Collection[str] = ("duplicates", "populations"),
        quota: float | None = None,
        floor: float = 0.25,
        ceiling: float = 1.0,
        frozen: bool = False,
        seed: int = 0,
        answers: Sequence[JsonObject] = (),
    ) -> None:
        if retention is None and samples_per_hour is None and bytes_per_day is None:
            retention = 0.6
        self._target = Target(retention, samples_per_hour, bytes_per_day)
        if not is_real(exploration) or not 0 <= exploration < 1:
            raise InputError(f"exploration must be in [0, 1), got {exploration!r}")
        if not isinstance(frozen, bool):
            raise InputError(f"frozen must be True or False, got {frozen!r}")
        self._gates = _gates(gates)
        self._as_released = gates is True  # in 0.1.0, without a quota and without the noise of calibration
        if quota is None:
            quota = 0.0 if isinstance(gates, bool) else _QUOTA
        if not is_real(quota) or not 0 <= quota < inf:
            raise InputError(f"quota must be a number of at least 0, got {quota!r}")
        check_count("seed", seed)
        read_answers(answers)  # checks them
        if answers and "populations" not in self._gates:
            raise InputError("answers need the gate populations", code="rule-arguments")
        self._params: JsonObject = {
            **self._target.params,
            "exploration": exploration,
            "gates": list(self._gates),
            "quota": quota,
            "floor": floor,
            "ceiling": ceiling,
            "frozen": frozen,
            "seed": seed,
        }
        # Left out when empty, so the parameters of rules without answers, and what is named by them, stay the same.
        if answers:
            self._params["answers"] = list(answers)
        # PCG64 by name: the default generator of NumPy may change, saved states may not.
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._rate = RateController(self._target)
        self._rule: ThresholdRule | None = None
        self._start(0)  # checks floor and ceiling

    @classmethod
    def for_retention(cls, retention: float, **params: Any) -> Self:
        """The rule with this keep rate as its target."""
        return cls(retention, **params)

    @property
    def params(self) -> JsonObject:
        """The target, exploration, gates, quota, floor, ceiling, frozen and seed; answers if there are any."""
        return dict(self._params)

    @property
    def needs(self) -> frozenset[str]:
        """What the score reads, plus features for the gates."""
        return self._scoring_rule().needs | ({"features"} if self._gates else frozenset())

    @abstractmethod
    def _scoring_rule(self) -> ThresholdRule:
        """A new rule whose score ranks the samples."""

    @property
    def adaptations(self) -> list[JsonObject]:
        """The last 32 changes that the rule made to itself, the oldest first.

        Each has the number of the ``arrival`` from 1, ``what`` changed and the new ``value``. ``limit`` is the
        threshold of the score, logged when it has moved by a quarter. ``population`` and
        ``distribution-shift`` record the part of the stream that calibration did not contain, logged when the
        rule starts to limit it or to draw at random, and 0 when that ends. ``population-number`` is the number
        of a population that was just recognised.
        """
        return self._log.entries

    @property
    def populations(self) -> list[JsonObject]:
        """The populations by number; empty without the gate ``populations``.

        Each has its ``number`` (1 is what calibration contained), the number of the arrival ``since`` which it
        is here (0 before the first) and the time ``since_s`` of that arrival (or None), its ``share`` of about
        the last 500 arrivals, its ``arrivals``, how many of them were ``kept``, and the ``answer``.
        """
        return self._population.counts if "populations" in self._gates and self._rule is not None else []

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
        if self._looks_for_strangers:
            state["gaussians"] = self._gaussians.state()
        if "outliers" in self._gates:
            state["outliers"] = self._outliers.state()
        if "populations" in self._gates:
            state["population"] = self._population.state()
        if "duplicates" in self._gates:
            state["duplicates"] = self._duplicates.state()
        return state

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        self._rule = self._scoring_rule().calibrate(observations)
        self._start(n_classes)
        # Start with the calibration scores, so the first arrivals already meet a sensible threshold.
        self._recent = RunningQuantile.spread(_WINDOW, self._rule.score(observations))
        if self._gates:
            features, classes = _features(observations), observations.classes
            order = np.lexsort(
                (classes, *features.T)
            )  # a fixed order: sums must not depend on the order of arrival
            features, classes = features[order], classes[order]
            coarse = features[:, :N_NUMBERS]
            if self._looks_for_strangers:
                self._gaussians.calibrate(coarse, classes, n_classes)
            held_out = held_out_distances(coarse, classes, n_classes) if self._looks_for_strangers else None
            if "outliers" in self._gates and held_out is not None:
                self._outliers.calibrate(held_out)
            self._population = Populations(
                PopulationGate(
                    coarse.shape[1], self._params["quota"], None if self._as_released else held_out
                ),
                self._params.get("answers", ()),
            )
            if "duplicates" in self._gates:
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
        if "duplicates" in self._gates:
            self._duplicates.restore(state["duplicates"])
        if self._looks_for_strangers:
            self._gaussians.restore(state["gaussians"], self._n_classes)
        if "outliers" in self._gates:
            self._outliers.restore(state["outliers"])
        if "populations" in self._gates:
            self._population = Populations(
                PopulationGate(self._gaussians.n_features, self._params["quota"]),
                self._params.get("answers", ()),
            )
            self._population.restore(state["population"])
        if len({min(n, N_NUMBERS) for n in self._gate_widths()}) > 1:
            raise ValueError("all gates must have the same number of features")
        self._rule = rule

    def _start(self, n_classes: int) -> None:
        self._n_classes = n_classes
        self._classes = ClassShares(n_classes, self._params["floor"], self._params["ceiling"])
        self._gaussians, self._outliers, self._duplicates = ClassGaussians(), OutlierGate(), DuplicateGate()
        self._arrivals = 0
        self._time_s: float | None = None
        self._log = AdaptationLog(_LOGGED)

    def _check_arrivals(self, observations: Observations) -> None:
        self._check_classes(observations, self._n_classes)
        if self._rate.needs_time and (
            observations.time_s is None or not np.isfinite(observations.time_s).all()
        ):
            raise InputError(
                f"the rule {self.name!r} has the target {self._target.params} and needs the time of every "
                "sample; use a source that provides times, or set a keep rate",
                code="rule-needs",
            )
        if self._target.bytes_per_day is not None and observations.n_bytes is None:
            raise InputError(
                f"the rule {self.name!r} has the target {self._target.params} and needs the size of every "
                "sample; give n_bytes, or set a keep rate",
                code="rule-needs",
            )

    def _decide(self, observations: Observations) -> Decisions:
        if self._rule is None:
            raise self._uncalibrated()
        self._check_arrivals(observations)
        score = self._rule.score(observations)
        n = len(score)
        gated = self._gates and n
        features = self._gate_features(observations) if gated else np.empty((n, 0))
        retain, priority, probability = np.zeros(n, np.bool_), np.zeros(n), np.ones(n)
        reasons = []
        # A loop, not array operations: each decision changes the state that the next one reads.
        for row in range(n):
            value, label = float(score[row]), int(observations.classes[row])
            time_s = None if observations.time_s is None else float(observations.time_s[row])
            n_bytes = 0 if observations.n_bytes is None else int(observations.n_bytes[row])
            share = self._rate.share(time_s, n_bytes)
            self._classes.arrived(label)
            self._arrivals += 1
            self._time_s = time_s if time_s is not None and isfinite(time_s) else None
            choice = self._choose(value, label, features[row], share)
            # Relative to the target: at a keep rate of 1 % exploration must not become the larger part.
            chance = self._params["exploration"] * self._rate.target_share
            # Drawn for every arrival, also for kept ones, so the stored probability is exact.
            drawn = bool(self._rng.random() < chance)
            priority[row] = choice.priority
            probability[row] = choice.certainty + (1 - choice.certainty) * chance
            if choice.retain or drawn:
                retain[row] = True
                self._note_kept(label, features[row], n_bytes)
                if self._follows_populations:
                    self._population.kept(choice.population, of_quota=choice.of_quota)
            reasons.append(choice.reason if choice.retain or not drawn else "exploration")
        return Decisions(retain, priority, probability, reasons)

    def _gate_features(self, observations: Observations) -> FloatArray:
        features = _features(observations)
        width = self._gate_widths()[0]
        if width != (features.shape[1] if "duplicates" in self._gates else min(features.shape[1], N_NUMBERS)):
            raise InputError(
                f"the rule {self.name!r} was calibrated with {width} projected "
                f"features, but this model has {features.shape[1]}; calibrate it with the model that scores the stream",
                code="policy-other-model",
            )
        return features

    def _choose(self, value: float, label: int, features: FloatArray, share: float) -> _Choice:
        priority, population, refusal = self._recent.rank(value), KNOWN, None
        if self._gates:
            population, refusal = self._refusal(label, features, share)
        if refusal is None:
            return self._choose_known(value, label, share, priority)._replace(population=population)
        if refusal == _reason(population) and self._population.has_room(population, self._rate.target_share):
            # The model's output means little here. A draw also lets a full store evict from all populations.
            return _Choice(True, refusal, 1.0, float(self._rng.random()), population, of_quota=True)
        return _Choice(False, refusal, 0.0, priority, population)

    def _choose_known(self, value: float, label: int, share: float, priority: float) -> _Choice:
        if self._is_shifted:
            draw = float(self._rng.random())
            chosen, certainty, priority = draw < share, share, 1 - draw
            kept_as, refused_as = _DRAWN
        else:
            chosen = value >= self._limit_for(share, value)
            certainty, kept_as, refused_as = float(chosen), self.name, "below-limit"
        # After the score: a ceiling also binds what the score prefers.
        if self._classes.above_ceiling(label):
            return _Choice(False, "class-ceiling", 0.0, priority)
        if self._classes.below_floor(label, self._rate.target_share):
            return _Choice(True, kept_as if chosen else "class-floor", 1.0, priority)
        return _Choice(chosen, kept_as if chosen else refused_as, certainty, priority)

    def _limit_for(self, share: float, value: float) -> float:
        """The threshold that this part of the last scores reach; then remember the new score."""
        # Before the new score is added: a sample must not influence its own threshold.
        limit = self._recent.limit(share)
        if not self._params["frozen"]:
            self._recent.add(value)
            if isfinite(limit):
                self._note("limit", limit, at_least=_LOGGED_STEP)
        return limit

    def _refusal(self, label: int, features: FloatArray, share: float) -> tuple[int, str | None]:
        """The population of an arrival, and the gate that it does not pass, or None.

        Every gate but the last learns from all arrivals.
        """
        frozen = self._params["frozen"]
        population, stranger = KNOWN, None
        if self._looks_for_strangers:
            away = self._gaussians.whitened(features[:N_NUMBERS], label)
            population, answer, stranger = self._stranger(away)
            if answer == "ignore":
                return population, stranger
            # A share of 1 means that the rule is far below its target; rejecting more would silence the device.
            if share == 1:
                stranger = None
            # A population that has a quota must still pass the next gate.
            if stranger == "outlier" or (stranger and not answer and not self._params["quota"]):
                return population, stranger
        # Last, because it remembers kept samples: a rejected outlier must not count as one.
        if "duplicates" in self._gates and not self._duplicates.passes(features, frozen=frozen):
            return population, "near-duplicate"
        return population, stranger

    def _stranger(self, away: FloatArray) -> tuple[int, str | None, str | None]:
        """The population of these whitened differences, its answer, and why calibration did not contain them."""
        frozen, population, reason = self._params["frozen"], KNOWN, None
        # Outliers and populations see every arrival, kept or not: they estimate the stream, not the selection.
        if self._follows_populations:
            place = self._population.place(
                away,
                arrival=self._arrivals,
                time_s=self._time_s,
                target=self._rate.target_share,
                frozen=frozen,
            )
            population = place.number
            reason = _reason(population) if place.is_limited else None
            self._note("population", self._population.gate.share if self._population.is_apart else 0.0)
            self._note("distribution-shift", self._population.gate.share if self._is_shifted else 0.0)
            if place.is_recognised:
                self._log.note(self._arrivals, "population-number", population)
            answer = self._population.answer_for(population)
            # A person knows it, so it no longer counts as a part of the stream that looks strange.
            if answer is not None:
                return population, answer, reason
        if "outliers" in self._gates and not self._outliers.passes(float(away @ away), frozen=frozen):
            reason = "outlier"
        return population, None, reason

    @property
    def _follows_populations(self) -> bool:
        # A frozen rule knows only those that a person has answered for.
        return "populations" in self._gates and not (self._params["frozen"] and "answers" not in self._params)

    @property
    def _looks_for_strangers(self) -> bool:
        return "outliers" in self._gates or "populations" in self._gates

    def _gate_widths(self) -> list[int]:
        """Lengths of the rows that the gates were calibrated with: all numbers, or the coarse ones."""
        widths = [self._duplicates.n_features] if "duplicates" in self._gates else []
        return widths + ([self._gaussians.n_features] if self._looks_for_strangers else [])

    @property
    def _is_shifted(self) -> bool:
        return "populations" in self._gates and self._population.is_shifted

    def _note(self, what: str, value: float, at_least: float | None = None) -> None:
        """Log a value that became or ceased to be 0, or moved by ``at_least`` since the last entry."""
        last = self._log.last(what)
        moved = (last > 0) != (value > 0) if at_least is None else abs(value - last) >= at_least
        if moved:
            self._log.note(self._arrivals, what, value)

    def _note_kept(self, label: int, features: FloatArray, n_bytes: int) -> None:
        self._rate.kept(n_bytes)
        self._classes.kept(label)
        if "duplicates" in self._gates:
            self._duplicates.kept(features)


def _reason(population: int) -> str:
    return "population-new" if population == NEW else f"population-{population}"


def _gates(given: object) -> tuple[str, ...]:
    """The names of gates in their fixed order; policies of earlier versions say True or False."""
    if isinstance(given, bool):
        return GATES if given else ()
    names = list(given) if isinstance(given, (list, tuple, set, frozenset)) else [given]
    if not all(name in GATES for name in names):
        raise InputError(f"gates must be names among {', '.join(GATES)}, True or False, got {given!r}")
    return tuple(name for name in GATES if name in names)


def _features(observations: Observations) -> FloatArray:
    assert observations.features is not None  # noqa: S101  # checked as a need
    return project(observations.features, N_FINE)


class AdaptationLog:
    """The last 32 changes.

    Args:
        kinds: What may change.

    >>> log = AdaptationLog(("limit", "distribution-shift"))
    >>> log.note(7, "limit", 0.5)
    >>> log.last("limit"), log.entries
    (0.5, [{'arrival': 7, 'what': 'limit', 'value': 0.5}])
    """

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self._kinds = kinds
        self._slots: list[tuple[int, int, float]] = []  # arrival, number of the kind, value
        self._oldest = 0

    @property
    def entries(self) -> list[JsonObject]:
        """The changes, the oldest first: ``arrival``, ``what`` changed, its new ``value``."""
        return [
            {"arrival": arrival, "what": self._kinds[kind], "value": value}
            for arrival, kind, value in reversed(list(self._newest_first()))
        ]

    def last(self, what: str) -> float:
        """The last value of one kind; 0 without any."""
        wanted = self._kinds.index(what)
        return next((value for _, kind, value in self._newest_first() if kind == wanted), 0.0)

    def note(self, arrival: int, what: str, value: float) -> None:
        """Add a change; when the log is full it replaces the oldest."""
        entry = (arrival, self._kinds.index(what), value)
        if len(self._slots) < _LOG_LENGTH:
            self._slots.append(entry)
        else:
            self._slots[self._oldest] = entry
            self._oldest = (self._oldest + 1) % _LOG_LENGTH

    def state(self) -> JsonObject:
        """The changes in their slots, empty ones included: a state of constant length costs a store less."""
        slots = [list(slot) for slot in self._slots]
        return {"slots": slots + [[None] * 3] * (_LOG_LENGTH - len(slots)), "oldest": self._oldest}

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`.

        Raises:
            KeyError, TypeError, ValueError: the state is damaged.
        """
        given, empty = state["slots"], [None] * 3
        if not isinstance(given, list) or len(given) != _LOG_LENGTH:
            raise TypeError(f"slots must be a list of {_LOG_LENGTH}")
        n_slots = given.index(empty) if empty in given else _LOG_LENGTH
        if given[n_slots:] != [empty] * (_LOG_LENGTH - n_slots):
            raise ValueError("the empty slots must come last")
        slots = [
            (count("arrival", arrival), count("kind", kind), number("value", value))
            for arrival, kind, value in given[:n_slots]
        ]
        oldest = count("oldest", state["oldest"])
        if oldest >= (_LOG_LENGTH if n_slots == _LOG_LENGTH else 1):
            raise ValueError(f"oldest must be one of {n_slots} slots, got {oldest}")
        if any(kind >= len(self._kinds) for _, kind, _ in slots):
            raise ValueError(f"kinds must be numbers below {len(self._kinds)}")
        self._slots, self._oldest = slots, oldest

    def _newest_first(self) -> Iterator[tuple[int, int, float]]:
        yield from reversed(self._slots[: self._oldest])
        yield from reversed(self._slots[self._oldest :])


class AdaptiveMarginRule(ComposedRule):
    """A :class:`ComposedRule` with the score of :class:`drip.rules.uncertainty.MixedMarginRule`."""

    name: ClassVar[str] = "adaptive-margin"

    def _scoring_rule(self) -> ThresholdRule:
        return MixedMarginRule()
