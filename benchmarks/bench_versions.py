"""What this version costs in time beside an earlier one: both score the same inputs in one process, interleaved.

``python benchmarks/bench_versions.py --old 902dee4`` on an idle machine; it needs the repository's history. Each
version exports its own file of the same network. A round runs each version as often as a millisecond allows, in a
random order; the ratio of a round is paired, and the median of these ratios is reported.
"""

from __future__ import annotations

import argparse
import importlib
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from timing import interleave, require_idle, write

from drip.models import AudioCNN, EfficientNetB0, SmallCNN

ROOT = Path(__file__).parent.parent
# Network, shape of an input, rounds, calls in a round, largest accepted ratio
CASES: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...], int, int, float]] = {
    "efficientnet_b0_224": (lambda: EfficientNetB0(10), (3, 224, 224), 200, 1, 1.02),
    "audio_cnn_16k": (lambda: AudioCNN(9), (1, 16_000), 500, 2, 1.05),
    "mnist_small_cnn": (SmallCNN, (1, 28, 28), 1000, 20, 1.05),
}
MOST_LOADING_MS = 150.0


@dataclass
class Version:
    """One version of the package, with the modules that it has imported."""

    source: Path
    modules: dict[str, ModuleType] = field(default_factory=dict)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this version the one that ``import drip`` finds."""
        others = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_ours(name)}
        sys.modules.update(self.modules)
        sys.path.insert(0, str(self.source))
        try:
            yield
        finally:
            sys.path.remove(str(self.source))
            self.modules = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_ours(name)}
            sys.modules.update(others)


def _is_ours(name: str) -> bool:
    return name == "drip" or name.startswith("drip.")


def extracted(commit: str, folder: Path) -> Path:
    """The sources of a commit."""
    command = ["git", "archive", commit, "src"]
    archive = subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "src"


def scorers(version: Version, network: torch.nn.Module, x: np.ndarray, path: Path) -> dict[str, Any]:
    """A scorer of the network and one of its file, and what loading the file takes."""
    with version.active():
        onnx = importlib.import_module("drip.onnx")
        scoring = importlib.import_module("drip.scoring")
        onnx.export_onnx(network, None, x[:2], path)
        file, found = onnx.OnnxScorer(path), scoring.TorchScorer(network, example=x[:2])
        file.score(x[:1])
        found.score(x[:1])
    return {"file": file, "torch": found, "load": lambda: onnx.OnnxScorer(path)}


def compare(name: str, old: Version, new: Version, folder: Path) -> list[dict[str, Any]]:
    """Median paired ratios for one network."""
    make, shape, rounds, calls, limit = CASES[name]
    torch.manual_seed(0)
    network = make().eval()
    x = np.random.default_rng(0).uniform(size=(16, *shape)).astype(np.float32)
    both = {
        label: scorers(version, network, x, folder / f"{name}-{label}.onnx")
        for label, version in (("old", old), ("new", new))
    }
    records = []
    for kind in ("file", "torch"):

        def run(label: str, kind: str = kind) -> Callable[[], None]:
            scorer = both[label][kind]

            def repeat() -> None:
                for index in range(calls):
                    scorer.score(x[index % len(x)][None])

            return repeat

        seconds = interleave({label: run(label) for label in both}, rounds)
        ratio = statistics.median(b / a for a, b in zip(seconds["old"], seconds["new"], strict=True))
        records.append({
            "network": name, "what": kind, "median_paired_ratio": ratio, "limit": limit, "ok": ratio <= limit,
            "old_ms": 1e3 * statistics.median(seconds["old"]) / calls,
            "new_ms": 1e3 * statistics.median(seconds["new"]) / calls,
        })  # fmt: skip
    loading = {
        label: _loader(version, both[label]["load"]) for label, version in (("old", old), ("new", new))
    }
    seconds = interleave(loading, 15)
    slower = 1e3 * statistics.median(b - a for a, b in zip(seconds["old"], seconds["new"], strict=True))
    records.append({
        "network": name, "what": "loading", "slower_ms": slower, "limit_ms": MOST_LOADING_MS,
        "ok": slower <= MOST_LOADING_MS,
    })  # fmt: skip
    return records


def _loader(version: Version, load: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with version.active():
            load()

    return run


def main() -> None:
    """Compare all networks and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", default="902dee4", help="commit of the earlier version (default: 902dee4)")
    parser.add_argument("--force", action="store_true", help="time on a busy machine too, and write nothing")
    given = parser.parse_args()
    if not given.force:
        require_idle()
    torch.set_num_threads(1)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        old, new = Version(extracted(given.old, Path(folder))), Version(ROOT / "src")
        for name in CASES:
            for record in compare(name, old, new, Path(folder)):
                print(record)
                records.append({**record, "old": given.old})
    if not given.force:
        write("versions", records)


if __name__ == "__main__":
    main()
