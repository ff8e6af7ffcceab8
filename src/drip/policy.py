"""The policy: what a device needs to decide, as a readable JSON file with its provenance.

Knows windows and file formats, but no selection rule, model or store: rules are named by a recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import inf, isfinite
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError, PolicyError, brief
from drip.files import canonical_json, sha256_hex, write_atomically
from drip.thresholds import (
    MIN_CLASS_COUNT,
    Method,
    Window,
    check_fraction,
    check_scores,
    fit_windows,
    sort_by_class,
)
from drip.types import BoolArray, JsonObject

FORMAT = "drip-policy"
FORMAT_VERSION = 1
_N_BINS = 40
_SCORE_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("name", "method", "heatmap", "layer"), str),
    "contrast": bool,
    "layer_shape": [int],
}
_CONTRACT_TYPES: Mapping[str, Any] = {
    "shape": [int],
    "resize": str,
    "mean": [float],
    "std": [float],
    **dict.fromkeys(("sample_rate_hz", "max_values"), int),
}
"""What drip's own entries are, a list for lists of one type; any others are kept as they stand."""


class _HasState(Protocol):
    name: ClassVar[str]
    state_version: ClassVar[int]

    @property
    def params(self) -> JsonObject: ...
    def state(self) -> JsonObject: ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """A selection rule by name, with everything that rebuilds it.

    Attributes:
        name: Name of the selector, such as ``drip`` or ``margin``.
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
    """Where a policy comes from.

    Attributes:
        model_digest: SHA-256 over the model's weights; the policy serves this model only.
        layer: Name of the target layer.
        score: Definition of the scores: method, heatmap, contrast.
        data: Description of the calibration data.
        n_samples: Number of calibration samples.
        input_contract: How encoded samples become model inputs; see :class:`drip.media.InputContract`.
        class_names: Names of the classes, in the order of the logits; or empty.
    """

    model_digest: str = ""
    layer: str = ""
    score: JsonObject = field(default_factory=dict)
    data: str = ""
    n_samples: int = 0
    input_contract: JsonObject = field(default_factory=dict)
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
        recipe: The rule and what calibration found.
        n_classes: Number of classes of the model.
        provenance: Model, layer, score definition, data.
        histograms: Calibration scores per class; or empty for rules without scores.

    >>> scores, classes = np.linspace(0.0, 1.0, 200), np.repeat([0, 1], 100)
    >>> policy = Policy.fit(scores, classes, n_classes=2, discard_fraction=0.4)
    >>> policy.retains(np.array([0.1, 0.49]), np.array([0, 0])).tolist()
    [False, True]
    """

    recipe: Recipe
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
        discard_fraction: float,
        method: Method = "min_std",
        min_class_count: int = MIN_CLASS_COUNT,
        provenance: Provenance | Mapping[str, Any] | None = None,
    ) -> Self:
        """A DRIP policy: the typical range of scores of every class.

        Args:
            scores: DRIP scores of the calibration set, shape (n,), finite.
            classes: Predicted classes, shape (n,), integers in [0, n_classes).
            n_classes: Number of classes, at least 2.
            discard_fraction: Share of each class to discard, in (0, 1); the paper's DPW.
            method: ``min_std`` (section III-A) or ``histogram_peak`` (Algorithm 1).
            min_class_count: Scores below which a class never discards.
            provenance: Where scores and model come from.

        Raises:
            InputError: an argument is outside its range.
            TypeError: ``provenance`` has a name that :class:`Provenance` does not have.

        References:
            DRIP paper, section III-A, equations 6 and 7, Algorithm 1.
        """
        check_fraction("discard_fraction", discard_fraction)
        discard_fraction = float(str(discard_fraction))  # np.float32(0.4) means the 0.4 that prints
        if not isinstance(n_classes, (int, np.integer)):
            raise InputError(f"n_classes must be an integer, got {n_classes!r}")
        n_classes = int(n_classes)
        parts = sort_by_class(scores, classes, n_classes)
        windows = fit_windows(
            parts, fraction=discard_fraction, method=method, min_class_count=min_class_count
        )
        recipe = Recipe(
            name="drip",
            params={
                "discard_fraction": discard_fraction,
                "method": method,
                "score": "drip",
                "min_class_count": min_class_count,
            },
            state={"windows": windows_to_json(windows)},
        )
        if not isinstance(provenance, Provenance):
            provenance = _provenance({"n_samples": len(scores), **(provenance or {})})
        return cls(recipe, n_classes, provenance, class_histograms(parts))

    @classmethod
    def of(
        cls,
        selector: _HasState,
        *,
        n_classes: int,
        provenance: Provenance | None = None,
        histograms: tuple[Histogram, ...] = (),
    ) -> Self:
        """The policy that holds a calibrated selector as it stands."""
        recipe = Recipe(selector.name, selector.params, selector.state(), selector.state_version)
        return cls(recipe, n_classes, provenance or Provenance(), histograms)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """One window per class.

        Raises:
            PolicyError: the recipe is of a rule without windows.
        """
        if "windows" not in self.recipe.state:
            raise PolicyError(
                f"a policy with windows is needed, got one of the rule {self.recipe.name!r}; "
                "calibrate the rule 'drip' instead"
            )
        return windows_from_json(self.recipe.state["windows"])

    def retains(self, scores: NDArray[np.floating[Any]], classes: NDArray[np.integer[Any]]) -> BoolArray:
        """True where a sample is kept: its score lies outside the closed window of its class (eq. 9).

        Args:
            scores: DRIP scores, shape (n,), finite.
            classes: Predicted classes, shape (n,).

        Raises:
            InputError: NaN, a class out of range, unequal shapes.
            PolicyError: the recipe is of a rule without windows.

        References:
            DRIP paper, section III-B, equation 9.
        """
        values, labels = check_scores(scores, classes, self.n_classes)
        lower = np.array([window.lower for window in self.windows])[labels]
        upper = np.array([window.upper for window in self.windows])[labels]
        return (values < lower) | (values > upper)

    def require(self, model_digest: str) -> None:
        """Refuse a model that this policy was not calibrated for.

        Args:
            model_digest: SHA-256 of the model's weights, from :func:`drip.scoring.model_digest`.

        Raises:
            PolicyError: the digests differ.
        """
        if self.provenance.model_digest != model_digest:
            raise PolicyError(
                f"a policy for the model {model_digest[:12]}... is needed, got one for "
                f"{self.provenance.model_digest[:12] or 'no model'}...; calibrate again with this model"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the policy's content, hexadecimal; stores record it beside every decision."""
        return sha256_hex(canonical_json(self.to_json()))

    def to_json(self) -> JsonObject:
        """The content of the policy file."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "n_classes": self.n_classes,
            "recipe": asdict(self.recipe),
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
            raise PolicyError(f"a JSON object with format {FORMAT!r} is needed, got {brief(content)}")
        version = content.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise PolicyError(
                f"policy format version {FORMAT_VERSION} is needed, got {brief(version)}; "
                "install the version of drip that wrote the file or calibrate again"
            )
        try:
            text = canonical_json(content)  # NaN and infinity are nowhere allowed,
            json.loads(text, parse_int=lambda digits: float(int(digits)))  # nor integers beyond float64
            _expect("policy", content, n_classes=int, recipe=dict, provenance=dict, histograms=list)
            _expect("recipe", content["recipe"], name=str, params=dict, state=dict, state_version=int)
            _expect(
                "provenance",
                content["provenance"],
                **dict.fromkeys(("model_digest", "layer", "data"), str),
                **dict.fromkeys(("score", "input_contract"), dict),
                n_samples=int,
                class_names=list,
            )
            for name, types in (("score", _SCORE_TYPES), ("input_contract", _CONTRACT_TYPES)):
                part = content["provenance"][name]
                _expect(name, part, **{key: kind for key, kind in types.items() if key in part})
            for part in content["histograms"]:
                _expect("histogram", part, low=float, high=float, counts=list)
            provenance = _provenance(content["provenance"])
            histograms = tuple(
                Histogram(float(part["low"]), float(part["high"]), tuple(part["counts"]))
                for part in content["histograms"]
            )
            policy = cls(Recipe(**content["recipe"]), content["n_classes"], provenance, histograms)
            _check(policy)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PolicyError(
                f"a complete policy is needed, got one with a bad part: {error!r}; calibrate again"
            ) from error
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
        except (OSError, ValueError, RecursionError) as error:
            raise PolicyError(
                f"a readable policy file is needed at {path}, got: {error}; calibrate again or copy it anew"
            ) from error
        try:
            return cls.from_json(content)
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from error


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
        # Halves, so that the range of scores near the limits of float64 does not overflow.
        edges = 2.0 * np.linspace(part[0] / 2.0, part[-1] / 2.0, _N_BINS + 1)
        ranks = np.searchsorted(part, edges, side="left")
        ranks[0], ranks[-1] = 0, len(part)
        counts = np.diff(ranks) if part[-1] > part[0] else np.array([len(part)])
        histograms.append(Histogram(float(part[0]), float(part[-1]), tuple(counts.tolist())))
    return tuple(histograms)


def windows_to_json(windows: Sequence[Window]) -> list[JsonObject]:
    """Windows as a rule's state has them; the limits of a class that never discards are null."""
    return [
        {
            **asdict(window),
            "lower": window.lower if window.discards else None,
            "upper": window.upper if window.discards else None,
        }
        for window in windows
    ]


def windows_from_json(parts: Sequence[JsonObject]) -> tuple[Window, ...]:
    """The windows of :func:`windows_to_json`."""
    if not isinstance(parts, list):
        raise TypeError(f"windows are {brief(parts)}, not a list")
    return tuple(_window(index, part) for index, part in enumerate(parts))


def _window(index: int, part: JsonObject) -> Window:
    keeps_all = part["never_because"] is not None
    name = f"window of class {index}"
    _expect(
        name,
        part,
        **dict.fromkeys(("lower", "upper"), type(None) if keeps_all else float),
        **dict.fromkeys(("calibration_discard", "expected_discard", "scale"), float),
        n=int,
        never_because=str if keeps_all else type(None),
    )
    numbers = {key: float(part[key]) for key in ("calibration_discard", "expected_discard", "scale")}
    lower, upper = (inf, -inf) if keeps_all else (float(part["lower"]), float(part["upper"]))
    columns: JsonObject = {**part, **numbers, "lower": lower, "upper": upper}
    window = Window(**columns)
    if window.n < 0:
        raise ValueError(f"n of {name} is {window.n}")
    if not keeps_all and not -inf < window.lower <= window.upper < inf:
        raise ValueError(f"{name} is {window.lower} to {window.upper}")
    if not all(map(isfinite, numbers.values())):
        raise ValueError(f"{name} has {numbers}, which must be finite")
    return window


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
            raise ValueError(f"a histogram is from {histogram.low} to {histogram.high}")
    if "windows" in policy.recipe.state and len(policy.windows) != policy.n_classes:
        raise ValueError(f"{len(policy.windows)} windows for {policy.n_classes} classes")


def _provenance(content: Mapping[str, Any]) -> Provenance:
    return Provenance(**{**content, "class_names": tuple(content.get("class_names", ()))})


def _expect(what: str, part: Any, **types: Any) -> None:
    """Refuse entries of another type; ``[int]`` stands for a list of integers."""
    if not isinstance(part, dict):
        raise TypeError(f"{what} is {brief(part)}")
    for key, kind in types.items():
        value = part[key]
        of_list = isinstance(kind, list)
        fits = _is_list(value, kind[0]) if of_list else _is_of(value, kind)
        if not fits:
            wanted = f"a list of {kind[0].__name__}" if of_list else kind.__name__
            raise TypeError(f"{key} of {what} is {brief(value)}, not {wanted}")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(_is_of(item, kind) for item in value)


def _is_of(value: Any, kind: type) -> bool:
    # JSON writes 1.0 as 1 in other languages; bool is an int in Python alone.
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
