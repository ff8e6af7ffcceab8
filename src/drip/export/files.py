"""Reads and writes model files: made from another ONNX file, looked at, given another policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from drip.device import ModelMetadata
from drip.errors import ExportError
from drip.export.attach import attach_score
from drip.export.limits import LOWER, UPPER, limits_of
from drip.export.metadata import (
    check_policy,
    metadata_of,
    score_outputs,
    write_metadata,
)
from drip.files import write_atomically
from drip.policy import Policy


def load_model_file(path: str | Path) -> onnx.ModelProto:
    """The model in an ONNX file, with weights that lie beside it.

    Raises:
        ExportError: The file is missing, damaged or no ONNX model.
    """
    try:
        model = onnx.load(str(path))
        if not all(item.type.tensor_type.HasField("shape") for item in model.graph.output):
            model = onnx.shape_inference.infer_shapes(model)  # runtimes do without, the checker does not
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, onnx and the file system raise many types
        raise ExportError(f"a readable ONNX file is needed at {path}, got: {_brief(error)}") from error
    return model


def save_model_file(model: onnx.ModelProto, path: str | Path) -> None:
    """Write a model in one step.

    Raises:
        ExportError: The model is larger than one file may be.
        DripError: The folder cannot be written.
    """
    try:
        data = model.SerializeToString()
    except Exception as error:  # protobuf's own
        raise ExportError(f"a model of at most 2 GiB is needed, got: {_brief(error)}") from error
    write_atomically(Path(path), data)


def export_file(source: str | Path, path: str | Path, **options: Any) -> ModelMetadata:
    """Write an ONNX classifier again with score and decision; torch is not needed.

    Args:
        source: The classifier's file.
        path: Where to write.
        options: As for :func:`drip.export.attach_score`.

    Returns:
        The metadata of the written file.

    Raises:
        ExportError: The file cannot be read, or its head not be differentiated.
        PolicyError: The policy belongs to another model.
    """
    model = attach_score(load_model_file(source), **options)
    metadata = metadata_of(model)
    save_model_file(model, path)
    return metadata


def read_metadata(path: str | Path) -> ModelMetadata:
    """The metadata of a model file.

    Raises:
        ExportError: The file cannot be read, or was changed since it was written.
        ModelError: It was not written by drip.
    """
    return metadata_of(load_model_file(path))


def set_policy(path: str | Path, policy: Policy, *, out: str | Path | None = None) -> ModelMetadata:
    """Exchange limits and policy of a model file; nothing else of it changes, nor does its digest.

    Args:
        path: The model file.
        policy: Calibrated on this file, or on the model that it was made from.
        out: Where to write; None replaces the file in one step.

    Returns:
        The metadata of the written file.

    Raises:
        ExportError: The file cannot be read, or was changed since it was written.
        ModelError: It was not written by drip.
        PolicyError: The policy was calibrated on another model or another score.
    """
    model = load_model_file(path)
    metadata = metadata_of(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    if LOWER not in stored or UPPER not in stored:
        raise ExportError(f"a file with the limits {LOWER} and {UPPER} is needed at {path}; export it again")
    n_classes = int(np.prod(stored[LOWER].dims))
    check_policy(policy, metadata, n_classes, score_outputs(model))
    for name, values in zip((LOWER, UPPER), limits_of(policy, n_classes), strict=True):
        stored[name].CopyFrom(numpy_helper.from_array(values, name))
    metadata = write_metadata(model, replace(metadata, policy=policy))
    save_model_file(model, path if out is None else out)
    return metadata


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
