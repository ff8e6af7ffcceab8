"""The studies on made-up features: equal counts, who trains on what, and data set 2 left alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_up import made_up_regime

from drip.errors import InputError
from drip.rules import OFFERED
from experiments import dpw, noise, running, table1
from experiments.arms import PAPER_RULES, RESEARCH_RULES, Arm, decide, rules
from experiments.cells import Unit
from experiments.head import HeadRegime
from experiments.ledger import RESULTS, Ledger
from experiments.noise import NoisyWorkspace
from experiments.workspace import Workspace

pytestmark = pytest.mark.slow

ARMS = ("baseline", "all", "drip", "drip.normalised", "random", "margin", "paper.raw.window")


class Watched(HeadRegime):
    """Remembers which rows train, are observed and are scored, whatever their view."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.trained, self.observed, self.scored = set(), set(), set()

    def fit(self, rows, labels, **options):
        self.trained |= set(self.bank.rows(rows).tolist())
        return super().fit(rows, labels, **options)

    def observe(self, model, rows):
        self.observed |= set(self.bank.rows(rows).tolist())
        return super().observe(model, rows)

    def logits(self, model, rows):
        self.scored |= set(self.bank.rows(rows).tolist())
        return super().logits(model, rows)


@pytest.fixture(scope="module")
def measured():
    """Every cell of table1 in one run on few rows, and its workspace."""
    unit = Unit("table1", "head", "mnist", 1)
    bench = Workspace(unit, made_up_regime(1500, 5, epochs=1))
    return {cell: table1.run(cell, bench) for cell in table1.cells(unit)}, bench


def test_every_rule_is_an_arm_and_has_cells():
    names = {*OFFERED, *RESEARCH_RULES}
    assert len(names) == 25
    assert names <= set(rules())
    for arm in rules():
        rules()[arm].build(0.3, 0)
    assert rules()["drip"] == Arm("drip", "drip")
    assert names <= {cell.arm for cell in table1.cells(Unit("table1", "head", "mnist", 0))}
    for unit in running.units():
        ids = [cell.id for cell in running.STUDIES[unit.study].cells(unit)]
        assert len(set(ids)) == len(ids)


def test_a_rule_that_draws_gets_another_seed_in_another_run_and_never_the_splits_own():
    seeds = [rules()["random"].build(0.3, seed).params["seed"] for seed in range(20)]
    assert len(set(seeds)) == 20
    assert not set(seeds) & set(range(1000))


def test_measuring_the_cost_leaves_the_decisions_as_they_are(measured):
    _, bench = measured
    stream = bench.stream("d1c")
    for arm, rule in rules().items():
        wanted = rule.build(0.3, 1).calibrate(bench.calibration("d1c")).decide_many(stream)
        found = decide(rule.build(0.3, 1).calibrate(bench.calibration("d1c")), stream)
        np.testing.assert_array_equal(found.decisions.retain, wanted.retain, err_msg=arm)
        np.testing.assert_array_equal(found.decisions.priority, wanted.priority, err_msg=arm)
        assert found.cost["decide_us"] > 0


def test_at_one_retention_every_arm_keeps_exactly_what_drip_keeps(measured):
    found, bench = measured
    for retention in table1.RETENTIONS:
        kept = {
            outcome.metrics["n_kept"] for cell, outcome in found.items() if cell.get("retention") == retention
        }
        assert kept == {int(bench.decided(rules()["drip"], retention, "d1c").decisions.retain.sum())}
    paper = {outcome.metrics["n_kept"] for cell, outcome in found.items() if cell.get("dpw") is not None}
    window = bench.decided(PAPER_RULES["paper.raw.window"], round(1 - 0.39, 6), "d2")
    assert paper == {int(window.decisions.retain.sum())}
    assert len(kept | paper) > 1


def test_training_rows_are_data_set_1_and_what_is_kept(measured):
    found, bench = measured
    n1, n3 = len(bench.split.d1), len(bench.split.d3)
    for cell, outcome in found.items():
        kept = {"baseline": 0, "all": n3}.get(cell.arm, outcome.metrics.get("n_kept"))
        assert outcome.metrics["n_train"] == n1 + kept
        assert outcome.metrics["n_test"] == len(bench.split.d2_for_calibration)
        if cell.get("budget") == "steps":
            assert outcome.metrics["steps"] == round((n1 + n3) / 32)
        else:
            assert outcome.metrics["steps"] == max(1, round((n1 + kept) / 32))


def test_a_setting_changes_what_it_names_and_the_usual_ones_share_their_selection(measured):
    found, bench = measured
    usual = {"budget": "epochs", "mode": "online", "labels": "true", "calibration": "d1c", "retention": 0.3}
    cells = {
        (cell.arm, tuple(sorted(dict(cell.settings).items()))): outcome for cell, outcome in found.items()
    }

    def metrics(arm, **changes):
        return cells[arm, tuple(sorted({**usual, **changes}.items()))].metrics

    for arm in ("drip", "random", "margin"):
        here = metrics(arm)
        for changed in ({"budget": "steps"}, {"labels": "predicted"}):
            assert metrics(arm, **changed)["bytes_kept"] == here["bytes_kept"]
            assert metrics(arm, **changed)["errors_kept"] == here["errors_kept"]
    stream = bench.stream("d1c")
    count = int(metrics("margin")["n_kept"])
    best = np.argsort(-_margin(stream), kind="stable")[:count]
    wrong = stream.classes != bench.regime.labels[bench.split.d3]
    share = wrong[best].sum() / wrong.sum()
    assert metrics("margin", mode="ranked")["errors_kept"] == pytest.approx(share, abs=1e-9)


