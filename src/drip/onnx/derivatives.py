"""The derivatives of operations: from the gradients at a node's outputs to those at its inputs.

One function per operation, or per group that differs in a sign. Each appends forward nodes to the graph and
is tested against PyTorch's autograd, including what happens at kinks and ties. A gradient that is None is
not computed, because nothing before that input depends on the activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drip.onnx.graph import OPEN_END, Graph, Node
from drip.onnx.tape import DERIVATIVES, Gradients, Tape, attribute, derivative

Grads = list["str | None"]
Slope = Callable[[Graph, Node], str]


# -- value by value, one argument -------------------------------------------------------------------------


def _unary(op: str, slope: Slope) -> None:
    """Register an operation that acts on each value alone, by its slope."""

    def backward(tape: Tape, node: Node, gradients: Grads) -> Gradients:
        return [tape.graph.add("Mul", gradients[0] or "", slope(tape.graph, node))]

    DERIVATIVES[op] = backward


def _one_minus(g: Graph, x: str) -> str:
    return g.add("Sub", g.number(1.0), x)


def _squared(g: Graph, x: str) -> str:
    return g.add("Mul", x, x)


def _sigmoid_slope(g: Graph, y: str) -> str:
    return g.add("Mul", y, _one_minus(g, y))


def _gelu_slope(g: Graph, node: Node) -> str:
    x = node.inputs[0]
    if attribute(node, "approximate", "none") == "tanh":
        # 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), Hendrycks and Gimpel 2016, arXiv:1606.08415
        root, cubic = math.sqrt(2 / math.pi), 0.044715
        inner = g.scaled(g.add("Mul", x, g.add("Add", g.scaled(_squared(g, x), cubic), g.number(1.0))), root)
        tanh = g.add("Tanh", inner)
        rise = g.scaled(g.add("Add", g.scaled(_squared(g, x), 3 * cubic), g.number(1.0)), root)
        bend = g.add("Mul", g.add("Mul", _one_minus(g, _squared(g, tanh)), rise), g.scaled(x, 0.5))
        return g.add("Add", g.scaled(g.add("Add", tanh, g.number(1.0)), 0.5), bend)
    # x Phi(x), with the distribution function and the density of the normal distribution
    cumulated = g.scaled(g.add("Add", g.add("Erf", g.scaled(x, math.sqrt(0.5))), g.number(1.0)), 0.5)
    density = g.scaled(g.add("Exp", g.scaled(_squared(g, x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return g.add("Add", cumulated, g.add("Mul", x, density))


def _swish_slope(g: Graph, node: Node) -> str:
    x, alpha = node.inputs[0], float(attribute(node, "alpha", 1.0))
    gate = g.add("Sigmoid", g.scaled(x, alpha))
    return g.add("Add", gate, g.scaled(g.add("Mul", x, _sigmoid_slope(g, gate)), alpha))


def _mish_slope(g: Graph, node: Node) -> str:
    x = node.inputs[0]
    tanh = g.add("Tanh", g.add("Softplus", x))
    bend = g.add("Mul", _one_minus(g, _squared(g, tanh)), g.add("Sigmoid", x))
    return g.add("Add", tanh, g.add("Mul", x, bend))


def _erf_slope(g: Graph, node: Node) -> str:
    bell = g.add("Exp", g.add("Neg", _squared(g, node.inputs[0])))
    return g.scaled(bell, 2 / math.sqrt(math.pi))


def _root_slope(g: Graph, node: Node) -> str:
    """0 at 0, where the slope is infinite: the deviation of a constant channel must not give 0 times infinity."""
    y = node.outputs[0]
    return g.scaled(_where_positive(g, y, g.add("Reciprocal", y)), 0.5)


def _where_positive(g: Graph, x: str, value: str) -> str:
    return g.add("Where", g.add("Greater", x, g.number(0.0)), value, g.number(0.0))


_unary("Sigmoid", lambda g, node: _sigmoid_slope(g, node.outputs[0]))
_unary("Tanh", lambda g, node: _one_minus(g, _squared(g, node.outputs[0])))
_unary("Erf", _erf_slope)
_unary("Gelu", _gelu_slope)
_unary("Swish", _swish_slope)
_unary("Mish", _mish_slope)
_unary("Exp", lambda _g, node: node.outputs[0])
_unary("Log", lambda g, node: g.add("Reciprocal", node.inputs[0]))
_unary("Sqrt", _root_slope)
_unary("Reciprocal", lambda g, node: g.add("Neg", _squared(g, node.outputs[0])))
_unary("Abs", lambda g, node: g.add("Sign", node.inputs[0]))
_unary("Softplus", lambda g, node: g.add("Sigmoid", node.inputs[0]))


@derivative("Identity", "Dropout")
def _same(_tape: Tape, _node: Node, gradients: Grads) -> Gradients:
    """Dropout does nothing in inference."""
    return gradients[:1]


@derivative("Cast")
def _cast(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    if attribute(node, "to", 1) != 1:
        raise tape.unsupported(node, "float32 on both sides")  # float16 would round, integers have no slope
    return gradients[:1]


@derivative("Neg")
def _neg(tape: Tape, _node: Node, gradients: Grads) -> Gradients:
    return [tape.graph.add("Neg", gradients[0] or "")]


def _masked(tape: Tape, mask: str, gradient: str | None, otherwise: str | None = None) -> str:
    """The gradient where the mask is true, elsewhere another one or zero.

    Uses Where instead of multiplying by 0 and 1: an infinite gradient times 0 would be NaN.
    """
    return tape.graph.add("Where", mask, gradient or "", otherwise or tape.graph.number(0.0))


@derivative("Relu")
def _relu(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    # The output is positive exactly where the input is, so the input need not stay in memory.
    return [_masked(tape, g.add("Greater", node.outputs[0], g.number(0.0)), gradients[0])]


@derivative("LeakyRelu")
def _leaky_relu(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    leaked = g.scaled(gradients[0] or "", float(attribute(node, "alpha", 0.01)))
    return [_masked(tape, g.add("Greater", node.inputs[0], g.number(0.0)), gradients[0], leaked)]


@derivative("PRelu")
def _prelu(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    if tape.active(node.inputs[1]):
        raise tape.unsupported(node, "a constant slope")
    leaked = g.add("Mul", gradients[0] or "", node.inputs[1])
    return [_masked(tape, g.add("Greater", node.inputs[0], g.number(0.0)), gradients[0], leaked)]


@derivative("Elu", "Selu")
def _elu(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    # below zero y = alpha gamma (exp(x) - 1), so the slope is y + alpha gamma
    selu = node.op == "Selu"
    alpha = float(attribute(node, "alpha", 1.6732632423543772 if selu else 1.0))
    gamma = float(attribute(node, "gamma", 1.0507009873554805)) if selu else 1.0
    below = g.add("Mul", gradients[0] or "", g.add("Add", node.outputs[0], g.number(alpha * gamma)))
    above = g.scaled(gradients[0] or "", gamma)
    return [_masked(tape, g.add("Greater", node.inputs[0], g.number(0.0)), above, below)]


@derivative("HardSigmoid")
def _hard_sigmoid(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    # strictly between the ends, where PyTorch's hardsigmoid has a slope
    g, y = tape.graph, node.outputs[0]
    inside = g.add("And", g.add("Greater", y, g.number(0.0)), g.add("Less", y, g.number(1.0)))
    return [_masked(tape, inside, g.scaled(gradients[0] or "", float(attribute(node, "alpha", 0.2))))]


def _hard_swish_slope(g: Graph, node: Node) -> str:
    x = node.inputs[0]
    middle = g.add("Add", g.scaled(x, 1 / 3), g.number(0.5))
    high = g.add("Where", g.add("Greater", x, g.number(3.0)), g.number(1.0), middle)
    return g.add("Where", g.add("Less", x, g.number(-3.0)), g.number(0.0), high)


_unary("HardSwish", _hard_swish_slope)


@derivative("Clip")
def _clip(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """The slope is 1 at the bounds of PyTorch's ``clamp`` and 0 at those of its ReLU6.

    Both are exported as Clip. Bounds of 0 and 6 are ReLU6 in practice, as in MobileNet.
    """
    g, x = tape.graph, node.inputs[0]
    low, high = node.input(1), node.input(2)  # either bound may be left out
    values = [g.constant(name) if name else None for name in (low, high)]
    bounds = tuple(None if value is None else float(value.item()) for value in values)
    strict = bounds == (0.0, 6.0)
    masks = []
    if low:
        masks.append(g.add("Greater" if strict else "GreaterOrEqual", x, low))
    if high:
        masks.append(g.add("Less" if strict else "LessOrEqual", x, high))
    if not masks:
        return gradients[:1]
    return [_masked(tape, masks[0] if len(masks) == 1 else g.add("And", *masks), gradients[0])]


@derivative("DequantizeLinear")
def _dequantised(_tape: Tape, _node: Node, gradients: Grads) -> Gradients:
    """The gradient at the integers is that at the numbers that they represent; see QuantizeLinear."""
    return gradients[:1]


@derivative("QuantizeLinear")
def _quantised(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """The straight-through estimator: the slope of a clip to the numbers that the integers can represent.

    Rounding itself has no slope. Quantisers fuse ReLU into the clip.

    References:
        Bengio et al. 2013, arXiv:1308.3432.
    """
    g = tape.graph
    low, high = quantised_range(tape, node)
    inside = g.add(
        "And",
        g.add("Greater", node.inputs[0], g.number(low)),
        g.add("Less", node.inputs[0], g.number(high)),
    )
    return [_masked(tape, inside, gradients[0])]


def quantised_range(tape: Tape, node: Node) -> tuple[np.float32, np.float32]:
    """The smallest and the largest number that a QuantizeLinear node can represent.

    Raises:
        ExportError: Its scale is not one constant.
    """
    scale = tape.graph.constant(node.inputs[1])
    zero = tape.graph.constant(node.input(2)) if node.input(2) else np.zeros((), np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        raise tape.unsupported(node, "one constant scale and integers")
    ends = np.iinfo(zero.dtype)
    low, high = ((end - int(zero.item())) * np.float32(scale.item()) for end in (ends.min, ends.max))
    return np.float32(low), np.float32(high)


# -- value by value, several arguments --------------------------------------------------------------------


@derivative("Add", "Sub", "Sum", "Mean")
def _add(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    found: Grads = []
    part = 1.0 / len(node.inputs) if node.op == "Mean" else 1.0
    for index, name in enumerate(node.inputs):
        value = tape.graph.scaled(gradients[0] or "", part)
        if tape.active(name):
            signed = tape.graph.add("Neg", value) if node.op == "Sub" and index else value
            found.append(tape.unbroadcast(signed, node, name))
        else:
            found.append(None)
    return found


@derivative("Mul")
def _mul(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    def at(index: int) -> str | None:
        if not tape.active(node.inputs[index]):
            return None
        product = tape.graph.add("Mul", gradients[0] or "", node.inputs[1 - index])
        return tape.unbroadcast(product, node, node.inputs[index])

    return [at(0), at(1)]


@derivative("Div")
def _div(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    top, bottom = node.inputs
    quotient = g.add("Div", gradients[0] or "", bottom)
    at_bottom = None
    if tape.active(bottom):
        # d(a / b) / db = -(a / b) / b: the output is already known
        product = g.add("Neg", g.add("Mul", quotient, node.outputs[0]))
        at_bottom = tape.unbroadcast(product, node, bottom)
    return [tape.unbroadcast(quotient, node, top) if tape.active(top) else None, at_bottom]


@derivative("Pow")
def _pow(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    exponent = g.constant(node.inputs[1])
    if exponent is None or tape.active(node.inputs[1]):
        raise tape.unsupported(node, "a constant exponent")
    # The derivative by the exponent would need the logarithm of the base, which may be negative.
    powers = exponent.astype(np.float32)
    lowered = g.add("Pow", node.inputs[0], g.number(powers - np.float32(1)))
    slope = g.add("Mul", lowered, g.number(powers))
    if (powers < 1).any():  # as for Sqrt
        slope = g.add("Where", g.add("Equal", node.inputs[0], g.number(0.0)), g.number(0.0), slope)
    return [tape.unbroadcast(g.add("Mul", gradients[0] or "", slope), node, node.inputs[0])]


@derivative("Max", "Min")
def _extreme(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """Each of two equal values gets half of the gradient, as in PyTorch's ``maximum`` and ``minimum``."""
    if len(node.inputs) != 2:
        raise tape.unsupported(node, "two inputs")
    g = tape.graph
    first, second = node.inputs
    compare = "Greater" if node.op == "Max" else "Less"
    half = g.scaled(gradients[0] or "", 0.5)
    equal = g.add("Equal", first, second)

    def at(name: str, other: str) -> str | None:
        if not tape.active(name):
            return None
        chosen = _masked(tape, g.add(compare, name, other), gradients[0])
        return tape.unbroadcast(_masked(tape, equal, half, chosen), node, name)

    return [at(first, second), at(second, first)]


