"""What a model file says of itself, and which policies serve it; no runtime, no graph.

The format is described in docs/model-file.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError, ModelError, PolicyError
from drip.media import InputSpec
from drip.policy import Policy
from drip.types import JsonObject

KEY = "drip"
FORMAT_VERSION = 1
EXPORT = "drip model export makes one"
_SCORE_KEYS = ("method", "heatmap", "layer", "layer_shape")
_SPEC_KEYS = ("shape", "resize", "mean", "std", "sample_rate_hz")


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of a model file.

    Attributes:
        digest: SHA-256 of the file's weights and nodes, without its limits; policies carry it.
        parent_digest: Digest of the model that the file was made from; or empty.
        quantization: How it was quantised, or None.
        score: Definition of the score, as in a policy's provenance.
        spec: How encoded samples become inputs.
        class_names: In the order of the logits; or empty.
        policy: The policy that the file carries, or None.
        drip_version: What wrote the file.
        n_classes: Number of logits; 0 where the file does not say.
    """

    digest: str
    parent_digest: str
    quantization: Any
    score: JsonObject
    spec: InputSpec
    class_names: tuple[str, ...]
    policy: Policy | None
    drip_version: str = ""
    n_classes: int = 0

    @classmethod
    def parse(cls, properties: Mapping[str, str]) -> Self:
        """The metadata in a file's properties.

        Raises:
            ModelError: the properties have no part of ours, of another version, or a malformed one.

        >>> ModelMetadata.parse({})
        Traceback (most recent call last):
            ...
        drip.errors.ModelError: metadata 'drip' is needed, got a plain ONNX file; drip model export makes one
        """
        if KEY not in properties:
            raise ModelError(f"metadata {KEY!r} is needed, got a plain ONNX file; {EXPORT}")
        try:
            content = json.loads(properties[KEY])
            version = content["format_version"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"metadata as a JSON object is needed, got {error!r}; {EXPORT}") from error
        if type(version) is not int or version != FORMAT_VERSION:
            raise ModelError(
                f"model file version {FORMAT_VERSION} is needed, got {version!r}; "
                "upgrade drip on the device, or export again"
            )
        try:
            return cls._of(content)
        except (KeyError, TypeError, ValueError, InputError, PolicyError) as error:
            raise ModelError(f"complete metadata are needed, got a bad part: {error!r}; {EXPORT}") from error

    @classmethod
    def _of(cls, content: JsonObject) -> Self:
        policy, names = content["policy"], content["class_names"]
        texts = {key: content[key] or "" for key in ("digest", "parent_digest", "drip_version")}
        if not all(isinstance(text, str) for text in [*texts.values(), *names]):
            raise TypeError(f"digests and class names are {texts} and {names!r}")
        n_classes = content.get("n_classes", 0)  # files of before drip wrote it have none
        if type(n_classes) is not int or n_classes < 0 or (names and n_classes not in {0, len(names)}):
            raise ValueError(f"n_classes is {n_classes!r} with {len(names)} class names")
        if not texts["digest"] or not isinstance(content["score"], dict):
            raise ValueError(f"digest is {texts['digest']!r} and score {content['score']!r}")
        return cls(
            digest=texts["digest"],
            parent_digest=texts["parent_digest"],
            quantization=content["quantization"],
            score=content["score"],
            spec=InputSpec.from_json(content["input_contract"]),
            class_names=tuple(names),
            policy=None if policy is None else Policy.from_json(policy),
            drip_version=texts["drip_version"],
            n_classes=n_classes,
        )

    @property
    def digests(self) -> tuple[str, ...]:
        """Model digests that limits for this file's scores may carry: a float file agrees with its parent."""
        is_float = self.quantization is None
        return (self.digest, self.parent_digest) if is_float and self.parent_digest else (self.digest,)

    @property
    def _before_quantisation(self) -> tuple[str, ...]:
        """Digests of the model, and of the float32 file, that a quantised file was made from."""
        recipe = self.quantization if isinstance(self.quantization, dict) else {}
        return self.parent_digest, str(recipe.get("source_digest", ""))

    def require(self, policy: Policy, *, accept_parent_limits: bool = False) -> None:
        """Refuse a policy that was not calibrated on this file's scores.

        Args:
            policy: The policy that is to decide.
            accept_parent_limits: Take limits that were fitted before quantisation.

        Raises:
            PolicyError: a policy of another model, of another score, or for other inputs; or one of the
                parent of a quantised file without the acceptance.
        """
        provenance = policy.provenance
        wanted = provenance.model_digest
        if wanted not in self.digests and wanted and wanted in self._before_quantisation:
            if not accept_parent_limits:
                raise PolicyError(
                    "limits that were fitted on the quantised file are needed, got those of its parent "
                    f"{wanted[:12]}...; run drip calibrate with this file, "
                    "or drip run with --accept-parent-limits"
                )
        elif wanted not in self.digests:
            policy.require(self.digest)
        for key in _SCORE_KEYS:
            ours, theirs = self.score.get(key), provenance.score.get(key)
            if ours is not None and theirs is not None and ours != theirs:
                raise PolicyError(
                    f"a policy for the score with {key} {ours!r} is needed, got one with {theirs!r}; "
                    "run drip calibrate with this file"
                )
        if not provenance.input_spec:
            return
        theirs = InputSpec.from_json(provenance.input_spec)
        for key in _SPEC_KEYS:
            if getattr(self.spec, key) != getattr(theirs, key):
                raise PolicyError(
                    f"a policy for inputs with {key} {getattr(self.spec, key)!r} is needed, got one "
                    f"with {getattr(theirs, key)!r}; run drip calibrate with this file"
                )


LOWER, UPPER = "drip.lower", "drip.upper"


def limits_of(policy: Policy | None, n_classes: int) -> NDArray[np.float32]:
    """Lower and upper limits per class, shape (2, n_classes).

    The lower limit is rounded up and the upper one down, so that for every float32 score s the
    comparison in the graph decides as the policy does: s >= l exactly where s >= the smallest float32
    that is not below l. Limits that come from float32 scores do not move. Classes that never discard,
    and all classes of a rule that is no window of the DRIP score, have +inf and -inf.

    Raises:
        PolicyError: The policy has another number of classes.

    >>> limits_of(None, 2).tolist()
    [[inf, inf], [-inf, -inf]]
    """
    limits = np.full((2, n_classes), [[np.inf], [-np.inf]], dtype=np.float32)
    if policy is None:
        return limits
    if policy.n_classes != n_classes:
        raise PolicyError(
            f"a policy of {n_classes} classes is needed, got one of {policy.n_classes}; "
            "calibrate again with this model"
        )
    recipe = policy.rule
    if recipe.name == "drip" and recipe.params.get("score", "drip") == "drip":
        for index, window in enumerate(policy.windows):
            if window.discards:
                limits[:, index] = rounded_inward(window.lower, window.upper)
    return limits


def rounded_inward(lower: float, upper: float) -> tuple[np.float32, np.float32]:
    """The smallest float32 not below ``lower`` and the largest not above ``upper``.

    >>> low, high = rounded_inward(0.1, 0.1)
    >>> float(low) > 0.1 > float(high), [float(x) for x in rounded_inward(0.5, 0.75)]
    (True, [0.5, 0.75])
    """
    with np.errstate(over="ignore"):
        low, high = np.float32(lower), np.float32(upper)
    if float(low) < lower:
        low = np.nextafter(low, np.float32(np.inf))
    if float(high) > upper:
        high = np.nextafter(high, np.float32(-np.inf))
    return low, high
