"""What docs/choosing-a-rule.md advises: the short answer, what to use when, and when random is enough."""

from __future__ import annotations

from collections.abc import Sequence

from experiments import limits
from experiments.limits_report import TITLE
from experiments.reading import Evidence, Place
from experiments.registered import plan
from experiments.registered_reading import (
    Tested,
    cells_behind,
    full_places,
    holds_rate,
    iid_places,
    junk_shares,
    rate_off,
)
from experiments.registered_verdicts import (
    BETTER,
    MISSING,
    NOT_SHOWN,
    Criterion,
    against_random,
    criteria,
    recommended,
)
from experiments.sections import prose, wrapped
from experiments.statistics import Comparison, holm
from experiments.tables import dataset_name, joined, markdown, percent, signed

_WHEN = (
    (
        "a sample that is to represent the stream, such as for a test set",
        "`random`, or `adaptive-random` behind gates",
        "whatever a rule prefers, it distorts",
    ),
    (
        "decisions inside the model file, without state",
        "`drip`, `margin`",
        "limits that do not move; the share kept follows the stream",
    ),
    ("the published method", "`drip`", "as in the paper; see the reproduction for what it gives"),
    (
        "few classes matter and are rare",
        "`class-balanced-random`, or floor and ceiling of the adaptive rules",
        "every predicted class gets its share",
    ),
)

_DEFAULT = "`drip calibrate` takes `drip`, the paper's window, unless `--rule` is given."


def answer(evidence: Evidence) -> list[str]:
    """What is recommended, and what holds of the candidate."""
    rules = plan()["rules"]
    found = criteria(evidence, rules["candidate"])
    chosen = recommended(evidence)
    lines = ["## The short answer", ""]
    if chosen is None:
        missing = sum(one.outcome == MISSING for one in found)
        failed = sum(one.outcome == "does not hold" for one in found)
        text = f"Not decided: {missing} of {len(found)} criteria wait for runs"
        return [*lines, *prose(text + (f", {failed} do not hold." if failed else "."))]
    if chosen == rules["candidate"]:
        text = f"Use `{chosen}` (`--rule {chosen}`): everything that was registered holds. {_DEFAULT}"
        return [*lines, *prose(text)]
    lines += prose(
        f"`{rules['candidate']}` does not pass everything that was registered, so the recommended rule is "
        f"`{chosen}` (`--rule {chosen}`): a random draw behind the same gates. {_DEFAULT}"
    )
    lines += _told_apart(cells_behind(evidence, rules["candidate"]))
    held = [f"{one.says} ({one.why})" for one in found if one.outcome == "holds"]
    lines += _bullets(f"What holds of `{rules['candidate']}`:", held)
    lines += _of_the_fallback(evidence)
    if evidence.places(limits.NAME):
        lines += prose(
            f"What a rule that reads the labels reaches: [{TITLE}](#{TITLE.lower().replace(' ', '-')})."
        )
    return lines


def _told_apart(judged: Sequence[tuple[Criterion, list[Tested]]]) -> list[str]:
    """What failed: first what the runs speak against, then what they only do not show."""
    against, undecided = [], []
    for one, cells in judged:
        if one.outcome == "holds":
            continue
        refuted = [cell for cell in cells if cell.is_refuted]
        if refuted:
            names = joined([_named(cell.place) for cell in refuted])
            against.append(
                f"{one.says} ({one.why}); the whole interval lies below {_bounds(refuted)} in {names}"
            )
        elif cells:
            undecided.append(f"{one.says} ({one.why}); {_undecided(cells)}")
        else:
            against.append(f"{one.says} ({one.why}); a measured share, not a test")
    return [
        *_bullets("What does not hold:", against),
        *_bullets(
            "What is only not shown: the criteria count it as failed, but no cell of it speaks against it:",
            undecided,
        ),
    ]


def _bullets(heading: str, items: Sequence[str]) -> list[str]:
    lines = [line for item in items for line in wrapped(item, "- ")]
    return [*prose(heading), *lines, ""] if lines else []


def _undecided(cells: Sequence[Tested]) -> str:
    """Where the means lie that show nothing, and how wide the intervals around them are."""
    allowed = -float(plan()["tests"]["not_worse"])
    above = sum(cell.comparison.mean > 0 for cell in cells)
    wide = sum(cell.comparison.half is not None and cell.comparison.half > allowed for cell in cells)
    return (
        f"no interval lies wholly below {_bounds(cells)}, the mean is above 0 in {above} of {len(cells)}, "
        f"and half an interval is wider than {percent(allowed)} points in {wide}"
    )


def _bounds(cells: Sequence[Tested]) -> str:
    bounds = sorted({cell.bound for cell in cells})
    told = " or ".join(signed(bound, 1) if bound else "0" for bound in bounds)
    return f"{told} points" if len(bounds) == 1 else f"its bound ({told} points)"


def _named(place: Place) -> str:
    settings = dict(place.settings)
    if "scenario" in settings:
        return f"{dataset_name(place.dataset)} {settings['scenario']}"
    kept = settings.get("retention")
    return dataset_name(place.dataset) + (f" at {percent(float(kept), 0)} %" if kept is not None else "")


