"""Quantises the classifier inside a model file to eight bits; score, decision and last layer stay float32.

ONNX Runtime's quantiser does the work. This module chooses the nodes and prepares the graph: it knows which
nodes the score reads, and the quantiser does not.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from drip.errors import ExportError
from drip.onnx.graph import Graph, session_of
from drip.onnx.ranges import Range

Activations = Literal["uint8", "int8"]

_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
_QUANTISED = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))
# Every operation that the quantiser can handle. ArgMax returns classes, which have no scale.
_KNOWN = frozenset((*QLinearOpsRegistry, *QDQRegistry)) - {"ArgMax"}
_PLUMBING = ("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout", "Add", "Sub", "Cast")
_POOLS = ("GlobalAveragePool", "AveragePool", "ReduceMean", "GlobalMaxPool")
_PASSED = frozenset((*_PLUMBING, *_POOLS))
_LINEAR = frozenset(("Gemm", "MatMul"))
_LAYERS = _LINEAR | {"Conv", "ConvTranspose"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A folded graph, and the part of it that becomes eight bits.

    Attributes:
        model: The graph, with batch normalisations folded and every node named.
        nodes: Names of the nodes to quantise.
        tensors: Names of the float32 tensors that they read and write.
        n_layers: Convolutions and linear layers before the last linear one.
    """

    model: onnx.ModelProto
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    n_layers: int


def plan_int8(model: onnx.ModelProto, n_float_layers: int = 0) -> Plan:
    """Fold the graph, and choose the nodes that become eight bits.

    Score and decision stay float32, and so does the end of the classifier back to its last linear layer:
    the score reads the same weights, so a quantised copy would add bytes instead of saving them, and
    the logits keep their resolution. Nodes that prepare the input before the first layer stay float32 too.
    Apart from these, only leading layers can stay in float32: ONNX Runtime 1.31 quantises a float32 layer
    between quantised ones when it loads the file, with one scale for all channels.

    Args:
        model: A model file's graph in float32.
        n_float_layers: Number of leading convolutions and linear layers that stay in float32, with the nodes
            that follow each.

    Raises:
        ExportError: The graph is quantised, or no layer is left to quantise.
    """
    if any(node.op_type in _QUANTISED for node in model.graph.node):
        raise ExportError(
            "the model is already quantised; quantise the float32 file that it was made from",
            code="export-unsupported",
        )
    folded = _folded(model)
    graph = Graph(folded)
    above, ending = graph.ancestors("logits"), _ending(graph)
    body = [
        node for node in graph.nodes
        if not above.isdisjoint(node.outputs) and node.proto.name not in ending
        and not graph.varying.isdisjoint(node.outputs)
    ]  # fmt: skip
    layers = [index for index, node in enumerate(body) if node.op in _LAYERS]
    if n_float_layers >= len(layers):
        raise ExportError(
            f"no layer is left to quantise: {n_float_layers} leading layers are to stay in float32, but the "
            f"model has {len(layers)} convolutions and linear layers before the last one; keep fewer in "
            "float32",
            code="export-unsupported",
        )
    chosen = [node for node in body[layers[n_float_layers] :] if node.op in _KNOWN]
    names = tuple(node.proto.name for node in chosen)
    _split_weights(folded, names)
    touched = dict.fromkeys(
        name for node in chosen for name in (*node.inputs, *node.outputs) if name in graph.varying
    )
    return Plan(folded, names, _floats(folded, touched), len(layers))


