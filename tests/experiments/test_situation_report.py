"""Pages and tables of the study of situations, from records that are made up."""

import re

import pytest
from situation_records import study_of

from experiments.report import _fill
from experiments.situation_reading import Study
from experiments.situation_report import CRITERIA, SITUATIONS, summary, tables
from experiments.situation_study import ARMS, LABELLED, PLACES
from experiments.situation_study import SITUATIONS as STUDIED
from experiments.situation_verdicts import plan, verdicts

OTHERS = {"whole": [], "n_runs": "1", "full": [], "chance": {"comparisons": 0}, "claims": []}


@pytest.fixture(scope="module")
def study():
    return study_of(0.15, {"junk": -0.02, "mixed": 0.0})


@pytest.fixture(scope="module")
def page(study):
    return _fill("what-we-measured.md.j2", {**OTHERS, "situations": summary(study)})


def cells(page, first):
    """Cells of every row of a Markdown table that starts with a text."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "|" in line
    ]
    return [row for row in rows if row[0] == first]


def test_every_situation_and_criterion_has_its_words(study):
    assert set(SITUATIONS) == set(STUDIED)
    assert len(set(SITUATIONS.values())) == len(SITUATIONS)
    names = {re.split(" at | in ", one.name)[0] for one in verdicts(study)}
    assert names == set(CRITERIA)


def test_the_page_has_every_situation_at_both_keep_rates(page):
    for words in SITUATIONS.values():
        assert len(cells(page, words)) == 2
    # Random is at 50 + 40 times the root of the keep rate, and the rule 15 points above.
    low, high = cells(page, SITUATIONS["new-camera"])
    assert [float(row[1]) for row in (low, high)] == pytest.approx([58.9, 67.9], abs=1.0)
    assert low[2].startswith("+15.0 (")
    assert high[2].startswith("+15.0 (")
    assert float(re.search(r"\((.*)x\)", low[2])[1]) > float(re.search(r"\((.*)x\)", high[2])[1]) > 1
    assert [row[2] for row in cells(page, SITUATIONS["junk"])] == ["\u22122.0"] * 2


def test_the_page_says_what_holds_and_what_falls_short(page, study):
    held = {one.name: one for one in verdicts(study)}
    failing = [name for name, one in held.items() if not one.holds]
    assert failing == ["worse_in", "junk", "junk_ignored"]
    outcomes = [row[3] for row in (line.split("|")[1:-1] for line in page.splitlines()) if len(row) == 4]
    assert [text.strip() for text in outcomes].count("not met") == len(failing)
    assert f"`adaptive-margin` meets {len(held) - len(failing)} of {len(held)} criteria." in page
    (short,) = re.findall(r"\*\*It falls short in\*\* (.*)\.\n", page)
    assert short == "cells worse than random; junk; junk, once ignored"


def test_the_page_says_how_many_runs_there_are(page):
    assert f"in 5 runs of {plan()['cells']['runs']} that are planned" in page
    complete = summary(study_of(0.1, n=plan()["cells"]["runs"]))
    assert complete["complete"]
    assert "that are planned" not in _fill("what-we-measured.md.j2", {**OTHERS, "situations": complete})


def test_what_has_too_few_runs_is_not_called_failed():
    few = summary(study_of(0.15, n=3))
    assert [one["outcome"] for one in few["criteria"]].count("not measured") == 1
    assert not few["missed"]


def test_without_records_the_pages_have_no_table():
    assert summary(Study({})) is None
    assert tables(Study({})) == []
    page = _fill("what-we-measured.md.j2", {**OTHERS, "situations": None})
    assert "streams with structure" not in page
    assert "Not measured yet." in _fill("situations_table.md.j2", {"situations": None})


def test_the_tables_have_every_place_arm_and_keep_rate(study):
    found = {
        table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        for table in tables(study)
    }
    measured = {key for key in study.runs if key[1] in ARMS}
    assert len(found["situations"]) == len(measured)
    assert len(found["situations-means"]) == len({(place.situation, *rest) for place, *rest in measured})
    places = sum(map(len, PLACES.values()))
    assert len(found["situations-labels"]) == places * len(LABELLED)
    by_arm = {row["arm"]: row for row in found["situations-rules"]}
    assert set(by_arm) == {"adaptive-margin", "spread-store"}
    assert by_arm["adaptive-margin"]["minus the candidate"] == ""
    assert by_arm["spread-store"]["minus the candidate"] == "0.40"
    assert by_arm["adaptive-margin"]["deciding cells"] == str(plan()["cells"]["decide"])
    one = next(row for row in found["situations"] if row["arm"] == "adaptive-margin" and row["kept"] == "20")
    assert one["minus random"] == "15.00"
    assert float(one["from"]) <= float(one["random needs"]) <= float(one["to"])
    assert one["marked among the kept"] == "40.0"
    assert one["p, Holm"] == "0.0000"
    undecided = next(row for row in found["situations"] if row["kept"] == "30")
    assert undecided["p, Holm"] == ""


def test_the_same_records_give_the_same_tables(study):
    assert tables(study) == tables(Study(study.runs))


def test_the_page_has_the_whole_network_where_it_was_trained():
    row = {"name": "junk, 30 %", "dataset": "tomato", "kept": "20", "runs": "5", "minus": "+1.25"}
    page = _fill("what-we-measured.md.j2", {**OTHERS, "whole": [row], "situations": summary(study_of(0.05))})
    assert "| junk, 30 % | tomato | 20 | 5 | +1.25 |" in page
