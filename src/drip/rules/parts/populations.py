"""Numbered populations: which input belongs to which, how many were kept, and what a person said about them.

Population 1 is what calibration contained. A stranger gets the next number when the open place of
:class:`drip.rules.parts.PopulationGate` has separated a hundred of its arrivals; one that left and comes back
keeps its number. Whether it is junk or a new camera, only a person can say. Until then it has a quota.

An answer freezes the mean of its population, so the open place is free for the next stranger. The answers are
arguments of the rule (``answers``), because they must travel in a policy to other devices; the counts are part of
its state. A population is found again by its mean, never by its number: two devices may have given the same number
to different strangers.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np

from drip.errors import InputError, brief
from drip.rules.parts.gaussians import (
    POSTERIOR,
    ROOM_ARRIVALS,
    SEPARATION,
    START_SHARE,
    WINDOW,
    PopulationGate,
)
from drip.rules.state import count, number, packed, unpacked
from drip.types import FloatArray, JsonObject

KNOWN, NEW = 1, 0
"""Numbers of what calibration contained, and of a stranger that is not yet recognised."""


class _Allowance(NamedTuple):
    """What an answer allows: kept samples relative to the part of the stream, and the largest part of all kept."""

    times: float
    most: float


# Wanted, but the known inputs must stay represented: a model that is retrained on one camera forgets the others.
# Chosen, not measured.
ANSWERS: Mapping[str, _Allowance] = MappingProxyType(
    {"accept": _Allowance(4.0, 0.75), "ignore": _Allowance(0.0, 0.0)}
)
"""What a person may say about a population."""

MOST_ANSWERED = 8
_MOST_REMEMBERED = 8  # without an answer; a device that meets ever new strangers must not grow its state
_RECOGNISED = 100  # arrivals: the mean is then known to a fifth, and a scene of fifty frames has passed
_MOST_WEIGHT, _LEAST_WEIGHT = 0.999, 0.002
_LARGEST = 10**6  # of a mean's numbers, which are around 10, and of a population's number


@dataclass(slots=True)
class Population:
    """One population and its counts.

    Attributes:
        number: From 1; 0 for a stranger that is not yet recognised.
        since: Number of its first arrival, from 1; 0 before that.
        since_s: Time of that arrival in seconds since the epoch, or None.
        arrivals: Arrivals that belong to it.
        kept: How many of them were kept, for whatever reason.
        share: Part of about the last 500 arrivals of the stream.
        answer: ``accept``, ``ignore``, or None without an answer.
        mean: Mean of its whitened rows, shape (d,).
        spread: Mean squared distance of its rows to that mean.
        room: Samples that an accepted population may have now, as a credit.
    """

    number: int = NEW
    since: int = 0
    since_s: float | None = None
    arrivals: int = 0
    kept: int = 0
    share: float = 0.0
    answer: str | None = None
    mean: FloatArray = field(default_factory=lambda: np.zeros(0))
    spread: float = 1.0
    room: float = 0.0

    def arrived(self, arrival: int, time_s: float | None) -> None:
        """Count an arrival."""
        if not self.arrivals:
            self.since, self.since_s = arrival, time_s
        self.arrivals += 1

    def is_near(self, mean: FloatArray) -> bool:
        """Whether a population with this mean is the same one: they could not be told apart."""
        return _square(self.mean - mean) <= SEPARATION

    @property
    def radius(self) -> float:
        """Largest squared distance of a row that belongs to it.

        Twice the mean squared distance: 99 % of a new camera and of out-of-distribution pictures are nearer. A
        population that is far from the known one may reach half as far, because strangers of several kinds (such as
        inverted digits) have longer tails.
        """
        return self.spread + max(self.spread, _square(self.mean) / 4)

    def distance_to(self, other: Population) -> float:
        """Squared distance of the means."""
        return _square(self.mean - other.mean)

    @property
    def allowed(self) -> float:
        """Part of the kept samples that its answer allows."""
        times, most = ANSWERS[self.answer or "ignore"]
        return min(times * self.share, most)

    @property
    def counts(self) -> JsonObject:
        """What a person wants to know about it."""
        names = ("number", "since", "since_s", "share", "arrivals", "kept", "answer")
        # Until the first arrival the share is an assumption.
        return {name: getattr(self, name) for name in names} | ({} if self.arrivals else {"share": 0.0})

    def state(self) -> JsonObject:
        """Everything, with the mean as text."""
        rest = {"share": self.share, "spread": self.spread, "room": self.room}
        return {**self.counts, **rest, "mean": packed(self.mean, "<f8")}

    @classmethod
    def restored(cls, state: JsonObject, n_features: int) -> Self:
        """A population from its saved :meth:`state`."""
        answer = state["answer"]
        if answer is not None and not (isinstance(answer, str) and answer in ANSWERS):
            raise ValueError(f"answer must be one of {', '.join(ANSWERS)}, got {brief(answer)}")
        population = cls(
            **{name: count(name, state[name]) for name in ("number", "since", "arrivals", "kept")},
            since_s=None if state["since_s"] is None else number("since_s", state["since_s"]),
            share=number("share", state["share"]),
            answer=answer,
            mean=unpacked("mean", state["mean"], n_features, dtype="<f8"),
            spread=number("spread", state["spread"]),
            room=number("room", state["room"]),
        )
        if not 0 <= population.share <= 1 or population.spread <= 0 or population.number == KNOWN:
            raise ValueError(f"share must be in [0, 1], spread above 0 and number not 1, got {brief(state)}")
        return population


class Place(NamedTuple):
    """Where one arrival belongs.

    Attributes:
        number: The number of its population; :data:`NEW` for a stranger that is not yet recognised.
        is_limited: Whether it may be kept only within a quota, or not at all.
        is_recognised: Whether its population has just received its number.
    """

    number: int
    is_limited: bool
    is_recognised: bool = False


class Populations:
    r"""The populations of a stream: the known one, those with an answer, and the open place for the next.

    1. A row belongs to a population with an answer if its posterior against the known population is above 0.1, as
       in the open place; no other mean is nearer; and it is within the radius of the population. Without a
       radius a mean would own half of the space: of 3,000 out-of-distribution pictures, half lie nearer to the
       mean of a new camera than to the known mean, but only 8 % within its radius.
    2. Only the other rows reach the open place. So an ignored population, however large, is no distribution
       shift, and the next stranger is found beside it. Where the mean in the open place is not separated from
       an answered one, its rows belong to that one.
    3. An accepted population may fill four times its part of the stream; all of them together at most three
       quarters of what is kept, and one without an answer has its quota of the rest. The credit for this is
       limited to 200 arrivals, so a population that was away for a week does not fill the store when it returns.

    Complexity: 2 d operations per row and answered population, besides those of the open place.

    Args:
        gate: The open place.
        answers: Means with their answers, as :func:`read_answers` accepts them.

    Raises:
        InputError: an answer is malformed, or has a mean of another length.
    """

    def __init__(self, gate: PopulationGate, answers: Sequence[JsonObject] = ()) -> None:
        self.gate = gate
        self._answers = read_answers(answers)
        for answer in self._answers:
            if len(answer.mean) != gate.n_features:
                raise InputError(
                    f"the answer for population {answer.number} has a mean of {len(answer.mean)} numbers, but "
                    f"this model has {gate.n_features}; give the policy of this model",
                    code="policy-other-model",
                )
        self._known = Population(KNOWN)
        self._open: Population | None = None
        self._numbered: list[Population] = []
        self._next = KNOWN + 1
        self._apply_answers()

    @property
    def is_apart(self) -> bool:
        """Whether the open place has a population that is limited."""
        return self.gate.is_apart and self._near_answered() is None

    @property
    def is_shifted(self) -> bool:
        """Whether a population without an answer is the larger part of the stream without the answered ones."""
        return self.gate.is_shifted and self._near_answered() is None

    @property
    def counts(self) -> list[JsonObject]:
        """The known population and every recognised one by number; see :attr:`Population.counts`."""
        numbered = [each.counts for each in sorted(self._numbered, key=lambda each: each.number)]
        known = {**self._known.counts, "share": max(1 - sum(each["share"] for each in numbered), 0.0)}
        return [known, *numbered]

    def answer_for(self, population: int) -> str | None:
        """What a person said about a population; None without an answer."""
        return self._find(population).answer

    def place(
        self, row: FloatArray, *, arrival: int, time_s: float | None, target: float, frozen: bool = False
    ) -> Place:
        """Where one row belongs, shape (d,); updates the counts and the open place.

        Args:
            row: Whitened differences.
            arrival: Number of the arrival, from 1.
            time_s: Its time, or None.
            target: The keep rate now.
            frozen: Whether the open place learns nothing and holds nobody.
        """
        mine = self._answered_near(row) if self._answered else None
        is_limited = False
        if mine is None and not frozen:
            is_limited = not self.gate.passes(row)
            mine = self._in_open_place(is_limited=is_limited)
        for population in self._answered:
            population.share += ((population is mine) - population.share) / WINDOW
        together = max(self._accepted / ANSWERS["accept"].most, 1.0)
        for population in self._answered:
            rate = population.allowed / together * target
            population.room = min(population.room + rate, max(ROOM_ARRIVALS * rate, 1.0))
        if mine is None:
            self._known.arrived(arrival, time_s)
            return Place(KNOWN, is_limited=False)
        mine.arrived(arrival, time_s)
        if mine.answer is not None:
            return Place(mine.number, is_limited=True)
        is_recognised = mine.number == NEW and mine.arrivals >= _RECOGNISED
        if is_recognised:
            mine = self._recognised(mine)
        return Place(mine.number, is_limited, is_recognised)

    def has_room(self, population: int, target: float) -> bool:
        """Whether a limited population may have another sample at this keep rate."""
        found = self._find(population)
        if found.answer is not None:
            return found.room > 0
        # Of what the accepted populations leave.
        return self.gate.has_room(target * (1 - min(self._accepted, ANSWERS["accept"].most)))

    def kept(self, population: int, *, of_quota: bool) -> None:
        """Count a kept sample; ``of_quota`` if it was kept because its population had room."""
        found = self._find(population)
        found.kept += 1
        if of_quota and found.answer is None:
            self.gate.kept()
        elif of_quota:
            found.room -= 1

    def state(self) -> JsonObject:
        """The open place, and every population with its counts."""
        open_place = None if self._open is None else self._open.number
        strangers = [*self._numbered, *([self._open] if self._open and open_place == NEW else [])]
        return {
            **self.gate.state(),
            "known": [self._known.since, self._known.since_s, self._known.arrivals, self._known.kept],
            "open": open_place,
            "next": self._next,
            "numbered": [population.state() for population in strangers],
        }

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`, with the answers of this object.

        Raises:
            KeyError, TypeError, ValueError: the state is damaged.
        """
        self.gate.restore(state)
        self._read(state)
        self._apply_answers()

    @classmethod
    def saved(cls, state: JsonObject) -> Self:
        """The populations in a saved :meth:`state`, with the answers that the run had.

        Raises:
            KeyError, TypeError, ValueError: the state is damaged.
        """
        populations = cls(PopulationGate(len(b64decode(state["mean"])) // 8))
        populations._read(state)
        return populations

    def answers_with(self, answers: Sequence[JsonObject], population: int, answer: str) -> list[JsonObject]:
        """The answers of a policy, and of this object, with another one.

        Args:
            answers: The answers in the policy.
            population: The number of the population.
            answer: One of :data:`ANSWERS`.

        Raises:
            InputError: there is no such population, or there are too many answers.
        """
        wanted = next((each for each in self._numbered if each.number == population), None)
        if wanted is None:
            numbers = ", ".join(str(each.number) for each in self._numbered) or "none yet"
            raise InputError(
                f"there is no population {population} to answer for; those that were recognised: {numbers}",
                code="population-unknown",
            )
        found = read_answers(answers)
        # Answers that the run already had stay, even if the given policy is an older one.
        for each in [*(each for each in self._numbered if each.answer), replace(wanted, answer=answer)]:
            same = next((other for other in found if other.is_near(each.mean)), None)
            if same is None:
                taken = {other.number for other in found}
                free = each.number if each.number not in taken else max(taken) + 1
                found.append(replace(each, number=free))
            elif each.number == population:
                same.answer = answer
        merged = [_answer(each) for each in found]
        read_answers(merged)  # checks them, before a device does
        return merged

    def _read(self, state: JsonObject) -> None:
        # Version 0.1.0 did not number populations.
        since, since_s, arrivals, kept = state.get("known", (0, None, 0, 0))
        self._known = Population(
            KNOWN,
            count("since", since),
            None if since_s is None else number("since_s", since_s),
            count("arrivals", arrivals),
            count("kept", kept),
        )
        given, open_place = state.get("numbered", []), state.get("open")
        if not isinstance(given, list) or len(given) > MOST_ANSWERED + _MOST_REMEMBERED + 1:
            raise ValueError(
                f"numbered must be a list of at most {MOST_ANSWERED + _MOST_REMEMBERED} populations"
            )
        strangers = [Population.restored(each, self.gate.n_features) for each in given]
        by_number = {population.number: population for population in strangers}
        if len(by_number) < len(strangers):
            raise ValueError("every population must have a different number")
        self._open = None if open_place is None else by_number[count("open", open_place)]
        if NEW in by_number and open_place != NEW:
            raise ValueError("a population without a number must be in the open place")
        self._numbered = [population for population in strangers if population.number != NEW]
        self._next = max(KNOWN, count("next", state.get("next", KNOWN + 1)) - 1, *by_number, KNOWN) + 1

    def _apply_answers(self) -> None:
        """Find the population of every answer, or add it."""
        for population in self._numbered:
            population.answer = None
        left = [*self._numbered, *([self._open] if self._open and self._open.number == NEW else [])]
        for given in self._answers:
            near = [each for each in left if each.is_near(given.mean)]
            same = min(near, key=given.distance_to, default=None)
            is_taken = any(each.number == given.number for each in self._numbered)
            free = self._next if is_taken else given.number
            if same is None:
                same = replace(given, number=free, share=START_SHARE)
                self._numbered.append(same)
            else:
                left.remove(same)
                if same is self._open:
                    # Its part of the mean of the last rows would pass for the next stranger.
                    self.gate.clear()
                    self._open = None
                if same.number == NEW:
                    same.number = free
                    self._numbered.append(same)
                same.answer, same.mean, same.spread = given.answer, given.mean, given.spread
            self._next = max(self._next, same.number + 1)
        for population in left:
            if population is not self._open:
                population.share = 0.0  # its answer was withdrawn
        self._answered = [population for population in self._numbered if population.answer]
        d = self.gate.n_features
        self._means = np.array([population.mean for population in self._answered]).reshape(-1, d)
        self._halves = 0.5 * np.einsum("ij,ij->i", self._means, self._means)

    @property
    def _accepted(self) -> float:
        """Part of the kept samples that the accepted populations would have, if there were no others."""
        return sum(each.allowed for each in self._answered)

    def _find(self, population: int) -> Population:
        if population == KNOWN:
            return self._known
        if population == NEW and self._open is not None:
            return self._open
        return next(each for each in self._numbered if each.number == population)

    def _answered_near(self, row: FloatArray) -> Population | None:
        """The population with an answer to which a row belongs."""
        row = self.gate.scaled(row)
        # The logarithm of the densities' ratio to the known population, of equal covariance.
        odds = self._means @ row - self._halves
        best = int(np.argmax(odds))
        population, ahead = self._answered[best], float(odds[best])
        weight = min(max(population.share, _LEAST_WEIGHT), _MOST_WEIGHT)
        if ahead + log(weight / (1 - weight)) <= log(POSTERIOR / (1 - POSTERIOR)):
            return None
        if float(row @ row) - 2 * ahead > population.radius:
            return None
        if self.is_apart:
            mean = self.gate.population_mean
            if float(row @ mean - 0.5 * mean @ mean) > ahead:
                return None
        return population

    def _in_open_place(self, *, is_limited: bool) -> Population | None:
        """The population to which the row that the open place has just seen belongs, or None."""
        gate = self.gate
        if not gate.share:
            if self._open is not None:
                self._open.share = 0.0
            self._open = None
            return None
        if self._open is None:
            self._open = Population(mean=gate.population_mean, spread=gate.spread)
        self._open.share = gate.share * max(1 - sum(each.share for each in self._answered), 0.0)
        # While it is the larger part of the stream, its rows are counted although nothing limits them.
        if not (is_limited or (gate.posterior > POSTERIOR and gate.is_separate)):
            return None
        if gate.is_separate:
            self._open.mean, self._open.spread = gate.population_mean, gate.spread
        return self._near_answered() or self._open

    def _near_answered(self) -> Population | None:
        """The answered population from which the one in the open place is not separated, or None."""
        if not self._answered or not self.gate.share:
            return None
        mean = self.gate.population_mean
        return next((each for each in self._answered if each.is_near(mean)), None)

    def _recognised(self, newcomer: Population) -> Population:
        """The newcomer with its number: a new one, or its own if it was here before."""
        for earlier in self._numbered:
            if earlier.answer is None and earlier.is_near(newcomer.mean):
                earlier.arrivals += newcomer.arrivals
                earlier.kept += newcomer.kept
                earlier.share, earlier.mean, earlier.spread = newcomer.share, newcomer.mean, newcomer.spread
                self._open = earlier
                return earlier
        unanswered = [each for each in self._numbered if each.answer is None]
        if len(unanswered) >= _MOST_REMEMBERED:
            self._numbered.remove(unanswered[0])
        newcomer.number = self._next
        self._next += 1
        self._numbered.append(newcomer)
        return newcomer


def read_answers(answers: Any) -> list[Population]:
    """The populations with an answer, from the argument ``answers`` of a rule.

    Args:
        answers: Up to 8 objects with ``number``, ``answer``, ``mean`` (float64 in base64) and ``spread``.

    Raises:
        InputError: anything else, or a mean that is not separated from the known population.
    """
    if not isinstance(answers, (list, tuple)):
        raise _bad_answers(f"they must be a list, got {brief(answers)}")
    try:
        found = [_read_answer(given) for given in answers]
    except (TypeError, ValueError, OverflowError) as error:
        raise _bad_answers(str(error)) from error
    if len(found) > MOST_ANSWERED:
        raise _bad_answers(
            f"there may be at most {MOST_ANSWERED}, got {len(found)}; calibrate again, then accepted populations "
            "are known"
        )
    if len({population.number for population in found}) < len(found):
        raise _bad_answers("every population must have a different number")
    return found


def _read_answer(given: Any) -> Population:
    if not isinstance(given, Mapping) or set(given) != {"number", "answer", "mean", "spread"}:
        raise TypeError(f"each needs number, answer, mean and spread, got {brief(given)}")
    n_features = len(b64decode(given["mean"])) // 8
    population = Population.restored({**Population().state(), **given}, n_features)
    if population.answer is None or not KNOWN < population.number <= _LARGEST:
        raise ValueError(f"each needs an answer and a number from 2, got {brief(given)}")
    if np.abs(population.mean).max() > _LARGEST:
        raise ValueError(f"the mean of population {population.number} is too far away")
    if population.is_near(np.zeros(n_features)):
        raise ValueError(f"population {population.number} is not separated from what calibration contained")
    return population


def _square(away: FloatArray) -> float:
    return float(away @ away)


def _bad_answers(what: str) -> InputError:
    return InputError(f"answers for populations: {what}", code="rule-arguments")


def _answer(population: Population) -> JsonObject:
    saved = population.state()
    return {name: saved[name] for name in ("number", "answer", "mean", "spread")}
