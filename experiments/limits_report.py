"""The section of docs/choosing-a-rule.md on what labels would give, from the records of `limits`."""

from __future__ import annotations

from experiments import limits
from experiments.reading import Evidence, Place, paired
from experiments.registered import plan
from experiments.registered_verdicts import iid_place
from experiments.sections import prose
from experiments.streams import RETENTION
from experiments.tables import BLANK, dataset_name, interval, markdown, percent

TITLE = "What knowing the labels would give"

_YARDSTICK = f"""
Run after the registered comparison, to see how far what failed lies from what selection can do at all.

`{limits.YARDSTICK}` reads the labels of the stream, which no device has: it keeps first what the deployed
model gets wrong, and then the smallest margins. It is a yardstick, not a bound: another rule may be above it.
Where it stays below all data, guessing the model's errors better would not win that back.
"""
_HELDOUT = f"""
Classes that the model has never seen: the stream `{limits.SCENARIO}`, a fifth of which they are. Of a
random half of its different items the {percent(RETENTION, 0)} % that look *most* like the known classes are
kept, by several measures. The junk that is still among them says how well the measure tells the two apart,
and the accuracy what avoiding junk costs. The last measure was trained on the labels of the other half, which
no device has. An AUROC of 50 % is chance.
"""
_MEANINGS = {
    "margin": "the largest margin between the first two classes",
    "max-logit": "the largest logit",
    "energy": "the lowest free energy",
    "mahalanobis": "the smallest distance to a class in all features",
    "neighbours": "the nearest training samples",
    "labels": "a linear measure that was trained with labels",
}


def limits_section(evidence: Evidence) -> list[str]:
    """Both tables, or nothing where nothing was run."""
    lines = [*_yardstick(evidence), *_known(evidence)]
    return [f"## {TITLE}", "", *lines] if lines else []


def _yardstick(evidence: Evidence) -> list[str]:
    iid, rules = plan()["iid"], plan()["rules"]
    rows = []
    for retention in iid["retentions"]:
        for dataset in iid["datasets"]:
            place = iid_place(dataset, retention)
            yardstick = evidence.get(
                Place(limits.NAME, "head", dataset).at(retention=retention), limits.YARDSTICK
            )
            others = [
                evidence.get(place, arm) for arm in (rules["reference"], rules["all"], rules["candidate"])
            ]
            if yardstick is not None:
                cells = [BLANK if other is None else interval(paired(yardstick, other)) for other in others]
                rows.append([dataset_name(dataset), f"{percent(retention, 0)} %", *cells])
    if not rows:
        return []
    headers = ["data set", "kept", "minus random", "minus all data", f"minus `{rules['candidate']}`"]
    return [*prose(_YARDSTICK), *markdown(headers, rows), ""]


def _known(evidence: Evidence) -> list[str]:
    rows = []
    for dataset in plan()["streams"]["datasets"]:
        place = Place(limits.NAME, "head", dataset).at(scenario=limits.SCENARIO, retention=RETENTION)
        for measure in limits.MEASURES:
            series = evidence.get(place, f"known-by-{measure}")
            if series is not None:
                rows.append(
                    [
                        dataset_name(dataset),
                        _MEANINGS[measure],
                        percent(series.summary("auroc")[0]),
                        percent(series.summary("junk_kept")[0]),
                        interval(evidence.difference(place, series.arm, limits.REFERENCE)),
                        str(len(series.runs)),
                    ]
                )
    if not rows:
        return []
    headers = ["data set", "most known by", "AUROC, %", "junk kept, %", "minus random", "runs"]
    return [*prose(_HELDOUT), *markdown(headers, rows), ""]
