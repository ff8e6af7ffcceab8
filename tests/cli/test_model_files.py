"""Model files on the command line: calibrate, run, shadow, status and replay, without torch."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from known_model import make_model
from PIL import Image
from support import lacks

from drip.device import OnnxScorer
from drip.errors import DripError
from drip.media import InputContract, encode_npy
from drip.policy import Policy
from drip.store import Outcome, RetentionStore

N_PRODUCTION = 150
TORCHLESS = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = None
from drip.cli import main
main()
"""


@pytest.fixture
def run_options(board, tmp_path):
    return ["run", board.model.path, "--source", board.production, "--store", tmp_path / "kept.db"]


def start(arguments, folder):
    return subprocess.Popen(
        [sys.executable, "-c", TORCHLESS, *map(str, arguments)],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def audit(path):
    with RetentionStore.open_readonly(path) as store:
        return list(store.audit())


def expected_decisions(board, policy):
    """File name to (class, score, retained), by NumPy and the policy alone."""
    found = {}
    for path in sorted(board.production.iterdir()):
        pixels = np.asarray(Image.open(path)).astype(np.float32) / 255
        inputs = (pixels.transpose(2, 0, 1)[None] - 0.5) / 0.25
        _, classes, scores, _ = board.model.expected(inputs)
        found[path.name] = (int(classes[0]), scores[0], bool(policy.retains(scores, classes)[0]))
    return found


# -- calibrate and run ---------------------------------------------------------------------------------


def test_calibrate_on_the_board_writes_the_files_policy(board, drip, tmp_path):
    out = tmp_path / "policy.json"
    result = drip("calibrate", board.bare.path, "--data", board.calibration, "--out", out, "--dpw", "0.4")
    assert result.code == 0, result.err
    policy = Policy.load(out)
    assert policy.windows == Policy.load(board.policy).windows
    assert policy.provenance.model_digest == board.bare.digest
    assert policy.provenance.class_names == ("ant", "bee", "cow")
    assert InputContract.from_json(policy.provenance.input_contract) == board.contract
    assert policy.provenance.n_samples == 300
    assert "bee" in result.out
    OnnxScorer(board.bare.path).require(policy)


@pytest.mark.parametrize("rule", ["margin", "reservoir", "class-balanced-random", "max-logit-window"])
def test_any_rule_is_calibrated_on_the_board_and_runs(rule, board, drip, tmp_path):
    out = tmp_path / "policy.json"
    options = ["--data", board.calibration, "--out", out, "--rule", rule, "--dpw", "0.3"]
    assert drip("calibrate", board.bare.path, *options).code == 0
    found = json.loads(
        drip(
            "run", board.bare.path, "--policy", out, "--source", board.production,
            "--store", tmp_path / "kept.db", "--json",
        ).out
    )  # fmt: skip
    assert found["store"]["seen"] == N_PRODUCTION
    assert found["run"]["n_disagreements"] == 0


def test_a_rule_that_reads_what_the_file_does_not_give_is_refused(board, drip, tmp_path):
    out = tmp_path / "policy.json"
    options = ["--data", board.calibration, "--out", out, "--rule", "lowest-contrast"]
    result = drip("calibrate", board.bare.path, *options)
    assert result.code == 1
    assert "contrast" in result.err
    assert not out.exists()
    rich = make_model(tmp_path / "rich.onnx", board.contract, seed=3, on_request=True)
    assert drip("calibrate", rich.path, *options).code == 0


@pytest.mark.parametrize(
    "extra", [["--shape", "3,8,8"], ["--mean", "0.5"], ["--class-names", "a,b,c"], ["--layer", "x"]]
)
def test_options_that_are_in_the_file_are_refused_beside_it(extra, board, drip):
    result = drip("calibrate", board.bare.path, "--data", board.calibration, *extra)
    assert result.code == 2
    assert extra[0] in result.err


def test_run_decides_as_numpy_does(board, drip, run_options, tmp_path):
    result = drip(*run_options, "--json")
    assert result.code == 0, result.err
    policy = Policy.load(board.policy)
    expected = expected_decisions(board, policy)
    rows = {row.sample_id: row for row in audit(tmp_path / "kept.db")}
    assert list(rows) == sorted(expected)
    for name, (number, score, retained) in expected.items():
        assert rows[name].predicted_class == number
        assert rows[name].scores["drip"] == pytest.approx(score, rel=1e-4, abs=1e-7)
        assert rows[name].decision.retain == retained
    found = json.loads(result.out)
    assert found["run"]["n_retained"] == sum(retained for *_, retained in expected.values())
    assert 0 < found["run"]["n_retained"] < N_PRODUCTION
    assert found["run"]["n_disagreements"] == 0
    assert len({number for number, *_ in expected.values()}) > 1


def test_limits_in_the_file_that_differ_are_counted_and_the_policy_wins(board, drip, run_options, tmp_path):
    run_options[1] = board.bare.path
    result = drip(*run_options, "--policy", board.policy, "--json")
    found = json.loads(result.out)["run"]
    assert found["n_disagreements"] == found["n_discarded"] > 0
    (tmp_path / "kept.db").unlink()
    assert "unlike the policy" in drip(*run_options, "--policy", board.policy).out


def test_a_file_without_a_policy_asks_for_one_before_a_store_is_made(board, drip, run_options, tmp_path):
    run_options[1] = board.bare.path
    result = drip(*run_options)
    assert result.code == 1
    assert "drip calibrate" in result.err
    assert not (tmp_path / "kept.db").exists()


def test_a_quantised_file_wants_limits_of_its_own(board, drip, run_options, tmp_path):
    policy = Policy.load(board.policy)
    int8 = make_model(
        tmp_path / "int8.onnx", board.contract, seed=4, quantization={"weights": "int8"},
        parent_digest=board.bare.digest, policy=policy,
    )  # fmt: skip
    run_options[1] = int8.path
    result = drip(*run_options)
    assert result.code == 1
    assert "--accept-parent-limits" in result.err
    assert not (tmp_path / "kept.db").exists()
    assert drip(*run_options, "--accept-parent-limits").code == 0


def test_a_policy_that_the_file_cannot_serve_is_refused_before_a_store_is_made(
    board, drip, run_options, tmp_path
):
    rich = make_model(tmp_path / "rich.onnx", board.contract, seed=3, on_request=True)
    policy = tmp_path / "contrast.json"
    options = ["--data", board.calibration, "--rule", "lowest-contrast", "--out", policy]
    assert drip("calibrate", rich.path, *options).code == 0
    result = drip(*run_options, "--policy", policy)
    assert result.code == 1
    assert "reads contrast" in result.err
    assert not (tmp_path / "kept.db").exists()


def test_shadow_and_status_work_for_a_pytorch_model_too(digits, drip, tmp_path):
    store, status = tmp_path / "kept.db", tmp_path / "status.json"
    model = ["drip.models:SmallCNN", "--weights", digits.weights]
    options = ["--policy", digits.policy, "--source", digits.production, "--store", store]
    assert drip("run", *model, *options, "--shadow", "--status-file", status).code == 0
    found = json.loads(status.read_text())
    assert found["store_counts"]["kept"] == found["n_seen"] > found["n_retained"]
    assert found["model_digest"] == Policy.load(digits.policy).provenance.model_digest
    report = json.loads(drip("replay", "--store", store, "--policy", digits.policy, "--json").out)
    assert report["counts"]["agreeing"] == found["n_seen"]
    assert drip("run", *model, *options, "--threads", "2").code == 2


def test_a_budget_of_nothing_is_refused(drip, run_options):
    result = drip(*run_options, "--budget", "0")
    assert result.code == 1
    assert "budget" in result.err


def test_weights_beside_a_model_file_are_wrong_usage(board, drip, run_options):
    assert drip(*run_options, "--weights", board.policy).code == 2


def test_a_pytorch_model_without_a_policy_is_refused(digits, drip, tmp_path):
    result = drip(
        "run", "drip.models:SmallCNN", "--source", digits.production, "--store", tmp_path / "kept.db"
    )
    assert result.code == 1
    assert "--policy" in result.err


@pytest.mark.parametrize("content", [b"", b"not a model" * 99])
def test_a_file_that_is_no_model_is_refused_in_one_line(content, drip, run_options, tmp_path):
    run_options[1] = tmp_path / "bad.onnx"
    run_options[1].write_bytes(content)
    result = drip(*run_options)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert "drip model export" in result.err


def test_calibrate_and_run_need_neither_torch_nor_onnx(board, run_options, tmp_path):
    out = tmp_path / "policy.json"
    for arguments in (
        ["calibrate", board.bare.path, "--data", board.calibration, "--out", out],
        [*run_options, "--policy", out],
        ["replay", "--store", tmp_path / "kept.db", "--policy", out],
    ):
        process = start(arguments, tmp_path)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    assert len(audit(tmp_path / "kept.db")) == N_PRODUCTION


def test_tokens_come_one_by_one_and_decide_alike(board, drip, run_options, tmp_path):
    drip(*run_options)
    expected = {row.sample_id: row.decision.retain for row in audit(tmp_path / "kept.db")}
    single = make_model(
        tmp_path / "single.onnx", board.contract, seed=3, batch=1, policy=Policy.load(board.policy)
    )
    run_options[1], run_options[-1] = single.path, tmp_path / "single.db"
    assert drip(*run_options).code == 0
    assert {row.sample_id: row.decision.retain for row in audit(tmp_path / "single.db")} == expected


# -- bad samples ---------------------------------------------------------------------------------------


def test_what_cannot_be_decoded_or_scored_goes_to_quarantine(board, drip, run_options, tmp_path):
    folder = Path(shutil.copytree(board.production, tmp_path / "mixed"))
    good = (folder / "0001.png").read_bytes()
    (folder / "a.png").write_bytes(good[:100])
    (folder / "b.jpg").write_bytes((folder / "0000.jpg").read_bytes()[:150])
    (folder / "c.npy").write_bytes(encode_npy(np.full((3, 8, 8), np.nan, np.float32)))
    (folder / "d.npy").write_bytes(encode_npy(np.full((3, 8, 8), 5e37, np.float32)))  # overflows inside
    bomb = io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(bomb, format="PNG")
    (folder / "e.png").write_bytes(bomb.getvalue())
    (folder / "f.wav").write_bytes(b"RIFF")
    run_options[3] = folder
    found = json.loads(drip(*run_options, "--json").out)
    assert found["run"]["n_quarantined"] == 6
    assert found["store"]["seen"] == N_PRODUCTION
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        reasons = {aside.sample.id: aside.reason for aside in store.quarantined()}
    assert sorted(reasons) == ["a.png", "b.jpg", "c.npy", "d.npy", "e.png", "f.wav"]
    assert "at most" in reasons["e.png"]
    assert "finite" in reasons["c.npy"]
    assert "finite" in reasons["d.npy"]


def test_sound_with_nan_goes_to_quarantine(drip, tmp_path):
    contract = InputContract((1, 64), sample_rate_hz=8000)
    folder = tmp_path / "sound"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        values = 0.1 * rng.normal(size=64)
        if number == 50:
            values[3] = np.nan
        suffix, subtype = ("wav", "FLOAT") if number % 2 == 0 else ("flac", "PCM_16")
        soundfile.write(folder / f"{number:02}.{suffix}", values, 8000, subtype=subtype)
    model = make_model(tmp_path / "model.onnx", contract)
    policy = tmp_path / "policy.json"
    calm = Path(shutil.copytree(folder, tmp_path / "calm"))
    (calm / "50.wav").unlink()
    assert drip("calibrate", model.path, "--data", calm, "--out", policy).code == 0
    options = ["--policy", policy, "--source", folder, "--store", tmp_path / "s.db", "--json"]
    found = json.loads(drip("run", model.path, *options).out)
    assert (found["run"]["n_quarantined"], found["store"]["seen"]) == (1, 59)


def test_a_run_in_which_nothing_could_be_used_fails(drip, run_options, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    run_options[3] = folder
    result = drip(*run_options, "--status-file", tmp_path / "status.json")
    assert result.code == 1
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["reason"].startswith("none of 1 samples")


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
        assert store._reader_settings().eviction == "fifo"
    assert {row.sample_id: row.decision for row in rows} == rule
    assert {row.outcome for row in rows} == {Outcome.KEPT}
    assert {stored.sample.id: stored.decision for stored in kept} == rule
    assert all(stored.sample.data == (board.production / stored.sample.id).read_bytes() for stored in kept)
    n_discarded = sum(not decision.retain for decision in rule.values())
    assert found["run"]["n_discarded"] == n_discarded > 0
    assert (stats.kept, stats.discarded, stats.audit_shadowed) == (N_PRODUCTION, 0, n_discarded)
    assert json.loads(drip("store", "stats", tmp_path / "shadow.db", "--json").out)["kept"] == N_PRODUCTION
    (tmp_path / "shadow.db").unlink()
    assert f"{n_discarded} samples were kept that the rule discards" in drip(*run_options, "--shadow").out


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
    drip(*run_options, "--status-file", path)
    status = json.loads(path.read_text())
    policy = Policy.load(board.policy)
    assert (status["state"], status["reason"]) == ("stopped", "the source ended")
    assert status["n_seen"] == N_PRODUCTION
    assert status["policy_digest"] == policy.digest
    assert status["model_digest"] == board.model.digest
    assert status["last_sample_id"] == "0149.png"
    assert status["store_counts"]["seen"] == N_PRODUCTION
    assert abs(status["time_s"] - time.time()) < 60
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_failure_before_the_first_sample_is_in_the_status_file(drip, run_options, tmp_path):
    run_options[3] = tmp_path / "nowhere"
    result = drip(*run_options, "--status-file", tmp_path / "status.json")
    assert result.code == 1
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed"
    assert "nowhere" in status["reason"]


def test_a_status_file_that_cannot_be_written_does_not_stop_the_run(drip, run_options, tmp_path):
    result = drip(*run_options, "--status-file", tmp_path / "none" / "status.json", "--json")
    assert result.code == 0
    assert "status file" in result.err
    assert json.loads(result.out)["run"]["n_seen"] == N_PRODUCTION


def test_a_full_disk_ends_in_a_failed_status(run_options, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", mount]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        lacks("mounting a small tmpfs needs root")
    try:
        run_options[-1] = mount / "kept.db"
        process = start([*run_options, "--shadow", "--status-file", tmp_path / "status.json"], tmp_path)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "disk is full" in errors
        status = json.loads((tmp_path / "status.json").read_text())
        assert status["state"] == "failed"
        assert "disk is full" in status["reason"]
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


# -- stops and kills -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory, board):
    """Enough pictures that a run of single ones takes a second or two."""
    folder = tmp_path_factory.mktemp("many") / "pictures"
    folder.mkdir()
    names = sorted(path.name for path in board.production.iterdir())
    for turn in range(6):
        for name in names:
            data = (board.production / name).read_bytes()
            (folder / f"{turn}-{name}").write_bytes(data + bytes([turn]))  # trailing bytes: other content
    return folder


class Watcher(threading.Thread):
    """Reads the status file all the time; every look must be whole JSON."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.seen, self.problems, self.is_done = path, [], [], False

    def run(self):
        while not self.is_done:
            try:
                self.seen.append(json.loads(self.path.read_text()))
            except FileNotFoundError:
                pass
            except ValueError as error:
                self.problems.append(repr(error))
            time.sleep(0.001)


def wait_until(condition, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("nothing happened for a minute")


def n_decided(path):
    try:
        with RetentionStore.open_readonly(path) as store:
            return store.stats().seen
    except DripError:
        return 0


def test_sigterm_ends_in_good_order_and_the_same_command_continues(many, board, tmp_path):
    path, status = tmp_path / "kept.db", tmp_path / "status.json"
    arguments = [
        "run", board.model.path, "--source", many, "--store", path, "--batch-size", "1",
        "--status-file", status, "--json",
    ]  # fmt: skip
    watcher = Watcher(status)
    watcher.start()
    process = start(arguments, tmp_path)
    wait_until(lambda: n_decided(path) >= 20, process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command continues" in errors
    n_before = json.loads(output)["run"]["n_seen"]
    stopped = json.loads(status.read_text())
    assert (stopped["state"], stopped["reason"]) == ("stopped", "asked to stop")
    assert stopped["n_seen"] == n_before == len(audit(path)) < 900
    process = start(arguments, tmp_path)
    output, errors = process.communicate(timeout=120)
    watcher.is_done = True
    watcher.join()
    found = json.loads(output)
    assert process.returncode == 0, errors
    assert found["run"]["n_seen"] == 900 - n_before
    assert (found["store"]["seen"], found["store"]["redelivered"]) == (900, 0)
    assert [row.sample_id for row in audit(path)] == sorted(path.name for path in many.iterdir())
    assert watcher.problems == []
    states = [look["state"] for look in watcher.seen]
    assert {"running", "stopped"} == set(states)
    written = {look["time_s"] for look in watcher.seen}
    seconds = watcher.seen[-1]["time_s"] - watcher.seen[0]["time_s"]
    assert len(written) <= seconds + 8  # once a second, beside first, last and the counts' first look


def test_kills_at_random_moments_lose_nothing_and_double_nothing(many, board, tmp_path):
    path = tmp_path / "kept.db"
    arguments = ["run", board.model.path, "--source", many, "--store", path, "--batch-size", "2", "--json"]
    rng = random.Random(11)
    counts = [0]
    for _ in range(5):
        process = start(arguments, tmp_path)
        target = counts[-1] + rng.randrange(5, 60)
        wait_until(lambda target=target: n_decided(path) >= target, process)
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.communicate()
        counts.append(len(audit(path)))
        assert counts[-1] >= target
    assert counts[-1] < 900
    process = start(arguments, tmp_path)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(output)["run"]["n_seen"] == 900 - counts[-1]
    rows = audit(path)
    assert [row.sample_id for row in rows] == sorted(path.name for path in many.iterdir())
    with RetentionStore.open_readonly(path) as store:
        assert store.check().ok
        assert {stored.sample.id for stored in store} == {
            row.sample_id for row in rows if row.outcome is Outcome.KEPT
        }
        assert store.stats().redelivered == 0


def test_a_watched_folder_is_served_while_nothing_arrives(board, tmp_path):
    folder = Path(shutil.copytree(board.production, tmp_path / "inbox"))
    path, status = tmp_path / "kept.db", tmp_path / "status.json"
    source = f"watch:{folder}?settle=0.05&poll=0.05"
    process = start(
        ["run", board.model.path, "--source", source, "--store", path, "--status-file", status], tmp_path
    )
    wait_until(lambda: n_decided(path) == N_PRODUCTION, process)
    first = json.loads(status.read_text())["time_s"]
    wait_until(lambda: json.loads(status.read_text())["time_s"] > first + 1.5, process)
    idle = json.loads(status.read_text())
    assert (idle["state"], idle["n_seen"]) == ("running", N_PRODUCTION)
    shutil.copy(board.production / "0000.jpg", folder / "again.jpg")
    (folder / "new.jpg").write_bytes((board.production / "0000.jpg").read_bytes() + b"other")
    wait_until(lambda: n_decided(path) == N_PRODUCTION + 2, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(status.read_text())["state"] == "stopped"
    with RetentionStore.open_readonly(path) as store:
        assert store.check().ok
        assert store.stats().seen == N_PRODUCTION + 2


# -- replay --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shadowed(board, tmp_path_factory):
    from drip.streams import FolderSource
    from drip.workflow import run_stream

    path = tmp_path_factory.mktemp("shadowed") / "kept.db"
    with RetentionStore(path, budget_bytes=10**8) as store:
        run_stream(
            OnnxScorer(board.model.path), Policy.load(board.policy), FolderSource(board.production), store,
            shadow=True,
        )  # fmt: skip
    return path


@pytest.mark.parametrize(
    "rule", ["drip", "margin", "entropy", "random", "reservoir", "class-balanced-random", "inverse-drip"]
)
def test_replay_gives_the_numbers_of_a_fresh_run(rule, board, shadowed, drip, tmp_path):
    policy, fresh = tmp_path / "new.json", tmp_path / "fresh.db"
    options = ["--data", board.calibration, "--rule", rule, "--dpw", "0.7", "--out", policy]
    drip("calibrate", board.bare.path, *options)
    run = ["run", board.bare.path, "--policy", policy, "--source", board.production, "--store", fresh]
    drip(*run, "--batch-size", "7")
    report = json.loads(drip("replay", "--store", shadowed, "--policy", policy, "--json").out)
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
    result = drip("replay", "--store", shadowed, "--policy", board.policy)
    assert result.code == 0
    assert "100.0%" in result.out
    assert "bee" in result.out


def test_replay_refuses_a_policy_of_another_model_or_score(board, shadowed, drip, tmp_path):
    content = json.loads(board.policy.read_text())
    for key, value in (("model_digest", "d" * 64), ("score", {"heatmap": "normalised"})):
        changed = {**content, "provenance": {**content["provenance"], key: value}}
        (tmp_path / "other.json").write_text(json.dumps(changed))
        result = drip("replay", "--store", shadowed, "--policy", tmp_path / "other.json")
        assert result.code == 1
        assert board.model.digest[:12] in result.err


def test_replay_names_the_columns_that_the_audit_lacks(board, drip, tmp_path):
    from drip.streams import FolderSource
    from drip.workflow import run_stream

    path, margin = tmp_path / "slim.db", tmp_path / "margin.json"
    with RetentionStore(path, budget_bytes=10**7, audit_logits=False) as store:
        run_stream(
            OnnxScorer(board.model.path), Policy.load(board.policy), FolderSource(board.production), store
        )
    drip("calibrate", board.bare.path, "--data", board.calibration, "--rule", "margin", "--out", margin)
    result = drip("replay", "--store", path, "--policy", margin)
    assert result.code == 1
    assert "reads logits, got an audit with drip" in result.err
    assert drip("replay", "--store", path, "--policy", board.policy).code == 0


def test_replay_of_an_empty_store_says_so(board, drip, tmp_path):
    with RetentionStore(tmp_path / "empty.db", budget_bytes=10**6):
        pass
    result = drip("replay", "--store", tmp_path / "empty.db", "--policy", board.policy)
    assert result.code == 1
    assert "audit without" in result.err


def test_replay_says_what_the_audit_has_forgotten(board, drip, tmp_path):
    from drip.streams import FolderSource
    from drip.workflow import run_stream

    with RetentionStore(tmp_path / "s.db", budget_bytes=10**7, audit_rows=100) as store:
        run_stream(
            OnnxScorer(board.model.path), Policy.load(board.policy), FolderSource(board.production), store
        )
    report = json.loads(drip("replay", "--store", tmp_path / "s.db", "--policy", board.policy, "--json").out)
    n_left = len(audit(tmp_path / "s.db"))
    assert (report["counts"]["seen"], report["n_forgotten"]) == (n_left, N_PRODUCTION - n_left)
    assert report["n_forgotten"] > 0
