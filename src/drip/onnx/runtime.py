"""OnnxScorer: runs a model file on a device, with ONNX Runtime and NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from drip.errors import InputError, ModelError, NonFiniteError
from drip.media import InputSpec, trial_inputs
from drip.onnx import integrity
from drip.onnx.integrity import KnownAnswers, require_answers
from drip.onnx.metadata import EXPORT, LOWER, UPPER, ModelMetadata, require_classes
from drip.policy import Policy
from drip.types import BoolArray, FloatArray, JsonObject, Observations
from drip.windows import is_inside

_OUTPUTS = {
    "logits": "tensor(float)",
    "predicted_class": "tensor(int64)",
    "drip_score": "tensor(float)",
    "retain": "tensor(bool)",
}
_ON_REQUEST = {"drip_contrast": "tensor(float)", "features": "tensor(float)"}
_SCORES = {"drip_score": "drip", "drip_contrast": "contrast"}
_ERRORS_ONLY = 3  # ONNX Runtime's log level; lower levels warn about what an exported graph does on purpose


class OnnxScorer:
    """Scores inputs with a model file: logits, classes and DRIP scores in one pass.

    The policy's rule decides from the score and the logits, exactly as with a PyTorch model. The
    graph's own ``retain`` is for other runtimes; :meth:`compare` counts where the two differ.

    Args:
        path: The model file, as ``drip model export`` writes it.
        threads: Threads within one operator. Waiting threads sleep instead of spinning.
        providers: ONNX Runtime's execution providers by name, in the order of preference; empty uses the CPU.
            What a provider cannot compute, the CPU computes.

    Raises:
        ModelError: the file does not exist, is damaged, has no DRIP metadata or outputs, has an unknown
            version, or returns NaN for every input.
    """

    def __init__(self, path: str | Path, *, threads: int = 1, providers: Sequence[str] = ()) -> None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, not {threads!r}")
        self.path, self.threads, self.providers = Path(path), threads, tuple(providers)
        self._session = _open(self.path, threads, self.providers)
        try:
            properties = self._session.get_modelmeta().custom_metadata_map
            self.metadata = ModelMetadata.parse(properties)
            self._input, self._one_by_one = _input_of(self._session, self.spec.shape)
            self._names = _outputs_of(self._session)
            self._scores = [name for name in self._names if name in _SCORES] if self.metadata.has_maps else []
            self._retain: BoolArray = np.zeros(0, dtype=np.bool_)
            self._windows: tuple[FloatArray, FloatArray] | None = None
            self.n_disagreements = 0
            known = integrity.known_in(properties, self.spec.shape)
            self._require_digest()
            self.n_classes = self._try(known)
        # the context is added here, once, for everything that can be wrong with a file
        except ModelError as error:
            raise error.within(str(path)) from error

    @property
    def provides(self) -> frozenset[str]:
        """``logits``, ``drip``, and where the file has them ``contrast`` and ``features``."""
        given = {"logits", *(_SCORES[name] for name in self._scores)}
        return frozenset(given | {"features"} if "features" in self._names else given)

    @property
    def digest(self) -> str:
        """The model digest in policies for this file."""
        return self.metadata.digest

    @property
    def parent_digest(self) -> str:
        """Digest of the model that the file was made from; or empty."""
        return self.metadata.parent_digest

    @property
    def digests(self) -> tuple[str, ...]:
        """All model digests that a policy for this file may have."""
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

    def require(self, policy: Policy, *, accept_parent_windows: bool = False) -> None:
        """Check that a policy was calibrated on this file's scores.

        Raises:
            PolicyError: as :meth:`ModelMetadata.require`; or a different number of classes.
        """
        self.metadata.require(policy, accept_parent_windows=accept_parent_windows)
        require_classes(policy, self.n_classes)

    def compare(self, policy: Policy | None) -> None:
        """From now on count in :attr:`n_disagreements` where graph and policy decide differently.

        A device that reads only ``retain`` would then decide differently from this one: the windows in
        the file are older than the policy. Only windows of the DRIP score are in a graph; for other rules,
        and for None, nothing is counted.
        """
        self._windows = None
        if policy is None or policy.rule.name != "drip" or policy.rule.params.get("score") != "drip":
            return
        lower, upper = ([getattr(window, side) for window in policy.windows] for side in ("lower", "upper"))
        self._windows = np.array(lower), np.array(upper)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: sessions cannot be pickled, so the copy opens the file again."""
        return {name: value for name, value in vars(self).items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file that the pickled scorer ran.

        Raises:
            ModelError: the file does not exist here, or is another one.
        """
        fresh = type(self)(state["path"], threads=state["threads"], providers=state["providers"])
        if fresh.digest != state["metadata"].digest:
            raise ModelError(
                f"{fresh.path}: another model has replaced the file since this scorer was pickled; pickle a new scorer",
                code="model-file-damaged",
            )
        vars(self).update(vars(fresh) | state)

    def score(self, batch: NDArray[np.float32]) -> Observations:
        r"""Scores, classes and logits of a batch; each sample is scored on its own.

        Args:
            batch: Inputs, shape (N, \*input shape), floating point, finite; N may be 0.

        Raises:
            InputError: the shape or type is wrong, or a value is not finite.
            NonFiniteError: a logit or score is NaN or infinite; the message names the rows.
            ModelError: ONNX Runtime fails.
        """
        found = self._run(self._checked(batch))
        # Policies compare in float64, so Python and a replay from the store make the same decisions.
        columns = {_SCORES[name]: found[name].astype(np.float64) for name in self._scores}
        logits = found["logits"].astype(np.float64)
        for name, column in {"logits": logits, **columns}.items():
            _require_finite(name, column)
        features = found.get("features")
        if features is not None:
            _require_finite("features", features)
        self._retain = found["retain"]
        observations = Observations(found["predicted_class"], logits, columns, "drip", features)
        if self._windows is not None:
            decided = ~is_inside(observations.scores, observations.classes, *self._windows)
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
            raise InputError(
                f"the batch is {got}, but the model expects floats of shape {('N', *shape)}; "
                "prepare samples with the scorer's spec",
                code="sample-shape",
            )
        # float64 values beyond float32 become infinite here, and are rejected below
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.ascontiguousarray(batch, dtype=np.float32)
        finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if not finite.all():
            raise InputError(
                f"rows {_first_rows(~finite)} of the batch contain NaN or infinity; "
                "check how they were prepared",
                code="sample-non-finite",
            )
        return values

    def _run(self, values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        if len(values) == 1 or (len(values) and not self._one_by_one):  # the usual case, without a detour
            return dict(zip(self._names, self._session_run(values), strict=True))
        step = 1 if self._one_by_one else max(1, len(values))
        starts = range(0, len(values), step)
        parts = [self._session_run(values[start : start + step]) for start in starts]
        # ONNX Runtime fails on batches of zero rows in some operators (Conv, Reshape with -1), so the empty
        # columns are cut from the outputs of one row.
        if not parts:
            parts = [[part[:0] for part in self._session_run(np.zeros((1, *values.shape[1:]), np.float32))]]
        columns = parts[0] if len(parts) == 1 else [np.concatenate(part) for part in zip(*parts, strict=True)]
        return dict(zip(self._names, columns, strict=True))

    def _session_run(self, values: NDArray[np.float32]) -> list[NDArray[Any]]:
        try:
            found: list[NDArray[Any]] = self._session.run(self._names, {self._input: values})
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise ModelError(
                f"the model fails on inputs of shape {values.shape}: {error}; export it again",
                code="model-outputs",
            ) from error
        # A Reshape to constant sizes can merge rows without an error; samples would get the scores of other
        # samples.
        if {len(part) for part in found} != {len(values)}:
            shapes = {name: part.shape for name, part in zip(self._names, found, strict=True)}
            raise ModelError(
                f"the outputs must have {len(values)} rows, but have shapes {shapes}; {EXPORT}",
                code="model-outputs",
            )
        return found

    def _require_digest(self) -> None:
        """Check that the weights are those that the metadata describe."""
        found = integrity.file_digest(self.path, frozenset((LOWER, UPPER)))
        if found != self.digest:
            raise ModelError(
                f"the file was changed after it was written: the digest of its weights is {found[:12]}..., but the "
                f"metadata says {self.digest[:12]}...; copy the file again",
                code="model-file-damaged",
            )

    def _try(self, known: KnownAnswers | None) -> int:
        """Run the file before the first sample arrives; returns the number of classes.

        Declared shapes are not trusted: exporters leave them open or wrong.
        """
        if known is None:  # a file of an early version
            logits, scores = self._try_noise()
        else:
            found = self._run(known.inputs[:1])
            logits, scores = found["logits"], found["drip_score"]
        if logits.ndim != 2 or logits.shape[1] < 2 or scores.ndim != 1:
            raise ModelError(
                f"for each input the model returns logits of shape {logits.shape[1:]} and a score of shape "
                f"{scores.shape[1:]}, not one logit per class and one number; {EXPORT}",
                code="model-outputs",
            )
        if self.metadata.n_classes not in {0, logits.shape[1]}:
            raise ModelError(
                f"the model returns {logits.shape[1]} logits, but its metadata says "
                f"{self.metadata.n_classes}; "
                f"{EXPORT}",
                code="model-outputs",
            )
        names = self.class_names
        if names and len(names) != logits.shape[1]:
            raise ModelError(
                f"the metadata has {len(names)} class names for {logits.shape[1]} logits; {EXPORT}",
                code="model-outputs",
            )
        if not (np.isfinite(logits).all(axis=1) & np.isfinite(scores)).any():
            raise ModelError(
                "the model outputs NaN or infinity for zeros and for noise; export a valid checkpoint",
                code="model-non-finite",
            )
        if known is not None:
            require_answers(self._run_pair, known, is_int8=self.metadata.quantization is not None)
        return int(logits.shape[1])

    def _run_pair(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        found = self._run(values)
        return found["logits"], found["drip_score"]

    def _try_noise(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Results for a row of zeros and one of noise, of the first kind with a finite result.

        Noise besides zeros, because a model that normalises its input may return NaN for zeros alone.
        """
        errors: list[ModelError] = []
        found: tuple[NDArray[Any], NDArray[Any]] | None = None
        for noise in trial_inputs(self.spec.shape, 1).values():
            try:
                found = self._run_pair(np.concatenate([np.zeros_like(noise), noise]))
            except ModelError as error:  # a table of ids, for example, has no entry for noise
                errors.append(error)
                continue
            logits, scores = found
            if scores.ndim != 1 or (np.isfinite(logits).all(axis=-1) & np.isfinite(scores)).any():
                break
        if found is None:
            raise errors[0]
        return found


def _open(path: Path, threads: int, providers: tuple[str, ...]) -> Any:
    available = onnxruntime.get_available_providers()
    if unknown := [name for name in providers if name not in available]:
        raise InputError(
            f"this ONNX Runtime has no provider {unknown[0]!r}; use {', '.join(available)}, or install a build that "
            "has it",
            code="provider-unknown",
        )
    if not path.exists():
        raise ModelError(f"{path}: does not exist; {EXPORT}", code="path-missing")
    if not path.is_file():
        raise ModelError(f"{path}: is a folder, not a model file; {EXPORT}", code="path-missing")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # By default waiting threads spin, which takes the cores that camera and encoder need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _ERRORS_ONLY
    try:
        wanted = dict.fromkeys((*providers, "CPUExecutionProvider"))
        return onnxruntime.InferenceSession(str(path), options, providers=list(wanted))
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ModelError(
            f"{path}: ONNX Runtime cannot load the file ({error}); copy it again, or {EXPORT}",
            code="model-file-damaged",
        ) from error


def _input_of(session: Any, shape: tuple[int, ...]) -> tuple[str, bool]:
    """Name of the input, and whether it accepts only one row at a time."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        raise ModelError(
            f"the model must have one float32 input, but has {[(i.name, i.type) for i in inputs]}; {EXPORT}",
            code="model-outputs",
        )
    # Open sides are strings or None and fit any spec; the trial run shows whether the graph accepts them.
    batch, *sides = inputs[0].shape
    if len(sides) != len(shape) or any(
        isinstance(side, int) and side != wanted for side, wanted in zip(sides, shape, strict=True)
    ):
        raise ModelError(
            f"the model's input has shape {sides}, but its input spec says {shape}; {EXPORT}",
            code="input-spec-invalid",
        )
    if isinstance(batch, int) and batch != 1:
        raise ModelError(
            f"the model accepts only batches of {batch}, but must accept any size or single rows; {EXPORT}",
            code="model-outputs",
        )
    return inputs[0].name, batch == 1


def _outputs_of(session: Any) -> list[str]:
    types = {output.name: output.type for output in session.get_outputs()}
    for name, kind in _OUTPUTS.items():
        if types.get(name) != kind:
            found = f"has type {types[name]}, not {kind}" if name in types else "does not exist"
            raise ModelError(f"the model's output {name!r} {found}; {EXPORT}", code="model-outputs")
    return [*_OUTPUTS, *(name for name, kind in _ON_REQUEST.items() if types.get(name) == kind)]


def _require_finite(what: str, values: NDArray[np.floating[Any]]) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        rows = _first_rows(~(finite if finite.ndim == 1 else finite.all(axis=1)))
        raise NonFiniteError(f"{what} of rows {rows} are NaN or infinite; check the scale of these inputs")


def _first_rows(bad: Any) -> str:
    rows = np.flatnonzero(bad)
    listed = ", ".join(str(row) for row in rows[:8])
    return listed if len(rows) <= 8 else f"{listed} and {len(rows) - 8} more"
