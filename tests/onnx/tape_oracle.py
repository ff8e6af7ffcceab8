"""Gradients of small graphs by the tape and by PyTorch's autograd."""

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

import drip.onnx.derivatives  # noqa: F401  # registers them
from drip.onnx.graph import Graph, Inputs, Shape, measure, run_model
from drip.onnx.tape import Tape

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
    measure(graph, Inputs(x.shape[1:]), sorted(names), dynamic=False) if len(x) == 1 else _measure(
        graph, x, names
    )
    found = run_model(proto, x, list(ends))
    seeds = seeds or [np.random.default_rng(9).normal(size=y.shape).astype(np.float32) for y in found]
    stored = {end: graph.store(f"seed_{end}", seed) for end, seed in zip(ends, seeds, strict=True)}
    inner = [one for one in graph.nodes if "a" in graph.ancestors(one.outputs[0]) and one.outputs[0] != "a"]
    result = graph.add("Identity", Tape(graph, "a", inner).gradient(stored))
    return run_model(proto, x, [result])[0], found, seeds


def _measure(graph, x, names):
    for name, value in zip(sorted(names), run_model(graph.model, x, sorted(names)), strict=True):
        graph.shapes[name] = Shape(value.shape, frozenset(), "float32")
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
