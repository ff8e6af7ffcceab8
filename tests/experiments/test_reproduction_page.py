"""The page from records with known effects; and the committed page is what the committed records give."""

from pathlib import Path

import pytest
from synthetic_records import Maker, record

from drip.errors import InputError
from experiments import registered_report, tabular_report
from experiments.cells import Unit
from experiments.ledger import RESULTS, Ledger
from experiments.reading import Evidence, Place
from experiments.report import PAGE, render, write
from experiments.sections import FIGURES, rules, table1
from experiments.tables import against, interval

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def no_syncs(monkeypatch):
    monkeypatch.setattr("experiments.ledger.os.fsync", lambda _: None)


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    """Page and figures of every study, six runs each."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.ledger.os.fsync", lambda _: None)
        Maker(folder).everything()
    return render(folder)


def rows(page, name):
    """Cells of every table row that starts with a name."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [each for each in cells if each[0] == name]


def section(page, title, level="## "):
    """The lines under a heading, up to the next of its level."""
    body = page.split(f"\n{level}{title}\n")[1]
    return body.split(f"\n{level}")[0]


def test_the_committed_page_is_what_the_committed_records_give():
    rendered = render(RESULTS)
    held = {f"{FIGURES}/{path.name}" for path in (DOCS / FIGURES).glob("*.svg")} | {
        PAGE,
        registered_report.PAGE,
        tabular_report.PAGE,
    }
    assert held == set(rendered), "run: python -m experiments report"
    for name, text in rendered.items():
        assert (DOCS / name).read_text() == text, f"{name} is out of date; run: python -m experiments report"


def test_the_same_records_give_the_same_bytes(tmp_path):
    Maker(tmp_path).table1("head", "mnist").dpw("cifar10")
    assert render(tmp_path) == render(tmp_path)


def test_writing_twice_changes_nothing_and_removes_figures_without_records(tmp_path):
    results, docs = tmp_path / "results", tmp_path / "docs"
    Maker(results).dpw("cifar10")
    docs.mkdir()
    written = write(results, docs)
    stale = docs / FIGURES / "old.svg"
    stale.write_text("<svg/>")
    assert write(results, docs) == written
    assert not stale.exists()
    assert sorted((docs / FIGURES).iterdir()) == sorted(path for path in written if path.suffix == ".svg")


def test_without_records_the_page_says_so(tmp_path):
    page = render(tmp_path)[PAGE]
    assert "No run has been recorded yet." in page
    assert "Nothing can be said yet" in page
    assert "`table1-full-mnist` (20 runs)" in section(page, "What is missing")


def test_table_one_shows_the_papers_numbers_beside_ours(full_page):
    table = section(full_page[PAGE], "Table I")
    (published,) = rows(table, "MNIST")
    assert published[1:] == [
        "paper",
        "20",
        "97.8 ± 0.2",
        "98.9 ± 0.1",
        "98.9 ± 0.1",
        "98.2 ± 0.5",
        "39.0 ± 1.0",
    ]
    ours = rows(table, "")
    assert [row[1] for row in ours] == ["ours, full", "ours, head"] * 4
    assert all(row[2] == "6" for row in ours)
    # Effects of -5, +2, 0 and 0 points around 80 + 0.5 times the mean seed (2.5).
    for row in ours:
        levels = [float(cell.split()[0]) for cell in row[3:7]]
        assert levels == pytest.approx([76.25, 83.25, 81.25, 81.25], abs=0.2)
        assert row[7] == "29.0 ± 0.0"


def test_a_known_difference_is_found_with_its_intervals(tmp_path):
    ledger = Ledger(tmp_path)
    for seed, difference in enumerate((0.01, 0.02, 0.03, 0.04, 0.05)):
        unit = Unit("table1", "head", "tomato", seed)
        for arm, accuracy in (("random", 0.5 + 0.1 * seed), ("margin", 0.5 + 0.1 * seed + difference)):
            ledger.append(record(unit, arm, accuracy, retention=0.3))
    grid = against(Evidence(ledger.records()), {"30 %": Place("table1", "head", "tomato").at(retention=0.3)})
    cell = grid.cells["margin", "30 %"]
    # By hand: mean 0.03, variance 0.00025; t(4) = 2.776; n_test / n_train = 1000 / 4000.
    assert cell.mean == pytest.approx(0.03)
    assert cell.half == pytest.approx(2.776445 * (0.00025 / 5) ** 0.5, rel=1e-6)
    assert cell.corrected_half == pytest.approx(2.776445 * (0.00025 * (1 / 5 + 1 / 4)) ** 0.5, rel=1e-6)
    page = render(tmp_path)[PAGE]
    assert interval(cell, "°") == "+3.00 ±1.96 (±2.94)°"
    assert rows(section(page, "Every rule at equal counts"), "margin")[0][1] == interval(
        cell, grid.marks["margin", "30 %"]
    )


