"""Brings any classifier's graph into one form: names, opset, one input with channels first, a free batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper, version_converter

from drip.errors import ExportError
from drip.media import trial_inputs
from drip.onnx.graph import PREFIX, Graph, Inputs, Node, execution_order, run_model, session_of, watching
from drip.onnx.integrity import ROW_TOLERANCE
from drip.onnx.metadata import KEY

# Opset 13 is the first in which ReduceSum, Squeeze and Unsqueeze read axes as an input, as the new nodes do.
# Older graphs are converted.
OLDEST, _CONVERTED = 13, 17
_OLDEST_IR = 8  # of the file layout that opset 17 belongs to
_FLOATS = frozenset((TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))
_INTEGERS = {
    getattr(TensorProto, kind): np.dtype(kind.lower())
    for kind in ("UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64")
}
_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
)
_RESERVED = frozenset(
    ("input", "logits", "predicted_class", "drip_score", "retain", "drip_contrast", "features")
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A classifier's graph, ready to be extended.

    Attributes:
        model: A copy of the model.
        output: Name of the output with the logits, or their softmax.
        inputs: Inputs that it accepts.
        dynamic: Whether the batch axis accepts any size; else it is one.
        names: New names of renamed tensors by their old ones.
    """

    model: onnx.ModelProto
    output: str
    inputs: Inputs
    dynamic: bool
    names: dict[str, str]


