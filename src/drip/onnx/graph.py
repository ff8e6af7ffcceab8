"""An ONNX graph to read and to extend: names, constants, measured shapes, cuts. It knows no scores.

Shapes are measured by running the graph instead of being inferred. ONNX's shape inference stops at the
first Reshape whose sizes are computed, and cannot tell which axes follow the batch.
"""

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
from drip.media import trial_inputs

PREFIX = "drip."
OPEN_END = 2**62
"""End of a Slice that reaches to the end of any axis; ONNX has no other way to write it."""

Arrays = list[NDArray[np.generic]]

_MOST_BYTES = 2**31 - 1  # protobuf serialises no more into one message
# Operations that read the shape of their input and not its values: no gradient flows through them, and
# their output is constant as long as the shape is.
_SHAPE_ONLY = frozenset(("Shape", "Size"))


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node of a graph.

    Attributes:
        op: Kind of operation, with its domain unless that is ONNX's own.
        inputs: Names of tensors; an empty name is an optional input that is left out.
        outputs: Names of tensors.
        attributes: By name, without subgraphs.
        proto: The message that it was read from.
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
        """Name of an input; empty if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def reads(self) -> set[str]:
        """Names of all tensors that it reads, including those that its subgraphs capture."""
        return {name for name in (*self.inputs, *_captured(self.proto)) if name}

    def __str__(self) -> str:
        """The node as text, for messages."""
        return f"{self.op} (node {self.proto.name or self.outputs[0]!r})"


def _captured(proto: onnx.NodeProto) -> Iterator[str]:
    """Names that the subgraphs of a node read.

    Names that exist only inside a subgraph are among them. They do not match any name outside, so they lead
    nowhere.
    """
    for attribute in proto.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for node in graph.node:
                yield from node.input
                yield from _captured(node)
            yield from (output.name for output in graph.output)


def execution_order(graph: onnx.GraphProto) -> list[int]:
    """Indices of the nodes in an order of execution: that of the file where it is one.

    ONNX requires such an order, but ONNX Runtime loads any.
    """
    nodes = [Node.of(proto) for proto in graph.node]
    made_by = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
    done: set[int] = set()
    order: list[int] = []
    for first in range(len(nodes)):
        waiting = [first]  # depth first, without recursion: graphs are longer than Python's stack
        while waiting:
            index = waiting[-1]
            needed = {made_by[name] for name in nodes[index].reads() if name in made_by}
            missing = needed - done - set(waiting)  # a cycle stays as it is, for the checker to report
            if missing and index not in done:
                waiting.extend(sorted(missing, reverse=True))
                continue
            waiting.pop()
            if index not in done:
                done.add(index)
                order.append(index)
    return order


@dataclass(frozen=True, slots=True)
class Shape:
    """Measured sizes of a tensor, and the axes whose size follows the batch.

    Attributes:
        sizes: At a batch of two, or at the only batch that the graph accepts.
        growing: Axes whose size changes with a batch of three.
        kind: Name of the values' type, such as ``float32``.
    """

    sizes: tuple[int, ...]
    growing: frozenset[int]
    kind: str


class Graph:
    """A model's graph with everything that derivatives need: who writes and reads tensors, shapes, new nodes.

    Args:
        model: The model; new nodes are appended to it.
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
        """Tensors whose values depend on those of ``start``, and ``start``."""
        found = {start}
        # one pass is enough: ONNX requires nodes in execution order
        for node in self.nodes:
            if node.op not in _SHAPE_ONLY and not found.isdisjoint(node.reads()):
                found.update(name for name in node.outputs if name)
        return found

    def ancestors(self, end: str) -> set[str]:
        """Tensors that ``end`` is computed from, and ``end``."""
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

        The nodes are visited in execution order. After the node that computes such a tensor, no other
        tensor that was computed so far is read again: it is the only one still waiting.
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
        """Value of a tensor that is the same for every input; None if it is not known to be constant."""
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        made_by = self.producer.get(name)
        if made_by is not None and made_by.op == "Constant":
            value = next(iter(made_by.attributes.values()))
            return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
        return self.values.get(name)

    def integers(self, node: Node, index: int, attribute: str) -> tuple[int, ...] | None:
        """A list of integers that is an input of newer operators and an attribute of older ones.

        Raises:
            ExportError: It is computed from the input's values.
        """
        if attribute in node.attributes:
            return tuple(np.atleast_1d(node.attributes[attribute]).tolist())
        if not node.input(index):
            return None
        value = self.constant(node.input(index))
        if value is None:
            raise ExportError(
                f"{attribute} of {node} are computed from the input, so this node cannot be differentiated; "
                "simplify the graph, or choose a layer after it",
                code="export-unsupported",
            )
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
        """A constant; equal constants are stored once."""
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
        """``x`` in the shape of ``like``, which has as many values."""
        shape = self.shapes[like]
        # Sizes in the file let a runtime plan its memory; only two open axes need a Shape at run time.
        if len(shape.growing) <= 1:
            sizes = [-1 if axis in shape.growing else size for axis, size in enumerate(shape.sizes)]
            return self.reshape(x, sizes)
        return self.add("Reshape", x, self.add("Shape", like))

    def reduce(self, op: str, x: str, axes: Iterable[int], *, keep: bool) -> str:
        """A reduction such as ``ReduceSum`` over some axes."""
        listed = sorted(axes)
        # axes became an input of ReduceSum in opset 13, of the other reductions in opset 18
        if op == "ReduceSum" or self.opset >= 18:
            return self.add(op, x, self.indices(listed), keepdims=int(keep))
        return self.add(op, x, axes=listed, keepdims=int(keep))

    def unsqueeze(self, x: str, axis: int) -> str:
        """``x`` with a new axis of size one."""
        return self.add("Unsqueeze", x, self.indices([axis]))

    def scaled(self, x: str, factor: float) -> str:
        """``x`` times a number."""
        return x if factor == 1.0 else self.add("Mul", x, self.number(factor))


