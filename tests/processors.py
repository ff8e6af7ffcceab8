"""Runs one model file on emulated processors and records whether they decide as this machine does.

    python tests/processors.py --work build/processors

It needs Debian's ``apt-get`` and ``dpkg``, downloads an emulator, an aarch64 Python and aarch64 wheels into the
work folder, and changes nothing outside it. The records are ``tests/records/processors.jsonl``;
``tests/onnx/test_processors.py`` checks them. About ten minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
RECORDS = Path(__file__).parent / "records" / "processors.jsonl"
N_SAMPLES = 400
NEAR = 1e-5
"""A score this close to a window's bound, as a part of the window's width, may be decided either way."""

# By name: the emulator, its name of the processor, and whether the interpreter is the aarch64 one. Haswell has
# AVX2 but no VNNI, Nehalem no AVX; A72 is the Raspberry Pi 4, A76 the Raspberry Pi 5 with dot products.
PROCESSORS = {
    "Haswell": ("qemu-x86_64-static", "Haswell-noTSX"),
    "Nehalem": ("qemu-x86_64-static", "Nehalem"),
    "Cortex-A72": ("qemu-aarch64-static", "cortex-a72"),
    "Cortex-A76": ("qemu-aarch64-static", "cortex-a76"),
}
FILES = ("float", "int8")

# What a board with one such core says in /proc/cpuinfo: part, revision, features. ONNX Runtime chooses its kernels by
# it, and crashes on the topology of an x86 machine that the emulator would show instead.
_CORES = {
    "Cortex-A72": ("0xd08", "0x0", "3", "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"),
    "Cortex-A76": (
        "0xd0b", "0x4", "1",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}  # fmt: skip

_ARM_PACKAGES = [
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libexpat1", "zlib1g",
    "libstdc++6", "libgcc-s1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1", "libsqlite3-0",
    "libcrypt1",
]  # fmt: skip
_WHEELS = ("onnxruntime", "numpy", "pillow", "soundfile", "typing_extensions", "cffi")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "any")


def main() -> None:
    """Fetch what is missing, write the files, run each processor and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "processors")
    parser.add_argument("--only", choices=PROCESSORS, action="append", help="default: all")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        score_files(given.work, given.child)
        return
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    fetch(work)
    if not (work / "samples.npy").exists():
        write_files(work)
    score_files(work, work / "here.npz")
    old = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    for name in given.only or PROCESSORS:
        emulate(work, name)
        new = [record(work, name, file) for file in FILES]
        old = [line for line in old if line["processor"] != name] + new
        for line in new:
            print(json.dumps(line))  # noqa: T201  # a script
        RECORDS.parent.mkdir(exist_ok=True)
        RECORDS.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in old))


def fetch(work: Path) -> None:
    """The emulator, the aarch64 interpreter and the aarch64 wheels, each once."""
    if not (work / "emulator").exists():
        _debian(work, "emulator", "amd64", ["qemu-user-static"])
    if not (work / "arm").exists():
        _debian(work, "arm", "arm64", _ARM_PACKAGES)
    if not (work / "arm-site").exists():
        from importlib.metadata import version

        wanted = [f"{name}=={version(name)}" for name in _WHEELS if name != "cffi"] + ["cffi"]
        platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
        _call(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:",
             "--python-version", "3.11", *platforms, "--target", str(work / "arm-site"), *wanted],
        )  # fmt: skip


def _debian(work: Path, folder: str, architecture: str, packages: list[str]) -> None:
    """Unpack Debian packages of an architecture, with lists of their own: the system's stay as they are."""
    state = work / f"apt-{architecture}"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = [
        f"Dir::State::Lists={state}/lists", f"Dir::Cache={state}/cache", f"Dir::State::Status={state}/status",
        f"APT::Architecture={architecture}", f"APT::Architectures={architecture}", "APT::Sandbox::User=root",
    ]  # fmt: skip
    apt = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
    _call([*apt, "update"])
    _call([*apt, "download", *packages], cwd=state)
    for package in state.glob("*.deb"):
        _call(["dpkg", "-x", str(package), str(work / folder)])


def _call(command: list[str], **options: object) -> None:
    subprocess.run(command, check=True, **options)


