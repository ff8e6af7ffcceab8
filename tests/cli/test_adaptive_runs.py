"""A rule that follows the stream, from export to the status file, on ONNX Runtime."""

import json

import pytest
import torch
from boards import N_PRODUCTION, SPEC

from drip.models import SmallCNN
from drip.onnx import export_onnx
from drip.policy import Policy
from drip.store import RetentionStore


@pytest.fixture(scope="module")
def with_features(tmp_path_factory):
    """A model file that gives features, for the rule adaptive-margin and the board's pictures."""
    torch.manual_seed(0)
    model = SmallCNN(SPEC.shape[0], 3, width=4).eval()
    path = tmp_path_factory.mktemp("with-features") / "model.onnx"
    export_onnx(
        model, None, torch.rand(2, *SPEC.shape).numpy(), path, spec=SPEC,
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
    assert Policy.load(policy).to_rule().restore(progress.rule_state).adaptations == told["adaptations"]
    assert "adaptive-margin" in reasons
    assert "below-limit" in reasons


def test_options_of_a_rule_come_into_the_policy(with_features, board, drip, tmp_path):
    out = tmp_path / "policy.json"
    command = [
        "calibrate",
        with_features,
        "--data",
        board.calibration,
        "--out",
        out,
        "--rule",
        "adaptive-margin",
    ]
    options = ["--rule-option", "samples_per_hour=60", "--rule-option", "frozen=true"]
    assert drip(*command, *options).code == 0
    params = Policy.load(out).to_rule().params
    assert (params["samples_per_hour"], params["frozen"], params.get("retention")) == (60, True, None)
    unset = ["--rule-option", "samples_per_hour=null", "--dpw", "0.4"]
    assert drip(*command, *unset, "--rule-option", "floor=0").code == 0
    params = Policy.load(out).to_rule().params
    assert (params["retention"], params["floor"]) == (0.6, 0)


@pytest.mark.parametrize(
    ("options", "code", "error"),
    [
        (["--rule-option", "frozen"], 2, ""),
        (["--rule-option", "=1"], 2, ""),
        (["--rule-option", "seed=1", "--rule-option", "seed=2"], 2, ""),
        (["--rule-option", "colour=1"], 1, "rule-arguments"),
        (["--rule-option", "name=x"], 1, "rule-arguments"),
        (["--rule-option", "retention=0.3"], 1, "rule-arguments"),
        (["--rule-option", "frozen=yes"], 1, "bad-argument"),
        (["--rule-option", "samples_per_hour=0"], 1, "bad-argument"),
        (["--rule-option", "samples_per_hour=6", "--dpw", "0.4"], 1, "rule-arguments"),
    ],
)
def test_options_that_a_rule_does_not_take_are_refused_in_a_line(
    with_features, board, drip, tmp_path, options, code, error
):
    command = ["calibrate", with_features, "--data", board.calibration, "--out", tmp_path / "policy.json"]
    result = drip(*command, "--rule", "adaptive-margin", *options)
    assert (result.code, result.error) == (code, error)
    assert "Traceback" not in result.err
    assert not (tmp_path / "policy.json").exists()
