"""Digest and metadata of a model file, as written; what they mean to a device is in ``drip.onnx``."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from drip.errors import ExportError, PolicyError
from drip.files import canonical_json, write_atomically
from drip.onnx.metadata import FORMAT_VERSION, KEY, LOWER, UPPER, ModelMetadata, limits_of
from drip.policy import Policy
from drip.rules import require_scores
from drip.types import JsonObject


def metadata_json(metadata: ModelMetadata) -> JsonObject:
    """The JSON object under the key ``drip``."""
    return {
        "format_version": FORMAT_VERSION,
        "digest": metadata.digest,
        "parent_digest": metadata.parent_digest,
        "quantization": metadata.quantization,
        "score": metadata.score,
        "input_contract": metadata.spec.to_json(),
        "n_classes": metadata.n_classes,
        "class_names": list(metadata.class_names),
        "policy": None if metadata.policy is None else metadata.policy.to_json(),
        "drip_version": metadata.drip_version,
    }


def model_file_digest(model: onnx.ModelProto) -> str:
    """SHA-256 of a model's weights and nodes, 64 hexadecimal characters.

    The hash takes, in this order: for every initialiser in the order of names but ``drip.lower`` and
    ``drip.upper`` the name, a zero byte, the data type's number, a zero byte, the shape as decimal
    numbers joined by ``x``, a zero byte and the little-endian values; then for every node domain,
    operation, inputs and outputs, each name with a zero byte behind it and each list with another,
    and the attributes in the order of names as their messages; then the operator sets. Metadata, node
    names and comments do not enter.
    """
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        if tensor.name not in {LOWER, UPPER}:
            shape = "x".join(map(str, tensor.dims))
            digest.update(f"{tensor.name}\0{tensor.data_type}\0{shape}\0".encode())
            digest.update(_little_endian(tensor))
    for node in model.graph.node:
        for part in ((node.domain, node.op_type), node.input, node.output):
            digest.update("".join(f"{name}\0" for name in (*part, "")).encode())
        for attribute in sorted(node.attribute, key=lambda attribute: attribute.name):
            digest.update(attribute.SerializeToString(deterministic=True) + b"\0")
    for item in sorted(model.opset_import, key=lambda item: item.domain):
        digest.update(f"{item.domain}\0{item.version}\0".encode())
    return digest.hexdigest()


def _little_endian(tensor: onnx.TensorProto) -> bytes:
    if tensor.HasField("raw_data"):
        return tensor.raw_data  # little-endian by definition
    values = numpy_helper.to_array(tensor)
    if values.dtype.hasobject:
        return b"\0".join(tensor.string_data)
    return (values.byteswap() if sys.byteorder == "big" else values).tobytes()


def write_metadata(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    """Put metadata with the model's present digest into the model, and return them."""
    metadata = replace(metadata, digest=model_file_digest(model))
    others = [(item.key, item.value) for item in model.metadata_props if item.key != KEY]
    del model.metadata_props[:]
    for key, value in (*others, (KEY, canonical_json(metadata_json(metadata)).decode())):
        model.metadata_props.add(key=key, value=value)
    return metadata


def metadata_of(model: onnx.ModelProto) -> ModelMetadata:
    """The metadata of a model.

    Raises:
        ModelError: There are none, or they cannot be read.
        ExportError: The model changed since they were written.
    """
    metadata = ModelMetadata.parse({item.key: item.value for item in model.metadata_props})
    digest = model_file_digest(model)
    if metadata.digest != digest:
        raise ExportError(
            f"a model with the digest {metadata.digest[:12]}... of its metadata is needed, "
            f"got {digest[:12]}...; the file is damaged or was changed: export it again"
        )
    return metadata


def score_outputs(model: onnx.ModelProto) -> frozenset[str]:
    """Names of what observations of this model carry, as selection rules need them."""
    known = {"logits": "logits", "drip_score": "drip", "drip_contrast": "contrast", "features": "features"}
    return frozenset(known[item.name] for item in model.graph.output if item.name in known)


def check_policy(policy: Policy, metadata: ModelMetadata, n_classes: int, provides: Iterable[str]) -> None:
    """Refuse a policy that was calibrated on another model, or on another score of this one.

    Raises:
        PolicyError: The policy does not serve this file.
    """
    metadata.require(policy)
    if policy.n_classes != n_classes:
        raise PolicyError(f"a policy of {n_classes} classes is needed, got one of {policy.n_classes}")
    require_scores(policy.to_rule(), provides, "export the model again with this policy")


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
