"""An ONNX graph to read and to extend: names, constants, shapes, cuts. Nothing of scores lives here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from drip.errors import ExportError

PREFIX = "drip."
_SHAPE_ONLY = frozenset(("Shape", "Size"))
"""Operations whose result depends on their input's shape and not on its values."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node of a graph.

    Attributes:
        op: Kind of operation, with its domain where that is not ONNX's own.
        inputs: Names of tensors; empty where an optional one is left out.
        outputs: Names of tensors.
        attributes: By name, without subgraphs.
        proto: What it was read from.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    proto: onnx.NodeProto

    @classmethod
    def of(cls, proto: onnx.NodeProto) -> Node:
        """The node of a message."""
        op = proto.op_type if proto.domain in {"", "ai.onnx"} else f"{proto.domain}::{proto.op_type}"
        graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        attributes = {
            item.name: helper.get_attribute_value(item) for item in proto.attribute if item.type not in graphs
        }
        return cls(op, tuple(proto.input), tuple(proto.output), attributes, proto)

    def input(self, index: int) -> str:
        """Name of an input; empty where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def reads(self) -> set[str]:
        """Names of all tensors that it reads, also inside of subgraphs."""
        return {name for name in (*self.inputs, *_captured(self.proto)) if name}

    def __str__(self) -> str:
        """The node for messages."""
        return f"{self.op} (node {self.proto.name or self.outputs[0]!r})"


def _captured(proto: onnx.NodeProto) -> Iterator[str]:
    """Names that the subgraphs of a node read; names that only live inside do no harm."""
    for attribute in proto.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for node in graph.node:
                yield from node.input
                yield from _captured(node)
            yield from (output.name for output in graph.output)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a tensor as measured, and the axes whose size follows the batch.

    Attributes:
        sizes: At a batch of two, or at the only batch that the graph takes.
        growing: Axes that had another size at a batch of three.
        kind: Name of the values' type, such as ``float32``.
    """

    sizes: tuple[int, ...]
    growing: frozenset[int]
    kind: str


