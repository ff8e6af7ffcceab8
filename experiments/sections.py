"""The sections of the page that show one study each; text is wrapped, long tables are folded."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments import longer
from experiments.reading import DATASETS, Evidence, Place, Series, paper
from experiments.recipes import RECIPES
from experiments.scenarios import ARRIVALS, BURST, DRIFT, JUNK, REPEAT_WITHIN, REPEATS, TAIL
from experiments.streams import RETENTION
from experiments.tables import (
    against,
    change,
    crossings,
    dataset_name,
    detail,
    interval,
    joined,
    kept,
    level,
    markdown,
    metric_over,
    over_setting,
    percent,
    signed,
)

FIGURES = "figures"
WINDOW = "paper.raw.window"


@dataclass(frozen=True)
class Variation:
    """One setting away from the default.

    Attributes:
        setting: Its name.
        value: What it is set to.
        title: Heading.
        text: What it means.
        here: The variation in words.
        usual: The default in words.
    """

    setting: str
    value: str
    title: str
    text: str
    here: str
    usual: str


VARIATIONS = (
    Variation(
        "mode",
        "ranked",
        "Looking ahead",
        """Online, a rule decides on each sample as it comes. Here the same rules rank the whole stream first
        and keep the top: look-ahead, which no device has, and which shows what deciding online
        costs.""",
        "ranking the whole stream",
        "deciding online",
    ),
    Variation(
        "budget",
        "steps",
        "Equal steps instead of equal epochs",
        """A smaller training set passes in fewer optimiser steps. Here every arm trains for as many steps as
        all data would take, so that no arm loses for having been trained less.""",
        "equal steps",
        "equal epochs",
    ),
    Variation(
        "labels",
        "predicted",
        "Predicted labels instead of true ones",
        """Nobody labels on a device. Here what is kept is trained with the label that the deployed model
        predicted.""",
        "predicted labels",
        "true labels",
    ),
    Variation(
        "calibration",
        "d1",
        "Calibrated on data set 1",
        """Limits from the scores of the samples that trained the model (section IV-A.4), instead of a fifth
        of them held out.""",
        "calibration on data set 1",
        "a held-out fifth",
    ),
    Variation(
        "calibration",
        "d2",
        "Calibrated on data set 2",
        """Limits from data set 2 (section III-A), on which accuracy is reported too, instead of a held-out
        fifth of data set 1.""",
        "calibration on data set 2",
        "a held-out fifth",
    ),
)
_HEAD_LEVELS = """
The levels of the head regime are lower: it trains a linear layer on frozen features, on as many rows as leave
room between baseline and all data (the sizes stand above). It is there for the differences between arms.
"""
_LONGER = """
Recipes are the least work near the paper's accuracies. Whether a baseline that stays below the paper's is one
of too little training, and whether the arms would differ otherwise: the same splits, the deployed model and
every arm trained for more passes over their data. The first row is the training of Table I.
"""
_SCORES = """
Grey: scores of the calibration samples that are predicted as the class. Hatched: the window. A sample whose
score lies between the limits is discarded.
"""
_BANDS = """
Bands: 95 % of the mean over runs, from five runs on: how far levels move between splits, not how far arms
differ, which is told by the paired differences below. Every rule keeps as many samples as `drip`.
"""
_CROSSINGS = """
Where an arm's mean crosses that of another, in percent of the DPW; between curves that differ by chance
alone crossings are chance as well.
"""
_NOISE = """
Only data set 3 is spoilt; the share is that of samples with a wrong label, or with Gaussian noise on the
input. A filter sees no labels, so wrong labels cannot move it: what it gains there, random must gain too.
"""
_RULES = """
Head regime, online: limits are calibrated beforehand and the stream is seen once. The columns are what the
rules are asked to keep. All arms of a column keep as many samples as `drip` does there, which is often more:
the densest window of few calibration scores holds a smaller share of new ones.

In the figures a thick line is the t-interval, a thin one the corrected, a filled point one that the table
marks `*`.
"""
_STREAMS = f"""
At least {ARRIVALS:,} arrivals: data set 3 again and again, each time in another order;
{percent(RETENTION, 0)} % are asked to be kept. `bursts`: one class at a time, {BURST} arrivals on average.
`longtail`: the rarest class comes 1/{TAIL} as often as the most frequent. `foreign`: {percent(JUNK, 0)} % are
pictures of the other image set. `heldout`: {percent(JUNK, 0)} % are of two classes that the model never saw.
`drift`: blur and noise grow in {len(DRIFT)} steps. `duplicates`: every picture comes {len(REPEATS)} times,
each slightly changed, within some {REPEAT_WITHIN} arrivals.

