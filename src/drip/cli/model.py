"""`drip model`: write, change and check the file that a device runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from drip.cli.arguments import (
    ClassNamesOption,
    JsonOption,
    LabelsFileOption,
    PolicyArgument,
    WeightsOption,
    check_input_spec,
    class_names_of,
    is_model_file,
    load_torch_model,
    parse_input_spec,
    parse_kappa,
    parse_score,
    require_files,
    require_inputs,
    require_writable,
)
from drip.cli.output import print_error, print_facts, print_json, print_note
from drip.media import InputSpec

if TYPE_CHECKING:
    from drip.onnx.metadata import ModelMetadata
    from drip.policy import Policy

app = typer.Typer(help="Write, change and check the file that a device runs.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Model file.", show_default=False)]


def _parse_score(text: str) -> dict[str, str]:
    return parse_score(text, ("layer", "heatmap", "method", "layout"))


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="ONNX file of any classifier, or package.module:factory, where factory returns a "
            "torch.nn.Module; modules may be in the current folder.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Model file to write.")] = Path("model.onnx"),
    policy: Annotated[
        Path | None,
        typer.Option(help="Policy to embed in the file.", show_default="none: keep all"),
    ] = None,
    weights: WeightsOption = None,
    input_spec: Annotated[
        str | None,
        typer.Option(
            parser=check_input_spec,
            metavar="SPEC",
            help='Input spec, such as "3x96x96 resize=crop mean=0.5 std=0.25"; an ONNX file has the shape.',
            show_default="from the policy or the ONNX file",
        ),
    ] = None,
    score: Annotated[
        dict[str, str] | None,
        typer.Option(
            parser=_parse_score,
            metavar="SPEC",
            help='Score, such as "layer=features heatmap=normalised"; for an ONNX file, layer names a tensor.',
            show_default="from the policy, or raw",
        ),
    ] = None,
    contrast: Annotated[
        bool,
        typer.Option("--contrast", help="Add the contrast score.", show_default="if the policy reads it"),
    ] = False,
    output: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Output of an ONNX file with the logits.",
            show_default="the only one, or logits",
        ),
    ] = "",
    softmax: Annotated[
        Literal["cut", "keep", "sigmoid"],
        typer.Option(
            help="Softmax or sigmoid at the end of an ONNX file: cut off or keep it; or read logits as a sigmoid's."
        ),
    ] = "cut",
    class_names: ClassNamesOption = "",
    labels_file: LabelsFileOption = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of representative samples; a few of them verify the file and become its known answers.",
            show_default="noise",
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Write classifier, score and decision as one ONNX file.

    PyTorch is not required if MODEL is an ONNX file.

    Example: drip model export mymodel:build --weights w.pt --policy policy.json --out model.onnx
    """
    names = class_names_of(class_names, labels_file)
    words = score or {}
    if "method" in words:
        raise typer.BadParameter("--score method=... is for PyTorch; a model file contains the gradcam score")
    require_files(weights, policy)
    require_inputs(data)
    require_writable(out, model, weights, policy)
    options: dict[str, Any] = {
        "layer": words.get("layer"), "heatmap": words.get("heatmap"), "class_names": names, "contrast": contrast,
    }  # fmt: skip
    chosen = None if policy is None else _load_policy(policy)
    if is_model_file(model):
        if weights is not None:
            raise typer.BadParameter("an ONNX file contains its weights; leave out --weights")
        require_files(model)
        options |= {"layout": words.get("layout"), "output": output or None, "closing_softmax": softmax}
        metadata = _export_file(model, chosen, input_spec, out, data, options)
    elif output or softmax != "cut" or "layout" in words:
        raise typer.BadParameter("--output, --softmax and --score layout=... are for ONNX files")
    else:
        metadata = _export_torch(model, weights, chosen, input_spec, out, data, options)
    print_metadata(metadata, out, json_output=json_output)
    _note_on_pixels(metadata.spec, input_spec)


def _load_policy(path: Path) -> Policy:
    from drip.policy import Policy

    return Policy.load(path)


