"""Records of the study of situations that are made up: one rule with a known gain over random."""

import numpy as np

from experiments.cells import Unit
from experiments.ledger import Record
from experiments.situation_reading import Study, runs_of
from experiments.situation_study import CURVE, KEEP, LABELLED, LABELLED_OF, ORDERS, PLACES

CHALLENGER = "spread-store"


def record(dataset, seed, arm, value, situation, backbone, **settings):
    cell = Unit("situations", "head", dataset, seed).cell(
        arm, situation=situation, backbone=backbone, **settings
    )
    kept = 0.01 if arm.endswith("ignoring") else 0.4
    return Record(cell, {}, {"accuracy": value, "fit_s": 0.1, "marked": 0.2, "marked_kept": kept})


def made_up(gain, by_situation=None, n=5):
    for dataset, places in PLACES.items():
        for situation, backbone in places:
            mine = (by_situation or {}).get(situation, gain)
            for seed in range(n):
                level = np.random.default_rng(seed).normal(0, 0.01)

                def line(
                    arm, value, where=(dataset, seed), at=(situation, backbone), level=level, **settings
                ):
                    return record(*where, arm, value + level, *at, **settings)

                yield line("baseline", 0.5)
                yield line("all", 0.9)
                for keep in CURVE:
                    yield line("random", 0.5 + 0.4 * keep**0.5, retention=keep)
                for keep in KEEP:
                    value = 0.5 + 0.4 * keep**0.5
                    wobble = 0.001 * (seed - 2)
                    yield line("adaptive-margin", value + mine + wobble, retention=keep)
                    yield line(CHALLENGER, value + mine + 0.004 - wobble, retention=keep)
                    if situation in ("new-camera", "junk"):
                        yield line("adaptive-margin.accepting", value + 2 * mine, retention=keep)
                        yield line("adaptive-margin.ignoring", value + mine / 2, retention=keep)
                for labelled in LABELLED:
                    for order, more in zip(ORDERS, (0.0, mine), strict=True):
                        yield line(order, 0.6 + more, retention=LABELLED_OF, labelled=labelled)


def study_of(*arguments, **options):
    return Study(runs_of(made_up(*arguments, **options)))
