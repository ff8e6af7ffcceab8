"""The page of reduced tables: numbers from records with known effects, and sentences that the real records bear."""

import csv
import math

import numpy as np
import pytest

from drip.errors import InputError
from drip.reduction import available
from experiments import tabular, tabular_report
from experiments.cells import Unit
from experiments.ledger import RESULTS, Ledger, Record
from experiments.reading import Evidence
from experiments.tabular_reading import METRIC, PROTOCOL, RANDOM, TO_THE_END, Runs, label, published

pytestmark = pytest.mark.slow

LEVELS = {"network": 0.80, "converged": 0.92, "logistic": 0.93, "boosting": 0.91}
ENDS = ("converged", "logistic", "boosting")
CSV = f"{tabular_report.DATA}/reduction-dry_bean.csv"


def made(n_runs=6, effect=None, more=None, config=None):
    """Records of every cell: a level of the model and of the run, the effect of (arm, model, fraction)."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(n_runs):
        for cell in tabular.cells(Unit("tabular", "table", "dry_bean", seed)):
            model, fraction = cell.get("model"), cell.get("fraction", 1.0)
            f1 = LEVELS[model] + 0.01 * seed + 0.0005 * rng.standard_normal()
            f1 += (effect or (lambda *_: 0.0))(cell.arm, model, fraction, cell.get("budget"))
            metrics = {
                "accuracy": f1,
                "macro_f1": f1,
                "n_test": 3403,
                "n_all": 10208,
                "n_train": 10208 if cell.arm == "all" else round(10208 * fraction),
                "reduce_s": 0.0 if cell.arm == "all" else 0.25,
                "fit_s": 2.0 if cell.arm == "all" else 1.0 * fraction,
                "joules": 8.5,
                "joules_measured": 0.0,
            }
            if model in ("network", "converged"):
                metrics["steps"] = 1000
            if cell.arm != "all":
                metrics |= {
                    "n_lost": 0,
                    "epsilon": 0.1 if cell.arm == "maxmin" else 0.5,
                    "epsilon_l2": 0.7,
                    "mean_distance": 0.04,
                }
            metrics |= (more or (lambda *_: {}))(cell)
            kept = {name: value for name, value in metrics.items() if math.isfinite(value)}
            settings = {"recipe": "test"} if config is None else config(cell)
            found.append(Record(cell, settings, kept, {"energy": "made up"}, "abc1234", {"drip": "1"}))
    return found


def runs_of(records):
    return Runs(Evidence(records), "dry_bean")


def numbers(records):
    return tabular_report.summary(runs_of(records))


def rows_of(rendered):
    return list(csv.DictReader(rendered[CSV].splitlines()))


def method(found, name):
    (row,) = [row for row in found["methods"] if row["name"] == label(name)]
    return row


@pytest.fixture(scope="module")
def committed():
    """What the committed records say."""
    records = [record for record in Ledger(RESULTS).records() if record.cell.unit.study == "tabular"]
    return Runs(Evidence(records), "dry_bean"), numbers(records)


def test_the_sentences_of_the_page_hold(committed):
    runs, found = committed
    assert found["n_better"] == 0  # random rows are recommended
    epsilons = {arm: runs.summary(arm, PROTOCOL, 0.1, "epsilon")[0] for arm in runs.arms}
    assert min(epsilons, key=epsilons.get) == "maxmin"
    distance, epsilon = found["follows"]["mean_distance"], found["follows"]["epsilon"]
    assert distance["below"] == distance["n"] >= epsilon["below"]
    assert float(distance["highest"].replace("\u2212", "-")) < float(
        epsilon["highest"].replace("\u2212", "-")
    )
    assert found["lost"]  # one cut over all classes loses some
    mean, half = found["steps"].replace("\u2212", "").split(" ± ")
    assert float(mean) < float(half)  # rows and steps cannot be separated
    assert float(method(found, "forgetting-events")["seconds"]) > 5


def test_without_records_there_is_no_page():
    other = Record(Unit("dpw", "head", "mnist", 0).cell("all"), {}, {"accuracy": 0.5}, {}, "abc", {})
    assert tabular_report.render([]) == tabular_report.render([other]) == {}


def test_differences_from_random_are_marked_by_holms_correction():
    def effect(arm, model, *_):
        return {"maxmin": 0.03, "protodash": -0.04}.get(arm, 0.0) if model in ENDS else 0.0

    found = numbers(made(effect=effect))
    assert (found["n_better"], found["n_worse"]) == (6, 6)
    assert found["worse"] == {label("protodash"): 6}
    assert all(cell.startswith("+3.0 ±") and cell.endswith("*") for cell in method(found, "maxmin")["gains"])
    assert not any(cell.endswith("*") for cell in method(found, "moderate-coreset")["gains"])


def test_what_random_rows_lose_is_shown_for_every_model():
    def effect(arm, model, fraction, _):
        return -0.05 if arm == RANDOM and (model, fraction) == ("boosting", 0.1) else 0.0

    enough = {row["name"]: row["losses"] for row in numbers(made(effect=effect))["enough"]}
    assert list(enough) == [training.title for training in TO_THE_END]
    assert enough["gradient boosting"][0].startswith("\u22125.0 ±")
    assert enough["converged"][0].startswith(("+0.0", "0.0", "\u22120.0"))


def test_a_lost_class_has_an_infinite_epsilon():
    def more(cell):
        lost = {"n_lost": 2, "epsilon": math.inf, "epsilon_l2": math.inf, "mean_distance": math.inf}
        return lost if cell.arm == "matrix-decomposition.global" else {}

    records = made(more=more)
    assert numbers(records)["lost"] == {"matrix-decomposition.global": "2.0"}


def test_the_data_file_has_published_numbers_next_to_the_arm_that_is_like_them():
    rows = rows_of(tabular_report.render(made()))
    told = {
        (row["method"], row["fraction"]): (row["published_mean"], row["published_sd"])
        for row in rows
        if row["metric"] == METRIC and row["trained"] == PROTOCOL.title and row["published_mean"]
    }
    assert told["maxmin", "0.1"] == ("0.637", "0.046")
    assert told["matrix-decomposition.global", "0.1"] == ("0.341", "0.077")
    assert ("matrix-decomposition", "0.1") not in told


def test_the_data_file_has_every_method_model_and_size():
    rows = rows_of(tabular_report.render(made(5)))
    assert {row["method"] for row in rows} >= {"all", *available()}
    assert {row["trained"] for row in rows} == {
        "published protocol", "equal steps", "as many steps", *(training.title for training in TO_THE_END)
    }  # fmt: skip
    found = [row for row in rows if (row["method"], row["metric"]) == ("maxmin", METRIC)]
    assert len(found) == 5 + 1 + 3 * 2
    assert all(float(row["ci95_corrected"]) > float(row["ci95"]) for row in found)


def test_agreement_counts_means_within_two_published_deviations():
    # Every mean is 82.5: the published SRS at 10 % is 73.9 ± 2.8, at 30 % 81.9 ± 6.4.
    inside = sum(
        abs(0.825 - mean) <= 2 * sd
        for short, values in published("dry_bean")["macro_f1"].items()
        for fraction, (mean, sd) in zip((0.1, 0.3, 0.5, 0.7, 0.9), values, strict=False)
        if short not in ("PRD", "DES", "NRMD") or fraction == 0.1
    )
    assert numbers(made())["agreement"] == {"inside": inside, "total": 28}


def test_the_correction_uses_all_training_rows_kept_or_not():
    found = runs_of(made()).difference(("maxmin", PROTOCOL), (RANDOM, PROTOCOL), 0.1)
    assert found.n == 6
    assert found.corrected_half / found.half == pytest.approx(((1 / 6 + 3403 / 10208) * 6) ** 0.5)


def test_f1_that_follows_epsilon_is_seen():
    ranks = {name: rank for rank, name in enumerate(sorted(available()))}

    def effect(arm, *_):
        return -0.01 * ranks.get(arm, 0)

    def distances(cell):
        rank = ranks.get(cell.arm)
        return {} if rank is None else {"epsilon": 0.1 + 0.01 * rank, "mean_distance": 0.8 - 0.01 * rank}

    found = numbers(made(5, effect=effect, more=distances))["follows"]
    assert found["epsilon"] == {"lowest": "\u22121.00", "highest": "\u22121.00", "below": 6, "n": 6}
    assert found["mean_distance"] == {"lowest": "+1.00", "highest": "+1.00", "below": 0, "n": 6}


def test_every_method_is_on_the_page_and_in_the_figure():
    rendered = tabular_report.render(made(5))
    page, figure = rendered[tabular_report.PAGE], rendered["figures/tabular-dry_bean.svg"]
    for name in available():
        assert f"| {label(name)} |" in page
        if name != RANDOM:
            assert label(name) in figure
    assert rendered == tabular_report.render(made(5))
    assert len(page.split()) <= 900


def test_runs_of_one_arm_with_two_configurations_are_rejected():
    with pytest.raises(InputError):
        tabular_report.render(made(2, config=lambda cell: {"seed": cell.unit.seed}))


def test_published_numbers_are_complete():
    stated = published("dry_bean")
    assert stated["macro_f1"]["NRMD"][0] == [0.341, 0.077]
    for name, n in (("macro_f1", 6), ("epsilon", 5), ("seconds", 6), ("grams_co2", 6)):
        assert {short: len(values) for short, values in stated[name].items()} == dict.fromkeys(
            ("SRS", "PRD", "CLC", "MMS", "DES", "NRMD", "PHL", "FES"), n
        )
    assert published("nothing") == {}
