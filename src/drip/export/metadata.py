"""Digest and metadata of a model file, as written; what they mean to a device is in ``drip.device``."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import replace

import onnx
from onnx import numpy_helper

from drip.device import ModelMetadata
from drip.device.metadata import FORMAT_VERSION, KEY
from drip.errors import ExportError, PolicyError
from drip.export.limits import LOWER, UPPER
from drip.files import canonical_json
from drip.policy import Policy
from drip.selectors import from_policy
from drip.types import JsonObject


def metadata_json(metadata: ModelMetadata) -> JsonObject:
    """The JSON object under the key ``drip``."""
    return {
        "format_version": FORMAT_VERSION,
        "digest": metadata.digest,
        "parent_digest": metadata.parent_digest,
        "quantization": metadata.quantization,
        "score": metadata.score,
        "input_contract": metadata.contract.to_json(),
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
    missing = from_policy(policy).needs - set(provides)
    if missing:
        raise PolicyError(
            f"a model that gives {', '.join(sorted(missing))} is needed by the rule {policy.recipe.name!r}, "
            "got one without; export it again with this policy, which adds it"
        )
