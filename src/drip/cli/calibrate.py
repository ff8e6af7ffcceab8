"""`drip calibrate`: a policy from a model and a folder of samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import drip.rules
from drip.cli.arguments import (
    ClassNamesOption,
    DpwOption,
    InputSpecOption,
    JsonOption,
    KeepOption,
    LabelsFileOption,
    ModelArgument,
    ProviderOption,
    ThreadsOption,
    WeightsOption,
    class_names_of,
    complete_rule,
    is_model_file,
    keep_rate,
    load_model_file,
    load_torch_model,
    parse_rule_options,
    parse_score,
    require_inputs,
    require_writable,
)
from drip.cli.output import print_facts, print_json, print_table, progress_bar
from drip.media import InputSpec

if TYPE_CHECKING:
    from drip.policy import Policy
    from drip.types import JsonObject
    from drip.windows import Window


# Rules of other packages have no names here: help must not depend on whether those can be imported.
_RULES = f"{', '.join(drip.rules.OFFERED)}; and those of packages that you install"


def calibrate(
    model: ModelArgument,
    *,
    data: Annotated[
        Path, typer.Option(help="Folder of unlabelled samples that are representative of the stream.")
    ],
    out: Annotated[Path, typer.Option(help="Policy file to write.")] = Path("policy.json"),
    rule: Annotated[
        str,
        typer.Option(autocompletion=complete_rule, help=f"{drip.rules.RECOMMENDATION} Rules: {_RULES}."),
    ] = drip.rules.RECOMMENDED,
    keep: KeepOption = None,
    dpw: DpwOption = None,
    rule_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Argument for the rule, such as method=histogram_peak."),
    ] = None,
    input_spec: InputSpecOption = None,
    score: Annotated[
        dict[str, Any] | None,
        typer.Option(
            parser=parse_score,
            metavar="SPEC",
            help='How to score a PyTorch model, such as "layer=features heatmap=normalised method=layercam".',
        ),
    ] = None,
    weights: WeightsOption = None,
    class_names: ClassNamesOption = "",
    labels_file: LabelsFileOption = None,
    threads: ThreadsOption = 1,
    provider: ProviderOption = None,
    json_output: JsonOption = False,
) -> None:
    """Calibrate a rule on a folder of samples and write the policy.

    A model file already contains the input spec, score and class names; give these options only for a PyTorch model.

    Example: drip calibrate model.onnx --data frames/ --keep 0.6

    Example: drip calibrate mymodel:build --weights w.pt --data frames/ --input-spec 3x96x96
    """
    names = class_names_of(class_names, labels_file)
    rate = keep_rate(keep, dpw)
    options = parse_rule_options(rule_option or [])
    require_inputs(data)
    require_writable(out, model, weights)
    with progress_bar("scoring") as update:
        how: dict[str, Any] = {
            "rule": rule, "retention": rate, "rule_options": options,
            "on_progress": lambda done, total: update(done, total, ""),
        }  # fmt: skip
        if is_model_file(model):
            from drip.workflow import calibrate_file

            given = {
                "--input-spec": input_spec,
                "--score": score,
                "--class-names": class_names,
                "--labels-file": labels_file,
            }
            if extra := [name for name, value in given.items() if value]:
                raise typer.BadParameter(f"a model file contains {', '.join(extra)}; leave it out")
            policy = calibrate_file(load_model_file(model, weights, threads, provider), data, **how)
        else:
            from drip.workflow import ScoreOptions, calibrate_folder

            if input_spec is None:
                raise typer.BadParameter("a PyTorch model needs --input-spec, such as --input-spec 3x96x96")
            policy = calibrate_folder(
                load_torch_model(model, weights, threads, provider), data, input_spec,
                score=ScoreOptions(**(score or {})), class_names=names, **how,
            )  # fmt: skip
    policy.save(out)
    print_json(policy.to_json()) if json_output else print_policy(policy, out)


def print_policy(policy: Policy, path: Path) -> None:
    """The policy as tables."""
    provenance = policy.provenance
    print_facts(
        f"Policy {path}",
        {
            "rule": policy.rule.name,
            **_target(policy.rule.params),
            "model": f"{provenance.model_digest[:12]}..., layer {provenance.layer}",
            "score": f"{provenance.score['method']}, {provenance.score['heatmap']} heatmap",
            "input": InputSpec.from_json(provenance.input_spec).describe()
            if provenance.input_spec
            else "unknown",
            "classes": ", ".join(provenance.class_names) or f"{policy.n_classes} without names",
            "calibrated on": f"{provenance.n_samples} samples of {provenance.data}",
        },
    )
    if "windows" not in policy.rule.state:
        return
    names = provenance.class_names or tuple(map(str, range(policy.n_classes)))
    print_table(
        "Discarded inside the window",
        ["class", "lower", "upper", "n", "expected keep rate", "note"],
        [
            [
                name,
                f"{window.lower:.4g}" if window.discards else "-",
                f"{window.upper:.4g}" if window.discards else "-",
                str(window.n),
                f"{1 - window.expected_discard:.1%}",
                _note(window),
            ]
            for name, window in zip(names, policy.windows, strict=True)
        ],
    )


def _target(params: JsonObject) -> dict[str, str]:
    """What a rule is asked to keep, by the argument that says so."""
    for name, unit in (("samples_per_hour", "samples per hour"), ("bytes_per_day", "bytes per day")):
        if params.get(name) is not None:
            return {"keeps": f"{params[name]:g} {unit}"}
    rate = params.get("retention")
    return {} if rate is None else {"keeps": f"{rate:.1%} of the stream"}


def _note(window: Window) -> str:
    if window.pooled:
        return "window of all classes together (too few samples)"
    return "" if window.discards else f"never discards ({window.never_because})"
