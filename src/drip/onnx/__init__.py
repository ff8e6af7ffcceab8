"""One ONNX file with classifier, score and decision: written by an export, run on a device.

:class:`OnnxScorer` runs a model file with ONNX Runtime and NumPy. Everything that writes or inspects one
needs the package ``onnx`` (extra ``export``), and only :func:`export_onnx` needs torch. Names are imported
on first use, because a device has neither ``onnx`` nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from drip.errors import missing_extra

if TYPE_CHECKING:
    from drip.onnx.attach import attach_score, export_file
    from drip.onnx.files import (
        CheckReport,
        check,
        metadata_json,
        model_file_digest,
        read_metadata,
        set_input,
        set_policy,
    )
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
    "set_input",
    "set_policy",
]

# Which module has a public name, and what must be installed for it (package: extra). Modules that are not
# in _NEEDS write files.
_MODULES = {
    "attach": ("attach_score", "export_file"),
    "files": (
        "CheckReport",
        "check",
        "metadata_json",
        "model_file_digest",
        "read_metadata",
        "set_input",
        "set_policy",
    ),
    "metadata": ("ModelMetadata",),
    "quantization": ("QuantizationReport", "Settings", "quantize"),
    "runtime": ("OnnxScorer",),
    "torch_model": ("export_onnx",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_TO_WRITE = {"onnx": "export", "onnxruntime": "export"}
_NEEDS: dict[str, dict[str, str]] = {
    "metadata": {},
    "runtime": {"onnxruntime": "device"},
    "torch_model": {**_TO_WRITE, "torch": "torch"},
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module.

    Raises:
        DripError: a package that the module needs is not installed; the message has the command.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULE_OF[name]
    for package, extra in _NEEDS.get(module, _TO_WRITE).items():
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise missing_extra(f"drip.onnx.{name}", package, extra) from error
    return getattr(importlib.import_module(f"drip.onnx.{module}"), name)
