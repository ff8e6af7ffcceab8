"""Records with known effects: every study, a few runs, no training."""

import numpy as np

from experiments.cells import Unit
from experiments.ledger import Ledger, Record

RULES = ("drip", "drip.normalised", "margin", "random", "entropy")
PAPER = ("paper.raw.window", "paper.raw.peak", "paper.normalised.window", "paper.normalised.peak")
EFFECT = {"baseline": -0.05, "all": 0.02, "margin": 0.01, "drip": 0.0, "random": 0.0}
DPW = {"mnist": 0.39, "cifar10": 0.23, "tomato": 0.35, "speech_commands": 0.29}
HISTOGRAM = {
    "class": 3,
    "counts": [1, 4, 9, 20, 34, 40, 30, 12, 5, 2],
    "edges": [round(0.1 * edge, 1) for edge in range(11)],
    "lower": 0.42,
    "upper": 0.61,
}


def record(unit, arm, accuracy, extra=None, config=None, more=None, **settings):
    metrics = {
        "accuracy": float(accuracy),
        "macro_f1": float(accuracy) - 0.01,
        "worst_class_accuracy": float(accuracy) - 0.2,
        "ece": 0.05,
        "n_train": 4000,
        "n_test": 1000,
        "steps": 100,
        "fit_s": 0.1,
    }
    if arm not in ("baseline", "all"):
        metrics |= {
            "n_stream": 2000,
            "n_kept": 1000,
            "retention": 0.5,
            "native_retention": 0.71,
            "bytes_stream": 20_000,
            "bytes_kept": 9_000,
            "decide_peak_bytes": 4_200,
            "errors_kept": 0.6,
            "decide_us": 3.2,
        }
    cell = unit.cell(arm, **settings)
    return Record(
        cell, config or {"recipe": "test"}, metrics | (more or {}), extra or {}, "abc1234", {"drip": "1"}
    )


class Maker:
    """Accuracies: a level of the run, the arm's effect, and a little noise of its own."""

    def __init__(self, folder, seeds=6, effects=None, spread=0.001):
        self.ledger, self.seeds, self.spread = Ledger(folder), seeds, spread
        self.effects = EFFECT | (effects or {})
        self.rng = np.random.default_rng(0)

    def add(self, study, regime, dataset, arms, *, shift=None, extra=None, more=None, seeds=None, **settings):
        for seed in range(self.seeds) if seeds is None else seeds:
            unit = Unit(study, regime, dataset, seed)
            for arm in arms:
                accuracy = 0.8 + 0.005 * seed + self.effects.get(arm, 0.0) + (shift or {}).get(arm, 0.0)
                accuracy += self.spread * self.rng.standard_normal()
                self.ledger.append(record(unit, arm, accuracy, extra, None, more, **settings))
        return self

    def table1(self, regime, dataset, rules=RULES):
        self.add("table1", regime, dataset, ("baseline", "all"), budget="epochs")
        self.add(
            "table1",
            regime,
            dataset,
            (*PAPER, "random", "margin"),
            extra={"histogram": HISTOGRAM},
            budget="epochs",
            dpw=DPW[dataset],
        )
        if regime == "full":
            return self
        usual = {"budget": "epochs", "mode": "online", "labels": "true", "calibration": "d1c"}
        for retention in (0.3, 0.1):
            changes = [{}, {"mode": "ranked"}, {"budget": "steps"}, {"labels": "predicted"}]
            for changed in changes:
                self.add("table1", regime, dataset, rules, retention=retention, **{**usual, **changed})
            for source in ("d1", "d2"):
                settings = {**usual, "calibration": source}
                self.add(
                    "table1", regime, dataset, ("drip", "drip.normalised"), retention=retention, **settings
                )
        return self.add("table1", regime, dataset, ("baseline", "all"), budget="steps")

    def dpw(self, dataset):
        self.add("dpw", "head", dataset, ("baseline", "all"))
        for discard in (0.1, 0.5, 0.9):
            shift = dict.fromkeys(("drip", "drip.normalised", "random"), -0.04 * discard)
            self.add(
                "dpw", "head", dataset, ("drip", "drip.normalised", "random"), shift=shift, discard=discard
            )
        return self

    def noise(self, dataset):
        for kind in ("label", "input"):
            for fraction in (0.0, 0.4, 0.8):
                shift = {"all": -0.2 * fraction, "drip": -0.1 * fraction, "random": -0.1 * fraction}
                arms = ("all", "drip", "drip.normalised", "random", "margin")
                more = {"spoilt_kept": fraction}
                self.add("noise", "head", dataset, arms, shift=shift, more=more, kind=kind, fraction=fraction)
        return self

    def everything(self):
        for dataset in DPW:
            self.table1("full", dataset).table1("head", dataset).dpw(dataset)
        for dataset in ("cifar10", "tomato"):
            self.noise(dataset)
        return self
