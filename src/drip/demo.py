"""The demonstration: the whole method on real handwritten digits, one sample at a time, with a report.

It runs the public functions that the commands run, and nothing else. It is small enough for a laptop, so its
accuracies differ between machines by a few tenths of a point; the report says which conclusions this allows.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from drip.datasets import ImageDataset, load_mnist, split_rows
from drip.errors import InputError, missing_extra

try:
    import torch
except ImportError as error:
    raise missing_extra("drip.demo", "torch", "torch") from error

from torch import nn

from drip.files import write_atomically
from drip.models import SmallCNN
from drip.pipeline import observe, run
from drip.policy import Policy
from drip.report import Arm, GalleryItem, RunReport
from drip.rules import RECOMMENDED, create
from drip.rules.chance import match_count
from drip.scoring import TorchScorer
from drip.sources import DatasetSource
from drip.store import RetentionStore
from drip.training import Examples, TrainConfig, predict, retrain, train
from drip.types import BoolArray, FloatArray, IntArray, Observations
from drip.windows import check_fraction
from drip.workflow import calibrated

SPLIT = (0.4, 0.2, 0.4)
"""Training, test and production, the paper's split (section IV-A.1)."""

CALIBRATION = 0.2
"""Part of the training set that is held out to find the windows (docs/explanation/decisions.md, A7)."""

STORE_BUDGET_BYTES = 256_000_000
"""Enough for all 70,000 digits: the demonstration compares rules, so eviction must not interfere."""

GALLERY_CHOICE = (
    "Up to a third of the kept digits are random ones that the model got wrong, a third those farthest from "
    "their window, the rest random correct ones. Up to a third of the discarded ones are wrong."
)
_N_TIMED = 300
_MARKER = ".drip-demo"
"""Marks a folder as a demonstration's: a user's own files may have the same names and must not be deleted."""
_FILES = ("model.pt", "policy.json", "report.html", "kept.db", "kept.db-wal", "kept.db-shm", "kept.db-lock")
_MODEL = "drip.models:SmallCNN"

OnStage = Callable[[str, int, int | None, str], None]


@dataclass(frozen=True)
class DemoConfig:
    """Options of the demonstration.

    Attributes:
        out: Folder for the model, the policy, the store and the report. Files of an earlier
            demonstration in it are replaced.
        seed: Seed of the split, of every training and of the random arm.
        retention: Keep rate of the production stream, in (0, 1).
        epochs: Passes over the data per training; None means 10, or 4 for more than 10,000 digits.
    """

    out: Path
    seed: int = 0
    retention: float = 0.6
    epochs: int | None = None


def run_demo(config: DemoConfig, on_stage: OnStage = lambda *_: None) -> RunReport:
    """Train, calibrate, stream, keep, retrain and compare, on MNIST.

    Args:
        config: What to run.
        on_stage: Called with the stage, the finished part of it, the total or None, and a note.

    Returns:
        All numbers and pictures of the report. ``model.pt``, ``policy.json`` and ``kept.db`` are in the
        folder.

    Raises:
        InputError: An option is out of range, the folder contains files that are not from an earlier
            demonstration, or it cannot be written.
    """
    # One thread, so results do not depend on the number of cores. On a busy machine, several torch
    # threads are also far slower than one, because all wait for the slowest at every layer.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        demo = _Demo(config, load_mnist(), on_stage)
        demo.prepare_folder()
        demo.stream()
        return demo.report()
    finally:
        torch.set_num_threads(threads)


