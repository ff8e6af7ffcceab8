"""Reads, writes and checks complete model files: digest, metadata, and the policy, which can be replaced."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from drip.errors import ExportError, ModelError
from drip.files import canonical_json, write_atomically
from drip.media import InputSpec, trial_inputs
from drip.onnx import integrity
from drip.onnx.graph import execution_order, session_of
from drip.onnx.integrity import (
    KnownAnswers,
    Run,
    known_answers,
    known_in,
    require_answers,
    require_pure,
)
from drip.onnx.metadata import (
    FORMAT_VERSION,
    KEY,
    LOWER,
    UPPER,
    ModelMetadata,
    require_classes,
    windows_of,
)
from drip.onnx.prepare import sort_nodes
from drip.policy import Policy
from drip.rules import require_scores
from drip.types import JsonObject
from drip.windows import is_inside


def metadata_json(metadata: ModelMetadata) -> JsonObject:
    """The JSON object under the key ``drip``."""
    return {
        "format_version": FORMAT_VERSION,
        "digest": metadata.digest,
        "parent_digest": metadata.parent_digest,
        "quantization": metadata.quantization,
        "score": metadata.score,
        "input_spec": metadata.spec.to_json(),
        "n_classes": metadata.n_classes,
        "class_names": list(metadata.class_names),
        "policy": None if metadata.policy is None else metadata.policy.to_json(),
        "drip_version": metadata.drip_version,
    }


def model_file_digest(model: onnx.ModelProto) -> str:
    """SHA-256 of a model's weights and nodes, 64 hexadecimal characters.

    The hash reads, in this order: every initialiser in the order of names, except ``drip.lower`` and
    ``drip.upper``: the name, a zero byte, the number of the data type, a zero byte, the shape as decimal
    numbers joined by ``x``, a zero byte and the little-endian values; then for every node domain,
    operation, inputs and outputs, each name followed by a zero byte and each list by another, and the
    attributes in the order of names as their messages; then the operator sets. Metadata, node names and
    comments are not included.
    """
    # A hash of the file's bytes would change with the policy in it, with comments, and with the way a
    # tool stores numbers. Policies carry this digest, so it must depend on what is computed and on
    # nothing else.
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        if tensor.name not in {LOWER, UPPER}:
            shape = "x".join(map(str, tensor.dims))
            digest.update(f"{tensor.name}\0{tensor.data_type}\0{shape}\0".encode())
            digest.update(_little_endian(tensor))
    # Nodes stay in the order of the file: several orders execute identically, but tools keep the one they
    # read.
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
    """Put metadata into a model, with the digest of its current graph, and return it."""
    metadata = replace(metadata, digest=model_file_digest(model))
    _set_property(model, KEY, canonical_json(metadata_json(metadata)).decode())
    return metadata


def write_known_answers(model: onnx.ModelProto, inputs: NDArray[np.float32], origin: str) -> KnownAnswers:
    """Put a few inputs into a finished model, with what it returns for them.

    Raises:
        ExportError: a row's results depend on other rows or on earlier calls (code ``model-impure``), or are
            not finite (``model-non-finite``).
    """
    try:
        known = known_answers(run_of(model.SerializeToString()), inputs, origin)
    except ModelError as error:
        raise ExportError(str(error), code=error.code) from error
    _set_property(model, integrity.KEY, known.to_text())
    return known


def _set_property(model: onnx.ModelProto, name: str, text: str) -> None:
    others = [(item.key, item.value) for item in model.metadata_props if item.key != name]
    del model.metadata_props[:]
    for key, value in (*others, (name, text)):
        model.metadata_props.add(key=key, value=value)


def metadata_of(model: onnx.ModelProto) -> ModelMetadata:
    """The metadata of a model.

    Raises:
        ModelError: The model has no metadata, or it cannot be read.
        ExportError: The model was changed after the metadata was written.
    """
    metadata = ModelMetadata.parse({item.key: item.value for item in model.metadata_props})
    digest = model_file_digest(model)
    if metadata.digest != digest:
        raise ExportError(
            f"the model is damaged or was changed: its digest is {digest[:12]}..., but its metadata says "
            f"{metadata.digest[:12]}...; copy the file again, or export it again",
            code="model-file-damaged",
        )
    return metadata


def score_outputs(model: onnx.ModelProto) -> frozenset[str]:
    """What observations of this model contain, by the names that rules use."""
    known = {"logits": "logits", "drip_score": "drip", "drip_contrast": "contrast", "features": "features"}
    return frozenset(known[item.name] for item in model.graph.output if item.name in known)


def check_policy(policy: Policy, metadata: ModelMetadata, n_classes: int, provides: Iterable[str]) -> None:
    """Check that a policy was calibrated on this model and its score.

    Raises:
        PolicyError: The policy belongs to another file.
        InputError: The policy's rule reads an output that the file does not have; code ``rule-needs``.
    """
    metadata.require(policy)
    require_classes(policy, n_classes)
    require_scores(policy.to_rule(), provides, "export the model again with this policy")


def load_model_file(path: str | Path) -> onnx.ModelProto:
    """The model in an ONNX file, with weights that are stored next to it.

    Raises:
        ExportError: The file does not exist, is damaged, or is not an ONNX model.
    """
    if not Path(path).exists():
        raise ExportError(f"{path}: does not exist; check the path", code="path-missing")
    try:
        model = onnx.load(str(path))
        # onnx's checker rejects outputs without a shape, which some exporters write and all runtimes load
        if not all(item.type.tensor_type.HasField("shape") for item in model.graph.output):
            model = onnx.shape_inference.infer_shapes(model)
        # The checker also rejects nodes out of order, which runtimes load; the digest needs the order of the file.
        ordered = model
        if execution_order(model.graph) != list(range(len(model.graph.node))):
            ordered = onnx.ModelProto()
            ordered.CopyFrom(model)
            sort_nodes(ordered.graph)
        onnx.checker.check_model(ordered)
    except Exception as error:  # protobuf, onnx and the file system raise many exception types
        raise ExportError(
            f"{path}: not a readable ONNX file ({_brief(error)}); copy it again", code="model-file-damaged"
        ) from error
    return model


def save_model_file(model: onnx.ModelProto, path: str | Path) -> None:
    """Write a model in one step.

    Raises:
        ExportError: The model is larger than one file may be.
        DripError: The folder cannot be written.
    """
    try:
        data = model.SerializeToString()
    except Exception as error:  # protobuf's own types; it cannot serialise more than 2 GiB
        raise ExportError(
            f"{path}: the model does not fit into one ONNX file, which holds at most 2 GiB "
            f"({_brief(error)}); use a smaller model"
        ) from error
    write_atomically(Path(path), data)


def read_metadata(path: str | Path) -> ModelMetadata:
    """The metadata of a model file.

    Raises:
        ExportError: The file cannot be read, or was changed after it was written.
        ModelError: DRIP did not write it.
    """
    return metadata_of(load_model_file(path))


def write_windows(model: onnx.ModelProto, policy: Policy | None) -> None:
    """Replace the windows that a model's graph compares its score with; None keeps every sample.

    Only the values of two initialisers change, so the digest stays the same and no runtime has to recompile
    the graph.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    windows = windows_of(policy, int(np.prod(stored[LOWER].dims)))
    for name, ends in zip((LOWER, UPPER), windows, strict=True):
        stored[name].CopyFrom(numpy_helper.from_array(ends, name))


