"""Shadow mode and the status file of a run of a model file."""

import json
import os
import subprocess
import time

import numpy as np
import pytest
from device_runs import N_PRODUCTION, audit, start
from support import lacks

from drip.media import encode_npy
from drip.policy import Policy
from drip.store import Outcome, RetentionStore

# -- shadow --------------------------------------------------------------------------------------------


def test_shadow_keeps_everything_and_records_what_the_rule_said(board, drip, run_options, tmp_path):
    drip(*run_options)
    rule = {row.sample_id: row.decision for row in audit(tmp_path / "kept.db")}
    run_options[-1] = tmp_path / "shadow.db"
    result = drip(*run_options, "--shadow", "--json")
    found = json.loads(result.out)
    with RetentionStore.open_readonly(tmp_path / "shadow.db") as store:
        rows, kept, stats = list(store.audit()), list(store), store.stats()
        assert store.check().ok
        assert store._settings().eviction == "fifo"
    assert {row.sample_id: row.decision for row in rows} == rule
    assert {row.outcome for row in rows} == {Outcome.KEPT}
    assert {stored.sample.id: stored.decision for stored in kept} == rule
    assert all(stored.sample.data == (board.production / stored.sample.id).read_bytes() for stored in kept)
    n_discarded = sum(not decision.retain for decision in rule.values())
    assert found["run"]["n_discarded"] == n_discarded > 0
    assert (stats.kept, stats.discarded, stats.audit_shadowed) == (N_PRODUCTION, 0, n_discarded)
    assert json.loads(drip("store", "stats", tmp_path / "shadow.db", "--json").out)["kept"] == N_PRODUCTION
    by_whom = f": {N_PRODUCTION - n_discarded} by the rule, {n_discarded} only because of shadow mode"
    assert by_whom in drip("store", "stats", tmp_path / "shadow.db").out
    assert "shadow" not in drip("store", "stats", tmp_path / "kept.db").out
    (tmp_path / "shadow.db").unlink()
    assert f"--shadow kept {n_discarded} samples that the rule discards" in drip(*run_options, "--shadow").out


def test_shadow_over_budget_drops_the_oldest_whatever_the_rule_said(drip, run_options, tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(120):
        (folder / f"{number:03}.npy").write_bytes(encode_npy(rng.normal(size=(3, 8, 8, 1))[..., 0]))
    run_options[3] = folder
    assert drip(*run_options, "--shadow", "--budget", "450kB", "--batch-size", "4").code == 0
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        left, stats = [stored.sample.id for stored in store], store.stats()
    assert 0 < stats.evicted < 120
    assert left == [f"{number:03}.npy" for number in range(stats.evicted, 120)]


# -- status --------------------------------------------------------------------------------------------


def test_the_status_file_tells_how_the_run_ended(board, drip, run_options, tmp_path):
    path = tmp_path / "status.json"
    start_s = time.time()
    drip(*run_options, "--status-file", path)
    status = json.loads(path.read_text())
    policy = Policy.load(board.policy)
    assert (status["state"], status["reason"], status["code"]) == ("stopped", "the source ended", None)
    assert status["n_seen"] == N_PRODUCTION
    assert status["policy_digest"] == policy.digest
    assert status["model_digest"] == board.model.digest
    assert status["last_sample_id"] == "0149.png"
    assert status["store_counts"]["seen"] == N_PRODUCTION
    assert start_s - 1 <= status["time_s"] <= time.time() + 1
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_failure_before_the_first_sample_is_in_the_status_file(drip, run_options, tmp_path):
    run_options[3] = tmp_path / "nowhere"
    result = drip(*run_options, "--status-file", tmp_path / "status.json")
    assert result.code == 1
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["code"] == result.error == "path-missing"
    assert "nowhere" in status["reason"]


def test_a_status_file_that_cannot_be_written_does_not_stop_the_run(drip, run_options, tmp_path):
    result = drip(*run_options, "--status-file", tmp_path / "none" / "status.json", "--json")
    assert result.code == 0
    assert "status file" in result.err
    assert json.loads(result.out)["run"]["n_seen"] == N_PRODUCTION


@pytest.mark.parametrize("status_is_there_too", [False, True])
def test_a_full_disk_ends_in_a_failed_status(run_options, tmp_path, status_is_there_too):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", mount]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        lacks("mounting a small tmpfs needs root")
    try:
        run_options[-1] = mount / "kept.db"
        path = (mount if status_is_there_too else tmp_path) / "status.json"
        process = start([*run_options, "--shadow", "--status-file", path], tmp_path)
        _, errors = process.communicate()
        assert process.returncode == 1
        assert "disk is full" in errors
        status = json.loads(path.read_text())
        assert status["state"] == "failed"
        assert "disk is full" in status["reason"]
    finally:
        subprocess.run(["umount", "-l", mount], check=True)
