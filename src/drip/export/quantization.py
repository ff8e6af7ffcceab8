"""Writes an int8 file from a model file and calibration data, and proves it on samples it has not seen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from drip.datasets import split_rows
from drip.device import ModelMetadata, OnnxScorer
from drip.errors import ExportError, InputError
from drip.export.agreement import Agreement, candidates, compare, retained_by
from drip.export.bias import corrected
from drip.export.files import load_model_file, save_model_file
from drip.export.int8 import Activations, Plan, plan_int8, write_int8
from drip.export.limits import LOWER, UPPER, limits_of
from drip.export.metadata import metadata_of, write_metadata
from drip.export.ranges import Calibration, Range, find_ranges
from drip.pipeline import observe
from drip.policy import Policy
from drip.streams import open_source
from drip.thresholds import check_fraction
from drip.types import BoolArray, FloatArray, IntArray, JsonObject, Observations, Sample

Limits = Literal["best", "parent", "scaled", "refit"]
Samples = Callable[[], Iterable[Sample]]

_LEAST_SAMPLES = 200
_ROWS = 8
_SCORED_AT_ONCE = 32


@dataclass(frozen=True)
class QuantizationReport:
    """What quantising found, all on samples that it was not fitted on.

    Attributes:
        metadata: Of the written file.
        limits: The limits that it got: ``parent``, ``scaled`` or ``refit``; see
            :func:`drip.export.agreement.candidates`.
        why: The choice in words.
        agreements: Agreement with the parent under each limits that were tried.
        attempts: Kappa by the number of first layers in float32, in the order of trial.
    """

    metadata: ModelMetadata
    limits: str
    why: str
    agreements: Mapping[str, Agreement]
    attempts: Mapping[int, float]

    @property
    def agreement(self) -> Agreement:
        """Agreement under the limits that were chosen."""
        return self.agreements[self.limits]

    def facts(self) -> dict[str, str]:
        """What was found, in words."""
        one = self.agreement
        return {
            "decisions": f"kappa {one.kappa:.3f} on {one.n} held-out samples",
            "classes": f"{one.class_agreement:.2%} equal",
            "retention": f"{one.retention_float:.2%} in float32, {one.retention:.2%} in int8",
            "score error": f"median {one.score_error:.2%}, 95th percentile {one.score_error_p95:.2%}",
            "limits": f"{self.limits}; {self.why}",
            "float32 layers": ", ".join(f"{n}: kappa {kappa:.3f}" for n, kappa in self.attempts.items()),
        }


@dataclass(frozen=True)
class Settings:
    """How a file is quantised; checked once.

    Attributes:
        calibration: How ranges are found; see :func:`drip.export.ranges.find_ranges`.
        n_calibration: Samples that ranges and biases come from.
        per_channel: A scale for every output channel of a weight.
        activations: ``uint8`` or ``int8``.
        float_layers: First layers that stay float32; None keeps as few as ``min_kappa`` needs.
        limits: Which limits the file gets; ``best`` decides on held-out samples.
        min_kappa: Least Cohen's kappa of decisions on held-out samples.
        held_out: Share of the samples that nothing is fitted on.
        discard_fraction: Of the limits that a file without a policy is judged by.
        seed: Of the split.
    """

    calibration: Calibration = "mse"
    n_calibration: int = 256
    per_channel: bool = True
    activations: Activations = "uint8"
    float_layers: int | None = None
    limits: Limits = "best"
    min_kappa: float = 0.85
    held_out: float = 0.5
    discard_fraction: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ExportError: A field is outside its range.
        """
        for name, kind in (("calibration", Calibration), ("activations", Activations), ("limits", Limits)):
            if getattr(self, name) not in get_args(kind):
                raise ExportError(
                    f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}"
                )
        if self.n_calibration < 1 or (self.float_layers or 0) < 0 or not self.min_kappa <= 1:
            raise ExportError(
                "n_calibration must be at least 1, float_layers at least 0 and min_kappa at most 1, got "
                f"{self.n_calibration}, {self.float_layers} and {self.min_kappa}"
            )
        check_fraction("held_out", self.held_out)
        check_fraction("discard_fraction", self.discard_fraction)


