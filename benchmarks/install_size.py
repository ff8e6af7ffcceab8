"""What a board installs: size of the wheel and of a clean environment, import times, resident memory.

``python benchmarks/install_size.py`` builds the wheel, installs it with its ``device`` extra from the
package registry into a new virtual environment in a temporary folder, compiles all to bytecode and measures
there. Writes ``results/install_size.jsonl``; ``--force`` does so on a busy machine too, for sizes and memory
do not depend on it, and leaves the import times out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from timing import RESULTS, commit, machine, require_idle

ROOT = Path(__file__).parents[1]
LIMITS = {"installed_mb": 200.0, "wheel_mb": 3.0, "import_s": 0.4}
MODULES = ("drip", "drip.onnx")
_REPETITIONS = 15

BARE = """
import sys, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
shape = [1, *session.get_inputs()[0].shape[1:]]
for seed in range(50):
    session.run(None, {"input": np.random.default_rng(seed).random(shape, dtype=np.float32)})
"""
SCORED = """
import sys, numpy as np
from drip.onnx import OnnxScorer
scorer = OnnxScorer(sys.argv[1])
for seed in range(50):
    scorer.score(np.random.default_rng(seed).random((1, *scorer.contract.shape), dtype=np.float32))
"""
RUN = """
import sys
from drip.cli import main
sys.argv = ["drip", "run", sys.argv[1], "--source", sys.argv[2], "--store", sys.argv[3], "--batch-size", "1"]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
"""
_PEAK = """
import pathlib
print(next(l.split()[1] for l in pathlib.Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l))
"""


def main() -> None:
    """Build, install, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="on a busy machine too, without import times")
    arguments = parser.parse_args()
    if not arguments.force:
        require_idle()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(Path(folder), timed=not arguments.force)
    for name, limit in LIMITS.items():
        if name in record:
            print(f"{name}: {record[name]} (limit {limit})")
    print(f"resident MiB: {record['resident_mib']}")
    with (RESULTS / "install_size.jsonl").open("w") as stream:
        stream.write(
            json.dumps({**record, "limits": LIMITS, "commit": commit(), "machine": machine()}) + "\n"
        )


def measure(folder: Path, *, timed: bool) -> dict[str, Any]:
    """All figures of a fresh environment below a folder."""
    command([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)])
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    command([sys.executable, "-m", "venv", str(folder / "venv")])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command([*pip, "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[device]"])
    packages = Path(
        command([str(python), "-c", "import sysconfig as s; print(s.get_path('purelib'))"]).strip()
    )
    command([str(python), "-m", "compileall", "-q", str(packages)])
    listed = json.loads(command([str(python), "-m", "pip", "list", "--format", "json"]))
    sizes = {path.name: size_of(path) for path in packages.iterdir()}
    ours = {name: size for name, size in sizes.items() if not name.startswith(("pip", "setuptools"))}
    record: dict[str, Any] = {
        "wheel_mb": round(wheel.stat().st_size / 1e6, 2),
        "installed_mb": round(sum(ours.values()) / 1e6, 1),
        "largest_mb": {
            name: round(size / 1e6, 1) for name, size in sorted(ours.items(), key=lambda item: -item[1])[:8]
        },
        "packages": {one["name"]: one["version"] for one in listed if one["name"] != "pip"},
        "resident_mib": resident(python, folder),
    }
    if timed:
        record["imports_s"] = {module: imports(python, module) for module in MODULES}
        record["import_s"] = max(statistics.median(times) for times in record["imports_s"].values())
    return record


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def imports(python: Path, module: str) -> list[float]:
    """Seconds that importing a module takes in fresh interpreters, without their own start."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return [float(command([str(python), "-c", code])) for _ in range(_REPETITIONS)]


def resident(python: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Peak resident MiB of plain ONNX Runtime, of the scorer and of a run, by model, on real digits."""
    prepared = json.loads(
        command([sys.executable, "-c", _PREPARE, str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    )
    found = {}
    for name, path in prepared["models"].items():
        store = str(folder / f"{name}.db")
        found[name] = {
            "onnxruntime": peak_mib(python, BARE, path),
            "scorer": peak_mib(python, SCORED, path),
        }
        if name == "mnist_small_cnn":
            found[name]["run"] = peak_mib(python, RUN, path, prepared["digits"], store)
    return found


_PREPARE = """
import json, pathlib, sys
import numpy as np, torch
from drip.datasets import load_mnist
from drip.onnx import export_onnx, set_policy
from drip.onnx import OnnxScorer
from drip.media import InputSpec
from drip.models import AudioCNN, EfficientNetB0, SmallCNN
from drip.policy import Policy, Provenance
root, models = pathlib.Path(sys.argv[1]), {}
torch.manual_seed(0)
for name, make, shape in (
    ("mnist_small_cnn", SmallCNN, (1, 28, 28)),
    ("audio_cnn_16k", AudioCNN, (1, 16000)),
    ("efficientnet_b0_224", EfficientNetB0, (3, 224, 224)),
):
    path = root / f"{name}.onnx"
    example = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    export_onnx(make().eval(), None, example, path, contract=InputSpec(shape))
    models[name] = str(path)
data = load_mnist()
(root / "digits").mkdir()
for sample in data.samples(range(500)):
    (root / "digits" / f"{sample.id}.png").write_bytes(sample.data)
scorer = OnnxScorer(models["mnist_small_cnn"])
seen = scorer.score(data.inputs(range(500)))
policy = Policy.fit(seen.scores, seen.classes, n_classes=10, retention=0.6,
    provenance=Provenance(model_digest=scorer.digest, score=scorer.score_definition))
set_policy(models["mnist_small_cnn"], policy)
print(json.dumps({"models": models, "digits": str(root / "digits")}))
"""


def peak_mib(python: Path, code: str, *arguments: str) -> float:
    """Peak resident size of a fresh interpreter that runs some code, in MiB."""
    printed = command([str(python), "-c", code + _PEAK, *arguments])
    return round(int(printed.split()[-1]) / 1024, 1)


def command(words: list[str], env: dict[str, str] | None = None) -> str:
    """What a command prints."""
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(words)[:200]} failed: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
