"""Differences to random and "random needs" of the study of situations, from records that are made up."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from scipy.optimize import minimize

from experiments.cells import Unit
from experiments.ledger import Record
from experiments.situation_reading import (
    Place,
    _monotone,
    random_needs,
    ratio,
    results,
    runs_of,
    whole_network,
)
from experiments.situation_study import CURVE, KEEP

STEPS = np.array([0.0, *CURVE, 1.0])


def record(seed, arm, value, **settings):
    cell = Unit("situations", "head", "tomato", seed).cell(
        arm, situation="junk", backbone="mobilenet", **settings
    )
    return Record(cell, {}, {"accuracy": value, "fit_s": 0.1, "marked": 0.3, "marked_kept": 0.25})


def made_up(gain, n=8):
    draw = np.random.default_rng(0)
    for seed in range(n):
        level = draw.normal(0, 0.01)
        yield record(seed, "baseline", 0.5 + level)
        yield record(seed, "all", 0.9 + level)
        for keep in CURVE:
            yield record(seed, "random", 0.5 + 0.4 * keep + level, retention=keep)
        for keep in KEEP:
            yield record(seed, "margin", 0.5 + 0.4 * keep + gain + level, retention=keep)


def test_differences_are_paired_by_run():
    found = results(runs_of(made_up(0.02)))
    assert {one.keep for one in found} == set(KEEP)
    for one in found:
        assert one.place == Place("tomato", "junk", "mobilenet")
        assert one.difference.mean == pytest.approx(0.02)
        assert one.difference.half == pytest.approx(0.0, abs=1e-9)  # the level of a run is the same for both
        assert one.all_minus_random.mean == pytest.approx(0.4 * (1 - one.keep))
        assert one.marked == pytest.approx(0.25)


def test_random_needs_as_many_more_as_its_curve_says():
    by_keep = {one.keep: one.needs() for one in results(runs_of(made_up(0.04)))}
    assert by_keep[0.1].ratio == pytest.approx(2.0, rel=0.02)  # 0.04 more is reached with 0.2 of the stream
    assert by_keep[0.1].low <= by_keep[0.1].ratio <= by_keep[0.1].high
    assert {one.ratio for one in results(runs_of(made_up(0.5)))} == {inf}
    assert all(one.ratio < 1 for one in results(runs_of(made_up(-0.001))))


def test_a_run_without_its_random_choices_is_left_out():
    records = [one for one in made_up(0.02) if one.cell.unit.seed != 3 or one.cell.arm != "random"]
    assert {one.difference.n for one in results(runs_of(records))} == {7}


def test_the_monotone_curve_is_the_nearest_one():
    draw = np.random.default_rng(1)
    for _ in range(5):
        curve = np.sort(draw.normal(size=7)) + 0.5 * draw.normal(size=7)
        found = _monotone(curve)
        assert (np.diff(found) >= 0).all()
        # Any other non-decreasing curve is a start and steps of at least 0.
        best = minimize(
            lambda steps, curve=curve: ((np.cumsum(steps) - curve) ** 2).sum(),
            np.ones(7),
            bounds=[(None, None)] + [(0, None)] * 6,
        )
        assert ((found - curve) ** 2).sum() == pytest.approx(best.fun, abs=1e-5)


def test_a_ratio_between_steps_follows_the_logarithm_of_the_keep_rate():
    curve = np.log(np.maximum(STEPS, 1e-3))
    for keep, factor in ((0.02, 3.0), (0.1, 1.7), (0.3, 2.5)):
        assert ratio(float(np.log(keep * factor)), curve, keep) == pytest.approx(factor)


def test_the_interval_widens_with_the_noise_of_runs():
    draw = np.random.default_rng(2)
    curve = np.tile(STEPS, (10, 1))
    widths = []
    for noise in (0.001, 0.02):
        needs = random_needs(0.2 + noise * draw.normal(size=10), curve, 0.1)
        widths.append(needs.high - needs.low)
    assert widths[0] < widths[1]


def test_the_whole_network_is_compared_apart_from_the_head():
    head = list(made_up(0.02))
    full = [
        replace(one, cell=replace(one.cell, unit=replace(one.cell.unit, regime="full")))
        for one in made_up(0.05)
    ]
    assert runs_of([*head, *full]) == runs_of(head)
    found = whole_network([*head, *full], "margin")
    assert {keep for _, keep in found} == set(KEEP)
    assert all(one.mean == pytest.approx(0.05) and one.n == 8 for one in found.values())
