"""A policy from a folder of samples: for a PyTorch model, or on the device for a model file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drip.errors import InputError
from drip.media import InputSpec
from drip.pipeline import observe
from drip.policy import Policy, Provenance, class_histograms
from drip.rules import RECOMMENDED, BaseRule, WindowRule, create, require_scores
from drip.sources import FolderSource
from drip.types import Observations, Scorer
from drip.windows import Method, check_fraction, sort_by_class
from drip.workflow.models import FileScorer, ScoreOptions

if TYPE_CHECKING:
    from torch import nn

    from drip.scoring import TorchScorer

_BATCH_SIZE = 64
_USUAL = 0.6
_PER_TIME = ("samples_per_hour", "bytes_per_day")


def calibrate_folder(
    model: nn.Module,
    folder: str | Path,
    spec: InputSpec,
    *,
    rule: str = RECOMMENDED,
    retention: float | None = None,
    method: Method | None = None,
    rule_options: Mapping[str, Any] | None = None,
    score: ScoreOptions | None = None,
    class_names: tuple[str, ...] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Policy:
    """A policy for a model from a folder of samples that resemble production.

    Args:
        model: The trained classifier.
        folder: Images, audio files or arrays; labels are not used.
        spec: How files become inputs, as in training.
        rule: Name of the selection rule.
        retention: Keep rate of the stream, in (0, 1). None means 0.6, or
            what ``rule_options`` aim at.
        method: Where a rule with windows puts them; None takes the rule's default.
        rule_options: Further arguments of the rule, such as ``frozen`` or ``samples_per_hour``; not
            ``retention``, which has its own argument.
        score: How to score; contrastive scores are added where the rule reads them.
        class_names: Names in the order of the logits, kept in the policy.
        on_progress: Called with the number of samples scored and their total.

    Raises:
        InputError: an unknown rule, or a file that cannot be decoded.
        ModelError: a model or sample that cannot be scored.
        SourceError: no folder, or nothing in it.
    """
    selector = _rule(rule, retention, method, rule_options or {})
    source = FolderSource(folder)
    options = score or ScoreOptions()
    scorer = replace(options, contrast=options.contrast or "contrast" in selector.needs).scorer(model)
    return calibrated(
        selector, scorer, model, _observe(source, scorer, spec, on_progress),
        spec=spec, data=str(folder), class_names=class_names,
    )  # fmt: skip


def calibrate_file(
    scorer: FileScorer,
    folder: str | Path,
    *,
    rule: str = RECOMMENDED,
    retention: float | None = None,
    method: Method | None = None,
    rule_options: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Policy:
    """A policy for a model file, on the device that runs it; contract and class names are the file's.

    Args:
        scorer: The model file, such as :class:`drip.onnx.OnnxScorer`.
        folder: Images, audio files or arrays; labels are not used.
        rule: Name of the selection rule.
        retention: Keep rate of the stream, in (0, 1). None means 0.6, or
            what ``rule_options`` aim at.
        method: Where a rule with windows puts them; None takes the rule's default.
        rule_options: Further arguments of the rule, such as ``frozen`` or ``samples_per_hour``; not
            ``retention``, which has its own argument.
        on_progress: Called with the number of samples scored and their total.

    Raises:
        InputError: an unknown rule, one that reads what the file does not give, or a file of the folder
            that cannot be decoded.
        ModelError: a sample that cannot be scored.
        SourceError: no folder, or nothing in it.
    """
    selector = _rule(rule, retention, method, rule_options or {})
    options = " ".join(f"--output {name}" for name in sorted(selector.needs - scorer.provides))
    require_scores(selector, scorer.provides, f"export the model file with {options}")
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
    return _policy(selector, observations, provenance)


def calibrated(
    selector: BaseRule,
    scorer: TorchScorer,
    model: nn.Module,
    observations: Observations,
    *,
    spec: InputSpec,
    data: str,
    class_names: tuple[str, ...] = (),
) -> Policy:
    """Calibrate a rule on observations and write down where it comes from.

    Args:
        selector: The rule; its limits are set.
        scorer: What scored the observations.
        model: The scored classifier.
        observations: Observations of the calibration set, n of them.
        spec: How samples became inputs.
        data: Description of the calibration set.
        class_names: Names in the order of the logits; or none.

    Raises:
        InputError: another number of class names than of logits, or no observation.
    """
    from drip.scoring import model_digest  # noqa: PLC0415  # a board has no torch

    n_classes = observations.logits.shape[1]
    if class_names and len(class_names) != n_classes:
        raise InputError(f"{n_classes} class names are needed, got {len(class_names)}: {class_names!r}")
    provenance = Provenance(
        model_digest=model_digest(model),
        layer=scorer.layer,
        score=scorer.score_definition,
        data=data,
        n_samples=len(observations),
        input_spec=spec.to_json(),
        class_names=class_names,
    )
    return _policy(selector, observations, provenance)


def _rule(name: str, retention: float | None, method: Method | None, options: Mapping[str, Any]) -> BaseRule:
    if "name" in options or "retention" in options:
        raise InputError(
            f"name and retention have arguments of their own (--rule, --keep), got {dict(options)} as well",
            code="rule-arguments",
        )
    if method is not None and "method" in options:
        raise InputError(
            f"one window method is needed, got {method!r} and the option {options['method']!r}; leave one out"
        )
    per_time = [option for option in _PER_TIME if options.get(option) is not None]
    if per_time and retention is not None:
        raise InputError(
            f"{per_time[0]} and a keep rate of {retention} are two targets; leave one out",
            code="rule-arguments",
        )
    if not per_time:
        retention = _USUAL if retention is None else retention
        check_fraction("retention", retention)
    selector = create(name, retention=retention, **options)
    if method is None:
        return selector
    if not isinstance(selector, WindowRule):
        raise InputError(f"a rule with windows is needed with a window method, got {name!r}; leave it out")
    return create(name, retention=retention, **{**options, "method": method})


def _observe(
    source: FolderSource,
    scorer: Scorer,
    spec: InputSpec,
    on_progress: Callable[[int, int], None] | None,
) -> Observations:
    total = len(source)
    return observe(
        (sample for batch in source.batches(_BATCH_SIZE) for sample in batch),
        scorer,
        prepare=spec.prepare,
        batch_size=_BATCH_SIZE,
        on_progress=None if on_progress is None else lambda done: on_progress(done, total),
    )


def _policy(selector: BaseRule, observations: Observations, provenance: Provenance) -> Policy:
    """Set the rule's limits; the policy keeps histograms of the scores that they are cut from."""
    n_classes = observations.logits.shape[1]
    selector.calibrate(observations)
    if isinstance(selector, WindowRule):
        scores = selector.score(observations)
    else:
        scores = observations.named_scores["drip"]
    histograms = class_histograms(sort_by_class(scores, observations.classes, n_classes))
    return Policy.of(selector, n_classes=n_classes, provenance=provenance, histograms=histograms)