def set_policy(path: str | Path, policy: Policy, *, out: str | Path | None = None) -> ModelMetadata:
    """Replace the windows and the policy of a model file; the rest and the digest stay the same.

    Args:
        path: The model file.
        policy: Calibrated on this file, or on the model that it was made from.
        out: Where to write; None replaces the file in one step.

    Returns:
        The metadata of the written file.

    Raises:
        ExportError: The file cannot be read, or was changed after it was written.
        ModelError: DRIP did not write it.
        PolicyError: The policy was calibrated on another model or another score.
        InputError: The policy's rule reads an output that the file does not have.
    """
    model = load_model_file(path)
    metadata = metadata_of(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    if LOWER not in stored or UPPER not in stored:
        raise ExportError(
            f"{path}: has no windows ({LOWER} and {UPPER}) to replace; export it again",
            code="model-file-damaged",
        )
    # the number of windows, not metadata.n_classes, which early files do not have
    check_policy(policy, metadata, int(np.prod(stored[LOWER].dims)), score_outputs(model))
    write_windows(model, policy)
    metadata = write_metadata(model, replace(metadata, policy=policy))
    save_model_file(model, path if out is None else out)
    return metadata


def set_input(path: str | Path, spec: InputSpec, *, out: str | Path | None = None) -> ModelMetadata:
    """Correct how a model file prepares its inputs. Weights and digest stay the same.

    The scores of every sample change with it, so a policy in the file is removed and the file keeps every sample
    until it gets another.

    Args:
        path: The model file.
        spec: With the shape that the file has.
        out: Where to write; None replaces the file in one step.

    Returns:
        The metadata of the written file.

    Raises:
        ExportError: The file cannot be read, was changed after it was written, or has another shape.
        ModelError: DRIP did not write it.
    """
    model = load_model_file(path)
    metadata = metadata_of(model)
    if spec.shape != metadata.spec.shape:
        raise ExportError(
            f"{path}: has inputs of shape {metadata.spec.shape}, not {spec.shape}; export the model again for another "
            "shape",
            code="input-spec-invalid",
        )
    policy = metadata.policy if spec == metadata.spec else None
    write_windows(model, policy)
    metadata = write_metadata(model, replace(metadata, spec=spec, policy=policy))
    save_model_file(model, path if out is None else out)
    return metadata


def _brief(error: Exception) -> str:
    """The first line of an error; onnx's continue with a dump of the graph."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


# -- checking --------------------------------------------------------------------------------------------

OUTPUTS = ("logits", "predicted_class", "drip_score", "retain")


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        metadata: Of the file.
        n_inputs: Rows that were run.
        known: The file's known answers, or None for a file of an early version.
        outputs: Results by name.
        problems: One sentence per problem; empty for a sound file.
    """

    metadata: ModelMetadata
    n_inputs: int
    outputs: dict[str, NDArray[Any]]
    problems: tuple[str, ...]
    known: KnownAnswers | None = None

    @property
    def ok(self) -> bool:
        """True if there are no problems."""
        return not self.problems


def run_file(model: str | bytes, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """All outputs of a model file for a batch; row by row where it accepts one row only.

    Raises:
        ExportError: ONNX Runtime cannot load or run it.
    """
    return _run_session(session_of(model), x)


def run_of(model: str | bytes) -> Run:
    """A function that scores batches with a model file, in one optimised session, as a device does."""
    session = session_of(model)

    def run(x: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        found = _run_session(session, x)
        return found["logits"], found["drip_score"]

    return run


def _run_session(session: Any, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    source = session.get_inputs()[0]
    names = [item.name for item in session.get_outputs()]
    parts = [x] if isinstance(source.shape[0], str) else [row[None] for row in x]
    try:
        runs = [session.run(names, {source.name: part}) for part in parts]
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ExportError(f"the model does not run on inputs of shape {x.shape[1:]}: {error}") from error
    return {name: np.concatenate(column) for name, column in zip(names, zip(*runs, strict=True), strict=True)}


def check(path: str | Path, inputs: NDArray[np.float32] | None = None) -> CheckReport:
    """Read a model file, run it, and compare it with its known answers and its decisions with its policy's.

    Args:
        path: The model file.
        inputs: Shape (N, *shape); None runs the file's own inputs, or 16 rows of noise.

    Raises:
        ExportError: The file is damaged, was changed after it was written, or does not run.
        ModelError: DRIP did not write it.
    """
    model = load_model_file(path)
    metadata = metadata_of(model)
    properties = {item.key: item.value for item in model.metadata_props}
    data, known = model.SerializeToString(), known_in(properties, metadata.spec.shape)
    x = _check_inputs(data, metadata, known) if inputs is None else inputs
    found = run_file(data, x)
    missing = [name for name in OUTPUTS if name not in found]
    if missing:
        raise ExportError(
            f"{path}: has no output {', '.join(missing)}; export it again", code="model-outputs"
        )
    run, problems = run_of(data), []
    try:
        require_pure(run, x[:4])
        if known is not None:
            is_int8 = metadata.quantization is not None
            require_answers(run, known, is_int8=is_int8, n_rows=len(known.inputs))
    except ModelError as error:
        problems.append(str(error))
    logits, classes, scores = found["logits"], found["predicted_class"], found["drip_score"]
    if not (np.isfinite(logits).all() and np.isfinite(scores).all()):
        problems.append("logits or scores are not finite")
    if not (classes == logits.argmax(1)).all():
        problems.append("predicted_class is not the lowest index of the largest logit")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    windows = windows_of(metadata.policy, logits.shape[1])
    # set_policy writes both; a tool that edits the file may have written only one
    for name, expected in zip((LOWER, UPPER), windows, strict=True):
        tensor = stored.get(name)
        if tensor is None or tensor.raw_data != expected.astype("<f4").tobytes():
            problems.append(f"{name} differs from the windows of the policy in the file")
    # The expected decisions come from the policy, not from the stored windows: this finds both a graph that
    # compares wrongly and a graph with wrong windows.
    lower, upper = windows.astype(np.float64)
    inside = is_inside(scores.astype(np.float64), classes, lower, upper)
    if not (found["retain"] == ~(inside & np.isfinite(logits).all(1))).all():
        problems.append("retain differs from the decisions of the policy in the file")
    return CheckReport(metadata, len(x), found, tuple(problems), known)


def _check_inputs(data: bytes, metadata: ModelMetadata, known: KnownAnswers | None) -> NDArray[np.float32]:
    kinds = trial_inputs(metadata.spec.shape, 16)
    if known is not None:
        return kinds.get(known.origin, known.inputs)
    # a file of an early version: noise of the first kind that it accepts
    run = run_of(data)
    for x in kinds.values():
        try:
            if np.isfinite(run(x)[0]).all():
                return x
        except ExportError:
            continue
    return kinds["noise"]
