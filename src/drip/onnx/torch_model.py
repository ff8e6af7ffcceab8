"""Exports a PyTorch classifier: torch writes the plain graph, :mod:`drip.onnx.attach` adds the score.

The only module of this package that imports torch.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drip.errors import ExportError, InputError, ModelError
from drip.files import write_atomically
from drip.media import InputSpec, trial_inputs
from drip.onnx.attach import attach_score
from drip.onnx.files import metadata_of, run_file
from drip.onnx.heads import Layout
from drip.onnx.metadata import ModelMetadata
from drip.policy import Policy
from drip.scoring import TorchScorer, model_digest
from drip.scoring.model import Batch, ScoringMode, locks_of, run_tapped
from drip.scoring.scorer import Heatmap
from drip.scoring.target import Target, channels_last_to_first, find_target, tokens_to_grid

TOLERANCE = 1e-5
"""Largest deviation from PyTorch, in units of the batch's largest value."""

_OPSET = 18  # the lowest that torch's exporter writes without converting
_N_COMPARED = 16


def export_onnx(
    model: nn.Module,
    policy: Policy | None,
    example_input: Batch,
    path: str | Path,
    *,
    layer: str | None = None,
    contrast: bool = False,
    heatmap: Heatmap | None = None,
    spec: InputSpec | None = None,
    class_names: Sequence[str] = (),
    samples: NDArray[np.float32] | None = None,
) -> ModelMetadata:
    """Write a PyTorch classifier as one ONNX file with score and decision, and compare the two.

    Before the file is written, ONNX Runtime scores the example and 16 rows of noise with it. Its outputs
    must be those of :class:`drip.scoring.TorchScorer`.

    Args:
        model: The classifier, with float32 weights.
        policy: The policy whose windows the file gets; None keeps every sample. Layer and heatmap are by
            default those that it was calibrated with.
        example_input: At least one input, shape (N, *shape).
        path: Where to write.
        layer: Target layer as for :class:`drip.scoring.TorchScorer`.
        contrast: Add the output ``drip_contrast``; it is always added if the policy's rule reads it.
        heatmap: ``raw`` or ``normalised``.
        spec: How samples become inputs; None uses the policy's.
        class_names: In the order of the logits; empty uses the policy's.
        samples: As for :func:`drip.onnx.attach_score`.

    Returns:
        The metadata of the written file.

    Raises:
        ExportError: torch cannot export the model, its head cannot be differentiated, or the graph
            deviates from PyTorch by more than 1e-5 of the batch's largest value.
        PolicyError: The policy belongs to another model or score.
        ModelError: The model cannot be scored.
        InputError: The example is not a batch of finite numbers.
    """
    definition = {} if policy is None else policy.provenance.score
    if definition.get("method", "gradcam") != "gradcam":
        raise ExportError(
            f"the policy was calibrated with the method {definition['method']!r}, but only 'gradcam' can be "
            "exported; calibrate with that method",
            code="export-unsupported",
        )
    layer = layer or definition.get("layer")
    chosen = heatmap or definition.get("heatmap", "raw")
    contrast = contrast or (policy is not None and "contrast" in policy.to_rule().needs)
    example = np.array(example_input, dtype=np.float32)
    scorer = TorchScorer(model, layer=layer, heatmap=chosen, contrast=contrast, example=example)
    digest = model_digest(model)
    with ScoringMode(model, locks_of(model)):
        # Two rows, so torch does not treat a batch of one as a constant.
        x = torch.from_numpy(example[:2] if len(example) > 1 else np.concatenate([example, example]))
        target = find_target(model, x, scorer.layer)
        plain = _plain_graph(model, target, x)
    finished = attach_score(
        plain,
        layer="activation",
        output="logits",
        closing_softmax="keep",  # TorchScorer differentiates what the model returns, so the file must too
        layout=_layout_of(target),
        layer_name=scorer.layer,
        policy=policy,
        spec=spec,
        class_names=class_names,
        contrast=contrast,
        heatmap=chosen,
        samples=samples,
        parent_digest=digest,
    )
    data = finished.SerializeToString()
    rows = [example[:_N_COMPARED], _accepted_noise(scorer, example.shape[1:])]
    if samples is not None:
        rows.append(samples[:_N_COMPARED])
    require_equal(data, scorer, np.concatenate(rows))
    write_atomically(Path(path), data)
    return metadata_of(finished)