Head regime. A store keeps equal pictures once; each arm keeps as many different ones as `drip` does. Junk
gets no label, so what a store spends on it is lost: `junk kept` is its share of what is stored. `unique kept`
is how many different rows are behind the stored pictures; `native` counts different pictures, of which a
rule that draws at each arrival stores more than its share. `kept by tenth of the stream` is the share of
arrivals that the rule retains, `spread` the largest tenth minus the smallest.

Four of these rules have 20 runs in [choosing-a-rule.md](choosing-a-rule.md); those here are the first of
them.
"""
_COMPARED = ("random", "all", "baseline")
_P_VALUES = "p-values: corrected t-test after Holm / Wilcoxon"
_HEAT = """
Rows are rules, columns scenarios; dark is far from random, the sign is printed. Cells with fewer than five
runs are left out.
"""


def prose(text: str) -> list[str]:
    """Paragraphs as wrapped lines, each with a blank line behind it."""
    lines: list[str] = []
    for paragraph in textwrap.dedent(text).strip().split("\n\n"):
        lines += [*wrapped(" ".join(paragraph.split())), ""]
    return lines


def wrapped(text: str, bullet: str = "") -> list[str]:
    """One paragraph or list item as wrapped lines."""
    return textwrap.wrap(
        bullet + text,
        108,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )


def table1(evidence: Evidence) -> list[str]:
    """The paper's numbers beside ours, and the differences of all arms of the full regime's list."""
    lines = ["## Table I", ""]
    headers = ["data set", "whose", "runs", "baseline", "all data", "DRIP", "random", "savings"]
    rows = []
    for dataset in DATASETS:
        stated = paper()["table1"][dataset]
        texts = [level(*stated[name]) for name in ("baseline", "all", "drip", "random", "savings")]
        rows.append([dataset_name(dataset), "paper", str(paper()["paper"]["runs"]), *texts])
        for regime in ("full", "head"):
            place = Place("table1", regime, dataset)
            found = [evidence.get(place, arm) for arm in ("baseline", "all", WINDOW, "random")]
            if any(found):
                texts = [level(*one.summary("accuracy")[:2]) if one else "" for one in found]
                savings = level(*found[2].summary("savings")[:2]) if found[2] else ""
                rows.append(["", f"ours, {regime}", _numbers_of_runs(found), *texts, savings])
    lines += [*markdown(headers, rows), ""]
    lines += prose(
        "Accuracies and storage savings in percent; DRIP is `paper.raw.window`. All limits of this table, "
        "those of `margin` too, come from the scores of data set 2."
    )
    lines += [*_baselines(evidence), *_longer(evidence)]
    for regime in ("full", "head"):
        places = {
            dataset_name(dataset): Place("table1", regime, dataset)
            for dataset in DATASETS
            if evidence.selecting(Place("table1", regime, dataset))
        }
        if not places:
            continue
        lines += [f"### Differences, {regime}", ""]
        grids = {
            reference: against(evidence, places, reference, f"minus {reference}")
            for reference in ("random", "all", "baseline")
        }
        for reference, grid in grids.items():
            if not grid.cells:
                continue
            published = {dataset_name(dataset): paper()["table1"][dataset] for dataset in DATASETS}
            gaps = [signed(published[name]["drip"][0] - published[name][reference][0], 1) for name in places]
            lines += [*grid.markdown(first=[["DRIP in Table I", *gaps]]), ""]
            lines += prose(grid.sentence("arms", reference))
            lines += folded(_P_VALUES, [*grid.p_values(), ""])
        for name, place in places.items():
            title = f"{name}, {regime}: all that was measured; shares in percent, differences in points"
            lines += folded(title, [*detail(evidence, place, grids["random"], name), ""])
    return lines


def _numbers_of_runs(held: Sequence[Series | None]) -> str:
    """How many runs the arms of a row have, as a range where they differ."""
    counts = sorted({len(one.runs) for one in held if one})
    return "" if not counts else str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def _baselines(evidence: Evidence) -> list[str]:
    """Whether the baselines are near the paper's, and why not."""
    near, lines, without, off = [], [], [], paper()["baseline"]["off"]
    for dataset in DATASETS:
        found = evidence.get(Place("table1", "full", dataset), "baseline")
        if found is None:
            without.append(dataset_name(dataset))
            continue
        gap = found.summary("accuracy")[0] - paper()["table1"][dataset]["baseline"][0]
        if abs(gap) <= off:
            near.append(f"{dataset_name(dataset)} ({signed(gap, 1)} points)")
        else:
            why = paper()["baseline"]["why"][dataset]
            lines += wrapped(
                f"{dataset_name(dataset)}: our baseline is {signed(gap, 1)} points off. {why}", "- "
            )
    text = prose(f"Baselines within {percent(off, 0)} points of the paper's: {joined(near)}.") if near else []
    if lines:
        text += [f"Baselines further than {percent(off, 0)} points from the paper's:", "", *lines, ""]
    if without:
        text += prose(f"No full run yet: {joined(without)}.")
    return text + prose(_HEAD_LEVELS)