def prepared(
    model: onnx.ModelProto,
    shape: tuple[int, ...] | None,
    output: str | None,
    samples: NDArray[np.float32] | None = None,
) -> Prepared:
    """A copy of the model with one input, ``input``, whose batch axis is free if the graph allows it.

    The copy computes in float32 where the model has other floating-point types, and rounds its input where the
    model wants integers.

    Args:
        model: Any ONNX model.
        shape: Shape of one input; None reads it from the graph. If the graph has the same sizes with
            channels last, the copy has them first, as input specs do.
        output: Name of the output with the logits; None uses the only one, or one called ``logits``.
        samples: At least two inputs of the user's; None uses noise.

    Raises:
        ExportError: The model is not a classifier with one numeric input, uses a feature of ONNX that is not
            supported here, or draws random numbers.
    """
    if any(item.key == KEY for item in model.metadata_props):
        raise ExportError(
            "the model already has a score; use `drip model set-policy` to change its policy",
            code="export-unsupported",
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # PyTorch writes layers as functions; nodes inside them cannot be differentiated
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    sort_nodes(copy.graph)
    copy = _modern(copy)
    graph = copy.graph
    _single_precision(graph)
    if graph.sparse_initializer:
        raise ExportError(
            "the model has sparse initialisers; convert them to dense ones", code="export-unsupported"
        )
    # files with an IR version below 4 list their weights among the inputs
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [item for item in graph.input if item.name not in stored]
    kinds = {TensorProto.FLOAT, *_INTEGERS}
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type not in kinds:
        listed = ", ".join(
            f"{item.name} of type {TensorProto.DataType.Name(item.type.tensor_type.elem_type)}"
            for item in inputs
        )
        raise ExportError(
            f"the model must have one input of numbers, but has {listed or 'none'}; convert or cut the graph",
            code="export-unsupported",
        )
    source = inputs[0]
    del graph.input[:]
    graph.input.append(source)
    del graph.value_info[:]  # notes on shapes that may be wrong once the batch is free
    wanted = _output_name(graph, output)
    names = _renamed(graph)
    shape, is_last = input_shape(graph.input[0], shape)
    kind = _INTEGERS.get(graph.input[0].type.tensor_type.elem_type)
    if kind is not None:
        _round_input(graph, kind)
    if is_last:
        _turn_input(graph, shape)
    wanted = names.get(wanted, wanted)
    accepted, dynamic = _free_batch(copy, wanted, shape, samples, is_integer=kind is not None)
    return Prepared(copy, wanted, accepted, dynamic, names)


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an opset that supports the new nodes."""
    opset = next((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), 0)
    if opset < OLDEST:
        try:
            model = version_converter.convert_version(model, _CONVERTED)
        except Exception as error:  # the converter's errors have no common class
            raise ExportError(
                f"the model has opset {opset}, which ONNX cannot convert to {_CONVERTED} ({error}); "
                f"export it again with opset {OLDEST} or newer",
                code="export-unsupported",
            ) from error
    # The lowest that the operators need: onnx writes its own latest, which older runtimes refuse to load.
    model.ir_version = max(helper.find_min_ir_version_for(list(model.opset_import), True), _OLDEST_IR)
    return model


def _output_name(graph: onnx.GraphProto, asked: str | None) -> str:
    names = [item.name for item in graph.output]
    wanted = asked or (names[0] if len(names) == 1 else "logits")
    if wanted not in names:
        listed = ", ".join(f"{item.name} {_declared(item)}" for item in graph.output)
        raise ExportError(
            (f"the model has no output {asked!r}" if asked else f"the model has {len(names)} outputs")
            + f"; name the one with the logits with --output (in Python: output=): {listed}",
            code="model-outputs",
        )
    return wanted


def _declared(item: onnx.ValueInfoProto) -> str:
    axes = item.type.tensor_type.shape.dim
    sizes = (axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in axes)
    return f"({', '.join(map(str, sizes))})"


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Bring the nodes into an order of execution; files whose nodes are in one stay as they are."""
    order = execution_order(graph)
    if order != sorted(order):
        sorted_nodes = [_copied(graph.node[index]) for index in order]
        del graph.node[:]
        graph.node.extend(sorted_nodes)


def _single_precision(graph: onnx.GraphProto) -> None:
    """Let a graph of float16, bfloat16 or float64 compute in float32, as the score does.

    Float16 is a way to store weights: ONNX Runtime's CPU kernels compute most of it in float32 too.
    """
    for tensor in graph.initializer:
        _widen(tensor)
    for item in (*graph.input, *graph.output, *graph.value_info):
        if item.type.tensor_type.elem_type in _FLOATS:
            item.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            if attribute.name in {"to", "dtype"} and attribute.i in _FLOATS:
                attribute.i = TensorProto.FLOAT
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _single_precision(inner)


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _round_input(graph: onnx.GraphProto, kind: np.dtype[Any]) -> None:
    """Give a graph that wants integers a float32 input, which is rounded and clipped to their range."""
    wanted = f"{PREFIX}integers"
    _rename(graph, {"input": wanted})
    source = graph.input[0]
    source.name = "input"
    to = source.type.tensor_type.elem_type
    source.type.tensor_type.elem_type = TensorProto.FLOAT
    rounded, clipped, low, high = (f"{PREFIX}input_{part}" for part in ("rounded", "clipped", "low", "high"))
    ends = np.iinfo(kind)
    # The largest integers are no float32, and casting more than fits is undefined: half of the range is enough.
    most = min(ends.max, 2**30)
    for name, end in ((low, max(ends.min, -most)), (high, most)):
        graph.initializer.append(numpy_helper.from_array(np.array(end, np.float32), name))
    _prepend(
        graph,
        helper.make_node("Round", ["input"], [rounded], name=rounded),
        helper.make_node("Clip", [rounded, low, high], [clipped], name=clipped),
        helper.make_node("Cast", [clipped], [wanted], name=wanted, to=to),
    )


def copy_input(graph: Graph) -> tuple[Graph, str]:
    """The graph with a copy of its input that everything reads, and its name: a layer can be scored there."""
    name, proto = f"{PREFIX}input_copy", graph.model.graph
    _rename(proto, {"input": name})
    proto.input[0].name = "input"
    _prepend(proto, helper.make_node("Identity", ["input"], [name], name=name))
    return Graph(graph.model), name


def _prepend(graph: onnx.GraphProto, *first: onnx.NodeProto) -> None:
    nodes = [*first, *map(_copied, graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)


def _renamed(graph: onnx.GraphProto) -> dict[str, str]:
    """Rename the input to ``input``, and every tensor whose name the format reserves."""
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    used |= {tensor.name for tensor in graph.initializer}
    stem = "source."
    # a file may already use the prefix, for example one that was renamed by hand
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


def input_shape(source: onnx.ValueInfoProto, asked: tuple[int, ...] | None) -> tuple[tuple[int, ...], bool]:
    """Shape of one input, and whether the graph has channels last; fixes open sizes in the graph."""
    axes = source.type.tensor_type.shape.dim
    if len(axes) < 2:
        raise ExportError(
            f"the model's input has {len(axes)} axes, not a batch of inputs (N, *shape); export it again",
            code="export-unsupported",
        )
    declared = tuple(axis.dim_value if axis.HasField("dim_value") else 0 for axis in axes[1:])
    shape = declared if asked is None else tuple(asked)
    if asked is None and len(shape) == 3 and shape[2] == 3 and shape[0] not in {1, 3}:
        shape = (3, *shape[:2])  # a colour image with channels last, as TensorFlow writes it
    turned = (*shape[1:], shape[0])
    is_last = not _fits(shape, declared) and _fits(turned, declared)
    if not (is_last or _fits(shape, declared)):
        raise ExportError(
            f"the input spec has shape {shape} ({turned} with channels last), but the model's input is "
            f"{declared} (0 is any size); give a matching spec",
            code="input-spec-invalid",
        )
    if 0 in shape:
        raise ExportError(
            f"the model accepts inputs of any size ({shape}, 0 is any); name one, such as --input-spec 3x224x224",
            code="input-spec-invalid",
        )
    for axis, size in zip(axes[1:], turned if is_last else shape, strict=True):
        axis.Clear()
        axis.dim_value = size
    return shape, is_last


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(d in {0, s} for d, s in zip(declared, shape, strict=True))


def _turn_input(graph: onnx.GraphProto, shape: tuple[int, ...]) -> None:
    """Give a graph with channels last, as TensorFlow writes it, an input with channels first."""
    turned = f"{PREFIX}channels_last"
    _rename(graph, {"input": turned})
    source = graph.input[0]
    source.name = "input"
    for axis, size in zip(source.type.tensor_type.shape.dim[1:], shape, strict=True):
        axis.dim_value = size
    perm = [0, *range(2, len(shape) + 1), 1]
    _prepend(graph, helper.make_node("Transpose", ["input"], [turned], name=turned, perm=perm))


def _free_batch(
    model: onnx.ModelProto,
    output: str,
    shape: tuple[int, ...],
    samples: NDArray[np.float32] | None,
    *,
    is_integer: bool,
) -> tuple[Inputs, bool]:
    """Free the batch axis if each row then has the same result as alone; otherwise fix it at one.

    Declared axes prove nothing. Exporters write a batch of one for graphs that accept any, and a free
    batch for graphs that mix the rows, for example with a Reshape to constant sizes.

    Returns:
        Inputs for which the results are finite, and whether the axis is free.
    """
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    declared = axis.dim_value if axis.HasField("dim_value") else 0
    if samples is None:
        names = ("bytes", "whole numbers") if is_integer else tuple(trial_inputs(shape, 1))
        kinds = [Inputs(shape, kind) for kind in names]
    else:
        kinds = [Inputs(shape, "samples", samples)]
    reasons = []
    for free in (True, False):
        axis.Clear()
        if free:
            axis.dim_param = "batch"
        else:
            axis.dim_value = 1
        for inputs in kinds:
            x = inputs.rows(3)  # three: a graph with a batch of two written into it would pass with two
            try:
                alone = np.concatenate([run_model(model, row[None], [output])[0] for row in x])
                _require_repeatable(model, x[:1], output)
                if not np.isfinite(alone).all():
                    reasons.append(f"{inputs.kind} gives NaN or infinity")
                    continue
                together = run_model(model, x, [output])[0] if free else alone
            except (ExportError, ValueError) as error:
                if isinstance(error, ExportError) and error.code == "model-impure":
                    raise
                reasons.append(str(error))
                continue
            scale = float(np.abs(alone).max())
            # not exactly equal: matrix products of a different size round differently
            if together.shape == alone.shape and np.abs(together - alone).max() <= ROW_TOLERANCE * scale:
                return inputs, free
    is_fed = any(reason.endswith("infinity") for reason in reasons)
    raise ExportError(
        f"the model gives no finite logits for {' or '.join(one.kind for one in kinds)}: {reasons[-1]}; "
        + (
            "give samples of its own with --data (in Python: samples=), or check its weights"
            if is_fed
            else f"it runs neither on several inputs at once nor on one (declared: {declared or 'open'})"
        ),
        code="model-non-finite" if is_fed else "export-unsupported",
    )


def _require_repeatable(model: onnx.ModelProto, x: NDArray[np.float32], output: str) -> None:
    """Check that two runs on one input have one result.

    Raises:
        ExportError: They differ (code ``model-impure``); the message names the nodes that draw random numbers.
    """
    session = session_of(watching(model, [output]), optimised=False)  # one, because each starts with one seed
    first, again = (session.run([output], {session.get_inputs()[0].name: x})[0] for _ in range(2))
    if np.array_equal(first, again, equal_nan=True):
        return
    random = [
        str(node)
        for node in map(Node.of, model.graph.node)
        if node.op in _RANDOM or (node.op == "Dropout" and node.input(2))
    ]
    raise ExportError(
        "two runs on the same input give different results: the graph draws random numbers"
        + (f" in {', '.join(random[:3])}" if random else "")
        + "; export the model in evaluation mode (in PyTorch: model.eval())",
        code="model-impure",
    )


def prune(model: onnx.ModelProto) -> None:
    """Remove nodes and weights that no output needs, such as a softmax at the end."""
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
