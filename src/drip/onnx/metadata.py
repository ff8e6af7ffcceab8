"""The metadata of a model file, the windows in it, and the policies that match it.

Needs NumPy only: a device reads all of this without the package ``onnx``. The format is described in
docs/reference/model-file.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError, ModelError, PolicyError, brief
from drip.media import InputSpec
from drip.policy import Policy
from drip.types import JsonObject

KEY = "drip"
# Version 1 called the input spec "input_contract". The version number changed with the name, because a reader
# of version 1 would have reported a damaged file instead of asking for an upgrade. Version 3 added the known
# answers and more fields of the input spec.
FORMAT_VERSION = 3
LOWER, UPPER = "drip.lower", "drip.upper"
NO_MAPS = "none"
"""Layer and method of a file whose model has no maps: its score is always 0 and no rule may read it."""
EXPORT = "write it with `drip model export`"

# What must be equal for two scores to be comparable. Contrast is missing: it is an output besides the
# score and does not change it.
_SCORE_KEYS = ("method", "heatmap", "layer", "layer_shape")
# max_values is missing: it bounds the decoder's memory and does not change what the model sees.
_SPEC_KEYS = tuple(field.name for field in fields(InputSpec) if field.name != "max_values")


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of a model file.

    Attributes:
        digest: SHA-256 of the file's weights and nodes, without its windows; policies record it.
        parent_digest: Digest of the model that the file was made from; or empty.
        quantization: How it was quantised, or None.
        score: Definition of the score, as in a policy's provenance.
        spec: How encoded samples become inputs.
        class_names: In the order of the logits; or empty.
        policy: The policy in the file, or None.
        drip_version: Version of DRIP that wrote the file.
        n_classes: Number of logits; 0 if the file does not state it.
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
        """Read the metadata from a file's properties.

        Raises:
            ModelError: no DRIP metadata (code ``model-file-plain``), a newer version of the format
                (``model-file-version``), or a malformed part (``model-file-damaged``).

        >>> ModelMetadata.parse({})
        Traceback (most recent call last):
            ...
        drip.errors.ModelError: a plain ONNX file without DRIP metadata; write it with `drip model export`
        """
        if KEY not in properties:
            raise ModelError(f"a plain ONNX file without DRIP metadata; {EXPORT}", code="model-file-plain")
        try:
            content = json.loads(properties[KEY])
            version = content["format_version"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(
                f"the metadata is not a JSON object with a format version ({error!r}); copy the file again",
                code="model-file-damaged",
            ) from error
        # bool is an int in Python: true would pass for version 1
        if type(version) is not int or version not in range(1, FORMAT_VERSION + 1):
            raise ModelError(
                f"model file version {brief(version)} is unknown; this DRIP reads versions 1 to {FORMAT_VERSION}; "
                "upgrade DRIP on the device, or export again",
                code="model-file-version",
            )
        try:
            return cls._of(content, "input_contract" if version == 1 else "input_spec")
        except (KeyError, TypeError, ValueError, InputError, PolicyError) as error:
            raise ModelError(
                f"the metadata is invalid: {error!r}; copy the file again", code="model-file-damaged"
            ) from error

    @classmethod
    def _of(cls, content: JsonObject, spec_key: str) -> Self:
        policy, names = content["policy"], content["class_names"]
        texts = {key: content[key] or "" for key in ("digest", "parent_digest", "drip_version")}
        if not all(isinstance(text, str) for text in [*texts.values(), *names]):
            raise TypeError(f"digests and class names must be text, not {texts} and {names!r}")
        n_classes = content.get("n_classes", 0)  # the first files of version 1 do not have it
        if type(n_classes) is not int or n_classes < 0 or (names and n_classes not in {0, len(names)}):
            raise ValueError(f"n_classes is {n_classes!r}, but there are {len(names)} class names")
        # an empty digest would equal that of a policy without a model, and any such policy would pass
        if not texts["digest"] or not isinstance(content["score"], dict):
            raise ValueError(
                f"digest must not be empty and score must be an object, "
                f"not {texts['digest']!r} and {content['score']!r}"
            )
        return cls(
            digest=texts["digest"],
            parent_digest=texts["parent_digest"],
            quantization=content["quantization"],
            score=content["score"],
            spec=InputSpec.from_json(content[spec_key]),
            class_names=tuple(names),
            policy=None if policy is None else Policy.from_json(policy),
            drip_version=texts["drip_version"],
            n_classes=n_classes,
        )

    @property
    def has_maps(self) -> bool:
        """Whether the file has a score; other files serve rules that read logits or features."""
        return bool(self.score.get("method") != NO_MAPS)

    @property
    def digests(self) -> tuple[str, ...]:
        """Model digests that a policy for this file may have.

        A float32 file reproduces the scores of its parent within 1e-5 of the largest, so the parent's windows
        fit it. Eight bits change scores by whole percentage points.
        """
        is_float = self.quantization is None
        return (self.digest, self.parent_digest) if is_float and self.parent_digest else (self.digest,)

    @property
    def _before_quantisation(self) -> tuple[str, ...]:
        """Digests of the model, and of the float32 file, that a quantised file was made from."""
        details = self.quantization if isinstance(self.quantization, dict) else {}
        return self.parent_digest, str(details.get("source_digest", ""))

    def require(self, policy: Policy, *, accept_parent_windows: bool = False) -> None:
        """Check that a policy was calibrated on this file's scores.

        Args:
            policy: The policy that is to decide.
            accept_parent_windows: Accept windows that were fitted before quantisation.

        Raises:
            PolicyError: the policy belongs to another model (code ``policy-other-model``), to another
                score or input spec (``policy-other-score``), or to the float32 parent of this quantised file
                without being accepted (``policy-parent-windows``).
        """
        provenance = policy.provenance
        wanted = provenance.model_digest
        # Files without a parent have an empty parent digest, and so have policies without a model: an
        # empty digest must not match here.
        if wanted not in self.digests and wanted and wanted in self._before_quantisation:
            if not accept_parent_windows:
                raise PolicyError(
                    f"the policy's windows were fitted on the float32 model {wanted[:12]}..., and this file "
                    "is quantised; run drip calibrate with this file, or drip run with "
                    "--accept-parent-windows",
                    code="policy-parent-windows",
                )
        elif wanted not in self.digests:
            policy.require(self.digest)
        for key in _SCORE_KEYS:
            ours, theirs = self.score.get(key), provenance.score.get(key)
            # policies that were fitted on bare scores, and early files, do not have every key
            if ours is not None and theirs is not None and ours != theirs:
                raise _other_score(key, theirs, ours)
        if not provenance.input_spec:
            return
        spec = InputSpec.from_json(provenance.input_spec)
        for key in _SPEC_KEYS:
            if getattr(self.spec, key) != getattr(spec, key):
                raise _other_score(key, getattr(spec, key), getattr(self.spec, key))


def _other_score(key: str, theirs: object, ours: object) -> PolicyError:
    return PolicyError(
        f"the policy was calibrated with {key} {theirs!r}, this file has {ours!r}; "
        "run drip calibrate with this file",
        code="policy-other-score",
    )


def windows_of(policy: Policy | None, n_classes: int) -> NDArray[np.float32]:
    """Lower and upper ends of the windows as the graph stores them, shape (2, n_classes).

    The lower end is rounded up and the upper end down, so for every float32 score s the comparison in
    the graph decides as the policy does: s >= l exactly where s >= the smallest float32 that is not below
    l. Ends that are float32 scores, as calibration chooses them, do not move. Classes that never discard,
    and all classes of a rule without windows of the DRIP score, have the empty window from +inf to -inf.

    Raises:
        PolicyError: The policy has a different number of classes.

    >>> windows_of(None, 2).tolist()
    [[inf, inf], [-inf, -inf]]
    """
    ends = np.full((2, n_classes), [[np.inf], [-np.inf]], dtype=np.float32)
    if policy is None:
        return ends
    require_classes(policy, n_classes)
    rule = policy.rule
    # Windows for a different score (contrast, margin) must not be compared with the DRIP score of the graph.
    if rule.name == "drip" and rule.params.get("score", "drip") == "drip":
        for index, window in enumerate(policy.windows):
            if window.discards:
                ends[:, index] = rounded_inward(window.lower, window.upper)
    return ends


def require_classes(policy: Policy, n_classes: int) -> None:
    """Check that a policy has the model's number of classes.

    Raises:
        PolicyError: It has a different number.
    """
    if policy.n_classes != n_classes:
        raise PolicyError(
            f"the policy has {policy.n_classes} classes, but the model has {n_classes}; "
            "calibrate again with this model",
            code="policy-other-classes",
        )


def rounded_inward(lower: float, upper: float) -> tuple[np.float32, np.float32]:
    """The smallest float32 not below ``lower`` and the largest not above ``upper``.

    Rounding to the nearest would move an end outward for half of all values: a score just outside the
    policy's window would be inside the graph's.

    >>> low, high = rounded_inward(0.1, 0.1)
    >>> float(low) > 0.1 > float(high), [float(x) for x in rounded_inward(0.5, 0.75)]
    (True, [0.5, 0.75])
    """
    with np.errstate(over="ignore"):  # beyond float32 an end becomes infinite, which is the right answer
        low, high = np.float32(lower), np.float32(upper)
    if float(low) < lower:
        low = np.nextafter(low, np.float32(np.inf))
    if float(high) > upper:
        high = np.nextafter(high, np.float32(-np.inf))
    return low, high
