"""Measures what a graph's tensors look like by running it; no shape is derived on paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from drip.errors import ExportError
from drip.export.graph import Graph, Shape

_MOST_BYTES = 2**31 - 1
Arrays = list[NDArray[np.generic]]


def session_of(model: onnx.ModelProto | bytes | str, *, optimised: bool = True) -> ort.InferenceSession:
    """A session on one CPU thread.

    Raises:
        ExportError: ONNX Runtime does not take the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what matters is raised
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(model, onnx.ModelProto):
        if model.ByteSize() > _MOST_BYTES:
            raise ExportError(f"a model of at most 2 GiB is needed, got {model.ByteSize()} bytes")
        model = model.SerializeToString()
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no common class
        raise ExportError(f"a model that ONNX Runtime loads is needed, got: {_first_line(error)}") from error


def noise(shape: Sequence[int], n_rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Standard normal inputs, shape (n_rows, *shape)."""
    return np.random.default_rng(seed).normal(size=(n_rows, *shape)).astype(np.float32)


def run_model(model: onnx.ModelProto, x: NDArray[np.float32], names: Sequence[str]) -> Arrays:
    """Some tensors of a model, outputs or not, for one batch; nothing is optimised away.

    Raises:
        ExportError: The model fails on this batch.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = session_of(watched, optimised=False)
    try:
        found: Arrays = session.run(list(names), {session.get_inputs()[0].name: x})
    except Exception as error:  # the runtime's errors have no common class
        message = f"a model that takes inputs of shape {x.shape} is needed, it fails: {_first_line(error)}"
        raise ExportError(message) from error
    return found


def measure(graph: Graph, shape: Sequence[int], names: Sequence[str], *, dynamic: bool) -> None:
    """Shapes of tensors, and the values of those that are the same for every input.

    Args:
        graph: Takes what is found.
        shape: Shape of one input.
        names: Tensors.
        dynamic: Whether batches other than one are possible.
    """
    batches = (2, 3) if dynamic else (1, 1)
    runs = [run_model(graph.model, noise(shape, n_rows, n_rows), names) for n_rows in batches]
    for name, first, second in zip(names, *runs, strict=True):
        if not isinstance(first, np.ndarray):
            continue
        growing = {axis for axis, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if a != b}
        graph.shapes[name] = Shape(first.shape, frozenset(growing), first.dtype.name)
        if name not in graph.varying and first.dtype.kind in "ib" and np.array_equal(first, second):
            graph.values[name] = first


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
