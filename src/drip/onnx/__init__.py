"""One ONNX file with classifier, score and decision: written here, and run on the device.

:class:`OnnxScorer` runs a model file with ONNX Runtime alone. Everything that writes or inspects one
needs the package ``onnx`` (extra ``export``); only :func:`export_onnx` needs torch. Names are imported on
first use, so that a device never loads what it does not have.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from drip.errors import missing_extra

if TYPE_CHECKING:
    from drip.onnx.attach import attach_score, export_file
    from drip.onnx.checking import CheckReport, check
    from drip.onnx.files import metadata_json, model_file_digest, read_metadata, set_policy
    from drip.onnx.metadata import ModelMetadata
    from drip.onnx.quantization import QuantizationReport, Settings, quantize
    from drip.onnx.runtime import OnnxScorer
    from drip.onnx.torch_model import export_onnx

__all__ = [
    "CheckReport",
    "ModelMetadata",
    "OnnxScorer",
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

_MODULES = {
    "attach": ("attach_score", "export_file"),
    "checking": ("CheckReport", "check"),
    "files": ("metadata_json", "model_file_digest", "read_metadata", "set_policy"),
    "metadata": ("ModelMetadata",),
    "quantization": ("QuantizationReport", "Settings", "quantize"),
    "runtime": ("OnnxScorer",),
    "torch_model": ("export_onnx",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_NEEDS = {"metadata": {}, "runtime": {"onnxruntime": "device"}}
_NEEDS_OF_OTHERS = {"onnx": "export", "onnxruntime": "export"}


def __getattr__(name: str) -> Any:
    """A public name from its module.

    Raises:
        DripError: a package that the module needs is not installed; the message has the command.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULE_OF[name]
    for package, extra in _NEEDS.get(module, _NEEDS_OF_OTHERS).items():
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise missing_extra(f"drip.onnx.{name}", package, extra) from error
    return getattr(importlib.import_module(f"drip.onnx.{module}"), name)