# -- running ---------------------------------------------------------------------------------------------


def session_of(model: onnx.ModelProto | bytes | str, *, optimised: bool = True) -> ort.InferenceSession:
    """A session on one CPU thread.

    Raises:
        ExportError: ONNX Runtime cannot load the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised anyway; without this they are printed too
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(model, onnx.ModelProto):
        if model.ByteSize() > _MOST_BYTES:
            raise ExportError(
                f"the model has {model.ByteSize()} bytes, but ONNX files hold at most 2 GiB; use a smaller "
                "model"
            )
        model = model.SerializeToString()
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ExportError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error


def watching(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model whose outputs are the named tensors; load it without optimisation.

    An optimised graph may have fused the named tensors away, or have computed them in a different order.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Inputs that a model accepts, to measure and to prove it with.

    Attributes:
        shape: Shape of one input.
        kind: ``samples``, or a kind of :func:`drip.media.trial_inputs`.
        samples: The user's own inputs, at least two; used if ``kind`` is ``samples``.
    """

    shape: tuple[int, ...]
    kind: str = "noise"
    samples: NDArray[np.float32] | None = None

    def rows(self, n: int, seed: int = 0) -> NDArray[np.float32]:
        """Inputs of shape (n, *shape); another seed gives others."""
        if self.samples is None:
            return trial_inputs(self.shape, n, seed)[self.kind]
        return self.samples[(np.arange(n) + seed) % len(self.samples)]


def run_model(model: onnx.ModelProto, x: NDArray[np.float32], names: Sequence[str]) -> Arrays:
    """Some tensors of a model, outputs or not, for one batch.

    Raises:
        ExportError: The model fails on this batch.
    """
    session = session_of(watching(model, names), optimised=False)
    try:
        found: Arrays = session.run(list(names), {session.get_inputs()[0].name: x})
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ExportError(
            f"the model fails on inputs of shape {x.shape}: {_first_line(error)}; check the input spec"
        ) from error
    return found


def measure(graph: Graph, inputs: Inputs, names: Sequence[str], *, dynamic: bool) -> None:
    """Measure shapes of tensors, and the values of those that are the same for every input.

    Args:
        graph: The graph; its ``shapes`` and ``values`` are filled.
        inputs: What to run it on.
        names: Tensors.
        dynamic: Whether the graph accepts batches other than one.
    """
    # Two and three: an axis of size one could be the batch or could be broadcast. With another seed for
    # each run, integers that are equal in both do not come from the input's values.
    batches = (2, 3) if dynamic else (1, 1)
    runs = [run_model(graph.model, inputs.rows(n, seed), names) for seed, n in enumerate(batches)]
    for name, first, second in zip(names, *runs, strict=True):
        if not isinstance(first, np.ndarray):  # sequences and optional values have no shape
            continue
        growing = {axis for axis, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if a != b}
        graph.shapes[name] = Shape(first.shape, frozenset(growing), first.dtype.name)
        # Only integers and booleans are wanted: axes, sizes and indices, which a rule must know.
        if name not in graph.varying and first.dtype.kind in "ib" and np.array_equal(first, second):
            graph.values[name] = first


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
