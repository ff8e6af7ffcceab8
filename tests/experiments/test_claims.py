"""Verdicts on claims from records with known effects."""

import pytest
from synthetic_records import DPW, Maker

from experiments.claims import judge, outcome, verdicts
from experiments.ledger import Ledger
from experiments.reading import Evidence, paper
from experiments.statistics import Comparison

CLAIMS = {claim["id"]: claim for claim in paper()["claim"]}
WINDOW = "paper.raw.window"


@pytest.fixture(autouse=True)
def no_syncs(monkeypatch):
    monkeypatch.setattr("experiments.ledger.os.fsync", lambda _: None)


def verdict(folder, claim, effects=None, regime="full", datasets=tuple(DPW), **options):
    maker = Maker(folder, effects=effects, **options)
    for dataset in datasets:
        maker.table1(regime, dataset)
    return judge(Evidence(Ledger(folder).records()), CLAIMS[claim], regime)


@pytest.mark.parametrize(
    ("effect", "expected"), [(0.02, "holds"), (0.0195, "holds"), (0.03, "holds"), (0.0, "does not hold")]
)
def test_matching_all_data_is_judged_by_a_margin(tmp_path, effect, expected):
    assert verdict(tmp_path, "matches-all", {WINDOW: effect}, spread=0.0001).outcome == expected


def test_the_margin_of_a_data_set_is_what_the_paper_says_its_accuracies_vary_by(tmp_path):
    found = verdict(tmp_path, "matches-all", {WINDOW: 0.017}, spread=0.0001)  # 0.3 points below all data
    assert {each.dataset: each.outcome for each in found.findings} == {
        "mnist": "does not hold",  # 0.1 in Table I
        "cifar10": "does not hold",  # 0.2
        "tomato": "does not hold",  # 0.2
        "speech_commands": "holds",  # 0.5
    }


@pytest.mark.parametrize(
    ("effect", "expected"), [(0.01, "holds"), (0.0, "inconclusive"), (-0.01, "does not hold")]
)
def test_better_than_random_needs_an_interval_above_zero(tmp_path, effect, expected):
    found = verdict(tmp_path, "beats-random", {WINDOW: effect})
    assert found.outcome == expected
    assert found.datasets(expected) == list(DPW)


def test_the_published_gap_is_refuted_by_an_interval_below_it(tmp_path):
    found = verdict(tmp_path, "random-gap", {WINDOW: 0.0})
    assert found.outcome == "does not hold"
    assert found.findings[3].published == pytest.approx(0.056)


def test_a_wide_interval_around_the_published_gap_does_not_confirm_it(tmp_path):
    found = verdict(tmp_path, "random-gap", {WINDOW: 0.03}, spread=0.008)  # the interval is above zero
    assert {each.dataset: each.outcome for each in found.findings}["tomato"] == "inconclusive"


def test_a_gap_above_the_published_one_confirms_it(tmp_path):
    assert verdict(tmp_path, "random-gap", {WINDOW: 0.07}).outcome == "holds"


def test_one_data_set_against_a_claim_refutes_it_and_one_that_was_not_run_leaves_it_open(tmp_path):
    found = verdict(tmp_path, "beats-baseline", datasets=("mnist", "tomato"))
    assert found.outcome == "inconclusive"
    assert found.datasets("holds") == ["mnist", "tomato"]
    assert found.datasets("not tested") == ["cifar10", "speech_commands"]


def test_too_few_runs_test_nothing(tmp_path):
    found = verdict(tmp_path, "beats-baseline", seeds=4)
    assert found.outcome == "not tested"
    assert found.findings[0].lowest.n == 4
    assert found.findings[0].mean is None


def test_savings_are_compared_with_the_published_ones(tmp_path):
    by_dataset = {each.dataset: each for each in verdict(tmp_path, "savings").findings}  # all save 29 %
    assert by_dataset["speech_commands"].outcome == "holds"
    assert by_dataset["mnist"].outcome == "does not hold"
    assert by_dataset["mnist"].published == 0.39
    assert by_dataset["mnist"].mean == pytest.approx(-0.1)


