"""What the registered comparison says of records with known effects."""

import numpy as np
import pytest
from synthetic_records import record

from experiments.cells import Unit
from experiments.ledger import RESULTS, Ledger
from experiments.limits_report import TITLE
from experiments.reading import Evidence
from experiments.registered import plan
from experiments.registered_report import PAGE, errors_kept, render
from experiments.registered_verdicts import (
    BETTER,
    MISSING,
    NOT_SHOWN,
    NOT_WORSE,
    against_random,
    criteria,
    full_place,
    iid_place,
    recommended,
    stream_place,
)
from experiments.streams import trailing_off

CANDIDATE = plan()["rules"]["candidate"]


@pytest.fixture(autouse=True)
def no_syncs(monkeypatch):
    monkeypatch.setattr("experiments.ledger.os.fsync", lambda _: None)


def evidence(folder, places, arms, runs=20, **metrics):
    """Runs in which every arm has its distance from random, with a little noise by seed."""
    ledger = Ledger(folder)
    for place in places:
        for seed in range(runs):
            unit = Unit(place.study, place.regime, place.dataset, seed)
            for number, (arm, distance) in enumerate(arms.items()):
                noise = 0.001 * ((seed * 7 + number * 3) % 5 - 2)
                ledger.append(record(unit, arm, 0.8 + distance + noise, **dict(place.settings), **metrics))
    return Evidence(ledger.records())


@pytest.mark.parametrize(
    ("distance", "all_data", "verdict"),
    [
        (0.01, 0.02, BETTER),
        (0.01, 0.004, NOT_WORSE),  # nothing to gain there
        (0.0, 0.02, NOT_WORSE),
        (-0.01, 0.02, NOT_SHOWN),
        (-0.003, 0.02, NOT_SHOWN),
    ],
)
def test_the_verdict_of_a_cell(tmp_path, distance, all_data, verdict):
    place = iid_place("tomato", 0.3)
    found = against_random(
        evidence(tmp_path, [place], {"random": 0.0, CANDIDATE: distance, "all": all_data}), CANDIDATE, [place]
    )
    assert found[place].verdict == verdict


def test_nothing_is_recommended_while_runs_are_missing(tmp_path):
    iid = plan()["iid"]
    places = [iid_place(dataset, kept) for dataset in iid["datasets"] for kept in iid["retentions"]]
    held = evidence(tmp_path, places, {"random": 0.0, CANDIDATE: 0.01, "all": 0.012}, runs=6)
    assert {one.outcome for one in criteria(held, CANDIDATE)} == {MISSING}
    assert recommended(held) is None
    page = render(held)[PAGE]
    assert "Not decided: 8 of 8 criteria wait for runs." in page
    assert f"| `{plan()['rules']['fallback']}` |" in page
    assert "is not decided yet" in page


def everything(folder, distance, junk=0.03, trailing=0.01):
    iid, full, streams = (plan()[part] for part in ("iid", "full", "streams"))
    places = [iid_place(dataset, kept) for dataset in iid["datasets"] for kept in iid["retentions"]]
    places += [full_place(dataset) for dataset in full["datasets"]]
    places += [
        stream_place(dataset, name) for dataset in streams["datasets"] for name in streams["scenarios"]
    ]
    arms = {"random": 0.0, CANDIDATE: distance, "all": 0.012}
    ledger = Ledger(folder)
    for place in places:
        for seed in range(20):
            unit = Unit(place.study, place.regime, place.dataset, seed)
            for number, (arm, gain) in enumerate(arms.items()):
                noise = 0.0005 * ((seed * 7 + number * 3) % 5 - 2)
                line = record(unit, arm, 0.8 + gain + noise, **dict(place.settings))
                line.metrics.update(
                    worst_class_accuracy=0.7 + noise,
                    junk_kept=junk,
                    trailing_off=trailing + 0.001 * (seed == 3),
                )
                ledger.append(line)
    return Evidence(ledger.records())


def test_a_rule_that_passes_everything_is_recommended(tmp_path):
    held = everything(tmp_path, 0.012)
    assert [one.outcome for one in criteria(held, CANDIDATE)] == ["holds"] * 8
    assert recommended(held) == CANDIDATE
    assert f"Use `{CANDIDATE}`: everything that was registered holds." in render(held)[PAGE]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"distance": 0.0}, "better than random where 61 % and 30 % are kept"),
        ({"distance": -0.01}, "not worse than random in any cell"),
        ({"distance": 0.005}, "not worse than all data where 61 % is kept"),
        ({"junk": 0.06}, "at most 5 % junk in what is kept"),
        ({"trailing": 0.0195}, "retention within 2 points of the target"),
    ],
)
def test_one_thing_that_does_not_hold_recommends_the_fallback(tmp_path, changed, says):
    held = everything(tmp_path, **{"distance": 0.012, **changed})
    failed = [one.says for one in criteria(held, CANDIDATE) if one.outcome == "does not hold"]
    assert any(name.startswith(says) for name in failed)
    assert recommended(held) == plan()["rules"]["fallback"]
    page = render(held)[PAGE]
    has_gains = changed.get("distance", 0.012) > 0
    assert (f"| `{CANDIDATE}` | better than random in" in page) == has_gains
    assert f"- {says}" in page
    assert f"What holds of `{CANDIDATE}`:" in page