def _note_on_pixels(spec: InputSpec, given: str | None) -> None:
    """Nothing in an ONNX file says how its images were prepared, and wrong scores would look like right ones."""
    is_image = len(spec.shape) == 3 and spec.shape[0] in {1, 3}
    if is_image and not given and spec == InputSpec(spec.shape):
        print_note(
            "pixels become values from 0 to 1 without mean and std; if the model was trained on others, correct it "
            "with drip model set-input"
        )


def _export_file(
    model: str, policy: Policy | None, text: str | None, out: Path, data: Path | None, options: dict[str, Any]
) -> ModelMetadata:
    """Write the model file of an ONNX classifier and return its metadata."""
    from drip.onnx import export_file
    from drip.onnx.attach import declared_shape

    definition = {} if policy is None else policy.provenance.score
    options["heatmap"] = options["heatmap"] or definition.get("heatmap", "raw")
    spec = _spec(policy, text, lambda: declared_shape(model))
    if data is not None and spec is None:
        spec = InputSpec(declared_shape(model))
    if data is not None and spec is not None:
        options["samples"] = _samples(data, spec)
    return export_file(model, out, policy=policy, spec=spec, **options)


def _export_torch(
    factory: str, weights: Path | None, policy: Policy | None, text: str | None, out: Path, data: Path | None,
    options: dict[str, Any],
) -> ModelMetadata:  # fmt: skip
    """Write the model file of a PyTorch model and return its metadata."""
    loaded = load_torch_model(factory, weights)
    spec = _spec(policy, text, None)
    if spec is None:
        raise typer.BadParameter("--input-spec is missing; add it, for example --input-spec 3x96x96")
    from drip.onnx import export_onnx
    from drip.workflow import ScoreOptions

    if data is not None:
        options["samples"] = example = _samples(data, spec)
    else:
        words = {name: options[name] for name in ("layer", "heatmap") if options[name]}
        _, example = ScoreOptions(**words).tried(loaded, spec.shape)
    return export_onnx(loaded, policy, example, out, spec=spec, **options)


def _spec(
    policy: Policy | None, text: str | None, shape: Callable[[], tuple[int, ...]] | None
) -> InputSpec | None:
    """The input spec of an option, completed from the policy or by the shape in the ONNX file; None for neither."""
    default = None
    if policy is not None and policy.provenance.input_spec:
        default = InputSpec.from_json(policy.provenance.input_spec)
    elif shape is not None and text and text.partition("=")[0].isalpha():  # a text without a shape
        default = InputSpec(shape())
    return parse_input_spec(text, default) if text else default


def _samples(data: Path, spec: InputSpec) -> NDArray[np.float32]:
    """The first inputs of a folder."""
    from drip.workflow.calibration import first_inputs

    return first_inputs(data, spec)


