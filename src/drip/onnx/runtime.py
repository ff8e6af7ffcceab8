"""OnnxScorer: a model file in, observations out, on ONNX Runtime alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from drip.errors import InputError, ModelError, NonFiniteError, PolicyError
from drip.media import InputSpec
from drip.onnx.metadata import EXPORT, ModelMetadata
from drip.policy import Policy
from drip.types import BoolArray, FloatArray, JsonObject, Observations

_OUTPUTS = {
    "logits": "tensor(float)",
    "predicted_class": "tensor(int64)",
    "drip_score": "tensor(float)",
    "retain": "tensor(bool)",
}
_ON_REQUEST = {"drip_contrast": "tensor(float)", "features": "tensor(float)"}
_SCORES = {"drip_score": "drip", "drip_contrast": "contrast"}
_ERRORS_ONLY = 3


class OnnxScorer:
    """Scores inputs with a model file: logits, classes and DRIP scores in one pass.

    The runtime decides from score and logits with its policy. The graph's own ``retain`` is for other
    runtimes; :meth:`compare` counts where the two disagree.

    Args:
        path: The model file, as ``drip model export`` writes it.
        threads: Threads within one operator; more than one wait without spinning.

    Raises:
        ModelError: no file, a damaged one, one without drip's metadata or outputs, an unknown version, or
            a model that gives NaN whatever comes in.
    """

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads!r}")
        self.path = Path(path)
        self._session = _open(self.path, threads)
        try:
            self.metadata = ModelMetadata.parse(self._session.get_modelmeta().custom_metadata_map)
            self._input, self._one_by_one = _input_of(self._session, self.spec.shape)
            self._names = _outputs_of(self._session)
            self._retain: BoolArray = np.zeros(0, dtype=np.bool_)
            self._limits: tuple[FloatArray, FloatArray] | None = None
            self.n_disagreements = 0
            self.n_classes = self._try()
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    @property
    def provides(self) -> frozenset[str]:
        """``logits``, ``drip``, and where the file has them ``contrast`` and ``features``."""
        given = {"logits", *(_SCORES[name] for name in self._names if name in _SCORES)}
        return frozenset(given | {"features"} if "features" in self._names else given)

    @property
    def digest(self) -> str:
        """The model digest that policies for this file carry."""
        return self.metadata.digest

    @property
    def parent_digest(self) -> str:
        """Digest of the model that the file was made from; or empty."""
        return self.metadata.parent_digest

    @property
    def digests(self) -> tuple[str, ...]:
        """All model digests that limits for this file may carry."""
        return self.metadata.digests

    @property
    def spec(self) -> InputSpec:
        """How encoded samples become inputs."""
        return self.metadata.spec

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the logits; or empty."""
        return self.metadata.class_names

    @property
    def policy(self) -> Policy | None:
        """The policy in the file, or None."""
        return self.metadata.policy

    @property
    def layer(self) -> str:
        """Name of the target layer."""
        return str(self.metadata.score.get("layer", ""))

    @property
    def score_definition(self) -> JsonObject:
        """What the score is, for a policy's provenance."""
        return self.metadata.score

    @property
    def graph_retain(self) -> BoolArray:
        """The graph's own decisions on the last batch, shape (n,)."""
        return self._retain

    def require(self, policy: Policy, *, accept_parent_limits: bool = False) -> None:
        """Refuse a policy that was not calibrated on this file's scores.

        Raises:
            PolicyError: as :meth:`ModelMetadata.require`; or another number of classes.
        """
        self.metadata.require(policy, accept_parent_limits=accept_parent_limits)
        if policy.n_classes != self.n_classes:
            raise PolicyError(
                f"a policy for {self.n_classes} classes is needed, got one for {policy.n_classes}; "
                "calibrate again with this file"
            )

    def compare(self, policy: Policy | None) -> None:
        """From now on count in :attr:`n_disagreements` where the graph and this policy decide unalike.

        Only windows of the DRIP score are in the graph; for other rules, or None, nothing is counted.
        """
        self._limits = None
        if policy is None or policy.rule.name != "drip" or policy.rule.params.get("score") != "drip":
            return
        lower, upper = ([getattr(window, side) for window in policy.windows] for side in ("lower", "upper"))
        self._limits = np.array(lower), np.array(upper)

    def score(self, batch: NDArray[np.float32]) -> Observations:
        r"""Scores, classes and logits of a batch, as if each sample came alone.

        Args:
            batch: Inputs, shape (N, \*input shape), floating point, finite; N may be 0.

        Raises:
            InputError: another shape or type, or not finite.
            NonFiniteError: a logit or score is NaN or infinite; the message names the rows.
            ModelError: the runtime fails.
        """
        found = self._run(self._checked(batch))
        columns = {_SCORES[name]: found[name].astype(np.float64) for name in found if name in _SCORES}
        logits = found["logits"].astype(np.float64)
        for name, column in {"logits": logits, **columns}.items():
            _require_finite(name, column)
        features = found.get("features")
        if features is not None:
            _require_finite("features", features)
        self._retain = found["retain"]
        observations = Observations(found["predicted_class"], logits, columns, "drip", features)
        if self._limits is not None:
            lower, upper = (limits[observations.classes] for limits in self._limits)
            decided = (observations.scores < lower) | (observations.scores > upper)
            self.n_disagreements += int((decided != self._retain).sum())
        return observations

    def _checked(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        shape = self.spec.shape
        if not isinstance(batch, np.ndarray) or batch.dtype.kind != "f" or batch.shape[1:] != shape:
            got = (
                f"{batch.dtype} of shape {batch.shape}"
                if isinstance(batch, np.ndarray)
                else type(batch).__name__
            )
            raise InputError(f"a float batch of shape {('N', *shape)} is needed, got {got}")
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # what is too large for float32 is refused as infinite
            values = np.ascontiguousarray(batch, dtype=np.float32)
            total = float(values.sum())
        if math.isfinite(total):  # one sum finds all that is not finite; only a hit is looked at closely
            return values
        rows = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if rows.any():
            raise InputError(f"inputs must be finite, got NaN or infinity in rows {_first_rows(rows)}")
        return values

    def _run(self, values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        step = 1 if self._one_by_one else max(1, len(values))
        starts = range(0, len(values), step)
        parts = [self._session_run(values[start : start + step]) for start in starts]
        if not parts:  # the shapes of no rows, from one row
            parts = [[part[:0] for part in self._session_run(np.zeros((1, *values.shape[1:]), np.float32))]]
        columns = parts[0] if len(parts) == 1 else [np.concatenate(part) for part in zip(*parts, strict=True)]
        return dict(zip(self._names, columns, strict=True))

    def _session_run(self, values: NDArray[np.float32]) -> list[NDArray[Any]]:
        try:
            found: list[NDArray[Any]] = self._session.run(list(self._names), {self._input: values})
        except Exception as error:  # the runtime raises types of its own
            raise ModelError(
                f"the model must run on inputs of shape {values.shape}, it failed: {error}; export it again"
            ) from error
        if any(len(part) != len(values) for part in found):
            shapes = {name: part.shape for name, part in zip(self._names, found, strict=True)}
            raise ModelError(f"outputs with {len(values)} rows are needed, got {shapes}; {EXPORT}")
        return found

    def _try(self) -> int:
        """Run zeros and noise before any sample is at stake; the number of classes."""
        noise = np.random.default_rng(0).normal(size=(1, *self.spec.shape)).astype(np.float32)
        found = self._run(np.concatenate([np.zeros_like(noise), noise]))
        logits, scores = found["logits"], found["drip_score"]
        if logits.ndim != 2 or logits.shape[1] < 2 or scores.ndim != 1:
            raise ModelError(
                f"logits of shape (N, n_classes) and scores of shape (N,) are needed, got {logits.shape[1:]} "
                f"and {scores.shape[1:]} for each input; {EXPORT}"
            )
        if self.metadata.n_classes not in {0, logits.shape[1]}:
            raise ModelError(f"{self.metadata.n_classes} logits are needed, got {logits.shape[1]}; {EXPORT}")
        names = self.class_names
        if names and len(names) != logits.shape[1]:
            raise ModelError(f"{logits.shape[1]} class names are needed, got {len(names)}; {EXPORT}")
        if not (np.isfinite(logits).all(axis=1) & np.isfinite(scores)).any():
            raise ModelError(
                "finite weights are needed, got a model that gives NaN or infinity for zeros and for noise; "
                "export a sound checkpoint"
            )
        return int(logits.shape[1])


def _open(path: Path, threads: int) -> Any:
    if not path.is_file():
        raise ModelError(f"a model file is needed, got no file {path}; {EXPORT}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a board has other work
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises types of its own
        raise ModelError(
            f"a complete ONNX file is needed at {path}, got one that fails: {error}; copy it anew; {EXPORT}"
        ) from error


def _input_of(session: Any, shape: tuple[int, ...]) -> tuple[str, bool]:
    """Name of the input, and whether it takes one row at a time."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        raise ModelError(f"one float32 input is needed, got {[(i.name, i.type) for i in inputs]}; {EXPORT}")
    batch, *sides = inputs[0].shape
    if len(sides) != len(shape) or any(
        isinstance(side, int) and side != wanted for side, wanted in zip(sides, shape, strict=True)
    ):
        raise ModelError(f"an input of shape {shape} is needed, as the contract says, got {sides}; {EXPORT}")
    if isinstance(batch, int) and batch != 1:
        raise ModelError(f"a dynamic batch axis, or one of 1, is needed, got {batch}; {EXPORT}")
    return inputs[0].name, batch == 1


def _outputs_of(session: Any) -> tuple[str, ...]:
    types = {output.name: output.type for output in session.get_outputs()}
    for name, kind in _OUTPUTS.items():
        if types.get(name) != kind:
            raise ModelError(f"an output {name!r} of type {kind} is needed, got {types.get(name)}; {EXPORT}")
    return (*_OUTPUTS, *(name for name, kind in _ON_REQUEST.items() if types.get(name) == kind))


def _require_finite(what: str, values: NDArray[np.floating[Any]]) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        rows = _first_rows(~(finite if finite.ndim == 1 else finite.all(axis=1)))
        raise NonFiniteError(
            f"{what} must be finite, got NaN or infinity in rows {rows}; look at these inputs' scale"
        )


def _first_rows(bad: Any) -> str:
    rows = np.flatnonzero(bad)
    listed = ", ".join(str(row) for row in rows[:8])
    return listed if len(rows) <= 8 else f"{listed} and {len(rows) - 8} more"
