"""Derivatives of element-wise operators, each compared with PyTorch's autograd."""

import numpy as np
import pytest
import torch
from tape_oracle import RNG, assert_equal_to_autograd, gradient_of, node, normal, positive
from torch.nn import functional as F  # noqa: N812  # its usual name

import drip.onnx.derivatives  # noqa: F401  # registers them

UNARY = {
    "Relu": (F.relu, {}), "Sigmoid": (torch.sigmoid, {}), "Tanh": (torch.tanh, {}), "Erf": (torch.erf, {}),
    "Exp": (torch.exp, {}), "Abs": (torch.abs, {}), "Neg": (torch.neg, {}), "Softplus": (F.softplus, {}),
    "Identity": (lambda x: x, {}), "Dropout": (lambda x: x, {}), "HardSwish": (F.hardswish, {}),
    "HardSigmoid": (F.hardsigmoid, {"alpha": 1 / 6}), "LeakyRelu": (F.leaky_relu, {}),
    "Elu": (lambda x: F.elu(x, 0.7), {"alpha": 0.7}), "Selu": (F.selu, {}), "Cast": (lambda x: x, {"to": 1}),
    "Mish": (F.mish, {}),
    "Softmax": (lambda x: x.softmax(1), {"axis": 1}), "LogSoftmax": (lambda x: x.log_softmax(-1), {}),
}  # fmt: skip
POSITIVE = {"Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal}


@pytest.mark.parametrize("op", UNARY)
def test_one_argument(op):
    function, attributes = UNARY[op]
    x = 3 * normal(2, 5, 7)
    assert_equal_to_autograd([node(op, "a", **attributes)], {}, x, function)


@pytest.mark.parametrize("op", POSITIVE)
def test_one_positive_argument(op):
    assert_equal_to_autograd([node(op, "a")], {}, positive(2, 5, 7), POSITIVE[op])


@pytest.mark.parametrize(
    ("nodes", "power"),
    [([node("Sqrt", "a")], 0.5), ([node("Pow", "a", "half")], 0.5), ([node("Pow", "a", "two")], 2.0)],
    ids=["sqrt", "pow half", "pow two"],
)
def test_an_infinite_slope_at_zero_is_zero(nodes, power):
    x = np.array([[0.0, 0.25, 4.0]], np.float32)
    constants = {"half": np.float32(0.5), "two": np.float32(2)}
    found, _, (seed,) = gradient_of(nodes, constants, x, 18)
    wanted = seed[:, 1:] * power * x[:, 1:] ** (power - 1)
    np.testing.assert_allclose(found, np.concatenate([[[0.0]], wanted], 1), rtol=1e-6)


def test_the_length_of_nothing_has_no_slope():
    x = np.array([[[0.0, 0.0], [3.0, 4.0]]], np.float32)
    nodes = [node("ReduceL2", "a", "axes", keepdims=0)]
    found, _, (seed,) = gradient_of(nodes, {"axes": np.array([2])}, x, 18)
    np.testing.assert_allclose(found[0], [[0, 0], seed[0, 1] * np.array([0.6, 0.8])], rtol=1e-6)


@pytest.mark.parametrize(("zero", "low", "high"), [(np.uint8(3), 0, 255), (np.int8(-5), -128, 127)])
def test_rounding_has_the_slope_of_its_clip(zero, low, high):
    nodes = [node("QuantizeLinear", "a", "s", "z", outputs=["q"]), node("DequantizeLinear", "q", "s", "z")]
    x = np.linspace(-30, 30, 42, dtype=np.float32).reshape(3, 14)
    constants = {"s": np.float32(0.1), "z": np.array(zero)}

    def function(values):
        return torch.fake_quantize_per_tensor_affine(values, 0.1, int(zero), low, high)

    assert_equal_to_autograd(nodes, constants, x, function)


def test_the_mean_of_tensors():
    nodes = [node("Mean", "a", "row", "a")]
    row = normal(1, 7)
    assert_equal_to_autograd(nodes, {"row": row}, normal(3, 7), lambda x: (2 * x + torch.from_numpy(row)) / 3)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate):
    nodes = [node("Gelu", "a", approximate=approximate)]
    assert_equal_to_autograd(nodes, {}, normal(3, 9), lambda x: F.gelu(x, approximate=approximate), 20)


