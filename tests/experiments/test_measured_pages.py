"""Pages and tables: from records with known effects, and from the committed records."""

import csv
import html.parser
import re
from pathlib import Path

import pytest
from synthetic_records import Maker, record

from drip.errors import InputError
from experiments.appendix import tables
from experiments.cells import Unit
from experiments.ledger import RESULTS, Ledger
from experiments.reading import Evidence, Place, paper
from experiments.report import APPENDIX, DATA, PAGE, SITUATIONS_TABLE, gain, render, write
from experiments.tables import FIGURES, against

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def no_syncs(monkeypatch):
    monkeypatch.setattr("experiments.ledger.os.fsync", lambda _: None)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Pages, tables and figures of every study, six runs each; and their evidence."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.ledger.os.fsync", lambda _: None)
        Maker(folder).everything()
    return render(folder), Evidence(Ledger(folder).records())


@pytest.fixture(scope="module")
def committed():
    """What the committed records give."""
    return render(RESULTS)


def table(rendered, name):
    """Rows of a CSV file as dictionaries; of two columns with one name the first."""
    head, *rows = csv.reader(rendered[f"{DATA}/{name}.csv"].splitlines())
    return [dict(reversed(list(zip(head, row, strict=True)))) for row in rows]


def table_of(folder, name):
    return {found.name: found for found in tables(Evidence(Ledger(folder).records()))}[name]


def rows(page, first):
    """Cells of every row of a Markdown table that starts with a text."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"
    ]
    return [each for each in cells if each[0] == first]


def test_the_committed_pages_tables_and_figures_are_what_the_committed_records_give(committed):
    held = {f"{FIGURES}/{path.name}" for path in (DOCS / FIGURES).glob("*.svg")}
    held |= {f"{DATA}/{path.name}" for path in (DOCS / DATA).iterdir()}
    assert held == {name for name in committed if name.endswith((".svg", ".csv"))}, (
        "run: python -m experiments report"
    )
    for name, text in committed.items():
        assert (DOCS / name).read_text() == text, f"{name} is out of date; run: python -m experiments report"


def test_the_page_has_two_screens(committed):
    words = re.findall(r"[\w'%.+\u2212-]*\w[\w'%.+-]*", committed[PAGE])
    assert len(words) <= 900


def test_the_committed_verdicts_are_those_that_were_published_before(committed):
    """What the pages said before they were made from templates."""
    main = {}
    for row in table(committed, "claims"):
        main.setdefault(row["claim"], row["verdict"])
    assert [verdict for verdict in main.values() if verdict != "inconclusive"] == [
        *("does not hold", "holds", "does not hold", "does not hold"),
        *("not tested",) * 3,
    ]
    assert [name for name, verdict in main.items() if verdict == "does not hold"] == [
        *("random-gap", "savings", "dpw-consistent"),
    ]


def test_the_readme_has_the_table_of_the_records(committed):
    assert committed[SITUATIONS_TABLE].partition("-->")[2].strip() in (DOCS.parent / "README.md").read_text()


def test_every_claim_that_was_decided_is_on_the_page_with_its_verdict(committed):
    main = {}
    for row in table(committed, "claims"):
        main.setdefault(row["claim"], (row["the paper says"], row["verdict"]))
    for says, verdict in main.values():
        assert [row[1].split(";")[0] for row in rows(committed[PAGE], says)] == (
            [f"**{verdict}**"] if verdict in ("holds", "does not hold") else []
        )
    undecided = [verdict for _, verdict in main.values()].count("inconclusive")
    assert f"\n{undecided} others are [inconclusive]" in committed[PAGE]


class Page(html.parser.HTMLParser):
    """Links, headings' ids and rows per table of the appendix."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.n_rows = [], set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.links += [named[name] for name in ("href", "src") if name in named]
        self.ids |= {named["id"]} if "id" in named else set()
        self.n_rows += tag == "tr"


def test_the_appendix_has_every_table_and_figure_and_asks_no_other_host(committed):
    page = Page(committed[APPENDIX])
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            target = re.sub("html$", "md", link) if "explanation" in link else link
            assert (DOCS / "appendix" / target).resolve().exists(), link
    named = {link.removeprefix("data/") for link in page.links if link.startswith("data/")}
    # The study of reduced tables has a page of its own.
    texts = {
        name: text
        for name, text in committed.items()
        if name.startswith(DATA) and not name.startswith(f"{DATA}/reduction-")
    }
    assert {f"{DATA}/{name}" for name in named} == set(texts)
    shown = {f"{FIGURES}/{Path(link).name}" for link in page.links if link.endswith(".svg")}
    assert shown == {name for name in committed if name.endswith(".svg") and "tabular" not in name}
    assert page.n_rows == sum(len(list(csv.reader(text.splitlines()))) for text in texts.values())
    assert "//" not in "".join(page.links)


