"""Brings any classifier's graph into the form that is worked on: names, opset, one input, its batch axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, version_converter

from drip.errors import ExportError
from drip.onnx.graph import PREFIX, Graph, noise, run_model
from drip.onnx.metadata import KEY

_OLDEST, _CONVERTED = 13, 17
_OLDEST_IR = 8
_RESERVED = frozenset(
    ("input", "logits", "predicted_class", "drip_score", "retain", "drip_contrast", "features")
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A classifier's graph, ready to be extended.

    Attributes:
        model: A copy of the model.
        output: Name of the output that has the logits, or their softmax.
        shape: Shape of one input.
        dynamic: Whether the batch axis takes any size; else it is one.
        names: Present names of tensors by their former ones, where they differ.
    """

    model: onnx.ModelProto
    output: str
    shape: tuple[int, ...]
    dynamic: bool
    names: dict[str, str]


def prepared(model: onnx.ModelProto, shape: tuple[int, ...] | None, output: str | None) -> Prepared:
    """A copy of the model with one input, ``input``, whose batch axis is free where the graph allows it.

    Args:
        model: Any ONNX model.
        shape: Shape of one input; None reads it off the graph. Where the graph has the same sizes with the
            channels at the end, the copy takes them in front, as contracts do.
        output: Name of the output with the logits; None takes the only one, or one called ``logits``.

    Raises:
        ExportError: The model is no classifier with one float32 input, or needs what is missing here.
    """
    if any(item.key == KEY for item in model.metadata_props):
        raise ExportError(
            "a model without a score is needed, got one that has it; exchange its policy instead"
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    copy = _modern(copy)
    graph = copy.graph
    if graph.sparse_initializer:
        raise ExportError("dense weights are needed, got sparse initialisers; convert them")
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [item for item in graph.input if item.name not in stored]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        listed = ", ".join(
            f"{item.name} of type {TensorProto.DataType.Name(item.type.tensor_type.elem_type)}"
            for item in inputs
        )
        raise ExportError(f"one float32 input is needed, got {listed or 'none'}; convert or cut the graph")
    source = inputs[0]
    del graph.input[:]
    graph.input.append(source)
    del graph.value_info[:]
    wanted = _output_name(graph, output)
    names = _renamed(graph)
    shape, is_last = _input_shape(graph.input[0], shape)
    if is_last:
        _turn_input(graph, shape)
    wanted = names.get(wanted, wanted)
    return Prepared(copy, wanted, shape, _free_batch(copy, wanted, shape), names)


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an opset that new nodes can be written in."""
    opset = next((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), 0)
    if opset < _OLDEST:
        try:
            model = version_converter.convert_version(model, _CONVERTED)
        except Exception as error:  # the converter's errors have no common class
            raise ExportError(
                f"opset {_OLDEST} or one that converts is needed, got {opset}: {error}; export the model anew"
            ) from error
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    return model


def _output_name(graph: onnx.GraphProto, asked: str | None) -> str:
    names = [item.name for item in graph.output]
    wanted = asked or (names[0] if len(names) == 1 else "logits")
    if wanted not in names:
        raise ExportError(
            f"output must be one of {', '.join(names)}, got {asked!r}; name the one with logits"
        )
    return wanted


def _renamed(graph: onnx.GraphProto) -> dict[str, str]:
    """Rename the input, and whatever has a name that the format gives away."""
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    used |= {tensor.name for tensor in graph.initializer}
    stem = "source."
    while any(name.startswith(stem) for name in used):
        stem = f"source.{stem}"
    names = {name: f"{stem}{name}" for name in used if name in _RESERVED or name.startswith(PREFIX)}
    names[graph.input[0].name] = "input"
    _rename(graph, names)
    return {old: new for old, new in names.items() if old != new}


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        for fields in (node.input, node.output):
            for index, name in enumerate(fields):
                fields[index] = names.get(name, name)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, names)
    for items in (graph.input, graph.output, graph.initializer, graph.value_info):
        for item in items:
            item.name = names.get(item.name, item.name)


def _input_shape(source: onnx.ValueInfoProto, asked: tuple[int, ...] | None) -> tuple[tuple[int, ...], bool]:
    """Shape of one input, and whether the graph takes it with channels at the end; open sizes are fixed."""
    axes = source.type.tensor_type.shape.dim
    if len(axes) < 2:
        raise ExportError(f"an input of shape (N, *shape) is needed, got {len(axes)} axes; export it anew")
    declared = tuple(axis.dim_value if axis.HasField("dim_value") else 0 for axis in axes[1:])
    shape = declared if asked is None else tuple(asked)
    turned = (*shape[1:], shape[0])
    is_last = not _fits(shape, declared) and _fits(turned, declared)
    if not (is_last or _fits(shape, declared)):
        raise ExportError(
            f"a contract for inputs of shape {declared} is needed, got shape {shape}, or {turned} with "
            "channels at the end; 0 stands for any size"
        )
    if 0 in shape:
        raise ExportError(f"a fixed input shape is needed, got {shape}, 0 for open sizes; give a contract")
    for axis, size in zip(axes[1:], turned if is_last else shape, strict=True):
        axis.Clear()
        axis.dim_value = size
    return shape, is_last


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(d in {0, s} for d, s in zip(declared, shape, strict=True))


def _turn_input(graph: onnx.GraphProto, shape: tuple[int, ...]) -> None:
    """Let the input have its channels in front, as contracts do, before a graph with channels at the end."""
    turned = f"{PREFIX}channels_last"
    _rename(graph, {"input": turned})
    source = graph.input[0]
    source.name = "input"
    for axis, size in zip(source.type.tensor_type.shape.dim[1:], shape, strict=True):
        axis.dim_value = size
    perm = [0, *range(2, len(shape) + 1), 1]
    nodes = [
        helper.make_node("Transpose", ["input"], [turned], name=turned, perm=perm),
        *map(_copied, graph.node),
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def _free_batch(model: onnx.ModelProto, output: str, shape: tuple[int, ...]) -> bool:
    """Free the batch axis if rows then come out as they do alone; else fix it at one."""
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    declared = axis.dim_value if axis.HasField("dim_value") else 0
    axis.Clear()
    axis.dim_param = "batch"
    x = noise(shape, 3)
    try:
        (together,) = run_model(model, x, [output])
        alone = np.concatenate([run_model(model, row[None], [output])[0] for row in x])
        scale = float(np.abs(alone).max())
        if together.shape == alone.shape and np.abs(together - alone).max() <= 1e-4 * scale:
            return True
    except (ExportError, ValueError):
        pass
    axis.Clear()
    axis.dim_value = 1
    try:
        run_model(model, x[:1], [output])
    except ExportError as error:
        raise ExportError(
            f"a model that takes one input at a time is needed, its batch is {declared or 'open'}: {error}"
        ) from error
    return False


def prune(model: onnx.ModelProto) -> None:
    """Remove nodes and weights that no output needs."""
    graph = Graph(model)
    needed = {name for item in model.graph.output for name in graph.ancestors(item.name)}
    nodes = [node.proto for node in graph.nodes if not needed.isdisjoint(node.outputs)]
    kept = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    nodes = [_copied(node) for node in nodes]
    kept_copies = []
    for tensor in kept:
        one = TensorProto()
        one.CopyFrom(tensor)
        kept_copies.append(one)
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept_copies)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    one = onnx.NodeProto()
    one.CopyFrom(node)
    return one
