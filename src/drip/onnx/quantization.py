"""Quantises a model file, and measures on held-out samples how well it agrees with its float32 parent.

It compares decisions, not accuracy: a device must keep the samples that the float32 file would keep.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from drip.datasets import split_rows
from drip.errors import ExportError, InputError
from drip.media import InputSpec
from drip.onnx.files import (
    load_model_file,
    metadata_of,
    save_model_file,
    write_known_answers,
    write_metadata,
    write_windows,
)
from drip.onnx.int8 import Activations, Plan, plan_int8, write_int8
from drip.onnx.metadata import ModelMetadata
from drip.onnx.ranges import Calibration, Range, corrected, find_ranges
from drip.onnx.runtime import OnnxScorer
from drip.pipeline import observe
from drip.policy import Policy, class_histograms
from drip.rules import WindowRule, create
from drip.sources import open_source, split_recordings
from drip.types import BoolArray, FloatArray, IntArray, JsonObject, Observations, Sample
from drip.windows import Window, check_fraction, sort_by_class, windows_to_json

WindowChoice = Literal["best", "parent", "scaled", "refit"]
Samples = Callable[[], Iterable[Sample]]

# Cohen's kappa has a standard error of about 0.05 with 100 held-out samples at a keep rate of 0.6, which is
# about the size of the differences being judged. With fewer than 200 samples in total the choice would be
# down to chance.
_MIN_SAMPLES = 200
_MIN_PAIRS = 20  # for a median ratio of a class; fewer leave its window as it is
_ROWS = 8  # calibration inputs per run; all tensors of the batch are in memory at once
_SCORED_AT_ONCE = 32


# -- agreement -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreement:
    """An int8 file compared with its float32 parent, on the same samples.

    Attributes:
        n: Number of samples.
        class_agreement: Fraction with the same predicted class.
        kappa: Cohen's kappa of the two decisions; see :func:`cohens_kappa`.
        retention_float: Keep rate of the parent.
        retention: Keep rate of the int8 file.
        score_error: Median absolute difference of the scores, in units of the parent's mean score.
        score_error_p95: Its 95th percentile.
    """

    n: int
    class_agreement: float
    kappa: float
    retention_float: float
    retention: float
    score_error: float
    score_error_p95: float

    @property
    def retention_shift(self) -> float:
        """Keep rate of the int8 file minus that of its parent."""
        return self.retention - self.retention_float

    def to_json(self) -> JsonObject:
        """The fields, for metadata and scripts."""
        return asdict(self)


def cohens_kappa(first: BoolArray, second: BoolArray) -> float:
    r"""Agreement of two series of decisions beyond chance.

    The plain rate of equal decisions would be 0.52 for two independent series with a keep rate of 0.6.

    ``kappa = (p_o - p_e) / (1 - p_e)``, ``p_e = p_1 p_2 + (1 - p_1)(1 - p_2)``

    with p_o the rate of equal decisions and p_1, p_2 the two keep rates. The fraction is not defined for two
    equal constants; their kappa is 1.

    References:
        Cohen 1960, A coefficient of agreement for nominal scales.

    >>> cohens_kappa(np.array([True, True, False, False]), np.array([True, False, False, False]))
    0.5
    """
    p1, p2 = float(first.mean()), float(second.mean())
    expected = p1 * p2 + (1 - p1) * (1 - p2)
    if expected == 1.0:
        return 1.0
    return float(((first == second).mean() - expected) / (1 - expected))


def compare(
    parent: Observations, retained_by_parent: BoolArray, found: Observations, retained: BoolArray
) -> Agreement:
    """The agreement of observations and decisions on the same samples in the same order."""
    # relative to the mean score: scores near 0 would make ratios per sample explode
    errors = np.abs(found.scores - parent.scores) / (float(np.abs(parent.scores).mean()) or 1.0)
    return Agreement(
        n=len(parent),
        class_agreement=float((found.classes == parent.classes).mean()),
        kappa=cohens_kappa(retained_by_parent, retained),
        retention_float=float(retained_by_parent.mean()),
        retention=float(retained.mean()),
        score_error=float(np.median(errors)),
        score_error_p95=float(np.quantile(errors, 0.95)),
    )


def retained_by(policy: Policy, observations: Observations) -> BoolArray:
    """Decisions of a policy's rule, starting from its saved state."""
    return policy.to_rule().decide_many(observations).retain


