"""The JavaScript example decides as `drip run` does on real digits; the commands of its README work."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from digits import write_folder
from support import lacks, require_module, require_tool

from drip.datasets import load_mnist
from drip.onnx import OnnxScorer
from drip.store import RetentionStore

EXAMPLE = Path(__file__).parents[1] / "examples" / "node"
INSTALL = "npm ci --ignore-scripts --prefix examples/node"
N_INPUTS = 1000


@pytest.fixture(scope="module")
def node():
    """Calls the example: ``node("model.onnx", "inputs.npy")`` gives the finished process."""
    program = require_tool("node", f"apt-get install nodejs npm, then {INSTALL}")
    if not (EXAMPLE / "node_modules" / "onnxruntime-web").is_dir():
        lacks(f"onnxruntime-web is needed for this test: {INSTALL}")

    def call(*paths):
        command = [program, EXAMPLE / "decide.mjs", *paths]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return call


@pytest.fixture(scope="module")
def model(digits, tmp_path_factory):
    """The trained model with its policy as a model file."""
    require_module("onnxscript", "pip install onnxscript")
    from drip.models import load_model
    from drip.onnx import export_onnx
    from drip.policy import Policy

    path = tmp_path_factory.mktemp("node") / "model.onnx"
    example = np.zeros((2, 1, 28, 28), np.float32)
    network = load_model("drip.models:SmallCNN", digits.weights)
    export_onnx(network, Policy.load(digits.policy), example, path)
    return path


def test_decisions_are_those_of_drip_run(node, model, drip, tmp_path):
    dataset, rows = load_mnist(), np.arange(N_INPUTS)
    inputs = dataset.inputs(rows)
    np.save(tmp_path / "inputs.npy", inputs)
    done = node(model, tmp_path / "inputs.npy")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]

    expected = OnnxScorer(model).score(inputs)
    assert [line["class"] for line in found] == expected.classes.tolist()
    scores = np.array([line["score"] for line in found])
    assert np.abs(scores - expected.scores).max() <= 1e-5 * expected.scores.max()

    folder = write_folder(tmp_path / "digits", dataset, rows)
    assert drip("run", model, "--source", folder, "--store", tmp_path / "kept.db").code == 0
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        decided = {Path(row.sample_id).stem: row.decision.retain for row in store.audit()}
    ids = [sample.id for sample in dataset.samples(rows)]
    assert {name: line["retain"] for name, line in zip(ids, found, strict=True)} == decided
    assert 0.1 < np.mean(list(decided.values())) < 0.9


@pytest.mark.parametrize(
    ("values", "cut", "word"),
    [
        (np.zeros((2, 1, 28, 28)), 0, "not float32 in C order"),
        (np.zeros((2, 1, 28, 28), np.float32), 3, "the file is damaged"),
        (np.zeros((2, 1, 27, 28), np.float32), 0, "invalid dimensions"),
    ],
)
def test_wrong_inputs_are_rejected_with_the_reason(values, cut, word, node, model, tmp_path):
    path = tmp_path / "inputs.npy"
    np.save(path, values)
    path.write_bytes(path.read_bytes()[: -cut or None])
    done = node(model, path)
    assert (done.returncode, done.stdout) == (1, "")
    assert word in done.stderr


def test_every_command_of_its_readme_works(node, drip, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (EXAMPLE / "README.md").read_text()
    fences = re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    demo = tmp_path / "drip-demo"
    demo.mkdir()
    shutil.copy(digits.weights, demo / "model.pt")
    shutil.copy(digits.policy, demo / "policy.json")
    ran = []
    for language, text in fences:
        if language == "python":
            exec(text, {})
        for line in text.splitlines() if language == "console" else []:
            program, *arguments = shlex.split(line)
            ran.append(program)
            if program == "drip":
                assert drip(*arguments).code == 0
            elif program == "node":
                assert arguments[0] == "decide.mjs"
                done = node(*arguments[1:])
                assert done.returncode == 0, done.stderr
    assert ran == ["drip", "npm", "node"]
    (shown,) = (json.loads(text) for language, text in fences if language == "text")
    assert len(done.stdout.splitlines()) == N_INPUTS
    assert all(json.loads(line).keys() == shown.keys() for line in done.stdout.splitlines())
