"""What another policy would have kept, against a fresh run."""

import json

import pytest
from device_runs import N_PRODUCTION, audit

from drip.onnx import OnnxScorer
from drip.policy import Policy
from drip.store import RetentionStore


@pytest.fixture(scope="module")
def shadowed(board, tmp_path_factory):
    from drip.sources import FolderSource
    from drip.workflow import run_stream

    path = tmp_path_factory.mktemp("shadowed") / "kept.db"
    with RetentionStore.open(path, budget_bytes=10**8) as store:
        run_stream(
            OnnxScorer(board.model.path), Policy.load(board.policy), FolderSource(board.production), store,
            shadow=True,
        )  # fmt: skip
    return path


@pytest.mark.parametrize("rule", ["drip", "margin", "entropy", "random", "class-balanced-random"])
def test_replay_gives_the_numbers_of_a_fresh_run(rule, board, shadowed, drip, tmp_path):
    policy, fresh = tmp_path / "new.json", tmp_path / "fresh.db"
    options = ["--data", board.calibration, "--rule", rule, "--dpw", "0.7", "--out", policy]
    drip("calibrate", board.bare.path, *options)
    run = ["run", board.bare.path, "--policy", policy, "--source", board.production, "--store", fresh]
    drip(*run, "--batch-size", "7")
    report = json.loads(drip("replay", shadowed, policy, "--json").out)
    before = {row.sample_id: row for row in audit(shadowed)}
    rows = audit(fresh)
    retained = [row for row in rows if row.decision.retain]
    counts = report["counts"]
    assert counts["seen"] == N_PRODUCTION
    assert counts["retained_now"] == len(retained)
    assert counts["bytes_now"] == sum(row.n_bytes for row in retained)
    assert counts["retained_before"] == sum(row.decision.retain for row in before.values())
    agreeing = sum(row.decision.retain == before[row.sample_id].decision.retain for row in rows)
    assert counts["agreeing"] == agreeing
    for number, part in report["classes"].items():
        mine = [row for row in rows if row.predicted_class == int(number)]
        assert part["seen"] == len(mine)
        assert part["retained_now"] == sum(row.decision.retain for row in mine)
    assert len(report["parts"]) == 10
    assert sum(part["counts"]["retained_now"] for part in report["parts"]) == len(retained)
    assert report["n_forgotten"] == report["n_other_models"] == report["n_unknown_model"] == 0


def test_replay_of_the_same_policy_agrees_and_is_printed(board, shadowed, drip):
    result = drip("replay", shadowed, board.policy)
    assert result.code == 0
    assert "100.0%" in result.out
    assert "bee" in result.out


def test_replay_refuses_a_policy_of_another_model_or_score(board, shadowed, drip, tmp_path):
    content = json.loads(board.policy.read_text())
    for key, value in (("model_digest", "d" * 64), ("score", {"heatmap": "normalised"})):
        changed = {**content, "provenance": {**content["provenance"], key: value}}
        (tmp_path / "other.json").write_text(json.dumps(changed))
        result = drip("replay", shadowed, tmp_path / "other.json")
        assert (result.code, result.error) == (1, "audit-other-model")
        assert board.model.digest[:12] in result.err


def test_replay_names_the_columns_that_the_audit_lacks(board, drip, tmp_path):
    from drip.sources import FolderSource
    from drip.workflow import run_stream

    path, margin = tmp_path / "slim.db", tmp_path / "margin.json"
    with RetentionStore.open(path, budget_bytes=10**7, audit_logits=False) as store:
        run_stream(
            OnnxScorer(board.model.path), Policy.load(board.policy), FolderSource(board.production), store
        )
    drip("calibrate", board.bare.path, "--data", board.calibration, "--rule", "margin", "--out", margin)
    result = drip("replay", path, margin)
    assert result.code == 1
    assert result.error == "rule-needs"
    assert drip("replay", path, board.policy).code == 0


def test_replay_of_an_empty_store_says_so(board, drip, tmp_path):
    with RetentionStore.open(tmp_path / "empty.db", budget_bytes=10**6):
        pass
    result = drip("replay", tmp_path / "empty.db", board.policy)
    assert result.code == 1
    assert result.error == "audit-empty"


def test_replay_says_what_the_audit_has_forgotten(board, drip, tmp_path):
    from drip.sources import FolderSource
    from drip.workflow import run_stream

    with RetentionStore.open(tmp_path / "s.db", budget_bytes=10**7, audit_rows=100) as store:
        run_stream(
            OnnxScorer(board.model.path), Policy.load(board.policy), FolderSource(board.production), store
        )
    report = json.loads(drip("replay", tmp_path / "s.db", board.policy, "--json").out)
    n_left = len(audit(tmp_path / "s.db"))
    assert (report["counts"]["seen"], report["n_forgotten"]) == (n_left, N_PRODUCTION - n_left)
    assert report["n_forgotten"] > 0
