"""The weight of each map: its mean gradient, in the fewest nodes that give it exactly.

Pooling and flattening at the start of the head keep each map's sum of gradients, so they are passed
over; a linear layer behind them folds to its mean over positions; rows of the last linear layer are
gathered. What remains in the middle goes through the tape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drip.errors import ExportError
from drip.onnx.derivatives import reduced_axes
from drip.onnx.graph import Graph, Node
from drip.onnx.heads import Head
from drip.onnx.tape import Tape, attribute

_PASSIVE = frozenset(("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze"))


@dataclass(frozen=True, slots=True)
class MapWeights:
    """The weights a_k of a head as tensors of the graph.

    Attributes:
        name: Tensor of shape (N, K).
        factor: The weights are this many times the tensor; a number left for the end saves a node.
    """

    name: str
    factor: float


class Differentiator:
    """Appends the map weights of logits, or of differences of two, to a graph.

    Args:
        graph: The graph, measured in the head.
        head: Where to differentiate.
    """

    def __init__(self, graph: Graph, head: Head) -> None:
        self._graph, self._head = graph, head
        self._active = {head.activation} | {name for node in head.nodes for name in node.outputs}
        self._pooled, self._n_left = self._behind_pooling()

    def weights(self, classes: Sequence[str]) -> MapWeights:
        r"""Mean gradients :math:`a_k = \frac1Z \sum_p \partial y / \partial A_{k,p}` of logits.

        Args:
            classes: Tensors of class indices, shape (N,): y is the logit of the first, minus that of
                the second where there is one.

        Raises:
            ExportError: An operation of the head has no rule.
        """
        g, head = self._graph, self._head
        n_positions = math.prod(head.positions)
        linear = self._last_linear()
        simple = head.layout == "channels_first" or self._pooled != head.activation
        if not simple:
            full = self._through_tape(classes, linear, head.activation)
            return MapWeights(self._mean_of_tokens(full), 1.0)
        dense = self._dense_behind() if self._n_left > 1 else {}
        if dense and linear is not None and linear.inputs[0] == self._pooled:
            rows = self._rows(classes, g.number(self._folded(linear)), axis=0)
            return MapWeights(rows, 1.0 / n_positions)
        if dense:
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

    def _behind_pooling(self) -> tuple[str, int]:
        """The last tensor up to which each map's sum of gradients is kept, and its positions per map."""
        g, head = self._graph, self._head
        name, n_left = head.activation, math.prod(head.positions)
        if head.skipped:
            return name, n_left
        while True:
            following = [node for node in head.nodes if name in node.reads()]
            if len(following) != 1 or name == head.logits:
                return name, n_left
            node = following[0]
            left = self._positions_behind(node, name, n_left)
            if left is None or any(one in self._active for one in node.outputs[1:] if one in g.readers):
                return name, n_left
            name, n_left = node.outputs[0], left

    def _positions_behind(  # noqa: PLR0911  # one per kind of operation
        self, node: Node, name: str, n_left: int
    ) -> int | None:
        """Positions per map behind a node that keeps sums of gradients, None behind another."""
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
            unpadded = not any(attribute(node, "pads", ())) and attribute(node, "auto_pad", "NOTSET") in {
                "NOTSET",
                "VALID",
            }
            return math.prod(output[2:]) if unpadded or not attribute(node, "count_include_pad", 0) else None
        return None

    def _dense_behind(self) -> dict[Node, np.ndarray]:
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
        """Weights of a linear layer behind a flattening, times its alpha, summed over positions, (M, K)."""
        weight = self._graph.constant(node.inputs[1])
        if weight is None:
            raise ExportError(f"{node} must have constant weights")
        rows = weight if attribute(node, "transB", 0) else weight.T
        summed = rows.astype(np.float64).reshape(len(rows), self._head.n_maps, self._n_left).sum(2)
        return np.asarray(summed * float(attribute(node, "alpha", 1.0)))

    # -- at its end ------------------------------------------------------------------------------------

    def _is_linear(self, node: Node) -> bool:
        """Whether a node is a product of (N, M) values with weights that do not depend on the input."""
        if node.op not in {"Gemm", "MatMul"} or attribute(node, "transA", 0):
            return False
        x, weight = node.inputs[:2]
        two_axes = self._graph.rank(x) == 2 and self._graph.rank(weight) == 2
        rest = any(name in self._active for name in node.inputs[1:])
        return two_axes and x in self._active and not rest

    def _last_linear(self) -> Node | None:
        """The linear layer that gives the logits, but for a bias; None where something else does."""
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
        """Rows of a matrix, or columns as rows, by class: (N, M)."""
        g = self._graph
        parts = [g.add("Gather", weight, index, axis=axis) for index in classes]
        rows = parts[0] if len(parts) == 1 else g.add("Sub", *parts)
        return g.add("Transpose", rows, perm=[1, 0]) if axis else rows

    def _through_tape(self, classes: Sequence[str], linear: Node | None, start: str) -> str:
        """Full gradient at a tensor of the head."""
        g = self._graph
        if linear is not None and start != self._head.logits:
            end = linear.inputs[0]
            axis = 0 if attribute(linear, "transB", 0) else 1
            if end in g.reachable(start):
                seed = self._rows(classes, linear.inputs[1], axis)
                seed = g.scaled(seed, float(attribute(linear, "alpha", 1.0)))
                return seed if end == start else Tape(g, start, g.between(start, end)).gradient({end: seed})
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
            gradient = g.add("Slice", gradient, g.indices([1]), g.indices([2**62]), g.indices([1]))
        return g.reduce("ReduceMean", gradient, range(1, 1 + len(g.sizes(head.activation)) - 2), keep=False)
