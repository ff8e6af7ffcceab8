"""The criteria of the study of situations, on records that are made up."""

import pytest
from situation_records import CHALLENGER, study_of

from experiments.situation_reading import Study
from experiments.situation_study import KEEP, PLACES
from experiments.situation_verdicts import challenge, deciding, plan, verdicts


def test_the_cells_are_those_that_the_plan_counts():
    study = study_of(0.05)
    assert len(deciding(study, "adaptive-margin")) == plan()["cells"]["decide"]
    assert sum(map(len, PLACES.values())) == plan()["cells"]["places"]
    assert set(plan()["cells"]["keep"]) < set(KEEP)


def test_a_rule_that_gains_everywhere_meets_every_criterion():
    found = verdicts(study_of(0.15))
    assert [one.name for one in found if not one.holds] == []
    assert len({one.name for one in found}) == len(found)


@pytest.mark.parametrize(
    ("situation", "fails"),
    [
        ("mixed", {"worse_in"}),
        (
            "new-camera",
            {
                *("worse_in", "new_camera at 0.05", "new_camera at 0.2", "new_camera_accepted at 0.2"),
                "labels in new-camera",
            },
        ),
        ("new-speakers", {"worse_in", "labels in new-speakers"}),
        ("junk", {"worse_in", "junk", "junk_ignored"}),
        ("scenes", {"worse_in", "scenes_needs at 0.05"}),
        ("long-tail", {"worse_in", "long_tail at 0.2"}),
    ],
)
def test_a_loss_fails_the_criteria_of_its_situation(situation, fails):
    found = verdicts(study_of(0.15, {situation: -0.02}))
    assert {one.name for one in found if not one.holds} == fails


def test_without_records_nothing_holds():
    assert not any(one.holds for one in verdicts(Study({})))


def test_with_few_runs_nobody_says_whether_a_cell_is_below_random():
    found = {one.name: one for one in verdicts(study_of(0.15, n=3))}
    assert found["worse_in"].found is None
    assert not found["worse_in"].holds
    assert found["better_in"].holds


def test_a_challenger_is_compared_run_by_run():
    found = challenge(study_of(0.05), CHALLENGER)
    assert found.mean == pytest.approx(0.004)
    assert found.n == 5
    assert found.half is not None
    assert found.half > 0.001


def test_a_challenger_with_other_runs_is_not_compared():
    runs = {
        key: {seed: run for seed, run in mine.items() if seed or key[1] != CHALLENGER}
        for key, mine in study_of(0.05).runs.items()
    }
    assert challenge(Study(runs), CHALLENGER) is None
