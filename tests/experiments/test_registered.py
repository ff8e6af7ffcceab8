"""What the registered comparison says of records with known effects."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from synthetic_records import record

from drip.cli.calibrate import calibrate
from experiments.cells import Unit
from experiments.ledger import RESULTS, Ledger
from experiments.limits_report import TITLE
from experiments.reading import Evidence
from experiments.registered import plan
from experiments.registered_reading import cells_behind, holds_rate, rate_off
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

CANDIDATE, FALLBACK = (plan()["rules"][name] for name in ("candidate", "fallback"))


@pytest.fixture(autouse=True)
def no_syncs(monkeypatch):
    monkeypatch.setattr("experiments.ledger.os.fsync", lambda _: None)


@pytest.fixture(scope="module")
def committed():
    """The records of the page, and the page."""
    held = Evidence(line for line in Ledger(RESULTS).records() if line.cell.unit.study != "tabular")
    return held, render(held)[PAGE]


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
    assert f"| `{FALLBACK}` | which of the adaptive rules is not decided yet |" in " ".join(page.split())
    assert "rate is held" not in page


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
    page = " ".join(render(held)[PAGE].split())
    assert f"Use `{CANDIDATE}` (`--rule {CANDIDATE}`): everything that was registered holds." in page
    assert f"| `{CANDIDATE}` | the rate is held; " in page


def test_the_page_names_the_command_lines_own_default(committed):
    default = inspect.signature(calibrate).parameters["rule"].default
    page = " ".join(committed[1].split())
    assert f"`drip calibrate` takes `{default}`, the paper's window, unless `--rule` is given." in page
    assert f"the recommended rule is `{FALLBACK}` (`--rule {FALLBACK}`)" in page


def test_what_decides_a_criterion_are_the_cells_that_it_counts(committed):
    for arm in (CANDIDATE, FALLBACK):
        for criterion, cells in cells_behind(committed[0], arm):
            counted = int(criterion.why.split(" of ")[1].split()[0])
            by_share = criterion.says.startswith(("at most", "retention within"))
            assert len(cells) == (0 if by_share else counted), criterion.says


def headed(page, heading):
    """The items below a heading of the short answer."""
    text = " ".join(page.partition("## When to use what")[0].split())
    return text.partition(heading)[2].split(": - ", 1)[-1].split(" What ")[0] if heading in text else ""


def test_what_is_not_shown_is_told_from_what_does_not_hold(tmp_path):
    page = render(everything(tmp_path / "wide", 0.012, worst=0.02))[PAGE]
    assert "What does not hold" not in page
    undecided = headed(page, "What is only not shown")
    assert undecided.startswith("in every stream the worst class not worse than with random (0 of 12 cells")
    # The wave's mean is 0 and the noise's differences are too; their interval is about 0.9 points.
    assert "no interval lies wholly below \N{MINUS SIGN}0.3 points" in undecided
    assert "half an interval is wider than 0.3 points in 12" in undecided
    place = iid_place("tomato", 0.3)
    page = render(everything(tmp_path / "worse", -0.01, only=place))[PAGE]
    against = headed(page, "What does not hold")
    assert "not worse than random in any cell (11 of 12 cells hold; not in PD (tomato) 30 %)" in against
    assert "the whole interval lies below \N{MINUS SIGN}0.3 points in PD (tomato) at 30 %" in against
    assert "What is only not shown" not in page


def test_where_full_training_must_have_the_same_sign_an_interval_below_zero_speaks_against_it(tmp_path):
    place = full_place("tomato")
    held = everything(tmp_path, -0.001, only=place)
    (cells,) = [
        cells for one, cells in cells_behind(held, CANDIDATE) if one.says.startswith("with full training")
    ]
    assert [cell.place for cell in cells if cell.is_refuted] == [place]
    assert {cell.bound for cell in cells} == {0.0}


@pytest.mark.parametrize(("trailing", "junk"), [(0.01, 0.03), (0.03, 0.03), (0.01, 0.2)])
def test_what_comes_with_the_draw_is_said_where_the_runs_bear_it_out(tmp_path, trailing, junk):
    held = everything(tmp_path, -0.01, junk, trailing, more={FALLBACK: 0.0}.items())
    page = " ".join(render(held)[PAGE].split())
    assert holds_rate(held, FALLBACK) == ("a rate that holds" in page) == ("the rate is held" in page)
    assert holds_rate(held, FALLBACK) == (trailing < 0.02)
    assert rate_off(held, FALLBACK) == pytest.approx(trailing + 0.001)
    assert ("the rate is up to 3.1 points off" in page) == (trailing == 0.03)
    assert ("inputs of another kind that stay out" in page) == (junk == 0.03)
    assert rate_off(held, "drip") is None


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


def test_the_page_tells_what_knowing_the_labels_gives(tmp_path):
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
    (yardstick,) = [row for row in rows if row[1:3] == ["PD (tomato)", "61 %"] and len(row) == 7]
    assert yardstick[3].startswith("+2.00")
    assert yardstick[4].startswith("\N{MINUS SIGN}1.10")
    (known,) = [row for row in rows if row[2:3] == ["the lowest free energy"]]
    assert known[3:5] == ["75.0", "7.0"]
    assert known[5].startswith("\N{MINUS SIGN}0.90")
    assert known[6] == "6"


def test_without_runs_that_know_the_labels_the_page_has_no_such_section(tmp_path):
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
    assert "`drip`, keeps 35 % of the errors, where chance keeps 30 %; the margin keeps 80 %." in page
    assert "That fits with" not in page  # no arm differs from random here
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
    assert f"| streams, the worst class | 1 of 1, up to {half:.1f} points |" in page
    assert "| streams | 0 of 1 |" in page
    assert "| head-only |" not in page


def test_the_page_tells_what_cells_say_in_which_nothing_is_shown(tmp_path):
    def told(folder, distance):
        ledger, place = Ledger(folder), iid_place("tomato", 0.3)
        for seed in range(6):
            for arm, gain in (("random", 0.0), (FALLBACK, distance + 0.004 * (-1) ** seed)):
                unit = Unit(place.study, place.regime, place.dataset, seed)
                ledger.append(record(unit, arm, 0.8 + gain, **dict(place.settings)))
        return " ".join(render(Evidence(ledger.records()))[PAGE].split())

    half = 100 * 2.5706 * np.std([0.004, -0.004] * 3, ddof=1) / 6**0.5
    page = told(tmp_path / "wide", -0.001)
    assert (
        f"Head-only, `{FALLBACK}` is *not shown* in 1 of 12 cells. There half an interval is {half:.2f}"
        in page
    )
    assert "neither as good as random nor worse is shown." in page
    page = told(tmp_path / "worse", -0.01)
    assert "in 1 the whole interval lies below \N{MINUS SIGN}0.3." in page
    assert "Head-only, `" not in told(tmp_path / "better", 0.01)


def test_the_page_names_every_file_that_it_rests_on(committed):
    page = committed[1].partition("## Where the numbers come from")[2]
    for dataset in plan()["full"]["datasets"]:
        for name in ("registered-head", "limits-head", "table1-full"):
            assert f"| `{name}-{dataset}.jsonl` |" in " ".join(page.split())
    assert "`table1-head-" not in page
    assert "measured again (`git show cbcdf45`)" in " ".join(page.split())


def test_what_was_measured_again_is_said_of_those_lines_alone(tmp_path):
    def notes(commit):
        ledger, place = Ledger(tmp_path / commit), stream_place("tomato", "drift")
        for arm in ("random", CANDIDATE):
            line = record(Unit(place.study, place.regime, place.dataset, 0), arm, 0.8, **dict(place.settings))
            ledger.append(replace(line, commit=commit if arm == CANDIDATE else "fbc72db"))
        page = " ".join(render(Evidence(ledger.records()))[PAGE].split())
        return "`git show cbcdf45`" in page, "`git show 7dcca0a`" in page

    assert notes("fbc72db") == (True, False)
    assert notes("9bab9a5") == (False, False)
    assert notes("7dcca0a") == (False, True)


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
    assert f"By it `{CANDIDATE}` {words}, and not worse in 12 of 12 streams." in page


@pytest.mark.parametrize(("drip", "explains"), [(0.0, True), (0.01, False)])
def test_the_share_of_errors_explains_gains_only_where_there_are_such(tmp_path, drip, explains):
    ledger = Ledger(tmp_path)
    gains = {"random": (0.0, 0.3), "all": (0.02, 1.0), "drip": (drip, 0.31), "margin": (0.01, 0.7)}
    for dataset in plan()["iid"]["datasets"]:
        for seed in range(6):
            for number, (arm, (gain, share)) in enumerate(gains.items()):
                noise = 0.0005 * ((seed * 7 + number * 3) % 5 - 2)
                line = record(
                    Unit("registered", "head", dataset, seed), arm, 0.8 + gain + noise, retention=0.3
                )
                line.metrics.update(errors_kept=share)
                ledger.append(line)
    page = " ".join(render(Evidence(ledger.records()))[PAGE].split())
    words = "the window being better than random in no cell and the margin in 4"
    assert (words in page) == explains


def test_a_margin_is_as_good_only_where_every_cell_was_tested(tmp_path):
    enough = everything(tmp_path / "enough", 0.005, more={"margin": 0.005}.items())
    assert "in no cell beyond chance" in render(enough)[PAGE]
    ledger = Ledger(tmp_path / "few")
    for line in Ledger(tmp_path / "enough").records():
        if line.cell.arm != "margin" or line.cell.unit.seed < 4:
            ledger.append(line)
    few = render(Evidence(ledger.records()))[PAGE]
    assert f"| `{CANDIDATE}` | better than random in" in few
    assert "in no cell beyond chance" not in few
