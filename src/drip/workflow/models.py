"""The scorer and the policy of a run, checked to fit together before a sample is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from drip.errors import DripError, InputError, ModelError, PolicyError
from drip.media import InputSpec, trial_inputs
from drip.policy import Policy
from drip.rules import BaseRule, require_scores
from drip.types import JsonObject, Scorer

if TYPE_CHECKING:
    from torch import nn

    from drip.scoring import TorchScorer


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How :class:`~drip.scoring.TorchScorer` scores; its arguments.

    Attributes:
        layer: Name of the target layer; None finds one.
        heatmap: ``raw`` or ``normalised``.
        method: Class activation map: ``gradcam``, ``hirescam``, ``gradcam++`` or ``layercam``.
        contrast: Also compute the contrastive scores.
    """

    layer: str | None = None
    heatmap: str = "raw"
    method: str = "gradcam"
    contrast: bool = False

    def scorer(self, model: nn.Module, example: NDArray[np.float32] | None = None) -> TorchScorer:
        """A scorer for the model; the example, a batch of inputs, fixes the layer at once."""
        from drip.scoring import TorchScorer  # noqa: PLC0415  # a device has no torch

        arguments: dict[str, Any] = {
            "layer": self.layer, "heatmap": self.heatmap, "method": self.method, "contrast": self.contrast,
        }  # fmt: skip
        return TorchScorer(model, **arguments, example=example)

    def tried(self, model: nn.Module, shape: tuple[int, ...]) -> tuple[TorchScorer, NDArray[np.float32]]:
        """A scorer fixed with noise, and the two rows of noise: the first kind that the model accepts.

        Raises:
            ModelError: the model accepts none; the error is that of normal noise.
            InputError: likewise.
        """
        errors: list[DripError] = []
        for x in trial_inputs(shape, 2).values():
            try:
                return self.scorer(model, x), x
            except (InputError, ModelError) as error:
                errors.append(error)
                # another kind of noise would not help
                if error.code not in {"sample-non-finite", "input-spec-invalid", "score-unavailable"}:
                    break
        raise errors[0]


@runtime_checkable
class FileScorer(Scorer, Protocol):
    """A scorer that reads everything about the model from its file, such as :class:`drip.onnx.OnnxScorer`."""

    @property
    def digest(self) -> str:
        """The model digest in policies for this file."""
        ...

    @property
    def digests(self) -> tuple[str, ...]:
        """Every model digest whose policies this file accepts; a quantised file also accepts its parent's."""
        ...

    @property
    def layer(self) -> str:
        """Name of the target layer."""
        ...

    @property
    def score_definition(self) -> JsonObject:
        """Method, layer and heatmap of the score, for a policy's provenance."""
        ...

    @property
    def spec(self) -> InputSpec:
        """How encoded samples become inputs."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the logits, or empty."""
        ...

    @property
    def policy(self) -> Policy | None:
        """The policy embedded in the file, or None."""
        ...

    def require(self, policy: Policy, *, accept_parent_windows: bool = False) -> None:
        """Raise PolicyError for a policy that was not calibrated on the scores of this file."""
        ...

    def compare(self, policy: Policy | None) -> None:
        """From now on, count decisions that differ between the file's own windows and this policy."""
        ...


def scorer_of(policy: Policy, model: nn.Module) -> TorchScorer:
    """The scorer that a policy was calibrated with, tested on noise before the first sample is read.

    Raises:
        PolicyError: the policy is for another model, lacks the definition of its score, or was
            calibrated on maps of a different shape.
        InputError: the model does not accept inputs of the policy's input spec.
        ModelError: the model has no such layer.
    """
    from drip.scoring import model_digest  # noqa: PLC0415  # a device has no torch

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
        raise PolicyError(
            f"the policy does not record the score's {error}; calibrate again", code="policy-invalid"
        ) from error
    spec = InputSpec.from_json(policy.provenance.input_spec)
    scorer, _ = options.tried(model, spec.shape)
    found, expected = scorer.score_definition["layer_shape"], definition.get("layer_shape")
    if found != expected:
        raise PolicyError(
            f"the policy was calibrated on maps of shape {expected} at layer {scorer.layer!r}, but the "
            f"model produces {found}; calibrate again with this input spec",
            code="policy-other-score",
        )
    return scorer


@dataclass(frozen=True, slots=True)
class Parts:
    """The model, the policy and the rule of a run.

    Attributes:
        policy: The policy.
        scorer: The scorer that the policy was calibrated with.
        rule: The policy's rule, calibrated.
        spec: How samples become inputs.
        digests: Model digests whose policies fit these scores; the model's own first.
        class_names: In the order of the logits, or empty.
    """

    policy: Policy
    scorer: Scorer
    rule: BaseRule
    spec: InputSpec
    digests: tuple[str, ...]
    class_names: tuple[str, ...]


def parts_of(
    model: nn.Module | FileScorer, policy: Policy | None, *, accept_parent_windows: bool = False
) -> Parts:
    """A model with the policy that decides: the given one, or the one embedded in the file.

    Raises:
        PolicyError: there is no policy, or it is for another model or names an unknown rule.
        InputError: the rule reads a score that the model does not provide, or the input spec does not
            fit the model.
        ModelError: the model has no such layer.
    """
    chosen = model.policy if policy is None and isinstance(model, FileScorer) else policy
    if chosen is None:
        raise PolicyError(
            "no policy was given, and the model contains none; make one with drip calibrate and give it with "
            "--policy, or embed it with drip model set-policy",
            code="policy-missing",
        )
    rule = chosen.to_rule()
    names = chosen.provenance.class_names
    if isinstance(model, FileScorer):
        model.require(chosen, accept_parent_windows=accept_parent_windows)
        model.compare(chosen)
        parts = Parts(chosen, model, rule, model.spec, model.digests, names or model.class_names)
    else:
        spec = InputSpec.from_json(chosen.provenance.input_spec)
        digests = (chosen.provenance.model_digest,)
        parts = Parts(chosen, scorer_of(chosen, model), rule, spec, digests, names)
    require_scores(rule, parts.scorer.provides, "export the model with that output, or calibrate again")
    return parts
