"""Which method to use when, in sentences that the records decide."""

from __future__ import annotations

from math import isfinite

from experiments.sections import prose, wrapped
from experiments.statistics import MIN_INTERVAL, Comparison
from experiments.tables import Grid, interval, joined, percent, signed
from experiments.tabular import LEAST
from experiments.tabular_reading import (
    ALL,
    FEWER_STEPS,
    METRIC,
    PROTOCOL,
    RANDOM,
    TO_THE_END,
    Runs,
    Training,
    abbreviation,
    label,
    share,
)

MARGIN = 0.01
"""Macro F1 that may be lost where a part of the rows is to be as good as all."""

_RULES = """
Decided by the records: "above" and "below" mean beyond chance by the corrected interval, after Holm's
correction over the table "Minus random, trained to the end". Fewer rows are as good as all where that
interval of the loss lies within {margin} point of F1.
"""


def advice(runs: Runs) -> list[str]:
    """The section of the page, without its heading."""
    if runs.n_runs < MIN_INTERVAL:
        return [
            f"Nothing can be said yet: {runs.n_runs} of the {MIN_INTERVAL} runs that an interval needs.",
            "",
        ]
    lines = prose(_RULES.format(margin=f"{100 * MARGIN:g}"))
    for sentence in (
        _to_train(runs),
        _to_avoid(runs),
        _how_few(runs),
        _to_cover(runs),
        _to_judge(runs),
        _steps(runs),
        _to_save(runs),
        _classes(runs),
    ):
        lines += wrapped(sentence, "- ") if sentence else []
    return [*lines, ""]


def ends(runs: Runs) -> Grid:
    """Every method minus random, for every model that is trained to the end and every fraction of it."""
    columns = {
        f"{training.title}, {share(p)}": (training, p) for training in TO_THE_END for p in runs.controlled
    }
    return runs.against(RANDOM, columns)


def _counts(grid: Grid, arms: list[str], sign: int) -> list[tuple[str, int, int]]:
    """Arms marked on that side: name, how often, of how many."""
    marked = [row for row, _ in grid.significant(sign)]
    panels = {row: sum(key[0] == row for key in grid.cells) for row in grid.rows}
    found = [(arm, marked.count(label(arm)), panels.get(label(arm), 0)) for arm in arms]
    return sorted((each for each in found if each[1]), key=lambda each: (-each[1], each[0]))


def _to_train(runs: Runs) -> str:
    grid = ends(runs)
    above = _counts(grid, runs.arms, 1)
    below = {arm for arm, _, _ in _counts(grid, runs.arms, -1)}
    good = [f"`{arm}` in {count} of {panels}" for arm, count, panels in above if arm not in below]
    text = (
        "**To train a model to the end on fewer rows** (converged network, logistic regression, gradient "
        f"boosting; {joined([share(p) for p in runs.controlled])} kept): "
    )
    if good:
        return text + f"above random, and never below, {joined(good)}. Else take rows at random, by class."
    return text + f"`{RANDOM}`. No method is above it anywhere without being below it elsewhere."


def _to_avoid(runs: Runs) -> str:
    below = _counts(ends(runs), runs.arms, -1)
    bad = [f"`{arm}` in {count} of {panels}" for arm, count, panels in below]
    return f"**Not for that**: below random are {joined(bad)}." if bad else ""


def _how_few(runs: Runs) -> str:
    parts = []
    for training in (PROTOCOL, *TO_THE_END):
        fractions = runs.fractions if training is PROTOCOL else runs.controlled
        losses = {p: runs.difference((RANDOM, training), (ALL, training), p) for p in fractions}
        least = losses.get(LEAST)
        if least is None:
            continue
        short = [p for p, loss in losses.items() if loss is None or not _within(loss)]
        enough = [p for p in losses if p > max(short, default=0.0)]
        told = f"{interval(least)} at {share(LEAST)}"
        if enough:
            told += f", as good from {share(enough[0])} on"
        else:
            told += f", not shown to be as good even at {share(max(losses))}"
        parts.append(f"{training.title} {told}")
    return f"**How few rows are enough**: random rows minus all rows: {'; '.join(parts)}." if parts else ""


def _within(loss: Comparison) -> bool:
    return loss.widest is not None and loss.mean - loss.widest > -MARGIN


