"""Turns the classifier inside a model file into eight bits; score, decision and last layer stay float32."""

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
_KNOWN = frozenset((*QLinearOpsRegistry, *QDQRegistry)) - {"ArgMax"}
_PLUMBING = ("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout", "Add", "Sub", "Cast")
_POOLS = ("GlobalAveragePool", "AveragePool", "ReduceMean", "GlobalMaxPool")
_PASSED = frozenset((*_PLUMBING, *_POOLS))
_LINEAR = frozenset(("Gemm", "MatMul"))
_LAYERS = _LINEAR | {"Conv", "ConvTranspose"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A folded graph and what of it becomes eight bits.

    Attributes:
        model: The graph, its batch normalisations folded and every node named.
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

    What the logits are not computed from, the score and the decision, stays float32, and so does the end
    of the classifier back to its last linear layer: the score reads the same weights, so that bytes would
    be added and not saved, and the logits keep their resolution. What prepares the input before the first
    layer stays float32 too. Only first layers can be kept besides: a float32 layer between quantised ones
    would be quantised again, with one scale for all channels, when ONNX Runtime loads the file.

    Args:
        model: A model file's graph in float32.
        n_float_layers: Number of first convolutions and linear layers that stay float32, with what follows
            each.

    Raises:
        ExportError: The graph is quantised, or no layer is left to quantise.
    """
    if any(node.op_type in _QUANTISED for node in model.graph.node):
        raise ExportError("a float32 model file is needed, got one that is quantised; quantise its parent")
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
            f"more than {n_float_layers} convolutions or linear layers before the last one are needed to "
            f"quantise, got {len(layers)}"
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
) -> onnx.ModelProto:
    """The plan's graph with pairs of QuantizeLinear and DequantizeLinear around the chosen nodes.

    Args:
        plan: What to quantise.
        ranges: Lower and upper end of every tensor of the plan.
        example: A batch that the quantiser runs; ranges do not come from it.
        per_channel: A scale for every output channel of a weight, or one for all.
        activations: Type of the activations; weights are int8 and symmetric.

    Raises:
        ExportError: ONNX Runtime cannot quantise the graph.
    """
    if activations not in get_args(Activations):
        raise ExportError(
            f"activations must be one of {', '.join(get_args(Activations))}, got {activations!r}"
        )
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
                extra_options={
                    "TensorQuantOverrides": overrides,
                    # the score looks at the sign of what a hidden linear layer gives: 0 for a small
                    # positive number would switch a unit off
                    "OpTypesToExcludeOutputQuantization": sorted(_LINEAR),
                },
            )
            written = onnx.load(path)
        except Exception as error:  # the quantiser raises many types
            raise ExportError(
                f"a graph that ONNX Runtime quantises is needed, it fails: {error!r}; "
                "keep more first layers in float32"
            ) from error
    used = {node.domain for node in written.graph.node} | {""}
    imports = [(item.domain, item.version) for item in written.opset_import if item.domain in used]
    del written.opset_import[:]
    for domain, version in imports:
        written.opset_import.add(domain=domain, version=version)
    del written.graph.value_info[:]
    return written


class _Reader:
    """One batch, as the quantiser reads calibration inputs."""

    def __init__(self, batch: NDArray[np.float32]) -> None:
        self._left = [batch]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The batch, then None."""
        return {"input": self._left.pop()} if self._left else None


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as ONNX Runtime folds constants and batch normalisations, and all nodes named."""
    session_of(model)  # says what is wrong with a graph that does not load
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        # sharing would give the two limits one constant where they are equal
        ort.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantSharing"],
        )
        folded = onnx.load(path)
    names: set[str] = set()
    for index, node in enumerate(folded.graph.node):
        if not node.name or node.name in names:
            node.name = f"{node.op_type}_{index}"
        names.add(node.name)
    del folded.metadata_props[:]
    return folded


def _ending(graph: Graph) -> set[str]:
    """Names of the nodes from the logits back to the last linear layer, or to what is no plumbing."""
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
    """Give nodes that stay float32 a copy of the weights that they share with quantised ones."""
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
    """Those of the tensors that are float32."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    items = (*inferred.value_info, *inferred.input, *inferred.output)
    kinds = {item.name: item.type.tensor_type.elem_type for item in items}
    return tuple(name for name in names if kinds.get(name) == onnx.TensorProto.FLOAT)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice on its own preparation, which is done here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
