"""Writes the ONNX file that a device runs: classifier, score and decision in one graph.

Needs torch only where the model is a PyTorch one, in :func:`export_onnx`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from drip.errors import missing_extra

for _package in ("onnx", "onnxruntime"):
    try:
        importlib.import_module(_package)
    except ImportError as error:
        raise missing_extra("drip.export", _package, "export") from error

from drip.export.attach import attach_score  # noqa: E402  # behind the check
from drip.export.checking import CheckReport, check  # noqa: E402  # behind the check
from drip.export.files import export_file, read_metadata, set_policy  # noqa: E402  # behind the check
from drip.export.metadata import metadata_json, model_file_digest  # noqa: E402  # behind the check
from drip.export.quantization import QuantizationReport, Settings, quantize  # noqa: E402  # behind the check

if TYPE_CHECKING:
    from drip.export.torch_model import export_onnx

__all__ = [
    "CheckReport",
    "QuantizationReport",
    "Settings",
    "attach_score",
    "check",
    "export_file",
    "export_onnx",
    "metadata_json",
    "model_file_digest",
    "quantize",
    "read_metadata",
    "set_policy",
]


def __getattr__(name: str) -> Any:
    """``export_onnx``, whose module loads torch."""
    if name == "export_onnx":
        return importlib.import_module("drip.export.torch_model").export_onnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
