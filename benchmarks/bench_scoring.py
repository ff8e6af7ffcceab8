"""What a score costs beside the classification: time and memory against a plain forward and two peers.

Run on an idle machine: ``python benchmarks/bench_scoring.py``. One torch thread; every repetition
runs all rows of a case in a fresh random order; ratios of medians and of minima are printed and the
raw timings of all cases written to ``results/scoring.jsonl``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import interleave, require_idle, write
from torch import nn

import drip
from drip.models import AudioCNN, EfficientNetB0, SmallCNN
from drip.scoring import TorchScorer

ROWS = ("plain", "drip", "captum", "torchcam")


@dataclass(frozen=True)
class Case:
    """A model with a batch.

    Attributes:
        make: Makes the model with random weights.
        shape: Shape of the batch.
        repetitions: How often each row runs.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    repetitions: int


CASES = {
    "efficientnet_b0_224_b1": Case(EfficientNetB0, (1, 3, 224, 224), 100),
    "efficientnet_b0_224_b32": Case(EfficientNetB0, (32, 3, 224, 224), 12),
    "audio_cnn_16k_b1": Case(AudioCNN, (1, 1, 16_000), 1000),
    "audio_cnn_16k_b32": Case(AudioCNN, (32, 1, 16_000), 60),
    "mnist_small_cnn_b1": Case(SmallCNN, (1, 1, 28, 28), 2000),
    "mnist_small_cnn_b32": Case(SmallCNN, (32, 1, 28, 28), 500),
}


def make_row(row: str, model: nn.Module, batch: np.ndarray) -> Callable[[], Any]:
    """A function that does once what the row stands for, from a numpy batch on."""

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return model(torch.from_numpy(batch)).argmax(1)

    if row == "plain":
        return plain
    if row == "drip":
        scorer = TorchScorer(model, example=batch)
        return lambda: scorer.score(batch)
    if row == "captum":
        cam = importlib.import_module("captum.attr").LayerGradCam(model, model.features)

        def by_captum() -> torch.Tensor:
            maps = cam.attribute(torch.from_numpy(batch), target=plain(), relu_attributions=True)
            return maps.detach().flatten(1).mean(1)

        return by_captum
    extractor = importlib.import_module("torchcam.methods").GradCAM(model, "features")

    def by_torchcam() -> torch.Tensor:
        logits = model(torch.from_numpy(batch))
        (maps,) = extractor(logits.argmax(1).tolist(), logits, normalized=False)
        return maps.flatten(1).mean(1)

    return by_torchcam


def by_hand(model: AudioCNN, batch: np.ndarray) -> Callable[[], Any]:
    """The least Python that gives the score of this one network: what no general scorer can undercut.

    No check, no restored state, no observations; weights folded once and never looked at again.
    """
    first, last = model.classifier[2], model.classifier[4]
    n_maps, n_positions = 128, first.in_features // 128
    folded = first.weight.detach().reshape(-1, n_maps, n_positions).mean(2).numpy()
    rows = last.weight.detach().numpy()

    def once() -> np.ndarray:
        kept: list[torch.Tensor] = []
        hooks = [
            model.features.register_forward_hook(lambda _module, _inputs, output: kept.append(output)),
            last.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0])),
        ]
        with torch.no_grad():
            logits = model(torch.from_numpy(batch)).numpy()
        for hook in hooks:
            hook.remove()
        maps, hidden = kept[0].numpy(), kept[1].numpy()
        weights = (rows[logits.argmax(1)] * (hidden > 0)) @ folded
        return np.maximum((weights[:, None] @ maps)[:, 0], 0).sum(1) / n_positions

    return once


def prepare(case: Case) -> tuple[nn.Module, np.ndarray]:
    """Model in eval mode and batch, always the same."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = case.make().eval()
    return model, np.random.default_rng(0).normal(size=case.shape).astype(np.float32)


def check_agreement(rows: dict[str, Callable[[], Any]]) -> None:
    """The peers compute the same score, so the comparison is one of like with like."""
    expected = rows["drip"]().scores
    for peer in ("captum", "torchcam", "by hand"):
        if peer in rows:
            found = np.asarray(rows[peer]())
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), peer


def measure_times(name: str, rows: tuple[str, ...], scale: float) -> dict[str, list[float]]:
    """Seconds of each repetition by row, rows interleaved in random order."""
    case = CASES[name]
    model, batch = prepare(case)
    functions: dict[str, Callable[[], Any]] = {}
    for row in rows:
        # torchcam's permanent hooks would slow the other rows down: it gets a model of its own
        functions[row] = make_row(row, prepare(case)[0] if row == "torchcam" else model, batch)
    if isinstance(model, AudioCNN):
        functions["by hand"] = by_hand(model, batch)
    check_agreement(functions)
    return interleave(functions, max(3, round(case.repetitions * scale)))


def measure_memory(name: str, row: str) -> dict[str, float]:
    """Growth of the peak resident memory in MiB, in a fresh process: by the first call, and by later ones."""
    command = [sys.executable, __file__, "--memory-of", name, row]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def print_memory_growth(name: str, row: str) -> None:
    """Child of :func:`measure_memory`; the first call of drip chooses layer and plan."""
    model, batch = prepare(CASES[name])
    before = peak_mib()
    function = make_row(row, model, batch)
    function()
    first = peak_mib() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = peak_mib()
    for _ in range(3):
        function()
    print(json.dumps({"first": first, "later": peak_mib() - before}))


def peak_mib() -> float:
    """Peak resident size of this process; getrusage would report the parent's where that is larger."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def print_case(name: str, seconds: dict[str, list[float]], memory: dict[str, dict[str, float]]) -> None:
    """A table of one case."""
    plain = seconds["plain"]
    print(
        f"\n{name}\n{'':10}{'median ms':>11}{'min ms':>9}{'x median':>10}{'x min':>8}"
        f"{'first +MiB':>12}{'later +MiB':>12}"
    )
    for row, values in seconds.items():
        ratio = statistics.median(values) / statistics.median(plain)
        grown = "".join(f"{value:12.1f}" for value in memory.get(row, {}).values())
        print(
            f"{row:10}{1e3 * statistics.median(values):11.3f}{1e3 * min(values):9.3f}"
            f"{ratio:10.3f}{min(values) / min(plain):8.3f}{grown}"
        )


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case", action="append", choices=tuple(CASES), help="only this case, and write nothing; repeatable"
    )
    parser.add_argument(
        "--row",
        action="append",
        choices=ROWS,
        help="only this beside plain and drip, and write nothing; repeatable",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the repetitions")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--force", action="store_true", help="time on a busy machine too, and write nothing")
    parser.add_argument("--memory-of", nargs=2, metavar=("CASE", "ROW"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory_growth(*arguments.memory_of)
        return
    if not arguments.force:
        require_idle()
    records = []
    rows = ("plain", "drip", *(arguments.row or ROWS[2:]))
    for name in arguments.case or CASES:
        seconds = measure_times(name, rows, arguments.scale)
        memory = {} if arguments.no_memory else {row: measure_memory(name, row) for row in rows}
        print_case(name, seconds, memory)
        versions = {"drip": drip.__version__, "torch": torch.__version__}
        records.append({"case": name, "seconds": seconds, "growth_mib": memory, **versions})
    if not (arguments.force or arguments.case or arguments.row):
        write("scoring", records)


if __name__ == "__main__":
    main()
