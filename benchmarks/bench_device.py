"""What score and decision cost a device: a model file beside its plain graph, in ONNX Runtime on one thread.

``DRIP_DATA=folder python benchmarks/bench_device.py`` on an idle machine. Both graphs run in one process on
the same real inputs, one at a time, in a fresh random order in every round. A round runs each graph as often
as a millisecond allows, as one call of the smallest takes less than the clock tells. Weights are random but
MobileNet's and EfficientNet's time does not depend on them. The plain int8 graph is the int8 model file with
the logits as its only output, so both classify with the same nodes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from timing import interleave, require_idle, write
from torch import nn

import drip
from drip.datasets import load
from drip.media import InputSpec
from drip.models import AudioCNN, EfficientNetB0, SmallCNN
from drip.onnx import Settings, export_onnx, quantize
from drip.onnx.prepare import prune

DECISION = ("logits", "predicted_class", "drip_score", "retain")
_N_INPUTS = 16


@dataclass(frozen=True)
class Case:
    """A network with the data set its inputs come from.

    Attributes:
        make: Makes the network.
        dataset: Name of the data set.
        contract: How samples become inputs.
        repetitions: Rounds.
        calls: Calls of each graph in a round.
        limit: Largest ratio of the medians that is accepted in float32.
    """

    make: Callable[[], nn.Module]
    dataset: str
    spec: InputSpec
    repetitions: int
    calls: int
    limit: float


CASES = {
    "efficientnet_b0_224": Case(
        lambda: EfficientNetB0(10), "tomato", InputSpec((3, 224, 224), resize="stretch"), 300, 1, 1.02
    ),
    "audio_cnn_16k": Case(
        lambda: AudioCNN(9), "speech_commands", InputSpec((1, 16_000), "crop", sample_rate_hz=16_000),
        1000, 2, 1.05,
    ),
    "mnist_small_cnn": Case(SmallCNN, "mnist", InputSpec((1, 28, 28)), 2000, 20, 1.25),
}  # fmt: skip
INT8_LIMIT_US = 40.0


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The classifier alone: what leads to the logits."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[1:]
    prune(copy)
    return copy


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session as the device opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def row(model: onnx.ModelProto, names: tuple[str, ...], inputs: np.ndarray, calls: int) -> Callable[[], None]:
    """A function that classifies the next inputs one by one."""
    opened, place = session(model), iter(range(10**12))
    batches = [inputs[index : index + 1] for index in range(len(inputs))]

    def call() -> None:
        for _ in range(calls):
            opened.run(names, {"input": batches[next(place) % len(batches)]})

    return call


def measure(case: Case, scale: float) -> dict[str, list[float]]:
    """Seconds per sample of each repetition, for both graphs in float32 and in int8."""
    torch.manual_seed(0)
    data = load(case.dataset)
    chosen = np.random.default_rng(0).permutation(len(data))[:256].tolist()
    inputs = np.stack(
        [case.spec.prepare(one.data, one.media_type) for one in data.samples(chosen[:_N_INPUTS])]
    )
    with tempfile.TemporaryDirectory() as folder:
        path, int8 = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        export_onnx(case.make().eval(), None, inputs[:2], path, spec=case.spec)
        # random weights: what is timed is the graph, not how well it decides
        settings = Settings(n_calibration=16, min_kappa=-1.0, float_layers=0)
        quantize(path, lambda: data.samples(chosen), int8, settings)
        graphs = {"": onnx.load(path), "int8 ": onnx.load(int8)}
    rows = {}
    for kind, model in graphs.items():
        rows[f"{kind}plain"] = row(plain(model), ("logits",), inputs, case.calls)
        rows[f"{kind}drip"] = row(model, DECISION, inputs, case.calls)
    seconds = interleave(rows, max(5, round(case.repetitions * scale)), warm_up=5)
    return {name: [value / case.calls for value in values] for name, values in seconds.items()}


def summary(case: Case, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Ratio of medians in float32, difference in int8 in microseconds, and whether both are kept."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = median["drip"] / median["plain"]
    more_us = 1e6 * (median["int8 drip"] - median["int8 plain"])
    return {
        "ratio": ratio,
        "ratio_of_minima": min(seconds["drip"]) / min(seconds["plain"]),
        "limit": case.limit,
        "int8_more_us": more_us,
        "int8_limit_us": INT8_LIMIT_US,
        "kept": ratio <= case.limit and more_us <= INT8_LIMIT_US,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=tuple(CASES), help="only this; writes nothing")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the repetitions")
    parser.add_argument("--force", action="store_true", help="time on a busy machine too, and write nothing")
    arguments = parser.parse_args()
    if not arguments.force:
        require_idle()
    torch.set_num_threads(1)
    records = []
    for name in arguments.case or CASES:
        case = CASES[name]
        seconds = measure(case, arguments.scale)
        found = summary(case, seconds)
        print(f"\n{name}: {found['ratio']:.3f} of {case.limit}, of minima {found['ratio_of_minima']:.3f}; "
              f"int8 {found['int8_more_us']:+.1f} us of {INT8_LIMIT_US:.0f}")  # fmt: skip
        for kind, values in seconds.items():
            print(f"{kind:12}{1e6 * statistics.median(values):12.1f} us{1e6 * min(values):12.1f} us")
        versions = {"drip": drip.__version__, "onnxruntime": onnxruntime.__version__}
        records.append({"case": name, **found, "seconds": seconds, **versions})
    if not (arguments.force or arguments.case):
        write("device", records)


if __name__ == "__main__":
    main()
