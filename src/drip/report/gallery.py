"""The gallery of a report: samples beside their heatmaps, as small PNG data URIs.

Which samples are shown is decided by the caller.
"""

from __future__ import annotations

import base64
import io
from html import escape
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drip.files.format import count, significant
from drip.report import figures
from drip.report.model import GalleryItem, RunReport
from drip.types import FloatArray

_STOPS = np.array(
    [
        (0, 0, 4),
        (31, 12, 72),
        (85, 15, 109),
        (136, 34, 106),
        (186, 54, 85),
        (227, 89, 51),
        (249, 140, 10),
        (249, 201, 50),
        (252, 255, 164),
    ],
    dtype=np.float64,
)
"""Nine colours of matplotlib's inferno map, at equal distances; the report must not need matplotlib."""

# The sum exceeds one on purpose: a bright pixel on a hot spot saturates, and dark images stay visible.
_HEAT_WEIGHT, _IMAGE_WEIGHT = 0.72, 0.42
_OVERLAY_SIDE = 112
"""Pixels of the longer side of an overlay; four times a 28-pixel digit, so its pixels stay square."""
_LARGEST_SIDE = 256
_LARGEST_GROUP = 60
"""Cards per group. More would make the page heavy, and nobody looks at them."""


def inferno(values: FloatArray) -> FloatArray:
    """Colours from black through red to pale yellow; the value sets the lightness.

    Args:
        values: In [0, 1], any shape.

    Returns:
        RGB in [0, 255], shape (*values.shape, 3).

    >>> inferno(np.array([0.0, 1.0])).tolist()
    [[0.0, 0.0, 4.0], [252.0, 255.0, 164.0]]
    """
    grid = np.linspace(0.0, 1.0, len(_STOPS))
    return np.stack([np.interp(values, grid, channel) for channel in _STOPS.T], axis=-1)


def image_uri(image: NDArray[np.uint8]) -> str:
    """The image as a PNG data URI, its own pixels unless it is larger than 256.

    Args:
        image: uint8, shape (height, width) or (height, width, 3).
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return _uri(picture)


def overlay_uri(image: NDArray[np.uint8], heatmap: NDArray[np.floating[Any]]) -> str:
    """The heatmap in colour with the image's lightness on top, as a PNG data URI.

    The heatmap is scaled to its own maximum and up-sampled bilinearly; the image keeps its pixels.
    Values that are not finite, and a heatmap of zeros, are drawn black.

    Args:
        image: uint8, shape (height, width) or (height, width, 3).
        heatmap: At least 0, shape (h, w).
    """
    values = np.nan_to_num(np.asarray(heatmap, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    values = np.maximum(values, 0.0) / (float(values.max(initial=0.0)) or 1.0)
    height, width = image.shape[:2]
    zoom = _OVERLAY_SIDE / max(height, width)
    size = (max(round(width * zoom), 1), max(round(height * zoom), 1))
    heat = np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L").resize(size, Image.Resampling.NEAREST)
    colours = _HEAT_WEIGHT * inferno(np.clip(heat, 0.0, 1.0)) + _IMAGE_WEIGHT * np.asarray(grey)[..., None]
    mixed = Image.fromarray(np.clip(colours, 0.0, 255.0).round().astype(np.uint8))
    return _uri(mixed.quantize(colors=64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def gallery_section(report: RunReport) -> str:
    """Kept and discarded samples side by side with their heatmaps; empty without samples.

    Args:
        report: The numbers of one run; of each group at most the first 60 are drawn.
    """
    if not report.gallery:
        return ""
    groups = []
    for retained, title in ((True, "Kept"), (False, "Discarded")):
        items = [item for item in report.gallery if item.retained is retained]
        cards = "".join(_card(report, item) for item in items[:_LARGEST_GROUP])
        n_wrong = sum(item.wrong for item in items)
        size = f"{count(len(items))} shown, {count(n_wrong)} of them predicted incorrectly"
        if len(items) > _LARGEST_GROUP:
            size = f"the first {_LARGEST_GROUP} of {count(len(items))}"
        body = f'<div class="cards">{cards}</div>' if items else '<p class="note">None.</p>'
        groups.append(f"<h3>{title} <small>{size}</small></h3>\n{body}\n")
    choice = f"{escape(report.gallery_choice)} " if report.gallery_choice else ""
    return (
        f'<section class="gallery">\n<h2>What the model looked at</h2>\n<p class="lead">{choice}'
        "Left the sample, right its Grad-CAM heatmap for the predicted class, each scaled to its own "
        "maximum. Below: the predicted class and whether it is correct; the score as a mark in the range of "
        "that class&rsquo;s calibration scores, with the window shaded; the score as a number, and its "
        "distance to the window in standard deviations (&sigma;) of the calibration scores.</p>\n"
        f"{''.join(groups)}</section>"
    )


def _card(report: RunReport, item: GalleryItem) -> str:
    predicted = escape(report.class_name(item.predicted))
    truth = escape(report.class_name(item.label))
    if item.wrong:
        verdict = f'<p class="call"><b>{predicted}</b> <mark>&#10007; true {truth}</mark></p>'
    elif item.label is None:
        verdict = f'<p class="call"><b>{predicted}</b> <span>true class unknown</span></p>'
    else:
        verdict = f'<p class="call"><b>{predicted}</b> <span>&#10003; right</span></p>'
    kind = "card wrong" if item.wrong else "card"
    score = f"{significant(item.score)} <small>{escape(_place(report, item))}</small>"
    return (
        f'<figure class="{kind}"><div class="pair">'
        f'<img class="pixels" alt="sample, predicted {predicted}, true class {truth}" '
        f'src="{image_uri(item.image)}">'
        f'<img alt="its heatmap" src="{overlay_uri(item.image, item.heatmap)}"></div>'
        f'<figcaption>{verdict}{_ruler(report, item)}<p class="score">{score}</p></figcaption></figure>'
    )


def _ruler(report: RunReport, item: GalleryItem) -> str:
    histograms = report.policy.histograms
    if not report.windows or not 0 <= item.predicted < len(histograms):
        return ""
    if not histograms[item.predicted].counts:
        return ""
    return figures.score_ruler(item.score, histograms[item.predicted], report.windows[item.predicted])


def _place(report: RunReport, item: GalleryItem) -> str:
    windows = report.windows
    if not isfinite(item.distance) or not windows or not windows[item.predicted].discards:
        return "no window"
    if item.distance <= 0:
        return "inside"
    return f"{significant(item.distance, 2)} \u03c3 outside"