def write_files(work: Path) -> None:
    """A trained network for digits as float32 and int8 file, and 400 digits that neither has seen."""
    from dataclasses import replace

    from drip.datasets import load_mnist
    from drip.models import SmallCNN
    from drip.onnx import OnnxScorer, Settings, export_onnx, quantize, set_policy
    from drip.training import Examples, TrainConfig, train
    from drip.workflow import calibrate_file

    sys.path.insert(0, str(Path(__file__).parent))
    from digits import write_folder

    whole = load_mnist()
    dataset = replace(whole, images=whole.images[-10_000:], labels=whole.labels[-10_000:])
    rows = np.arange(4000)
    model = train(
        SmallCNN,
        Examples(dataset.inputs(rows), dataset.labels[rows]),
        config=TrainConfig(epochs=3, batch_size=32),
    )
    samples = dataset.inputs(np.arange(6000, 6000 + N_SAMPLES))
    calibration = write_folder(work / "calibration", dataset, range(4000, 5000))
    path = work / "float.onnx"
    export_onnx(model, None, samples[:4], path, spec=dataset.spec)
    set_policy(path, calibrate_file(OnnxScorer(path), calibration, rule="drip"))
    quantize(path, str(calibration), work / "int8.onnx", Settings())
    np.save(work / "samples.npy", samples)


def score_files(work: Path, out: Path) -> None:
    """Classes, scores and decisions of both files for each sample alone; loading checks the known answers."""
    import onnxruntime

    from drip.onnx.runtime import OnnxScorer

    samples = np.load(work / "samples.npy")
    columns: dict[str, object] = {"machine": platform.machine(), "onnxruntime": onnxruntime.__version__}
    for file in FILES:
        scorer = OnnxScorer(work / f"{file}.onnx")
        found = []
        for sample in samples:
            seen = scorer.score(sample[None])
            found.append((seen.classes[0], seen.scores[0], scorer.graph_retain[0]))
        for name, column in zip(("classes", "scores", "retain"), zip(*found, strict=True), strict=True):
            columns[f"{file}_{name}"] = np.array(column)
    np.savez(out, **columns)


def emulate(work: Path, name: str) -> None:
    """Run :func:`score_files` on a processor."""
    emulator, model = PROCESSORS[name]
    source = str(Path(sys.modules["drip"].__file__ or "").parent.parent) if "drip" in sys.modules else "src"
    if name in _CORES:
        _write_core(work / "arm", *_CORES[name])
        python = [str(work / "arm/usr/bin/python3.11")]
        prefix, path = ["-L", str(work / "arm")], [str(work / "arm-site"), source]
    else:
        python, prefix, path = [os.path.realpath(sys.executable)], [], [source, *filter(None, sys.path)]
    command = [
        str(work / "emulator/usr/bin" / emulator), *prefix, "-cpu", model, *python, "-S", "-W", "ignore",
        str(Path(__file__).resolve()), "--work", str(work), "--child", str(work / f"{name}.npz"),
    ]  # fmt: skip
    _call(command, env={"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "HOME": str(work)})


def _write_core(root: Path, part: str, variant: str, revision: str, features: str) -> None:
    """The files below /proc and /sys that describe the processor; the emulator prefers those of its root."""
    lines = {
        "processor": "0", "BogoMIPS": "108.00", "Features": features, "CPU implementer": "0x41",
        "CPU architecture": "8", "CPU variant": variant, "CPU part": part, "CPU revision": revision,
    }  # fmt: skip
    cores = root / "sys/devices/system/cpu"
    for folder in (root / "proc", cores):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "proc/cpuinfo").write_text("".join(f"{key}\t: {value}\n" for key, value in lines.items()) + "\n")
    for file in ("possible", "present", "online"):
        (cores / file).write_text("0\n")


def record(work: Path, name: str, file: str) -> dict[str, object]:
    """How a processor decides, compared with this machine."""
    from drip.onnx import read_metadata

    here, there = np.load(work / "here.npz"), np.load(work / f"{name}.npz")
    policy = read_metadata(work / f"{file}.onnx").policy
    assert policy is not None
    scores, classes = here[f"{file}_scores"], here[f"{file}_classes"]
    lower, upper = np.array([(window.lower, window.upper) for window in policy.windows]).T
    to_bound = np.minimum(abs(scores - lower[classes]), abs(scores - upper[classes]))
    near = to_bound <= NEAR * (upper - lower)[classes]
    others = there[f"{file}_scores"]
    by_policy = policy.retains(scores, classes) != policy.retains(others, there[f"{file}_classes"])
    differs = by_policy | (here[f"{file}_retain"] != there[f"{file}_retain"])
    return {
        "processor": name,
        "emulator": PROCESSORS[name][0],
        "machine": str(there["machine"]),
        "onnxruntime": str(there["onnxruntime"]),
        "file": file,
        "digest": hashlib.sha256((work / f"{file}.onnx").read_bytes()).hexdigest(),
        "samples": len(scores),
        "classes_differ": int((classes != there[f"{file}_classes"]).sum()),
        "decisions_differ": int((differs & ~near).sum()),
        "near_a_bound": int(near.sum()),
        "near_and_different": int((differs & near).sum()),
        "score_deviation": float(np.abs(scores - others).max() / np.abs(scores).max()),
    }


if __name__ == "__main__":
    main()
