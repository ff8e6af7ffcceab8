"""Inline SVG drawings for the report, as strings with escaped text.

The style sheet colours them, so dark mode and print follow. Shades and line styles carry the meaning
together with colour, so a grey print can still be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, isfinite, log10

import numpy as np

from drip.files.format import percent, significant
from drip.files.page import svg
from drip.policy import Histogram
from drip.types import FloatArray
from drip.windows import Window


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear scale from data to drawing units.

    Attributes:
        low: Data value at ``start``.
        high: Data value at ``stop``; above ``low``.
        start: Drawing position of ``low``.
        stop: Drawing position of ``high``.
    """

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Position of a value; values outside are clamped to the ends."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, at_most: int = 4) -> list[float]:
        """Round values between the ends.

        >>> Scale(0.0, 1.0, 0.0, 100.0).ticks()
        [0.0, 0.5, 1.0]
        """
        raw = (self.high - self.low) / at_most
        magnitude = 10.0 ** floor(log10(raw))
        step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.999)
        first = ceil(self.low / step - 1e-9)
        last = floor(self.high / step + 1e-9)
        return [float(f"{rank * step:.12g}") for rank in range(first, last + 1)]


def score_scales(histograms: Iterable[Histogram], start: float, stop: float) -> list[Scale]:
    """One scale per class: shared by all classes unless the narrowest would be too small to see.

    Args:
        histograms: Calibration scores per class.
        start: Drawing position of the smallest score.
        stop: Drawing position of the largest score.
    """
    parts = list(histograms)
    filled = [part for part in parts if part.counts and part.high > part.low]
    if not filled:
        return [_wide(part.low, part.high, start, stop) for part in parts]
    low, high = min(part.low for part in filled), max(part.high for part in filled)
    narrowest = min(part.high - part.low for part in filled)
    # With a shared axis, the classes can be compared; below a quarter of its width a histogram is a smear.
    if narrowest >= 0.25 * (high - low):
        return [Scale(low, high, start, stop) for _ in parts]
    return [_wide(part.low, part.high, start, stop) for part in parts]


def _wide(low: float, high: float, start: float, stop: float) -> Scale:
    if high > low:
        return Scale(low, high, start, stop)
    pad = abs(low) * 0.05 or 0.5
    return Scale(low - pad, low + pad, start, stop)


_PANEL_WIDTH, _PANEL_HEIGHT, _PANEL_TOP, _PANEL_FLOOR = 200.0, 118.0, 22.0, 98.0
PANEL_START, PANEL_STOP = 4.0, 196.0


def class_histogram(histogram: Histogram, window: Window, scale: Scale, name: str) -> str:
    """Calibration scores of one class with its window shaded and both ends marked (the paper's Fig. 2).

    Args:
        histogram: Counts of the scores.
        window: The class's window.
        scale: From scores to drawing units, from :data:`PANEL_START` to :data:`PANEL_STOP`.
        name: Name of the class, for readers who cannot see the drawing.

    References:
        DRIP paper, Fig. 2, equations 6 and 7.
    """
    parts = [_axis(scale, _PANEL_FLOOR)]
    if window.discards:
        left, right = scale(window.lower), scale(window.upper)
        parts.append(
            f'<rect class="band" x="{left:.1f}" y="{_PANEL_TOP:.1f}" width="{max(right - left, 1.0):.1f}" '
            f'height="{_PANEL_FLOOR - _PANEL_TOP:.1f}"/>'
        )
    parts.append(_bars(histogram, window, scale))
    if window.discards:
        parts += [
            f'<path class="limit" d="M{x:.1f} {_PANEL_TOP - 4:.1f}V{_PANEL_FLOOR:.1f}"/>'
            for x in (left, right)
        ]
        parts.append(_limit_labels(window, left, right))
        whose = " of all classes together" if window.pooled else ""
        told = f"window{whose} from {significant(window.lower)} to {significant(window.upper)}"
    else:
        parts.append(
            f'<text class="never" x="{(PANEL_START + PANEL_STOP) / 2:.1f}" y="15" text-anchor="middle">'
            "never discards</text>"
        )
        told = f"never discards, {window.never_because}"
    label = f"Histogram of {window.n} calibration scores of class {name}; {told}"
    return svg(_PANEL_WIDTH, _PANEL_HEIGHT, "panel", label, parts)


