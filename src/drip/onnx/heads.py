"""Finds the head in a graph: the logits, the activation that enters the head, and its channel axis.

A PyTorch model says where its layers are; an ONNX graph is a list of operations. The head is found from
its structure: every path from the input to the logits must go through the activation, or the score would miss
part of what the classifier uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from drip.errors import ExportError
from drip.onnx.graph import PREFIX, Graph, Inputs, Node, measure, run_model, session_of, watching
from drip.onnx.tape import attribute

Layout = Literal["channels_first", "channels_last", "tokens"]
ClosingSoftmax = Literal["cut", "keep", "sigmoid"]

# Operations that only move or copy values
_PLUMBING = frozenset(
    ("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Cast")
)
_POOLS = frozenset(
    ("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "ReduceMean", "ReduceMax", "ReduceSum")
)
_CLOSING = {"Softmax": "softmax", "LogSoftmax": "softmax", "Sigmoid": "sigmoid"}
_ROUNDING = frozenset(("QuantizeLinear", "DequantizeLinear"))
# The last operation of a softmax, its logarithm or a sigmoid that is made of simpler ones
_SPELLED = frozenset(("Div", "Sub", "Mul", "Reciprocal"))
_LONGEST_SPELLING = 12
_STRIDED = frozenset(("Conv", "MaxPool"))
_GIVEN = f"{PREFIX}given"
_SAME = 1e-5
_MOST_PREFIX_TOKENS = 16  # DINOv2 with registers has five
# Operations that ONNX defines on (N, C, *positions), and those that act on the last axis
_CHANNELS_FIRST = frozenset(
    (
        "Conv",
        "ConvTranspose",
        "BatchNormalization",
        "InstanceNormalization",
        "MaxPool",
        "AveragePool",
        "GroupNormalization",
    )
)
_CHANNELS_LAST = frozenset(("LayerNormalization", "MatMul", "Gemm"))


@dataclass(frozen=True, slots=True)
class Head:
    """The part of a graph from the scored activation to the logits.

    Attributes:
        activation: Name of the tensor A that is scored.
        logits: Name of the tensor of logits.
        layout: Where A has its channels; ``tokens`` is (N, T, C).
        n_maps: Number of maps K.
        positions: Sizes of the position axes, without the class token.
        skipped: Number of tokens before the positions that the head treats in another way, such as a class token.
        nodes: The nodes from A to the logits.
    """

    activation: str
    logits: str
    layout: Layout
    n_maps: int
    positions: tuple[int, ...]
    skipped: int
    nodes: tuple[Node, ...]


def find_logits(
    graph: Graph, output: str, inputs: Inputs, closing_softmax: ClosingSoftmax = "cut"
) -> tuple[str, str]:
    """The logits of an output, and what was cut off: ``softmax``, ``sigmoid`` or nothing.

    A softmax or sigmoid is also at the end if its result is only reshaped or cast, or if other operations
    compute it.

    Raises:
        ExportError: The graph ends with a class, or with a softmax whose axes are swapped.
    """
    # Gradients through a softmax vanish for confident samples: their score would be 0 and say nothing.
    if closing_softmax == "keep":
        return output, ""
    node, turned = graph.producer.get(output), False
    while node is not None and node.op in _PLUMBING | _ROUNDING:
        turned |= node.op == "Transpose"
        node = graph.producer.get(node.inputs[0])
    if node is None:
        return output, ""
    if node.op in _CLOSING and not turned:
        return node.inputs[0], _CLOSING[node.op]
    if node.op in _SPELLED and (found := _spelled_out(graph, node.outputs[0], inputs)):
        return found
    if node.op in _CLOSING or node.op in {"ArgMax", "TopK", "ZipMap", "NonMaxSuppression"}:
        raise ExportError(
            f"the graph ends with {node}, not with one logit per class; "
            "name the output with the logits with --output (in Python: output=), or cut that node off",
            code="export-unsupported",
        )
    return output, ""


def _spelled_out(graph: Graph, output: str, inputs: Inputs) -> tuple[str, str] | None:
    """The logits of a softmax or sigmoid that simpler operations compute, found by its values."""
    names = [*graph.cuts(output)[-_LONGEST_SPELLING:], output]
    runs = [run_model(graph.model, row[None], names) for row in inputs.rows(4)]
    found: tuple[str, str] | None = None
    for index in range(len(names) - 2, -1, -1):
        kinds = [_probabilities(run[index], run[-1]) for run in runs]
        kind = kinds[0] if len(set(kinds)) == 1 else ""
        if kind == "sigmoid":
            return names[index], kind
        # The softmax of logits minus their largest is the same, but their gradient is not: the earliest of
        # several such tensors has the logits.
        if found and not kind:
            break
        found = (names[index], kind) if kind else found
    return found


def _probabilities(x: NDArray[np.generic], output: NDArray[np.generic]) -> str:
    """The function that makes an output, or its exponential, of a tensor: ``softmax``, ``sigmoid`` or none."""
    if x.dtype.kind != "f" or x.size != output.size or not np.isfinite(x.astype(np.float64)).all():
        return ""
    logits, wanted = (value.reshape(-1).astype(np.float64) for value in (x, output))
    powers = np.exp(logits - logits.max())
    results = {"softmax": powers / powers.sum(), "sigmoid": 1 / (1 + np.exp(-np.clip(logits, -700, 700)))}
    for kind, result in results.items():
        for same in (result, np.log(np.maximum(result, 1e-300))):
            if (kind == "sigmoid" or x.size > 1) and np.allclose(same, wanted, rtol=1e-4, atol=1e-6):
                return kind
    return ""


def find_head(
    graph: Graph,
    logits: str,
    inputs: Inputs,
    layer: str | None,
    layout: Layout | None,
    *,
    dynamic: bool,
) -> Head:
    """The head after the named tensor, or after the last activation that every path goes through.

    The activation is the last such tensor with more than one position. If a strided convolution reduces
    the positions to one, it is the last tensor after that convolution, as with small inputs. With a
    convolution as classifier before the pooling, as in SqueezeNet, it is the map of each class; name the
    tensor before it to score what enters the classifier. For tokens, (N, T, C), it is the last tensor
    whose positions influence the logits: after the last attention only the class token does.

    Args:
        graph: The graph; shapes are measured.
        logits: Name of the logits.
        inputs: What to run it on.
        layer: Name of a tensor; None finds it.
        layout: Where the tensor has its channels; None finds it.
        dynamic: Whether the graph accepts batches of two and three.

    Raises:
        ExportError: There is no such tensor, it has no positions, or it is not float32.
    """
    cuts = graph.cuts(logits)
    # A user may name an output that is only a copy of the activation: follow Identity back to the original.
    while layer is not None and layer not in graph.ancestors(logits) and layer in graph.producer:
        if graph.producer[layer].op != "Identity":
            break
        layer = graph.producer[layer].inputs[0]
    if layer is None:
        measure(graph, inputs, [*cuts, logits], dynamic=dynamic)
        layer = _chosen(graph, logits, cuts)
    elif layer not in graph.varying or layer not in graph.ancestors(logits):
        near = ", ".join(cuts[-6:])
        raise ExportError(
            f"the logits do not depend on a tensor named {layer!r}; choose one such as {near}",
            code="model-layer",
        )
    nodes = tuple(graph.between(layer, logits))
    names = {layer, logits}
    for node in nodes:
        names |= {name for name in (*node.inputs, *node.outputs) if name}
    measure(graph, inputs, sorted(names), dynamic=dynamic)
    _require_float32(graph, layer, logits)
    sizes = graph.sizes(layer)
    if len(sizes) < 3:
        raise ExportError(
            f"{layer!r} has shape {sizes} without positions; choose a layer of shape (N, K, *positions)",
            code="model-layer",
        )
    if graph.shapes[layer].growing - {0}:
        raise ExportError(
            f"the batch is not exactly the first axis of {layer!r}; choose another layer", code="model-layer"
        )
    rerun = _Rerun(graph, layer, logits, inputs, dynamic=dynamic)
    found: Layout = layout or rerun.layout() or _layout(graph, layer)
    if found == "channels_first":
        return Head(layer, logits, found, sizes[1], sizes[2:], 0, nodes)
    positions, skipped = sizes[1:-1], 0
    if len(sizes) == 3:
        skipped = rerun.prefix_tokens()
        positions = (sizes[1] - skipped,)  # one axis, as in the graph; the metadata record the grid
        found = "tokens"
    return Head(layer, logits, found, sizes[-1], positions, skipped, nodes)


class _Rerun:
    """Runs a head again on activations whose values have changed places, to see what its logits depend on."""

    def __init__(self, graph: Graph, layer: str, logits: str, inputs: Inputs, *, dynamic: bool) -> None:
        model = watching(graph.model, [logits])
        nodes = []
        for node in graph.model.graph.node:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            copy.input[:] = [_GIVEN if name == layer else name for name in copy.input]
            nodes.append(copy)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        sizes = graph.sizes(layer)
        model.graph.input.append(
            helper.make_tensor_value_info(_GIVEN, TensorProto.FLOAT, [None] * len(sizes))
        )
        self._session, self._logits = session_of(model, optimised=False), logits
        self._x = inputs.rows(2 if dynamic else 1)
        values = run_model(graph.model, self._x, [layer])[0].astype(np.float64)
        # Maps of noise may be constant, and dead channels are 0 everywhere: their values have nothing to exchange.
        noise = np.random.default_rng(7).normal(size=values.shape)
        self._values = (values + 0.1 * (float(np.abs(values).mean()) or 1.0) * noise).astype(np.float32)
        self._first = self._run(self._values)

    def _run(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._session.run(
            [self._logits], {self._session.get_inputs()[0].name: self._x, _GIVEN: values}
        )[0]
        return found

    def _changes(self, values: NDArray[np.float32]) -> bool:
        largest = float(np.abs(self._first).max())
        return float(np.abs(self._run(values) - self._first).max()) > _SAME * largest

    def layout(self) -> Layout | None:
        """The channel axis: the only one whose order matters to a head that pools; None if others matter too."""
        rank = self._values.ndim
        matter = [
            axis
            for axis in range(1, rank)
            if self._values.shape[axis] > 1 and self._changes(np.flip(self._values, axis).copy())
        ]
        if matter == [1]:
            return "channels_first"
        if matter == [rank - 1]:
            return "tokens" if rank == 3 else "channels_last"
        return None

    def prefix_tokens(self) -> int:
        """Tokens at the start that cannot change places with the last one, while those after them can.

        A class token is one only if the head treats it so. A head in which every place matters, such as one
        that flattens, has none.
        """
        n_tokens = self._values.shape[1]
        for count in range(min(n_tokens - 1, _MOST_PREFIX_TOKENS + 1)):
            order = list(range(n_tokens))
            order[count], order[-1] = order[-1], order[count]
            if not self._changes(self._values[:, order]):
                return count
        return 0


def _require_float32(graph: Graph, *names: str) -> None:
    for name in names:
        if graph.shapes[name].kind != "float32":
            raise ExportError(
                f"{name!r} has type {graph.shapes[name].kind}; the head must be float32: convert the file to "
                "float32, or export it again",
                code="export-unsupported",
            )


def _chosen(graph: Graph, logits: str, cuts: list[str]) -> str:
    """The activation: one of the tensors that every path goes through."""
    usable = [
        name
        for name in cuts
        if name in graph.shapes
        and graph.rank(name) >= 3
        and name != logits
        and graph.shapes[name].growing <= {0}  # recurrent layers have the time first
    ]

    def n_positions(name: str) -> int:
        sizes = graph.sizes(name)
        channels = 1 if _layout(graph, name) == "channels_first" else len(sizes) - 1
        return math.prod(size for axis, size in enumerate(sizes) if axis not in {0, channels})

    # A tensor that was only moved or pooled carries the same information as the one before it, with names and
    # layouts that differ between exporters: the operation that computed it is the stable choice.
    spatial = [
        name for name in usable
        if n_positions(name) > 1
        and _maker(graph, name).op not in (_PLUMBING | _POOLS)
        and _matters(graph, name, logits)
    ]  # fmt: skip
    # For small inputs the last convolutions see one position. Scoring before them would ignore what they
    # learned; after a pooling, one position is only the pooled map and the tensor before it is right.
    last = cuts.index(spatial[-1]) if spatial else -1
    pointlike = [name for name in usable if cuts.index(name) > last and n_positions(name) == 1]
    for index, name in enumerate(pointlike):
        node = graph.producer[name]
        if node.op in _STRIDED and index == 0:
            later = [one for one in pointlike if graph.producer[one].op not in (_PLUMBING | _POOLS)]
            return later[-1]
        if node.op in _POOLS:
            break
    if spatial:
        return spatial[-1]
    seen = ", ".join(f"{name} {graph.sizes(name)}" for name in cuts[-5:] if name in graph.shapes)
    raise ExportError(
        "the graph has no activation of shape (N, K, *positions) that every path to the logits goes "
        f"through (the last common tensors: {seen or 'none'}); name one with --score layer=NAME (in Python: layer=), "
        "or use --score layer=none for the rules that need no map",
        code="model-layer",
    )


def _maker(graph: Graph, name: str) -> Node:
    """The node that computes a tensor; for a quantised one, the node before it was rounded."""
    node = graph.producer[name]
    while node.op in _ROUNDING and node.inputs[0] in graph.producer:
        node = graph.producer[node.inputs[0]]
    return node


def _matters(graph: Graph, name: str, logits: str) -> bool:
    """Whether the logits use more than one token: False if one is picked and no attention precedes."""
    if _layout(graph, name) == "channels_first" or graph.rank(name) != 3:
        return True
    # A Softmax after it indicates another attention layer, in which every token can still influence the
    # picked one.
    ops = [node.op for node in graph.between(name, logits)]
    return not {"Gather", "Slice"} & set(ops) or "Softmax" in ops


def _layout(graph: Graph, name: str) -> Layout:
    """Where a tensor has its channels, from the last operation before it that defines their place."""
    rank = graph.rank(name)
    last: Layout = "tokens" if rank == 3 else "channels_last"
    node = graph.producer.get(name)
    turned = False
    while node is not None:
        order: tuple[int, ...] = attribute(node, "perm", ()) if node.op == "Transpose" else ()
        # channels moved from the end to the front, or from the front to the end
        turned ^= len(order) > 2 and order[0] == 0 and (order[1] == len(order) - 1 or order[-1] == 1)
        if node.op in _CHANNELS_FIRST:
            return last if turned else "channels_first"
        if node.op in _CHANNELS_LAST:
            return "channels_first" if turned else last
        following = [
            graph.producer[one] for one in node.inputs if one in graph.varying and one in graph.producer
        ]
        node = following[0] if following else None
    return "channels_first"
