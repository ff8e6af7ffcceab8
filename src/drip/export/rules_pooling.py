"""Derivatives of what takes many values to few: means, sums, maxima, pooling."""

from __future__ import annotations

import math

import numpy as np

from drip.export.graph import Node
from drip.export.rules_linear import paddings, spread_windows
from drip.export.tape import Gradients, Tape, attribute, rule

Grads = list["str | None"]


def reduced_axes(tape: Tape, node: Node) -> tuple[int, ...]:
    """Axes of a reduction, none of them negative; all where it does not say."""
    axes = tape.axes(node)
    if axes:
        return axes
    if attribute(node, "noop_with_empty_axes", 0):
        return ()
    return tuple(range(tape.graph.rank(node.inputs[0])))


def _kept(tape: Tape, node: Node, name: str, axes: tuple[int, ...]) -> str:
    """A reduction's output, or the gradient there, with the reduced axes of size one."""
    if attribute(node, "keepdims", 1) or not axes:
        return name
    return tape.graph.add("Unsqueeze", name, tape.graph.indices(sorted(axes)))


def _spread(tape: Tape, value: str, like: str) -> str:
    """Copies of a value along the axes where another tensor is longer."""
    return tape.graph.add("Expand", value, tape.graph.add("Shape", like))


@rule("ReduceMean", "ReduceSum")
def _mean_or_sum(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    axes = reduced_axes(tape, node)
    value = _kept(tape, node, gradients[0] or "", axes)
    if node.op == "ReduceMean":
        tape.fixed(node, x, axes)
        value = g.scaled(value, 1.0 / math.prod(g.sizes(x)[axis] for axis in axes))
    return [_spread(tape, value, x)]


@rule("GlobalAveragePool")
def _global_average(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    tape.fixed(node, x, range(2, g.rank(x)))
    return [_spread(tape, g.scaled(gradients[0] or "", 1.0 / math.prod(g.sizes(x)[2:])), x)]


@rule("ReduceL2")
def _length(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    axes = reduced_axes(tape, node)
    ratio = g.add("Div", gradients[0] or "", node.outputs[0])
    return [g.add("Mul", _kept(tape, node, ratio, axes), x)]


@rule("ReduceMax", "ReduceMin")
def _extreme(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """Equal values share the gradient, as in PyTorch's ``amax``."""
    g, x = tape.graph, node.inputs[0]
    axes = reduced_axes(tape, node)
    chosen = g.add("Cast", g.add("Equal", x, _kept(tape, node, node.outputs[0], axes)), to=1)
    share = g.add("Div", chosen, g.reduce("ReduceSum", chosen, axes, keep=True))
    return [g.add("Mul", _kept(tape, node, gradients[0] or "", axes), share)]


@rule("GlobalMaxPool")
def _global_max(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    tape.fixed(node, x, range(2, g.rank(x)))
    n_positions = math.prod(g.sizes(x)[2:])
    flat = g.reshape(x, [0, 0, -1])
    first = g.add("ArgMax", flat, axis=2, keepdims=1)
    places = g.number(np.arange(n_positions), np.int64)
    chosen = g.add("Cast", g.add("Equal", first, places), to=1)
    spread = g.add("Mul", chosen, g.reshape(gradients[0] or "", [0, 0, 1]))
    return [g.reshape_like(spread, x)]


@rule("MaxPool")
def _max_pool(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """Each window sends its gradient to the first of its largest values."""
    g, x = tape.graph, node.inputs[0]
    if attribute(node, "storage_order", 0) or (len(gradients) > 1 and gradients[1]):
        raise tape.refuse(node, "row-major indices")
    options = {key: value for key, value in node.attributes.items() if key != "storage_order"}
    places = g.add("MaxPool", x, outputs=2, **options) + ".1"
    values = g.reshape(gradients[0] or "", [-1])
    empty = g.add("Reshape", tape.fill(x, 0.0), g.indices([-1]))
    add = {"reduction": "add"} if g.opset >= 16 else {}
    if not add and _overlaps(node):
        raise tape.refuse(node, "windows that do not overlap, or opset 16,")
    scattered = g.add("ScatterElements", empty, g.reshape(places, [-1]), values, axis=0, **add)
    return [g.reshape_like(scattered, x)]


def _overlaps(node: Node) -> bool:
    kernel = attribute(node, "kernel_shape", ())
    strides = attribute(node, "strides", (1,) * len(kernel))
    return any(k > s for k, s in zip(kernel, strides, strict=True)) or "dilations" in node.attributes


@rule("AveragePool")
def _average_pool(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """A convolution with equal weights per channel."""
    g, x = tape.graph, node.inputs[0]
    tape.fixed(node, x, range(2, g.rank(x)))
    kernel = attribute(node, "kernel_shape", ())
    sizes = g.sizes(x)[2:], g.sizes(node.outputs[0])[2:]
    _, _, pads = paddings(node, *sizes, kernel)
    if attribute(node, "ceil_mode", 0) or (any(pads) and not attribute(node, "count_include_pad", 0)):
        raise tape.refuse(node, "complete windows: no ceil_mode, no padding that is not counted,")
    channels = g.sizes(x)[1]
    weight = g.number(np.full((channels, 1, *kernel), 1.0 / math.prod(kernel)))
    return [spread_windows(g, node, gradients[0] or "", weight, channels)]