def _of_the_fallback(evidence: Evidence) -> list[str]:
    """What can be said of the rule that is recommended because none passes."""
    fallback = plan()["rules"]["fallback"]
    judged = criteria(evidence, fallback)
    held = sum(one.outcome == "holds" for one in judged)
    found = against_random(evidence, fallback, iid_places()).values()
    if not found:
        return []
    verdicts = [one.verdict for one in found]
    fine = len(verdicts) - verdicts.count(NOT_SHOWN)
    mean = sum(one.comparison.mean for one in found) / len(found)
    text = (
        f"`{fallback}` itself passes {held} of {len(judged)}: head-only it is better than random in "
        f"{verdicts.count(BETTER)} of {len(verdicts)} cells and shown to be not worse in {fine}, "
        f"{signed(mean)} points in the mean."
    )
    comes = ["a rate that holds"] if holds_rate(evidence, fallback) else []
    foreign = junk_shares(evidence, fallback, "foreign")
    if foreign and max(foreign) <= plan()["streams"]["most_junk"]:
        comes.append("inputs of another kind that stay out")
    return prose(f"{text} It is there for what comes with the draw: {joined(comes)}." if comes else text)


def when(evidence: Evidence) -> list[str]:
    """What to use for what, as a table."""
    rows = [_unwatched(evidence), *_labelling(evidence), *_WHEN]
    return ["## When to use what", "", *markdown(["you have", "use", "because"], rows), ""]


def _unwatched(evidence: Evidence) -> tuple[str, str, str]:
    """The row that the registered comparison decides; while it does not, the rule that claims least."""
    chosen = recommended(evidence)
    rule = chosen or plan()["rules"]["fallback"]
    because = []
    if (off := rate_off(evidence, rule)) is not None:
        is_held = holds_rate(evidence, rule)
        because.append("the rate is held" if is_held else f"the rate is up to {percent(off)} points off")
    for name in plan()["streams"]["junk_in"]:
        shares = junk_shares(evidence, rule, name)
        if shares:
            words = "inputs of another kind" if name == "foreign" else "classes it does not know"
            spans = dict.fromkeys(percent(share, 0) for share in (min(shares), max(shares)))
            because.append(f"{words}, a fifth of the stream: {' to '.join(spans)} % of what is kept")
    if chosen is None:
        because.append("which of the adaptive rules is not decided yet")
    return (
        "a stream that nobody watches: it drifts, repeats itself, or brings inputs of another kind",
        f"`{rule}`",
        "; ".join(because),
    )


def _labelling(evidence: Evidence) -> list[tuple[str, str, str]]:
    """Where the candidate is worth its while although it is not recommended for everything."""
    candidate = plan()["rules"]["candidate"]
    if recommended(evidence) in (None, candidate):
        return []
    verdicts = [one.verdict for one in against_random(evidence, candidate, iid_places()).values()]
    if NOT_SHOWN in verdicts or BETTER not in verdicts:
        return []
    because = (
        f"better than random in {verdicts.count(BETTER)} of {len(verdicts)} cells below and not worse in the "
        "others; advice from these cells, not the registered recommendation, and what does not hold is above"
    )
    as_good = _as_good(evidence)
    return [
        (
            "labels that cost more than samples, and a stream of the model's own classes",
            f"`{candidate}`" + (", or `margin` where the rate need not be held" if as_good else ""),
            because + as_good,
        )
    ]


def _as_good(evidence: Evidence) -> str:
    """What the plain margin is to the candidate, where none of their differences is beyond chance."""
    candidate = plan()["rules"]["candidate"]
    found = [
        cell
        for place in iid_places()
        if (cell := evidence.difference(place, candidate, "margin")) is not None
    ]
    adjusted = holm([cell.p for cell in found])
    if not found or any(p is None or p < 1 - plan()["tests"]["level"] for p in adjusted):
        return ""
    mean = sum(cell.mean for cell in found) / len(found)
    return f"; `margin` differs from it by {signed(-mean)} points in the mean, in no cell beyond chance"


def enough(evidence: Evidence) -> list[str]:
    """Where all data gain little over random, so that no rule can."""
    material = plan()["tests"]["material"]
    gains = {place: _gain(evidence, place) for place in iid_places()}
    small = [
        f"{_named(place)} ({signed(gain.mean)})"
        for place, gain in gains.items()
        if gain is not None and gain.half is not None and gain.mean + gain.half < material
    ]
    text = (
        "Random is enough where even keeping everything gains little over it. Measure that first: train with "
        "all you have and with a random part of it."
    )
    if small:
        text += f" Here, with an interval that ends below half a point: {joined(small)}."
    full = [
        f"{signed(gain.mean)} ({dataset_name(place.dataset)})"
        for place in full_places()
        if (gain := _gain(evidence, place)) is not None and gain.half is not None
    ]
    if full:
        text += f" With full training, at the paper's share, all data gain {joined(full)}."
    return ["## When random is enough", "", *prose(text)]


def _gain(evidence: Evidence, place: Place) -> Comparison | None:
    return evidence.difference(place, plan()["rules"]["all"], plan()["rules"]["reference"])
