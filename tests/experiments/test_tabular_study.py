"""The study of tables on few beans: who trains on what, what lost classes count, one arm again."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from child_runs import ROOT, environment, finish
from rich.console import Console
from support import require_data

from drip.errors import InputError
from drip.reduction import available
from experiments import running, tabular, tabular_workspace
from experiments.cells import Unit
from experiments.ledger import RESULTS, Ledger
from experiments.tabular_workspace import PROTOCOLS, VARIANTS, Table, TabularWorkspace, arms

pytestmark = pytest.mark.slow

UNIT = Unit("tabular", "table", "dry_bean", 0)
FEW = 800
# How the committed lines were made; from the root:
#   python -m experiments run --study tabular --arm maxmin --rows 1500 --seeds 1
#       --results experiments/results/smoke
ONE_ARM = ("--regime", "table", "--study", "tabular", "--arm", "maxmin", "--rows", 1500, "--seeds", 1)


def records(folder):
    return {record.cell.id: record for record in Ledger(folder).records("tabular-*")}


@pytest.fixture(scope="module")
def table():
    require_data("tabular/dry_bean.csv.gz")
    return Table("dry_bean", FEW)


@pytest.fixture(scope="module")
def measured(table):
    """Cells of a few arms on 600 rows for training and 200 for testing; 90 steps to converge."""
    names = ("all", "stratified-random", "maxmin", "forgetting-events", "matrix-decomposition.global")
    bench = TabularWorkspace(UNIT, table)
    cells = [cell for cell in tabular.cells(UNIT) if cell.arm in names]
    bench.wanted = [cell for cell in cells if cell.get("fraction", 0.1) in (0.1, 0.5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabular_workspace, "CONVERGED_STEPS", 90)
        return {cell: tabular.run(cell, bench) for cell in bench.wanted}, bench


def test_every_method_that_drip_finds_is_an_arm_and_is_compared_everywhere():
    assert set(available()) <= set(arms())
    cells = list(tabular.cells(UNIT))
    assert len({cell.id for cell in cells}) == len(cells)
    for name in available():
        mine = {cell.settings for cell in cells if cell.arm == name}
        assert mine == {cell.settings for cell in cells if cell.arm == "stratified-random"}
        assert {dict(settings)["fraction"] for settings in mine} == set(tabular.FRACTIONS)
    assert {cell.arm for cell in cells} == {"all", *arms()}


def test_the_plan_asks_for_ten_runs_of_dry_bean_and_no_table_for_other_studies():
    units = running.units(["tabular"])
    assert {unit.dataset for unit in units} == {"dry_bean"}
    assert len(units) == 10
    assert {unit.study for unit in running.units(datasets=["dry_bean"])} == {"tabular"}
    assert "tabular" not in {unit.study for unit in running.units(datasets=["mnist"])}
    with pytest.raises(InputError):
        Table("mnist")


def test_the_recipe_is_the_published_one():
    recipe = PROTOCOLS["dry_bean"].recipe
    assert recipe.hidden == (50, 45, 40, 35, 30, 25, 20, 15, 10)
    assert (recipe.batch_size, recipe.dropout, recipe.learning_rate, recipe.epochs) == (32, 0.25, 1e-3, 150)
    assert not recipe.decays
    assert PROTOCOLS["dry_bean"].forgetting_epochs == 50
    assert recipe.steps(10_208) == 47_850


def test_the_table_is_scaled_on_all_rows_and_split_as_published(table):
    require_data("tabular/dry_bean.csv.gz")
    whole = Table("dry_bean")
    assert whole.values.min() == 0.0
    assert whole.values.max() == 1.0
    np.testing.assert_array_equal(table.values, whole.values[:FEW])
    bench = TabularWorkspace(UNIT, whole)
    assert (len(bench.train), len(bench.test)) == (10_208, 3_403)
    assert not set(bench.train.tolist()) & set(bench.test.tolist())
    other = TabularWorkspace(Unit("tabular", "table", "dry_bean", 1), whole)
    assert not np.array_equal(np.sort(other.test), np.sort(bench.test))


def test_steps_follow_from_the_rows_that_are_kept_or_are_equal(measured):
    found, _ = measured
    recipe = PROTOCOLS["dry_bean"].recipe
    for cell, outcome in found.items():
        n, steps = outcome.metrics["n_train"], outcome.metrics.get("steps")
        if cell.get("model") == "converged":
            assert steps == 90
        elif cell.get("model") != "network":
            assert steps is None
        elif cell.get("budget") == "steps":
            assert steps == recipe.steps(600)
        elif cell.get("budget") == "fraction":
            assert (n, steps) == (600, recipe.steps(round(600 * cell.get("fraction"))))
        elif cell.arm == "forgetting-events":
            assert steps == recipe.steps(600, 50) + recipe.steps(int(n), 100)
        else:
            assert steps == recipe.steps(int(n))
        if cell.arm != "all":
            assert n == round(600 * cell.get("fraction"))


def test_every_result_has_its_cost_and_the_energy_says_that_it_is_estimated(measured):
    found, _ = measured
    for cell, outcome in found.items():
        metrics = outcome.metrics
        assert metrics["fit_s"] > 0
        assert metrics["joules"] > 0
        if cell.arm == "forgetting-events":
            assert metrics["reduce_s"] > 0.05  # its first epochs belong to it
        if not metrics["joules_measured"]:
            assert outcome.extra["energy"] == "estimate: processor time at 8.5 W"
            assert metrics["joules"] == pytest.approx(
                8.5 * (metrics["fit_s"] + metrics["reduce_s"]), abs=0.01
            )


def test_maxmin_covers_better_than_random_rows(measured):
    found, _ = measured
    for fraction in (0.1, 0.5):
        here = {
            cell.arm: outcome.metrics
            for cell, outcome in found.items()
            if cell.get("budget") == "epochs" and cell.get("fraction") == fraction
        }
        assert here["maxmin"]["epsilon_l2"] < here["stratified-random"]["epsilon_l2"]
        assert here["maxmin"]["epsilon"] <= here["maxmin"]["epsilon_l2"]


def test_a_lost_class_counts_as_zero_and_has_no_finite_epsilon(measured):
    found, bench = measured
    lost = {cell: outcome for cell, outcome in found.items() if cell.arm == "matrix-decomposition.global"}
    assert {cell.get("model") for cell in lost} == {"network", *tabular.MODELS}
    for outcome in lost.values():
        n_lost = outcome.metrics["n_lost"]
        assert n_lost >= 1
        assert "epsilon" not in outcome.metrics
        assert outcome.metrics["macro_f1"] <= 1 - n_lost / bench.table.n_classes
        assert outcome.metrics["worst_class_accuracy"] == 0.0


def test_labels_of_the_test_part_move_no_choice(table):
    changed = Table("dry_bean", FEW)
    bench = TabularWorkspace(UNIT, table)
    changed.labels = table.labels.copy()
    changed.labels[bench.test] = (changed.labels[bench.test] + 1) % 7
    other = TabularWorkspace(UNIT, changed)
    for name in (arm for arm in arms() if arm not in ("forgetting-events", "persistent-homology")):
        one, two = bench.reduced(name, 0.1), other.reduced(name, 0.1)
        np.testing.assert_array_equal(one.rows.values, two.rows.values, err_msg=name)
        assert one.metrics == two.metrics


def test_the_variants_differ_from_their_methods(table):
    bench = TabularWorkspace(UNIT, table)
    for variant in VARIANTS:
        one, two = bench.reduced(variant.name, 0.1).rows, bench.reduced(variant.method, 0.1).rows
        assert len(one.codes) == len(two.codes)
        assert not np.array_equal(np.sort(one.values, axis=0), np.sort(two.values, axis=0))


@pytest.mark.slow
def test_committed_lines_are_measured_again(tmp_path):
    require_data("tabular/dry_bean.csv.gz")
    committed = records(RESULTS / "smoke")
    assert {one.cell.get("model") for one in committed.values()} == {"network", *tabular.MODELS}
    finish(tmp_path, *ONE_ARM)
    found = records(tmp_path / "results")
    assert list(found) == list(committed)
    # Another processor rounds otherwise, and a network that is far from its end goes another way from there.
    room = {"network": 0.08, "converged": 0.03, "logistic": 0.005, "boosting": 0.03}
    for name, before in committed.items():
        now = found[name]
        assert now.config == before.config, "the configuration changed: measure the committed lines again"
        assert now.metrics.get("steps") == before.metrics.get("steps")
        for metric in ("n_train", "n_test", "n_all", "n_lost", "joules_measured"):
            assert now.metrics[metric] == before.metrics[metric]
        for metric in ("epsilon", "epsilon_l2", "mean_distance"):
            assert now.metrics[metric] == pytest.approx(before.metrics[metric], abs=2e-6)
        assert now.metrics["macro_f1"] == pytest.approx(
            before.metrics["macro_f1"], abs=room[now.cell.get("model")]
        ), name


def test_lines_that_are_there_are_not_measured_again(tmp_path, monkeypatch):
    require_data("tabular/dry_bean.csv.gz")
    monkeypatch.setattr(tabular_workspace, "CONVERGED_STEPS", 9)
    said = []
    for _ in range(2):
        console, ledger = Console(file=io.StringIO(), width=200), Ledger(tmp_path / "results")
        options = {"arms": ["moderate-coreset"], "n_rows": 100}
        running.measure(console, ledger, running.units(["tabular"], seeds=1), tmp_path, **options)
        said.append(console.file.getvalue())
    assert said[0].count("moderate-coreset") == 12
    assert said[1] == ""


ADDED = '''
"""Keep the rows nearest to the mean of their class."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drip.reduction.base import ScoredReducer