@app.command("set-policy")
def set_policy(
    model: FileArgument,
    policy: PolicyArgument,
    *,
    out: Annotated[
        Path | None, typer.Option(help="Model file to write.", show_default="replace MODEL in one step")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Replace the windows in a model file.

    Weights and digest stay the same.

    Example: drip model set-policy model.onnx policy.json
    """
    require_files(model, policy)
    if out is not None:
        require_writable(out, policy)
    from drip.onnx import set_policy as replace_policy
    from drip.policy import Policy

    metadata = replace_policy(model, Policy.load(policy), out=out)
    print_metadata(metadata, out or model, json_output=json_output)


@app.command("set-input")
def set_input(
    model: FileArgument,
    spec: Annotated[
        str,
        typer.Argument(
            parser=check_input_spec,
            metavar="SPEC",
            help='What to change, such as "resize=crop mean=0.5 std=0.25".',
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Model file to write.", show_default="replace MODEL in one step")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Correct how a model file prepares its inputs.

    Weights and digest stay the same. A policy in the file is removed, because its windows belong to other scores.

    Example: drip model set-input model.onnx "range=0,255 order=bgr"
    """
    require_files(model)
    if out is not None:
        require_writable(out)
    from drip.onnx import read_metadata
    from drip.onnx import set_input as replace_input

    before = read_metadata(model)
    metadata = replace_input(model, parse_input_spec(spec, before.spec), out=out)
    print_metadata(metadata, out or model, json_output=json_output)
    if before.policy is not None and metadata.policy is None:
        print_note("the policy was removed: its windows belong to other scores; calibrate again")


@app.command()
def quantize(
    model: FileArgument,
    *,
    data: Annotated[
        str,
        typer.Option(help="Folder or dataset:NAME with at least 200 representative samples."),
    ],
    out: Annotated[Path, typer.Option(help="Int8 file to write.")] = Path("model.int8.onnx"),
    activations: Annotated[
        Literal["uint8", "int8"], typer.Option(help="Type of the activations; weights are int8.")
    ] = "uint8",
    weight_bits: Annotated[
        int,
        typer.Option(
            help="7 is right on every processor; 8 is wrong on x86 without VNNI, where sums of products saturate.",
            min=7,
            max=8,
        ),
    ] = 7,
    float_layers: Annotated[
        int | None,
        typer.Option(
            help="Number of leading layers to keep in float32.",
            min=0,
            show_default="as few as --min-kappa allows",
        ),
    ] = None,
    windows: Annotated[
        Literal["best", "parent", "scaled", "refit"],
        typer.Option(help="Keep the parent's windows, scale them, refit them, or use the best."),
    ] = "best",
    min_kappa: Annotated[
        float,
        typer.Option(
            parser=parse_kappa,
            metavar="NUMBER",
            help="Required agreement with the float32 decisions (Cohen's kappa), at most 1.",
        ),
    ] = 0.85,
    json_output: JsonOption = False,
) -> None:
    """Write a model file with int8 weights.

    Compares the decisions of both files on held-out samples. PyTorch is not required.

    Example: drip model quantize model.onnx --data calibration/ --out model.int8.onnx
    """
    require_files(model)
    require_inputs(None if data.startswith("dataset:") else data)
    require_writable(out, model)
    from drip.onnx import Settings
    from drip.onnx import quantize as write

    settings = Settings(
        activations=activations,
        weight_bits=8 if weight_bits == 8 else 7,
        float_layers=float_layers,
        windows=windows,
        min_kappa=min_kappa,
    )
    report = write(model, data, out, settings)
    print_metadata(report.metadata, out, json_output=json_output)
    if not json_output:
        print_facts("Agreement with float32", report.facts())


@app.command()
def check(model: FileArgument, *, json_output: JsonOption = False) -> None:
    """Check a model file and run it.

    The exit code is 1 if the digest, metadata, windows or outputs are wrong, or if this machine gets other results than
    the known answers in the file.

    Example: drip model check model.onnx
    """
    require_files(model)
    from drip.onnx import check as check_file

    report = check_file(model)
    if json_output:
        print_json({**facts(report.metadata), "ok": report.ok, "problems": list(report.problems)})
    else:
        print_metadata(report.metadata, model, json_output=False)
        known = report.known
        print_facts(
            "",
            {
                "run": f"{report.n_inputs} inputs, {len(report.problems)} problems",
                "known answers": "none: export the file again, then a device notices wrong results"
                if known is None
                else f"{len(known.inputs)} ({known.origin}; --data of drip model export uses samples)"
                if known.origin != "samples"
                else f"{len(known.inputs)} samples",
            },
        )
    for problem in report.problems if not json_output else ():
        print_error(problem, "model-file-damaged")
    if not report.ok:
        raise typer.Exit(1)


def facts(metadata: ModelMetadata) -> dict[str, object]:
    """The metadata as JSON, as in the file."""
    from drip.onnx import metadata_json

    return metadata_json(metadata)


def print_metadata(metadata: ModelMetadata, path: Path, *, json_output: bool) -> None:
    """The metadata as a table or as JSON."""
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
            "score": f"{score['method']}, {score['heatmap']} heatmap"
            if metadata.has_maps
            else "none: for rules that need no map",
            "layer": f"{score['layer']} {score['layer_shape']}",
            "input": metadata.spec.describe(),
            **({"cut off": f"a {score['closing']} after the logits"} if "closing" in score else {}),
            "classes": ", ".join(metadata.class_names) or "without names",
            "policy": "none: keeps all" if policy is None else f"{policy.rule.name} {policy.digest[:12]}...",
            **(
                {}
                if policy is None or "windows" in policy.rule.state
                else {
                    "retain": "always true, because the rule has no windows; drip run decides with the rule"
                }
            ),
        },
    )
