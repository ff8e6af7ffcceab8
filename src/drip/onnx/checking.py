"""Checks a model file as a device would see it: metadata, digest, and a run of ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drip.errors import ExportError
from drip.onnx.files import load_model_file, metadata_of
from drip.onnx.graph import noise, session_of
from drip.onnx.metadata import LOWER, UPPER, ModelMetadata, windows_of
from drip.windows import is_inside

OUTPUTS = ("logits", "predicted_class", "drip_score", "retain")


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        metadata: Of the file.
        n_inputs: Rows that were run.
        outputs: Results by name.
        problems: One sentence per problem; empty for a sound file.
    """

    metadata: ModelMetadata
    n_inputs: int
    outputs: dict[str, NDArray[Any]]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if there are no problems."""
        return not self.problems


def run_file(model: str | bytes, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """All outputs of a model file for a batch; row by row where it accepts one row only.

    Raises:
        ExportError: ONNX Runtime cannot load or run it.
    """
    session = session_of(model)
    source = session.get_inputs()[0]
    names = [item.name for item in session.get_outputs()]
    parts = [x] if isinstance(source.shape[0], str) else [row[None] for row in x]
    try:
        runs = [session.run(names, {source.name: part}) for part in parts]
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ExportError(f"the model does not run on inputs of shape {x.shape[1:]}: {error}") from error
    return {name: np.concatenate(column) for name, column in zip(names, zip(*runs, strict=True), strict=True)}


def check(path: str | Path, inputs: NDArray[np.float32] | None = None) -> CheckReport:
    """Read a model file, run it on inputs or noise, and compare its decisions with its policy's.

    Args:
        path: The model file.
        inputs: Shape (N, *shape); None runs 16 rows of noise.

    Raises:
        ExportError: The file is damaged, was changed after it was written, or does not run.
        ModelError: DRIP did not write it.
    """
    model = load_model_file(path)
    metadata = metadata_of(model)
    axes = model.graph.input[0].type.tensor_type.shape.dim
    x = noise([axis.dim_value for axis in axes[1:]], 16) if inputs is None else inputs
    found = run_file(model.SerializeToString(), x)
    missing = [name for name in OUTPUTS if name not in found]
    if missing:
        raise ExportError(
            f"{path}: has no output {', '.join(missing)}; export it again", code="model-outputs"
        )
    problems = []
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
    return CheckReport(metadata, len(x), found, tuple(problems))
