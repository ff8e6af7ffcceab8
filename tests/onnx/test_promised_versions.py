"""Files that this version writes are read by the lowest onnxruntime and onnx that are promised.

`make lowest` runs this with those versions. ``python tests/onnx/test_promised_versions.py`` wrote the files in
``data/``; with the current versions, a test compares them with what an export writes now.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from drip.onnx import OnnxScorer, attach_score, check
from drip.onnx.files import run_file

DATA = Path(__file__).parent / "data"
FILES = ("written-float.onnx", "written-int8.onnx", "written-tokens.onnx")


@pytest.mark.parametrize("name", FILES)
def test_a_written_file_gives_its_known_answers(name):
    scorer = OnnxScorer(DATA / name)  # compares two of them
    report = check(DATA / name)  # and all of them
    assert report.ok, report.problems
    assert len(report.known.inputs) == 4
    assert scorer.provides >= {"logits", "drip"}


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_a_classifier_is_exported(opset):
    random = np.random.default_rng(0)
    kernel, weight = (random.normal(size=s).astype(np.float32) for s in ((6, 2, 3, 3), (6, 4)))
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]), helper.make_node("Relu", ["c"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]), helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]  # fmt: skip
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 2, 6, 7]), ("y", ["n", 4]))
    ]
    stored = [numpy_helper.from_array(kernel, "k"), numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph(nodes, "classifier", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    x = random.normal(size=(5, 2, 6, 7)).astype(np.float32)
    finished = attach_score(model)
    found = run_file(finished.SerializeToString(), x)
    (maps,) = (run_file(_with_maps(finished), x)["a"],)
    rows = weight.T[found["predicted_class"]] / maps[0, 0].size
    wanted = np.maximum((rows[:, :, None, None] * maps).sum(1), 0).mean((1, 2))
    np.testing.assert_allclose(found["drip_score"], wanted, rtol=1e-4)


def _with_maps(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.ValueInfoProto(name="a"))
    return copy.SerializeToString()


def written(folder):
    """The three files, as this version writes them."""
    import torch
    from heads import build

    from drip.onnx import Settings, export_onnx, quantize

    random = np.random.default_rng(0)
    for name, head in ((FILES[0], "hardswish_mlp"), (FILES[2], "tokens")):
        model, batch, _ = build(head)
        export_onnx(model, None, batch, folder / name)
    torch.manual_seed(0)
    shape = OnnxScorer(folder / FILES[0]).spec.shape
    (folder / "samples").mkdir(exist_ok=True)
    for index in range(240):
        np.save(folder / "samples" / f"{index}.npy", random.normal(size=shape).astype(np.float32))
    quantize(folder / FILES[0], str(folder / "samples"), folder / FILES[1], Settings(min_kappa=-1.0))


def test_an_export_still_writes_files_of_this_kind(tmp_path):
    pytest.importorskip("torch", reason="make lowest has no torch")
    written(tmp_path)
    for name in FILES:
        now, then = (onnx.load(folder / name) for folder in (tmp_path, DATA))
        assert now.ir_version == then.ir_version <= 9  # onnxruntime 1.17 reads no higher
        assert list(now.opset_import) == list(then.opset_import)
        assert {node.op_type for node in now.graph.node} == {node.op_type for node in then.graph.node}


def test_the_promise_is_that_of_the_package():
    """With the lowest versions installed, these are the ones that are promised."""
    lines = (Path(__file__).parents[2] / "constraints-lowest.txt").read_text().splitlines()
    lowest = dict(line.split("==") for line in lines if "==" in line)
    for package in ("onnxruntime", "onnx"):
        found = tuple(map(int, version(package).split(".")[:2]))
        assert found >= tuple(map(int, lowest[package].split(".")[:2]))
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"onnxruntime>={lowest["onnxruntime"].removesuffix(".0")}"' in project
    assert f'"onnx>={lowest["onnx"].removesuffix(".0")}"' in project


if __name__ == "__main__":
    import tempfile

    sys.path.append(str(Path(__file__).parents[1] / "scoring"))
    with tempfile.TemporaryDirectory() as made:
        written(Path(made))
        for file in FILES:
            (DATA / file).write_bytes((Path(made) / file).read_bytes())
