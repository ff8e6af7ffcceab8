"""Derivatives of pooling, reductions and normalisation, each compared with PyTorch's autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tape_oracle import assert_equal_to_autograd, node, normal, positive
from torch.nn import functional as F  # noqa: N812  # its usual name

import drip.onnx.derivatives  # noqa: F401  # registers them


@settings(max_examples=60)
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


@settings(max_examples=40)
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


OF_SIZES = {
    "ReduceLogSumExp": lambda x, axes: x.logsumexp(axes), "ReduceL1": lambda x, axes: x.abs().sum(axes),
    "ReduceSumSquare": lambda x, axes: (x * x).sum(axes),
}  # fmt: skip


@pytest.mark.parametrize("op", OF_SIZES)
@pytest.mark.parametrize("keep", [0, 1])
def test_sums_of_sizes(op, keep):
    nodes = [node(op, "a", "axes", keepdims=keep)]

    def function(x):
        found = OF_SIZES[op](x, (1, 3))
        return found[:, None, :, None] if keep else found

    assert_equal_to_autograd(nodes, {"axes": np.array([1, 3])}, normal(2, 3, 4, 5), function)