def candidates(policy: Policy, parent: Observations, found: Observations) -> dict[str, Policy]:
    """The candidate policies of an int8 file, by name, the parent's first.

    ``parent`` keeps the windows. ``scaled`` multiplies every window by the median ratio of the scores of
    its class, int8 over float32, on the same samples: it removes the change of scale that eight bits cause,
    without choosing a new window. ``refit`` calibrates again on the int8 scores.

    Args:
        policy: The parent's.
        parent: Observations of the parent.
        found: Observations of the int8 file, of the same samples.
    """
    given = {"parent": policy}
    rule = create(policy.rule.name, **policy.rule.params)
    # Rules without windows, such as margin, have nothing to scale; their state is kept or calibrated again.
    if "windows" in policy.rule.state and isinstance(rule, WindowRule):
        given["scaled"] = _scaled(policy, _ratios(parent, found, rule, policy.windows))
    rule.calibrate(found)
    given["refit"] = Policy.of(rule, n_classes=policy.n_classes, provenance=policy.provenance)
    # reports show these histograms beside the windows, so they must be of the int8 scores
    scores = rule.score(found) if isinstance(rule, WindowRule) else found.scores
    histograms = class_histograms(sort_by_class(scores, found.classes, policy.n_classes))
    return {name: replace(one, histograms=histograms) for name, one in given.items()}


def _ratios(
    parent: Observations, found: Observations, rule: WindowRule, windows: Sequence[Window]
) -> FloatArray:
    """Median ratio of the scores per class.

    A class with fewer than 20 samples has the ratio of all classes together if its window is pooled, else 1.
    """
    before, after = rule.score(parent), rule.score(found)
    # A score of 0 has no ratio, and a sample that changed its class compares two different heatmaps.
    usable = (parent.classes == found.classes) & (before > 0) & (after > 0)
    ratios = np.ones(len(windows))
    for index, window in enumerate(windows):
        rows = usable & (parent.classes == index)
        # A pooled window follows the scores that it was fitted on; left as it is, it would miss the change of scale.
        if window.pooled and rows.sum() < _MIN_PAIRS:
            rows = usable
        if rows.sum() >= _MIN_PAIRS:
            # the median: a few scores near 0 have ratios of any size
            ratios[index] = np.median(after[rows] / before[rows])
    return ratios


def _scaled(policy: Policy, ratios: FloatArray) -> Policy:
    windows = [
        replace(window, lower=window.lower * ratio, upper=window.upper * ratio, scale=window.scale * ratio)
        for window, ratio in zip(policy.windows, ratios.tolist(), strict=True)
    ]
    state = {**policy.rule.state, "windows": windows_to_json(windows)}
    return replace(policy, rule=replace(policy.rule, state=state))


# -- settings and report ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuantizationReport:
    """The results of quantising, all on samples that were not used for fitting.

    Attributes:
        metadata: Of the written file.
        windows: The chosen windows: ``parent``, ``scaled`` or ``refit``; see
            :func:`drip.onnx.quantization.candidates`.
        why: The reason for this choice.
        agreements: Agreement with the parent for each choice of windows.
        attempts: Kappa by the number of leading layers in float32, in the order tried.
    """

    metadata: ModelMetadata
    windows: str
    why: str
    agreements: Mapping[str, Agreement]
    attempts: Mapping[int, float]

    @property
    def agreement(self) -> Agreement:
        """Agreement with the chosen windows."""
        return self.agreements[self.windows]

    def facts(self) -> dict[str, str]:
        """The findings as text."""
        one = self.agreement
        return {
            "decisions": f"kappa {one.kappa:.3f} on {one.n} held-out samples",
            "classes": f"{one.class_agreement:.2%} equal",
            "keep rate": f"{one.retention_float:.2%} in float32, {one.retention:.2%} in int8",
            "score error": f"median {one.score_error:.2%}, 95th percentile {one.score_error_p95:.2%}",
            "windows": f"{self.windows}; {self.why}",
            "float32 layers": ", ".join(f"{n}: kappa {kappa:.3f}" for n, kappa in self.attempts.items()),
        }


