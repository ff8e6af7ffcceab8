"""Finds the head in a graph: the logits, the activation that enters the head, and where its channels are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from drip.errors import ExportError
from drip.onnx.graph import Graph, Node, measure
from drip.onnx.tape import attribute

Layout = Literal["channels_first", "channels_last", "tokens"]
ClosingSoftmax = Literal["cut", "keep"]

_PLUMBING = frozenset(
    ("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Cast")
)
_POOLS = frozenset(
    ("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "ReduceMean", "ReduceMax", "ReduceSum")
)
_STRIDED = frozenset(("Conv", "MaxPool"))
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
    """Where a graph's head begins and ends.

    Attributes:
        activation: Name of the tensor A that is scored.
        logits: Name of the tensor of logits.
        layout: Where A has its channels; ``tokens`` is (N, T, C).
        n_maps: Number of maps K.
        positions: Sizes of the position axes; the class token is not among them.
        skipped: Class tokens in front of the positions, 0 or 1.
        nodes: The nodes between.
    """

    activation: str
    logits: str
    layout: Layout
    n_maps: int
    positions: tuple[int, ...]
    skipped: int
    nodes: tuple[Node, ...]


def find_logits(graph: Graph, output: str, closing_softmax: ClosingSoftmax = "cut") -> str:
    """The logits behind an output: what enters a closing softmax that is cut, else the output itself.

    The softmax closes the graph also where its result is only reshaped or cast behind it.

    Raises:
        ExportError: The graph ends with a sigmoid, or with a softmax whose axes are exchanged.
    """
    if closing_softmax == "keep":
        return output
    node, turned = graph.producer.get(output), False
    while node is not None and node.op in _PLUMBING:
        turned |= node.op == "Transpose"
        node = graph.producer.get(node.inputs[0])
    if node is not None and node.op in {"Softmax", "LogSoftmax"} and not turned:
        return node.inputs[0]
    if node is not None and node.op in {"Softmax", "LogSoftmax", "Sigmoid", "ArgMax", "TopK", "ZipMap"}:
        raise ExportError(
            f"a graph that ends with one logit per class is needed, got {node} at the end; "
            "cut it off, or name the output that has the logits"
        )
    return output


def find_head(
    graph: Graph,
    logits: str,
    shape: tuple[int, ...],
    layer: str | None,
    layout: Layout | None,
    *,
    dynamic: bool,
) -> Head:
    """The head behind the named tensor, or behind the last one with positions that all logits go through.

    Of all tensors that every path from the input to the logits goes through the last one with more than
    one position is taken; where a strided convolution goes down to one position, the last one of those.
    With a convolution as classifier before the pooling, as in SqueezeNet, that is the map of each class:
    name the tensor before it to score what enters the classifier. Of tokens, (N, T, C), the last ones
    whose positions matter to the logits: behind the last attention only the class token does.

    Args:
        graph: The graph; shapes are measured.
        logits: Name of the logits.
        shape: Shape of one input.
        layer: Name of a tensor; None finds it.
        layout: Where the tensor has its channels; None finds it.
        dynamic: Whether the graph takes batches of two and three.

    Raises:
        ExportError: There is no such tensor, or none with positions, or it is not float32.
    """
    cuts = graph.cuts(logits)
    while layer is not None and layer not in graph.ancestors(logits) and layer in graph.producer:
        if graph.producer[layer].op != "Identity":
            break
        layer = graph.producer[layer].inputs[0]
    if layer is None:
        measure(graph, shape, [*cuts, logits], dynamic=dynamic)
        layer = _chosen(graph, logits, cuts)
    elif layer not in graph.varying or layer not in graph.ancestors(logits):
        near = ", ".join(cuts[-6:])
        raise ExportError(f"layer must name a tensor that leads to the logits, got {layer!r}; such as {near}")
    nodes = tuple(graph.between(layer, logits))
    names = {layer, logits}
    for node in nodes:
        names |= {name for name in (*node.inputs, *node.outputs) if name}
    measure(graph, shape, sorted(names), dynamic=dynamic)
    _require_float32(graph, layer, logits)
    found: Layout = layout or _layout(graph, layer)
    sizes = graph.sizes(layer)
    if len(sizes) < 3:
        raise ExportError(
            f"layer must have shape (N, K, *positions), got {sizes} of {layer!r}; choose another"
        )
    if graph.shapes[layer].growing - {0}:
        raise ExportError(f"a layer whose first axis alone follows the batch is needed, got {layer!r}")
    if found == "channels_first":
        return Head(layer, logits, found, sizes[1], sizes[2:], 0, nodes)
    positions, skipped = sizes[1:-1], 0
    if len(sizes) == 3:
        skipped = _class_tokens(sizes[1], layer)
        positions = (sizes[1] - skipped,)
        found = "tokens"
    return Head(layer, logits, found, sizes[-1], positions, skipped, nodes)


def _require_float32(graph: Graph, *names: str) -> None:
    for name in names:
        if graph.shapes[name].kind != "float32":
            raise ExportError(
                f"float32 from the layer to the logits is needed, got {graph.shapes[name].kind} at {name!r}; "
                "convert the file to float32, or export it anew"
            )


def _class_tokens(n_tokens: int, layer: str) -> int:
    """0 or 1 class tokens, so that the others form a square grid."""
    for skipped in (0, 1):
        side = math.isqrt(n_tokens - skipped)
        if side > 0 and side * side == n_tokens - skipped:
            return skipped
    message = f"tokens must form a square grid with at most one class token, got {n_tokens} at {layer!r}"
    raise ExportError(f"{message}; choose another layer")


def _chosen(graph: Graph, logits: str, cuts: list[str]) -> str:
    """The best of the tensors that all goes through."""
    usable = [name for name in cuts if name in graph.shapes and graph.rank(name) >= 3 and name != logits]

    def n_positions(name: str) -> int:
        sizes = graph.sizes(name)
        channels = 1 if _layout(graph, name) == "channels_first" else len(sizes) - 1
        return math.prod(size for axis, size in enumerate(sizes) if axis not in {0, channels})

    extended = [
        name for name in usable
        if n_positions(name) > 1
        and graph.producer[name].op not in (_PLUMBING | _POOLS)
        and _matters(graph, name, logits)
    ]  # fmt: skip
    last = cuts.index(extended[-1]) if extended else -1
    pointlike = [name for name in usable if cuts.index(name) > last and n_positions(name) == 1]
    for index, name in enumerate(pointlike):
        node = graph.producer[name]
        if node.op in _STRIDED and index == 0:
            behind = [one for one in pointlike if graph.producer[one].op not in (_PLUMBING | _POOLS)]
            return behind[-1]
        if node.op in _POOLS:
            break
    if extended:
        return extended[-1]
    seen = ", ".join(f"{name} {graph.sizes(name)}" for name in cuts[-5:] if name in graph.shapes)
    raise ExportError(
        "a graph with an activation (N, K, *positions) that all logits go through is needed, "
        f"got {seen or 'none'}; name one with layer="
    )


def _matters(graph: Graph, name: str, logits: str) -> bool:
    """Whether more than the class token matters: no choice of one token without attention before it."""
    if _layout(graph, name) == "channels_first" or graph.rank(name) != 3:
        return True
    ops = [node.op for node in graph.between(name, logits)]
    return not {"Gather", "Slice"} & set(ops) or "Softmax" in ops


def _layout(graph: Graph, name: str) -> Layout:
    """By the last operation before a tensor that fixes where channels are."""
    rank = graph.rank(name)
    last: Layout = "tokens" if rank == 3 else "channels_last"
    node = graph.producer.get(name)
    turned = False
    while node is not None:
        order: tuple[int, ...] = attribute(node, "perm", ()) if node.op == "Transpose" else ()
        # channels went from the end to the front, or from the front to the end
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