def _limit_labels(window: Window, left: float, right: float) -> str:
    lower, upper = significant(window.lower), significant(window.upper)
    # Labels grow away from the window; near an edge of the panel they turn inwards and share one line.
    room = 7.0 * max(len(lower), len(upper)) + 3.0
    if left - room >= 0 and right + room <= _PANEL_WIDTH:
        return (
            f'<text class="limit-label" x="{left - 3:.1f}" y="15" text-anchor="end">{lower}</text>'
            f'<text class="limit-label" x="{right + 3:.1f}" y="15">{upper}</text>'
        )
    anchor, x = ("start", left) if left - room < 0 else ("end", right)
    return f'<text class="limit-label" x="{x:.1f}" y="15" text-anchor="{anchor}">{lower} to {upper}</text>'


def _bars(histogram: Histogram, window: Window, scale: Scale) -> str:
    tallest = max(histogram.counts, default=0)
    if not tallest:
        x = (PANEL_START + PANEL_STOP) / 2
        return f'<text class="tick" x="{x:.1f}" y="64" text-anchor="middle">no calibration scores</text>'
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    outside: list[str] = []
    inside: list[str] = []
    for left, right, n in zip(edges[:-1].tolist(), edges[1:].tolist(), histogram.counts, strict=True):
        height = (_PANEL_FLOOR - _PANEL_TOP - 4.0) * n / tallest
        if not n:
            continue
        if right <= left:
            middle = scale(left)
            single = inside if window.lower <= left <= window.upper else outside
            single.append(_bar(middle - 2.0, middle + 2.0, height))
            continue
        # A bin that an end of the window cuts is drawn in two shades.
        cuts = [value for value in (window.lower, window.upper) if left < value < right]
        corners = [left, *cuts, right]
        for start, stop in pairwise(corners):
            group = inside if window.lower <= (start + stop) / 2 <= window.upper else outside
            group.append(_bar(scale(start), scale(stop), height))
    return f'<path class="bar" d="{"".join(outside)}"/><path class="bar in" d="{"".join(inside)}"/>'


def _bar(left: float, right: float, height: float) -> str:
    return f"M{left:.2f} {_PANEL_FLOOR:.1f}v{-height:.2f}h{right - left:.2f}v{height:.2f}z"


def _axis(scale: Scale, y: float) -> str:
    marks = [f'<line class="axis" x1="{scale.start:.1f}" x2="{scale.stop:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>']
    for value in scale.ticks():
        x, text = scale(value), f"{value:g}"
        anchor = "start" if x < scale.start + 8 else "end" if x > scale.stop - 8 else "middle"
        marks.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{y + 3:.1f}"/>')
        marks.append(f'<text class="tick" x="{x:.1f}" y="{y + 15:.1f}" text-anchor="{anchor}">{text}</text>')
    return "".join(marks)


def score_ruler(score: float, histogram: Histogram, window: Window) -> str:
    """One score as a mark on the range of its class, with the window shaded.

    Args:
        score: DRIP score of one sample; drawn as a triangle at the end when it is out of range.
        histogram: Calibration scores of its predicted class.
        window: That class's window.
    """
    scale = _wide(histogram.low, histogram.high, 6.0, 134.0)
    parts = ['<line class="axis" x1="6" x2="134" y1="9" y2="9"/>']
    if window.discards:
        left, right = scale(window.lower), scale(window.upper)
        parts.append(
            f'<rect class="band solid" x="{left:.1f}" y="5" width="{max(right - left, 1.0):.1f}" height="8"/>'
        )
    if isfinite(score):
        x = scale(score)
        shape = f"M{x:.1f} 1v16"
        if score < scale.low:
            shape = "M7 3l-6 6l6 6"
        elif score > scale.high:
            shape = "M133 3l6 6l-6 6"
        parts.append(f'<path class="needle" d="{shape}"/>')
    return svg(140.0, 18.0, "ruler", f"score {significant(score)} in the range of its class", parts)