def quantize(
    path: str | Path,
    data: str | Path | Samples,
    out: str | Path,
    settings: Settings | None = None,
    *,
    on_stage: Callable[[str], None] | None = None,
) -> QuantizationReport:
    """Write a model file again with eight-bit weights and activations; torch is not needed.

    The score, the decision and the last linear layer stay float32. The samples are split at random: one
    part calibrates, the other is only looked at. Where the decisions on it agree too little with the
    parent's, more first layers stay float32. The limits are the parent's as they are, scaled, or fitted
    anew, whichever agrees best. Nothing is written before the agreement is reached.

    Args:
        path: A model file in float32.
        data: A folder, a URL such as ``dataset:mnist``, or a function that yields the samples anew each
            time; at least 200 that resemble production, encoded as the input contract says.
        out: Where to write.
        settings: How.
        on_stage: Called with the name of each stage when it begins.

    Raises:
        ExportError: The file is quantised already, its scores are all alike, there are too few samples, or
            the agreement is not reached; nothing is written.
        InputError: A sample that cannot be decoded, by its id.
        ModelError: The file was not written by drip, or cannot score a sample.
        StreamError: No data.
    """
    settings = settings or Settings()
    model = load_model_file(path)
    metadata = metadata_of(model)
    if metadata.quantization is not None:
        raise ExportError(f"a float32 model file is needed, got {path}, which is int8; quantise its parent")
    work = _Work(path, model, metadata, settings, _samples(data), on_stage or (lambda _: None))
    with tempfile.TemporaryDirectory() as folder:
        finished, report = work.run(Path(folder))
    save_model_file(finished, out)
    return report


def _samples(data: str | Path | Samples) -> Samples:
    if callable(data):
        return data
    open_source(str(data))  # says now what is wrong with it
    return lambda: (sample for batch in open_source(str(data)).batches(_SCORED_AT_ONCE) for sample in batch)