def test_views_and_near_duplicates_of_a_row_count_once_in_the_correction(tmp_path):
    Maker(tmp_path).streams("cifar10")
    evidence = Evidence(Ledger(tmp_path).records())

    def share(scenario):
        place = Place("streams", "head", "cifar10").at(scenario=scenario, retention=0.3)
        cell = evidence.difference(place, "margin", "random")
        return (cell.corrected_half / cell.half) ** 2 * (1 / cell.n) - 1 / cell.n

    # 1000 are tested and 4000 train, of which 1000 were kept, an eighth of them views of another kept row.
    assert share("duplicates") == pytest.approx(1000 / 3875)
    assert share("drift") == pytest.approx(500 / 3875)  # tested in two views
    assert share("foreign") == pytest.approx(1000 / 4000)  # junk does not train, whatever its rows


def test_runs_are_paired_by_seed_and_the_lonely_ones_are_listed(tmp_path):
    ledger = Ledger(tmp_path)
    for seed in (0, 1, 2, 4):
        ledger.append(
            record(Unit("table1", "head", "tomato", seed), "random", 0.5 + 0.1 * seed, retention=0.3)
        )
    for seed in (1, 2, 4, 5):
        ledger.append(
            record(Unit("table1", "head", "tomato", seed), "margin", 0.52 + 0.1 * seed, retention=0.3)
        )
    evidence = Evidence(ledger.records())
    found = evidence.difference(Place("table1", "head", "tomato").at(retention=0.3), "margin", "random")
    assert (found.n, found.mean) == (3, pytest.approx(0.02))
    missing = section(render(tmp_path)[PAGE], "What is missing")
    assert "seeds 0, 3, 6-19 of `margin` at retention=0.3" in missing
    assert "seeds 3, 5-19 of `random` at retention=0.3" in missing


def test_where_curves_cross_is_said_of_every_arm_and_reference(tmp_path):
    maker = Maker(tmp_path, spread=0.0).add("dpw", "head", "mnist", ("baseline", "all"))
    shifts = {0.1: (0.03, 0.01), 0.2: (0.01, 0.02), 0.3: (0.0, 0.0), 0.4: (-0.01, -0.02)}
    for discard, (drip, random) in shifts.items():
        shift = {"drip": drip, "random": random}
        maker.add("dpw", "head", "mnist", ("drip", "random"), shift=shift, discard=discard)
    table = section(render(tmp_path)[PAGE], "Fig. 5: every data set over the DPW")
    assert rows(table, "data set") == [["data set", "arm", "random", "all", "baseline"]]
    # Minus random +2, -1, 0 and +1 points, minus all (2 points) +1, -1, -2 and -3, minus baseline above 4.
    assert rows(table, "MNIST")[0] == ["MNIST", "drip", "10-20, 20-40", "10-20", "always above"]


def test_many_crossings_are_counted(tmp_path):
    maker = Maker(tmp_path, spread=0.0)
    for step in range(1, 10):
        shift = {"drip": 0.01 * (-1) ** step}
        maker.add("dpw", "head", "mnist", ("drip", "random"), shift=shift, discard=step / 10)
    table = section(render(tmp_path)[PAGE], "Fig. 5: every data set over the DPW")
    assert rows(table, "MNIST")[0][2] == "8 times, first 10-20, last 80-90"


def test_what_was_asked_and_what_was_kept_stand_side_by_side(full_page):
    rules = section(full_page[PAGE], "Every rule at equal counts")
    assert rows(rules, "kept by every arm, %")[0][1:] == ["50.0", "50.0"]  # of 30 and 10 asked
    assert "<summary>30 % asked to be kept, 50.0 % kept: " in rules
    assert "asked 30 %, kept 50 %" in full_page[f"{FIGURES}/rules-mnist.svg"]
    assert "30 % kept" not in full_page[f"{FIGURES}/rules-mnist.svg"]
    sweep = section(full_page[PAGE], "Fig. 5: every data set over the DPW")
    assert "What each rule itself would keep of the stream" in sweep


