"""What docs/choosing-a-rule.md advises: the short answer, what to use when, and when random is enough."""

from __future__ import annotations

from experiments.limits_report import TITLE, limits_section
from experiments.reading import Evidence, Place
from experiments.registered import plan
from experiments.registered_verdicts import (
    BETTER,
    MISSING,
    NOT_SHOWN,
    against_random,
    criteria,
    full_place,
    iid_place,
    recommended,
    stream_place,
    values_of,
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
        return [*lines, *prose(f"Use `{chosen}`: everything that was registered holds.")]
    lines += prose(
        f"`{rules['candidate']}` does not pass everything that was registered, so the recommended default is "
        f"`{chosen}`: a random draw behind the same gates. What does not hold:"
    )
    for outcome, heading in (("does not hold", ""), ("holds", f"What holds of `{rules['candidate']}`:")):
        named = [one for one in found if one.outcome == outcome]
        lines += prose(heading) if heading and named else []
        for one in named:
            lines += wrapped(f"{one.says} ({one.why})", "- ")
        lines.append("")
    lines += _of_the_fallback(evidence)
    if limits_section(evidence):
        lines += prose(
            f"What a rule that reads the labels reaches: [{TITLE}](#{TITLE.lower().replace(' ', '-')})."
        )
    return lines


def _of_the_fallback(evidence: Evidence) -> list[str]:
    """What can be said of the rule that is recommended because none passes."""
    fallback = plan()["rules"]["fallback"]
    judged = criteria(evidence, fallback)
    held = sum(one.outcome == "holds" for one in judged)
    found = against_random(evidence, fallback, iid_places()).values()
    if not found:
        return []
    fine = sum(one.verdict != NOT_SHOWN for one in found)
    mean = sum(one.comparison.mean for one in found) / len(found)
    return prose(
        f"`{fallback}` itself passes {held} of {len(judged)}: it is not worse than random in {fine} of "
        f"{len(found)} cells, {signed(mean)} points in the mean. It is there for what comes with the draw, a "
        "rate that holds and foreign inputs that stay out, and claims no gain in accuracy."
    )


def when(evidence: Evidence) -> list[str]:
    """What to use for what, as a table."""
    rows = [_unwatched(evidence), *_labelling(evidence), *_WHEN]
    return ["## When to use what", "", *markdown(["you have", "use", "because"], rows), ""]


def _unwatched(evidence: Evidence) -> tuple[str, str, str]:
    """The row that the registered comparison decides; while it does not, the rule that claims least."""
    chosen = recommended(evidence)
    rule = chosen or plan()["rules"]["fallback"]
    because = "the rate is held"
    for name in plan()["streams"]["junk_in"]:
        places = [stream_place(dataset, name) for dataset in plan()["streams"]["datasets"]]
        held = [values_of(evidence, rule, place, "junk_kept") for place in places]
        shares = [float(values.mean()) for values in held if len(values)]
        if shares:
            words = "inputs of another kind" if name == "foreign" else "classes it does not know"
            spans = dict.fromkeys(percent(share, 0) for share in (min(shares), max(shares)))
            because += f"; {words}, a fifth of the stream: {' to '.join(spans)} % of what is kept"
    return (
        "a stream that nobody watches: it drifts, repeats itself, or brings inputs of another kind",
        f"`{rule}`",
        because if chosen else f"{because}; which of the adaptive rules is not decided yet",
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
    return [
        (
            "labels that cost more than samples, and a stream of the model's own classes",
            f"`{candidate}`"
            + (", or `margin` where the rate need not be held" if _as_good(evidence) else ""),
            because + _as_good(evidence),
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
    if not found or any(
        p is not None and p < 1 - plan()["tests"]["level"] for p in holm([cell.p for cell in found])
    ):
        return ""
    mean = sum(cell.mean for cell in found) / len(found)
    return f"; `margin` differs from it by {signed(-mean)} points in the mean, in no cell beyond chance"


def enough(evidence: Evidence) -> list[str]:
    """Where all data gain little over random, so that no rule can."""
    material = plan()["tests"]["material"]
    gains = {place: _gain(evidence, place) for place in iid_places()}
    small = [
        f"{dataset_name(place.dataset)} at {percent(float(dict(place.settings)['retention']), 0)} % "
        f"({signed(gain.mean)})"
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
        f"{signed(gain.mean)} ({dataset_name(dataset)})"
        for dataset in plan()["full"]["datasets"]
        if (gain := _gain(evidence, full_place(dataset))) is not None and gain.half is not None
    ]
    if full:
        text += f" With full training, at the paper's share, all data gain {joined(full)}."
    return ["## When random is enough", "", *prose(text)]


def _gain(evidence: Evidence, place: Place) -> Comparison | None:
    return evidence.difference(place, plan()["rules"]["all"], plan()["rules"]["reference"])


def iid_places() -> list[Place]:
    """The head-only cells that were registered."""
    iid = plan()["iid"]
    return [iid_place(dataset, kept) for kept in iid["retentions"] for dataset in iid["datasets"]]


def stream_places() -> list[Place]:
    """The streams that were registered."""
    streams = plan()["streams"]
    return [stream_place(dataset, name) for dataset in streams["datasets"] for name in streams["scenarios"]]
