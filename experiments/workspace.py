"""What the cells of one unit share: split, deployed models, observations, and the last step of every arm."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from drip.types import IntArray, Observations
from experiments.arms import Arm, Decided, decide
from experiments.cells import Unit
from experiments.protocol import Selection, Split, at_count, evaluate, ranked
from experiments.regimes import Regime

BUDGETS = ("epochs", "steps")


@dataclass(frozen=True)
class Outcome:
    """What a cell gives its record.

    Attributes:
        metrics: Numbers by name; the README lists them.
        extra: What only one study has.
    """

    metrics: dict[str, float]
    extra: dict[str, Any]


class Workspace:
    """The i.i.d. protocol of section IV on one split; everything is computed when first asked for.

    Args:
        unit: Whose seed decides split, training order and draws.
        regime: How models are trained and score.
    """

    def __init__(self, unit: Unit, regime: Regime) -> None:
        self.unit, self.regime = unit, regime
        self.split = Split(regime.labels, unit.seed, regime.groups)
        self.deployed = cache(self._deployed)
        self.calibration = cache(self._calibration)
        self.stream = cache(self._stream)
        self.decided = cache(self._decided)

    def rng(self, purpose: str) -> np.random.Generator:
        """Draws of the run for one purpose, the same whatever else was drawn."""
        return np.random.default_rng([self.unit.seed, zlib.crc32(purpose.encode())])

    @cached_property
    def n_all(self) -> int:
        """Training rows when everything is kept."""
        return len(self.split.d1) + len(self.split.d3)

    def select(self, arm: Arm, retention: float, calibration: str, count: int) -> Selection:
        """What a rule keeps of the stream, brought to a count."""
        retain = self.decided(arm, retention, calibration).decisions.retain
        return at_count(retain, count, self.rng(f"{arm.name} {retention} {calibration}"))

    def select_ranked(self, arm: Arm, retention: float, calibration: str, count: int) -> Selection:
        """The rule's highest priorities of the whole stream: look-ahead."""
        decisions = self.decided(arm, retention, calibration).decisions
        kept = ranked(decisions.priority, count, self.rng(f"{arm.name} ranked"))
        return Selection(kept, int(decisions.retain.sum()))

    def native_count(self, arm: Arm, retention: float, calibration: str) -> int:
        """How many the rule itself keeps."""
        return int(self.decided(arm, retention, calibration).decisions.retain.sum())

    def finish(
        self,
        stream_rows: IntArray | None,
        stream_labels: IntArray | None = None,
        budget: str = "epochs",
    ) -> dict[str, float]:
        """Train from the initial weights on data set 1 and the given rows (A8), and score on data set 2."""
        rows, labels = self.split.d1, self.regime.labels[self.split.d1]
        if stream_rows is not None:
            given = self.regime.labels[stream_rows] if stream_labels is None else stream_labels
            rows, labels = np.concatenate([rows, stream_rows]), np.concatenate([labels, given])
        start = time.perf_counter()
        model = self.regime.fit(
            rows, labels, seed=self.unit.seed, full_rows=self.n_all if budget == "steps" else None
        )
        seconds = time.perf_counter() - start
        with self.split.scoring():
            test = self.split.d2
            metrics = evaluate(
                self.regime.logits(model, test), self.regime.labels[test], self.regime.n_classes
            )
        return {
            **metrics,
            "n_train": len(rows),
            "fit_s": round(seconds, 3),
            "steps": self.regime.steps(model),
        }

    def kept_metrics(self, selection: Selection, calibration: str) -> dict[str, float]:
        """Counts, bytes and the part of the deployed model's errors that a selection of data set 3 keeps."""
        rows, stream = self.split.d3, self.stream(calibration)
        sizes = self.regime.sizes[rows]
        wrong = stream.classes != self.regime.labels[rows]
        return {
            "n_stream": len(rows),
            "n_kept": len(selection.kept),
            "native_kept": selection.native,
            "retention": len(selection.kept) / len(rows),
            "native_retention": selection.native / len(rows),
            "bytes_stream": int(sizes.sum()),
            "bytes_kept": int(sizes[selection.kept].sum()),
            "errors_kept": float(wrong[selection.kept].sum() / max(1, wrong.sum())),
        }

    def _deployed(self, calibration: str) -> Any:
        """The model on the device: trained on data set 1, without D1c where that calibrates."""
        rows = self.split.d1_fit if calibration == "d1c" else self.split.d1
        return self.regime.fit(rows, self.regime.labels[rows], seed=self.unit.seed)

    def _calibration(self, source: str) -> Observations:
        rows = {"d1c": self.split.d1c, "d1": self.split.d1}.get(source)
        if rows is None:
            rows = self.split.d2_for_calibration
        return self.regime.observe(self._model(source), rows)

    def _stream(self, calibration: str) -> Observations:
        return self.regime.observe(self._model(calibration), self.split.d3)

    def _model(self, calibration: str) -> Any:
        return self.deployed("d1c" if calibration == "d1c" else "d1")

    def _decided(self, arm: Arm, retention: float, calibration: str) -> Decided:
        rule = arm.build(retention, self.unit.seed)
        rule.calibrate(self.calibration(calibration))
        return decide(rule, self.stream(calibration))