def test_the_largest_distance_of_a_rate_is_that_of_any_thousand_arrivals():
    retain = (
        [True, False] * 500
        + ([True] * 3 + [False] * 7) * 100
        + [False] * 50
        + ([True] * 3 + [False] * 7) * 200
    )
    slow = max(abs(np.mean(retain[start : start + 1000]) - 0.3) for start in range(1000, len(retain) - 999))
    assert trailing_off(np.array(retain)) == pytest.approx(slow)


def test_the_page_tells_the_ceilings(tmp_path):
    ledger = Ledger(tmp_path)
    at = {"scenario": "heldout", "retention": 0.3}
    for seed in range(6):
        noise = 0.001 * (seed % 3)
        for study, arm, accuracy in (
            ("registered", "random", 0.8),
            ("registered", "all", 0.83 + noise),
            ("limits", "misclassified-first", 0.82),
        ):
            ledger.append(record(Unit(study, "head", "tomato", seed), arm, accuracy, retention=0.61))
        for arm, accuracy, junk in (("random", 0.7, 0.2), ("known-by-energy", 0.69 + noise, 0.07)):
            line = record(Unit("limits", "head", "tomato", seed), arm, accuracy, **at)
            line.metrics.update(junk_kept=junk, auroc=0.75)
            ledger.append(line)
    page = render(Evidence(ledger.records()))[PAGE]
    assert f"## {TITLE}" in page
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    (ceiling,) = [row for row in rows if row[1:3] == ["PD (tomato)", "61 %"] and len(row) == 7]
    assert ceiling[3].startswith("+2.00")
    assert ceiling[4].startswith("\N{MINUS SIGN}1.10")
    (known,) = [row for row in rows if row[2:3] == ["the lowest free energy"]]
    assert known[3:5] == ["75.0", "7.0"]
    assert known[5].startswith("\N{MINUS SIGN}0.90")
    assert known[6] == "6"


def test_without_ceilings_the_page_has_no_such_section(tmp_path):
    held = evidence(tmp_path, [iid_place("tomato", 0.3)], {"random": 0.0, CANDIDATE: 0.01}, runs=6)
    assert TITLE not in render(held)[PAGE]


def test_the_page_tells_which_rules_find_errors(tmp_path):
    ledger = Ledger(tmp_path)
    for dataset in plan()["iid"]["datasets"]:
        for seed in range(5):
            for arm, share in (("random", 0.3), ("drip", 0.35), ("margin", 0.8), (CANDIDATE, 0.75)):
                unit = Unit("registered", "head", dataset, seed)
                line = record(unit, arm, 0.8 + 0.001 * seed, retention=0.3)
                line.metrics.update(errors_kept=share + 0.01 * (seed - 2))
                ledger.append(line)
    held = Evidence(ledger.records())
    assert errors_kept(held, "margin") == pytest.approx(0.8)
    page = " ".join(render(held)[PAGE].split())
    assert "it keeps 35 % of the errors, where chance keeps 30 %; the margin keeps 80 %." in page
    assert np.isnan(errors_kept(held, "entropy"))


def test_the_page_tells_where_runs_cannot_decide(tmp_path):
    place = stream_place("tomato", "bursts")
    ledger = Ledger(tmp_path)
    for seed in range(6):
        for arm, wave in (("random", 0.0), (CANDIDATE, 0.02 * (-1) ** seed)):
            unit = Unit(place.study, place.regime, place.dataset, seed)
            line = record(unit, arm, 0.8, **dict(place.settings))
            line.metrics.update(worst_class_accuracy=0.6 + wave)
            ledger.append(line)
    page = " ".join(render(Evidence(ledger.records()))[PAGE].split())
    half = 100 * 2.5706 * np.std([0.02, -0.02] * 3, ddof=1) / 6**0.5
    assert f"For the worst class that is so in 1 of 1 streams, with up to {half:.1f} points." in page
    assert "For accuracy that is so" not in page


def test_registered_streams_go_on_from_those_of_the_reproduction():
    accuracies = {"streams": {}, "registered": {}}
    for line in Ledger(RESULTS).records():
        cell, settings = line.cell, dict(line.cell.settings)
        if cell.unit.study in accuracies and "scenario" in settings:
            key = cell.unit.dataset, settings["scenario"], cell.arm, cell.unit.seed
            accuracies[cell.unit.study][key] = line.metrics["accuracy"]
    shared = {*accuracies["streams"]} & {*accuracies["registered"]}
    assert {arm for _, _, arm, _ in shared} >= {*plan()["streams"]["run"], "all"}
    assert {seed for *_, seed in shared} == set(range(10))
    assert [accuracies["streams"][key] for key in shared] == [accuracies["registered"][key] for key in shared]


def test_verdicts_by_the_interval_for_other_samples_stand_beside_the_registered_ones(tmp_path):
    held = everything(tmp_path, 0.005)
    page = render(held)[PAGE].replace("\n", " ")
    words = "is better than `random` in 12 of 12 head-only cells and not worse in 12 of 12"
    assert f"By it `{CANDIDATE}` {words}, and not worse in 12 of 12 streams" in page