def test_bytes_time_and_memory_of_a_decision_are_shown(full_page):
    table = section(full_page[PAGE], "Table I")
    detail = next(part for part in table.split("<summary>") if part.startswith("MNIST, head"))
    titles, values = rows(detail, "arm")[0], rows(detail, "margin")[0]
    shown = dict(zip(titles, values, strict=True))
    assert (shown["bytes"], shown["µs"], shown["peak kB"]) == ("45.0", "3.2", "4.2")


@pytest.mark.parametrize("effect", [0.0008, 0.0010, 0.0012, 0.0014, 0.0016])
def test_a_cell_bears_one_mark_wherever_it_is_shown(tmp_path, effect):
    Maker(tmp_path, seeds=10, effects={"margin": effect, "entropy": effect}).table1("head", "mnist")
    evidence = Evidence(Ledger(tmp_path).records())
    for page in ("\n".join(rules(evidence, {})), "\n".join(table1(evidence))):
        shown = [row for arm in ("margin", "entropy", "paper.raw.peak") for row in rows(page, arm)]
        short = {(row[0], cell) for row in shown if len(row) < 7 for cell in row[1:]}
        long = {(row[0], row[3]) for row in shown if len(row) > 7}
        assert long
        assert long <= short


def test_table_one_says_how_many_runs_each_level_has(tmp_path):
    maker = Maker(tmp_path, seeds=3).add("table1", "full", "mnist", ("baseline", "all"), budget="epochs")
    maker.add("table1", "full", "mnist", ("paper.raw.window", "random"), seeds=[0], budget="epochs", dpw=0.39)
    assert rows(section(render(tmp_path)[PAGE], "Table I"), "")[0][2] == "1-3"


def test_baselines_without_a_full_run_are_said_to_have_none(tmp_path):
    Maker(tmp_path).table1("full", "mnist").table1("head", "mnist").table1("head", "cifar10")
    table = section(render(tmp_path)[PAGE], "Table I")
    assert "No full run yet: CIFAR-10, PD (tomato) and Speech Commands." in table
    assert "of the head regime are lower" in table.replace("\n", " ")


def test_longer_training_stands_below_the_training_of_table_one(tmp_path):
    arms = ("baseline", "all", "paper.raw.window", "random")
    maker = Maker(tmp_path, spread=0.0).table1("full", "cifar10")
    for arm in arms:
        dpw = {} if arm in ("baseline", "all") else {"dpw": 0.23}
        maker.add("longer", "full", "cifar10", [arm], shift={arm: 0.03}, epochs=8, budget="epochs", **dpw)
    page = render(tmp_path)[PAGE]
    short, long = rows(section(page, "Longer training", "### "), "CIFAR-10")
    assert [short[1], long[1]] == ["2", "8"]
    assert short[2] == long[2] == "6"
    first, second = ([float(row[n].split()[0]) for n in range(3, 7)] for row in (short, long))
    assert second == pytest.approx([value + 3 for value in first])
    assert short[7:] == long[7:]
    assert "Other settings" not in page
    Maker(tmp_path / "without").table1("full", "cifar10")
    assert "Longer training" not in render(tmp_path / "without")[PAGE]


def test_one_claim_is_one(tmp_path):
    maker = Maker(tmp_path, effects={"paper.raw.window": 0.07})
    maker.table1("full", "cifar10").table1("full", "speech_commands")
    answer = section(render(tmp_path)[PAGE], "The short answer").replace("\n", " ")
    assert "Of 16 claims 1 holds, 1 does not hold, " in answer


def test_below_five_runs_no_interval_is_printed(tmp_path):
    Maker(tmp_path, seeds=4).table1("head", "mnist").table1("full", "mnist")
    page = render(tmp_path)[PAGE]
    tables = section(page, "Table I") + section(page, "Every rule at equal counts")
    assert "[4 runs]" in tables
    assert "±0" not in tables
    assert "too few for an interval" in tables
    assert "Nothing can be said yet" in page


def test_every_column_of_the_folded_tables_is_explained(full_page):
    page = full_page[PAGE]
    before = page.split("\n## Table I\n")[0] + section(page, "Streams that are not well mixed")
    explained = " ".join(before.split())
    headed = {cell for row in rows(page, "arm") if "runs" in row for cell in row}
    plain = {"arm", "runs", "accuracy", "minus random", "Wilcoxon p", "macro F1", "on clean", "on drift4"}
    assert "junk kept" in headed
    for name in headed - plain:
        assert f"`{name}`" in explained, name


