"""The page of reduced tables from records with known effects: its tables, and the advice that they decide."""

import math

import numpy as np
import pytest

from drip.errors import InputError
from drip.reduction import available
from experiments import tabular, tabular_report
from experiments.cells import Unit
from experiments.ledger import Record
from experiments.reading import Evidence
from experiments.tabular_reading import PROTOCOL, RANDOM, Runs, published

LEVELS = {"network": 0.80, "converged": 0.92, "logistic": 0.93, "boosting": 0.91}
ENDS = ("converged", "logistic", "boosting")


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


def page_of(records):
    return tabular_report.render(records)[tabular_report.PAGE]


def advice(page):
    """The items under the first heading, each as one line."""
    part = page.split("## Dry Bean: which method, when\n")[1].split("\n## ")[0]
    return [" ".join(item.split()) for item in part.split("\n- ")[1:]]


def about(page, words):
    (found,) = [item for item in advice(page) if item.startswith(f"**{words}")]
    return found


def table(page, heading):
    """Cells of the first table behind a heading."""
    body = page.split(f"{heading}\n")[1]
    lines = body[body.index("| ") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if set(line) - set("|- ")]


def test_without_records_the_page_says_so():
    assert "No run has been recorded yet." in page_of([])


def test_records_of_other_studies_are_left_out():
    other = Record(Unit("dpw", "head", "mnist", 0).cell("all"), {}, {"accuracy": 0.5}, {}, "abc", {})
    assert page_of([other]) == page_of([])


def test_below_five_runs_no_method_is_advised():
    page = page_of(made(4))
    assert "Nothing can be said yet: 4 of the 5 runs" in page
    assert advice(page) == []
    assert "4 of 10 runs were made" in page


def test_where_nothing_differs_the_advice_is_random_rows():
    page = page_of(made())
    assert f"`{RANDOM}`. No method is above it" in about(page, "To train a model to the end")
    assert not [item for item in advice(page) if item.startswith("**Not for that")]


def test_a_method_that_is_better_everywhere_is_advised_and_a_worse_one_is_not():
    def effect(arm, model, *_):
        return {"maxmin": 0.03, "protodash": -0.04}.get(arm, 0.0) if model in ENDS else 0.0

    page = page_of(made(effect=effect))
    assert "above random, and never below, `maxmin` in 6 of 6. Else" in about(page, "To train a model")
    assert "below random are `protodash` in 6 of 6." in about(page, "Not for that")


def test_a_method_that_is_better_here_and_worse_there_is_not_advised():
    def effect(arm, model, *_):
        return 0.03 * (1 if model == "boosting" else -1) if arm == "maxmin" and model in ENDS else 0.0

    page = page_of(made(effect=effect))
    assert "No method is above it anywhere without being below" in about(page, "To train a model")
    assert "`maxmin` in 4 of 6" in about(page, "Not for that")


def test_the_fraction_that_is_as_good_as_all_rows_follows_from_the_interval():
    def effect(arm, model, fraction, _):
        worse = {"converged": (0.1,), "boosting": (0.1, 0.3), "network": (0.3, 0.7)}.get(model, ())
        return -0.05 if arm == RANDOM and fraction in worse else 0.0

    told = about(page_of(made(effect=effect)), "How few rows are enough")
    parts = dict(part.split(" ", 1) for part in told.partition("all rows: ")[2].split("; "))
    assert "as good from 30 % on" in parts["converged"]
    assert "not shown to be as good even at 30 %" in parts["gradient"]
    assert "as good from 10 % on" in parts["logistic"]
    assert "as good from 90 % on" in parts["published"]  # not from 10 or 50 %, behind which it is worse again
    assert parts["converged"].startswith("\u22124.9") or parts["converged"].startswith("\u22125.0")


def test_the_least_epsilon_is_named_with_its_price():
    def effect(arm, model, *_):
        return -0.02 if arm == "maxmin" and model in ENDS else 0.0

    told = about(page_of(made(effect=effect)), "To leave no row")
    assert "`maxmin`, with ε 0.100 at 10 % where random has 0.500" in told
    assert "are \u22122.0" in told


@pytest.mark.parametrize(
    ("few_steps", "noise", "reason"),
    [
        (-0.1, 0.0, "most of the change comes from the steps"),
        (0.0, 0.0, "the rows themselves matter too"),
        (-0.1, 0.1, "cannot be told from these runs"),
    ],
)
def test_a_loss_of_steps_is_told_from_one_of_rows(few_steps, noise, reason):
    rng = np.random.default_rng(1)

    def effect(arm, _, fraction, budget):
        if budget == "fraction" and fraction == 0.1:
            return few_steps + noise * rng.standard_normal()
        return -0.1 if arm == RANDOM and fraction == 0.1 and budget == "epochs" else 0.0

    assert reason in about(page_of(made(effect=effect)), "Where the number of epochs is fixed")


def test_what_is_saved_counts_the_reduction():
    told = about(page_of(made()), "What 10 % at random saves")
    # 2 s with all rows; 0.25 s and 0.1 s with a tenth.
    assert "logistic regression: 82 % of the time" in told