def test_a_sweep_and_a_decline_find_what_was_put_in(tmp_path):
    Maker(tmp_path).dpw("cifar10").noise("cifar10").noise("tomato")
    evidence = Evidence(Ledger(tmp_path).records())
    outcomes = {
        name: judge(evidence, CLAIMS[name], "head").outcome
        for name in CLAIMS
        if name.startswith(("dpw", "noise"))
    }
    assert outcomes == {
        "dpw-all": "does not hold",  # from 2.4 points below all data
        "dpw-consistent": "does not hold",
        "dpw-random": "inconclusive",  # no effect was put in
        "noise-input": "holds",  # slopes of -0.1 and -0.2
        "noise-label": "holds",
        "noise-input-random": "inconclusive",
        "noise-label-random": "inconclusive",
    }
    decline = judge(evidence, CLAIMS["noise-input"], "head").findings[0]
    assert decline.mean == pytest.approx(0.01, abs=0.001)


def test_a_single_good_setting_among_many_must_survive_the_correction(tmp_path):
    maker = Maker(tmp_path, spread=0.0001).add("dpw", "head", "cifar10", ("baseline", "all"))
    for discard in (0.1, 0.5):
        maker.add(
            "dpw",
            "head",
            "cifar10",
            ("drip",),
            shift={"drip": 0.03 if discard == 0.1 else 0},
            discard=discard,
        )
    evidence = Evidence(Ledger(tmp_path).records())
    assert judge(evidence, CLAIMS["dpw-all"], "head").outcome == "holds"


def test_one_of_many_settings_refutes_a_claim_about_all_only_by_its_widened_interval(tmp_path):
    def outcome_with(folder, n_settings):
        maker = Maker(folder, spread=0.008)
        for dataset in DPW:
            maker.add("dpw", "head", dataset, ("baseline", "all"))
            for step in range(n_settings):
                shift = {"drip": 0.005 if step == 0 else 0.02}  # the first is 1.5 points below all data
                maker.add("dpw", "head", dataset, ("drip",), shift=shift, discard=step / n_settings)
        return judge(Evidence(Ledger(folder).records()), CLAIMS["dpw-consistent"], "head").outcome

    assert outcome_with(tmp_path / "one", 1) == "does not hold"
    assert outcome_with(tmp_path / "many", 40) == "inconclusive"


@pytest.mark.parametrize(("claim", "shift"), [("dpw-consistent", 0.05), ("dpw-all", -0.05)])
def test_a_setting_with_too_few_runs_keeps_a_sweep_open(tmp_path, claim, shift):
    def outcome_with(folder, seeds):
        maker = Maker(folder)
        for dataset in CLAIMS[claim].get("datasets", DPW):
            maker.add("dpw", "head", dataset, ("baseline", "all"))
            for discard, held in ((0.1, range(6)), (0.9, seeds)):
                maker.add(
                    "dpw", "head", dataset, ("drip",), shift={"drip": shift}, seeds=held, discard=discard
                )
        return judge(Evidence(Ledger(folder).records()), CLAIMS[claim], "head")

    decided = outcome_with(tmp_path / "six", range(6))
    assert decided.outcome == ("holds" if shift > 0 else "does not hold")
    left_open = outcome_with(tmp_path / "four", range(4))
    assert left_open.outcome == "inconclusive"
    assert left_open.findings[0].missing == 1


def test_claims_of_other_kinds_are_listed_as_not_tested(tmp_path):
    Maker(tmp_path).table1("head", "mnist")
    found = verdicts(Evidence(Ledger(tmp_path).records()))
    assert {each.claim["id"] for each, _ in found} == set(CLAIMS)
    first = next(each for each, _ in found if each.claim["id"] == "first")
    assert (first.outcome, first.regime) == ("not tested", "")
    assert first.findings == ()


@pytest.mark.parametrize(
    ("mean", "relation", "bound", "expected"),
    [
        (0.0, "equal", 0.02, "holds"),
        (0.015, "equal", 0.02, "inconclusive"),
        (-0.04, "equal", 0.02, "does not hold"),
        (0.02, "greater", 0.005, "holds"),
        (0.02, "greater", 0.025, "inconclusive"),
        (0.02, "greater", 0.04, "does not hold"),
        (0.0, "not_worse", -0.02, "holds"),
    ],
)
def test_outcomes_by_relation(mean, relation, bound, expected):
    assert outcome(Comparison(20, mean, 0.1, 0.001, 0.01), relation, bound) == expected


def test_published_numbers_are_those_of_the_paper():
    table = paper()["table1"]
    assert [table[name]["baseline"][0] for name in DPW] == [0.978, 0.875, 0.710, 0.766]
    assert {name: row["savings"][0] for name, row in table.items()} == DPW == paper()["dpw"]
