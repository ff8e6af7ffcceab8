"""The criteria of the study of situations, on records that are made up."""

import numpy as np
import pytest

from experiments.cells import Unit
from experiments.ledger import Record
from experiments.situation_reading import runs_of
from experiments.situation_study import CURVE, KEEP, PLACES
from experiments.situation_verdicts import challenge, deciding, plan, verdicts

CHALLENGER = "spread-store"


def record(dataset, seed, arm, value, situation, backbone, **settings):
    cell = Unit("situations", "head", dataset, seed).cell(
        arm, situation=situation, backbone=backbone, **settings
    )
    kept = 0.01 if arm.endswith("ignoring") else 0.4
    return Record(cell, {}, {"accuracy": value, "fit_s": 0.1, "marked": 0.2, "marked_kept": kept})


def made_up(gain, by_situation=None, n=5):
    for dataset, places in PLACES.items():
        for situation, backbone in places:
            mine = (by_situation or {}).get(situation, gain)
            for seed in range(n):
                level = np.random.default_rng(seed).normal(0, 0.01)

                def line(
                    arm, value, where=(dataset, seed), at=(situation, backbone), level=level, **settings
                ):
                    return record(*where, arm, value + level, *at, **settings)

                yield line("baseline", 0.5)
                yield line("all", 0.9)
                for keep in CURVE:
                    yield line("random", 0.5 + 0.4 * keep**0.5, retention=keep)
                for keep in KEEP:
                    value = 0.5 + 0.4 * keep**0.5
                    wobble = 0.001 * (seed - 2)
                    yield line("adaptive-margin", value + mine + wobble, retention=keep)
                    yield line(CHALLENGER, value + mine + 0.004 - wobble, retention=keep)
                    if situation in ("new-camera", "junk"):
                        yield line("adaptive-margin.accepting", value + 2 * mine, retention=keep)
                        yield line("adaptive-margin.ignoring", value + mine / 2, retention=keep)


def test_the_cells_are_those_that_the_plan_counts():
    runs = runs_of(made_up(0.05))
    assert len(deciding(runs, "adaptive-margin")) == plan()["cells"]["decide"]
    assert sum(map(len, PLACES.values())) == plan()["cells"]["places"]
    assert set(plan()["cells"]["keep"]) < set(KEEP)


def test_a_rule_that_gains_everywhere_meets_every_criterion():
    found = verdicts(runs_of(made_up(0.15)))
    assert [one.name for one in found if not one.holds] == []
    assert len({one.name for one in found}) == len(found)


@pytest.mark.parametrize(
    ("situation", "fails"),
    [
        ("mixed", {"worse_in"}),
        ("new-camera", {"worse_in", "new_camera at 0.05", "new_camera at 0.2", "new_camera_accepted at 0.2"}),
        ("junk", {"worse_in", "junk", "junk_ignored"}),
        ("scenes", {"worse_in", "scenes_needs at 0.05"}),
        ("long-tail", {"worse_in", "long_tail at 0.2"}),
    ],
)
def test_a_loss_fails_the_criteria_of_its_situation(situation, fails):
    found = verdicts(runs_of(made_up(0.15, {situation: -0.02})))
    assert {one.name for one in found if not one.holds} == fails


def test_without_records_nothing_holds():
    assert not any(one.holds for one in verdicts({}))


def test_a_challenger_is_compared_run_by_run():
    found = challenge(runs_of(made_up(0.05)), CHALLENGER)
    assert found.mean == pytest.approx(0.004)
    assert found.n == 5
    assert found.half is not None
    assert found.half > 0.001
