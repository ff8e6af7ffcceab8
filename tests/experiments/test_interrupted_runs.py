"""Runs that are killed at any moment, or that are two at once: real processes on real digits."""

import os
import random
import signal
import sys
import time

import pytest
from child_runs import finish, start
from support import require_data

from experiments.__main__ import main
from experiments.cells import Unit
from experiments.ledger import Ledger
from experiments.running import STUDIES

pytestmark = pytest.mark.slow
SEEDS = 2
WORDS = ("--study", "dpw", "--dataset", "mnist", "--rows", 300, "--seeds", SEEDS)


@pytest.fixture(autouse=True)
def _real_data():
    require_data("mnist")
    require_data("mobilenet_v2_imagenet_features.npz")


def wanted():
    return [
        cell.id for seed in range(SEEDS) for cell in STUDIES["dpw"].cells(Unit("dpw", "head", "mnist", seed))
    ]


def lines(folder):
    """Whole lines of the result file."""
    path = folder / "results" / "dpw-head-mnist.jsonl"
    held = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in held if line.endswith(b"\n")]


def ids(folder):
    return [record.cell.id for record in Ledger(folder / "results").records()]


def kill_when(child, reached):
    """SIGKILL to the run as soon as something holds; whether it was still running."""
    while not reached() and child.poll() is None:
        time.sleep(0.001)
    running = child.poll() is None
    if running:
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    return running


def test_a_run_that_is_killed_loses_at_most_the_arm_in_flight(tmp_path):
    chance = random.Random(7)
    child = start(tmp_path, *WORDS)
    # First while features are computed: nothing is measured yet.
    assert kill_when(child, lambda: any((tmp_path / "cache").glob("*.maps.part")))
    before = lines(tmp_path)
    kills = 0
    for _ in range(3):
        child = start(tmp_path, *WORDS)
        goal, pause = len(before) + chance.randint(1, 35), chance.uniform(0, 0.03)

        def reached(goal=goal, pause=pause):
            if len(lines(tmp_path)) < goal:
                return False
            time.sleep(pause)
            return True

        kills += kill_when(child, reached)
        after = lines(tmp_path)
        assert after[: len(before)] == before
        assert len(after) >= goal
        before = after
    assert kills == 3
    finish(tmp_path, *WORDS)
    assert lines(tmp_path)[: len(before)] == before
    assert ids(tmp_path) == wanted()  # each once, and in the order of the plan
    before = lines(tmp_path)
    finish(tmp_path, *WORDS)
    assert lines(tmp_path) == before


def test_two_runs_at_once_share_the_work(tmp_path):
    children = [start(tmp_path, *WORDS) for _ in range(2)]
    for child in children:
        error = child.communicate()[1]
        assert child.returncode == 0, error[-3000:]
    assert sorted(ids(tmp_path)) == sorted(wanted())


def test_results_of_reduced_size_cannot_replace_the_full_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments", "run", "--rows", "300", "--cache", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (
        ended.value.code == "error: --rows 300: its lines would replace the full ones; add --results FOLDER"
    )