def write_int8(
    plan: Plan,
    ranges: Mapping[str, Range],
    example: NDArray[np.float32],
    *,
    per_channel: bool,
    activations: Activations,
    weight_bits: int,
) -> onnx.ModelProto:
    """The plan's graph with pairs of QuantizeLinear and DequantizeLinear around the chosen nodes.

    Args:
        plan: What to quantise.
        ranges: Lower and upper end of every tensor of the plan.
        example: A batch that the quantiser runs; it does not influence the ranges.
        per_channel: One scale for every output channel of a weight instead of one for all.
        activations: Type of the activations; weights are int8 and symmetric.
        weight_bits: 7 or 8. x86 processors without VNNI add two products of eight bits in sixteen, which
            saturate; with weights from -64 to 64 they cannot.

    Raises:
        ExportError: ONNX Runtime cannot quantise the graph.
    """
    if activations not in get_args(Activations):
        raise ExportError(
            f"activations must be one of {', '.join(get_args(Activations))}, not {activations!r}",
            code="bad-argument",
        )
    # The quantiser offers no calibration by squared error, so its ranges are overridden for every tensor.
    overrides = {
        name: [{"rmin": np.float32(ranges[name][0]), "rmax": np.float32(ranges[name][1])}]
        for name in plan.tensors
    }
    names = set(plan.nodes)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(plan.model, source)
        try:
            quantize_static(
                source,
                path,
                _Reader(example),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=sorted(
                    {node.op_type for node in plan.model.graph.node if node.name in names}
                ),
                nodes_to_quantize=list(plan.nodes),
                per_channel=per_channel,
                weight_type=QuantType.QInt8,
                activation_type=_TYPES[activations],
                reduce_range=weight_bits == 7,
                extra_options={
                    "TensorQuantOverrides": overrides,
                    # The derivative of a ReLU after a hidden linear layer depends on the sign of the
                    # layer's output. Eight bits round small positive numbers to 0, which would remove the
                    # unit from the score.
                    "OpTypesToExcludeOutputQuantization": sorted(_LINEAR),
                },
            )
            written = onnx.load(path)
        except Exception as error:  # the quantiser raises many exception types
            raise ExportError(
                f"ONNX Runtime cannot quantise the graph ({error!r}); keep more leading layers in float32"
            ) from error
    # The quantiser declares operator sets that no node uses; a runtime without them may refuse the file.
    used = {node.domain for node in written.graph.node} | {""}
    imports = [(item.domain, item.version) for item in written.opset_import if item.domain in used]
    del written.opset_import[:]
    for domain, version in imports:
        written.opset_import.add(domain=domain, version=version)
    del written.graph.value_info[:]
    return written


class _Reader:
    """One batch, in the interface by which the quantiser reads calibration inputs."""

    def __init__(self, batch: NDArray[np.float32]) -> None:
        self._left = [batch]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The batch, then None."""
        return {"input": self._left.pop()} if self._left else None


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph after ONNX Runtime folded constants and batch normalisations, with all nodes named.

    A batch normalisation that is quantised separately would round twice; folded, it changes the weights of
    the convolution before they are rounded.
    """
    session_of(model)  # raises an ExportError for a graph that does not load
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        # sharing would merge drip.lower and drip.upper into one constant if they are equal
        ort.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantSharing"],
        )
        folded = onnx.load(path)
    names: set[str] = set()  # the quantiser addresses nodes by name, and ONNX does not require names
    for index, node in enumerate(folded.graph.node):
        if not node.name or node.name in names:
            node.name = f"{node.op_type}_{index}"
        names.add(node.name)
    del folded.metadata_props[:]
    return folded


def _ending(graph: Graph) -> set[str]:
    """Names of the nodes from the logits back to the last linear layer, or to another operation."""
    found: set[str] = set()
    name = "logits"
    while name in graph.producer:
        node = graph.producer[name]
        varying = [one for one in node.inputs if one in graph.varying]
        if node.op not in (_PASSED | _LINEAR) or len(varying) != 1:
            break
        found.add(node.proto.name)
        if node.op in _LINEAR:
            break
        name = varying[0]
    return found


def _split_weights(model: onnx.ModelProto, chosen: Collection[str]) -> None:
    """Give nodes that stay float32 a copy of the weights that they share with quantised nodes.

    The quantiser replaces a weight for all of its readers, so the score would read rounded weights.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    shared = {
        name for node in model.graph.node if node.name in chosen for name in node.input if name in stored
    }
    copies: dict[str, str] = {}
    for node in model.graph.node:
        if node.name in chosen:
            continue
        for index, name in enumerate(node.input):
            if name in shared:
                if name not in copies:
                    copies[name] = f"{name}.float"
                    copy = model.graph.initializer.add()
                    copy.CopyFrom(stored[name])
                    copy.name = copies[name]
                node.input[index] = copies[name]


def _floats(model: onnx.ModelProto, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the named tensors that are float32; shapes and indices have no range."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    items = (*inferred.value_info, *inferred.input, *inferred.output)
    kinds = {item.name: item.type.tensor_type.elem_type for item in items}
    return tuple(name for name in names if kinds.get(name) == onnx.TensorProto.FLOAT)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantiser's advice to run its own preparation, which :func:`plan_int8` replaces."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