def _to_cover(runs: Runs) -> str:
    methods = [arm for arm in runs.arms if abbreviation(arm)]
    found = {arm: runs.summary(arm, PROTOCOL, LEAST, "epsilon")[0] for arm in methods}
    held = {arm: value for arm, value in found.items() if isfinite(value)}
    if RANDOM not in held or len(held) < 2:
        return ""
    ranked = sorted(held, key=held.__getitem__)
    best = ranked[0]
    grid = ends(runs)
    costs = sorted(cell.mean for (row, _), cell in grid.cells.items() if row == label(best))
    text = (
        f"**To leave no row without a near one**: `{best}`, with ε {held[best]:.3f} at {share(LEAST)} where "
        f"random has {held[RANDOM]:.3f}; next is `{ranked[1]}` with {held[ranked[1]]:.3f}. A small ε is no "
        "good training set in itself: "
    )
    if not costs:
        return text + "nothing was trained to the end on it."
    return (
        text
        + f"models trained to the end on `{best}` are {signed(costs[0])} to {signed(costs[-1])} points from "
        "those on random rows."
    )


def _to_judge(runs: Runs) -> str:
    """Which distance F1 follows: that whose correlation is below zero beyond chance in more places."""
    told: dict[str, tuple[int, str]] = {}
    names = {"mean_distance": "the mean distance to the nearest kept row", "epsilon": "ε"}
    for name in names:
        places = [(training, p) for training in TO_THE_END for p in runs.controlled]
        found = [each for place in places if (each := runs.follows_epsilon(*place, name)) is not None]
        if not found:
            return ""
        below = sum(each.half is not None and each.mean + each.half < 0 for each in found)
        means = sorted(each.mean for each in found)
        told[name] = (
            below,
            f"{_plain(means[0])} to {_plain(means[-1])}, below zero in {below} of {len(found)}",
        )
    (first, second) = sorted(names, key=lambda name: -told[name][0])
    text = "**To judge a reduced set before training**: "
    if told[first][0] == told[second][0]:
        text += f"{names[first]} and {names[second]} say as much as each other"
    else:
        text += f"look at {names[first]} rather than at {names[second]}"
    return (
        f"{text}. Rank correlation with the F1 of models trained to the end: {told[first][1]} for "
        f"{names[first]}; {told[second][1]} for {names[second]}."
    )


def _plain(correlation: float) -> str:
    """A correlation with its sign.

    >>> _plain(0.5)
    '+0.50'
    """
    return signed(correlation / 100)


def _steps(runs: Runs) -> str:
    found = runs.difference((ALL, FEWER_STEPS), (RANDOM, PROTOCOL), LEAST)
    loss = runs.difference((RANDOM, PROTOCOL), (ALL, PROTOCOL), LEAST)
    if found is None or loss is None or found.widest is None:
        return ""
    if abs(found.mean) > found.widest:
        reason = "the rows themselves matter too"
    elif found.mean + found.widest < abs(loss.mean) / 2:
        reason = "most of the change comes from the steps, not from the rows"
    else:
        reason = "how much of the change comes from the steps cannot be told from these runs"
    return (
        f"**Where the number of epochs is fixed**, as in the study, {share(LEAST)} of the rows are also "
        f"{share(LEAST)} of the steps, and F1 changes by {interval(loss)} points. All rows, given as few "
        f"steps, minus random rows: {interval(found)} points; {reason}."
    )


def _to_save(runs: Runs) -> str:
    parts = []
    for training in (PROTOCOL, *TO_THE_END):
        whole, part = (_work(runs, arm, training) for arm in (ALL, RANDOM))
        if whole > 0 and isfinite(part):
            f1 = [runs.summary(arm, training, LEAST, METRIC)[0] for arm in (ALL, RANDOM)]
            parts.append(
                f"{training.title}: {round(100 * (1 - part / whole))} % of the time, "
                f"F1 {percent(f1[0])} to {percent(f1[1])} %"
            )
    if not parts:
        return ""
    return (
        f"**What {share(LEAST)} at random saves**, reduction included: {'; '.join(parts)}. Where the "
        "number of steps is fixed, fewer rows save none."
    )


def _work(runs: Runs, arm: str, training: Training) -> float:
    """Seconds of reduction and training."""
    names = ("reduce_s", "fit_s")
    return sum(runs.summary(arm, training, LEAST, name)[0] for name in names)


def _classes(runs: Runs) -> str:
    lost = {arm: runs.summary(arm, PROTOCOL, LEAST, "n_lost")[0] for arm in runs.arms}
    losing = [f"`{arm}` loses {count:.1f}" for arm, count in lost.items() if count > 0]
    if not losing:
        return ""
    return (
        f"**To keep every class**: any method as it is by default. In the mean, at {share(LEAST)}, "
        f"{joined(losing)} of the classes."
    )
