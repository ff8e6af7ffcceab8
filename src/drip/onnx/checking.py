"""Looks at a model file as a device would: metadata, digest, and a run of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from drip.errors import ExportError
from drip.onnx.files import load_model_file, metadata_of
from drip.onnx.graph import PREFIX, noise, session_of
from drip.onnx.heads import Head
from drip.onnx.metadata import LOWER, UPPER, ModelMetadata, limits_of
from drip.onnx.weights import MapWeights
from drip.types import BoolArray, FloatArray

OUTPUTS = ("logits", "predicted_class", "drip_score", "retain")


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        metadata: Of the file.
        n_inputs: Rows that were run.
        outputs: Results by name.
        problems: What is wrong, in words; empty for a sound file.
    """

    metadata: ModelMetadata
    n_inputs: int
    outputs: dict[str, NDArray[Any]]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def run_file(model: str | bytes, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """All outputs of a model file for a batch, row by row where it takes one row only.

    Raises:
        ExportError: ONNX Runtime does not load it or it fails.
    """
    session = session_of(model)
    source = session.get_inputs()[0]
    names = [item.name for item in session.get_outputs()]
    parts = [x] if isinstance(source.shape[0], str) else [row[None] for row in x]
    try:
        runs = [session.run(names, {source.name: part}) for part in parts]
    except Exception as error:  # the runtime's errors have no common class
        raise ExportError(f"a model that takes inputs of shape {x.shape[1:]} is needed: {error}") from error
    return {name: np.concatenate(column) for name, column in zip(names, zip(*runs, strict=True), strict=True)}


def check(path: str | Path, inputs: NDArray[np.float32] | None = None) -> CheckReport:
    """Read a model file, run it on inputs or noise, and compare its decisions with its policy's.

    Args:
        path: The model file.
        inputs: Shape (N, *shape); None takes 16 rows of noise.

    Raises:
        ExportError: The file is damaged, was changed since it was written, or does not run.
        ModelError: It was not written by drip.
    """
    model = load_model_file(path)
    metadata = metadata_of(model)
    axes = model.graph.input[0].type.tensor_type.shape.dim
    x = noise([axis.dim_value for axis in axes[1:]], 16) if inputs is None else inputs
    found = run_file(model.SerializeToString(), x)
    missing = [name for name in OUTPUTS if name not in found]
    if missing:
        raise ExportError(f"a file with the outputs {', '.join(OUTPUTS)} is needed, {missing} are not there")
    problems = []
    logits, classes, scores = found["logits"], found["predicted_class"], found["drip_score"]
    if not (np.isfinite(logits).all() and np.isfinite(scores).all()):
        problems.append("logits or scores are not finite")
    if not (classes == logits.argmax(1)).all():
        problems.append("predicted_class is not the lowest index of the largest logit")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    limits = limits_of(metadata.policy, logits.shape[1])
    for name, expected in zip((LOWER, UPPER), limits, strict=True):
        tensor = stored.get(name)
        if tensor is None or tensor.raw_data != expected.astype("<f4").tobytes():
            problems.append(f"{name} are not the limits of the policy in the file")
    inside = (scores >= limits[0][classes]) & (scores <= limits[1][classes])
    if not (found["retain"] == ~(inside & np.isfinite(logits).all(1))).all():
        problems.append("retain is not what the policy's limits say")
    return CheckReport(metadata, len(x), found, tuple(problems))


_N_ROWS = 6
_N_DIRECTIONS = 3
_STEP = 3e-3
_ALLOWED = 0.05
_ROUNDING = 64 * float(np.finfo(np.float32).eps)
_MOVED, _DELTA = f"{PREFIX}moved", f"{PREFIX}delta"


def require_derivative(
    model: onnx.ModelProto, head: Head, weights: MapWeights, shape: Sequence[int], *, dynamic: bool
) -> None:
    r"""Refuse a finished graph that does not run, or whose map weights are not the derivative of its logits.

    For rows of noise, with the activation A moved a little at random so that it lies on no kink, and with a
    sign v_k for every map, those of the weights and random ones:

    .. math:: \frac{f_c(A + h v) - f_c(A - h v)}{2 h} = Z \sum_k v_k a_k

    to 5 % of the largest value that the right side can have, and to what float32 leaves of the left side. A
    row may lie beside a kink all the same, so the graph is refused where more than half of them deviate.

    Args:
        model: The finished graph.
        head: What was differentiated.
        weights: Its map weights a_k.
        shape: Shape of one input.
        dynamic: Whether the graph takes more than one row.

    Raises:
        ExportError: It does not run, or most comparisons deviate.
    """
    session_of(model)  # optimised, as a device loads it
    moved = _Moved(model, head, weights)
    x = noise(shape, _N_ROWS, seed=7)
    deviates = np.concatenate([moved.deviates(rows) for rows in ([x] if dynamic else x[:, None])])
    if deviates.mean() > 0.5:
        raise ExportError(
            f"map weights of {head.activation!r} as by finite differences are needed, {deviates.sum()} of "
            f"{len(deviates)} comparisons deviate; give another layer, and report this head"
        )


class _Moved:
    """A graph with an input that is added to the activation; logits and weights follow."""

    def __init__(self, model: onnx.ModelProto, head: Head, weights: MapWeights) -> None:
        self._head, self._weights = head, weights
        self._random = np.random.default_rng(7)
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        graph, nodes = copy.graph, []
        for node in graph.node:
            node.input[:] = [_MOVED if name == head.activation else name for name in node.input]
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            if head.activation in node.output:
                nodes.append(helper.make_node("Add", [head.activation, _DELTA], [_MOVED]))
        del graph.node[:]
        graph.node.extend(nodes)
        axes = [None] * (2 + len(head.positions))
        graph.input.append(helper.make_tensor_value_info(_DELTA, TensorProto.FLOAT, axes))
        self._names = [head.activation, "logits", weights.name]
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._names)
        self._session = session_of(copy, optimised=False)

    def deviates(self, x: NDArray[np.float32]) -> BoolArray:
        """For every row and direction whether both sides differ."""
        first, *_ = self._run(x, np.zeros((1,) * (2 + len(self._head.positions)), np.float32))
        size = float(np.abs(first).mean()) or 1.0
        start = (0.1 * size * self._random.normal(size=first.shape)).astype(np.float32)
        _, logits, found = self._run(x, start)
        weights = found.astype(np.float64) * self._weights.factor
        rows, classes = np.arange(len(x)), logits.argmax(1)
        n_positions = int(np.prod(self._head.positions))
        most = n_positions * np.abs(weights).sum(1)
        step = _STEP * size
        allowed = _ALLOWED * most + _ROUNDING * np.abs(logits).max(1) / step
        deviating = []
        for direction in range(_N_DIRECTIONS):
            signs = np.sign(weights) if not direction else self._random.choice([-1.0, 1.0], weights.shape)
            delta = step * self._spread(signs, first.shape)
            ends = [self._run(x, (start + side * delta).astype(np.float32))[1] for side in (1, -1)]
            upper, lower = (end[rows, classes].astype(np.float64) for end in ends)
            slope = (upper - lower) / (2 * step)
            deviating.append(np.abs(slope - n_positions * (signs * weights).sum(1)) > allowed)
        return np.concatenate(deviating)

    def _run(self, x: NDArray[np.float32], delta: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        try:
            found: list[NDArray[np.float32]] = self._session.run(self._names, {"input": x, _DELTA: delta})
        except Exception as error:  # the runtime's errors have no common class
            raise ExportError(f"a head that ONNX Runtime runs is needed, it fails: {error}") from error
        return found

    def _spread(self, signs: FloatArray, shape: Sequence[int]) -> FloatArray:
        """A number for every map in the shape of the activation; 0 at class tokens."""
        if self._head.layout == "channels_first":
            return np.broadcast_to(signs.reshape(*signs.shape, *[1] * (len(shape) - 2)), shape)
        spread = np.broadcast_to(signs.reshape(len(signs), *[1] * (len(shape) - 2), -1), shape).copy()
        spread[:, : self._head.skipped] = 0.0
        return spread
