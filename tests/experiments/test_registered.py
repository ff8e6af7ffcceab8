"""What the registered comparison says of records with known effects."""

import numpy as np
import pytest
from synthetic_records import record

from experiments.appendix import tables
from experiments.cells import Unit
from experiments.ledger import RESULTS, Ledger
from experiments.reading import Evidence
from experiments.registered import plan
from experiments.registered_verdicts import (
    BETTER,
    INCONCLUSIVE,
    MISSING,
    NOT_WORSE,
    against_random,
    cells_of,
    criteria,
    full_place,
    iid_place,
    recommended,
    stream_place,
)
from experiments.streams import trailing_off

CANDIDATE, FALLBACK = (plan()["rules"][name] for name in ("candidate", "fallback"))


@pytest.fixture(autouse=True)
def no_syncs(monkeypatch):
    monkeypatch.setattr("experiments.ledger.os.fsync", lambda _: None)


@pytest.fixture(scope="module")
def committed():
    """The committed records of all studies but that of reduced tables."""
    return Evidence(line for line in Ledger(RESULTS).records() if line.cell.unit.study != "tabular")


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
        (-0.01, 0.02, INCONCLUSIVE),
        (-0.003, 0.02, INCONCLUSIVE),
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


def everything(folder, distance, junk=0.03, trailing=0.01, worst=0.0, more=(), only=None):
    """Twenty runs of everything that was registered.

    Args:
        folder: Where the lines go.
        distance: The candidate's accuracy minus random.
        junk: Share of junk in what every arm keeps.
        trailing: Distance of every arm's rate from the target.
        worst: Amplitude of a wave over the seeds in the candidate's worst class.
        more: Further arms with their distances from random.
        only: Where the candidate has its distance (by place); elsewhere it gains as much as all data.
    """
    iid, full, streams = (plan()[part] for part in ("iid", "full", "streams"))
    places = [iid_place(dataset, kept) for dataset in iid["datasets"] for kept in iid["retentions"]]
    places += [full_place(dataset) for dataset in full["datasets"]]
    places += [
        stream_place(dataset, name) for dataset in streams["datasets"] for name in streams["scenarios"]
    ]
    ledger = Ledger(folder)
    for place in places:
        here = distance if only in (None, place) else 0.012
        arms = {"random": 0.0, CANDIDATE: here, "all": 0.012, **dict(more)}
        for seed in range(20):
            unit = Unit(place.study, place.regime, place.dataset, seed)
            for number, (arm, gain) in enumerate(arms.items()):
                noise = 0.0005 * ((seed * 7 + number * 3) % 5 - 2)
                line = record(unit, arm, 0.8 + gain + noise, **dict(place.settings))
                wave = worst * (-1) ** seed if arm == CANDIDATE else 0.0
                line.metrics.update(
                    worst_class_accuracy=0.7 + noise + wave,
                    junk_kept=junk,
                    trailing_off=trailing + 0.001 * (seed == 3),
                )
                ledger.append(line)
    return Evidence(ledger.records())


def test_a_rule_that_passes_everything_is_recommended(tmp_path):
    held = everything(tmp_path, 0.012)
    assert [one.outcome for one in criteria(held, CANDIDATE)] == ["holds"] * 8
    assert recommended(held) == CANDIDATE


def test_what_decides_a_criterion_are_the_cells_that_it_counts(committed):
    for arm in (CANDIDATE, FALLBACK):
        for criterion, cells in cells_of(committed, arm):
            by_share = criterion.says.startswith(("at most", "keep rate within"))
            assert len(cells) == (0 if by_share else criterion.cells), criterion.says


def refuted(held):
    """By failed criterion, the cells that contradict it."""
    return {
        one.says: [cell.place for cell in cells if cell.is_refuted]
        for one, cells in cells_of(held, CANDIDATE)
        if one.outcome == "does not hold"
    }


def test_an_inconclusive_cell_is_told_from_one_that_contradicts(tmp_path):
    # The wave's mean is 0; the interval is about 0.9 points wide, three times what "not worse" allows.
    assert refuted(everything(tmp_path / "wide", 0.012, worst=0.02)) == {
        "accuracy of the worst class not lower than with random in any stream": []
    }
    place = iid_place("tomato", 0.3)
    found = refuted(everything(tmp_path / "worse", -0.01, only=place))
    assert found["not worse than random in any cell"] == [place]


def test_where_full_training_must_have_the_same_sign_an_interval_below_zero_speaks_against_it(tmp_path):
    place = full_place("tomato")
    held = everything(tmp_path, -0.001, only=place)
    (cells,) = [
        cells for one, cells in cells_of(held, CANDIDATE) if one.says.startswith("with full training")
    ]
    assert [cell.place for cell in cells if cell.is_refuted] == [place]
    assert {cell.bound for cell in cells} == {0.0}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"distance": 0.0}, "better than random where 61 % and 30 % are kept"),
        ({"distance": -0.01}, "not worse than random in any cell"),
        ({"distance": 0.005}, "not worse than all data where 61 % is kept"),
        ({"junk": 0.06}, "at most 5 % junk among the kept samples"),
        ({"trailing": 0.0195}, "keep rate within 2 points of the target"),
    ],
)
def test_one_thing_that_does_not_hold_recommends_the_fallback(tmp_path, changed, says):
    held = everything(tmp_path, **{"distance": 0.012, **changed})
    failed = [one.says for one in criteria(held, CANDIDATE) if one.outcome == "does not hold"]
    assert any(name.startswith(says) for name in failed)
    assert recommended(held) == plan()["rules"]["fallback"]


def test_the_largest_distance_of_a_rate_is_that_of_any_thousand_arrivals():
    retain = (
        [True, False] * 500
        + ([True] * 3 + [False] * 7) * 100
        + [False] * 50
        + ([True] * 3 + [False] * 7) * 200
    )
    slow = max(abs(np.mean(retain[start : start + 1000]) - 0.3) for start in range(1000, len(retain) - 999))
    assert trailing_off(np.array(retain)) == pytest.approx(slow)


def test_the_appendix_has_what_knowing_the_labels_gives(tmp_path):
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
    held = {table.name: table.rows for table in tables(Evidence(ledger.records()))}
    assert [row[:5] for row in held["labels-known"]] == [
        ("PlantVillage tomato", "61", "random", "6", "2.00"),
        ("PlantVillage tomato", "61", "all", "6", "-1.10"),
    ]
    assert held["unknown-classes"][0][:6] == ("PlantVillage tomato", "energy", "75.00", "7.00", "6", "-0.90")


@pytest.mark.slow
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
