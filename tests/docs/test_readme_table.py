"""The measured table of the README follows from the result files."""

import re

import pytest
from pages import ROOT

from experiments.ledger import Ledger
from experiments.reading import Evidence, Place

DATASETS = {
    "MNIST": "mnist",
    "CIFAR-10": "cifar10",
    "PlantVillage tomato": "tomato",
    "Speech Commands": "speech_commands",
}
LEVELS = ("baseline", "all", "paper.raw.window", "random", "margin")


@pytest.fixture(scope="module")
def evidence():
    return Evidence(Ledger().records("table1-full-*"))


def row(evidence, title):
    place = Place("table1", "full", DATASETS[title])
    levels = [evidence.get(place, arm).summary("accuracy") for arm in LEVELS]
    cells = [f"{title} ({levels[0][2]})", *(f"{100 * mean:.1f}" for mean, _, _ in levels)]
    for arm in ("paper.raw.window", "margin"):
        found = evidence.difference(place, arm, "random")
        cells.append(
            f"{100 * found.mean:+.2f} ±{100 * found.corrected_half:.2f}".replace("-", "\N{MINUS SIGN}")
        )
    return cells


@pytest.mark.parametrize("title", DATASETS)
def test_the_table_has_what_was_measured(evidence, title):
    page = (ROOT / "README.md").read_text()
    (line,) = re.findall(rf"^\| {re.escape(title)} \(.*$", page, re.MULTILINE)
    assert [cell.strip() for cell in line.strip("|").split("|")] == row(evidence, title)
