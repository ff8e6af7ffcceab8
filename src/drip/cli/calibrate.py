"""`drip calibrate`: a policy from a model and a folder of samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack

import typer

from drip.cli.arguments import (
    JsonOption,
    ModelArgument,
    ThreadsOption,
    WeightsOption,
    is_model_file,
    keep_rate,
    load_model_file,
    parse_names,
    parse_numbers,
    parse_rule_options,
    parse_shape,
    require_writable,
)
from drip.cli.output import print_facts, print_json, print_table, progress_bar
from drip.media import Resize
from drip.windows import Method

if TYPE_CHECKING:
    from drip.policy import Policy


class How(TypedDict):
    """How a policy is made, whatever the model."""

    rule: str
    retention: float | None
    method: Method | None
    rule_options: Mapping[str, Any]
    on_progress: Callable[[int, int], None]


def calibrate(
    context: typer.Context,
    model: ModelArgument,
    *,
    data: Annotated[
        Path, typer.Option(help="Folder of samples that resemble production; labels are not used.")
    ],
    shape: Annotated[
        str | None,
        typer.Option(
            help="Shape of one input: channels,height,width or channels,samples. This and what follows "
            "down to the class names are in a model file."
        ),
    ] = None,
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option(help="Where to write the policy.")] = Path("policy.json"),
    rule: Annotated[
        str,
        typer.Option(
            help="Selection rule: drip, margin, mixed-margin, adaptive-margin, adaptive-random, entropy, "
            "least-confidence, energy, gradient-norm, soft-margin, margin-window, coverage, novelty, "
            "moderate, information-gain, vessal, variable-uncertainty, lowest-drip, lowest-contrast, "
            "class-balanced-random, random, reservoir, max-logit-window, inverse-drip or keep-all; another "
            "package's by its name."
        ),
    ] = "drip",
    keep: Annotated[
        float | None,
        typer.Option(
            help="Keep rate, in (0, 1); 0.6 unless an option of the rule targets samples or bytes per time."
        ),
    ] = None,
    dpw: Annotated[
        float | None,
        typer.Option(help="The paper's Discard Percentage Window: one minus --keep."),
    ] = None,
    rule_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Further argument of the rule; repeatable. The adaptive rules take samples_per_hour, "
            "bytes_per_day, frozen, exploration, floor, ceiling, gates and seed.",
        ),
    ] = None,
    window: Annotated[
        Method | None,
        typer.Option(
            help="Where the window of a rule with windows lies: *min_std*, the densest run of scores "
            "(the default), or *histogram_peak*."
        ),
    ] = None,
    mean: Annotated[str, typer.Option(help="Mean per channel that training subtracted.")] = "0",
    std: Annotated[str, typer.Option(help="Standard deviation per channel that training divided by.")] = "1",
    resize: Annotated[
        Resize, typer.Option(help="Other sizes: *exact* refuses, *stretch* resizes, *crop* cuts the middle.")
    ] = "exact",
    sample_rate: Annotated[int, typer.Option(help="Sample rate of audio in Hz.")] = 0,
    layer: Annotated[str | None, typer.Option(help="Target layer by name; found when not given.")] = None,
    heatmap: Annotated[str, typer.Option(help="*raw* or *normalised* heatmap.")] = "raw",
    cam: Annotated[
        str, typer.Option(help="Class activation map: gradcam, hirescam, gradcam++, layercam.")
    ] = "gradcam",
    class_names: Annotated[str, typer.Option(help="Names separated by commas, in the order of logits.")] = "",
    threads: ThreadsOption = 1,
    json_output: JsonOption = False,
) -> None:
    """Find the limits of every class and write them as a policy.

    Example: drip calibrate model.onnx --data frames/ --keep 0.6

    Example: drip calibrate mymodel:build --weights w.pt --data frames/ --shape 3,96,96 --keep 0.6

    Example: drip calibrate model.onnx --data frames/ --rule adaptive-margin --rule-option samples_per_hour=60
    """
    names = parse_names(class_names)
    asked = Asked(shape, mean, std, resize, sample_rate, layer, heatmap, cam, names)
    require_writable(out, model, weights)
    with progress_bar("scoring") as update:
        calibrate_model = asked.of_file if is_model_file(model) else asked.of_torch
        policy = calibrate_model(
            model, weights, threads, data, rule=rule, retention=keep_rate(context, keep, dpw), method=window,
            rule_options=parse_rule_options(rule_option or []),
            on_progress=lambda done, total: update(done, total, ""),
        )  # fmt: skip
    policy.save(out)
    print_json(policy.to_json()) if json_output else print_policy(policy, out)


@dataclass(frozen=True, slots=True)
class Asked:
    """Options that say how a PyTorch model takes its inputs and is scored; a model file knows all of them."""

    shape: str | None = None
    mean: str = "0"
    std: str = "1"
    resize: Resize = "exact"
    sample_rate: int = 0
    layer: str | None = None
    heatmap: str = "raw"
    cam: str = "gradcam"
    class_names: tuple[str, ...] = ()

    def of_file(
        self, model: str, weights: Path | None, threads: int, data: Path, **how: Unpack[How]
    ) -> Policy:
        """The policy of a model file."""
        from drip.workflow import calibrate_file

        if self != Asked():
            given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise typer.BadParameter(f"these are in the model file: {options}; leave them out")
        return calibrate_file(load_model_file(model, weights, threads), data, **how)

    def of_torch(
        self, model: str, weights: Path | None, threads: int, data: Path, **how: Unpack[How]
    ) -> Policy:
        """The policy of a PyTorch model."""
        from drip.media import InputSpec
        from drip.models import load_model
        from drip.workflow import ScoreOptions, calibrate_folder

        if self.shape is None or threads != 1:
            raise typer.BadParameter("a PyTorch model needs --shape, and --threads is for model files")
        shape = parse_shape(self.shape)
        spec = InputSpec(
            shape, self.resize, parse_numbers(self.mean), parse_numbers(self.std), self.sample_rate
        )
        return calibrate_folder(
            load_model(model, weights), data, spec, class_names=self.class_names,
            score=ScoreOptions(self.layer, self.heatmap, self.cam), **how,
        )  # fmt: skip


def print_policy(policy: Policy, path: Path) -> None:
    """The policy for people."""
    provenance = policy.provenance
    print_facts(
        f"Policy {path}",
        {
            "rule": policy.rule.name,
            "model": f"{provenance.model_digest[:12]}..., layer {provenance.layer}",
            "score": f"{provenance.score['method']}, {provenance.score['heatmap']} heatmap",
            "calibrated on": f"{provenance.n_samples} samples of {provenance.data}",
        },
    )
    if "windows" not in policy.rule.state:
        return
    names = provenance.class_names or tuple(map(str, range(policy.n_classes)))
    print_table(
        "Discarded between the limits",
        ["class", "lower", "upper", "n", "expected discard", "note"],
        [
            [
                name,
                f"{window.lower:.4g}" if window.discards else "-",
                f"{window.upper:.4g}" if window.discards else "-",
                str(window.n),
                f"{window.expected_discard:.1%}",
                f"never discards ({window.never_because})" if window.never_because else "",
            ]
            for name, window in zip(names, policy.windows, strict=True)
        ],
    )
