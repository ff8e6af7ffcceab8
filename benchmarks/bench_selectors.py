"""What a decision costs beside EfficientNet-B0's inference at 224 pixels, and how large the states become.

``DRIP_DATA=folder python benchmarks/bench_selectors.py`` on an idle machine. Real pictures of tomato leaves
run through the model file in ONNX Runtime on one thread; then every rule, calibrated on half of what came
out, decides on the other half one by one. Weights are random: time depends on sizes alone. Logits are drawn
for the rules, as random weights predict few of the classes, and a rule remembers what each class needs.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from timing import interleave, parse_arguments, write

import drip
from drip.datasets import load
from drip.media import InputSpec
from drip.models import EfficientNetB0
from drip.onnx import OnnxScorer, export_onnx
from drip.rules import available, create
from drip.store.codec import steady_json
from drip.types import Observations

N_SAMPLES, REPETITIONS = 1200, 30
LIMIT_SHARE, LIMIT_STATE_BYTES = 0.05, 256_000


def observe() -> tuple[Observations, OnnxScorer, np.ndarray]:
    """Observations of real pictures, the scorer, and some of its inputs."""
    torch.manual_seed(0)
    data, spec = load("tomato"), InputSpec((3, 224, 224), resize="stretch")
    chosen = np.random.default_rng(0).permutation(len(data))[:N_SAMPLES].tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        inputs = np.stack([spec.prepare(one.data, one.media_type) for one in data.samples(chosen[:16])])
        model = EfficientNetB0(10).eval()
        export_onnx(model, None, inputs[:2], path, spec=spec, contrast=True)
        scorer = OnnxScorer(path)
        parts = [scorer.score(spec.prepare(one.data, one.media_type)[None]) for one in data.samples(chosen)]
    found = Observations.concatenate(parts)
    logits = np.random.default_rng(0).normal(size=found.logits.shape)
    return replace(found, logits=logits, classes=logits.argmax(axis=1)), scorer, inputs


def main() -> None:
    """Time every rule and the inference in one process, print, write."""
    arguments = parse_arguments(__doc__)
    torch.set_num_threads(1)
    observations, scorer, inputs = observe()
    half = N_SAMPLES // 2
    calibration, stream = observations[:half], observations[half:]
    rules = {}
    for name in sorted(available()):
        if create(name).needs <= scorer.provides:
            rules[name] = create(name, retention=0.3).calibrate(calibration)
            rules[name].decide_many(stream)  # fills what a rule remembers
    rows = [stream[row] for row in range(50)]
    variants = {
        name: lambda rule=rule: [rule.decide(row) for row in rows]  # type: ignore[misc]  # a default binds the rule
        for name, rule in rules.items()
    }
    variants["inference"] = lambda: [scorer.score(inputs[row : row + 1]) for row in range(4)]
    seconds = interleave(variants, REPETITIONS)
    inference_s = statistics.median(seconds.pop("inference")) / 4
    records = []
    for name, values in seconds.items():
        decide_s = statistics.median(values) / len(rows)
        state_bytes = len(steady_json("state", rules[name].state()))
        kept = decide_s <= LIMIT_SHARE * inference_s and state_bytes <= LIMIT_STATE_BYTES
        print(f"{name:24}{1e6 * decide_s:8.1f} us {decide_s / inference_s:8.2%}{state_bytes:9} bytes"
              f"{'' if kept else '  too much'}")  # fmt: skip
        records.append(
            {
                "rule": name,
                "decide_us": 1e6 * decide_s,
                "inference_us": 1e6 * inference_s,
                "state_bytes": state_bytes,
                "seconds": [value / len(rows) for value in values],
                "drip": drip.__version__,
            }
        )
    if not arguments.force:
        write("selectors", records)


if __name__ == "__main__":
    main()
