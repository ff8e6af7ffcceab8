"""The range of each tensor that eight bits are to cover, from a stream of inputs; nothing is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from drip.errors import ExportError
from drip.export.shapes import session_of
from drip.types import FloatArray

Calibration = Literal["mse", "percentile", "minmax"]
Range = tuple[float, float]
Batches = Callable[[], Iterable[NDArray[np.float32]]]
"""Yields the same batches of inputs every time it is called."""

Tensors = Mapping[str, NDArray[np.float32]]

_N_BINS = 2048
_N_LEVELS = 256
_N_CANDIDATES = 64
_OUTSIDE = 1e-4


def find_ranges(
    model: onnx.ModelProto, names: Sequence[str], batches: Batches, calibration: Calibration
) -> dict[str, Range]:
    """Lower and upper end of the values of each tensor that are worth a level of their own.

    The inputs pass twice: first for the extremes, then for a histogram of 2,048 bins between them. Of a
    batch only the counts stay.

    Args:
        model: A graph with these tensors.
        names: Tensors of float32.
        batches: The calibration inputs.
        calibration: ``minmax``: all that was seen. ``percentile``: without the outer 0.01 % on either
            side. ``mse``: the smallest mean squared error of 256 levels.

    Raises:
        ExportError: No such calibration, no input, or a tensor that is not finite.

    References:
        Sung et al. 2015, arXiv:1511.06488 (mse).
    """
    if calibration not in get_args(Calibration):
        raise ExportError(
            f"calibration must be one of {', '.join(get_args(Calibration))}, got {calibration!r}"
        )
    extremes = _extremes(_runs(model, names, batches))
    if calibration == "minmax":
        return extremes
    counts = _histograms(_runs(model, names, batches), extremes)
    return {name: narrowed(counts[name], extremes[name], calibration) for name in extremes}


def _runs(model: onnx.ModelProto, names: Sequence[str], batches: Batches) -> Iterator[Tensors]:
    """The tensors of every batch."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = session_of(watched, optimised=False)
    (source,) = session.get_inputs()
    for batch in batches():
        yield dict(zip(names, session.run(list(names), {source.name: batch}), strict=True))


def _extremes(runs: Iterable[Tensors]) -> dict[str, Range]:
    """Smallest and largest value of each tensor; zero lies between them, as it must keep its level."""
    found: dict[str, Range] = {}
    for run in runs:
        for name, values in run.items():
            low, high = found.get(name, (0.0, 0.0))
            least, most = float(values.min()), float(values.max())
            if not (np.isfinite(least) and np.isfinite(most)):
                raise ExportError(
                    f"finite values are needed in calibration, got {least} to {most} at {name!r}"
                )
            found[name] = min(low, least), max(high, most)
    if not found:
        raise ExportError("at least one calibration input is needed, got none")
    return found


def _histograms(runs: Iterable[Tensors], extremes: Mapping[str, Range]) -> dict[str, FloatArray]:
    found = {name: np.zeros(_N_BINS) for name in extremes}
    for run in runs:
        for name, values in run.items():
            low, high = extremes[name]
            if high > low:
                place = (values.ravel() - np.float32(low)) * np.float32(_N_BINS / (high - low))
                places = np.minimum(place.astype(np.int32), _N_BINS - 1)
                found[name] += np.bincount(places, minlength=_N_BINS)
    return found


def narrowed(counts: FloatArray, extremes: Range, calibration: Calibration) -> Range:
    """The part of a histogram's range that a calibration picks; it contains zero.

    Args:
        counts: Values per bin, shape (n_bins,), bins of equal width.
        extremes: Lower edge of the first bin and upper edge of the last, zero between them.
        calibration: ``percentile`` or ``mse``.

    >>> counts = np.zeros(2048)
    >>> counts[:512], counts[-1] = 1000.0, 1.0
    >>> [round(end, 2) for end in narrowed(counts, (0.0, 8.0), "percentile")]
    [0.0, 2.0]
    """
    low, high = extremes
    total = counts.sum()
    if not high > low or not total:
        return extremes
    width = (high - low) / len(counts)
    if calibration == "percentile":
        below = np.cumsum(counts) / total
        first = int(np.searchsorted(below, _OUTSIDE, side="right"))
        last = int(np.searchsorted(below, 1 - _OUTSIDE, side="left"))
        return min(0.0, low + first * width), max(0.0, low + (last + 1) * width)
    # Rounding costs a twelfth of the squared step for every value but zero, which has a level of its own
    # and is what most values are behind a ReLU; clipping costs the squared distance.
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
