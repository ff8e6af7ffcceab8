"""The weight of each map: its mean gradient, in the fewest nodes that compute it exactly, and its check.

Most heads need no differentiation at run time. Pooling and flattening at the start of the head keep each
map's sum of gradients, so they are skipped; a linear layer after them is folded to its sum over positions;
rows of the last linear layer are gathered. Only the part in the middle goes through the tape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from drip.errors import ExportError
from drip.onnx.derivatives import quantised_range, reduced_axes
from drip.onnx.graph import OPEN_END, PREFIX, Graph, Inputs, Node, session_of
from drip.onnx.heads import Head
from drip.onnx.tape import Tape, attribute
from drip.types import BoolArray, FloatArray

_PASSIVE = frozenset(("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze"))

# The check by finite differences. A step of 0.3 % of the mean activation is a compromise between crossing
# kinks (larger steps) and the rounding of float32 (smaller ones). 5 % still tells a wrong derivative, which
# is off by a factor or a missing term, from the curvature of the head.
_N_ROWS = 6
_N_DIRECTIONS = 3
_STEP = 3e-3
_ALLOWED = 0.05
_ROUNDING = 64 * float(np.finfo(np.float32).eps)
_MOVED, _DELTA = f"{PREFIX}moved", f"{PREFIX}delta"


@dataclass(frozen=True, slots=True)
class MapWeights:
    """The weights a_k of a head as tensors of the graph.

    Attributes:
        name: Tensor of shape (N, K).
        factor: The weights are the tensor times this factor. It is multiplied into the score, one number per
            sample, instead of into K weights.
    """

    name: str
    factor: float


class Differentiator:
    """Appends the map weights of logits, or of the difference of two logits, to a graph.

    Args:
        graph: The graph, measured in the head.
        head: Where to differentiate.
    """

    def __init__(self, graph: Graph, head: Head) -> None:
        self._graph, self._head = graph, head
        self._active = {head.activation} | {name for node in head.nodes for name in node.outputs}
        self._pooled, self._n_left = self._after_pooling()

    def weights(self, classes: Sequence[str]) -> MapWeights:
        r"""Mean gradients :math:`a_k = \frac1Z \sum_p \partial y / \partial A_{k,p}` of logits.

        Args:
            classes: Names of tensors of class indices, shape (N,): y is the logit of the first, minus that
                of the second if two are given.

        Raises:
            ExportError: An operation of the head has no derivative here.
        """
        g, head = self._graph, self._head
        n_positions = math.prod(head.positions)
        linear = self._last_linear()
        simple = head.layout == "channels_first" or self._pooled != head.activation
        if not simple:
            # Tokens that are not averaged first: attention or a class token mixes the positions.
            full = self._through_tape(classes, linear, head.activation)
            return MapWeights(self._mean_of_tokens(full), 1.0)
        dense = self._dense_after() if self._n_left > 1 else {}
        if dense and linear is not None and linear.inputs[0] == self._pooled:
            # One linear layer on the flattened maps: a row of its folded weights is the answer.
            rows = self._rows(classes, g.number(self._folded(linear)), axis=0)
            return MapWeights(rows, 1.0 / n_positions)
        if dense:
            # Hidden linear layers on the flattened maps. The tape stops at their outputs; one product with
            # the folded weights replaces a gradient of K times positions values.
            total = None
            for node, folded in dense.items():
                value = self._through_tape(classes, linear, node.outputs[0])
                value = g.add("MatMul", value, g.number(folded))
                total = value if total is None else g.add("Add", total, value)
            return MapWeights(total or "", 1.0 / n_positions)
        value = self._through_tape(classes, linear, self._pooled)
        if self._n_left > 1:
            value = g.reshape(value, [self._rows_of(), head.n_maps, self._n_left])
            return MapWeights(g.reduce("ReduceSum", value, [2], keep=False), 1.0 / n_positions)
        if g.rank(self._pooled) != 2:
            value = g.reshape(value, [self._rows_of(), head.n_maps])
        return MapWeights(value, 1.0 / n_positions)

    def _rows_of(self) -> int:
        """The size of the batch axis for reshaping."""
        shape = self._graph.shapes[self._head.activation]
        return -1 if shape.growing else shape.sizes[0]

    # -- at the start of the head ----------------------------------------------------------------------

    def _after_pooling(self) -> tuple[str, int]:
        """The last tensor up to which each map's sum of gradients is kept, and its positions per map.

        The mean over positions of the gradient at A is then the sum of the gradient at that tensor over
        its positions, divided by the positions of A. Average pooling spreads each gradient over its window
        and maximum pooling sends it to one place: neither changes the sum.
        """
        g, head = self._graph, self._head
        name, n_left = head.activation, math.prod(head.positions)
        if head.skipped:  # a class token is among the positions, but must not be summed
            return name, n_left
        while True:
            following = [node for node in head.nodes if name in node.reads()]
            if len(following) != 1 or name == head.logits:
                return name, n_left
            node = following[0]
            left = self._positions_after(node, name, n_left)
            # a second output that is read, such as the indices of MaxPool, is a second path
            if left is None or any(one in self._active for one in node.outputs[1:] if one in g.readers):
                return name, n_left
            name, n_left = node.outputs[0], left

    def _positions_after(  # noqa: PLR0911  # one per kind of operation
        self, node: Node, name: str, n_left: int
    ) -> int | None:
        """Positions per map after a node that keeps sums of gradients, None for any other node."""
        g, head = self._graph, self._head
        sizes, output = g.sizes(name), g.sizes(node.outputs[0])
        maps_first = head.layout == "channels_first"
        if node.op in _PASSIVE and (maps_first or n_left == 1):
            # (N, K, *positions), (N, K) or (N, K * positions): all keep the order of values
            kept = output[0] == sizes[0] and output[1] in {head.n_maps, head.n_maps * n_left}
            return n_left if kept and (g.shapes[node.outputs[0]].growing == g.shapes[name].growing) else None
        if len(sizes) != len(head.positions) + 2 or sizes[1 if maps_first else -1] != head.n_maps:
            return None
        if node.op == "GlobalAveragePool" and maps_first:
            return 1
        if node.op == "ReduceMean":
            axes = set(reduced_axes(Tape(g, name, ()), node))
            wanted = set(range(2, len(sizes))) if maps_first else set(range(1, len(sizes) - 1))
            return 1 if axes == wanted else None
        if node.op == "MaxPool" and maps_first:
            return math.prod(output[2:])
        if node.op == "AveragePool" and maps_first and not attribute(node, "ceil_mode", 0):
            # Padding that is not counted gives border windows a larger weight per value, but the sum stays
            # one; counted padding sends part of the gradient into the border, where it is lost.
            unpadded = not any(attribute(node, "pads", ())) and attribute(node, "auto_pad", "NOTSET") in {
                "NOTSET",
                "VALID",
            }
            return math.prod(output[2:]) if unpadded or not attribute(node, "count_include_pad", 0) else None
        return None

    def _dense_after(self) -> dict[Node, np.ndarray]:
        """The linear layers that read the flattened maps, with weights summed over positions, (M, K)."""
        g = self._graph
        found = {}
        for node in self._head.nodes:
            if self._pooled not in node.reads():
                continue
            if g.rank(self._pooled) != 2 or not self._is_linear(node) or node.inputs[0] != self._pooled:
                return {}
            if g.constant(node.inputs[1]) is None:
                return {}
            found[node] = self._folded(node)
        return found

    def _folded(self, node: Node) -> np.ndarray:
        """Weights of a linear layer after a flattening, times its alpha, summed over positions, (M, K)."""
        weight = self._graph.constant(node.inputs[1])
        if weight is None:
            raise ExportError(
                f"{node} computes its weights at run time; export a model with constant weights",
                code="export-unsupported",
            )
        rows = weight if attribute(node, "transB", 0) else weight.T
        # in float64: the sum over up to a few hundred positions is rounded once, not once per position
        summed = rows.astype(np.float64).reshape(len(rows), self._head.n_maps, self._n_left).sum(2)
        return np.asarray(summed * float(attribute(node, "alpha", 1.0)))

    # -- at its end ------------------------------------------------------------------------------------

    def _is_linear(self, node: Node) -> bool:
        """Whether a node multiplies (N, M) values by weights that do not depend on the input."""
        if node.op not in {"Gemm", "MatMul"} or attribute(node, "transA", 0):
            return False
        x, weight = node.inputs[:2]
        two_axes = self._graph.rank(x) == 2 and self._graph.rank(weight) == 2
        rest = any(name in self._active for name in node.inputs[1:])
        return two_axes and x in self._active and not rest

    def _last_linear(self) -> Node | None:
        """The linear layer whose outputs, with or without a bias, are the logits; None if there is none."""
        g, name = self._graph, self._head.logits
        made_by = {output: node for node in self._head.nodes for output in node.outputs}
        while name in made_by:
            node = made_by[name]
            if self._is_linear(node):
                return node
            varying = [one for one in node.inputs if one in self._active]
            passes = node.op in {"Identity", "Dropout"} or (
                node.op in {"Add", "Sub"} and varying == [node.inputs[0]]
            )
            if node.op == "Add" and len(varying) == 1:
                passes = True
            if not passes or g.sizes(varying[0]) != g.sizes(name):
                return None
            name = varying[0]
        return None

    def _rows(self, classes: Sequence[str], weight: str, axis: int) -> str:
        """Rows of a matrix, or columns as rows, by class: (N, M).

        Gathering rows of the last layer replaces its product with a one-hot vector, which ONNX Runtime
        would compute with all classes.
        """
        g = self._graph
        parts = [g.add("Gather", weight, index, axis=axis) for index in classes]
        rows = parts[0] if len(parts) == 1 else g.add("Sub", *parts)
        return g.add("Transpose", rows, perm=[1, 0]) if axis else rows

    def _through_tape(self, classes: Sequence[str], linear: Node | None, start: str) -> str:
        """The full gradient at a tensor of the head."""
        g = self._graph
        if linear is not None and start != self._head.logits:
            end = linear.inputs[0]
            axis = 0 if attribute(linear, "transB", 0) else 1
            if end in g.reachable(start):
                seed = self._rows(classes, linear.inputs[1], axis)
                seed = g.scaled(seed, float(attribute(linear, "alpha", 1.0)))
                return seed if end == start else Tape(g, start, g.between(start, end)).gradient({end: seed})
        # No linear layer at the end: start at the logits with one-hot vectors.
        end = self._head.logits
        n_classes = g.sizes(end)[1]
        order = g.number(np.arange(n_classes), np.int64)
        hot = [g.add("Cast", g.add("Equal", g.unsqueeze(one, 1), order), to=1) for one in classes]
        seed = hot[0] if len(hot) == 1 else g.add("Sub", *hot)
        if g.rank(end) > 2:
            seed = g.reshape_like(seed, end)
        return seed if end == start else Tape(g, start, g.between(start, end)).gradient({end: seed})

    def _mean_of_tokens(self, gradient: str) -> str:
        """Mean over positions of a gradient (N, T, C) or (N, *positions, C), without class tokens."""
        g, head = self._graph, self._head
        if head.skipped:
            starts = g.indices([head.skipped])
            gradient = g.add("Slice", gradient, starts, g.indices([OPEN_END]), g.indices([1]))
        return g.reduce("ReduceMean", gradient, range(1, 1 + len(g.sizes(head.activation)) - 2), keep=False)


# -- the proof -------------------------------------------------------------------------------------------


def require_derivative(
    model: onnx.ModelProto, head: Head, weights: MapWeights, inputs: Inputs, *, dynamic: bool
) -> None:
    r"""Check that a finished graph runs, and that its map weights are the derivative of its logits.

    For a few rows, with the activation A moved a little at random and with a sign v_k for every map,
    those of the weights and random ones:

    .. math:: \frac{f_c(A + h v) - f_c(A - h v)}{2 h} = Z \sum_k v_k a_k

    to 5 % of the largest value that the right side can have, plus the rounding of float32 on the left side.
    More than half of the comparisons must deviate for an error.

    Args:
        model: The finished graph.
        head: What was differentiated.
        weights: Its map weights a_k.
        inputs: What to run it on.
        dynamic: Whether the graph accepts more than one row.

    Raises:
        ExportError: It does not run (code ``export-failed``), or most comparisons deviate
            (``export-inexact``).
    """
    session_of(model)  # once optimised, as a device loads it: the differences below run without optimisation
    moved = _Moved(model, head, weights)
    x = inputs.rows(_N_ROWS, seed=7)
    deviates = np.concatenate([moved.deviates(rows) for rows in ([x] if dynamic else x[:, None])])
    # A single row may cross a kink of a ReLU or a maximum within the step, however small it is. A wrong
    # derivative deviates on nearly all rows.
    if deviates.mean() > 0.5:
        raise ExportError(
            f"the derivative at {head.activation!r} is wrong: finite differences deviate in {deviates.sum()} "
            f"of {len(deviates)} comparisons; this is a bug: please report it with a "
            "description of the model's last layers, and try another layer",
            code="export-inexact",
        )


def _quantised_ranges(model: onnx.ModelProto, head: Head) -> dict[str, tuple[np.float32, np.float32]]:
    """What the QuantizeLinear nodes of a head can represent, by the integers' name."""
    tape = Tape(Graph(model), head.activation, head.nodes)
    return {
        node.outputs[0]: quantised_range(tape, node) for node in head.nodes if node.op == "QuantizeLinear"
    }


