"""`drip model`: write the file that a device runs, give it another policy, look at it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from drip.cli.arguments import (
    JsonOption,
    WeightsOption,
    parse_names,
    parse_numbers,
    parse_shape,
    require_writable,
)
from drip.cli.output import print_error, print_facts, print_json
from drip.media import InputSpec, Resize

if TYPE_CHECKING:
    from drip.onnx.metadata import ModelMetadata
    from drip.policy import Policy

app = typer.Typer(help="Write, change and check the file that a device runs.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="The model file.", show_default=False)]


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="Any ONNX classifier *plain.onnx*; or *package.module:factory*, a callable without "
            "arguments that returns a torch.nn.Module.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Where to write the model file.")] = Path("model.onnx"),
    weights: WeightsOption = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy whose limits the file gets; none retains all.", exists=True)
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Target layer, of ONNX files a tensor; found when not given.")
    ] = None,
    heatmap: Annotated[
        str | None, typer.Option(help="*raw* or *normalised*; default as in the policy, or raw.")
    ] = None,
    contrast: Annotated[
        bool,
        typer.Option(
            "--contrast", help="Add the output drip_contrast; added anyway where the policy reads it."
        ),
    ] = False,
    features: Annotated[bool, typer.Option("--features", help="Add the output features; likewise.")] = False,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Shape of one input, channels first, also for a graph that has them last; default as in the "
            "policy or the ONNX file."
        ),
    ] = None,
    mean: Annotated[str, typer.Option(help="Mean per channel that training subtracted; with --shape.")] = "0",
    std: Annotated[
        str, typer.Option(help="Standard deviation per channel that training divided by; with --shape.")
    ] = "1",
    resize: Annotated[
        Resize, typer.Option(help="Other sizes: *exact* refuses, *stretch*, *crop*; with --shape.")
    ] = "exact",
    sample_rate: Annotated[int, typer.Option(help="Sample rate of audio in Hz; with --shape.")] = 0,
    class_names: Annotated[str, typer.Option(help="Names separated by commas, in the order of logits.")] = "",
    json_output: JsonOption = False,
) -> None:
    """Write a classifier with score and decision as one ONNX file; a file needs no torch.

    Example: drip model export mymodel:build --weights w.pt --policy policy.json --out model.onnx
    """
    spec = None
    if shape is not None:
        numbers = parse_numbers(mean), parse_numbers(std)
        spec = InputSpec(parse_shape(shape), resize, *numbers, sample_rate)
    names = parse_names(class_names)
    require_writable(out, model, weights, policy)
    metadata = _write(
        model, weights, policy, out, layer=layer, heatmap=heatmap, spec=spec, class_names=names,
        contrast=contrast, features=features,
    )  # fmt: skip
    print_metadata(metadata, out, json_output=json_output)


def _write(
    model: str, weights: Path | None, policy_path: Path | None, out: Path, **options: Any
) -> ModelMetadata:
    """The metadata of the file made from a model file, or from a PyTorch model."""
    from drip.policy import Policy

    policy = None if policy_path is None else Policy.load(policy_path)
    if model.lower().endswith(".onnx"):
        if weights is not None:
            raise typer.BadParameter("an ONNX file has its weights in it, got --weights; leave them out")
        from drip.onnx import export_file

        definition = {} if policy is None else policy.provenance.score
        options["heatmap"] = options["heatmap"] or definition.get("heatmap", "raw")
        return export_file(model, out, policy=policy, **options)
    from drip.models import load_model

    loaded = load_model(model, weights)
    example = np.random.default_rng(0).normal(size=(2, *_shape(policy, options["spec"])))
    from drip.onnx import export_onnx

    return export_onnx(loaded, policy, example.astype(np.float32), out, **options)


def _shape(policy: Policy | None, spec: InputSpec | None) -> tuple[int, ...]:
    if spec is not None:
        return spec.shape
    if policy is None or not policy.provenance.input_spec:
        raise typer.BadParameter("--shape is needed, for no policy says it; such as --shape 3,96,96")
    return InputSpec.from_json(policy.provenance.input_spec).shape


@app.command("set-policy")
def set_policy(
    model: FileArgument,
    policy: Annotated[Path, typer.Argument(help="The new policy.", show_default=False)],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Where to write; default: the file is replaced in one step.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Exchange the limits of a model file; its weights and its digest stay.

    Example: drip model set-policy model.onnx policy.json
    """
    from drip.onnx import set_policy as exchange
    from drip.policy import Policy

    metadata = exchange(model, Policy.load(policy), out=out)
    print_metadata(metadata, out or model, json_output=json_output)


