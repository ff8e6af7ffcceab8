"""A rule that follows the stream, from export to the status file, on ONNX Runtime."""

import json

import pytest
import torch
from boards import CONTRACT, N_PRODUCTION

from drip.export import export_onnx
from drip.models import SmallCNN
from drip.policy import Policy
from drip.selectors import from_policy
from drip.store import RetentionStore


@pytest.fixture
def with_features(tmp_path):
    """A model file that gives features, with limits of adaptive-margin from the board's pictures."""
    torch.manual_seed(0)
    model = SmallCNN(CONTRACT.shape[0], 3, width=4).eval()
    path = tmp_path / "model.onnx"
    export_onnx(
        model, None, torch.rand(2, *CONTRACT.shape).numpy(), path, contract=CONTRACT, features=True,
        class_names=("ant", "bee", "cow"),
    )  # fmt: skip
    return path


def test_the_status_tells_what_the_rule_changed_in_itself(with_features, board, drip, tmp_path):
    policy, store, status = (tmp_path / name for name in ("policy.json", "kept.db", "status.json"))
    options = ["--data", board.calibration, "--out", policy, "--rule", "adaptive-margin", "--dpw", "0.5"]
    assert drip("calibrate", with_features, *options).code == 0
    run = ["run", with_features, "--policy", policy, "--source", board.production, "--store", store]
    result = drip(*run, "--status-file", status, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["run"]["n_seen"] == N_PRODUCTION
    told = json.loads(status.read_text())
    assert told["rule"] == "adaptive-margin"
    first = told["adaptations"][0]
    assert (first["arrival"], first["what"]) == (1, "limit")
    assert 0 < first["value"] < 1
    with RetentionStore.open_readonly(store) as held:
        progress = held.load_progress()
        reasons = {row.decision.reason for row in held.audit()}
    assert (
        from_policy(Policy.load(policy)).restore(progress.selector_state).adaptations == told["adaptations"]
    )
    assert "adaptive-margin" in reasons
    assert "below-limit" in reasons
