"""A policy from a folder of samples: for a PyTorch model, or on the device for a model file.

Both ways end in one place, so a policy records the same facts wherever it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError
from drip.media import InputSpec
from drip.pipeline import observe
from drip.policy import Policy, Provenance, class_histograms
from drip.rules import RECOMMENDED, BaseRule, WindowRule, create, require_scores
from drip.sources import FolderSource, split_recordings
from drip.types import Observations, Scorer
from drip.windows import check_fraction, sort_by_class
from drip.workflow.models import FileScorer, ScoreOptions

if TYPE_CHECKING:
    from torch import nn

    from drip.scoring import TorchScorer

_BATCH_SIZE = 64
_DEFAULT_RETENTION = 0.6  # the paper discards 40 % of a stream
_PER_TIME = ("samples_per_hour", "bytes_per_day")


def calibrate_folder(
    model: nn.Module,
    folder: str | Path,
    spec: InputSpec,
    *,
    rule: str = RECOMMENDED,
    retention: float | None = None,
    rule_options: Mapping[str, Any] | None = None,
    score: ScoreOptions | None = None,
    class_names: tuple[str, ...] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Policy:
    """A policy for a PyTorch model from a folder of samples that are representative of production.

    Args:
        model: The trained classifier.
        folder: Images, audio files or arrays; labels are not used.
        spec: How samples become inputs, as in training.
        rule: Name of the rule.
        retention: Keep rate of the stream, in (0, 1). None means 0.6, unless ``rule_options`` has
            another target.
        rule_options: Further arguments of the rule, such as ``method`` or ``samples_per_hour``.
        score: How to score; contrastive scores are added if the rule reads them.
        class_names: Names in the order of the logits.
        on_progress: Called with the number of samples scored and their total.

    Raises:
        InputError: the rule is unknown, or a file cannot be decoded.
        ModelError: the model or a sample cannot be scored.
        SourceError: the folder does not exist or is empty.
    """
    chosen = _rule(rule, retention, rule_options or {})
    source = FolderSource(folder)
    options = score or ScoreOptions()
    scorer = replace(options, contrast=options.contrast or "contrast" in chosen.needs).scorer(model)
    return calibrated(
        chosen, scorer, model, _observe(source, scorer, spec, on_progress),
        spec=spec, data=str(folder), class_names=class_names,
    )  # fmt: skip


def calibrate_file(
    scorer: FileScorer,
    folder: str | Path,
    *,
    rule: str = RECOMMENDED,
    retention: float | None = None,
    rule_options: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Policy:
    """A policy for a model file, which contains input spec, score and class names; needs no torch.

    Args:
        scorer: The model file, such as :class:`drip.onnx.OnnxScorer`.
        folder: Images, audio files or arrays; labels are not used.
        rule: Name of the rule.
        retention: Keep rate of the stream, in (0, 1). None means 0.6, unless ``rule_options`` has
            another target.
        rule_options: Further arguments of the rule, such as ``method`` or ``samples_per_hour``.
        on_progress: Called with the number of samples scored and their total.

    Raises:
        InputError: the rule is unknown or reads a score that the file does not provide, or a sample
            cannot be decoded.
        ModelError: a sample cannot be scored.
        SourceError: the folder does not exist or is empty.
    """
    chosen = _rule(rule, retention, rule_options or {})
    # Files of version 0.1.0 have features only on request.
    option = " with --contrast" if "contrast" in chosen.needs - scorer.provides else ""
    require_scores(chosen, scorer.provides, f"export the model file again{option}")
    observations = _observe(FolderSource(folder), scorer, scorer.spec, on_progress)
    provenance = Provenance(
        model_digest=scorer.digest,
        layer=scorer.layer,
        score=scorer.score_definition,
        data=str(folder),
        n_samples=len(observations),
        input_spec=scorer.spec.to_json(),
        class_names=scorer.class_names,
    )
    return _policy(chosen, observations, provenance)


def calibrated(
    rule: BaseRule,
    scorer: TorchScorer,
    model: nn.Module,
    observations: Observations,
    *,
    spec: InputSpec,
    data: str,
    class_names: tuple[str, ...] = (),
) -> Policy:
    """Calibrate a rule on observations, and record model, score and data.

    Args:
        rule: The rule; calibrated in place.
        scorer: What scored the observations.
        model: The scored classifier.
        observations: n observations of the calibration set.
        spec: How samples became inputs.
        data: Description of the calibration set.
        class_names: Names in the order of the logits, or empty.

    Raises:
        InputError: the number of class names differs from that of the logits, or there is no
            observation.
    """
    from drip.scoring import model_digest  # noqa: PLC0415  # a device has no torch

    n_classes = observations.logits.shape[1]
    if class_names and len(class_names) != n_classes:
        raise InputError(
            f"the model has {n_classes} classes, but {len(class_names)} class names are given; name each "
            "class once, in the order of the logits",
            code="labels-invalid",
        )
    provenance = Provenance(
        model_digest=model_digest(model),
        layer=scorer.layer,
        score=scorer.score_definition,
        data=data,
        n_samples=len(observations),
        input_spec=spec.to_json(),
        class_names=class_names,
    )
    return _policy(rule, observations, provenance)


def _rule(name: str, retention: float | None, options: Mapping[str, Any]) -> BaseRule:
    """The rule, not yet calibrated, with the default keep rate unless an option sets another target."""
    for given, argument in (("name", "--rule"), ("retention", "--keep")):
        if given in options:
            raise InputError(
                f"{given} is not an option of the rule; use {argument} instead", code="rule-arguments"
            )
    per_time = [option for option in _PER_TIME if options.get(option) is not None]
    if per_time and retention is not None:
        raise InputError(
            f"{per_time[0]} and a keep rate of {retention} are two targets; leave one out",
            code="rule-arguments",
        )
    if not per_time:
        retention = _DEFAULT_RETENTION if retention is None else retention
        check_fraction("retention", retention)
    return create(name, retention=retention, **options)


def _observe(
    source: FolderSource,
    scorer: Scorer,
    spec: InputSpec,
    on_progress: Callable[[int, int], None] | None,
) -> Observations:
    total = len(source)
    return observe(
        (sample for batch in split_recordings(source, spec).batches(_BATCH_SIZE) for sample in batch),
        scorer,
        prepare=spec.prepare,
        batch_size=_BATCH_SIZE,
        on_progress=None if on_progress is None else lambda done: on_progress(done, max(done, total)),
    )


def first_inputs(folder: str | Path, spec: InputSpec, n: int = 8) -> NDArray[np.float32]:
    """The first inputs in a folder, shape (m, *input shape), 2 <= m <= n.

    Raises:
        InputError: a file cannot be decoded, or there is only one.
        SourceError: the folder does not exist or is empty.
    """
    source = split_recordings(FolderSource(folder), spec)
    samples = islice((one for batch in source.batches(n) for one in batch), n)
    inputs = []
    for sample in samples:
        try:
            inputs.append(spec.prepare(sample.data, sample.media_type))
        except InputError as error:
            raise error.within(f"sample {sample.id!r}") from error
    if len(inputs) < 2:
        raise InputError(f"{folder}: contains one sample; give at least two", code="source-empty")
    return np.stack(inputs)


def _policy(rule: BaseRule, observations: Observations, provenance: Provenance) -> Policy:
    """Calibrate the rule; the policy also gets a histogram of the scores for the report."""
    n_classes = observations.logits.shape[1]
    rule.calibrate(observations)
    scores = observations.named_scores.get("drip")  # a model without maps has none
    if isinstance(rule, WindowRule):
        scores = rule.score(observations)
    parts = None if scores is None else sort_by_class(scores, observations.classes, n_classes)
    histograms = () if parts is None else class_histograms(parts)
    return Policy.of(rule, n_classes=n_classes, provenance=provenance, histograms=histograms)