@app.command()
def quantize(
    model: FileArgument,
    *,
    data: Annotated[
        str,
        typer.Option(help="Folder, or dataset:name, of at least 200 samples that resemble production."),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the int8 file.")] = Path("model.int8.onnx"),
    calibration: Annotated[
        Literal["mse", "percentile", "minmax"], typer.Option(help="How the ranges of activations are found.")
    ] = "mse",
    samples: Annotated[int, typer.Option(help="Samples that ranges and biases come from.", min=1)] = 256,
    activations: Annotated[
        Literal["uint8", "int8"], typer.Option(help="Type of the activations; weights are int8.")
    ] = "uint8",
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One scale for all channels of a weight.")
    ] = False,
    float_layers: Annotated[
        int | None,
        typer.Option(help="First layers that stay float32; default: as few as --min-kappa needs.", min=0),
    ] = None,
    limits: Annotated[
        Literal["best", "parent", "scaled", "refit"],
        typer.Option(
            help="The parent's, scaled or refitted limits, or the *best* of them on held-out samples."
        ),
    ] = "best",
    min_kappa: Annotated[
        float, typer.Option(help="Least agreement of decisions with float32 (Cohen's kappa).", max=1)
    ] = 0.85,
    json_output: JsonOption = False,
) -> None:
    """Write a model file again in eight bits, checked against float32 on held-out samples; needs no torch.

    Example: drip model quantize model.onnx --data calibration/ --out model.int8.onnx
    """
    from drip.onnx import Settings
    from drip.onnx import quantize as write

    settings = Settings(
        calibration, samples, per_channel=not per_tensor, activations=activations,
        float_layers=float_layers, limits=limits, min_kappa=min_kappa,
    )  # fmt: skip
    require_writable(out, model)
    report = write(model, data, out, settings)
    print_metadata(report.metadata, out, json_output=json_output)
    if not json_output:
        print_facts("Agreement with float32", report.facts())


@app.command()
def check(model: FileArgument, *, json_output: JsonOption = False) -> None:
    """Verify a model file: digest, metadata, limits, and a run on noise; exit code 1 when something is wrong.

    Example: drip model check model.onnx
    """
    from drip.onnx import check as look

    report = look(model)
    if json_output:
        print_json({**facts(report.metadata), "ok": report.ok, "problems": list(report.problems)})
    else:
        print_metadata(report.metadata, model, json_output=False)
        print_facts("", {"run": f"{report.n_inputs} inputs of noise, {len(report.problems)} problems"})
    for problem in report.problems if not json_output else ():
        print_error(problem)
    if not report.ok:
        raise typer.Exit(1)


def facts(metadata: ModelMetadata) -> dict[str, object]:
    """The metadata for scripts, as they stand in the file."""
    from drip.onnx import metadata_json

    return metadata_json(metadata)


def print_metadata(metadata: ModelMetadata, path: Path, *, json_output: bool) -> None:
    """The metadata for people, or for scripts."""
    if json_output:
        print_json(facts(metadata))
        return
    score = metadata.score
    policy = metadata.policy
    print_facts(
        f"Model file {path}",
        {
            "digest": metadata.digest,
            "made from": metadata.parent_digest,
            "score": f"{score['method']}, {score['heatmap']} heatmap",
            "layer": f"{score['layer']} {score['layer_shape']}",
            "input": " x ".join(map(str, metadata.spec.shape)),
            "classes": ", ".join(metadata.class_names) or "without names",
            "policy": "none: retains all"
            if policy is None
            else f"{policy.rule.name} {policy.digest[:12]}...",
        },
    )
