"""The tables of `reduction.md` from the result files; `generate.py` puts them between their marks."""

from __future__ import annotations

import json
from collections import defaultdict
from math import inf, isinf
from pathlib import Path
from statistics import median
from textwrap import wrap
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
_WIDTH = 118
_START, _END = "<!-- made by docs/generate.py from image_reduction.jsonl -->", "<!-- end -->"

Runs = dict[tuple[str, str, bool], dict[float, list[dict[str, Any]]]]


def reduction_page(page: str) -> str:
    """The page with its tables made anew.

    Args:
        page: The page as it is.
    """
    before, start, rest = page.partition(_START)
    _, end, after = rest.partition(_END)
    if not (start and end):
        raise ValueError(f"the marks {_START} and {_END} are needed in reduction.md")
    return "\n".join([before + start, "", *_images(), "", end + after])


def _images() -> list[str]:
    lines = (RESULTS / "image_reduction.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    runs: Runs = defaultdict(lambda: defaultdict(list))
    for record in records:
        method = record["method"], record["stratify"], record["cover"]
        runs[method][record["fraction"]].append(record)
    first = records[0]
    fractions = sorted({record["fraction"] for record in records})
    seeds = len({record["seed"] for record in records})
    head = " | ".join(f"{fraction:.0%}: mean | ε | classes" for fraction in fractions)
    table = [f"| method | {head} |", f"|{' --- |' * (1 + 3 * len(fractions))}"]
    table += [_row(name, found, fractions) for name, found in runs.items()]
    return [*_before(first, seeds, runs, fractions), "", *table, "", *_after(first, runs, fractions)]


def _before(first: dict[str, Any], seeds: int, runs: Runs, fractions: list[float]) -> list[str]:
    categories = [_middle(next(iter(runs.values()))[fraction], "n_categories") for fraction in fractions]
    counted = ", ".join(f"{number:.0f}" for number in categories)
    text = (
        f"Measured on {first['n']} training images of COCO with {first['n_boxes']} boxes of "
        f"{first['n_classes']} classes, with MobileNetV2's ImageNet features (1280, not scaled); medians of "
        f"{seeds} seeds. *Mean* and *ε* (the largest) are Euclidean distances to the nearest kept image of "
        f"the category, *classes* those that keep a box. There were {counted} categories at the three sizes. "
        "So few images train no detector: this says how well the kept ones stand for all, not what is "
        "learned from them."
    )
    return wrap(text, _WIDTH)


def _after(first: dict[str, Any], runs: Runs, fractions: list[float]) -> list[str]:
    random = runs["stratified-random", "proportional", False]
    others = {name: found for name, found in runs.items() if not name[2] and name[0] != "stratified-random"}
    sentences = []
    for fraction in fractions:
        values = [_middle(found[fraction], "n_classes_kept") for found in others.values()]
        chance = _middle(random[fraction], "n_classes_kept")
        sentences.append(f"{min(values):g} to {max(values):g} at {fraction:.0%} (chance: {chance:g})")
    text = (
        f"Classes that keep a box without `--cover`: {', '.join(sentences)}; no method looks after rare "
        "ones. One cut over all (`global`) loses whole categories, and its distances are infinite. ε does "
        "not compare from size to size: more kept images allow finer categories."
    )
    made = f"`python benchmarks/image_reduction.py`; commit {first['commit']}."
    return [*wrap(text, _WIDTH), "", made]


def _row(
    name: tuple[str, str, bool], found: dict[float, list[dict[str, Any]]], fractions: list[float]
) -> str:
    method, stratify, cover = name
    cells = [method + (", `global`" if stratify == "global" else "")]
    if cover:
        images = ", ".join(f"{_middle(found[fraction], 'n_kept'):.0f}" for fraction in fractions)
        cells = [f"{method}, `--cover` ({images} images)"]
    for fraction in fractions:
        rows = found[fraction]
        cells += [_distance(_middle(rows, "mean_euclidean")), _distance(_middle(rows, "epsilon_euclidean"))]
        cells.append(f"{_middle(rows, 'n_classes_kept'):g}")
    return f"| {' | '.join(cells)} |"


def _middle(rows: list[dict[str, Any]], name: str) -> float:
    return median(inf if row[name] is None else row[name] for row in rows)


def _distance(value: float) -> str:
    return "lost" if isinf(value) else f"{value:.1f}"
