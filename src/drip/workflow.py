"""What the commands do: calibrate a policy from a folder, run a stream into a store.

Puts the rooms together; decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError, PolicyError
from drip.media import InputContract
from drip.pipeline import OnError, Tally, observe, run
from drip.policy import Policy, Provenance, class_histograms
from drip.scoring import TorchScorer, model_digest
from drip.selectors import BaseSelector, WindowSelector, create, from_policy
from drip.store import RetentionStore
from drip.streams import FolderSource
from drip.thresholds import Method, check_fraction, complement, sort_by_class
from drip.types import Observations, Source

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How :class:`~drip.scoring.TorchScorer` scores; its arguments.

    Attributes:
        layer: Name of the target layer; None finds it.
        heatmap: ``raw`` or ``normalised``.
        method: Class activation map: ``gradcam``, ``hirescam``, ``gradcam++`` or ``layercam``.
        contrast: Also give the contrastive scores.
    """

    layer: str | None = None
    heatmap: str = "raw"
    method: str = "gradcam"
    contrast: bool = False

    def scorer(self, model: nn.Module, example: NDArray[np.float32] | None = None) -> TorchScorer:
        """The scorer of a model with these options, set up with the example where one is given."""
        arguments: dict[str, Any] = {
            "layer": self.layer, "heatmap": self.heatmap, "method": self.method, "contrast": self.contrast,
        }  # fmt: skip
        return TorchScorer(model, **arguments, example=example)


def calibrate_folder(
    model: nn.Module,
    folder: str | Path,
    contract: InputContract,
    *,
    rule: str = "drip",
    discard_fraction: float = 0.4,
    method: Method | None = None,
    score: ScoreOptions | None = None,
    class_names: tuple[str, ...] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Policy:
    """A policy for a model from a folder of samples that resemble production.

    Args:
        model: The trained classifier.
        folder: Images, audio files or arrays; labels are not used.
        contract: How files become inputs, as in training.
        rule: Name of the selection rule.
        discard_fraction: Share of the stream to discard, in (0, 1); the paper's DPW.
        method: Where a rule with windows puts them; None takes the rule's default.
        score: How to score; contrastive scores are added where the rule reads them.
        class_names: Names in the order of the logits, kept in the policy.
        on_progress: Called with the number of samples scored and their total.

    Raises:
        InputError: an unknown rule, or a file that cannot be decoded.
        ModelError: a model or sample that cannot be scored.
        StreamError: no folder, or nothing in it.
    """
    check_fraction("discard_fraction", discard_fraction)
    params = {} if method is None else {"method": method}
    selector = create(rule, retention=complement(discard_fraction), **params)
    source = FolderSource(folder)
    options = score or ScoreOptions()
    scorer = replace(options, contrast=options.contrast or "contrast" in selector.needs).scorer(model)
    total = len(source)
    observations = observe(
        (sample for batch in source.batches(64) for sample in batch),
        scorer,
        prepare=contract.prepare,
        batch_size=64,
        on_progress=None if on_progress is None else lambda done: on_progress(done, total),
    )
    return calibrated(
        selector, scorer, model, observations, contract=contract, data=str(folder), class_names=class_names
    )


def calibrated(
    selector: BaseSelector,
    scorer: TorchScorer,
    model: nn.Module,
    observations: Observations,
    *,
    contract: InputContract,
    data: str,
    class_names: tuple[str, ...] = (),
) -> Policy:
    """Calibrate a rule on observations and write down where it comes from.

    Args:
        selector: The rule; its limits are set.
        scorer: What scored the observations.
        model: The scored classifier.
        observations: Observations of the calibration set, n of them.
        contract: How samples became inputs.
        data: Description of the calibration set.
        class_names: Names in the order of the logits; or none.

    Raises:
        InputError: another number of class names than of logits, or no observation.
    """
    n_classes = observations.logits.shape[1]
    if class_names and len(class_names) != n_classes:
        raise InputError(f"{n_classes} class names are needed, got {len(class_names)}: {class_names!r}")
    selector.calibrate(observations)
    if isinstance(selector, WindowSelector):
        scores = selector.score(observations)
    else:
        scores = observations.named_scores["drip"]
    return Policy.of(
        selector,
        n_classes=n_classes,
        provenance=Provenance(
            model_digest=model_digest(model),
            layer=scorer.layer,
            score=scorer.score_definition,
            data=data,
            n_samples=len(observations),
            input_contract=contract.to_json(),
            class_names=class_names,
        ),
        histograms=class_histograms(sort_by_class(scores, observations.classes, n_classes)),
    )


def scorer_of(policy: Policy, model: nn.Module) -> TorchScorer:
    """The scorer that a policy was calibrated with, tried on noise before any sample is at stake.

    Raises:
        PolicyError: the policy is for another model, does not say how to score, or was calibrated on
            maps of another shape.
        InputError: the policy's input contract is not of inputs that the model takes.
        ModelError: the model has no such layer.
    """
    policy.require(model_digest(model))
    definition = policy.provenance.score
    try:
        options = ScoreOptions(
            layer=definition["layer"],
            heatmap=definition["heatmap"],
            method=definition["method"],
            contrast=definition["contrast"],
        )
    except KeyError as error:
        raise PolicyError(f"a policy that says how to score is needed, got none of {error}") from error
    contract = InputContract.from_json(policy.provenance.input_contract)
    noise = np.random.default_rng(0).normal(size=(2, *contract.shape)).astype(np.float32)
    scorer = options.scorer(model, noise)
    found, expected = scorer.score_definition["layer_shape"], definition.get("layer_shape")
    if found != expected:
        raise PolicyError(
            f"maps of shape {expected} are needed at {scorer.layer!r}, got {found}; calibrate again with "
            "this input shape and without a reshape of your own"
        )
    return scorer


def run_stream(
    model: nn.Module,
    policy: Policy,
    source: Source,
    store: RetentionStore,
    *,
    batch_size: int = 32,
    on_error: OnError = "quarantine",
    on_progress: Callable[[Tally], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Tally:
    """Decide on every sample of a source under a policy, into a store; continues where it stopped.

    Args:
        model: The model that the policy was calibrated for.
        policy: Rule, limits, score definition and input contract.
        source: Where samples come from.
        store: Where they go.
        batch_size: Largest number of samples scored at once.
        on_error: What a bad sample does; see :func:`drip.pipeline.run`.
        on_progress: Called after every batch.
        stop: Asked after every batch; True ends the run in good order.

    Raises:
        PolicyError: the policy is for another model, or incomplete.
        StoreError: the store cannot take a sample.
    """
    contract = InputContract.from_json(policy.provenance.input_contract)
    return run(
        source,
        scorer_of(policy, model),
        from_policy(policy),
        store,
        prepare=contract.prepare,
        batch_size=batch_size,
        on_error=on_error,
        policy_digest=policy.digest,
        on_progress=on_progress,
        stop=stop,
    )