@dataclass
class _Work:
    """One quantisation: the parent's observations once, then attempts with more and more float32 layers."""

    path: str | Path
    model: onnx.ModelProto
    metadata: ModelMetadata
    settings: Settings
    samples: Samples
    stage: Callable[[str], None]
    fit: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    held: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))

    def run(self, folder: Path) -> tuple[onnx.ModelProto, QuantizationReport]:
        """The finished model and what was found."""
        settings = self.settings
        self.stage("float32 scores")
        parent = self._observe(self.path)
        self._split(parent)
        policy = self.metadata.policy or self._yardstick(parent[self.fit])
        plan = plan_int8(self.model, settings.float_layers or 0)
        self.stage("ranges")
        inputs = self._calibration_inputs(folder)
        step = _ROWS if self.model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_param") else 1

        def batches() -> Iterator[NDArray[np.float32]]:
            return (np.array(inputs[row : row + step]) for row in range(0, len(inputs), step))

        ranges = find_ranges(plan.model, plan.tensors, batches, settings.calibration)
        retained = retained_by(policy, parent[self.held])
        reports: dict[int, tuple[onnx.ModelProto, QuantizationReport]] = {}

        def agrees(n_layers: int) -> bool:
            self.stage(f"int8 with {n_layers} of {plan.n_layers} layers in float32")
            quantised = self._write(plan_int8(self.model, n_layers), ranges, batches)
            reports[n_layers] = quantised, self._judge(quantised, folder, policy, parent, retained, n_layers)
            return reports[n_layers][1].agreement.kappa >= settings.min_kappa

        if settings.float_layers is None:
            chosen = fewest(agrees, plan.n_layers)
        else:
            chosen = settings.float_layers if agrees(settings.float_layers) else None
        attempts = {n_layers: report.agreement.kappa for n_layers, (_, report) in reports.items()}
        if chosen is None:
            tried = ", ".join(f"{kappa:.3f} with {n_layers}" for n_layers, kappa in attempts.items())
            raise ExportError(
                f"a kappa of at least {settings.min_kappa} between int8 and float32 decisions is needed, got "
                f"{tried} first layers in float32; give more samples or a lower min_kappa"
            )
        quantised, report = reports[chosen]
        return quantised, replace(report, attempts=attempts)

    def _observe(self, path: str | Path) -> Observations:
        scorer = OnnxScorer(path)
        return observe(self.samples(), scorer, prepare=scorer.contract.prepare, batch_size=_SCORED_AT_ONCE)

    def _split(self, parent: Observations) -> None:
        if len(parent) < _LEAST_SAMPLES:
            raise ExportError(
                f"at least {_LEAST_SAMPLES} samples are needed, half of them held out, got {len(parent)}"
            )
        if _are_alike(parent.scores):
            raise ExportError(
                f"samples that differ in their scores are needed, got {parent.scores[0]:.6g} for each; give "
                "other samples, or export the file again with another layer"
            )
        share = self.settings.held_out
        self.fit, self.held = split_rows(len(parent), (1 - share, share), self.settings.seed)

    def _yardstick(self, parent: Observations) -> Policy:
        """Limits to judge a file by that has none; they are not written."""
        return Policy.fit(
            parent.scores,
            parent.classes,
            n_classes=parent.logits.shape[1],
            discard_fraction=self.settings.discard_fraction,
        )

    def _calibration_inputs(self, folder: Path) -> NDArray[np.float32]:
        """Prepared inputs of the first samples of the calibration part, in a file."""
        contract = self.metadata.contract
        rows = self.fit[: self.settings.n_calibration]
        place = {int(row): index for index, row in enumerate(rows)}
        shape = (len(rows), *contract.shape)
        inputs = np.memmap(folder / "inputs", np.float32, "w+", shape=shape)
        for row, sample in enumerate(islice(self.samples(), int(rows.max()) + 1)):
            if row in place:
                try:
                    inputs[place[row]] = contract.prepare(sample.data, sample.media_type)
                except InputError as error:
                    raise InputError(f"sample {sample.id!r}: {error}") from error
        return inputs

    def _write(
        self, plan: Plan, ranges: Mapping[str, Range], batches: Callable[[], Iterator[NDArray[np.float32]]]
    ) -> onnx.ModelProto:
        """The quantised graph, its biases corrected by what its first form gets wrong."""
        settings = self.settings
        example = next(batches())
        for corrects in (True, False):
            quantised = write_int8(
                plan, ranges, example, per_channel=settings.per_channel, activations=settings.activations
            )
            if corrects:
                plan = replace(plan, model=corrected(plan.model, quantised, batches))
        return quantised

    def _judge(
        self,
        quantised: onnx.ModelProto,
        folder: Path,
        policy: Policy,
        parent: Observations,
        retained: BoolArray,
        n_layers: int,
    ) -> QuantizationReport:
        """Score all samples with the graph that ships, and choose its limits; they are written into it."""
        trial = folder / "int8.onnx"
        metadata = write_metadata(quantised, replace(self.metadata, policy=None, quantization={}))
        save_model_file(quantised, trial)
        found = self._observe(trial)
        if len(found) != len(parent):
            raise ExportError(
                f"data that stay the same are needed, got {len(parent)} samples, then {len(found)}"
            )
        if _are_alike(found.scores):
            raise ExportError(
                f"scores that differ are needed, the int8 file gives {found.scores[0]:.6g} for every sample; "
                "try another calibration"
            )
        given = candidates(policy, parent[self.fit], found[self.fit])
        held, before = found[self.held], parent[self.held]
        agreements = {
            name: compare(before, retained, held, retained_by(one, held)) for name, one in given.items()
        }
        chosen = self._chosen(agreements)
        metadata = self._described(quantised, metadata, given[chosen], agreements[chosen], chosen, n_layers)
        return QuantizationReport(metadata, chosen, _why(agreements, chosen), agreements, {})

    def _chosen(self, agreements: Mapping[str, Agreement]) -> str:
        wanted = self.settings.limits
        if wanted == "best":
            return max(agreements, key=lambda name: agreements[name].kappa)  # the first of equal ones
        if wanted not in agreements:
            raise ExportError(f"limits must be one of {', '.join(agreements)} for this rule, got {wanted!r}")
        return wanted

    def _described(
        self,
        quantised: onnx.ModelProto,
        metadata: ModelMetadata,
        policy: Policy,
        agreement: Agreement,
        limits: str,
        n_layers: int,
    ) -> ModelMetadata:
        """Metadata with the recipe; policy and limits where the parent has a policy."""
        settings = self.settings
        recipe: JsonObject = {
            "format": "qdq",
            "weights": "int8",
            "activations": settings.activations,
            "per_channel": settings.per_channel,
            "calibration": settings.calibration,
            "n_calibration": min(settings.n_calibration, len(self.fit)),
            "float_layers": n_layers,
            "seed": settings.seed,
            "source_digest": self.metadata.digest,
            "limits": limits,
            "held_out": agreement.to_json(),
            "onnxruntime": ort.__version__,
        }
        if self.metadata.policy is not None:
            data = f"{limits} limits on {len(self.fit)} samples for the int8 file of {self.metadata.digest}"
            provenance = replace(
                self.metadata.policy.provenance,
                model_digest=metadata.digest,
                layer=str(self.metadata.score.get("layer", "")),
                data=data,
                n_samples=len(self.fit),
            )
            policy = replace(policy, provenance=provenance)
            stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
            for name, values in zip((LOWER, UPPER), limits_of(policy, policy.n_classes), strict=True):
                stored[name].CopyFrom(numpy_helper.from_array(values, name))
            metadata = replace(metadata, policy=policy)
        return write_metadata(quantised, replace(metadata, quantization=recipe))


def _are_alike(scores: FloatArray) -> bool:
    """Whether scores differ by no more than rounding does, which batches of another size change."""
    return not np.ptp(scores) > 1e-5 * float(np.abs(scores).max())


def fewest(holds: Callable[[int], bool], n: int) -> int | None:
    """The least number below n for which something holds, if it holds for all larger ones; None if for none.

    >>> fewest(lambda number: number >= 5, 50), fewest(lambda number: False, 50)
    (5, None)
    """
    if holds(0):
        return 0
    low, high = 0, n - 1
    if high == 0 or not holds(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _why(agreements: Mapping[str, Agreement], chosen: str) -> str:
    """The choice of limits in one sentence."""
    kappas = ", ".join(f"{name} {one.kappa:.3f}" for name, one in agreements.items())
    return f"kappa on {agreements[chosen].n} held-out samples: {kappas}"