def test_a_new_rule_appears_in_every_table_where_it_was_run(tmp_path):
    settings = {"budget": "epochs", "mode": "online", "labels": "true", "calibration": "d1c"}
    maker = Maker(tmp_path, effects={"brand-new": 0.03})
    maker.table1("head", "mnist").table1("full", "mnist").dpw("mnist").noise("cifar10").streams("cifar10")
    for changed in (
        {},
        {"mode": "ranked"},
        {"budget": "steps"},
        {"labels": "predicted"},
        {"calibration": "d1"},
    ):
        maker.add("table1", "head", "mnist", ["brand-new"], retention=0.3, **{**settings, **changed})
    maker.add("table1", "full", "mnist", ["brand-new"], budget="epochs", dpw=0.39)
    maker.add("dpw", "head", "mnist", ["brand-new"], discard=0.5)
    maker.add("noise", "head", "cifar10", ["brand-new"], kind="label", fraction=0.4)
    maker.add("streams", "head", "cifar10", ["brand-new"], scenario="drift", retention=0.3)
    rendered = render(tmp_path)
    page = rendered[PAGE]
    for title in ("Table I", "Every rule at equal counts", "Streams that are not well mixed"):
        assert rows(section(page, title), "brand-new"), title
    for title in (
        "Looking ahead",
        "Equal steps instead of equal epochs",
        "Predicted labels instead of true ones",
    ):
        assert rows(section(page, title, "### "), "brand-new"), title
    assert rows(section(page, "Calibrated on data set 1", "### "), "brand-new")
    assert "brand-new" in section(page, "Fig. 5: every data set over the DPW")
    assert "brand-new" in section(page, "Fig. 6: noise")
    assert "brand-new" in rendered[f"{FIGURES}/rules-mnist.svg"]
    assert "brand-new" in rendered[f"{FIGURES}/streams.svg"]
    assert "`brand-new` in 1 of 1" in section(page, "The short answer").replace("\n  ", " ")


def test_settings_without_a_table_of_their_own_are_shown_too(tmp_path):
    Maker(tmp_path).add(
        "table1", "head", "mnist", ("random", "margin"), retention=0.3, mode="ranked", budget="steps"
    )
    others = section(render(tmp_path)[PAGE], "Other settings")
    assert "budget=steps, mode=ranked, retention=0.3" in others
    assert rows(others, "margin")


def test_every_place_with_records_is_shown_in_a_section(full_page):
    assert "## Other settings" not in full_page[PAGE]


def test_runs_of_one_arm_with_two_configurations_are_an_error_that_names_them(tmp_path):
    ledger = Ledger(tmp_path)
    for seed, config in enumerate(({"epochs": 3}, {"epochs": 3}, {"epochs": 4})):
        ledger.append(
            record(Unit("table1", "head", "tomato", seed), "margin", 0.5, config=config, retention=0.3)
        )
    with pytest.raises(
        InputError, match=r"one configuration, got 2 .*margin/0000, .*margin/0001; .*margin/0002"
    ):
        render(tmp_path)


def test_two_lines_for_one_run_are_an_error(tmp_path):
    ledger = Ledger(tmp_path)
    unit = Unit("table1", "head", "tomato", 0)
    ledger.append(record(unit, "margin", 0.5, retention=0.3))
    ledger.append(record(unit, "margin", 0.5, retention=0.3, mode="online"))
    with pytest.raises(InputError, match="one line per run"):
        render(tmp_path)


def test_streams_show_junk_duplicates_and_retention_over_time(full_page):
    streams = section(full_page[PAGE], "Streams that are not well mixed")
    titles, values = rows(streams, "arm")[0], None  # of a table before
    for line in streams.splitlines():
        if line.startswith("<summary>foreign"):
            titles = []
        elif line.startswith("| arm") and titles == []:
            titles = [cell.strip() for cell in line.strip("|").split("|")]
        elif line.startswith("| drip ") and "junk kept" in titles:
            values = dict(zip(titles, (cell.strip() for cell in line.strip("|").split("|")), strict=True))
            break
    assert (values["junk kept"], values["unique kept"], values["spread"]) == ("12.5", "87.5", "9.0")
    assert values["kept by tenth of the stream"] == "30 31 32 33 34 35 36 37 38 39"
    assert "| on drift4 |" in streams.replace("  ", " ")


def test_every_relative_link_leads_to_a_figure(full_page):
    for name in full_page:
        assert name.endswith(".md") or f"({name})" in full_page[PAGE]


def test_figures_have_no_date_and_no_program_version(full_page):
    for name, text in full_page.items():
        if not name.endswith(".md"):
            assert text.startswith("<?xml")
            assert "dc:date" not in text
            assert "Matplotlib v" not in text
