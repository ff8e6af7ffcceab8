"""Every rule of the tape alone against PyTorch's autograd."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F  # noqa: N812  # its usual name

import drip.export.weights  # noqa: F401  # registers the rules
from drip.errors import ExportError
from drip.export.graph import Graph
from drip.export.shapes import measure, run_model
from drip.export.tape import RULES, Tape

RNG = np.random.default_rng(0)


def node(op, *inputs, outputs=("y",), **attributes):
    return helper.make_node(op, inputs, list(outputs), name=f"the_{op}_{outputs[0]}", **attributes)


def gradient_of(nodes, constants, x, opset, seeds=None, ends=("y",)):
    """Gradient at ``a``, the input, of the sum of seed * end."""
    proto = helper.make_model(
        helper.make_graph(
            [node("Identity", "input", outputs=["a"]), *nodes],
            "test",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info(end, TensorProto.FLOAT, None) for end in ends],
            [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    graph = Graph(proto)
    names = {name for one in graph.nodes for name in (*one.inputs, *one.outputs) if name}
    # shapes as an export measures them, but at the one batch of the test
    measure(graph, x.shape[1:], sorted(names), dynamic=False) if len(x) == 1 else _measure(graph, x, names)
    found = run_model(proto, x, list(ends))
    seeds = seeds or [np.random.default_rng(9).normal(size=y.shape).astype(np.float32) for y in found]
    stored = {end: graph.store(f"seed_{end}", seed) for end, seed in zip(ends, seeds, strict=True)}
    inner = [one for one in graph.nodes if "a" in graph.ancestors(one.outputs[0]) and one.outputs[0] != "a"]
    result = graph.add("Identity", Tape(graph, "a", inner).gradient(stored))
    return run_model(proto, x, [result])[0], found, seeds


def _measure(graph, x, names):
    from drip.export.graph import Shape

    for name, value in zip(sorted(names), run_model(graph.model, x, sorted(names)), strict=True):
        graph.shapes[name] = Shape(value.shape, frozenset())
        if name not in graph.varying and value.dtype.kind == "i":
            graph.values[name] = value


def assert_equal_to_autograd(nodes, constants, x, function, opset=18, ends=("y",)):
    found, values, seeds = gradient_of(nodes, constants, x, opset, ends=ends)
    leaf = torch.from_numpy(x).requires_grad_()
    results = function(leaf)
    results = results if isinstance(results, tuple) else (results,)
    for value, result in zip(values, results, strict=True):
        np.testing.assert_allclose(value, result.detach().numpy(), rtol=1e-5, atol=1e-5)
    total = sum((torch.from_numpy(seed) * result).sum() for seed, result in zip(seeds, results, strict=True))
    (expected,) = torch.autograd.grad(total, leaf)
    assert found.shape == x.shape
    scale = max(1.0, float(expected.abs().max()))
    assert np.abs(found - expected.numpy()).max() <= 1e-5 * scale


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape):
    return RNG.uniform(0.2, 3.0, size=shape).astype(np.float32)


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


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("first", [True, False])
def test_gemm(trans_a, trans_b, first):
    x = normal(4, 4)
    other = normal(4, 4)
    nodes = [
        node(
            "Gemm",
            *(("a", "c") if first else ("c", "a")),
            "b",
            transA=trans_a,
            transB=trans_b,
            alpha=0.5,
            beta=2.0,
        )
    ]
    bias = normal(4)

    def function(v):
        left, right = (v, torch.from_numpy(other)) if first else (torch.from_numpy(other), v)
        return 0.5 * (left.T if trans_a else left) @ (right.T if trans_b else right) + 2 * torch.from_numpy(
            bias
        )

    assert_equal_to_autograd(nodes, {"c": other, "b": bias}, x, function)


def test_gemm_bias_gets_the_sum():
    left, right = normal(3, 5), normal(5, 4)
    nodes = [node("Gemm", "l", "r", "a", beta=0.5)]
    assert_equal_to_autograd(
        nodes,
        {"l": left, "r": right},
        normal(1, 4),
        lambda v: torch.from_numpy(left) @ torch.from_numpy(right) + 0.5 * v,
    )


@pytest.mark.parametrize("other", [(7, 3), (5, 7, 3), (1, 7, 3), (2, 1, 7, 3)], ids=str)
def test_matmul_from_the_left(other):
    c = normal(*other)
    assert_equal_to_autograd(
        [node("MatMul", "a", "c")], {"c": c}, normal(5, 6, 7), lambda v: v @ torch.from_numpy(c)
    )


@pytest.mark.parametrize("other", [(3, 6), (5, 3, 6), (1, 3, 6), (2, 5, 3, 6)], ids=str)
def test_matmul_from_the_right(other):
    c = normal(*other)
    assert_equal_to_autograd(
        [node("MatMul", "c", "a")], {"c": c}, normal(5, 6, 7), lambda v: torch.from_numpy(c) @ v
    )


def test_matmul_with_itself_transposed():
    nodes = [node("Transpose", "a", outputs=["t"], perm=[0, 2, 1]), node("MatMul", "a", "t")]
    assert_equal_to_autograd(nodes, {}, normal(2, 3, 4), lambda v: v @ v.transpose(1, 2))


CONVOLUTIONS = [
    {"kernel": 3},
    {"kernel": 3, "padding": 1, "stride": 2},
    {"kernel": 5, "padding": 2, "stride": 3},
    {"kernel": 1},
    {"kernel": 3, "dilation": 2, "padding": 2},
    {"kernel": 3, "groups": 4, "padding": 1},
    {"kernel": 2, "stride": 5},
    {"kernel": 3, "groups": 2, "stride": 2},
    {"kernel": 1, "stride": 2},
    {"kernel": 4, "stride": 2, "padding": 1, "dilation": 2},
]


@pytest.mark.parametrize("n_axes", [1, 2])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolution(options, n_axes):
    kernel = options["kernel"]
    torch_options = {key: value for key, value in options.items() if key != "kernel"}
    groups, padding = options.get("groups", 1), options.get("padding", 0)
    weight, bias = normal(8, 4 // groups, *(kernel,) * n_axes), normal(8)
    x = normal(2, 4, 13, 12) if n_axes == 2 else normal(2, 4, 14)
    nodes = [
        node(
            "Conv", "a", "w", "b", group=groups, pads=[padding] * 2 * n_axes,
            strides=[options.get("stride", 1)] * n_axes, dilations=[options.get("dilation", 1)] * n_axes,
        )
    ]  # fmt: skip
    function = F.conv2d if n_axes == 2 else F.conv1d
    arguments = torch.from_numpy(weight), torch.from_numpy(bias)
    assert_equal_to_autograd(
        nodes, {"w": weight, "b": bias}, x, lambda v: function(v, *arguments, **torch_options)
    )


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_convolution_with_automatic_padding(auto):
    weight = normal(3, 4, 4, 3)
    nodes = [node("Conv", "a", "w", auto_pad=auto, strides=[2, 2])]
    pads = {"SAME_UPPER": (0, 1, 1, 2), "SAME_LOWER": (1, 0, 2, 1), "VALID": (0, 0, 0, 0)}[auto]
    x = normal(2, 4, 9, 8)
    assert_equal_to_autograd(
        nodes,
        {"w": weight},
        x,
        lambda v: F.conv2d(F.pad(v, pads), torch.from_numpy(weight), stride=2),
    )


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 4), dilation=st.integers(1, 3), padding=st.integers(0, 3),
    size=st.integers(10, 16), groups=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_any_convolution(kernel, stride, dilation, padding, size, groups):
    weight = np.random.default_rng(1).normal(size=(4, 4 // groups, kernel)).astype(np.float32)
    x = np.random.default_rng(2).normal(size=(2, 4, size)).astype(np.float32)
    nodes = [node("Conv", "a", "w", group=groups, pads=[padding] * 2, strides=[stride], dilations=[dilation])]
    assert_equal_to_autograd(
        nodes,
        {"w": weight},
        x,
        lambda v: F.conv1d(v, torch.from_numpy(weight), None, stride, padding, dilation, groups),
    )


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 4), size=st.integers(8, 13), ceil=st.booleans(),
    ties=st.booleans(), data=st.data(),
)  # fmt: skip
def test_any_max_pooling(kernel, stride, size, ceil, ties, data):
    padding = data.draw(st.integers(0, kernel // 2))
    x = np.random.default_rng(2).normal(size=(2, 3, size, size + 1)).astype(np.float32)
    x = np.maximum(x, 0) if ties else x
    nodes = [
        node(
            "MaxPool", "a", kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[padding] * 4,
            ceil_mode=int(ceil),
        )
    ]  # fmt: skip
    assert_equal_to_autograd(nodes, {}, x, lambda v: F.max_pool2d(v, kernel, stride, padding, ceil_mode=ceil))


def test_max_pooling_in_one_dimension():
    nodes = [node("MaxPool", "a", kernel_shape=[3], strides=[2], dilations=[2])]
    assert_equal_to_autograd(nodes, {}, normal(2, 3, 17), lambda v: F.max_pool1d(v, 3, 2, 0, 2))


@settings(max_examples=40, deadline=None)
@given(kernel=st.integers(1, 4), stride=st.integers(1, 4), size=st.integers(8, 13), data=st.data())
def test_any_average_pooling(kernel, stride, size, data):
    padding = data.draw(st.integers(0, kernel // 2))
    x = np.random.default_rng(2).normal(size=(2, 3, size, size + 1)).astype(np.float32)
    nodes = [
        node(
            "AveragePool", "a", kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[padding] * 4,
            count_include_pad=1,
        )
    ]  # fmt: skip
    assert_equal_to_autograd(nodes, {}, x, lambda v: F.avg_pool2d(v, kernel, stride, padding))


def test_global_pooling():
    x = np.maximum(normal(2, 3, 5, 4), 0)
    assert_equal_to_autograd([node("GlobalAveragePool", "a")], {}, x, lambda v: v.mean((2, 3), keepdim=True))
    x[0, 0] = 0.0  # the first of equal values, as in adaptive pooling
    assert_equal_to_autograd([node("GlobalMaxPool", "a")], {}, x, lambda v: F.adaptive_max_pool2d(v, 1))


REDUCTIONS = {
    "ReduceMean": lambda v, axes, keep: v.mean(axes, keepdim=keep),
    "ReduceSum": lambda v, axes, keep: v.sum(axes, keepdim=keep),
    "ReduceMax": lambda v, axes, keep: v.amax(axes, keepdim=keep),
    "ReduceMin": lambda v, axes, keep: v.amin(axes, keepdim=keep),
    "ReduceL2": lambda v, axes, keep: v.square().sum(axes, keepdim=keep).sqrt(),
}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axes", [(1,), (2, 3), (-1,), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("opset", [17, 18])
def test_reduction(op, axes, keep, opset):
    x = np.round(normal(2, 3, 4, 5), 1)
    as_input = opset >= 18 or op == "ReduceSum"
    inputs = ["a", "axes"] if as_input else ["a"]
    attributes = {} if as_input else {"axes": list(axes)}
    nodes = [node(op, *inputs, keepdims=int(keep), **attributes)]
    constants = {"axes": np.array(axes)} if as_input else {}
    assert_equal_to_autograd(nodes, constants, x, lambda v: REDUCTIONS[op](v, axes, keep), opset)


def test_reduction_of_all_axes():
    assert_equal_to_autograd([node("ReduceMean", "a", keepdims=0)], {}, normal(2, 3), torch.mean)


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_normalization(axis):
    shape = (6,) if axis == -1 else (5, 6)
    scale, bias = normal(*shape), normal(*shape)
    nodes = [node("LayerNormalization", "a", "s", "b", axis=axis, epsilon=1e-6)]
    arguments = torch.from_numpy(scale), torch.from_numpy(bias)
    assert_equal_to_autograd(
        nodes, {"s": scale, "b": bias}, normal(3, 5, 6), lambda v: F.layer_norm(v, shape, *arguments, 1e-6)
    )


def test_instance_normalization():
    scale, bias = normal(4), normal(4)
    nodes = [node("InstanceNormalization", "a", "s", "b")]
    arguments = torch.from_numpy(scale), torch.from_numpy(bias)
    assert_equal_to_autograd(
        nodes,
        {"s": scale, "b": bias},
        normal(2, 4, 5, 6),
        lambda v: F.instance_norm(v, weight=arguments[0], bias=arguments[1]),
    )


def test_batch_normalization():
    values = {"s": positive(4), "b": normal(4), "m": normal(4), "v": positive(4)}
    s, b, m, v = (torch.from_numpy(value) for value in values.values())
    nodes = [node("BatchNormalization", "a", "s", "b", "m", "v", epsilon=1e-3)]
    assert_equal_to_autograd(nodes, values, normal(2, 4, 5), lambda x: F.batch_norm(x, m, v, s, b, eps=1e-3))


MOVES = {
    "Flatten": ((), {"axis": 1}, lambda v: v.flatten(1)),
    "Reshape": ((np.array([0, -1]),), {}, lambda v: v.flatten(1)),
    "Transpose": ((), {"perm": [2, 0, 1, 3]}, lambda v: v.permute(2, 0, 1, 3)),
    "Unsqueeze": ((np.array([1]),), {}, lambda v: v[:, None]),
    "Squeeze": ((np.array([3]),), {}, lambda v: v[..., 0]),
    "Expand": ((np.array([2, 1, 4, 6]),), {}, lambda v: v.expand(-1, -1, -1, 6)),
    "Gather": ((np.array(2),), {"axis": 1}, lambda v: v[:, 2]),
    "Pad": ((np.array([0, 1, 0, 0, 0, 2, 3, 0]),), {}, lambda v: F.pad(v, (0, 0, 0, 3, 1, 2))),
    "Slice": ((np.array([1]), np.array([9]), np.array([1])), {}, lambda v: v[:, 1:]),
}


@pytest.mark.parametrize("op", MOVES)
def test_moved_values(op):
    arguments, attributes, function = MOVES[op]
    constants = {f"c{index}": value for index, value in enumerate(arguments)}
    assert_equal_to_autograd(
        [node(op, "a", *constants, **attributes)], constants, normal(2, 3, 4, 1), function
    )


def test_transpose_without_an_order_reverses():
    assert_equal_to_autograd([node("Transpose", "a")], {}, normal(2, 3, 4), lambda v: v.permute(2, 1, 0))


SLICES = [(0, 2, 0, 1), (-2, 2**31, 1, 1), (5, 0, 1, -2), (-1, -(2**31), 2, -1), (0, 6, 1, 3), (1, -1, 2, 1)]


@pytest.mark.parametrize("cut", SLICES, ids=str)
def test_slice(cut):
    start, stop, axis, step = cut
    x = normal(3, 6, 4)
    constants = {
        name: np.array([value]) for name, value in zip("setp", (start, stop, axis, step), strict=True)
    }
    end = None if step < 0 and stop < -10 else stop
    taken = list(range(x.shape[axis]))[start:end:step]
    assert_equal_to_autograd(
        [node("Slice", "a", *"setp")], constants, x, lambda v: v.index_select(axis, torch.tensor(taken))
    )


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("indices", [[0, 2, 2, 1], [1], [-1, 0]], ids=str)
def test_gather_of_several(axis, indices):
    x = normal(3, 4, 5)
    wanted = torch.tensor(indices) % x.shape[axis]
    nodes = [node("Gather", "a", "i", axis=axis)]
    assert_equal_to_autograd(nodes, {"i": np.array(indices)}, x, lambda v: v.index_select(axis, wanted))


def test_concatenation():
    other = normal(2, 2, 4)
    nodes = [node("Concat", "c", "a", "a", axis=-2)]
    assert_equal_to_autograd(
        nodes, {"c": other}, normal(2, 3, 4), lambda v: torch.cat([torch.from_numpy(other), v, v], 1)
    )


@pytest.mark.parametrize("ends", [("u", "v"), ("v",), ("u",)])
def test_split(ends):
    nodes = [node("Split", "a", "s", outputs=["u", "v"], axis=1)]

    def function(x):
        parts = dict(zip("uv", x.split((2, 3), 1), strict=True))
        return tuple(parts[end] for end in ends)

    assert_equal_to_autograd(nodes, {"s": np.array([2, 3])}, normal(2, 5, 4), function, ends=ends)


def test_decomposed_layer_normalization():
    nodes = [
        node("ReduceMean", "a", "axes", outputs=["m"]),
        node("Sub", "a", "m", outputs=["d"]),
        node("Pow", "d", "two", outputs=["q"]),
        node("ReduceMean", "q", "axes", outputs=["v"]),
        node("Add", "v", "eps", outputs=["e"]),
        node("Sqrt", "e", outputs=["r"]),
        node("Div", "d", "r"),
    ]
    constants = {"axes": np.array([-1]), "two": np.float32(2), "eps": np.float32(1e-5)}
    assert_equal_to_autograd(nodes, constants, normal(2, 4, 6), lambda v: F.layer_norm(v, (6,)))


def test_every_registered_rule_is_tested_here():
    source = Path(__file__).read_text()
    untested = [op for op in RULES if f'"{op}"' not in source]
    assert not untested


REFUSED = {
    "a cast to integers": [node("Cast", "a", to=6, outputs=["i"]), node("Cast", "i", to=1)],
    "indices that are computed": [
        node("ArgMax", "a", axis=1, keepdims=0, outputs=["i"]),
        node("Gather", "a", "i", axis=1),
    ],
    "no rule": [node("Sin", "a")],
    "reflection": [node("Pad", "a", "pads", mode="reflect")],
    "a computed exponent": [node("Pow", "a", "a")],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_derivative_here_is_refused_by_its_node(case):
    constants = {"pads": np.array([0, 1, 0, 1])} if case == "reflection" else {}
    with pytest.raises(ExportError, match=r"the_\w+"):
        gradient_of(REFUSED[case], constants, positive(3, 4), 18)
