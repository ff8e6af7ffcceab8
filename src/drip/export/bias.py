"""Corrects the mean error that eight bits give every channel, in the biases, from a stream of inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from drip.export.ranges import Batches
from drip.export.shapes import session_of
from drip.types import FloatArray

_CORRECTED = frozenset(("Conv", "Gemm"))


def corrected(model: onnx.ModelProto, quantised: onnx.ModelProto, batches: Batches) -> onnx.ModelProto:
    r"""The float32 graph with the biases that its quantised form needs.

    A weight that is rounded errs in one direction for all inputs, and inputs behind a ReLU are positive,
    so that the error of a channel has a mean, which later layers add up. From every bias is subtracted

    .. math:: \mathrm{E}[\hat W * \hat x - W * x]

    with x the inputs of the layer in the float32 graph and hats for what eight bits leave of them.

    Args:
        model: The float32 graph; it is not changed.
        quantised: What was made of it, with QuantizeLinear and DequantizeLinear.
        batches: Calibration inputs.

    References:
        Nagel et al. 2019, Data-free quantization through weight equalization and bias correction,
        arXiv:1906.04721, section 4.2.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    layers = {node.name: node for node in copy.graph.node if _is_layer(node)}
    twins = list(_twins(layers, quantised))
    if not twins:
        return copy
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    shared = [node.input[2] for node in copy.graph.node if len(node.input) > 2]
    for name, error in _mean_errors(model, twins, batches).items():
        node = layers[name]
        if len(node.input) == 2:
            bias = numpy_helper.from_array((-error).astype(np.float32), f"{name}.bias")
            copy.graph.initializer.append(bias)
            node.input.append(bias.name)
        elif node.input[2] in stored and shared.count(node.input[2]) == 1:
            bias = stored[node.input[2]]
            values = numpy_helper.to_array(bias)
            bias.CopyFrom(numpy_helper.from_array((values - error).astype(np.float32), bias.name))
    return copy


def _is_layer(node: onnx.NodeProto) -> bool:
    """Whether a node adds a bias, unscaled, to each output channel."""
    scaled = any(item.name == "beta" and item.f != 1.0 for item in node.attribute)
    return node.op_type in _CORRECTED and not scaled


def _twins(
    layers: Mapping[str, onnx.NodeProto], quantised: onnx.ModelProto
) -> Iterator[tuple[onnx.NodeProto, list[onnx.NodeProto], list[onnx.TensorProto]]]:
    """Every layer with the nodes and weights that compute it as its quantised form does."""
    stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
    made_by = {name: node for node in quantised.graph.node for name in node.output}
    for twin in quantised.graph.node:
        if twin.name not in layers:
            continue
        inputs, weights = (made_by.get(name) for name in twin.input[:2])
        if inputs is None or weights is None:
            continue
        if weights.op_type != "DequantizeLinear" or inputs.op_type != "DequantizeLinear":
            continue
        layer, stem = layers[twin.name], f"twin.{twin.name}"
        scale_and_zero = list(inputs.input[1:])
        names = {*scale_and_zero, *weights.input}
        if not names <= stored.keys():
            continue
        nodes = [
            helper.make_node("QuantizeLinear", [layer.input[0], *scale_and_zero], [f"{stem}.q"]),
            helper.make_node("DequantizeLinear", [f"{stem}.q", *scale_and_zero], [f"{stem}.x"]),
            helper.make_node("DequantizeLinear", list(weights.input), [f"{stem}.w"]),
            onnx.NodeProto(),
            helper.make_node("Sub", [f"{stem}.y", layer.output[0]], [f"{stem}.error"]),
        ]
        nodes[2].attribute.extend(weights.attribute)
        nodes[3].CopyFrom(layer)
        nodes[3].name = stem
        nodes[3].input[0], nodes[3].input[1], nodes[3].output[0] = f"{stem}.x", f"{stem}.w", f"{stem}.y"
        yield layer, nodes, [stored[name] for name in sorted(names)]


def _mean_errors(
    model: onnx.ModelProto,
    twins: list[tuple[onnx.NodeProto, list[onnx.NodeProto], list[onnx.TensorProto]]],
    batches: Batches,
) -> dict[str, FloatArray]:
    """Mean over inputs and positions of each layer's error, per channel."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    weights = {tensor.name: tensor for _, _, tensors in twins for tensor in tensors}
    watched.graph.initializer.extend(weights.values())
    for _, nodes, _ in twins:
        watched.graph.node.extend(nodes)
        watched.graph.output.append(onnx.ValueInfoProto(name=nodes[-1].output[0]))
    session = session_of(watched, optimised=False)
    (source,) = session.get_inputs()
    sums: dict[str, FloatArray] = {}
    n_inputs = 0
    for batch in batches():
        errors: list[NDArray[np.float32]] = session.run(None, {source.name: batch})
        n_inputs += len(batch)
        for (layer, _, _), error in zip(twins, errors, strict=True):
            per_channel = error.reshape(*error.shape[:2], -1).mean(axis=2, dtype=np.float64).sum(axis=0)
            sums[layer.name] = sums.get(layer.name, 0.0) + per_channel
    return {name: total / n_inputs for name, total in sums.items()}
