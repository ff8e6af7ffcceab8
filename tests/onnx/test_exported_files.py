"""Exported files: the runtime scores and decides as PyTorch does."""

import json

import numpy as np
import pytest
from digits import N_PRODUCTION
from support import require_module

from drip.media import InputSpec
from drip.onnx import OnnxScorer
from drip.policy import Policy
from drip.sources import FolderSource
from drip.store import RetentionStore
from drip.workflow import run_stream, scorer_of

SPEC = InputSpec((1, 28, 28))


@pytest.fixture(scope="module")
def exported(digits, tmp_path_factory):
    """The model of the digits, exported with its policy; the PyTorch scorer beside it."""
    require_module("onnxscript", "pip install onnxscript")
    from drip.models import load_model
    from drip.onnx import export_onnx

    model = load_model("drip.models:SmallCNN", digits.weights)
    policy = Policy.load(digits.policy)
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    example = np.random.default_rng(0).random((2, 1, 28, 28), dtype=np.float32)
    export_onnx(model, policy, example, path, class_names=names, contrast=True)
    return path, model, policy


@pytest.mark.slow
def test_scores_equal_those_of_pytorch(exported, digits):
    path, model, policy = exported
    scorer = OnnxScorer(path)
    assert scorer.spec == SPEC
    assert scorer.parent_digest == policy.provenance.model_digest
    assert scorer.policy == policy
    assert scorer.class_names[3] == "three"
    inputs = np.stack(
        [SPEC.prepare(file.read_bytes(), "image/png") for file in sorted(digits.production.glob("*/*.png"))]
    )
    found, expected = scorer.score(inputs), scorer_of(policy, model).score(inputs)
    np.testing.assert_array_equal(found.classes, expected.classes)
    for name in ("logits", "scores", "features"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_the_contrast_equals_that_of_pytorch(exported, digits):
    from drip.scoring import TorchScorer

    path, model, _ = exported
    files = sorted(digits.production.glob("*/*.png"))[:20]
    inputs = np.stack([SPEC.prepare(file.read_bytes(), "image/png") for file in files])
    found = OnnxScorer(path).score(inputs).named_scores["contrast"]
    expected = TorchScorer(model, contrast=True).score(inputs).named_scores["contrast"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_stream_is_decided_as_by_pytorch_and_the_graph_agrees(exported, digits, drip, tmp_path):
    path, model, policy = exported
    result = drip("run", path, "--source", digits.production, "--store", tmp_path / "kept.db", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["run"]["n_disagreements"] == 0
    with RetentionStore.open(tmp_path / "torch.db", budget_bytes=10**8) as store:
        run_stream(model, policy, FolderSource(digits.production), store)
        expected = {row.sample_id: row.decision.retain for row in store.audit()}
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        found = {row.sample_id: row.decision.retain for row in store.audit()}
    assert len(found) == N_PRODUCTION
    assert found == expected


def test_calibrating_the_file_gives_the_windows_of_its_parent(exported, digits, drip, tmp_path):
    path, _, policy = exported
    out = tmp_path / "policy.json"
    assert drip("calibrate", path, "--data", digits.calibration, "--rule", "drip", "--out", out).code == 0
    found = Policy.load(out)
    assert found.provenance.model_digest == OnnxScorer(path).digest != policy.provenance.model_digest
    for ours, theirs in zip(found.windows, policy.windows, strict=True):
        assert ours.never_because == theirs.never_because
        assert ours.lower == pytest.approx(theirs.lower, rel=1e-4)
    assert drip("replay", _run(path, digits, tmp_path, drip), out).code == 0


def _run(path, digits, tmp_path, drip):
    store = tmp_path / "kept.db"
    assert drip("run", path, "--source", digits.production, "--store", store).code == 0
    return store
