"""Derivatives of operations that move, join or cut values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drip.export.graph import Node
from drip.export.tape import Gradients, Tape, attribute, rule

Grads = list["str | None"]


@rule("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshaped(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    return [tape.graph.reshape_like(gradients[0] or "", node.inputs[0])]


@rule("Transpose")
def _transpose(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    rank = tape.graph.rank(node.inputs[0])
    order = attribute(node, "perm", tuple(reversed(range(rank))))
    return [tape.graph.add("Transpose", gradients[0] or "", perm=[int(i) for i in np.argsort(order)])]


@rule("Expand")
def _expand(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    return [tape.unbroadcast(gradients[0] or "", node, node.inputs[0])]


def _cut(tape: Tape, x: str, axis: int, start: int, stop: int) -> str:
    """The part of a tensor from ``start`` to ``stop`` along an axis."""
    g = tape.graph
    return g.add("Slice", x, g.indices([start]), g.indices([stop]), g.indices([axis]))


def _padded(tape: Tape, x: str, before: list[int], after: list[int]) -> str:
    """Zeros around a tensor, counted per axis."""
    if not any((*before, *after)):
        return x
    return tape.graph.add("Pad", x, tape.graph.indices([*before, *after]))


@rule("Concat")
def _concat(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g = tape.graph
    axis = int(attribute(node, "axis", 0)) % g.rank(node.outputs[0])
    found: Grads = []
    start = 0
    for name in node.inputs:
        tape.fixed(node, name, [axis])
        stop = start + g.sizes(name)[axis]
        found.append(_cut(tape, gradients[0] or "", axis, start, stop) if tape.active(name) else None)
        start = stop
    return found


@rule("Split")
def _split(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    axis = int(attribute(node, "axis", 0))
    parts = [value or tape.fill(name, 0.0) for value, name in zip(gradients, node.outputs, strict=True)]
    return [tape.graph.add("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]]


@rule("Slice")
def _slice(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    rank, sizes = g.rank(x), g.sizes(x)
    starts, stops = g.integers(node, 1, "starts") or (), g.integers(node, 2, "ends") or ()
    axes = tape.axes(node, 3) or tuple(range(len(starts)))
    steps = g.integers(node, 4, "steps") or (1,) * len(starts)
    before, after = [0] * rank, [0] * rank
    value = gradients[0] or ""
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        taken = range(*slice(start, _open_end(stop, step, sizes[axis]), step).indices(sizes[axis]))
        if len(taken) == sizes[axis] and step == 1:
            continue
        tape.fixed(node, x, [axis])
        if step == 1:
            before[axis], after[axis] = taken.start, sizes[axis] - taken.stop
        else:
            value = _scattered(tape, value, axis, np.array(taken), x)
    return [_padded(tape, value, before, after)]


def _open_end(stop: int, step: int, size: int) -> int | None:
    """An end before the first value, which ONNX writes as a very negative number, in Python's words."""
    return None if step < 0 and stop < -size else stop


def _scattered(tape: Tape, value: str, axis: int, indices: NDArray[np.int64], x: str) -> str:
    """Puts slices along an axis to where they came from in x; those from one place are added."""
    g = tape.graph
    places = np.zeros((len(indices), g.sizes(x)[axis]), dtype=np.float32)
    places[np.arange(len(indices)), indices] = 1.0
    last = g.rank(x) - 1
    order = list(range(last + 1))
    order[axis], order[last] = last, axis
    moved = value if axis == last else g.add("Transpose", value, perm=order)
    moved = g.add("MatMul", moved, g.number(places))
    return moved if axis == last else g.add("Transpose", moved, perm=order)


@rule("Gather")
def _gather(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    axis = int(attribute(node, "axis", 0)) % g.rank(x)
    indices = g.constant(node.inputs[1])
    tape.fixed(node, x, [axis])
    if indices is None or indices.ndim > 1:
        raise tape.refuse(node, "constant indices of at most one axis")
    size = g.sizes(x)[axis]
    wanted = indices.astype(np.int64).reshape(-1) % size
    value = gradients[0] or ""
    if indices.ndim == 0:
        value = g.unsqueeze(value, axis)
    if len(wanted) == 1:
        before, after = [0] * g.rank(x), [0] * g.rank(x)
        before[axis], after[axis] = int(wanted[0]), size - 1 - int(wanted[0])
        return [_padded(tape, value, before, after)]
    return [_scattered(tape, value, axis, wanted, x)]


@rule("Pad")
def _pad(tape: Tape, node: Node, gradients: Grads) -> Gradients:
    g, x = tape.graph, node.inputs[0]
    rank = g.rank(x)
    pads = g.integers(node, 1, "pads") or ()
    axes = tape.axes(node, 3) or tuple(range(rank))
    if attribute(node, "mode", "constant") != "constant" or min(pads, default=0) < 0:
        raise tape.refuse(node, "constant values and no negative padding")
    value = gradients[0] or ""
    for position, axis in enumerate(axes):
        before = pads[position]
        if before or pads[len(axes) + position]:
            tape.fixed(node, x, [axis])
            value = _cut(tape, value, axis, before, before + g.sizes(x)[axis])
    return [value]