def test_every_series_is_in_the_appendix(full):
    rendered, evidence = full
    assert len(table(rendered, "levels")) == len(evidence.series)


def test_the_same_records_give_the_same_bytes(tmp_path):
    Maker(tmp_path).table1("head", "mnist").dpw("cifar10")
    assert render(tmp_path) == render(tmp_path)


def test_writing_twice_changes_nothing_and_removes_what_the_records_no_longer_give(tmp_path):
    results, docs = tmp_path / "results", tmp_path / "docs"
    Maker(results).dpw("cifar10")
    written = write(results, docs)
    old = [docs / FIGURES / "old.svg", docs / DATA / "old.csv"]
    for path in old:
        path.write_text("old")
    assert write(results, docs) == written
    assert not any(path.exists() for path in old)
    assert {path for path in docs.rglob("*") if path.is_file()} == set(written)


def test_without_records_there_are_pages_without_tables(tmp_path):
    rendered = render(tmp_path)
    assert "## The paper's comparison" not in rendered[PAGE]
    assert "Not measured yet." in rendered[APPENDIX]
    assert all(row["verdict"] == "not tested" for row in table(rendered, "claims"))


def test_table_one_shows_the_papers_numbers_beside_ours(full):
    held = table(full[0], "table1")
    published = next(row for row in held if row["data set"] == "MNIST")
    names = ("whose", "runs", "baseline", "all data", "DRIP", "random", "savings")
    assert [published[name] for name in names] == ["paper", "20", "97.8", "98.9", "98.9", "98.2", "39.0"]
    ours = [row for row in held if row["whose"] != "paper"]
    assert [row["whose"] for row in ours] == ["full", "head"] * 4
    # Effects of -5, +2, 0 and 0 points around 80 + 0.5 times the mean seed (2.5).
    for row in ours:
        found = [float(row[name]) for name in ("baseline", "all data", "DRIP", "random")]
        assert found == pytest.approx([76.25, 83.25, 81.25, 81.25], abs=0.2)
        assert (row["runs"], row["savings"]) == ("6", "29.00")
        if row["whose"] == "full":
            (shown,) = rows(full[0][PAGE], f"{row['data set']} (6)")
            assert [float(cell) for cell in shown[1:5]] == pytest.approx(found, abs=0.06)


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
    (row,) = table_of(tmp_path, "rules").rows
    assert row[:7] == ("PlantVillage tomato", "30 %", "margin", "5", "3.00", "1.96", "2.94")
    assert gain(cell) == "+3.0 ± 2.9"


def test_runs_are_paired_by_seed(tmp_path):
    ledger = Ledger(tmp_path)
    for arm, accuracy, seeds in (("random", 0.5, (0, 1, 2, 4)), ("margin", 0.52, (1, 2, 4, 5))):
        for seed in seeds:
            ledger.append(
                record(Unit("table1", "head", "tomato", seed), arm, accuracy + 0.1 * seed, retention=0.3)
            )
    found = Evidence(ledger.records()).difference(
        Place("table1", "head", "tomato").at(retention=0.3), "margin", "random"
    )
    assert (found.n, found.mean) == (3, pytest.approx(0.02))


def test_the_table_of_runs_says_where_an_arm_has_fewer(tmp_path):
    maker = Maker(tmp_path, seeds=3).add("table1", "full", "mnist", ("baseline", "all"), budget="epochs")
    maker.add("table1", "full", "mnist", ("paper.raw.window", "random"), seeds=[0], budget="epochs", dpw=0.39)
    (row,) = table_of(tmp_path, "runs").rows
    assert row[:9] == ("table1", "full", "MNIST", "3", "20", "8", "4000", "1000", "2")
    ours = table_of(tmp_path, "table1").rows[1]
    assert ours[:3] == ("MNIST", "full", "1-3")