def test_swish():
    nodes = [node("Swish", "a", alpha=1.5)]
    assert_equal_to_autograd(nodes, {}, normal(3, 9), lambda x: x * torch.sigmoid(1.5 * x), 24)


def test_parametric_relu():
    slope = normal(5, 1)
    nodes = [node("PRelu", "a", "slope")]
    assert_equal_to_autograd(
        nodes, {"slope": slope}, normal(2, 5, 7), lambda x: F.prelu(x, torch.from_numpy(slope[:, 0]))
    )


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 1.0), (None, 0.5), (-0.5, None), (None, None)])
def test_clip(low, high):
    constants = {name: np.float32(v) for name, v in (("low", low), ("high", high)) if v is not None}
    names = ["low" if low is not None else "", "high" if high is not None else ""]
    x = 4 * normal(4, 8)
    x[0, :4] = [0.0, 6.0, -1.0, 0.5]  # PyTorch's ReLU6 has no gradient at its ends, its clamp has one

    def function(v):
        if (low, high) == (0.0, 6.0):
            return F.relu6(v)
        return v.clamp(low, high) if (low, high) != (None, None) else v

    assert_equal_to_autograd([node("Clip", "a", *names)], constants, x, function)


def test_relu_has_no_slope_at_zero():
    x = np.array([[-1.0, 0.0, 2.0]], dtype=np.float32)
    assert_equal_to_autograd([node("Relu", "a")], {}, x, F.relu)


SHAPES = [(2, 5, 7), (1, 5, 7), (5, 1), (7,), (), (1,), (2, 1, 1), (4, 2, 5, 7)]
BINARY = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("swapped", [False, True])
def test_two_arguments_broadcast(op, shape, swapped):
    other = np.array(positive(*shape))
    tensor = torch.from_numpy(other)
    x = positive(2, 5, 7)
    names = ("c", "a") if swapped else ("a", "c")
    function = BINARY[op]
    assert_equal_to_autograd(
        [node(op, *names)], {"c": other}, x, lambda v: function(tensor, v) if swapped else function(v, tensor)
    )


@pytest.mark.parametrize("op", BINARY)
def test_an_argument_that_is_broadcast_gets_the_sum(op):
    nodes = [
        node("ReduceMean", "a", "axes", outputs=["m"], keepdims=1),
        node(op, "m", "a", outputs=["y"]),
    ]
    assert_equal_to_autograd(
        nodes, {"axes": np.array([2])}, positive(2, 5, 7), lambda v: BINARY[op](v.mean(2, keepdim=True), v)
    )


def test_fewer_axes_and_an_axis_of_one_get_the_sum():
    nodes = [node("Reshape", "a", "shape", outputs=["r"]), node("Mul", "r", "c")]
    other = normal(3, 2, 4, 5)
    assert_equal_to_autograd(
        nodes,
        {"shape": np.array([2, 1, 5]), "c": other},
        normal(2, 5),
        lambda v: v.reshape(2, 1, 5) * torch.from_numpy(other),
    )


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.0])
def test_power(exponent):
    assert_equal_to_autograd(
        [node("Pow", "a", "p")], {"p": np.float32(exponent)}, positive(3, 4), lambda v: v**exponent
    )


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_extremes_share_among_equals(op):
    other = normal(3, 4)
    x = normal(3, 4)
    x[0] = other[0]
    function = torch.maximum if op == "Max" else torch.minimum
    assert_equal_to_autograd(
        [node(op, "a", "c")], {"c": other}, x, lambda v: function(v, torch.from_numpy(other))
    )


def test_where():
    mask, other = RNG.random((3, 4)) > 0.5, normal(4)
    tensors = torch.from_numpy(mask), torch.from_numpy(other)
    for names in (("a", "c"), ("c", "a")):
        assert_equal_to_autograd(
            [node("Where", "m", *names)],
            {"m": mask, "c": other},
            normal(3, 4),
            lambda v, names=names: torch.where(
                tensors[0], *(v if name == "a" else tensors[1] for name in names)
            ),
        )


def test_a_sum_of_three():
    other = normal(4)
    nodes = [node("Sum", "a", "a", "c")]
    assert_equal_to_autograd(nodes, {"c": other}, normal(3, 4), lambda v: v + v + torch.from_numpy(other))
