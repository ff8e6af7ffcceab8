"""The policy: a calibrated rule with its provenance, as a readable JSON file.

A policy is all that a device needs besides the model. It names its rule with arguments and state, and records
the model, score and input that it was calibrated for, so it is never applied to others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError, PolicyError, brief
from drip.files import canonical_json, expect_types, sha256_hex, write_atomically
from drip.rules import BaseRule, restore_rule
from drip.rules.windows import DripRule
from drip.types import BoolArray, JsonObject
from drip.windows import (
    MIN_CLASS_COUNT,
    Method,
    Window,
    check_fraction,
    check_scores,
    complement,
    is_inside,
    sort_by_class,
    windows_from_json,
)

FORMAT = "drip-policy"
FORMAT_VERSION = 2
_N_BINS = 40

# Types of the entries that DRIP itself writes; a list means a list of that type. Other entries are kept
# unread, so a policy may carry its owner's notes.
_SCORE_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("name", "method", "heatmap", "layer"), str),
    "contrast": bool,
    "layer_shape": [int],
}
_SPEC_TYPES: Mapping[str, Any] = {
    "shape": [int],
    "resize": str,
    "mean": [float],
    "std": [float],
    **dict.fromkeys(("sample_rate_hz", "max_values"), int),
}


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A rule by name, with everything needed to rebuild it.

    Attributes:
        name: Name of the rule, such as ``drip`` or ``margin``.
        params: Arguments of its constructor.
        state: What calibration found: windows, thresholds.
        state_version: Version of the layout of ``state``.
    """

    name: str
    params: JsonObject
    state: JsonObject
    state_version: int = 1


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a policy was calibrated on, and for.

    Attributes:
        model_digest: SHA-256 over the model's weights; the policy is valid for this model only.
        layer: Name of the target layer.
        score: Definition of the scores: method, heatmap, contrast.
        data: Description of the calibration data.
        n_samples: Number of calibration samples.
        input_spec: How encoded samples become model inputs; see :class:`drip.media.InputSpec`.
        class_names: Names of the classes, in the order of the logits; or empty.
    """

    model_digest: str = ""
    layer: str = ""
    score: JsonObject = field(default_factory=dict)
    data: str = ""
    n_samples: int = 0
    input_spec: JsonObject = field(default_factory=dict)
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of calibration scores in equal bins between the smallest and the largest score.

    Attributes:
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        counts: Scores per bin; empty for a class without scores.
    """

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Policy:
    """A calibrated decision rule with its provenance.

    Attributes:
        rule: The rule by name, with its arguments and what calibration found.
        n_classes: Number of classes of the model.
        provenance: Model, layer, score definition, data.
        histograms: Calibration scores per class; or empty for rules without scores.

    >>> scores, classes = np.linspace(0.0, 1.0, 200), np.repeat([0, 1], 100)
    >>> policy = Policy.fit(scores, classes, n_classes=2, retention=0.6)
    >>> policy.retains(np.array([0.1, 0.49]), np.array([0, 0])).tolist()
    [False, True]
    """

    rule: RuleSpec
    n_classes: int
    provenance: Provenance = field(default_factory=Provenance)
    histograms: tuple[Histogram, ...] = ()

    @classmethod
    def fit(
        cls,
        scores: NDArray[np.floating[Any]],
        classes: NDArray[np.integer[Any]],
        *,
        n_classes: int,
        retention: float = 0.6,
        method: Method = "min_std",
        min_class_count: int = MIN_CLASS_COUNT,
        provenance: Provenance | Mapping[str, Any] | None = None,
    ) -> Self:
        """Calibrate the rule ``drip``: find the typical range of scores of every class.

        Args:
            scores: DRIP scores of the calibration set, shape (n,), finite.
            classes: Predicted classes, shape (n,), integers in [0, n_classes).
            n_classes: Number of classes, at least 2.
            retention: Keep rate of every class, in (0, 1): one minus the paper's DPW.
            method: ``min_std`` (section III-A) or ``histogram_peak`` (Algorithm 1).
            min_class_count: A class with fewer scores uses the window of all classes together.
            provenance: Origin of the scores and the model.

        Raises:
            InputError: an argument is outside its range.
            TypeError: ``provenance`` has a name that :class:`Provenance` does not have.

        References:
            DRIP paper, section III-A, equations 6 and 7, Algorithm 1.
        """
        check_fraction("retention", retention)
        retention = float(str(retention))  # np.float32(0.6) means 0.6, as it is printed
        if not isinstance(n_classes, (int, np.integer)):
            raise InputError(f"n_classes must be an integer, got {n_classes!r}")
        n_classes = int(n_classes)
        parts = sort_by_class(scores, classes, n_classes)
        rule = DripRule(retention, method, min_class_count).calibrate_sorted(parts)
        if not isinstance(provenance, Provenance):
            provenance = _provenance({"n_samples": len(scores), **(provenance or {})})
        return cls.of(rule, n_classes=n_classes, provenance=provenance, histograms=class_histograms(parts))

    @classmethod
    def of(
        cls,
        rule: BaseRule,
        *,
        n_classes: int,
        provenance: Provenance | None = None,
        histograms: tuple[Histogram, ...] = (),
    ) -> Self:
        """The policy of a calibrated rule in its present state."""
        spec = RuleSpec(rule.name, rule.params, rule.state(), rule.state_version)
        return cls(spec, n_classes, provenance or Provenance(), histograms)

    def to_rule(self) -> BaseRule:
        """The rule, ready to decide; each call builds a new one.

        Raises:
            PolicyError: the rule or an argument is unknown, or the state has a different version.
        """
        return restore_rule(self.rule.name, self.rule.params, self.rule.state, self.rule.state_version)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """One window per class.

        Raises:
            PolicyError: the rule has no windows.
        """
        if "windows" not in self.rule.state:
            raise PolicyError(
                f"the rule {self.rule.name!r} has no windows; calibrate the rule 'drip' instead",
                code="policy-no-windows",
            )
        return windows_from_json(self.rule.state["windows"])

    def retains(self, scores: NDArray[np.floating[Any]], classes: NDArray[np.integer[Any]]) -> BoolArray:
        """True where a sample is kept: its score lies outside the closed window of its class (eq. 9).

        Args:
            scores: DRIP scores, shape (n,), finite.
            classes: Predicted classes, shape (n,).

        Raises:
            InputError: NaN, a class out of range, unequal shapes.
            PolicyError: the rule has no windows.

        References:
            DRIP paper, section III-B, equation 9.
        """
        values, labels = check_scores(scores, classes, self.n_classes)
        lower = np.array([window.lower for window in self.windows])
        upper = np.array([window.upper for window in self.windows])
        return ~is_inside(values, labels, lower, upper)

    def require(self, model_digest: str) -> None:
        """Reject a model that this policy was not calibrated for.

        Args:
            model_digest: SHA-256 of the model's weights, from :func:`drip.scoring.model_digest`.

        Raises:
            PolicyError: the digests differ.
        """
        if self.provenance.model_digest != model_digest:
            raise PolicyError(
                f"the policy was calibrated for the model {self.provenance.model_digest[:12] or '(none)'}, "
                f"but this is {model_digest[:12]}; calibrate again with this model",
                code="policy-other-model",
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the policy's content, hexadecimal; stores record it beside every decision."""
        return sha256_hex(canonical_json(self.to_json()))

    @property
    def family(self) -> str:
        """SHA-256 of the policy without the answers for populations, hexadecimal.

        A run whose policy changes only in its answers continues with the state that it has.
        """
        params = {name: value for name, value in self.rule.params.items() if name != "answers"}
        return sha256_hex(canonical_json(replace(self, rule=replace(self.rule, params=params)).to_json()))

    def to_json(self) -> JsonObject:
        """The content of the policy file."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "n_classes": self.n_classes,
            "rule": asdict(self.rule),
            "provenance": {
                **asdict(self.provenance),
                "class_names": list(self.provenance.class_names),
            },
            "histograms": [
                {"low": histogram.low, "high": histogram.high, "counts": list(histogram.counts)}
                for histogram in self.histograms
            ],
        }

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """A policy from the content of a policy file.

        Raises:
            PolicyError: not a policy, an unknown format version, or a missing or malformed part.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise PolicyError(
                f"not a policy: expected a JSON object with format {FORMAT!r}, got {brief(content)}"
            )
        version = content.get("format_version")
        if type(version) is not int or version not in (1, FORMAT_VERSION):
            raise PolicyError(
                f"policy format version {brief(version)} is unknown; this DRIP reads versions 1 and "
                f"{FORMAT_VERSION}; upgrade DRIP or calibrate again",
                code="policy-version",
            )
        try:
            text = canonical_json(content)  # NaN and infinity are not allowed
            json.loads(
                text, parse_int=lambda digits: float(int(digits))
            )  # anywhere, nor are integers beyond float64
            digest = sha256_hex(text)
            if version == 1:
                content = _from_version_1(content)
            expect_types("policy", content, n_classes=int, rule=dict, provenance=dict, histograms=list)
            expect_types("rule", content["rule"], name=str, params=dict, state=dict, state_version=int)
            expect_types(
                "provenance",
                content["provenance"],
                **dict.fromkeys(("model_digest", "layer", "data"), str),
                **dict.fromkeys(("score", "input_spec"), dict),
                n_samples=int,
                class_names=list,
            )
            for name, types in (("score", _SCORE_TYPES), ("input_spec", _SPEC_TYPES)):
                part = content["provenance"][name]
                expect_types(name, part, **{key: kind for key, kind in types.items() if key in part})
            for part in content["histograms"]:
                expect_types("histogram", part, low=float, high=float, counts=list)
            provenance = _provenance(content["provenance"])
            histograms = tuple(
                Histogram(float(part["low"]), float(part["high"]), tuple(part["counts"]))
                for part in content["histograms"]
            )
            policy = cls(RuleSpec(**content["rule"]), content["n_classes"], provenance, histograms)
            _check(policy)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PolicyError(f"the policy is invalid: {error!r}; calibrate again") from error
        if version == 1:
            # A store remembers policies by digest: a policy in the first format keeps its old digest.
            vars(policy)["digest"] = digest
        return policy

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON; the file is replaced in one step.

        Raises:
            DripError: the folder cannot be written.
        """
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        write_atomically(Path(path), text.encode() + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a policy file.

        Raises:
            PolicyError: the file is missing, truncated, not a policy or of an unknown version.
        """
        try:
            content = json.loads(Path(path).read_bytes())
        except FileNotFoundError as error:
            raise PolicyError(f"{path} does not exist; check the path", code="path-missing") from error
        except (OSError, ValueError, RecursionError) as error:
            raise PolicyError(
                f"{path}: cannot be read ({error}); copy it again or calibrate again"
            ) from error
        try:
            return cls.from_json(content)
        except PolicyError as error:
            raise error.within(str(path)) from error


def class_histograms(parts: Sequence[NDArray[np.float64]]) -> tuple[Histogram, ...]:
    """Histogram of the sorted scores of each class, at most 40 bins (the paper's Fig. 2).

    >>> class_histograms([np.array([0.0, 0.5, 1.0]), np.array([])])[1]
    Histogram(low=0.0, high=0.0, counts=())
    """
    histograms = []
    for part in parts:
        if not len(part):
            histograms.append(Histogram(0.0, 0.0, ()))
            continue
        # Halved, so the range of very large scores does not overflow float64.
        edges = 2.0 * np.linspace(part[0] / 2.0, part[-1] / 2.0, _N_BINS + 1)
        ranks = np.searchsorted(part, edges, side="left")
        ranks[0], ranks[-1] = 0, len(part)
        counts = np.diff(ranks) if part[-1] > part[0] else np.array([len(part)])
        histograms.append(Histogram(float(part[0]), float(part[-1]), tuple(counts.tolist())))
    return tuple(histograms)


def _from_version_1(content: Mapping[str, Any]) -> JsonObject:
    """The content of a policy of format version 1 under the present names."""
    rule, provenance = dict(content["recipe"]), dict(content["provenance"])
    params = dict(rule["params"])
    if "discard_fraction" in params:
        check_fraction("discard_fraction", params["discard_fraction"])
        params = {"retention": complement(params.pop("discard_fraction")), **params}
    rule["params"] = params
    provenance["input_spec"] = provenance.pop("input_contract")
    return {**content, "rule": rule, "provenance": provenance}


def _check(policy: Policy) -> None:
    if policy.n_classes < 2:
        raise ValueError(f"n_classes is {policy.n_classes}")
    if policy.histograms and len(policy.histograms) != policy.n_classes:
        raise ValueError(f"{len(policy.histograms)} histograms for {policy.n_classes} classes")
    names = policy.provenance.class_names
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names are {brief(names)}")
    if names and len(names) != policy.n_classes:
        raise ValueError(f"{len(names)} class_names for {policy.n_classes} classes")
    if policy.provenance.n_samples < 0:
        raise ValueError(f"n_samples is {policy.provenance.n_samples}")
    for histogram in policy.histograms:
        if not all(type(count) is int and count >= 0 for count in histogram.counts):
            raise ValueError(f"counts are {brief(histogram.counts)}")
        if not histogram.low <= histogram.high:
            raise ValueError(f"a histogram ranges from {histogram.low} to {histogram.high}")
    if "windows" in policy.rule.state and len(policy.windows) != policy.n_classes:
        raise ValueError(f"{len(policy.windows)} windows for {policy.n_classes} classes")


def _provenance(content: Mapping[str, Any]) -> Provenance:
    return Provenance(**{**content, "class_names": tuple(content.get("class_names", ()))})
