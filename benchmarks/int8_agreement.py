"""How far int8 files agree with their float32 parents, on held-out samples of real data.

``DRIP_DATA=folder python benchmarks/int8_agreement.py [mnist|speech_commands|tomato ...]`` trains each
network, calibrates its limits, quantises it with the calibration samples and compares the decisions on at
least 2,000 samples that neither training nor calibration saw. One line per network and discard fraction is
appended to ``results/int8_agreement.jsonl``. Training decides nothing here but the weights: a few epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from timing import RESULTS, commit, machine
from torch import Tensor, nn

import drip
from drip.datasets import AudioDataset, ImageDataset, load, split_rows
from drip.media import InputSpec
from drip.models import AudioCNN, MobileNetV2, SmallCNN, load_features
from drip.onnx import OnnxScorer, Settings, export_onnx, quantize, set_policy
from drip.onnx.quantization import compare, retained_by
from drip.pipeline import observe
from drip.policy import Policy, Provenance
from drip.training import Examples, TrainConfig, train
from drip.types import Observations
from drip.windows import complement

DISCARD_FRACTIONS = (0.25, 0.39)
LEAST_TESTED = 2000
_SEED = 0


@dataclass(frozen=True)
class Case:
    """A network on a data set.

    Attributes:
        dataset: Name of the data set.
        shares: Of training, calibration and test; the rest is not used.
        contract: How samples become inputs; None takes the set's own.
        make: Trains the network on inputs and labels.
        wanted: Least kappa on the test samples.
    """

    dataset: str
    shares: tuple[float, ...]
    spec: InputSpec | None
    make: Callable[[np.ndarray, np.ndarray], nn.Module]
    wanted: float


class Level(nn.Module):
    """Scales every clip to one root mean square before the network: loudness says nothing of the word."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, n_classes) of waveforms (N, 1, n_samples)."""
        level = x.square().mean((1, 2), keepdim=True).sqrt()
        logits: Tensor = self.network(x * (0.1 / (level + 1e-4)))
        return logits


def small_cnn(inputs: np.ndarray, labels: np.ndarray) -> nn.Module:
    """The MNIST network."""
    config = TrainConfig(epochs=2, learning_rate=3e-2, seed=_SEED)
    return train(SmallCNN, Examples(inputs, labels), config=config)


def audio_cnn(inputs: np.ndarray, labels: np.ndarray) -> nn.Module:
    """The network for raw audio; every clip also appears four times shifted by up to 0.1 s."""
    rng = np.random.default_rng(_SEED)
    shifted = np.stack([np.roll(clip, rng.integers(-1600, 1601), -1) for clip in np.repeat(inputs, 4, 0)])
    config = TrainConfig(epochs=5, batch_size=16, learning_rate=3e-3, seed=_SEED)
    examples = Examples(np.concatenate([inputs, shifted]), np.concatenate([labels, np.repeat(labels, 4)]))
    return train(lambda: Level(AudioCNN(9)), examples, config=config)


def mobilenet(inputs: np.ndarray, labels: np.ndarray) -> nn.Module:
    """MobileNetV2 with its ImageNet weights and a new linear head."""
    model = MobileNetV2(10, first_expansion=True).eval()
    load_features(model, Path(os.environ["DRIP_DATA"]) / "mobilenet_v2_imagenet_features.npz")
    with torch.inference_mode():
        parts = [
            model.features(torch.from_numpy(inputs[row : row + 16])).mean((2, 3))
            for row in range(0, len(inputs), 16)
        ]
    config = TrainConfig(epochs=20, learning_rate=1e-3, seed=_SEED)
    head = train(lambda: nn.Linear(1280, 10), Examples(torch.cat(parts).numpy(), labels), config=config)
    model.classifier[1].load_state_dict(head.state_dict())
    return model


