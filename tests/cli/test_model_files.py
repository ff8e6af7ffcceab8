"""Model files on the command line: calibrate and run, without torch."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from device_runs import N_PRODUCTION, audit, start
from known_model import make_model
from PIL import Image

from drip.media import InputSpec, encode_npy
from drip.onnx import OnnxScorer
from drip.policy import Policy
from drip.store import RetentionStore


def expected_decisions(board, policy):
    """File name to (class, score, retained), by NumPy and the policy alone."""
    found = {}
    for path in sorted(board.production.iterdir()):
        pixels = np.asarray(Image.open(path)).astype(np.float32) / 255
        inputs = (pixels.transpose(2, 0, 1)[None] - 0.5) / 0.25
        _, classes, scores, _ = board.model.expected(inputs)
        found[path.name] = (int(classes[0]), scores[0], bool(policy.retains(scores, classes)[0]))
    return found


# -- windows of recordings --------------------------------------------------------------------------------


def test_long_recordings_are_calibrated_and_decided_window_by_window(drip, tmp_path):
    spec = InputSpec((1, 400), "crop", sample_rate_hz=16_000)
    known = make_model(tmp_path / "model.onnx", spec)
    result = drip("model", "set-input", known.path, "hop=200")
    assert result.code == 0, result.err
    folder, rng = tmp_path / "recordings", np.random.default_rng(0)
    folder.mkdir()
    for number in range(6):
        soundfile.write(folder / f"{number}.wav", rng.uniform(-0.9, 0.9, 8_000), 16_000)
    policy, store = tmp_path / "policy.json", tmp_path / "s.db"
    assert (
        drip(
            "calibrate", known.path, "--data", folder, "--out", policy, "--rule", "margin", "--keep", "0.5"
        ).code
        == 0
    )
    n_windows = 6 * len(range(0, 8_000 - 400 + 1, 200))
    assert Policy.load(policy).provenance.n_samples == n_windows
    result = drip("run", known.path, "--policy", policy, "--source", folder, "--store", store, "--json")
    assert json.loads(result.out)["store"]["seen"] == n_windows
    with RetentionStore.open_readonly(store) as kept:
        one = next(iter(kept))
        assert "#t=" in one.sample.id
        assert spec.prepare(one.sample.data, one.sample.media_type).shape == (1, 400)


# -- class names ---------------------------------------------------------------------------------------


def test_class_names_of_the_file_appear_in_run_stats_and_export(board, drip, tmp_path):
    store = tmp_path / "kept.db"
    options = ["--source", board.production, "--store", store]
    result = drip("run", board.model.path, *options)
    assert all(name in result.out for name in ("ant", "bee", "cow"))
    result = drip("store", "stats", store)
    assert all(name in result.out for name in ("ant", "bee", "cow"))
    assert json.loads(drip("store", "stats", store, "--json").out)["class_names"] == ["ant", "bee", "cow"]
    assert drip("store", "export", store, "--to", tmp_path / "out", "--labels", "predicted").code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"ant", "bee", "cow", "records.jsonl"}
    result = drip(
        "store",
        "export",
        store,
        "--to",
        tmp_path / "other",
        "--labels",
        "predicted",
        "--class-names",
        "a,b,c",
    )
    assert {path.name for path in (tmp_path / "other").iterdir()} <= {"a", "b", "c", "records.jsonl"}


@pytest.mark.parametrize(
    ("names", "noted"),
    [(("a/b", "bee", "cow"), ("a/b", "bee", "cow")), (("x" * 5000, "bee", "cow"), ())],
    ids=["no folder", "too long"],
)
def test_names_that_cannot_be_folders_or_do_not_fit(names, noted, board, drip, tmp_path):
    policy = Policy.load(board.policy)
    policy = replace(policy, provenance=replace(policy.provenance, class_names=names))
    policy.save(tmp_path / "policy.json")
    store = tmp_path / "kept.db"
    result = drip(
        "run",
        board.bare.path,
        "--policy",
        tmp_path / "policy.json",
        "--source",
        board.production,
        "--store",
        store,
    )
    assert result.code == 0, result.err
    with RetentionStore.open_readonly(store) as kept:
        assert kept.stats().class_names == noted
    assert drip("store", "export", store, "--to", tmp_path / "out", "--labels", "predicted").code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"0", "1", "2", "records.jsonl"}


# -- calibrate and run ---------------------------------------------------------------------------------


def test_calibrate_on_the_device_writes_the_files_policy(board, drip, tmp_path):
    out = tmp_path / "policy.json"
    options = ["--data", board.calibration, "--rule", "drip", "--out", out, "--dpw", "0.4"]
    result = drip("calibrate", board.bare.path, *options)
    assert result.code == 0, result.err
    policy = Policy.load(out)
    assert policy.windows == Policy.load(board.policy).windows
    assert policy.provenance.model_digest == board.bare.digest
    assert policy.provenance.class_names == ("ant", "bee", "cow")
    assert InputSpec.from_json(policy.provenance.input_spec) == board.spec
    assert policy.provenance.n_samples == 300
    assert "bee" in result.out
    OnnxScorer(board.bare.path).require(policy)


@pytest.mark.parametrize("rule", ["margin", "class-balanced-random", "max-logit-window"])
def test_any_rule_is_calibrated_on_the_device_and_runs(rule, board, drip, tmp_path):
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
    assert result.error == "rule-needs"
    assert "--contrast" in result.err
    assert not out.exists()
    rich = make_model(tmp_path / "rich.onnx", board.spec, seed=3, on_request=True)
    assert drip("calibrate", rich.path, *options).code == 0


@pytest.mark.parametrize(
    "extra", [["--input-spec", "3x8x8"], ["--class-names", "a,b,c"], ["--score", "layer=x"]]
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


def test_windows_in_the_file_that_differ_are_counted_and_the_policy_wins(board, drip, run_options, tmp_path):
    run_options[1] = board.bare.path
    result = drip(*run_options, "--policy", board.policy, "--json")
    found = json.loads(result.out)["run"]
    assert found["n_disagreements"] == found["n_discarded"] > 0
    (tmp_path / "kept.db").unlink()
    assert "The policy decided" in drip(*run_options, "--policy", board.policy).out


def test_a_file_without_a_policy_asks_for_one_before_a_store_is_made(board, drip, run_options, tmp_path):
    run_options[1] = board.bare.path
    result = drip(*run_options)
    assert result.code == 1
    assert result.error == "policy-missing"
    assert not (tmp_path / "kept.db").exists()


def test_a_quantised_file_needs_windows_of_its_own(board, drip, run_options, tmp_path):
    policy = Policy.load(board.policy)
    int8 = make_model(
        tmp_path / "int8.onnx", board.spec, seed=4, quantization={"weights": "int8"},
        parent_digest=board.bare.digest, policy=policy,
    )  # fmt: skip
    run_options[1] = int8.path
    result = drip(*run_options)
    assert result.code == 1
    assert result.error == "policy-parent-windows"
    assert not (tmp_path / "kept.db").exists()
    assert drip(*run_options, "--accept-parent-windows").code == 0


def test_a_policy_that_the_file_cannot_serve_is_refused_before_a_store_is_made(
    board, drip, run_options, tmp_path
):
    rich = make_model(tmp_path / "rich.onnx", board.spec, seed=3, on_request=True)
    policy = tmp_path / "contrast.json"
    options = ["--data", board.calibration, "--rule", "lowest-contrast", "--out", policy]
    assert drip("calibrate", rich.path, *options).code == 0
    fitted = Policy.load(policy)  # as if the same weights had been exported twice
    replace(
        fitted, provenance=replace(fitted.provenance, model_digest=OnnxScorer(run_options[1]).digest)
    ).save(policy)
    result = drip(*run_options, "--policy", policy)
    assert result.code == 1
    assert result.error == "rule-needs"
    assert not (tmp_path / "kept.db").exists()


def test_shadow_and_status_work_for_a_pytorch_model_too(digits, drip, tmp_path):
    store, status = tmp_path / "kept.db", tmp_path / "status.json"
    model = ["drip.models:SmallCNN", "--weights", digits.weights]
    options = ["--policy", digits.policy, "--source", digits.production, "--store", store]
    assert drip("run", *model, *options, "--shadow", "--status-file", status).code == 0
    found = json.loads(status.read_text())
    assert found["store_counts"]["kept"] == found["n_seen"] > found["n_retained"]
    assert found["model_digest"] == Policy.load(digits.policy).provenance.model_digest
    report = json.loads(drip("replay", store, digits.policy, "--json").out)
    assert report["counts"]["agreeing"] == found["n_seen"]
    assert drip("run", *model, *options, "--threads", "2").code == 2


def test_a_budget_of_nothing_is_refused(drip, run_options):
    result = drip(*run_options, "--budget", "0")
    assert result.code == 2
    assert "--budget" in result.err


def test_weights_beside_a_model_file_are_wrong_usage(board, drip, run_options):
    assert drip(*run_options, "--weights", board.policy).code == 2


def test_a_pytorch_model_without_a_policy_is_refused(digits, drip, tmp_path):
    result = drip(
        "run", "drip.models:SmallCNN", "--source", digits.production, "--store", tmp_path / "kept.db"
    )
    assert result.code == 1
    assert result.error == "policy-missing"


@pytest.mark.parametrize("content", [b"", b"not a model" * 99])
def test_a_file_that_is_no_model_is_refused_in_one_line(content, drip, run_options, tmp_path):
    run_options[1] = tmp_path / "bad.onnx"
    run_options[1].write_bytes(content)
    result = drip(*run_options)
    assert result.code == 1
    assert result.error.startswith("model-file-")
    assert len(result.err.splitlines()) == 1


@pytest.mark.slow
def test_calibrate_and_run_need_neither_torch_nor_onnx(board, run_options, tmp_path):
    out = tmp_path / "policy.json"
    for arguments in (
        ["calibrate", board.bare.path, "--data", board.calibration, "--rule", "drip", "--out", out],
        [*run_options, "--policy", out],
        ["replay", tmp_path / "kept.db", out],
    ):
        process = start(arguments, tmp_path)
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
    assert len(audit(tmp_path / "kept.db")) == N_PRODUCTION


def test_tokens_come_one_by_one_and_decide_alike(board, drip, run_options, tmp_path):
    drip(*run_options)
    expected = {row.sample_id: row.decision.retain for row in audit(tmp_path / "kept.db")}
    single = make_model(
        tmp_path / "single.onnx", board.spec, seed=3, batch=1, policy=Policy.load(board.policy)
    )
    run_options[1], run_options[-1] = single.path, tmp_path / "single.db"
    assert drip(*run_options).code == 0
    assert {row.sample_id: row.decision.retain for row in audit(tmp_path / "single.db")} == expected


# -- bad samples ---------------------------------------------------------------------------------------


@pytest.mark.slow
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
        reasons = {rejected.sample.id: rejected.reason for rejected in store.quarantined()}
    assert sorted(reasons) == ["a.png", "b.jpg", "c.npy", "d.npy", "e.png", "f.wav"]
    assert "144000000" in reasons["e.png"]
    assert all(reasons.values())


def test_sound_with_nan_goes_to_quarantine(drip, tmp_path):
    spec = InputSpec((1, 64), sample_rate_hz=8000)
    folder = tmp_path / "sound"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        values = 0.1 * rng.normal(size=64)
        if number == 50:
            values[3] = np.nan
        suffix, subtype = ("wav", "FLOAT") if number % 2 == 0 else ("flac", "PCM_16")
        soundfile.write(folder / f"{number:02}.{suffix}", values, 8000, subtype=subtype)
    model = make_model(tmp_path / "model.onnx", spec)
    policy = tmp_path / "policy.json"
    calm = Path(shutil.copytree(folder, tmp_path / "calm"))
    (calm / "50.wav").unlink()
    assert drip("calibrate", model.path, "--data", calm, "--rule", "drip", "--out", policy).code == 0
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
    assert status["code"] == result.error == "run-nothing-usable"
