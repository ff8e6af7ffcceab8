"""Images and heatmaps as small PNG data URIs. Drawing only; what is shown is decided elsewhere."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
_HEAT_WEIGHT, _IMAGE_WEIGHT = 0.72, 0.42
_OVERLAY_SIDE = 112
_LARGEST_SIDE = 256


def inferno(values: FloatArray) -> FloatArray:
    """Colours from black over red to pale yellow; their lightness rises with the value, so grey prints read.

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
