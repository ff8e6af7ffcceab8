"""Derivatives of products and convolutions, each compared with PyTorch's autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tape_oracle import assert_equal_to_autograd, node, normal
from torch.nn import functional as F  # noqa: N812  # its usual name

import drip.onnx.derivatives  # noqa: F401  # registers them


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


@settings(max_examples=60)
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
