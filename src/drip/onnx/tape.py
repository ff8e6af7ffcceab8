"""Differentiates the head of a graph in reverse mode, by appending ordinary forward nodes.

The derivatives, one per operation, are in :mod:`drip.onnx.derivatives`; each is tested against autograd.
ONNX has operations for gradients in its training domain, but the
inference builds of ONNX Runtime do not run them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from drip.errors import ExportError
from drip.onnx.graph import Graph, Node

Gradients = Sequence["str | None"]
Derivative = Callable[["Tape", Node, list["str | None"]], Gradients]
"""Maps the gradients at a node's outputs to those at its inputs; None is no gradient."""

DERIVATIVES: dict[str, Derivative] = {}


def derivative(*ops: str) -> Callable[[Derivative], Derivative]:
    """Register a function as the derivative of some operations."""

    def register(function: Derivative) -> Derivative:
        DERIVATIVES.update(dict.fromkeys(ops, function))
        return function

    return register


class Tape:
    """Appends to a graph the gradient of some tensors at an earlier one.

    Gradients have the full shape of their tensor. At a kink the derivative is PyTorch's, so both compute the
    same scores: 0 at 0 for ReLU, and the first of equal values for maxima.

    Args:
        graph: The graph, measured between ``start`` and the tensors that are differentiated.
        start: The tensor with respect to which the gradient is computed.
        nodes: The nodes between, in the order of execution.
    """

    def __init__(self, graph: Graph, start: str, nodes: Sequence[Node]) -> None:
        self.graph = graph
        self._start = start
        self._nodes = nodes
        # A gradient is computed only at tensors that depend on the start. Weights do not, which saves
        # most of the work in linear layers.
        self._active = {start} | {name for node in nodes for name in node.outputs if name}

    def active(self, name: str) -> bool:
        """Whether a tensor depends on the start."""
        return name in self._active

    def gradient(self, seeds: Mapping[str, str]) -> str:
        """Gradient at the start.

        Args:
            seeds: Gradients at the tensors to differentiate.

        Raises:
            ExportError: An operation between has no derivative, or the start has no influence.
        """
        sums: dict[str, list[str]] = {name: [value] for name, value in seeds.items()}
        for node in reversed(self._nodes):
            at_outputs = [self._total(sums, name) for name in node.outputs]
            if not any(at_outputs):  # a node outside the path, such as one that computes a shape
                continue
            if node.op not in DERIVATIVES:
                raise ExportError(
                    f"{node} cannot be differentiated; choose a layer after it, or use another head",
                    code="export-unsupported",
                )
            # not strict: a derivative may leave out inputs at the end, such as axes
            for name, value in zip(node.inputs, DERIVATIVES[node.op](self, node, at_outputs), strict=False):
                if value is not None and self.active(name):
                    sums.setdefault(name, []).append(value)
        total = self._total(sums, self._start)
        if total is None:
            raise ExportError(
                f"the logits do not depend on {self._start!r}; choose another layer", code="model-layer"
            )
        return total

    def _total(self, sums: dict[str, list[str]], name: str) -> str | None:
        # A tensor with several readers has several gradients. They are added here, when the node that made
        # it is reached: by then all of its readers have been visited.
        parts = sums.get(name)
        if not parts:
            return None
        while len(parts) > 1:
            parts[:2] = [self.graph.add("Add", parts[0], parts[1])]
        return parts[0]

    # -- helpers of the derivatives --------------------------------------------------------------------

    def unsupported(self, node: Node, wanted: str) -> ExportError:
        """The error of a node whose operation has a derivative, but not in this use."""
        return ExportError(
            f"{node} must have {wanted} to be differentiated; choose a layer after it, or use another head",
            code="export-unsupported",
        )

    def unbroadcast(self, gradient: str, node: Node, name: str) -> str:
        """The gradient at an input that was broadcast to the node's output: the sum over its copies."""
        sizes, output = self.graph.sizes(name), self.graph.sizes(node.outputs[0])
        extra = len(output) - len(sizes)
        copied = [axis for axis, size in enumerate(sizes) if size == 1 and output[axis + extra] != 1]
        axes = [*range(extra), *(axis + extra for axis in copied)]
        if not axes:
            return gradient
        # Two kinds of copies: axes that the input lacks, and axes of size one that were repeated.
        total = self.graph.reduce("ReduceSum", gradient, axes, keep=not extra)
        return self.graph.reshape_like(total, name) if extra and copied else total

    def fill(self, like: str, value: float) -> str:
        """A tensor of one value in the shape of another."""
        return self.graph.add("Expand", self.graph.number(value), self.graph.add("Shape", like))

    def axes(self, node: Node, index: int = 1, of: str | None = None) -> tuple[int, ...] | None:
        """Axes of a node as non-negative numbers; None if the node does not name any."""
        found = self.graph.integers(node, index, "axes")
        rank = self.graph.rank(of or node.inputs[0])
        return None if found is None else tuple(axis % rank for axis in found)

    def fixed(self, node: Node, name: str, axes: Iterable[int]) -> None:
        """Reject axes whose size follows the batch; the derivative writes their size into the graph."""
        if self.graph.shapes[name].growing & set(axes):
            raise self.unsupported(node, "axes of fixed size")


def attribute(node: Node, name: str, default: Any) -> Any:
    """An attribute of a node; lists as tuples of numbers."""
    value = node.attributes.get(name, default)
    if isinstance(value, bytes):  # ONNX stores strings as bytes
        return value.decode()
    return tuple(value) if isinstance(value, (list, tuple, np.ndarray)) else value
