"""The values that quantisation takes from calibration inputs: the range of each tensor, and corrected biases.

Inputs are streamed. Only counts and sums are kept from a batch, because the activations of 256 images exceed
the memory of a small machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from drip.errors import ExportError
from drip.onnx.graph import session_of, watching
from drip.types import FloatArray

Calibration = Literal["mse", "percentile", "minmax"]
Range = tuple[float, float]
Batches = Callable[[], Iterable[NDArray[np.float32]]]
"""Yields the same batches of inputs every time it is called."""

Tensors = Mapping[str, NDArray[np.float32]]
Twin = tuple[onnx.NodeProto, list[onnx.NodeProto], list[onnx.TensorProto]]
"""A layer, the nodes that compute it as its quantised form does, and their weights."""

_N_BINS = 2048  # eight per level of eight bits
_N_LEVELS = 256
_N_CANDIDATES = 64  # per end: 4,096 ranges are compared, and the one with the smallest error wins
_OUTSIDE = 1e-4
# Operations with a built-in bias. MatMul has no bias, and an Add after it may have other readers.
_CORRECTED = frozenset(("Conv", "Gemm"))


# -- ranges ----------------------------------------------------------------------------------------------


def find_ranges(
    model: onnx.ModelProto, names: Sequence[str], batches: Batches, calibration: Calibration
) -> dict[str, Range]:
    """The range of values of each tensor that the 256 levels cover; values outside are clipped.

    The inputs are run twice: first for the extremes, then for a histogram of 2,048 bins between them.

    Args:
        model: A graph with these tensors.
        names: Names of float32 tensors.
        batches: The calibration inputs.
        calibration: ``minmax``: all observed values. ``percentile``: without the outer 0.01 % on either
            side. ``mse``: the range with the smallest mean squared error.

    Raises:
        ExportError: An unknown calibration, no input, or a tensor that is not finite.

    References:
        Sung et al. 2015, arXiv:1511.06488 (mse).
    """
    if calibration not in get_args(Calibration):
        raise ExportError(
            f"calibration must be one of {', '.join(get_args(Calibration))}, not {calibration!r}",
            code="bad-argument",
        )
    extremes = _extremes(_runs(model, names, batches))
    if calibration == "minmax":
        return extremes
    counts = _histograms(_runs(model, names, batches), extremes)
    return {name: narrowed(counts[name], extremes[name], calibration) for name in extremes}


def _runs(model: onnx.ModelProto, names: Sequence[str], batches: Batches) -> Iterator[Tensors]:
    """The tensors of every batch."""
    session = session_of(watching(model, names), optimised=False)
    (source,) = session.get_inputs()
    for batch in batches():
        yield dict(zip(names, session.run(list(names), {source.name: batch}), strict=True))


def _extremes(runs: Iterable[Tensors]) -> dict[str, Range]:
    """Smallest and largest value of each tensor, extended to zero.

    Zero must be a level: padding is zero, and so are most values after a ReLU.
    """
    found: dict[str, Range] = {}
    for run in runs:
        for name, values in run.items():
            low, high = found.get(name, (0.0, 0.0))
            least, most = float(values.min()), float(values.max())
            if not (np.isfinite(least) and np.isfinite(most)):
                raise ExportError(
                    f"{name!r} has values from {least} to {most} for a calibration sample; remove samples "
                    "for which the model outputs NaN or infinity",
                    code="sample-non-finite",
                )
            found[name] = min(low, least), max(high, most)
    if not found:
        raise ExportError("there are no calibration samples; give at least one", code="quantize-data")
    return found


def _histograms(runs: Iterable[Tensors], extremes: Mapping[str, Range]) -> dict[str, FloatArray]:
    found = {name: np.zeros(_N_BINS) for name in extremes}
    for run in runs:
        for name, values in run.items():
            low, high = extremes[name]
            if high > low:
                # in float32: these lines see every value of every tensor, and bins need no more
                place = (values.ravel() - np.float32(low)) * np.float32(_N_BINS / (high - low))
                places = np.minimum(place.astype(np.int32), _N_BINS - 1)
                found[name] += np.bincount(places, minlength=_N_BINS)
    return found


def narrowed(counts: FloatArray, extremes: Range, calibration: Calibration) -> Range:
    """The part of a histogram's range that a calibration chooses; it contains zero.

    Args:
        counts: Values per bin, shape (n_bins,), bins of equal width.
        extremes: Lower edge of the first bin and upper edge of the last; zero is between them.
        calibration: ``percentile`` or ``mse``.

    >>> counts = np.zeros(2048)
    >>> counts[:512], counts[-1] = 1000.0, 1.0
    >>> [round(end, 2) for end in narrowed(counts, (0.0, 8.0), "percentile")]
    [0.0, 2.0]
    """
    low, high = extremes
    total = counts.sum()
    # a tensor that is constantly zero, for example after a ReLU that never activates
    if not high > low or not total:
        return extremes
    width = (high - low) / len(counts)
    if calibration == "percentile":
        below = np.cumsum(counts) / total
        first = int(np.searchsorted(below, _OUTSIDE, side="right"))
        last = int(np.searchsorted(below, 1 - _OUTSIDE, side="left"))
        return min(0.0, low + first * width), max(0.0, low + (last + 1) * width)
    # The expected squared error of rounding is a twelfth of the squared step. Zeros have no error, because
    # zero is a level; counting them would widen the range after a ReLU, where most values are zero. Clipping
    # costs the squared distance.
    n_rounded = total - counts[min(int(-low / width), len(counts) - 1)]
    lows, highs = (
        np.linspace(end, 0.0, _N_CANDIDATES, endpoint=False) if end else np.zeros(1) for end in extremes
    )
    middles = low + width * (np.arange(len(counts)) + 0.5)
    below = (counts * np.square(np.minimum(middles - lows[:, None], 0.0))).sum(axis=1)
    above = (counts * np.square(np.maximum(middles - highs[:, None], 0.0))).sum(axis=1)
    steps = (highs - lows[:, None]) / (_N_LEVELS - 1)
    errors = below[:, None] + above + n_rounded * np.square(steps) / 12
    row, column = np.unravel_index(int(errors.argmin()), errors.shape)
    return float(lows[row]), float(highs[column])


# -- biases ----------------------------------------------------------------------------------------------


def corrected(model: onnx.ModelProto, quantised: onnx.ModelProto, batches: Batches) -> onnx.ModelProto:
    r"""The float32 graph with biases that compensate the mean error of its quantised form.

    The rounding error of a weight is the same for all inputs, and inputs after a ReLU are positive. So the
    error of a channel has a mean other than zero, and later layers add these up. Every bias is reduced by

    .. math:: \mathrm{E}[\hat W * \hat x - W * x]

    with x the inputs of the layer in the float32 graph, and hats for quantised values.

    Args:
        model: The float32 graph; it is not changed.
        quantised: Its quantised form, with QuantizeLinear and DequantizeLinear.
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
        # a bias that two layers share cannot be right for both errors, so it stays
        elif node.input[2] in stored and shared.count(node.input[2]) == 1:
            bias = stored[node.input[2]]
            values = numpy_helper.to_array(bias)
            bias.CopyFrom(numpy_helper.from_array((values - error).astype(np.float32), bias.name))
    return copy


def _is_layer(node: onnx.NodeProto) -> bool:
    """Whether a node adds an unscaled bias to each output channel."""
    scaled = any(item.name == "beta" and item.f != 1.0 for item in node.attribute)
    return node.op_type in _CORRECTED and not scaled


def _twins(layers: Mapping[str, onnx.NodeProto], quantised: onnx.ModelProto) -> Iterator[Twin]:
    """The counterpart of every layer whose input and weights are quantised.

    Counterparts read the inputs of the float32 graph. In the quantised graph a layer's error would include
    those of all layers before it, which their own biases already compensate.
    """
    stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
    made_by = {name: node for node in quantised.graph.node for name in node.output}
    for twin in quantised.graph.node:
        if twin.name not in layers:
            continue
        inputs, weights = (made_by.get(name) for name in twin.input[:2])
        # layers that stayed in float32 have no counterpart
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
    twins: list[Twin],
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
            # in float64: sums over all inputs and positions of small differences
            per_channel = error.reshape(*error.shape[:2], -1).mean(axis=2, dtype=np.float64).sum(axis=0)
            sums[layer.name] = sums.get(layer.name, 0.0) + per_channel
    return {name: total / n_inputs for name, total in sums.items()}