class Graph:
    """A model's graph with what derivatives need: who makes and reads a tensor, shapes, new nodes.

    Args:
        model: The model; nodes are added to it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.opset = next(item.version for item in model.opset_import if item.domain in {"", "ai.onnx"})
        self.nodes = [Node.of(proto) for proto in model.graph.node]
        self.producer = {name: node for node in self.nodes for name in node.outputs if name}
        self.readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.reads():
                self.readers.setdefault(name, []).append(node)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.shapes: dict[str, Shape] = {}
        self.values: dict[str, NDArray[Any]] = {}
        self._fresh = 0
        self._made: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.varying = self.reachable(model.graph.input[0].name)

    # -- reading ---------------------------------------------------------------------------------------

    def reachable(self, start: str) -> set[str]:
        """Tensors whose values depend on those of ``start``, with itself."""
        found = {start}
        for node in self.nodes:
            if node.op not in _SHAPE_ONLY and not found.isdisjoint(node.reads()):
                found.update(name for name in node.outputs if name)
        return found

    def ancestors(self, end: str) -> set[str]:
        """Tensors that ``end`` is computed from, with itself."""
        found = {end}
        for node in reversed(self.nodes):
            if not found.isdisjoint(node.outputs):
                found |= node.reads()
        return found

    def between(self, start: str, end: str) -> list[Node]:
        """Nodes through which values of ``start`` reach ``end``, in the order of execution."""
        below, above = self.reachable(start), self.ancestors(end)
        return [
            node
            for node in self.nodes
            if not above.isdisjoint(node.outputs)
            and node.op not in _SHAPE_ONLY
            and not below.isdisjoint(node.reads())
        ]

    def cuts(self, end: str) -> list[str]:
        """Tensors that every path from the input to ``end`` goes through, in the order of execution.

        In an order of execution all that lies before such a tensor leads to it, and all after it comes
        from it: at that moment it is the only one that is still read.
        """
        start = self.model.graph.input[0].name
        path = self.between(start, end)
        alive = self.varying & self.ancestors(end)
        last_read = {name: index for index, node in enumerate(path) for name in node.reads() & alive}
        waiting = {start} & last_read.keys()
        found = []
        for index, node in enumerate(path):
            waiting |= {name for name in node.outputs if name in alive and last_read.get(name, -1) > index}
            waiting = {name for name in waiting if last_read[name] > index}
            if len(waiting) == 1 and (inner := next(iter(waiting))) in node.outputs:
                found.append(inner)
        return found

    def constant(self, name: str) -> NDArray[Any] | None:
        """Value of a tensor that is the same for every input, None where it is not known to be."""
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        made_by = self.producer.get(name)
        if made_by is not None and made_by.op == "Constant":
            value = next(iter(made_by.attributes.values()))
            return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
        return self.values.get(name)

    def integers(self, node: Node, index: int, attribute: str) -> tuple[int, ...] | None:
        """A list of integers that newer operators take as an input and older ones as an attribute.

        Raises:
            ExportError: It is computed from the input's values.
        """
        if attribute in node.attributes:
            return tuple(np.atleast_1d(node.attributes[attribute]).tolist())
        if not node.input(index):
            return None
        value = self.constant(node.input(index))
        if value is None:
            message = f"{attribute} of {node} must be constant to be differentiated, it is computed"
            raise ExportError(f"{message}; simplify the graph, or give a layer behind it")
        return tuple(np.atleast_1d(value).astype(int).tolist())

    def sizes(self, name: str) -> tuple[int, ...]:
        """Measured sizes of a tensor."""
        return self.shapes[name].sizes

    def rank(self, name: str) -> int:
        """Number of axes of a tensor."""
        return len(self.shapes[name].sizes)

    # -- extending -------------------------------------------------------------------------------------

    def add(self, op: str, *inputs: str, outputs: Sequence[str] | int = 1, **attributes: Any) -> str:
        """Append a node; returns the name of its first output."""
        self._fresh += 1
        stem = f"{PREFIX}{op.lower()}_{self._fresh}"
        if isinstance(outputs, int):
            outputs = [stem, *(f"{stem}.{index}" for index in range(1, outputs))]
        node = helper.make_node(op, list(inputs), list(outputs), name=stem, **attributes)
        self.model.graph.node.append(node)
        return outputs[0]

    def store(self, name: str, value: NDArray[Any]) -> str:
        """Add an initialiser under a name."""
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def number(self, value: Any, dtype: type[np.generic] = np.float32) -> str:
        """A constant; equal ones are stored once."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            self._made[key] = self.store(f"{PREFIX}constant_{len(self._made)}", array)
        return self._made[key]

    def indices(self, values: Iterable[int]) -> str:
        """A list of integers as a constant."""
        return self.number(list(values), np.int64)

    def reshape(self, x: str, sizes: Iterable[int]) -> str:
        """``x`` with other sizes; one of them may be -1."""
        return self.add("Reshape", x, self.indices(sizes))

    def reshape_like(self, x: str, like: str) -> str:
        """``x``, of as many values as ``like``, in the shape of ``like``."""
        shape = self.shapes[like]
        if len(shape.growing) <= 1:
            sizes = [-1 if axis in shape.growing else size for axis, size in enumerate(shape.sizes)]
            return self.reshape(x, sizes)
        return self.add("Reshape", x, self.add("Shape", like))

    def reduce(self, op: str, x: str, axes: Iterable[int], *, keep: bool) -> str:
        """A reduction such as ``ReduceSum`` over some axes."""
        listed = sorted(axes)
        if op == "ReduceSum" or self.opset >= 18:
            return self.add(op, x, self.indices(listed), keepdims=int(keep))
        return self.add(op, x, axes=listed, keepdims=int(keep))

    def unsqueeze(self, x: str, axis: int) -> str:
        """``x`` with a new axis of size one."""
        return self.add("Unsqueeze", x, self.indices([axis]))

    def scaled(self, x: str, factor: float) -> str:
        """``x`` times a number."""
        return x if factor == 1.0 else self.add("Mul", x, self.number(factor))


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
