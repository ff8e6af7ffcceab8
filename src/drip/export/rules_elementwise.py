"""Derivatives of operations that work value by value."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from drip.export.graph import Graph, Node
from drip.export.tape import RULES, Gradients, Tape, attribute, rule

Grads = list["str | None"]
Slope = Callable[[Graph, Node], str]


def _unary(op: str, slope: Slope) -> None:
    """Register an operation by its derivative, value by value."""

    def backward(tape: Tape, node: Node, gradients: Grads) -> Gradients:
        return [tape.graph.add("Mul", gradients[0] or "", slope(tape.graph, node))]

    RULES[op] = backward


def _one_minus(g: Graph, x: str) -> str:
    return g.add("Sub", g.number(1.0), x)


def _squared(g: Graph, x: str) -> str:
    return g.add("Mul", x, x)


def _sigmoid_slope(g: Graph, y: str) -> str:
    return g.add("Mul", y, _one_minus(g, y))


def _gelu_slope(g: Graph, node: Node) -> str:
    x = node.inputs[0]
    if attribute(node, "approximate", "none") == "tanh":
        root, cubic = math.sqrt(2 / math.pi), 0.044715
        inner = g.scaled(g.add("Mul", x, g.add("Add", g.scaled(_squared(g, x), cubic), g.number(1.0))), root)
        tanh = g.add("Tanh", inner)
        rise = g.scaled(g.add("Add", g.scaled(_squared(g, x), 3 * cubic), g.number(1.0)), root)
        bend = g.add("Mul", g.add("Mul", _one_minus(g, _squared(g, tanh)), rise), g.scaled(x, 0.5))
        return g.add("Add", g.scaled(g.add("Add", tanh, g.number(1.0)), 0.5), bend)
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


_unary("Sigmoid", lambda g, node: _sigmoid_slope(g, node.outputs[0]))
_unary("Tanh", lambda g, node: _one_minus(g, _squared(g, node.outputs[0])))
_unary("Erf", _erf_slope)
_unary("Gelu", _gelu_slope)
_unary("Swish", _swish_slope)
_unary("Mish", _mish_slope)
_unary("Exp", lambda _g, node: node.outputs[0])
_unary("Log", lambda g, node: g.add("Reciprocal", node.inputs[0]))
_unary("Sqrt", lambda g, node: g.scaled(g.add("Reciprocal", node.outputs[0]), 0.5))
_unary("Reciprocal", lambda g, node: g.add("Neg", _squared(g, node.outputs[0])))
_unary("Abs", lambda g, node: g.add("Sign", node.inputs[0]))
_unary("Softplus", lambda g, node: g.add("Sigmoid", node.inputs[0]))


@rule("Identity", "Dropout")
def _same(_tape: Tape, _node: Node, gradients: Grads) -> Gradients:
    """Dropout does nothing in inference."""
    return gradients[:1]


@rule("Cast")
def _cast(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    if attribute(node, "to", 1) != 1:
        raise tape.refuse(node, "float32 on both sides")
    return gradients[:1]


@rule("Neg")
def _neg(tape: Tape, _node: Node, gradients: Grads) -> Gradients:
    return [tape.graph.add("Neg", gradients[0] or "")]


def _masked(tape: Tape, mask: str, gradient: str | None, otherwise: str | None = None) -> str:
    """The gradient where the mask is true, else another or zero."""
    return tape.graph.add("Where", mask, gradient or "", otherwise or tape.graph.number(0.0))


@rule("Relu")
def _relu(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    return [_masked(tape, g.add("Greater", node.outputs[0], g.number(0.0)), gradients[0])]


@rule("LeakyRelu")
def _leaky_relu(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    leaked = g.scaled(gradients[0] or "", float(attribute(node, "alpha", 0.01)))
    return [_masked(tape, g.add("Greater", node.inputs[0], g.number(0.0)), gradients[0], leaked)]


@rule("PRelu")
def _prelu(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    if tape.active(node.inputs[1]):
        raise tape.refuse(node, "a constant slope")
    leaked = g.add("Mul", gradients[0] or "", node.inputs[1])
    return [_masked(tape, g.add("Greater", node.inputs[0], g.number(0.0)), gradients[0], leaked)]


@rule("Elu", "Selu")
def _elu(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    selu = node.op == "Selu"
    alpha = float(attribute(node, "alpha", 1.6732632423543772 if selu else 1.0))
    gamma = float(attribute(node, "gamma", 1.0507009873554805)) if selu else 1.0
    below = g.add("Mul", gradients[0] or "", g.add("Add", node.outputs[0], g.number(alpha * gamma)))
    above = g.scaled(gradients[0] or "", gamma)
    return [_masked(tape, g.add("Greater", node.inputs[0], g.number(0.0)), above, below)]


@rule("HardSigmoid")
def _hard_sigmoid(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, y = tape.graph, node.outputs[0]
    inside = g.add("And", g.add("Greater", y, g.number(0.0)), g.add("Less", y, g.number(1.0)))
    return [_masked(tape, inside, g.scaled(gradients[0] or "", float(attribute(node, "alpha", 0.2))))]


def _hard_swish_slope(g: Graph, node: Node) -> str:
    x = node.inputs[0]
    middle = g.add("Add", g.scaled(x, 1 / 3), g.number(0.5))
    high = g.add("Where", g.add("Greater", x, g.number(3.0)), g.number(1.0), middle)
    return g.add("Where", g.add("Less", x, g.number(-3.0)), g.number(0.0), high)


_unary("HardSwish", _hard_swish_slope)


@rule("Clip")
def _clip(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """PyTorch's ``clamp`` lets the gradient pass at its bounds, its ReLU6 does not."""
    g, x = tape.graph, node.inputs[0]
    low, high = node.input(1), node.input(2)
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


@rule("Add", "Sub", "Sum")
def _add(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    found: Grads = []
    for index, name in enumerate(node.inputs):
        value = gradients[0] or ""
        if tape.active(name):
            signed = tape.graph.add("Neg", value) if node.op == "Sub" and index else value
            found.append(tape.unbroadcast(signed, node, name))
        else:
            found.append(None)
    return found


@rule("Mul")
def _mul(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    def at(index: int) -> str | None:
        if not tape.active(node.inputs[index]):
            return None
        product = tape.graph.add("Mul", gradients[0] or "", node.inputs[1 - index])
        return tape.unbroadcast(product, node, node.inputs[index])

    return [at(0), at(1)]


@rule("Div")
def _div(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    top, bottom = node.inputs
    quotient = g.add("Div", gradients[0] or "", bottom)
    at_bottom = None
    if tape.active(bottom):
        product = g.add("Neg", g.add("Mul", quotient, node.outputs[0]))
        at_bottom = tape.unbroadcast(product, node, bottom)
    return [tape.unbroadcast(quotient, node, top) if tape.active(top) else None, at_bottom]


@rule("Pow")
def _pow(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    exponent = g.constant(node.inputs[1])
    if exponent is None or tape.active(node.inputs[1]):
        raise tape.refuse(node, "a constant exponent")
    powers = exponent.astype(np.float32)
    lowered = g.add("Pow", node.inputs[0], g.number(powers - np.float32(1)))
    slope = g.add("Mul", lowered, g.number(powers))
    return [tape.unbroadcast(g.add("Mul", gradients[0] or "", slope), node, node.inputs[0])]


@rule("Max", "Min")
def _extreme(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    """Equal values share the gradient, as in PyTorch's ``maximum`` and ``minimum``."""
    if len(node.inputs) != 2:
        raise tape.refuse(node, "two inputs")
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


@rule("Where")
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
