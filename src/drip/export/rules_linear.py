"""Derivatives of products, convolutions, normalisations and softmax."""

from __future__ import annotations

import numpy as np

from drip.export.graph import Graph, Node
from drip.export.tape import Gradients, Tape, attribute, rule

Grads = list["str | None"]


def transposed(g: Graph, name: str) -> str:
    """A tensor with its last two axes exchanged."""
    rank = g.rank(name)
    return g.add("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])


@rule("Gemm")
def _gemm(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    a, b = node.inputs[:2]
    trans_a, trans_b = attribute(node, "transA", 0), attribute(node, "transB", 0)
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    value = gradients[0] or ""
    found: Grads = [None, None, None]
    if tape.active(a):
        if trans_a:
            found[0] = g.add("Gemm", b, value, alpha=alpha, transA=trans_b, transB=1)
        else:
            found[0] = g.add("Gemm", value, b, alpha=alpha, transB=1 - trans_b)
    if tape.active(b):
        if trans_b:
            found[1] = g.add("Gemm", value, a, alpha=alpha, transA=1, transB=trans_a)
        else:
            found[1] = g.add("Gemm", a, value, alpha=alpha, transA=1 - trans_a)
    if node.input(2) and tape.active(node.inputs[2]):
        found[2] = tape.unbroadcast(g.scaled(value, beta), node, node.inputs[2])
    return found


@rule("MatMul")
def _matmul(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    a, b = node.inputs
    if min(g.rank(a), g.rank(b)) < 2:
        raise tape.refuse(node, "two inputs of at least two axes")
    value = gradients[0] or ""

    def summed(product: str, name: str) -> str:
        """The sum over the leading axes along which the product's other factor was repeated."""
        output, sizes = g.sizes(node.outputs[0])[:-2], g.sizes(name)[:-2]
        extra = len(output) - len(sizes)
        copied = [axis for axis, size in enumerate(sizes) if size == 1 and output[axis + extra] != 1]
        axes = [*range(extra), *(axis + extra for axis in copied)]
        if not axes:
            return product
        total = g.reduce("ReduceSum", product, axes, keep=not extra)
        return g.reshape_like(total, name) if extra and copied else total

    at_a = summed(g.add("MatMul", value, transposed(g, b)), a) if tape.active(a) else None
    at_b = summed(g.add("MatMul", transposed(g, a), value), b) if tape.active(b) else None
    return [at_a, at_b]


def paddings(
    node: Node, sizes: tuple[int, ...], output: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Strides, dilations and paddings (all starts, then all ends) of a window operation."""
    n_axes = len(kernel)
    strides = attribute(node, "strides", (1,) * n_axes)
    dilations = attribute(node, "dilations", (1,) * n_axes)
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto in {"NOTSET", "VALID"}:
        return strides, dilations, attribute(node, "pads", (0,) * 2 * n_axes)
    total = [
        max(0, (o - 1) * s + d * (k - 1) + 1 - i)
        for o, s, d, k, i in zip(output, strides, dilations, kernel, sizes, strict=True)
    ]
    small, large = [value // 2 for value in total], [value - value // 2 for value in total]
    return strides, dilations, tuple(small + large if auto == "SAME_UPPER" else large + small)


@rule("Conv")
def _conv(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """The gradient of a convolution is the transposed convolution with the same weights."""
    g = tape.graph
    x, weight = node.inputs[:2]
    if tape.active(weight):
        raise tape.refuse(node, "weights that do not depend on the input")
    tape.fixed(node, x, range(2, g.rank(x)))
    group = int(attribute(node, "group", 1))
    return [spread_windows(g, node, gradients[0] or "", weight, group)]


def spread_windows(g: Graph, node: Node, gradient: str, weight: str, group: int) -> str:
    """The transposed convolution that takes the gradient at a window operation to its input."""
    sizes, output = g.sizes(node.inputs[0])[2:], g.sizes(node.outputs[0])[2:]
    kernel = attribute(node, "kernel_shape", ()) or g.sizes(weight)[2:]
    strides, dilations, pads = paddings(node, sizes, output, kernel)
    ends = [
        (o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(output, strides, dilations, kernel, strict=True)
    ]
    starts = list(pads[: len(kernel)])
    # the windows may end behind the input, in the padding, or leave some of it unread
    behind = [end - start - size for end, start, size in zip(ends, starts, sizes, strict=True)]
    spread = g.add(
        "ConvTranspose", gradient, weight, strides=list(strides), dilations=list(dilations), group=group,
        pads=[*starts, *(max(0, cut) for cut in behind)],
    )  # fmt: skip
    if min(behind) >= 0:
        return spread
    return g.add("Pad", spread, g.indices([0] * (len(kernel) + 4) + [max(0, -cut) for cut in behind]))


def normalised_gradient(g: Graph, x: str, gradient: str, axes: tuple[int, ...], epsilon: float) -> str:
    """Gradient at x of (x - mean) / deviation, both over some axes, from the gradient at the result."""

    def mean(value: str) -> str:
        return g.reduce("ReduceMean", value, axes, keep=True)

    centred = g.add("Sub", x, mean(x))
    variance = mean(g.add("Mul", centred, centred))
    inverse = g.add("Reciprocal", g.add("Sqrt", g.add("Add", variance, g.number(epsilon))))
    normal = g.add("Mul", centred, inverse)
    along = g.add("Mul", normal, mean(g.add("Mul", gradient, normal)))
    return g.add("Mul", inverse, g.add("Sub", g.add("Sub", gradient, mean(gradient)), along))


@rule("LayerNormalization")
def _layer_norm(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    if any(gradients[1:]) or any(tape.active(name) for name in node.inputs[1:] if name):
        raise tape.refuse(node, "a constant scale and one output that is used")
    g, x = tape.graph, node.inputs[0]
    rank = g.rank(x)
    axes = tuple(range(int(attribute(node, "axis", -1)) % rank, rank))
    scaled = g.add("Mul", gradients[0] or "", node.inputs[1])
    return [normalised_gradient(g, x, scaled, axes, float(attribute(node, "epsilon", 1e-5)))]


@rule("InstanceNormalization")
def _instance_norm(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    rank = g.rank(x)
    scale = g.reshape(node.inputs[1], [1, -1] + [1] * (rank - 2))
    scaled = g.add("Mul", gradients[0] or "", scale)
    epsilon = float(attribute(node, "epsilon", 1e-5))
    return [normalised_gradient(g, x, scaled, tuple(range(2, rank)), epsilon)]


@rule("BatchNormalization")
def _batch_norm(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    scale, variance = g.constant(node.inputs[1]), g.constant(node.inputs[4])
    if attribute(node, "training_mode", 0) or scale is None or variance is None:
        raise tape.refuse(node, "inference mode and constant statistics")
    epsilon = float(attribute(node, "epsilon", 1e-5))
    slope = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    factor = g.number(slope.reshape(-1, *(1,) * (g.rank(x) - 2)))
    return [g.add("Mul", gradients[0] or "", factor)]


@rule("Softmax")
def _softmax(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, y = tape.graph, node.outputs[0]
    axis = int(attribute(node, "axis", -1)) % g.rank(y)
    weighted = g.add("Mul", gradients[0] or "", y)
    total = g.reduce("ReduceSum", weighted, [axis], keep=True)
    return [g.add("Sub", weighted, g.add("Mul", y, total))]


@rule("LogSoftmax")
def _log_softmax(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, y = tape.graph, node.outputs[0]
    axis = int(attribute(node, "axis", -1)) % g.rank(y)
    total = g.reduce("ReduceSum", gradients[0] or "", [axis], keep=True)
    return [g.add("Sub", gradients[0] or "", g.add("Mul", g.add("Exp", y), total))]