def _margin(stream):
    top = np.sort(stream.logits - stream.logits.max(1, keepdims=True), axis=1)
    probabilities = np.exp(top) / np.exp(top).sum(1, keepdims=True)
    return 1 - (probabilities[:, -1] - probabilities[:, -2])


def test_the_calibrating_fifth_does_not_train_the_model_that_it_calibrates():
    regime = made_up_regime(800, 5, epochs=1, regime=Watched)
    bench = Workspace(Unit("table1", "head", "mnist", 0), regime)
    bench.deployed("d1c")
    assert regime.trained == set(bench.split.d1_fit.tolist())
    bench.calibration("d1c")
    assert regime.observed == set(bench.split.d1c.tolist())
    bench.stream("d1c")
    assert regime.observed == set(np.concatenate([bench.split.d1c, bench.split.d3]).tolist())


@pytest.mark.parametrize(
    ("study", "dataset", "bench_of"),
    [
        (table1, "mnist", Workspace),
        (dpw, "mnist", Workspace),
        (noise, "mnist", NoisyWorkspace),
    ],
)
def test_no_row_of_data_set_2_trains_or_is_seen_before_scoring(study, dataset, bench_of, monkeypatch):
    unit = Unit(study.NAME, "head", dataset, 0)
    regime = made_up_regime(800, 5, study.views(dataset), epochs=1, regime=Watched)
    bench = bench_of(unit, regime)
    held_out = set(bench.split.d2_for_calibration.tolist())

    def refused(_):
        raise InputError("data set 2 was read for calibration")

    monkeypatch.setattr("experiments.protocol.Split.d2_for_calibration", property(refused))
    for cell in study.cells(unit):
        if cell.arm not in ARMS:
            continue
        if cell.get("dpw") is not None or cell.get("calibration") == "d2":
            with pytest.raises(InputError, match="read for calibration"):
                study.run(cell, bench)
            continue
        study.run(cell, bench)
    assert not regime.trained & held_out
    assert regime.scored <= held_out
    assert not regime.observed & held_out
    assert len(regime.scored) > 0.5 * len(held_out)


@pytest.mark.parametrize("study", ["table1", "dpw"])
def test_labels_of_data_set_2_move_no_choice(study):
    unit = Unit(study, "head", "mnist", 0)
    module = running.STUDIES[study]
    first, second = (made_up_regime(800, 5, epochs=1) for _ in range(2))
    bench = Workspace(unit, first)
    rows = bench.split.d2_for_calibration
    second.labels = second.labels.copy()
    second.labels[rows] = (second.labels[rows] + 1) % 5
    other = Workspace(unit, second)
    for cell in module.cells(unit):
        if cell.arm in ("drip", "margin", "paper.raw.window", "paper.normalised.peak"):
            one, two = module.run(cell, bench).metrics, module.run(cell, other).metrics
            for name in ("n_kept", "native_kept", "bytes_kept", "errors_kept", "n_train"):
                assert one[name] == two[name]


def test_runs_repeat():
    unit = Unit("dpw", "head", "mnist", 2)
    found = []
    for _ in range(2):
        bench = Workspace(unit, made_up_regime(600, 5))
        found.append([dpw.run(cell, bench).metrics for cell in list(dpw.cells(unit))[:14]])
    timed = ("fit_s", "decide_us", "decide_peak_bytes")
    for one, two in zip(*found, strict=True):
        assert {n: v for n, v in one.items() if n not in timed} == {
            n: v for n, v in two.items() if n not in timed
        }


def test_arms_that_draw_do_not_draw_alike():
    random, reservoir = (rules()[name].build(0.3, seed=0) for name in ("random", "reservoir"))
    assert random.params["seed"] != reservoir.params["seed"]
    assert random.params["seed"] != rules()["random"].build(0.3, seed=1).params["seed"]


@pytest.mark.parametrize("folder", [RESULTS, RESULTS / "smoke"])
def test_no_committed_run_would_be_measured_again(folder):
    """What a study says of a configuration today is what its lines were measured with."""
    series = {(one.cell.series, one.config_hash): one for one in Ledger(folder).records()}
    for one in series.values():
        now = json.loads(json.dumps(running.STUDIES[one.cell.unit.study].config(one.cell)))
        assert {name: one.config.get(name) for name in now} == now, one.cell.id


def test_the_table_of_files_names_every_module_and_nothing_else():
    folder = Path(running.__file__).parent
    table = (folder / "README.md").read_text().partition("## Files")[2].partition("\n## ")[0]
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    named = [name for cell in first for name in re.findall(r"`([^`/]+)`", cell)]
    held = {path.name for path in folder.iterdir() if path.suffix in (".py", ".toml")} - {"__init__.py"}
    assert sorted(named) == sorted(held)