@dataclass(eq=False, repr=False)
class NearestToMean(ScoredReducer):
    """Keep the rows nearest to the mean of their class."""

    name: ClassVar[str] = "nearest-to-mean"
    abbreviation: ClassVar[str] = "NTM"

    def _score(self, table, sizes):
        """Minus the distance to the mean of the class."""
        scores = np.empty(len(table.values))
        for rows in table.classes.rows:
            own = table.values[rows]
            scores[rows] = -np.linalg.norm(own - own.mean(axis=0), axis=1)
        return scores
'''

ADDING = """
import sys
from pathlib import Path

import nearest_to_mean  # defined: that is all
from rich.console import Console

from experiments import tabular_workspace

tabular_workspace.CONVERGED_STEPS = 9  # not what is tested here

from experiments.ledger import Ledger
from experiments.report import render
from experiments.running import measure, units

folder = Path(sys.argv[1])
ledger = Ledger(folder / "results")
options = {"arms": ["all", "stratified-random", "nearest-to-mean"], "n_rows": 100}
measure(Console(quiet=True), ledger, units(["tabular"], seeds=2), folder / "cache", **options)
for name, text in render(folder / "results").items():
    (folder / name.rpartition("/")[2]).write_text(text)
"""


def test_a_method_in_one_small_file_appears_in_all_tables_and_in_the_figure(tmp_path):
    require_data("tabular/dry_bean.csv.gz")
    assert len(ADDED.strip().splitlines()) <= 30
    (tmp_path / "nearest_to_mean.py").write_text(ADDED.lstrip())
    done = subprocess.run(
        [sys.executable, "-c", ADDING, tmp_path],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| nearest-to-mean (NTM) |" in (tmp_path / "measured.md").read_text()
    data = (tmp_path / "reduction-dry_bean.csv").read_text()
    assert data.count("\nnearest-to-mean,NTM,") == data.count("\nstratified-random,SRS,") > 0
    assert "nearest-to-mean (NTM)" in (tmp_path / "tabular-dry_bean.svg").read_text()
