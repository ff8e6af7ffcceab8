"""Runs on the device: a model file on ONNX Runtime, never torch.

:class:`OnnxScorer` scores; what the file says of itself is :class:`ModelMetadata`.
"""

from __future__ import annotations

from drip.errors import missing_extra

try:
    import onnxruntime  # noqa: F401  # only to say early how to install it
except ImportError as error:
    raise missing_extra("drip.device", "onnxruntime", "device") from error

from drip.device.metadata import ModelMetadata
from drip.device.onnx_scorer import OnnxScorer

__all__ = ["ModelMetadata", "OnnxScorer"]