def _longer(evidence: Evidence) -> list[str]:
    """Levels and differences of Table I's arms by the length of the training."""
    rows = []
    for dataset in longer.DATASETS:
        lengths = evidence.values_of("epochs", longer.NAME, "full", dataset)
        if not lengths:
            continue
        places = {str(RECIPES[dataset].epochs): Place("table1", "full", dataset)}
        places |= {f"{length}": Place(longer.NAME, "full", dataset).at(epochs=length) for length in lengths}
        for passes, place in places.items():
            held = [evidence.get(place, arm) for arm in longer.ARMS]
            levels = [level(*one.summary("accuracy")[:2]) if one else "" for one in held]
            differences = [interval(evidence.difference(place, WINDOW, other)) for other in ("random", "all")]
            rows.append([dataset_name(dataset), passes, _numbers_of_runs(held), *levels, *differences])
    if not rows:
        return []
    headers = ["data set", "passes", "runs", "baseline", "all data", "DRIP", "random"]
    table = markdown([*headers, "DRIP minus random", "DRIP minus all data"], rows)
    return ["### Longer training", "", *prose(_LONGER), *table, ""]


def scores(drawn: Mapping[str, str]) -> list[str]:
    """Fig. 2."""
    return _figure(drawn, "fig2", "Fig. 2: scores and window", prose(_SCORES))


def dpw(evidence: Evidence, drawn: Mapping[str, str]) -> list[str]:
    """Figs. 4 and 5, and the numbers behind them."""
    lines = _figure(drawn, "fig4", "Fig. 4: CIFAR-10 over the DPW", prose(_BANDS))
    lines += _figure(drawn, "fig5", "Fig. 5: every data set over the DPW", prose(_BANDS))
    shown = [name for name in DATASETS if evidence.values_of("discard", "dpw", "head", name)]
    rows = [
        [dataset_name(dataset), *row]
        for dataset in shown
        for row in crossings(evidence, Place("dpw", "head", dataset), "discard", _COMPARED)
    ]
    if rows:
        lines += [*prose(_CROSSINGS), *markdown(["data set", "arm", *_COMPARED], rows), ""]
    for dataset in shown:
        lines += _swept(evidence, Place("dpw", "head", dataset), "discard", dataset_name(dataset))
    return lines


def noise(evidence: Evidence, drawn: Mapping[str, str]) -> list[str]:
    """Fig. 6, and the numbers behind it."""
    lines = _figure(drawn, "fig6", "Fig. 6: noise", [*prose(_NOISE), *prose(_BANDS)])
    for dataset in DATASETS:
        for kind in evidence.values_of("kind", "noise", "head", dataset):
            base = Place("noise", "head", dataset).at(kind=kind)
            lines += _swept(evidence, base, "fraction", f"{dataset_name(dataset)}, kind of noise: {kind}")
    return lines


def _swept(evidence: Evidence, base: Place, over: str, title: str) -> list[str]:
    """Accuracies and differences over a setting, folded; what they show stays visible."""
    body, told = [*metric_over(evidence, base, over), ""], []
    native = metric_over(evidence, base, over, "native_retention")
    title_of = "What each rule itself would keep of the stream, in percent; all keep what `drip` does:"
    body += [title_of, "", *native, ""] if native else []
    spoilt = metric_over(evidence, base, over, "spoilt_kept")
    body += ["Share of what is kept that is spoilt, in percent:", "", *spoilt, ""] if spoilt else []
    for reference in ("random", "all"):
        grid = over_setting(evidence, base, over, reference)
        if grid.cells:
            body += [
                f"Minus {reference}:",
                "",
                *grid.markdown(),
                "",
                f"{_P_VALUES}:",
                "",
                *grid.p_values(),
                "",
            ]
            told.append(grid.sentence("arms", reference))
    head = prose(f"**{title}.** {' '.join(told)}")
    return [*head, *folded("Accuracy in percent, and differences in points", body)]