def accuracy_scale(values: list[tuple[float, float]]) -> Scale | None:
    """A scale that holds every accuracy with its interval; None without any.

    Args:
        values: Pairs of an accuracy and half of its interval, in [0, 1]; NaN is left out.
    """
    known = [(value, reach if isfinite(reach) else 0.0) for value, reach in values if isfinite(value)]
    if not known:
        return None
    low = min(value - reach for value, reach in known)
    high = max(value + reach for value, reach in known)
    pad = 0.08 * (high - low) or 0.005
    return Scale(low - pad, high + pad, 6.0, 194.0)


def interval(accuracy: float, reach: float, scale: Scale, reference: float | None, kind: str) -> str:
    """One accuracy as a dot on its confidence interval, on the scale that all arms share.

    Args:
        accuracy: In [0, 1].
        reach: Half of the interval, in the same unit.
        scale: From :func:`accuracy_scale`.
        reference: Accuracy of the random arm, drawn as a dashed line; or None.
        kind: Style class of the dot; ``drip`` is filled with the accent.
    """
    parts = []
    if reference is not None and isfinite(reference):
        x = scale(reference)
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="24"/>')
    if isfinite(accuracy):
        known = reach if isfinite(reach) else 0.0
        x, left, right = scale(accuracy), scale(accuracy - known), scale(accuracy + known)
        parts.append(f'<path class="whisker" d="M{left:.1f} 12H{right:.1f}M{left:.1f} 8v8M{right:.1f} 8v8"/>')
        parts.append(f'<circle class="dot {kind}" cx="{x:.1f}" cy="12" r="4.5"/>')
    label = f"{percent(accuracy, 2)}, 99 % confidence interval of {percent(reach, 2)} to either side"
    return svg(200.0, 24.0, "interval", label, parts)


def interval_axis(scale: Scale) -> str:
    """The axis below a column of :func:`interval`, in per cent."""
    parts = [f'<line class="axis" x1="{scale.start}" x2="{scale.stop}" y1="1" y2="1"/>']
    for value in scale.ticks(5):
        x = scale(value)
        anchor = "start" if x < 18 else "end" if x > 182 else "middle"
        text = f"{100 * value:.4g}"
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="1" y2="5"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="16" text-anchor="{anchor}">{text}</text>')
    return svg(200.0, 20.0, "interval", "axis of the accuracy in per cent", parts)


def time_histogram(milliseconds: FloatArray, marks: tuple[float, float]) -> str:
    """Times per decision up to twice the 95th percentile, with the median and that percentile marked.

    Args:
        milliseconds: Finite times, shape (n,), n at least 1.
        marks: Median and 95th percentile.
    """
    top = min(float(milliseconds.max()), 2.0 * marks[1]) or 1.0
    counts, edges = np.histogram(milliseconds, bins=48, range=(0.0, top))
    scale = Scale(0.0, top, 8.0, 352.0)
    bars = "".join(
        f"M{scale(left):.2f} 62v{-52 * n / max(counts.max(), 1):.2f}h{scale(right) - scale(left):.2f}V62z"
        for left, right, n in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
        if n
    )
    parts = [_axis(scale, 62.0), f'<path class="bar in" d="{bars}"/>']
    parts += [
        f'<line class="limit" x1="{scale(mark):.1f}" x2="{scale(mark):.1f}" y1="4" y2="62"/>'
        for mark in marks
    ]
    label = (
        f"Times per decision in milliseconds, median {significant(marks[0])}, 95 % {significant(marks[1])}"
    )
    return svg(360.0, 82.0, "times", label, parts)
