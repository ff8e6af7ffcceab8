"""Derivatives of operators that move values, and errors for operators without a derivative."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tape_oracle import assert_equal_to_autograd, gradient_of, node, normal, positive
from torch.nn import functional as F  # noqa: N812  # its usual name

import drip.onnx.derivatives  # noqa: F401  # registers them
from drip.errors import ExportError
from drip.onnx.tape import DERIVATIVES

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


def test_every_derivative_is_tested():
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_derivatives_*.py"))
    untested = [op for op in DERIVATIVES if f'"{op}"' not in source]
    assert not untested


REJECTED = {
    "a cast to integers": [node("Cast", "a", to=6, outputs=["i"]), node("Cast", "i", to=1)],
    "indices that are computed": [
        node("ArgMax", "a", axis=1, keepdims=0, outputs=["i"]),
        node("Gather", "a", "i", axis=1),
    ],
    "no rule": [node("Sin", "a")],
    "reflection": [node("Pad", "a", "pads", mode="reflect")],
    "a computed exponent": [node("Pow", "a", "a")],
}


@pytest.mark.parametrize("case", REJECTED)
def test_an_operator_without_a_derivative_is_rejected_with_its_name(case):
    constants = {"pads": np.array([0, 1, 0, 1])} if case == "reflection" else {}
    with pytest.raises(ExportError, match=r"the_\w+") as error:
        gradient_of(REJECTED[case], constants, positive(3, 4), 18)
    assert error.value.code == "export-unsupported"