def rules(evidence: Evidence, drawn: Mapping[str, str]) -> list[str]:
    """Every selecting arm beside random, by data set and retention."""
    lines = ["## Every rule at equal counts", "", *prose(_RULES)]
    any_held = False
    for dataset in DATASETS:
        places = retentions(evidence, dataset)
        grid = against(evidence, places)
        if not places:
            continue
        any_held = True
        lines += [f"### {dataset_name(dataset)}: accuracy minus random", ""]
        lines += _figure(
            drawn, f"rules-{dataset}", "", [], f"Every rule minus random, {dataset_name(dataset)}"
        )
        held = {name: percent(kept(evidence, place)) for name, place in places.items()}
        first = [["kept by every arm, %", *held.values()]]
        lines += [*grid.markdown(first=first), "", *prose(grid.sentence("rules", "random"))]
        for name, place in places.items():
            title = (
                f"{name} asked to be kept, {held[name]} % kept: all that was measured; shares in percent, "
                "differences in points"
            )
            lines += folded(title, [*detail(evidence, place, grid, name), ""])
    return lines if any_held else [*lines, "Not run yet.", ""]


def retentions(evidence: Evidence, dataset: str, **settings: str) -> dict[str, Place]:
    """Places of the head regime's Table I by retention, the largest first."""
    base = Place("table1", "head", dataset)
    values = evidence.values_of("retention", "table1", "head", dataset)[::-1]
    places = {f"{100 * float(value):g} %": base.at(retention=value, **settings) for value in values}
    return {name: place for name, place in places.items() if evidence.arms(place)}


def variations(evidence: Evidence) -> list[str]:
    """Every arm with one setting changed, beside itself and beside random."""
    lines = []
    for each in VARIATIONS:
        section: list[str] = []
        for dataset in DATASETS:
            section += _varied(evidence, dataset, each)
        if section:
            lines += [f"### {each.title}", "", *prose(each.text), *section]
    return ["## What else changes the accuracy", "", *lines] if lines else []


def _varied(evidence: Evidence, dataset: str, each: Variation) -> list[str]:
    places = retentions(evidence, dataset, **{each.setting: each.value})
    if not places:
        return []
    flat = Place("table1", "head", dataset).at(**{each.setting: each.value})
    pairs = {name: (place, place.without([each.setting])) for name, place in places.items()}
    if evidence.arms(flat):
        pairs["none or all"] = (flat, flat.without([each.setting]))
    changed, versus = change(evidence, pairs), against(evidence, places)
    lines = prose(f"**{dataset_name(dataset)}.** {changed.sentence(each.here, each.usual)}")
    body: list[str] = []
    if changed.cells:
        body += [f"{each.here[0].upper()}{each.here[1:]} minus {each.usual}:", "", *changed.markdown(), ""]
        body += [f"{_P_VALUES}:", "", *changed.p_values(), ""]
    if versus.cells:
        lines += prose(f"Minus random, with {each.here}: {versus.sentence('rules', 'random')}")
        body += [f"Minus random, with {each.here}:", "", *versus.markdown(), ""]
        body += [f"{_P_VALUES}:", "", *versus.p_values(), ""]
    return lines + folded("Differences in points", body)


def streams(evidence: Evidence, drawn: Mapping[str, str]) -> list[str]:
    """Every selecting arm beside random, by scenario."""
    lines = ["## Streams that are not well mixed", "", *prose(_STREAMS)]
    lines += _figure(drawn, "streams", "", prose(_HEAT), "Every rule minus random, by scenario")
    any_held = False
    for dataset in DATASETS:
        places = _scenarios(evidence, dataset)
        if not places:
            continue
        any_held = True
        grid = against(evidence, places)
        lines += [f"### {dataset_name(dataset)}: accuracy minus random", ""]
        for start in range(0, len(grid.columns), 3):
            lines += [*grid.markdown(grid.columns[start : start + 3]), ""]
        lines += prose(grid.sentence("rules", "random"))
        for name, place in places.items():
            title = f"{name}: all that was measured; shares in percent, differences in points"
            lines += folded(title, [*detail(evidence, place, grid, name), ""])
    return lines if any_held else [*lines, "Not run yet.", ""]


def _scenarios(evidence: Evidence, dataset: str) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for place in evidence.places("streams", "head", dataset):
        name = str(dict(place.settings).get("scenario"))
        if evidence.selecting(place):
            found[name if name not in found else f"{name} ({told(place)})"] = place
    return found


def _figure(drawn: Mapping[str, str], name: str, title: str, told: Sequence[str], alt: str = "") -> list[str]:
    """A figure under its heading, with what to know to read it; without a heading, ``alt`` describes it."""
    lines = [f"## {title}", ""] if title else []
    if name in drawn:
        return [*lines, f"![{title or alt}]({FIGURES}/{name}.svg)", "", *told]
    return [*lines, "Not drawn: there are no records for it yet.", ""] if title else []


def folded(title: str, body: Sequence[str]) -> list[str]:
    """Lines that a reader opens."""
    return ["<details>", f"<summary>{title}</summary>", "", *body, "</details>", ""]


def told(place: Place) -> str:
    """Settings of a place in words."""
    return ", ".join(f"{name}={value}" for name, value in place.settings)