class _Demo:
    """One run; each property is computed once, when it is first read."""

    def __init__(self, config: DemoConfig, dataset: ImageDataset, on_stage: OnStage) -> None:
        check_fraction("retention", config.retention)
        self._config = config
        self._dataset = dataset
        self._on_stage = on_stage
        first, self._test, self._production = split_rows(len(dataset), SPLIT, config.seed)
        self._train, self._calibration = split_rows(len(first), (1 - CALIBRATION, CALIBRATION), config.seed)
        self._train, self._calibration = first[self._train], first[self._calibration]
        default = 10 if len(dataset) <= 10_000 else 4
        self._training = TrainConfig(
            epochs=default if config.epochs is None else config.epochs, seed=config.seed
        )

    def prepare_folder(self) -> None:
        """Create the folder; delete only files of an earlier demonstration in it."""
        out = self._config.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            known = {_MARKER, *_FILES} if (out / _MARKER).exists() else set()
            others = sorted(path.name for path in out.iterdir() if path.name not in known)
            if others:
                raise InputError(
                    f"{out}: contains {others[0]!r}, which no demonstration wrote; choose a new folder",
                    code="path-exists",
                )
            for name in _FILES:
                (out / name).unlink(missing_ok=True)
            (out / _MARKER).touch()
        except OSError as error:
            raise InputError(
                f"{out}: cannot be created or written ({error}); choose another folder",
                code="path-not-writable",
            ) from error

    @cached_property
    def model(self) -> nn.Module:
        """The deployed model, trained on the training part."""
        model = self._fit("training the model to deploy", np.zeros(0, np.int64))
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        write_atomically(self._config.out / "model.pt", buffer.getvalue())
        return model

    @cached_property
    def scorer(self) -> _Recorder:
        """The scorer; it records its observations."""
        return _Recorder(TorchScorer(self.model, example=self._dataset.inputs(self._train[:2])))

    @cached_property
    def calibration(self) -> Observations:
        """Observations of the calibration part."""
        self._on_stage("calibrating", 0, None, "")
        return observe(
            self._dataset.samples(self._calibration.tolist()),
            self.scorer.inner,
            prepare=self._dataset.spec.prepare,
        )

    @cached_property
    def policy(self) -> Policy:
        """The DRIP policy, written to ``policy.json``."""
        policy = calibrated(
            create("drip", retention=self._config.retention),
            self.scorer.inner,
            self.model,
            self.calibration,
            spec=self._dataset.spec,
            data=f"{self._dataset.name}, held out from training",
            class_names=self._dataset.class_names,
        )
        policy.save(self._config.out / "policy.json")
        return policy

    def stream(self) -> None:
        """The production phase: every production digit goes through the policy into the store."""
        source = DatasetSource(self._dataset, self._production)
        rule = self.policy.to_rule()
        with self._store() as store:
            run(
                source,
                self.scorer,
                rule,
                store,
                prepare=self._dataset.spec.prepare,
                policy_digest=self.policy.digest,
                on_progress=lambda tally: self._on_stage(
                    "streaming", tally.n_seen, len(source), f"{tally.retention:.1%} kept"
                ),
            )

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Baseline, all-data, DRIP, and random, margin and the default rule with exactly as many samples as DRIP."""
        with self._store() as store:
            kept = np.array(sorted(self._position(stored.sample.id) for stored in store), dtype=np.int64)
        count, seed = len(kept), self._config.seed
        wanted = {
            name: create(name, retention=self._config.retention)
            .calibrate(self.calibration)
            .decide_many(self.scorer.observations)
            .retain
            for name in ("margin", RECOMMENDED)
        }
        rows = {
            "all-data": np.arange(len(self._production)),
            "drip": kept,
            "random": match_count(np.zeros(len(self._production), np.bool_), count, seed),
            **{name: match_count(retain, count, seed) for name, retain in wanted.items()},
        }
        baseline = self._arm("baseline", self.model, np.zeros(0, np.int64), self._seconds_of_model)
        arms = [baseline]
        for name, chosen in rows.items():
            clock = perf_counter()
            model = self._retrain_from_store() if name == "drip" else self._fit(f"retraining: {name}", chosen)
            arms.append(self._arm(name, model, chosen, perf_counter() - clock))
        return tuple(arms)

    @cached_property
    def decision_ms(self) -> FloatArray:
        """Milliseconds from prepared input to decision, one sample at a time, as on a device."""
        self._on_stage("timing decisions", 0, None, "")
        rule = self.policy.to_rule()
        inputs = self._dataset.inputs(self._production[:_N_TIMED])
        times = []
        for row in range(len(inputs)):
            clock = perf_counter()
            rule.decide(self.scorer.inner.score(inputs[row : row + 1])[0])
            times.append(1e3 * (perf_counter() - clock))
        return np.array(times)

    def report(self) -> RunReport:
        """All numbers and pictures."""
        decisions = self.policy.to_rule().decide_many(self.scorer.observations)
        classes = self.scorer.observations.classes
        n_classes = self.policy.n_classes
        return RunReport(
            title="DRIP on handwritten digits",
            dataset=self._dataset.name,
            split={
                "train": len(self._train),
                "calibration": len(self._calibration),
                "production": len(self._production),
                "test": len(self._test),
            },
            model=f"{_MODEL}, {sum(p.numel() for p in self.model.parameters()):,} parameters, "
            f"{self._training.epochs} epochs per training",
            command=f"drip demo --out {self._config.out} --seed {self._config.seed} "
            f"--keep {self._config.retention} --epochs {self._training.epochs}",
            seed=self._config.seed,
            policy=self.policy,
            arms=self.arms,
            n_test=len(self._test),
            n_seen=len(self._production),
            bytes_seen=int(self._n_bytes.sum()),
            decision_ms=self.decision_ms,
            n_errors=int(self._wrong.sum()),
            decision_includes="forward pass, score and decision of one prepared digit, on this machine's CPU",
            gallery=self._gallery(decisions.retain, decisions.priority),
            gallery_choice=GALLERY_CHOICE,
            class_counts_seen=np.bincount(classes, minlength=n_classes),
            class_counts_kept=np.bincount(classes[decisions.retain], minlength=n_classes),
        )

    def _store(self) -> RetentionStore:
        return RetentionStore.open(self._config.out / "kept.db", budget_bytes=STORE_BUDGET_BYTES)

    def _examples(self, rows: IntArray) -> Examples:
        return Examples(self._dataset.inputs(rows), self._dataset.labels[rows])

    def _fit(self, stage: str, positions: IntArray) -> nn.Module:
        """Train from scratch on the training part plus these positions of the production stream.

        From scratch and with the same seed in every arm, so the arms differ only in their data.
        """
        clock = perf_counter()
        parts = [self._examples(self._train), self._examples(self._production[positions])]
        model = train(SmallCNN, *parts, config=self._training, on_epoch=self._on_epoch(stage))
        if not len(positions):
            self._seconds_of_model = perf_counter() - clock
        return model

    def _retrain_from_store(self) -> nn.Module:
        with self._store() as store:
            return retrain(
                SmallCNN,
                self._examples(self._train),
                store,
                prepare=self._dataset.spec.prepare,
                config=self._training,
                on_epoch=self._on_epoch("retraining: drip"),
            )

    def _on_epoch(self, stage: str) -> Callable[[int, float], None]:
        self._on_stage(stage, 0, self._training.epochs, "")
        return lambda epoch, loss: self._on_stage(stage, epoch, self._training.epochs, f"loss {loss:.3f}")

    def _arm(self, name: str, model: nn.Module, positions: IntArray, seconds: float) -> Arm:
        n_errors = int(self._wrong.sum())
        correct = predict(model, self._dataset.inputs(self._test)) == self._dataset.labels[self._test]
        return Arm(
            name=name,
            accuracy=float(correct.mean()),
            n_train=len(self._train) + len(positions),
            n_kept=len(positions),
            bytes_kept=int(self._n_bytes[positions].sum()),
            seconds=seconds,
            correct=correct,
            errors_kept=float(self._wrong[positions].sum() / n_errors) if n_errors else None,
        )

    @cached_property
    def _wrong(self) -> BoolArray:
        return np.not_equal(self.scorer.observations.classes, self._dataset.labels[self._production])

    @cached_property
    def _n_bytes(self) -> IntArray:
        return np.array([len(sample.data) for sample in self._dataset.samples(self._production.tolist())])

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {row: position for position, row in enumerate(self._production.tolist())}

    def _position(self, sample_id: str) -> int:
        return self._positions[int(sample_id)]

    def _gallery(self, retain: BoolArray, distance: FloatArray) -> list[GalleryItem]:
        positions = gallery_positions(retain, self._wrong, distance, seed=self._config.seed)
        rows = self._production[positions]
        heatmaps = self.scorer.inner.heatmap(self._dataset.inputs(rows))
        observations = self.scorer.observations
        return [
            GalleryItem(
                image=self._dataset.images[row],
                heatmap=heatmap,
                predicted=int(observations.classes[position]),
                label=int(self._dataset.labels[row]),
                score=float(observations.scores[position]),
                retained=bool(retain[position]),
                distance=float(distance[position]),
            )
            for row, position, heatmap in zip(rows.tolist(), positions, heatmaps, strict=True)
        ]


class _Recorder:
    """A scorer that records its observations, so the other arms decide on the same stream."""

    def __init__(self, inner: TorchScorer) -> None:
        self.inner = inner
        self._parts: list[Observations] = []

    @property
    def provides(self) -> frozenset[str]:
        return self.inner.provides

    @property
    def observations(self) -> Observations:
        return Observations.concatenate(self._parts)

    def score(self, batch: NDArray[np.float32]) -> Observations:
        self._parts.append(self.inner.score(batch))
        return self._parts[-1]


def gallery_positions(
    retain: BoolArray, wrong: BoolArray, distance: FloatArray, *, seed: int, n_each: int = 12
) -> Sequence[int]:
    """Positions of the samples to show: kept ones, a third wrong and a third most distant, then discarded ones.

    Args:
        retain: Decisions, shape (n,).
        wrong: Where the model is wrong, shape (n,).
        distance: Distance to the window, shape (n,).
        seed: Seed of the random choice.
        n_each: Maximum number of kept samples, and of discarded ones.
    """
    order = np.random.default_rng(seed).permutation(len(retain))
    third = n_each // 3
    kept = [int(row) for row in order if retain[row] and wrong[row]][:third]
    farthest = np.argsort(-np.where(retain, distance, -np.inf), kind="stable")
    kept += [int(row) for row in farthest[: 2 * third] if retain[row] and row not in kept][:third]
    kept += [int(row) for row in order if retain[row] and not wrong[row] and row not in kept][
        : n_each - len(kept)
    ]
    discarded = [int(row) for row in order if not retain[row] and wrong[row]][:third]
    discarded += [int(row) for row in order if not retain[row] and not wrong[row]][: n_each - len(discarded)]
    return kept + discarded