def _smooth(node: onnx.NodeProto, ranges: Mapping[str, object]) -> None:
    """Let a head clip where it quantises: rounding to steps has no differences that are small enough."""
    if node.output[0] in ranges:
        number = list(ranges).index(node.output[0])
        node.op_type = "Clip"
        node.input[:] = [node.input[0], f"{PREFIX}low_{number}", f"{PREFIX}high_{number}"]
        del node.attribute[:]
    elif node.op_type == "DequantizeLinear" and node.input[0] in ranges:
        node.op_type = "Identity"
        node.input[:] = [node.input[0]]
        del node.attribute[:]


class _Moved:
    """A graph with a second input that is added to the activation; it outputs logits and weights."""

    def __init__(self, model: onnx.ModelProto, head: Head, weights: MapWeights) -> None:
        self._head, self._weights = head, weights
        self._random = np.random.default_rng(7)
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        graph, nodes = copy.graph, []
        ranges = _quantised_ranges(model, head)
        for node in graph.node:
            _smooth(node, ranges)
            node.input[:] = [_MOVED if name == head.activation else name for name in node.input]
            # copied, because the list that holds the message is cleared below
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            if head.activation in node.output:
                nodes.append(helper.make_node("Add", [head.activation, _DELTA], [_MOVED]))
        del graph.node[:]
        graph.node.extend(nodes)
        for number, (low, high) in enumerate(ranges.values()):
            for end, value in (("low", low), ("high", high)):
                graph.initializer.append(
                    numpy_helper.from_array(np.asarray(value), f"{PREFIX}{end}_{number}")
                )
        axes = [None] * (2 + len(head.positions))
        graph.input.append(helper.make_tensor_value_info(_DELTA, TensorProto.FLOAT, axes))
        self._names = [head.activation, "logits", weights.name]
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._names)
        self._session = session_of(copy, optimised=False)

    def deviates(self, x: NDArray[np.float32]) -> BoolArray:
        """For every row and direction whether the two sides differ."""
        first, *_ = self._run(x, np.zeros((1,) * (2 + len(self._head.positions)), np.float32))
        size = float(np.abs(first).mean()) or 1.0
        # Activations after a ReLU are exactly 0 at many places, and 0 is the kink of a following ReLU or
        # maximum. A random start leaves no value on a kink.
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
            # The signs of the weights maximise the right-hand side, which exposes a wrong factor; random
            # signs expose two swapped maps.
            signs = np.sign(weights) if not direction else self._random.choice([-1.0, 1.0], weights.shape)
            delta = step * self._spread(signs, first.shape)
            ends = [self._run(x, (start + side * delta).astype(np.float32))[1] for side in (1, -1)]
            upper, lower = (end[rows, classes].astype(np.float64) for end in ends)
            slope = (upper - lower) / (2 * step)
            difference = np.abs(slope - n_positions * (signs * weights).sum(1))
            deviating.append(~(difference <= allowed))  # negated, because NaN proves nothing
        return np.concatenate(deviating)

    def _run(self, x: NDArray[np.float32], delta: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        try:
            found: list[NDArray[np.float32]] = self._session.run(self._names, {"input": x, _DELTA: delta})
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise ExportError(f"ONNX Runtime cannot run the differentiated head: {error}") from error
        return found

    def _spread(self, signs: FloatArray, shape: Sequence[int]) -> FloatArray:
        """One number per map in the shape of the activation; 0 at class tokens."""
        if self._head.layout == "channels_first":
            return np.broadcast_to(signs.reshape(*signs.shape, *[1] * (len(shape) - 2)), shape)
        spread = np.broadcast_to(signs.reshape(len(signs), *[1] * (len(shape) - 2), -1), shape).copy()
        spread[:, : self._head.skipped] = 0.0
        return spread