@derivative("Where")
def _where(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    condition, yes, no = node.inputs
    zero = g.number(0.0)
    at_yes = at_no = None
    if tape.active(yes):
        at_yes = tape.unbroadcast(g.add("Where", condition, gradients[0] or "", zero), node, yes)
    if tape.active(no):
        at_no = tape.unbroadcast(g.add("Where", condition, zero, gradients[0] or ""), node, no)
    return [None, at_yes, at_no]


# -- products and convolutions ----------------------------------------------------------------------------


def transposed(g: Graph, name: str) -> str:
    """A tensor with its last two axes swapped."""
    rank = g.rank(name)
    return g.add("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])


@derivative("Gemm")
def _gemm(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    # The four cases of transposed factors differ in the side of the gradient.
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


@derivative("MatMul")
def _matmul(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    a, b = node.inputs
    if min(g.rank(a), g.rank(b)) < 2:
        raise tape.unsupported(node, "two inputs of at least two axes")
    value = gradients[0] or ""

    def summed(product: str, name: str) -> str:
        """The sum over the leading axes along which the factor was repeated."""
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
    """Strides, dilations and paddings (all starts, then all ends) of a convolution or pooling."""
    n_axes = len(kernel)
    # ONNX's defaults; exporters omit attributes with these values
    strides = attribute(node, "strides", (1,) * n_axes)
    dilations = attribute(node, "dilations", (1,) * n_axes)
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto in {"NOTSET", "VALID"}:
        return strides, dilations, attribute(node, "pads", (0,) * 2 * n_axes)
    # SAME_UPPER and SAME_LOWER: as much padding as the output needs, with the odd one at the end or the start
    total = [
        max(0, (o - 1) * s + d * (k - 1) + 1 - i)
        for o, s, d, k, i in zip(output, strides, dilations, kernel, sizes, strict=True)
    ]
    small, large = [value // 2 for value in total], [value - value // 2 for value in total]
    return strides, dilations, tuple(small + large if auto == "SAME_UPPER" else large + small)


@derivative("Conv")
def _conv(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """The gradient of a convolution is the transposed convolution with the same weights."""
    g = tape.graph
    x, weight = node.inputs[:2]
    if tape.active(weight):
        raise tape.unsupported(node, "weights that do not depend on the input")
    tape.fixed(node, x, range(2, g.rank(x)))
    group = int(attribute(node, "group", 1))
    return [spread_windows(g, node, gradients[0] or "", weight, group)]


def spread_windows(g: Graph, node: Node, gradient: str, weight: str, group: int) -> str:
    """The transposed convolution that maps the gradient at a convolution or pooling to its input."""
    sizes, output = g.sizes(node.inputs[0])[2:], g.sizes(node.outputs[0])[2:]
    kernel = attribute(node, "kernel_shape", ()) or g.sizes(weight)[2:]
    strides, dilations, pads = paddings(node, sizes, output, kernel)
    ends = [
        (o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(output, strides, dilations, kernel, strict=True)
    ]
    starts = list(pads[: len(kernel)])
    # The kernel's last position may end after the input, in the padding (cut off), or before it, if the
    # stride does not divide the size (zeros are added: those values were never read).
    cut = [end - start - size for end, start, size in zip(ends, starts, sizes, strict=True)]
    spread = g.add(
        "ConvTranspose", gradient, weight, strides=list(strides), dilations=list(dilations), group=group,
        pads=[*starts, *(max(0, size) for size in cut)],
    )  # fmt: skip
    if min(cut) >= 0:
        return spread
    return g.add("Pad", spread, g.indices([0] * (len(kernel) + 4) + [max(0, -size) for size in cut]))


# -- normalisation ----------------------------------------------------------------------------------------


def normalised_gradient(g: Graph, x: str, gradient: str, axes: tuple[int, ...], epsilon: float) -> str:
    r"""Gradient at x of y = (x - mean) / deviation, both over some axes, from the gradient g at y.

    .. math:: \frac{1}{\sigma} \bigl(g - \overline{g} - y \, \overline{g y}\bigr)
    """

    def mean(value: str) -> str:
        return g.reduce("ReduceMean", value, axes, keep=True)

    centred = g.add("Sub", x, mean(x))
    variance = mean(g.add("Mul", centred, centred))
    inverse = g.add("Reciprocal", g.add("Sqrt", g.add("Add", variance, g.number(epsilon))))
    normal = g.add("Mul", centred, inverse)
    along = g.add("Mul", normal, mean(g.add("Mul", gradient, normal)))
    return g.add("Mul", inverse, g.add("Sub", g.add("Sub", gradient, mean(gradient)), along))


@derivative("LayerNormalization")
def _layer_norm(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    # later outputs, mean and inverse deviation, exist for training only
    if any(gradients[1:]) or any(tape.active(name) for name in node.inputs[1:] if name):
        raise tape.unsupported(node, "a constant scale and one output that is used")
    g, x = tape.graph, node.inputs[0]
    rank = g.rank(x)
    axes = tuple(range(int(attribute(node, "axis", -1)) % rank, rank))
    scaled = g.add("Mul", gradients[0] or "", node.inputs[1])
    return [normalised_gradient(g, x, scaled, axes, float(attribute(node, "epsilon", 1e-5)))]


@derivative("InstanceNormalization")
def _instance_norm(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    rank = g.rank(x)
    scale = g.reshape(node.inputs[1], [1, -1] + [1] * (rank - 2))
    scaled = g.add("Mul", gradients[0] or "", scale)
    epsilon = float(attribute(node, "epsilon", 1e-5))
    return [normalised_gradient(g, x, scaled, tuple(range(2, rank)), epsilon)]


@derivative("BatchNormalization")
def _batch_norm(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    scale, variance = g.constant(node.inputs[1]), g.constant(node.inputs[4])
    if attribute(node, "training_mode", 0) or scale is None or variance is None:
        raise tape.unsupported(node, "inference mode and constant mean and variance")
    # With constant statistics this is one known factor per channel: a single product at run time.
    epsilon = float(attribute(node, "epsilon", 1e-5))
    slope = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    factor = g.number(slope.reshape(-1, *(1,) * (g.rank(x) - 2)))
    return [g.add("Mul", gradients[0] or "", factor)]


@derivative("Softmax")
def _softmax(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    # y (g - sum(g y)) without the Jacobian of n_classes squared values
    g, y = tape.graph, node.outputs[0]
    axis = int(attribute(node, "axis", -1)) % g.rank(y)
    weighted = g.add("Mul", gradients[0] or "", y)
    total = g.reduce("ReduceSum", weighted, [axis], keep=True)
    return [g.add("Sub", weighted, g.add("Mul", y, total))]


@derivative("LogSoftmax")
def _log_softmax(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, y = tape.graph, node.outputs[0]
    # g - exp(y) sum(g): from the output, whose exponential is the softmax
    axis = int(attribute(node, "axis", -1)) % g.rank(y)
    total = g.reduce("ReduceSum", gradients[0] or "", [axis], keep=True)
    return [g.add("Sub", gradients[0] or "", g.add("Mul", g.add("Exp", y), total))]


# -- reductions and pooling -------------------------------------------------------------------------------


def reduced_axes(tape: Tape, node: Node) -> tuple[int, ...]:
    """Axes of a reduction as non-negative numbers; all axes if it does not name any."""
    axes = tape.axes(node)
    if axes:
        return axes
    if attribute(node, "noop_with_empty_axes", 0):
        return ()
    return tuple(range(tape.graph.rank(node.inputs[0])))


def _kept(tape: Tape, node: Node, name: str, axes: tuple[int, ...]) -> str:
    """A reduction's output, or the gradient there, with the reduced axes kept at size one."""
    if attribute(node, "keepdims", 1) or not axes:
        return name
    return tape.graph.add("Unsqueeze", name, tape.graph.indices(sorted(axes)))


def _spread(tape: Tape, value: str, like: str) -> str:
    """A value expanded to the shape of another tensor."""
    return tape.graph.add("Expand", value, tape.graph.add("Shape", like))


@derivative("ReduceMean", "ReduceSum")
def _mean_or_sum(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    axes = reduced_axes(tape, node)
    value = _kept(tape, node, gradients[0] or "", axes)
    if node.op == "ReduceMean":
        tape.fixed(node, x, axes)
        value = g.scaled(value, 1.0 / math.prod(g.sizes(x)[axis] for axis in axes))
    return [_spread(tape, value, x)]


@derivative("GlobalAveragePool")
def _global_average(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    tape.fixed(node, x, range(2, g.rank(x)))
    return [_spread(tape, g.scaled(gradients[0] or "", 1.0 / math.prod(g.sizes(x)[2:])), x)]


@derivative("ReduceL2")
def _length(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    axes = reduced_axes(tape, node)
    # the slope is x / length, and 0 where all x are 0
    ratio = _where_positive(g, node.outputs[0], g.add("Div", gradients[0] or "", node.outputs[0]))
    return [g.add("Mul", _kept(tape, node, ratio, axes), x)]


@derivative("ReduceLogSumExp")
def _soft_maximum(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """The slopes are a softmax, exp(x - y): pooling between mean and maximum, as audio taggers use it."""
    g, x = tape.graph, node.inputs[0]
    axes = reduced_axes(tape, node)
    share = g.add("Exp", g.add("Sub", x, _kept(tape, node, node.outputs[0], axes)))
    return [g.add("Mul", _kept(tape, node, gradients[0] or "", axes), share)]


@derivative("ReduceL1", "ReduceSumSquare")
def _sum_of_sizes(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    value = _kept(tape, node, gradients[0] or "", reduced_axes(tape, node))
    return [g.add("Mul", value, g.add("Sign", x) if node.op == "ReduceL1" else g.scaled(x, 2.0))]


@derivative("ReduceMax", "ReduceMin")
def _extreme_pool(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """Equal values get equal parts of the gradient, as in PyTorch's ``amax``."""
    g, x = tape.graph, node.inputs[0]
    axes = reduced_axes(tape, node)
    chosen = g.add("Cast", g.add("Equal", x, _kept(tape, node, node.outputs[0], axes)), to=1)
    part = g.add("Div", chosen, g.reduce("ReduceSum", chosen, axes, keep=True))
    return [g.add("Mul", _kept(tape, node, gradients[0] or "", axes), part)]


@derivative("GlobalMaxPool")
def _global_max(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    tape.fixed(node, x, range(2, g.rank(x)))
    # The first of equal values gets all of the gradient, as in PyTorch's adaptive pooling. ArgMax returns the
    # first; comparing values would select all of them.
    n_positions = math.prod(g.sizes(x)[2:])
    flat = g.reshape(x, [0, 0, -1])
    first = g.add("ArgMax", flat, axis=2, keepdims=1)
    places = g.number(np.arange(n_positions), np.int64)
    chosen = g.add("Cast", g.add("Equal", first, places), to=1)
    spread = g.add("Mul", chosen, g.reshape(gradients[0] or "", [0, 0, 1]))
    return [g.reshape_like(spread, x)]


@derivative("MaxPool")
def _max_pool(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """Each window sends its gradient to the first of its largest values, by MaxPool's second output."""
    g, x = tape.graph, node.inputs[0]
    if attribute(node, "storage_order", 0) or (len(gradients) > 1 and gradients[1]):
        raise tape.unsupported(node, "row-major indices")
    # MaxPool is run a second time, for the indices. The indices refer to the whole tensor, so one scatter
    # over the flattened tensor serves all rows and maps.
    options = {key: value for key, value in node.attributes.items() if key != "storage_order"}
    places = g.add("MaxPool", x, outputs=2, **options) + ".1"
    values = g.reshape(gradients[0] or "", [-1])
    empty = g.add("Reshape", tape.fill(x, 0.0), g.indices([-1]))
    # Overlapping windows may choose the same position, whose gradients then add up; opset 16 is the first in
    # which a scatter can add.
    add = {"reduction": "add"} if g.opset >= 16 else {}
    if not add and _overlaps(node):
        raise tape.unsupported(node, "windows that do not overlap, or opset 16,")
    scattered = g.add("ScatterElements", empty, g.reshape(places, [-1]), values, axis=0, **add)
    return [g.reshape_like(scattered, x)]


def _overlaps(node: Node) -> bool:
    kernel = attribute(node, "kernel_shape", ())
    strides = attribute(node, "strides", (1,) * len(kernel))
    return any(k > s for k, s in zip(kernel, strides, strict=True)) or "dilations" in node.attributes


@derivative("AveragePool")
def _average_pool(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """The gradient of a convolution of each channel with equal weights."""
    g, x = tape.graph, node.inputs[0]
    tape.fixed(node, x, range(2, g.rank(x)))
    kernel = attribute(node, "kernel_shape", ())
    sizes = g.sizes(x)[2:], g.sizes(node.outputs[0])[2:]
    _, _, pads = paddings(node, *sizes, kernel)
    if attribute(node, "ceil_mode", 0) or (any(pads) and not attribute(node, "count_include_pad", 0)):
        # windows at the border would have different weights
        raise tape.unsupported(node, "complete windows: no ceil_mode, no padding that is not counted,")
    channels = g.sizes(x)[1]
    weight = g.number(np.full((channels, 1, *kernel), 1.0 / math.prod(kernel)))
    return [spread_windows(g, node, gradients[0] or "", weight, channels)]


# -- recurrent layers ------------------------------------------------------------------------------------

MOST_STEPS = 512  # each step adds about ten nodes


@derivative("LSTM", "GRU", "RNN")
def _recurrent(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """Backpropagation through time, one step after the other; the gates are computed a second time."""
    direction = attribute(node, "direction", "forward")
    x = node.inputs[0]
    tape.fixed(node, x, [0])
    plain = not any(attribute(node, name, None) for name in ("activations", "clip", "layout", "input_forget"))
    others = any(tape.active(name) for name in node.inputs[1:] if name) or node.input(4) or node.input(7)
    if not plain or others or tape.graph.sizes(x)[0] > MOST_STEPS:
        raise tape.unsupported(
            node, f"at most {MOST_STEPS} steps of one length, constant weights and the usual activations"
        )
    reverse = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    parts = [
        _Direction(tape, node, gradients, number, is_reverse=flipped).gradient()
        for number, flipped in enumerate(reverse)
    ]
    return [parts[0] if len(parts) == 1 else tape.graph.add("Add", *parts)]


def _plain(node: Node) -> dict[str, Any]:
    """The attributes of a node, with text as text."""
    return {
        name: value.decode() if isinstance(value, bytes) else value for name, value in node.attributes.items()
    }


class _Direction:
    """One direction of a recurrent layer: tensors have the shape (steps, N, size), in the order of its steps."""

    def __init__(self, tape: Tape, node: Node, gradients: Grads, number: int, *, is_reverse: bool) -> None:
        g = tape.graph
        self._tape, self._node, self._number, self._reverse = tape, node, number, is_reverse
        self._steps = g.sizes(node.inputs[0])[0]
        # as tensors, because exporters compute them from the order of another framework
        self._w, self._r = (self._side(name, 0) for name in node.inputs[1:3])
        self._n_rows, self._size = g.sizes(node.inputs[2])[1:]
        self._bias = self._side(node.inputs[3], 0) if node.input(3) else ""
        everything = node.outputs[0] or g.add(
            node.op, *node.inputs, **_plain(node)
        )  # where only the last is read
        self._h = self._ordered(self._side(everything, 1))
        self._first = self._initial(node.input(5))
        self._before = g.add("Concat", self._first, _cut(tape, self._h, 0, 0, self._steps - 1), axis=0)
        at_all, self._at_last, self._at_cell = (*gradients, None, None)[:3]
        self._at_steps = self._split(self._ordered(self._side(at_all, 1))) if at_all else None

    def gradient(self) -> str:
        """Gradient at the layer's input that flows through this direction."""
        g = self._tape.graph
        x = self._ordered(self._node.inputs[0])
        dh = self._last(self._at_last)
        found = []
        step = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self._node.op](x)
        for time in reversed(range(self._steps)):
            if self._at_steps is not None:
                dh = self._at_steps[time] if dh is None else g.add("Add", dh, self._at_steps[time])
            if dh is None:
                dh = self._tape.fill(self._first, 0.0)
            at_gates, dh = step(time, dh)
            found.append(at_gates)
        stacked = g.add("Concat", *found[::-1], axis=0) if len(found) > 1 else found[0]
        return self._ordered(g.add("MatMul", stacked, self._w))

    # -- one step: from the gradient at the output to those at the gates before their activations, and one step back

    def _lstm(self, x: str) -> Callable[[int, str], tuple[str, str]]:
        g = self._tape.graph
        gates = self._affine(x, self._before)
        i, o, f = (g.add("Sigmoid", self._gate(gates, number)) for number in range(3))
        c = g.add("Tanh", self._gate(gates, 3))
        cell = self._initial(self._node.input(6))
        cells = [cell]
        for keep, new in zip(self._split(f), self._split(g.add("Mul", i, c)), strict=True):
            cells.append(g.add("Add", g.add("Mul", keep, cells[-1]), new))
        bent = g.add("Tanh", g.add("Concat", *cells[1:], axis=0) if self._steps > 1 else cells[1])
        before = g.add("Concat", *cells[:-1], axis=0) if self._steps > 1 else cells[0]
        to_o = self._split(g.add("Mul", bent, _sigmoid_slope(g, o)))
        to_cell = self._split(g.add("Mul", o, _one_minus(g, _squared(g, bent))))
        to_i = self._split(g.add("Mul", c, _sigmoid_slope(g, i)))
        to_f = self._split(g.add("Mul", before, _sigmoid_slope(g, f)))
        to_c = self._split(g.add("Mul", i, _one_minus(g, _squared(g, c))))
        forget = self._split(f)
        state = {"dc": self._last(self._at_cell)}

        def step(time: int, dh: str) -> tuple[str, str]:
            dc, through = state["dc"], g.add("Mul", dh, to_cell[time])
            dc = through if dc is None else g.add("Add", dc, through)
            state["dc"] = g.add("Mul", dc, forget[time])
            at = [g.add("Mul", dc, to_i[time]), g.add("Mul", dh, to_o[time])]
            at += [g.add("Mul", dc, to_f[time]), g.add("Mul", dc, to_c[time])]
            gates = g.add("Concat", *at, axis=2)
            return gates, g.add("MatMul", gates, self._r)

        return step

    def _gru(self, x: str) -> Callable[[int, str], tuple[str, str]]:
        g, size = self._tape.graph, self._size
        two = self._affine(x, self._before, 2 * size)
        z, r = (g.add("Sigmoid", self._gate(two, number)) for number in range(2))
        first_two, recurrent = self._rows(self._r, 0, 2 * size), self._rows(self._r, 2 * size, 3 * size)
        after = bool(attribute(self._node, "linear_before_reset", 0))
        read = self._before if after else g.add("Mul", r, self._before)
        inner = self._product(read, recurrent, 5 * size, 6 * size)
        outer = self._product(x, self._rows(self._w, 2 * size, 3 * size), 2 * size, 3 * size)
        h = g.add("Tanh", g.add("Add", outer, g.add("Mul", r, inner) if after else inner))
        to_z = self._split(g.add("Mul", g.add("Sub", self._before, h), _sigmoid_slope(g, z)))
        to_h = self._split(g.add("Mul", _one_minus(g, z), _one_minus(g, _squared(g, h))))
        to_r = self._split(g.add("Mul", inner if after else self._before, _sigmoid_slope(g, r)))
        reset, keep = self._split(r), self._split(z)

        def step(time: int, dh: str) -> tuple[str, str]:
            at_h = g.add("Mul", dh, to_h[time])
            at_inner = g.add("Mul", at_h, reset[time]) if after else at_h
            back = g.add("MatMul", at_inner, recurrent)
            at_r = g.add("Mul", at_h if after else back, to_r[time])
            at_two = g.add("Concat", g.add("Mul", dh, to_z[time]), at_r, axis=2)
            before = g.add(
                "Add", g.add("Mul", dh, keep[time]), back if after else g.add("Mul", back, reset[time])
            )
            before = g.add("Add", before, g.add("MatMul", at_two, first_two))
            return g.add("Concat", at_two, at_h, axis=2), before

        return step

    def _rnn(self, _x: str) -> Callable[[int, str], tuple[str, str]]:
        g = self._tape.graph
        slopes = self._split(_one_minus(g, _squared(g, self._h)))

        def step(time: int, dh: str) -> tuple[str, str]:
            at_gate = g.add("Mul", dh, slopes[time])
            return at_gate, g.add("MatMul", at_gate, self._r)

        return step

    # -- tensors of this direction

    def _side(self, name: str, axis: int) -> str:
        """The part of a tensor for this direction, without its axis."""
        g = self._tape.graph
        cut = _cut(self._tape, name, axis, self._number, self._number + 1)
        return g.add("Squeeze", cut, g.indices([axis]))

    def _ordered(self, name: str) -> str:
        """A tensor whose first axis is time, in the order of the steps or back."""
        g = self._tape.graph
        if not self._reverse:
            return name
        return g.add("Slice", name, g.indices([-1]), g.indices([-OPEN_END]), g.indices([0]), g.indices([-1]))

    def _initial(self, name: str) -> str:
        """A state before the first step, shape (1, N, size)."""
        if name:
            return _cut(self._tape, name, 0, self._number, self._number + 1)
        return self._tape.fill(_cut(self._tape, self._h, 0, 0, 1), 0.0)

    def _last(self, gradient: str | None) -> str | None:
        """The gradient at a state after the last step, shape (1, N, size)."""
        return _cut(self._tape, gradient, 0, self._number, self._number + 1) if gradient else None

    def _split(self, name: str) -> list[str]:
        """One tensor (1, N, size) for each step."""
        if self._steps == 1:
            return [name]
        g = self._tape.graph
        first = g.add("Split", name, g.indices([1] * self._steps), outputs=self._steps, axis=0)
        return [first, *(f"{first}.{index}" for index in range(1, self._steps))]

    def _gate(self, gates: str, number: int) -> str:
        return _cut(self._tape, gates, 2, number * self._size, (number + 1) * self._size)

    def _rows(self, matrix: str, start: int, stop: int) -> str:
        return _cut(self._tape, matrix, 0, start, stop)

    def _product(self, x: str, matrix: str, start: int, stop: int) -> str:
        """Product with the rows of a matrix, plus a part of the bias."""
        g = self._tape.graph
        product = g.add("MatMul", x, g.add("Transpose", matrix, perm=[1, 0]))
        return g.add("Add", product, self._rows(self._bias, start, stop)) if self._bias else product

    def _affine(self, x: str, h: str, n_rows: int = 0) -> str:
        """The first gates before their activations."""
        n_rows = n_rows or self._n_rows
        outer = self._product(x, self._rows(self._w, 0, n_rows), 0, n_rows)
        inner = self._product(h, self._rows(self._r, 0, n_rows), self._n_rows, self._n_rows + n_rows)
        return self._tape.graph.add("Add", outer, inner)


# -- moving values ----------------------------------------------------------------------------------------


@derivative("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshaped(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    return [tape.graph.reshape_like(gradients[0] or "", node.inputs[0])]


@derivative("Transpose")
def _transpose(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    rank = tape.graph.rank(node.inputs[0])
    order = attribute(node, "perm", tuple(reversed(range(rank))))
    return [tape.graph.add("Transpose", gradients[0] or "", perm=[int(i) for i in np.argsort(order)])]


@derivative("Expand")
def _expand(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    return [tape.unbroadcast(gradients[0] or "", node, node.inputs[0])]


def _cut(tape: Tape, x: str, axis: int, start: int, stop: int) -> str:
    """The part of a tensor from ``start`` to ``stop`` along an axis."""
    g = tape.graph
    return g.add("Slice", x, g.indices([start]), g.indices([stop]), g.indices([axis]))


def _padded(tape: Tape, x: str, before: list[int], after: list[int]) -> str:
    """A tensor with zeros before and after it, by axis."""
    if not any((*before, *after)):
        return x
    return tape.graph.add("Pad", x, tape.graph.indices([*before, *after]))


@derivative("Concat")
def _concat(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    axis = int(attribute(node, "axis", 0)) % g.rank(node.outputs[0])
    found: Grads = []
    start = 0
    for name in node.inputs:
        tape.fixed(node, name, [axis])
        stop = start + g.sizes(name)[axis]
        found.append(_cut(tape, gradients[0] or "", axis, start, stop) if tape.active(name) else None)
        start = stop
    return found


@derivative("Split")
def _split(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    axis = int(attribute(node, "axis", 0))
    # an output that nothing reads has no gradient; its place in the input gets zeros
    parts = [value or tape.fill(name, 0.0) for value, name in zip(gradients, node.outputs, strict=True)]
    return [tape.graph.add("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]]


@derivative("Slice")
def _slice(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    rank, sizes = g.rank(x), g.sizes(x)
    starts, stops = g.integers(node, 1, "starts") or (), g.integers(node, 2, "ends") or ()
    axes = tape.axes(node, 3) or tuple(range(len(starts)))
    steps = g.integers(node, 4, "steps") or (1,) * len(starts)
    before, after = [0] * rank, [0] * rank
    value = gradients[0] or ""
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        taken = range(*slice(start, _open_end(stop, step, sizes[axis]), step).indices(sizes[axis]))
        if len(taken) == sizes[axis] and step == 1:
            continue
        tape.fixed(node, x, [axis])
        if step == 1:
            before[axis], after[axis] = taken.start, sizes[axis] - taken.stop
        else:  # gaps, or a reversed order
            value = _scattered(tape, value, axis, np.array(taken), x)
    return [_padded(tape, value, before, after)]


def _open_end(stop: int, step: int, size: int) -> int | None:
    """The end of a slice for Python: with a negative step ONNX writes a very negative number for no end."""
    return None if step < 0 and stop < -size else stop


def _scattered(tape: Tape, value: str, axis: int, indices: NDArray[np.int64], x: str) -> str:
    """Put slices along an axis back to their places in x; slices from the same place are added.

    A product with a matrix of zeros and ones adds them, even before opset 16, where scattering cannot.
    """
    g = tape.graph
    places = np.zeros((len(indices), g.sizes(x)[axis]), dtype=np.float32)
    places[np.arange(len(indices)), indices] = 1.0
    last = g.rank(x) - 1
    order = list(range(last + 1))
    order[axis], order[last] = last, axis
    moved = value if axis == last else g.add("Transpose", value, perm=order)
    moved = g.add("MatMul", moved, g.number(places))
    return moved if axis == last else g.add("Transpose", moved, perm=order)


@derivative("Gather")
def _gather(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    axis = int(attribute(node, "axis", 0)) % g.rank(x)
    indices = g.constant(node.inputs[1])
    tape.fixed(node, x, [axis])
    # embeddings look up many axes of computed indices; heads pick a token or a group of channels
    if indices is None or indices.ndim > 1:
        raise tape.unsupported(node, "constant indices of at most one axis")
    size = g.sizes(x)[axis]
    wanted = indices.astype(np.int64).reshape(-1) % size
    value = gradients[0] or ""
    if indices.ndim == 0:
        value = g.unsqueeze(value, axis)  # a single index removed the axis
    if len(wanted) == 1:  # zeros around it, cheaper than a product; this is how a class token is picked
        before, after = [0] * g.rank(x), [0] * g.rank(x)
        before[axis], after[axis] = int(wanted[0]), size - 1 - int(wanted[0])
        return [_padded(tape, value, before, after)]
    return [_scattered(tape, value, axis, wanted, x)]


@derivative("Pad")
def _pad(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    rank = g.rank(x)
    pads = g.integers(node, 1, "pads") or ()
    axes = tape.axes(node, 3) or tuple(range(rank))
    if attribute(node, "mode", "constant") != "constant" or min(pads, default=0) < 0:
        raise tape.unsupported(node, "constant values and no negative padding")
    value = gradients[0] or ""
    for position, axis in enumerate(axes):
        before = pads[position]
        if before or pads[len(axes) + position]:
            tape.fixed(node, x, [axis])
            value = _cut(tape, value, axis, before, before + g.sizes(x)[axis])
    return [value]