def test_longer_training_is_beside_the_training_of_table_one(tmp_path):
    maker = Maker(tmp_path, spread=0.0).table1("full", "cifar10")
    for arm in ("baseline", "all", "paper.raw.window", "random"):
        dpw = {} if arm in ("baseline", "all") else {"dpw": 0.23}
        maker.add("longer", "full", "cifar10", [arm], shift={arm: 0.03}, epochs=8, budget="epochs", **dpw)
    held = table_of(tmp_path, "longer-training").rows
    assert [row[1:4] for row in held] == [
        (passes, arm, reference)
        for passes in ("2", "8")
        for arm, reference in (
            ("all", "baseline"),
            ("paper.raw.window", "random"),
            ("paper.raw.window", "all"),
        )
    ]
    assert [row[5] for row in held] == ["7.00", "0.00", "-2.00"] * 2


def test_below_five_runs_there_is_no_interval_and_no_verdict(tmp_path):
    Maker(tmp_path, seeds=4).table1("head", "mnist").table1("full", "mnist")
    rendered = render(tmp_path)
    for name in ("rules", "table1-differences"):
        assert {row["runs"] for row in table(rendered, name)} == {"4"}
        assert {row["± 95 %"] for row in table(rendered, name)} == {""}
    assert {row["verdict"] for row in table(rendered, "claims")} == {"not tested"}


def test_a_new_rule_appears_in_every_table_where_it_was_run(tmp_path):
    settings = {"budget": "epochs", "mode": "online", "labels": "true", "calibration": "d1c"}
    maker = Maker(tmp_path, effects={"brand-new": 0.03})
    maker.table1("head", "mnist").table1("full", "mnist").dpw("mnist").noise("cifar10")
    changes = ({}, {"mode": "ranked"}, {"budget": "steps"}, {"labels": "predicted"}, {"calibration": "d1"})
    for changed in changes:
        maker.add("table1", "head", "mnist", ["brand-new"], retention=0.3, **{**settings, **changed})
    maker.add("table1", "full", "mnist", ["brand-new"], budget="epochs", dpw=0.39)
    maker.add("dpw", "head", "mnist", ["brand-new"], discard=0.5)
    maker.add("noise", "head", "cifar10", ["brand-new"], kind="label", fraction=0.4)
    rendered = render(tmp_path)
    for name in ("table1-differences", "rules", "variations", "discarded", "noise", "levels"):
        assert [row for row in table(rendered, name) if row["arm"] == "brand-new"], name
    changed = {row["changed"] for row in table(rendered, "variations") if row["arm"] == "brand-new"}
    assert changed == {"mode=ranked", "budget=steps", "labels=predicted", "calibration=d1"}
    assert "brand-new" in rendered[f"{FIGURES}/rules-mnist.svg"]


def test_runs_of_one_arm_with_two_configurations_are_an_error_that_names_them(tmp_path):
    ledger = Ledger(tmp_path)
    for seed, config in enumerate(({"epochs": 3}, {"epochs": 3}, {"epochs": 4})):
        ledger.append(
            record(Unit("table1", "head", "tomato", seed), "margin", 0.5, config=config, retention=0.3)
        )
    with pytest.raises(InputError, match=r"2 configurations .*margin/0000, .*margin/0001; .*margin/0002"):
        render(tmp_path)


def test_two_lines_for_one_run_are_an_error(tmp_path):
    ledger = Ledger(tmp_path)
    unit = Unit("table1", "head", "tomato", 0)
    ledger.append(record(unit, "margin", 0.5, retention=0.3))
    ledger.append(record(unit, "margin", 0.5, retention=0.3, mode="online"))
    with pytest.raises(InputError, match="two lines for one run"):
        render(tmp_path)


def test_what_was_asked_and_what_was_kept_are_in_the_figures(full):
    figure = full[0][f"{FIGURES}/rules-mnist.svg"]
    assert "asked 30 %, kept 50 %" in figure
    assert "30 % kept" not in figure


def test_bytes_time_and_memory_of_a_decision_are_shown(full):
    row = next(
        row for row in table(full[0], "levels") if row["arm"] == "margin" and row["training"] == "head"
    )
    assert (row["bytes kept"], row["decision, µs"], row["decision, peak kB"]) == ("45.00", "3.2", "4.2")


def test_figures_have_no_date_and_no_program_version(full):
    for name, text in full[0].items():
        if name.endswith(".svg"):
            assert text.startswith("<?xml")
            assert "dc:date" not in text
            assert "Matplotlib v" not in text


def test_every_data_set_of_the_paper_has_a_name():
    assert set(paper()["names"]) == set(paper()["table1"]) == set(paper()["baseline"]["why"])