def test_a_lost_class_is_told_and_has_an_infinite_epsilon():
    def more(cell):
        lost = {"n_lost": 2, "epsilon": math.inf, "epsilon_l2": math.inf, "mean_distance": math.inf}
        return lost if cell.arm == "matrix-decomposition.global" else {}

    page = page_of(made(more=more))
    assert "`matrix-decomposition.global` loses 2.0 of the classes" in about(page, "To keep every class")
    assert "∞ (2.0 classes lost)" in page


def test_published_numbers_stand_below_the_arm_that_is_like_them():
    rows = table(page_of(made()), "## The published protocol: macro F1")
    names = [row[0] for row in rows]
    below = {name: rows[k + 1] for k, name in enumerate(names[:-1]) if rows[k + 1][1] == "published"}
    assert below["maxmin (MMS)"][2] == "63.7 ± 4.6"
    assert below["matrix-decomposition.global"][2:7] == [
        *("34.1 ± 7.7", "45.0 ± 5.1", "62.6 ± 5.6", "74.3 ± 1.4", "83.5 ± 8.6")
    ]
    assert "matrix-decomposition (NRMD)" not in below
    assert below["stratified-random (SRS)"][7] == "90.4 ± 2.2"
    assert len(below) == 8


def test_agreement_counts_means_within_two_published_deviations():
    # Every mean is 82.5: the published SRS at 10 % is 73.9 ± 2.8, at 30 % 81.9 ± 6.4.
    page = " ".join(page_of(made()).split())
    told = page[page.index("of our means") - 20 :]
    inside = sum(
        abs(0.825 - mean) <= 2 * sd
        for short, values in published("dry_bean")["macro_f1"].items()
        for fraction, (mean, sd) in zip((0.1, 0.3, 0.5, 0.7, 0.9), values, strict=False)
        if short not in ("PRD", "DES", "NRMD") or fraction == 0.1
    )
    assert f"Of 28 of our means {inside} lie within" in page
    assert "stratified-random (SRS) at 10 % (+8.6 points)" in told
    assert "the largest gap is 75.8 in place of 45.0 (NRMD at 30 %)" in told


def test_the_correction_takes_all_training_rows_kept_or_not():
    runs = Runs(Evidence(made()), "dry_bean")
    found = runs.difference(("maxmin", PROTOCOL), (RANDOM, PROTOCOL), 0.1)
    assert found.n == 6
    assert found.corrected_half / found.half == pytest.approx(((1 / 6 + 3403 / 10208) * 6) ** 0.5)


def test_f1_that_follows_epsilon_is_seen():
    ranks = {name: rank for rank, name in enumerate(sorted(available()))}

    def effect(arm, *_):
        return -0.01 * ranks.get(arm, 0)

    def more(cell):
        return {"epsilon": 0.1 + 0.01 * ranks[cell.arm], "mean_distance": 0.2} if cell.arm in ranks else {}

    def distances(cell):
        found = more(cell)
        return found | {"mean_distance": 0.9 - found["epsilon"]} if found else {}

    rows = table(page_of(made(5, effect=effect, more=distances)), "### Does F1 follow?")
    assert len(rows) == 1 + 5 + 6
    for row in rows[1:]:
        assert row[2:] == ["\u22121.00 ±0.00", "+1.00 ±0.00"]
    told = about(page_of(made(5, effect=effect, more=distances)), "To judge a reduced set")
    assert "look at ε rather than at the mean distance" in told
    assert (
        "\u22121.00 to \u22121.00, below zero in 6 of 6 for ε; +1.00 to +1.00, below zero in 0 of 6" in told
    )


def test_energy_is_called_estimated_unless_all_of_it_was_measured():
    assert "joules, estimated" in page_of(made(5))
    measured = page_of(made(5, more=lambda _: {"joules_measured": 1.0}))
    assert "joules, measured" in measured
    assert "joules, estimated" not in measured


def test_every_method_has_its_row_in_every_table_and_its_panel():
    rendered = tabular_report.render(made(5))
    page, figure = rendered[tabular_report.PAGE], rendered["figures/tabular-dry_bean.svg"]
    for name, method in available().items():
        if name != RANDOM:
            assert page.count(f"| {name} ({method.abbreviation})") >= 10
            assert f"{name} ({method.abbreviation})" in figure
    assert rendered == tabular_report.render(made(5))
    assert f"({'figures/tabular-dry_bean.svg'})" in page


def test_runs_of_one_arm_with_two_configurations_are_refused():
    with pytest.raises(InputError, match="2 configurations"):
        page_of(made(2, config=lambda cell: {"seed": cell.unit.seed}))


def test_published_numbers_are_whole():
    stated = published("dry_bean")
    assert stated["macro_f1"]["NRMD"][0] == [0.341, 0.077]
    for name, n in (("macro_f1", 6), ("epsilon", 5), ("seconds", 6), ("grams_co2", 6)):
        assert {short: len(values) for short, values in stated[name].items()} == dict.fromkeys(
            ("SRS", "PRD", "CLC", "MMS", "DES", "NRMD", "PHL", "FES"), n
        )
    assert published("nothing") == {}