@dataclass(frozen=True)
class Settings:
    """How a file is quantised.

    Attributes:
        calibration: How ranges are found; see :func:`drip.onnx.ranges.find_ranges`.
        n_calibration: Number of samples that ranges and biases are computed from.
        per_channel: A scale for every output channel of a weight.
        activations: ``uint8`` or ``int8``.
        weight_bits: 7 is right on every processor. 8 needs VNNI, ARM or another processor whose eight-bit
            products do not saturate.
        float_layers: Number of leading layers that stay in float32; None keeps as few as ``min_kappa`` needs.
        windows: Which windows to use; ``best`` chooses with held-out samples.
        min_kappa: Minimum of Cohen's kappa of the decisions on held-out samples.
        held_out: Fraction of the samples that are not used for fitting.
        retention: Keep rate of the windows used to compare a file without a policy.
        seed: Seed of the split.
    """

    calibration: Calibration = "mse"
    n_calibration: int = 256
    per_channel: bool = True
    activations: Activations = "uint8"
    weight_bits: Literal[7, 8] = 7
    float_layers: int | None = None
    windows: WindowChoice = "best"
    min_kappa: float = 0.85
    held_out: float = 0.5
    retention: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ExportError: A field is outside its range.
        """
        kinds = (("calibration", Calibration), ("activations", Activations), ("windows", WindowChoice))
        for name, kind in kinds:
            if getattr(self, name) not in get_args(kind):
                raise ExportError(
                    f"{name} must be one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}",
                    code="bad-argument",
                )
        if self.weight_bits not in {7, 8}:
            raise ExportError(f"weight_bits must be 7 or 8, not {self.weight_bits!r}", code="bad-argument")
        if self.n_calibration < 1 or (self.float_layers or 0) < 0 or not -1 <= self.min_kappa <= 1:
            raise ExportError(
                "n_calibration must be at least 1, float_layers at least 0 and min_kappa in [-1, 1], not "
                f"{self.n_calibration}, {self.float_layers} and {self.min_kappa}",
                code="bad-argument",
            )
        check_fraction("held_out", self.held_out)
        check_fraction("retention", self.retention)


def quantize(
    path: str | Path,
    data: str | Path | Samples,
    out: str | Path,
    settings: Settings | None = None,
    *,
    on_stage: Callable[[str], None] | None = None,
) -> QuantizationReport:
    """Rewrite a model file with eight-bit weights and activations; needs no torch.

    The score, the decision and the last linear layer stay float32. The samples are split at random: one
    part calibrates, and the decisions on the other are compared with the parent's. If they do not agree
    enough, more leading layers stay in float32. The windows are the parent's, scaled or refitted, whichever
    agree best. Nothing is written until the required agreement is reached.

    Args:
        path: A model file in float32.
        data: A folder, a URL such as ``dataset:mnist``, or a function that yields the same samples each
            time; at least 200 that are representative of production, encoded as the input spec says.
        out: Where to write.
        settings: How.
        on_stage: Called with the name of each stage when it begins.

    Raises:
        ExportError: The file is already quantised, all its scores are equal, there are too few samples, or
            the required agreement is not reached; nothing is written.
        InputError: A sample cannot be decoded; the message contains its id.
        ModelError: DRIP did not write the file, or it cannot score a sample.
        SourceError: The data cannot be read.
    """
    settings = settings or Settings()
    model = load_model_file(path)
    metadata = metadata_of(model)
    if not metadata.has_maps:
        raise ExportError(
            f"{path}: the model has no maps, and its decisions cannot be compared; quantise it with another tool, and "
            "export the result",
            code="export-unsupported",
        )
    if metadata.quantization is not None:
        raise ExportError(
            f"{path}: is already quantised; quantise the float32 file that it was made from",
            code="export-unsupported",
        )
    work = _Work(path, model, metadata, settings, _samples(data, metadata.spec), on_stage or (lambda _: None))
    with tempfile.TemporaryDirectory() as folder:
        finished, report = work.run(Path(folder))
    save_model_file(finished, out)  # after all checks: a file that exists has passed them
    return report


def _samples(data: str | Path | Samples, spec: InputSpec) -> Samples:
    if callable(data):
        return data
    open_source(str(data))  # a wrong path fails here, before any stage begins

    def read() -> Iterator[Sample]:
        for batch in split_recordings(open_source(str(data)), spec).batches(_SCORED_AT_ONCE):
            yield from batch

    return read


@dataclass
class _Work:
    """One quantisation: observe the parent once, then attempt int8 with different numbers of float32 layers.

    ``fit`` and ``held`` are the row numbers of the two parts of the samples.
    """

    path: str | Path
    model: onnx.ModelProto
    metadata: ModelMetadata
    settings: Settings
    samples: Samples
    stage: Callable[[str], None]
    fit: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    held: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))

    def run(self, folder: Path) -> tuple[onnx.ModelProto, QuantizationReport]:
        """The finished model and the report."""
        settings = self.settings
        self.stage("float32 scores")
        parent = self._observe(self.path)
        self._split(parent)
        policy = self.metadata.policy or self._substitute(parent[self.fit])
        plan = plan_int8(self.model, settings.float_layers or 0)
        self.stage("ranges")
        inputs = self._calibration_inputs(folder)
        # token models accept one row at a time
        step = _ROWS if self.model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_param") else 1

        def batches() -> Iterator[NDArray[np.float32]]:
            return (np.array(inputs[row : row + step]) for row in range(0, len(inputs), step))

        # Once for all attempts: the plan with the fewest float32 layers covers every tensor of the others.
        ranges = find_ranges(plan.model, plan.tensors, batches, settings.calibration)
        retained = retained_by(policy, parent[self.held])
        reports: dict[int, tuple[onnx.ModelProto, QuantizationReport]] = {}

        def agrees(n_layers: int) -> bool:
            self.stage(f"int8 with {n_layers} of {plan.n_layers} layers in float32")
            quantised = self._write(plan_int8(self.model, n_layers), ranges, batches)
            reports[n_layers] = quantised, self._judge(quantised, folder, policy, parent, retained, n_layers)
            return reports[n_layers][1].agreement.kappa >= settings.min_kappa

        # A number given by the user is tried unchanged, even if another one would agree better.
        if settings.float_layers is None:
            chosen = fewest(agrees, plan.n_layers)
        else:
            chosen = settings.float_layers if agrees(settings.float_layers) else None
        attempts = {n_layers: report.agreement.kappa for n_layers, (_, report) in reports.items()}
        if chosen is None:
            tried = ", ".join(f"{kappa:.3f} with {n_layers}" for n_layers, kappa in attempts.items())
            raise ExportError(
                f"int8 and float32 decisions do not agree enough: kappa {tried} leading layers in float32, "
                f"below {settings.min_kappa}; give more samples or a lower min_kappa",
                code="quantize-disagrees",
            )
        quantised, report = reports[chosen]
        write_known_answers(quantised, np.array(inputs[:4]), "samples")
        return quantised, replace(report, attempts=attempts)

    def _observe(self, path: str | Path) -> Observations:
        scorer = OnnxScorer(path)
        return observe(self.samples(), scorer, prepare=scorer.spec.prepare, batch_size=_SCORED_AT_ONCE)

    def _split(self, parent: Observations) -> None:
        if len(parent) < _MIN_SAMPLES:
            raise ExportError(
                f"{len(parent)} samples are too few; give at least {_MIN_SAMPLES}, because half of them "
                "are held out",
                code="quantize-data",
            )
        if _are_equal(parent.scores):
            raise ExportError(
                f"every sample has the score {parent.scores[0]:.6g}; give more varied samples, or export the "
                "file again with another layer",
                code="quantize-data",
            )
        held_out = self.settings.held_out
        self.fit, self.held = split_rows(len(parent), (1 - held_out, held_out), self.settings.seed)

    def _substitute(self, parent: Observations) -> Policy:
        """The policy used to compare a file that has none; it is not written."""
        return Policy.fit(
            parent.scores,
            parent.classes,
            n_classes=parent.logits.shape[1],
            retention=self.settings.retention,
        )

    def _calibration_inputs(self, folder: Path) -> NDArray[np.float32]:
        """Prepared inputs of the first samples of the calibration part, in a file.

        In a file, because 256 inputs of 3 x 224 x 224 take 150 MB and are read once per attempt.
        """
        spec = self.metadata.spec
        rows = self.fit[: self.settings.n_calibration]
        place = {int(row): index for index, row in enumerate(rows)}
        shape = (len(rows), *spec.shape)
        inputs = np.memmap(folder / "inputs", np.float32, "w+", shape=shape)
        # The samples come from a stream that has no random access: read up to the last chosen row.
        for row, sample in enumerate(islice(self.samples(), int(rows.max()) + 1)):
            if row in place:
                if sample.rejected is not None:
                    raise InputError(f"sample {sample.id!r}: {sample.rejected}", code="payload-invalid")
                try:
                    inputs[place[row]] = spec.prepare(sample.data, sample.media_type)
                except InputError as error:
                    raise error.within(f"sample {sample.id!r}") from error
        return inputs

    def _write(
        self, plan: Plan, ranges: Mapping[str, Range], batches: Callable[[], Iterator[NDArray[np.float32]]]
    ) -> onnx.ModelProto:
        """The quantised graph, with biases corrected by the error of its first version."""
        settings = self.settings
        example = next(batches())
        # Twice: the error of the first version is only known once it exists, and its correction changes
        # biases before they are rounded.
        for corrects in (True, False):
            quantised = write_int8(
                plan,
                ranges,
                example,
                per_channel=settings.per_channel,
                activations=settings.activations,
                weight_bits=settings.weight_bits,
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
        """Score all samples with the finished graph, choose its windows, and write them into it."""
        trial = folder / "int8.onnx"
        # through OnnxScorer and its optimised session, because a device uses these
        metadata = write_metadata(quantised, replace(self.metadata, policy=None, quantization={}))
        save_model_file(quantised, trial)
        found = self._observe(trial)
        if len(found) != len(parent):
            raise ExportError(
                f"the data changed during the run: {len(parent)} samples, then {len(found)}; use "
                "data that does not change",
                code="quantize-data",
            )
        if _are_equal(found.scores):
            raise ExportError(
                f"the int8 file gives the score {found.scores[0]:.6g} for every sample; "
                "try another calibration",
                code="quantize-disagrees",
            )
        # Windows are fitted on one part and judged on the other; on the same part refit would always win.
        given = candidates(policy, parent[self.fit], found[self.fit])
        held, before = found[self.held], parent[self.held]
        agreements = {
            name: compare(before, retained, held, retained_by(one, held)) for name, one in given.items()
        }
        chosen = self._chosen(agreements)
        metadata = self._described(quantised, metadata, given[chosen], agreements[chosen], chosen, n_layers)
        return QuantizationReport(metadata, chosen, _why(agreements, chosen), agreements, {})

    def _chosen(self, agreements: Mapping[str, Agreement]) -> str:
        wanted = self.settings.windows
        if wanted == "best":
            # max returns the first of equal values: the parent's windows if there is no gain
            return max(agreements, key=lambda name: agreements[name].kappa)
        if wanted not in agreements:
            raise ExportError(
                f"windows must be one of {', '.join(agreements)} for this rule, not {wanted!r}",
                code="bad-argument",
            )
        return wanted

    def _described(
        self,
        quantised: onnx.ModelProto,
        metadata: ModelMetadata,
        policy: Policy,
        agreement: Agreement,
        windows: str,
        n_layers: int,
    ) -> ModelMetadata:
        """Write the metadata, and the policy and windows if the parent has a policy."""
        settings = self.settings
        details: JsonObject = {
            "format": "qdq",
            "weights": "int8",
            "weight_bits": settings.weight_bits,
            "activations": settings.activations,
            "per_channel": settings.per_channel,
            "calibration": settings.calibration,
            "n_calibration": min(settings.n_calibration, len(self.fit)),
            "float_layers": n_layers,
            "seed": settings.seed,
            "source_digest": self.metadata.digest,
            "windows": windows,
            "held_out": agreement.to_json(),
            "onnxruntime": ort.__version__,
        }
        if self.metadata.policy is not None:
            data = f"{windows} windows on {len(self.fit)} samples for the int8 file of {self.metadata.digest}"
            # The windows now belong to this file: a policy with the parent's digest would be rejected.
            provenance = replace(
                self.metadata.policy.provenance,
                model_digest=metadata.digest,
                layer=str(self.metadata.score.get("layer", "")),
                data=data,
                n_samples=len(self.fit),
            )
            policy = replace(policy, provenance=provenance)
            write_windows(quantised, policy)
            metadata = replace(metadata, policy=policy)
        return write_metadata(quantised, replace(metadata, quantization=details))


def _are_equal(scores: FloatArray) -> bool:
    """Whether scores differ only by rounding.

    The last batch is smaller, and matrix products of a different size round differently: equal inputs do not
    have exactly equal scores.
    """
    return not np.ptp(scores) > 1e-5 * float(np.abs(scores).max())


def fewest(holds: Callable[[int], bool], n: int) -> int | None:
    """The smallest number below n for which something holds, provided it holds for all larger ones.

    None if there is no such number. Bisection: each trial quantises the file and scores all samples, and a
    network may have fifty layers.

    >>> fewest(lambda number: number >= 5, 50), fewest(lambda number: False, 50)
    (5, None)
    """
    if holds(0):  # most models need no float32 layer, so one trial is enough
        return 0
    low, high = 0, n - 1
    if high == 0 or not holds(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _why(agreements: Mapping[str, Agreement], chosen: str) -> str:
    """The reason for the choice of windows, as text."""
    kappas = ", ".join(f"{name} {one.kappa:.3f}" for name, one in agreements.items())
    return f"kappa on {agreements[chosen].n} held-out samples: {kappas}"
