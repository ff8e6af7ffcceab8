"""What scores a stream: a PyTorch model under a policy, or a model file; and which policy decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from drip.errors import PolicyError
from drip.media import InputSpec
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
        from drip.scoring import TorchScorer  # noqa: PLC0415  # a board has no torch

        arguments: dict[str, Any] = {
            "layer": self.layer, "heatmap": self.heatmap, "method": self.method, "contrast": self.contrast,
        }  # fmt: skip
        return TorchScorer(model, **arguments, example=example)


@runtime_checkable
class FileScorer(Scorer, Protocol):
    """A scorer from a model file that says what it is: :class:`drip.onnx.OnnxScorer` and its like."""

    @property
    def digest(self) -> str:
        """The model digest that policies for this file carry."""
        ...

    @property
    def digests(self) -> tuple[str, ...]:
        """All model digests that limits for this file may carry."""
        ...

    @property
    def layer(self) -> str:
        """Name of the target layer."""
        ...

    @property
    def score_definition(self) -> JsonObject:
        """What the score is, for a policy's provenance."""
        ...

    @property
    def spec(self) -> InputSpec:
        """How encoded samples become inputs."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the logits; or empty."""
        ...

    @property
    def policy(self) -> Policy | None:
        """The policy in the file, or None."""
        ...

    def require(self, policy: Policy, *, accept_parent_limits: bool = False) -> None:
        """Refuse a policy that was not calibrated on this file's scores."""
        ...

    def compare(self, policy: Policy | None) -> None:
        """From now on count where the file's own decisions and this policy's differ."""
        ...


def scorer_of(policy: Policy, model: nn.Module) -> TorchScorer:
    """The scorer that a policy was calibrated with, tried on noise before any sample is at stake.

    Raises:
        PolicyError: the policy is for another model, does not say how to score, or was calibrated on
            maps of another shape.
        InputError: the policy's input contract is not of inputs that the model takes.
        ModelError: the model has no such layer.
    """
    from drip.scoring import model_digest  # noqa: PLC0415  # a board has no torch

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
    spec = InputSpec.from_json(policy.provenance.input_spec)
    noise = np.random.default_rng(0).normal(size=(2, *spec.shape)).astype(np.float32)
    scorer = options.scorer(model, noise)
    found, expected = scorer.score_definition["layer_shape"], definition.get("layer_shape")
    if found != expected:
        raise PolicyError(
            f"maps of shape {expected} are needed at {scorer.layer!r}, got {found}; calibrate again with "
            "this input shape and without a reshape of your own"
        )
    return scorer


@dataclass(frozen=True, slots=True)
class Parts:
    """What decides on a stream, checked to fit together.

    Attributes:
        policy: The policy.
        scorer: Of the model, as the policy says.
        rule: The policy's rule, calibrated.
        spec: How samples become inputs.
        digests: Model digests that limits for the scores may carry; the model's own first.
        class_names: In the order of the logits; or empty.
    """

    policy: Policy
    scorer: Scorer
    rule: BaseRule
    spec: InputSpec
    digests: tuple[str, ...]
    class_names: tuple[str, ...]


def parts_of(
    model: nn.Module | FileScorer, policy: Policy | None, *, accept_parent_limits: bool = False
) -> Parts:
    """A model with the policy that decides: the given one, or the file's own.

    Raises:
        PolicyError: no policy, one of another model, or of an unknown rule.
        InputError: the rule reads what the model does not give, or the contract does not fit the model.
        ModelError: the model has no such layer.
    """
    chosen = model.policy if policy is None and isinstance(model, FileScorer) else policy
    if chosen is None:
        raise PolicyError(
            "a policy is needed, got none with the model; make one with drip calibrate and give --policy, "
            "or write it into a model file with drip model set-policy"
        )
    rule = chosen.to_rule()
    names = chosen.provenance.class_names
    if isinstance(model, FileScorer):
        model.require(chosen, accept_parent_limits=accept_parent_limits)
        model.compare(chosen)
        parts = Parts(chosen, model, rule, model.spec, model.digests, names or model.class_names)
    else:
        spec = InputSpec.from_json(chosen.provenance.input_spec)
        digests = (chosen.provenance.model_digest,)
        parts = Parts(chosen, scorer_of(chosen, model), rule, spec, digests, names)
    require_scores(rule, parts.scorer.provides, "export the model with that output, or calibrate again")
    return parts