def _accepted_noise(scorer: TorchScorer, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Rows of the first kind of noise that the model accepts; none if it accepts none."""
    for rows in trial_inputs(shape, _N_COMPARED).values():
        try:
            scorer.score(rows)
        except (InputError, ModelError):
            continue
        return rows
    return np.zeros((0, *shape), np.float32)


def require_equal(data: bytes, scorer: TorchScorer, x: NDArray[np.float32]) -> None:
    """Check that a model file reproduces the results of PyTorch.

    Raises:
        ExportError: A score, logit or feature deviates by more than 1e-5 of the batch's largest, or a
            class differs where the two largest logits do not.
    """
    found = run_file(data, x)
    wanted = scorer.score(x)
    pairs: dict[str, NDArray[Any]] = {"logits": wanted.logits, "drip_score": wanted.named_scores["drip"]}
    if "drip_contrast" in found:
        pairs["drip_contrast"] = wanted.named_scores["contrast"]
    if "features" in found and wanted.features is not None:
        pairs["features"] = wanted.features
    allowed = TOLERANCE * float(np.abs(wanted.logits).max())
    classes = found["predicted_class"]
    rows = np.arange(len(x))
    # twice, because the tolerance holds for each of the two logits
    lost = wanted.logits.max(1) - wanted.logits[rows, classes]
    same = lost <= 2 * allowed
    if not same.all():
        raise ExportError(
            f"the graph and PyTorch predict different classes for {int((~same).sum())} of {len(x)} rows; "
            "this is a bug: please report it with a description of the model's last layers",
            code="export-inexact",
        )
    # If two logits are equal except for rounding, either class is right, and their scores differ.
    equal = classes == wanted.classes
    for name, values in pairs.items():
        # The contrast is a difference of two scores and carries the rounding of both.
        reference = np.maximum(pairs["drip_score"], values) if name == "drip_contrast" else values
        scale = float(np.abs(reference).max())
        deviation = float(np.abs(found[name] - values)[equal].max(initial=0.0))
        if not deviation <= TOLERANCE * scale:
            raise ExportError(
                f"{name} of the graph deviates from PyTorch by {deviation:.3g} (largest value {scale:.3g}); "
                "this is a bug: please report it with a description of the model's last layers, and try another layer",
                code="export-inexact",
            )


def _layout_of(target: Target) -> Layout:
    if target.reshape is None:
        return "channels_first"
    known: dict[Any, Layout] = {tokens_to_grid: "tokens", channels_last_to_first: "channels_last"}
    if target.reshape not in known:
        raise ExportError(
            "the layer has its own reshape function, which cannot be exported; use the automatic layout",
            code="export-unsupported",
        )
    return known[target.reshape]


class _WithActivation(nn.Module):
    """A model that returns its logits and the target's activation."""

    def __init__(self, model: nn.Module, target: Target) -> None:
        super().__init__()
        self._model = model
        self._target = target

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and activation."""
        kept: list[Tensor] = []
        logits = run_tapped(
            self._model,
            self._target.module,
            self._target.functions,
            x,
            lambda output: kept.append(output.clone()),  # an in-place ReLU would change it otherwise
        )
        return logits, kept[0]


def _plain_graph(model: nn.Module, target: Target, x: Tensor) -> onnx.ModelProto:
    """The model's graph with outputs ``logits`` and ``activation``; free batch axis if torch can export one."""
    wrapped = _WithActivation(model, target).eval()
    reasons = []
    # models that reshape to a fixed number of rows export for one row only
    for example, free in ((x, True), (x[:1], False)):
        axes = ({0: torch.export.Dim("batch")},) if free else None
        try:
            with _quiet():
                program = torch.onnx.export(
                    wrapped, (example,), dynamo=True, opset_version=_OPSET, verbose=False,
                    dynamic_shapes=axes, input_names=["input"], output_names=["logits", "activation"],
                )  # fmt: skip
        except Exception as error:  # noqa: BLE001  # torch's export errors have no common class
            reasons.append(_reason(error))
            continue
        if program is None:
            continue
        proto = program.model_proto
        # torch may silently fix the batch size to the example's; then try again with one row
        if not free or proto.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_param"):
            return proto
    raise ExportError(
        f"torch.onnx cannot export the model: {'; '.join(dict.fromkeys(reasons))[:400]}; "
        "write the ONNX file with another tool and export that",
        code="export-unsupported",
    )


def _reason(error: BaseException) -> str:
    """The first line of the error that torch's own error hides, without the colours of a terminal."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    return f"{type(error).__name__}: {next(filter(None, lines), '')}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's notes on optional packages that are not installed, and the log of a failed export."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    unseen = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(unseen), redirect_stderr(unseen):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