# the photographs' own size: larger ones would be made up
IMAGENET = InputSpec((3, 128, 128), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CASES = {
    "mnist": Case("mnist", (0.2, 0.15, 0.15, 0.5), None, small_cnn, 0.90),
    "speech_commands": Case("speech_commands", (0.24, 0.18, 0.58), None, audio_cnn, 0.90),
    "tomato": Case("tomato", (0.28, 0.25, 0.47), IMAGENET, mobilenet, 0.85),
}


def run(name: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """One record per discard fraction."""
    case = CASES[name]
    data = load(case.dataset)
    spec = case.spec or data.spec
    rows = split_rows(len(data), case.shares, _SEED, data.groups)[:3]
    trained, calibrated, tested = rows
    assert len(tested) >= LEAST_TESTED
    inputs = np.stack([spec.prepare(s.data, s.media_type) for s in data.samples(trained.tolist())])
    model = case.make(inputs, data.labels[trained])
    with tempfile.TemporaryDirectory() as folder:
        plain, parent, int8 = (Path(folder) / f"{part}.onnx" for part in ("plain", "parent", "int8"))
        export_onnx(model, None, inputs[:2], plain, spec=spec)
        del inputs
        scorer = OnnxScorer(plain)
        fit, test = (observed(data, part, scorer) for part in (calibrated, tested))
        labels = data.labels[tested]
        for fraction in DISCARD_FRACTIONS:
            provenance = Provenance(model_digest=scorer.digest, score=scorer.score_definition)
            policy = Policy.fit(
                fit.scores, fit.classes, n_classes=scorer.n_classes, retention=complement(fraction),
                provenance=provenance,
            )  # fmt: skip
            set_policy(plain, policy, out=parent)
            report = quantize(
                parent, lambda: data.samples(calibrated.tolist()), int8, settings, on_stage=show
            )
            found = observed(data, tested, OnnxScorer(int8))
            written = report.metadata.policy
            assert written is not None
            agreement = compare(test, retained_by(policy, test), found, retained_by(written, found))
            # what is needed at one fraction is kept at the others
            recipe = report.metadata.quantization
            settings = replace(settings, float_layers=recipe["float_layers"])
            yield {
                "case": name,
                "discard_fraction": fraction,
                "n_trained": len(trained),
                "n_calibrated": len(calibrated),
                "seed": _SEED,
                "wanted_kappa": case.wanted,
                "test": agreement.to_json(),
                "accuracy_float": float((test.classes == labels).mean()),
                "accuracy": float((found.classes == labels).mean()),
                "recipe": recipe,
                "held_out_kappa": {name: one.kappa for name, one in report.agreements.items()},
                "attempts": {str(layers): kappa for layers, kappa in report.attempts.items()},
                "bytes_float": parent.stat().st_size,
                "bytes": int8.stat().st_size,
            }


def observed(data: ImageDataset | AudioDataset, rows: np.ndarray, scorer: OnnxScorer) -> Observations:
    """Observations of some rows, prepared as the file says."""
    return observe(data.samples(rows.tolist()), scorer, prepare=scorer.spec.prepare, batch_size=32)


def show(stage: str) -> None:
    """A stage, for who waits."""
    print(f"  {stage}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="which; default all")
    parser.add_argument("--calibration", default="mse", choices=("mse", "percentile", "minmax"))
    parser.add_argument("--activations", default="uint8", choices=("uint8", "int8"))
    parser.add_argument("--per-tensor", action="store_true", help="one scale for all channels of a weight")
    parser.add_argument("--float-layers", type=int, help="first layers in float32; default as needed")
    parser.add_argument("--margin", type=float, default=0.03, help="asked for above the wanted kappa")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shared = {
        "commit": commit(), "machine": machine(), "drip": drip.__version__, "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }  # fmt: skip
    for name in arguments.cases or CASES:
        tries = arguments.float_layers is not None
        settings = Settings(
            calibration=arguments.calibration,
            activations=arguments.activations,
            per_channel=not arguments.per_tensor,
            float_layers=arguments.float_layers,
            min_kappa=-1.0 if tries else CASES[name].wanted + arguments.margin,
        )
        for record in run(name, settings):
            test = record["test"]
            recipe = record["recipe"]
            print(
                f"{name} {record['discard_fraction']}: kappa {test['kappa']:.3f}, retention "
                f"{test['retention_float']:.3f} -> {test['retention']:.3f}, {recipe['windows']} windows, "
                f"{recipe['float_layers']} layers in float32, n = {test['n']}",
                flush=True,
            )
            with (RESULTS / "int8_agreement.jsonl").open("a") as stream:
                stream.write(json.dumps({**record, **shared}) + "\n")


if __name__ == "__main__":
    main()
