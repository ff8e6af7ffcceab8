"""Numbers, counts and answers of populations: planted ones in 64 dimensions, and whole rules."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import raises, replaced

from drip.errors import InputError, PolicyError
from drip.policy import Policy, RuleSpec
from drip.rules import create
from drip.rules.parts import PopulationGate, Populations
from drip.rules.parts.populations import KNOWN, NEW, read_answers
from drip.rules.state import packed
from drip.testing import check_rule
from drip.types import Observations

D = 64
UNNUMBERED = Path(__file__).parents[1] / "data" / "adaptive_states_unnumbered.json"


def direction(seed, length):
    """A mean at a distance, in its own direction."""
    way = np.random.default_rng(seed).normal(size=D)
    return length * way / np.linalg.norm(way)


A, B = direction(1, 8.0), direction(2, 9.0)


def rows(n, shares, seed=0):
    """Rows of the known population, and shares of others: pairs of share and mean. Also whose each row is."""
    draw = np.random.default_rng(seed)
    parts = [1 - sum(share for share, _ in shares), *(share for share, _ in shares)]
    whose = draw.choice(len(parts), n, p=parts)
    means = np.stack([np.zeros(D), *(mean for _, mean in shares)])
    return draw.normal(size=(n, D)) + means[whose], whose


def populations(answers=(), quota=2.0):
    return Populations(PopulationGate(D, quota), answers)


def pass_through(book, given, start=1):
    """The place of every row."""
    return [
        book.place(row, arrival=start + i, time_s=100.0 + start + i, target=0.3)
        for i, row in enumerate(given)
    ]


def answered(book, number, answer, answers=()):
    """The same populations after an answer, in a new object as after a restart."""
    new = populations(book.answers_with(answers, number, answer))
    new.restore(json.loads(json.dumps(book.state())))
    return new


def counts_of(book, number):
    return next(each for each in book.counts if each["number"] == number)


def numbers(places, whose, which):
    """How often rows of one origin belong where, without the first half, in which populations begin."""
    half = len(places) // 2
    return Counter(
        place.number for place, who in zip(places[half:], whose[half:], strict=True) if who == which
    )


def test_a_stranger_is_numbered_when_it_is_told_apart_and_counted_from_its_first_arrival():
    book = populations()
    calm, _ = rows(300, [])
    given, whose = rows(3000, [(0.2, A)], seed=1)
    pass_through(book, calm)
    places = pass_through(book, given, start=301)
    assert [place.is_recognised for place in places].count(True) == 1
    assert numbers(places, whose, 1)[2] > 0.98 * (whose[1500:] == 1).sum()
    assert numbers(places, whose, 0)[KNOWN] > 0.99 * (whose[1500:] == 0).sum()
    assert [each["number"] for each in book.counts] == [1, 2]
    found = counts_of(book, 2)
    assert 301 <= found["since"] < 800
    assert found["since_s"] == 100.0 + found["since"]
    assert found["share"] == pytest.approx(0.2, abs=0.05)
    assert 0.6 * (whose == 1).sum() < found["arrivals"] <= (whose == 1).sum() + 30
    assert counts_of(book, 1)["arrivals"] + found["arrivals"] == 3300


def test_before_a_hundred_arrivals_a_stranger_has_no_number():
    book = populations()
    given, _ = rows(1200, [(0.2, A)])
    places = pass_through(book, given)
    limited = [place for place in places if place.is_limited]
    assert [place.number for place in limited[:99]] == [NEW] * 99
    assert {place.number for place in limited[100:]} == {2}


def test_a_second_stranger_is_found_beside_an_answered_one():
    book = populations()
    pass_through(book, rows(2000, [(0.2, A)])[0])
    for answer in ("ignore", "accept"):
        other = answered(book, 2, answer)
        given, whose = rows(4000, [(0.2, A), (0.2, B)], seed=1)
        places = pass_through(other, given, start=2001)
        assert numbers(places, whose, 1).most_common(1)[0][0] == 2
        assert numbers(places, whose, 2).most_common(1)[0][0] == 3
        for which, number in ((0, 1), (1, 2), (2, 3)):
            share = numbers(places, whose, which)[number] / (whose[2000:] == which).sum()
            assert share > 0.97
        assert [each["answer"] for each in other.counts] == [None, answer, None]
        assert counts_of(other, 3)["since"] > 2000
        assert other.gate.share == pytest.approx(0.25, abs=0.05)  # of the rows that have no answer


def test_an_answered_population_leaves_nothing_behind_in_the_open_place():
    book = populations()
    pass_through(book, rows(2000, [(0.3, A)])[0])
    assert book.is_apart
    book = answered(book, 2, "ignore")
    assert not book.is_apart
    places = pass_through(book, rows(4000, [(0.3, A)], seed=1)[0], start=2001)
    assert {place.number for place in places} == {1, 2}
    assert book.gate.share == 0.0


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_an_ignored_population_that_is_the_larger_part_is_no_distribution_shift(share):
    book = populations()
    pass_through(book, rows(2000, [(0.2, A)])[0])
    book = answered(book, 2, "ignore")
    shifted = []
    given, whose = rows(4000, [(share, A)], seed=1)
    for i, row in enumerate(given):
        place = book.place(row, arrival=2001 + i, time_s=None, target=0.3)
        shifted.append(book.is_shifted)
        assert place.number in (1, 2)
        assert place.is_limited == (place.number == 2)
    assert not any(shifted)
    assert counts_of(book, 2)["share"] == pytest.approx(share, abs=0.06)
    assert counts_of(book, 1)["arrivals"] > 0.9 * (whose == 0).sum()


def test_a_population_without_an_answer_that_grows_is_counted_through_the_shift():
    book = populations()
    pass_through(book, rows(1500, [(0.2, A)])[0])
    places = pass_through(book, rows(2500, [(0.8, A)], seed=1)[0], start=1501)
    assert book.is_shifted
    assert not places[-1].is_limited
    assert counts_of(book, 2)["share"] == pytest.approx(0.8, abs=0.05)


def test_an_answer_holds_only_within_the_radius_of_its_population():
    # Both lie on the same side of the known population: a mean alone would own all of that side.
    book = populations()
    pass_through(book, rows(2000, [(0.2, A)])[0])
    book = answered(book, 2, "ignore")
    given, whose = rows(3000, [(0.2, A), (0.2, 3 * A)], seed=1)
    places = pass_through(book, given, start=2001)
    assert numbers(places, whose, 2)[2] == 0
    assert numbers(places, whose, 2)[3] > 0.97 * (whose[1500:] == 2).sum()
    assert numbers(places, whose, 1)[2] > 0.97 * (whose[1500:] == 1).sum()


def test_a_population_that_comes_back_has_its_number():
    book = populations()
    start = 1
    for visit in range(3):
        for n, share in ((2000, 0.2), (6000, 0.0)):
            places = pass_through(book, rows(n, [(share, A)], seed=start)[0], start)
            start += n
        assert book.gate.share == 0.0, visit
    assert [each["number"] for each in book.counts] == [1, 2]
    found = counts_of(book, 2)
    assert found["since"] < 500
    assert found["share"] == 0.0
    assert found["arrivals"] == pytest.approx(1200, rel=0.25)
    assert places[-1].number == KNOWN


def test_a_population_that_has_left_can_still_be_answered_for():
    book = populations()
    pass_through(book, rows(2000, [(0.2, A)])[0])
    pass_through(book, rows(6000, [], seed=1)[0], 2001)
    book = answered(book, 2, "ignore")
    given, whose = rows(200, [(0.5, A)], seed=2)
    places = pass_through(book, given, 8001)
    assert [place.number for place in places] == [1 + who for who in whose]


def test_ever_new_strangers_do_not_let_the_state_grow():
    book, start = populations(), 1
    for stranger in range(11):
        mean = direction(10 + stranger, 12.0)
        for n, shares in ((1200, [(0.3, mean)]), (5000, [])):
            pass_through(book, rows(n, shares, seed=start)[0], start)
            start += n
    found = [each["number"] for each in book.counts]
    assert found == [1, *range(5, 13)]
    assert len(json.dumps(book.state())) < 12_000


def test_another_device_knows_an_answered_population_from_its_first_arrivals_on():
    book = populations()
    pass_through(book, rows(2000, [(0.2, A)])[0])
    other = populations(json.loads(json.dumps(book.answers_with([], 2, "ignore"))))
    assert counts_of(other, 2) == {
        "number": 2, "since": 0, "since_s": None, "share": 0.0, "arrivals": 0, "kept": 0, "answer": "ignore",
    }  # fmt: skip
    given, whose = rows(100, [(0.3, A)], seed=3)
    places = pass_through(other, given)
    assert [place.number for place in places] == [1 + who for who in whose]
    assert counts_of(other, 2)["since"] == 1 + int(np.argmax(whose == 1))


def test_a_number_of_another_device_does_not_rename_a_population():
    book, elsewhere = populations(), populations()
    pass_through(book, rows(2000, [(0.2, A)])[0])
    pass_through(elsewhere, rows(2000, [(0.2, B)])[0])
    answers = elsewhere.answers_with([], 2, "ignore")
    both = populations(answers)
    both.restore(book.state())
    assert [(each["number"], each["answer"]) for each in both.counts] == [(1, None), (2, None), (3, "ignore")]
    given, whose = rows(2000, [(0.2, A), (0.2, B)], seed=1)
    places = pass_through(both, given, 2001)
    assert numbers(places, whose, 1).most_common(1)[0][0] == 2
    assert numbers(places, whose, 2).most_common(1)[0][0] == 3
    # And an answer to its own population keeps that of the other device.
    after = both.answers_with(answers, 2, "accept")
    assert sorted(each["answer"] for each in after) == ["accept", "ignore"]
    assert len({each["number"] for each in after}) == 2


def test_an_answer_also_applies_to_a_run_that_went_on_meanwhile():
    book = populations()
    pass_through(book, rows(1500, [(0.2, A)])[0])
    answers = book.answers_with([], 2, "ignore")
    pass_through(book, rows(1500, [(0.2, A)], seed=1)[0], 1501)
    before = counts_of(book, 2)
    after = populations(answers)
    after.restore(book.state())
    assert counts_of(after, 2) == {**before, "answer": "ignore"}
    assert len(after.counts) == 2


def test_an_answer_may_change_and_may_be_withdrawn():
    book = populations()
    pass_through(book, rows(2000, [(0.2, A)])[0])
    ignoring = answered(book, 2, "ignore")
    answers = ignoring.answers_with([], 2, "ignore")  # an older policy without answers: the run's own stay
    accepting = answered(ignoring, 2, "accept", answers)
    assert [each["answer"] for each in accepting.answers_with(answers, 2, "accept")] == ["accept"]
    assert counts_of(accepting, 2) == {**counts_of(ignoring, 2), "answer": "accept"}
    withdrawn = populations()
    withdrawn.restore(accepting.state())
    assert counts_of(withdrawn, 2) == {**counts_of(ignoring, 2), "answer": None, "share": 0.0}
    places = pass_through(withdrawn, rows(2000, [(0.2, A)], seed=1)[0], 2001)
    assert {place.number for place in places[1000:]} == {1, 2}


@pytest.mark.parametrize("answer", [None, "ignore", "accept"])
@pytest.mark.parametrize("cut", [50, 700, 1500, 2900])
def test_populations_go_on_where_they_were(answer, cut):
    book = populations()
    pass_through(book, rows(2000, [(0.2, A)])[0])
    if answer:
        book = answered(book, 2, answer)
    given, _ = rows(3000, [(0.2, A), (0.15, B)], seed=1)

    def go(book, given, start):
        found = []
        for i, row in enumerate(given):
            place = book.place(row, arrival=start + i, time_s=None, target=0.3)
            has_room = place.is_limited and book.has_room(place.number, 0.3)
            if has_room:
                book.kept(place.number, of_quota=True)
            found.append((place, has_room))
        return found

    go(book, given[:cut], 2001)
    twin = populations(book.answers_with([], 2, answer) if answer else ())
    twin.restore(json.loads(json.dumps(book.state())))
    assert go(book, given[cut:], 2001 + cut) == go(twin, given[cut:], 2001 + cut)
    assert book.state() == twin.state()
    saved = Populations.saved(json.loads(json.dumps(book.state())))
    assert saved.counts == book.counts


def test_a_stranger_that_is_not_separated_gets_no_number_and_can_be_saved():
    book = populations()
    pass_through(book, rows(3000, [(0.3, direction(1, 2.5))])[0])
    assert book.gate.share > 0
    assert [each["number"] for each in book.counts] == [1]
    twin = populations()
    twin.restore(json.loads(json.dumps(book.state())))
    assert twin.state() == book.state()


def test_at_most_eight_populations_may_have_an_answer():
    answers = [
        {"number": 2 + i, "answer": "ignore", "mean": packed(direction(i, 9.0), "<f8"), "spread": 64.0}
        for i in range(8)
    ]
    assert len(read_answers(answers)) == 8
    with raises(InputError, "rule-arguments"):
        read_answers([*answers, {**answers[0], "number": 20, "mean": packed(direction(9, 9.0), "<f8")}])
    book = populations(answers)
    pass_through(book, rows(2000, [(0.2, direction(20, 9.0))])[0])
    assert counts_of(book, 10)["answer"] is None
    with pytest.raises(InputError, match="at most 8"):
        book.answers_with(answers, 10, "accept")
    assert book.answers_with(answers, 5, "accept")[3]["answer"] == "accept"


@pytest.mark.parametrize("number", [0, 1, 3, 99])
def test_there_is_nothing_to_answer_for_where_no_population_was_recognised(number):
    book = populations()
    pass_through(book, rows(1500, [(0.2, A)])[0])
    with raises(InputError, "population-unknown"):
        book.answers_with([], number, "accept")


GOOD = {"number": 2, "answer": "ignore", "mean": packed(A, "<f8"), "spread": 64.0}


@pytest.mark.parametrize(
    "answers",
    [
        GOOD,
        "ignore",
        5,
        [5],
        [[]],
        [{**GOOD, "note": 1}],
        [{name: GOOD[name] for name in ("number", "answer", "mean")}],
        [{**GOOD, "number": 1}],
        [{**GOOD, "number": 2.0}],
        [{**GOOD, "number": True}],
        [{**GOOD, "number": 10**400}],
        [{**GOOD, "answer": "ban"}],
        [{**GOOD, "answer": None}],
        [{**GOOD, "answer": ["ignore"]}],
        [{**GOOD, "mean": A.tolist()}],
        [{**GOOD, "mean": ""}],
        [{**GOOD, "mean": "!"}],
        [{**GOOD, "mean": packed(A, "<f8")[:-8]}],
        [{**GOOD, "mean": packed(np.full(D, np.nan), "<f8")}],
        [{**GOOD, "mean": packed(np.full(D, np.inf), "<f8")}],
        [{**GOOD, "mean": packed(np.full(D, 1e200), "<f8")}],
        [{**GOOD, "mean": packed(np.zeros(D), "<f8")}],  # everything known would be ignored
        [{**GOOD, "mean": packed(A / 2, "<f8")}],
        [{**GOOD, "spread": 0.0}],
        [{**GOOD, "spread": float("nan")}],
        [{**GOOD, "spread": "64"}],
        [GOOD, {**GOOD, "mean": packed(B, "<f8")}],
    ],
)
def test_malformed_answers_are_refused(answers):
    with raises(InputError, "rule-arguments"):
        create("adaptive-margin", answers=answers)
    with pytest.raises(PolicyError):
        Policy(RuleSpec("adaptive-margin", {"retention": 0.3, "answers": answers}, {}), 3).to_rule()


def test_answers_need_the_gate():
    for gates in (False, ["duplicates"]):
        with raises(InputError, "rule-arguments"):
            create("adaptive-margin", gates=gates, answers=[GOOD])


# -- rules -------------------------------------------------------------------------------------------------


def stream(n, shares, seed):
    """Rows of three classes; each share of them lies elsewhere in the features, with small margins."""
    draw = np.random.default_rng(seed)
    whose = draw.choice(1 + len(shares), n, p=[1 - sum(shares), *shares])
    classes = draw.integers(0, 3, n)
    features = draw.normal(1.0, 0.2, (n, 40)) + 0.5 * np.eye(3, 40)[classes]
    features[whose == 1, 20:30] += 0.5
    features[whose == 2, 5:15] += 0.6
    logits = np.where(whose > 0, 0.3, 3.0)[:, None] * np.eye(3)[classes] + 0.1 * draw.normal(size=(n, 3))
    return Observations(logits.argmax(1), logits, {"drip": np.zeros(n)}, "drip", features), whose


def calibrated(**params):
    return create("adaptive-margin", **{"retention": 0.2, **params}).calibrate(stream(1000, [], seed=0)[0])


def with_answer(rule, number, answer):
    """The rule as the next run restores it."""
    given = rule.params.get("answers", ())
    answers = Populations.saved(rule.state()["population"]).answers_with(given, number, answer)
    new = create(rule.name, **{**rule.params, "answers": answers})
    return new.restore(json.loads(json.dumps(rule.state())))


def part_of_kept(decisions, whose, which=1):
    return (whose[decisions.retain] == which).mean()


def settled(decisions, whose, n=1000):
    return decisions[n:], whose[n:]


def test_an_answer_decides_how_much_of_a_population_is_kept_and_the_rate_holds():
    rule = calibrated()
    rule.decide_many(stream(3000, [0.2], seed=1)[0])
    later, whose = stream(3000, [0.2], seed=2)
    found = {}
    for answer in (None, "accept", "ignore"):
        twin = (
            with_answer(rule, 2, answer) if answer else create(rule.name, **rule.params).restore(rule.state())
        )
        decisions = twin.decide_many(later)
        found[answer] = part_of_kept(*settled(decisions, whose, 300))
        assert decisions.retain.mean() == pytest.approx(0.2, abs=0.02)
        words = set(np.array(decisions.reasons)[(whose == 1) & decisions.retain])
        assert words <= {"population-2", "exploration", "adaptive-margin"}
    assert 0.3 < found[None] < 0.55
    assert found["accept"] == pytest.approx(0.75, abs=0.05)
    assert found["ignore"] < 0.02


def test_an_answer_resets_nothing_else():
    rule = calibrated()
    rule.decide_many(stream(3000, [0.2], seed=1)[0])
    before, after = rule.state(), with_answer(rule, 2, "ignore").state()
    for part in set(before) - {"population"}:
        assert after[part] == before[part], part
    old, new = (Populations.saved(state["population"]).counts for state in (before, after))
    assert [{**each, "answer": None} for each in new] == old
    # Known samples meet the same thresholds: until the controller has noticed, they are decided as before.
    later, whose = stream(40, [0.0], seed=2)
    assert (whose == 0).all()
    assert list(with_answer(rule, 2, "ignore").decide_many(later)) == list(rule.decide_many(later))


def test_an_ignored_population_stays_ignored_where_the_rule_is_far_below_its_target():
    rule = calibrated(retention=0.6, exploration=0.0)
    rule.decide_many(stream(3000, [0.2], seed=1)[0])
    rule = with_answer(rule, 2, "ignore")
    later, whose = stream(3000, [0.9], seed=2)
    decisions = rule.decide_many(later)
    assert decisions.retain[whose == 0].mean() > 0.95  # all that is left
    assert decisions.retain[whose == 1].mean() < 0.01
    assert not np.char.startswith(decisions.reasons, "shift-").any()


def test_near_duplicates_of_an_accepted_population_are_discarded():
    rule = calibrated()
    rule.decide_many(stream(3000, [0.2], seed=1)[0])
    rule = with_answer(rule, 2, "accept")
    later, whose = stream(2000, [0.2], seed=2)
    features = later.features.copy()
    features[whose == 1] = features[np.flatnonzero(whose == 1)[0]]
    decisions = rule.decide_many(replace(later, features=features))
    reasons = Counter(np.array(decisions.reasons)[whose == 1])
    assert reasons["near-duplicate"] > 0.9 * (whose == 1).sum()


def test_accepted_populations_leave_a_quarter_to_the_known_one():
    rule = calibrated(retention=0.15)
    rule.decide_many(stream(3000, [0.2], seed=1)[0])
    rule = with_answer(rule, 2, "accept")
    rule.decide_many(stream(4000, [0.2, 0.2], seed=2)[0])
    rule = with_answer(rule, 3, "accept")
    later, whose = stream(4000, [0.3, 0.3], seed=3)
    decisions = rule.decide_many(later)
    assert decisions.retain.mean() == pytest.approx(0.15, abs=0.02)
    assert part_of_kept(*settled(decisions, whose), 0) == pytest.approx(0.25, abs=0.05)
    for which in (1, 2):
        assert part_of_kept(*settled(decisions, whose), which) == pytest.approx(0.375, abs=0.05)


def test_an_accepted_population_that_was_away_does_not_fill_the_store_when_it_returns():
    rule = calibrated()
    rule.decide_many(stream(3000, [0.2], seed=1)[0])
    rule = with_answer(rule, 2, "accept")
    rule.decide_many(stream(8000, [], seed=2)[0])
    decisions = rule.decide_many(stream(1500, [0.3], seed=3)[0])
    assert decisions.retain.mean() == pytest.approx(0.2, abs=0.03)
    _, whose = stream(1500, [0.3], seed=3)
    assert part_of_kept(decisions, whose) < 0.8


def test_a_frozen_rule_obeys_answers_and_looks_for_no_other_population():
    rule = calibrated()
    rule.decide_many(stream(3000, [0.2], seed=1)[0])
    answers = with_answer(rule, 2, "ignore").params["answers"]
    frozen = calibrated(frozen=True, answers=answers)
    later, whose = stream(3000, [0.2, 0.2], seed=2)
    decisions = frozen.decide_many(later)
    words = np.array(decisions.reasons)
    assert (words[whose == 1] == "population-2").mean() > 0.95
    assert not np.char.startswith(words[whose == 2], "population").any()


@pytest.mark.parametrize("params", [{}, {"gates": True}, {"gates": ["populations"]}, {"frozen": True}])
@pytest.mark.parametrize("answer", ["accept", "ignore"])
def test_a_rule_with_answers_keeps_the_contract(params, answer):
    rule = calibrated()
    rule.decide_many(stream(2000, [0.2], seed=1)[0])
    answers = with_answer(rule, 2, answer).params["answers"]
    given = Observations.concatenate([stream(300, [], seed=0)[0], stream(300, [0.3], seed=3)[0]])
    check_rule(lambda: create("adaptive-margin", retention=0.3, answers=answers, **params), given)


@pytest.mark.parametrize("answer", [None, "accept", "ignore"])
def test_a_rule_that_finds_another_population_goes_on_where_it_was(answer):
    rule = calibrated()
    rule.decide_many(stream(2500, [0.2], seed=1)[0])
    if answer:
        rule = with_answer(rule, 2, answer)
    later, _ = stream(2400, [0.2, 0.2], seed=2)
    start = json.loads(json.dumps(rule.state()))
    whole = rule.decide_many(later)
    assert {"population-2", "population-3" if answer else "population-2"} <= set(whole.reasons)
    twin = create(rule.name, **rule.params).restore(start)
    parts = []
    for first in range(0, 2400, 300):
        parts += [twin.decide(row) for row in later[first : first + 150]]
        twin = create(rule.name, **rule.params).restore(json.loads(json.dumps(twin.state())))
        parts += list(twin.decide_many(later[first + 150 : first + 300]))
    assert parts == list(whole)
    assert twin.state() == rule.state()


def test_a_mean_for_another_model_is_refused():
    rule = calibrated()
    rule.decide_many(stream(2000, [0.2], seed=1)[0])
    with raises(InputError, "policy-other-model"):
        calibrated(answers=[GOOD])  # 64 numbers, but the model has 40
    with pytest.raises(PolicyError, match="mean of 64 numbers"):
        Policy(RuleSpec(rule.name, {**rule.params, "answers": [GOOD]}, rule.state()), 3).to_rule()


@pytest.mark.parametrize("answer", [None, "ignore"])
def test_damaged_populations_are_refused(answer):
    rule = calibrated()
    rule.decide_many(stream(2500, [0.2], seed=1)[0])
    params = with_answer(rule, 2, answer).params if answer else rule.params
    state = json.loads(json.dumps(rule.state()))
    restored = Policy(RuleSpec(rule.name, params, state), 3).to_rule()
    restored.decide_many(stream(50, [0.2], seed=2)[0])
    others = (None, True, "x", [], {}, float("nan"), -1)
    may_be_null = {"since_s", "answer", "open"}
    accepted = []
    base = ("population",)
    paths = [(*base, name) for name in ("known", "open", "next", "numbered", "squares")]
    paths += [(*base, "numbered", 0, name) for name in state["population"]["numbered"][0]]
    paths += [(*base, "known", i) for i in range(4)]
    for path in paths:
        for other in others:
            is_meant = (other is None and {path[-1], 1 if path[1] == "known" else 0} & {*may_be_null, 1}) or (
                other == -1 and path[-1] in {"since_s", "room", "squares", 1}
            )
            if is_meant:
                continue
            try:
                Policy(RuleSpec(rule.name, params, replaced(state, path, other)), 3).to_rule()
            except PolicyError:
                continue
            accepted.append((path, other))
    assert accepted == []


@pytest.mark.parametrize("case", [0, 1])
def test_states_from_before_populations_had_numbers_decide_as_they_did(case):
    saved = json.loads(UNNUMBERED.read_text())[case]
    draw = np.random.default_rng(2)
    strange = draw.random(500) < 0.2
    classes = draw.integers(0, 3, 500)
    features = draw.normal(1.0, 0.2, (500, 12)) + 0.5 * np.eye(3, 12)[classes]
    features[strange, 6:] += 0.8
    logits = np.where(strange, 0.3, 3.0)[:, None] * np.eye(3)[classes] + draw.normal(size=(500, 3)) * 0.1
    given = Observations(logits.argmax(1), logits, {"drip": np.zeros(500)}, "drip", features)
    rule = Policy(RuleSpec("adaptive-margin", saved["params"], saved["state"]), 3).to_rule()
    decisions = rule.decide_many(given)
    assert "".join("01"[int(kept)] for kept in decisions.retain) == saved["retain"]
    words = Counter("second-population" if "population" in word else word for word in decisions.reasons)
    assert words == saved["reasons"]
    assert [entry["what"] for entry in rule.adaptations if entry["what"] != "limit"][:1] == ["population"]
