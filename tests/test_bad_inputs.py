"""Faults that happen in the field, from the command line to the store, each with its message."""

import io
import json
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from digits import MODEL, N_PRODUCTION, SHAPE
from PIL import Image

from drip.models import SmallCNN
from drip.store import RetentionStore


def png_bomb():
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.fixture
def production(digits, tmp_path):
    return shutil.copytree(digits.production, tmp_path / "production")


@pytest.fixture
def run_options(digits, production, tmp_path):
    return [
        "run", MODEL, "--weights", digits.weights, "--policy", digits.policy,
        "--source", production, "--store", tmp_path / "kept.db",
    ]  # fmt: skip


@pytest.fixture
def calibrate_options(digits, tmp_path):
    return [
        "calibrate", MODEL, "--weights", digits.weights, "--data", digits.calibration,
        "--input-spec", SHAPE, "--rule", "drip", "--out", tmp_path / "new-policy.json",
    ]  # fmt: skip


def truncated(production):
    victim = sorted(production.glob("*/*.png"))[7]
    return victim.read_bytes()[:-60]


def other_format(_):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(buffer, "GIF")
    return buffer.getvalue()


def other_size(_):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 28), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


BAD_FILES = {
    "truncated": (truncated, "the image is truncated or corrupt"),
    "bomb": (lambda _: png_bomb(), "3600000000"),
    "empty": (lambda _: b"", "the image/png file is empty"),
    "gif": (other_format, "it begins with b'GIF8"),
    "size": (other_size, "the image has 28 x 9 pixels, but the input spec says 28 x 28"),
}


@pytest.mark.parametrize("kind", sorted(BAD_FILES))
def test_bad_file_goes_to_quarantine_with_the_reason_and_affects_no_other_sample(
    kind, drip, run_options, production, tmp_path
):
    make, reason = BAD_FILES[kind]
    (production / "5" / "bad.png").write_bytes(make(production))
    result = drip(*run_options, "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert found["run"]["n_quarantined"] == 1
    assert found["run"]["n_seen"] == N_PRODUCTION + 1
    assert found["store"]["seen"] == N_PRODUCTION
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        (quarantined,) = store.quarantined()
        assert store.check().ok
    assert quarantined.sample.id == "5/bad.png"
    assert reason in quarantined.reason


@pytest.mark.parametrize("kind", sorted(BAD_FILES))
def test_bad_file_stops_the_run_when_errors_raise(kind, drip, run_options, production):
    make, reason = BAD_FILES[kind]
    (production / "5" / "bad.png").write_bytes(make(production))
    result = drip(*run_options, "--on-error", "raise")
    assert result.code == 1
    assert "sample '5/bad.png': " in result.err
    assert reason in result.err
    assert "Traceback" not in result.err


def test_bad_file_stops_the_calibration_and_is_named(digits, drip, calibrate_options, tmp_path):
    folder = shutil.copytree(digits.calibration, tmp_path / "calibration")
    (folder / "5" / "bad.png").write_bytes(png_bomb())
    calibrate_options[calibrate_options.index(digits.calibration)] = folder
    result = drip(*calibrate_options)
    assert result.code == 1
    assert "sample '5/bad.png'" in result.err
    assert not (tmp_path / "new-policy.json").exists()


@pytest.fixture
def users_model(tmp_path, monkeypatch):
    """Writes a model into the current folder. Each needs a new name, as Python caches modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text):
        (tmp_path / f"{name}.py").write_text("import torch\nfrom drip.models import SmallCNN\n" + text)
        return f"{name}:build"

    return write


MOODY = """
class build(SmallCNN):
    def forward(self, x):
        logits = super().forward(x)
        return torch.where(x.amax((1, 2, 3)).lt(0.5)[:, None], torch.nan, logits)
"""


def test_nan_logits_send_one_sample_to_quarantine(drip, run_options, production, users_model, tmp_path):
    Image.fromarray(np.full((28, 28), 3, np.uint8)).save(production / "5" / "dark.png")
    run_options[1] = users_model("moody_model", MOODY)
    result = drip(*run_options, "--json")
    assert result.code == 0, result.err
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        (quarantined,) = store.quarantined()
        assert store.stats().seen == N_PRODUCTION
    assert quarantined.sample.id == "5/dark.png"
    assert "NaN" in quarantined.reason


def test_nan_logits_stop_the_calibration_and_the_sample_is_named(
    digits, drip, calibrate_options, users_model, tmp_path
):
    folder = shutil.copytree(digits.calibration, tmp_path / "calibration")
    Image.fromarray(np.full((28, 28), 3, np.uint8)).save(folder / "5" / "dark.png")
    calibrate_options[1] = users_model("moody_model_2", MOODY)
    calibrate_options[calibrate_options.index(digits.calibration)] = folder
    result = drip(*calibrate_options)
    assert result.code == 1
    assert "sample '5/dark.png'" in result.err
    assert "NaN" in result.err


def test_weights_that_are_all_nan_are_an_error(drip, calibrate_options, tmp_path):
    model = SmallCNN()
    with torch.no_grad():
        model.classifier.weight.fill_(torch.nan)
    torch.save(model.state_dict(), tmp_path / "nan.pt")
    calibrate_options[3] = tmp_path / "nan.pt"
    result = drip(*calibrate_options)
    assert result.code == 1
    assert "NaN" in result.err


def test_model_with_one_class_is_an_error(drip, calibrate_options, users_model):
    calibrate_options[1:4] = [users_model("one_class", "def build():\n    return SmallCNN(n_classes=1)\n")]
    result = drip(*calibrate_options)
    assert result.code == 1
    assert "Traceback" not in result.err
    assert "one logit per sample" in result.err


def test_class_without_calibration_samples_has_the_window_of_all_classes(
    drip, digits, calibrate_options, run_options, tmp_path
):
    calibrate_options[calibrate_options.index(digits.calibration)] = digits.calibration / "1"
    assert drip(*calibrate_options).code == 0
    windows = json.loads((tmp_path / "new-policy.json").read_text())["rule"]["state"]["windows"]
    empty = {number for number, window in enumerate(windows) if window["n"] == 0}
    assert all(windows[number]["pooled"] for number in empty)
    (ends,) = {(windows[number]["lower"], windows[number]["upper"]) for number in empty}
    run_options[5] = tmp_path / "new-policy.json"
    assert drip(*run_options).code == 0
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        rows = [row for row in store.audit() if row.predicted_class in empty]
    assert rows
    assert all(row.decision.retain is not (ends[0] <= row.scores["drip"] <= ends[1]) for row in rows)


CONSTANT = """
def build():
    torch.manual_seed(0)
    model = SmallCNN()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.arange(10.0))
    return model
"""


def test_constant_scores_never_discard_and_say_so(
    drip, calibrate_options, run_options, users_model, tmp_path
):
    spec = users_model("constant_model", CONSTANT)
    calibrate_options[1:4] = [spec]
    result = drip(*calibrate_options)
    assert result.code == 0, result.err
    windows = json.loads((tmp_path / "new-policy.json").read_text())["rule"]["state"]["windows"]
    assert windows[9]["n"] == 300
    assert "ties" in windows[9]["never_because"] or "equal" in windows[9]["never_because"]
    run_options[1:6] = [spec, "--policy", tmp_path / "new-policy.json"]
    found = json.loads(drip(*run_options, "--json").out)
    assert found["run"]["retention"] == 1.0


def test_policy_of_another_model_is_an_error(drip, run_options, tmp_path):
    torch.manual_seed(3)
    torch.save(SmallCNN().state_dict(), tmp_path / "other.pt")
    run_options[3] = tmp_path / "other.pt"
    result = drip(*run_options)
    assert result.code == 1
    assert result.error == "policy-other-model"


def test_truncated_policy_is_an_error_at_many_offsets(drip, digits, run_options, tmp_path):
    text = digits.policy.read_bytes()
    run_options[5] = tmp_path / "cut.json"
    for end in (0, 1, len(text) // 2, len(text) - 3):
        (tmp_path / "cut.json").write_bytes(text[:end])
        result = drip(*run_options)
        assert result.code == 1
        assert "cut.json" in result.err
    assert not (tmp_path / "kept.db").exists()


def test_budget_below_the_minimum_is_an_error_with_the_minimum(drip, run_options, tmp_path):
    result = drip(*run_options, "--budget", "20kB")
    assert result.code == 1
    assert "budget_bytes=" in result.err
    assert "minimum" in result.err
    assert not (tmp_path / "kept.db").exists()


def test_run_that_can_decode_no_sample_exits_with_1_and_the_reason(drip, run_options, production):
    for path in production.glob("*/*.png"):
        path.write_bytes(b"")
    for policy in ("quarantine", "skip"):
        result = drip(*run_options, "--on-error", policy)
        assert result.code == 1
        assert result.error == "run-nothing-usable"
        assert str(N_PRODUCTION) in result.err
        run_options[-1] = run_options[-1].with_name("other.db")


@pytest.mark.slow
def test_kept_sample_larger_than_the_budget_names_itself(
    drip, calibrate_options, run_options, production, users_model, tmp_path, digits
):
    text = "def build():\n    torch.manual_seed(0)\n    return SmallCNN(width=2, n_classes=3)\n"
    spec = users_model("wide_model", text)
    rng = np.random.default_rng(0)
    calibration = tmp_path / "big-calibration"
    for folder, count in ((calibration, 3), (shutil.rmtree(production) or production, 2)):
        folder.mkdir()
        for number in range(count):
            picture = rng.integers(0, 256, (640, 640), dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"{number}.png")
    calibrate_options[1:4] = [spec]
    calibrate_options[calibrate_options.index(digits.calibration)] = calibration
    calibrate_options[calibrate_options.index(SHAPE)] = "1x640x640"
    assert drip(*calibrate_options).code == 0
    run_options[1:6] = [spec, "--policy", tmp_path / "new-policy.json"]
    result = drip(*run_options, "--budget", "400kB")
    assert result.code == 1
    assert "sample '0.png'" in result.err
    assert "raise budget_bytes" in result.err
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        assert store.check().ok
        assert store.stats().seen == 0
    assert drip(*run_options, "--budget", "5MB").code == 0


@pytest.mark.parametrize("place", ["file/kept.db", "missing/kept.db", "/proc/kept.db"])
def test_store_in_a_folder_that_cannot_be_written_is_a_one_line_error(place, drip, run_options, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    run_options[-1] = tmp_path / place
    result = drip(*run_options)
    assert result.code == 1
    assert result.error
    assert "kept.db" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("place", ["file/policy.json", "missing/policy.json", "/proc/policy.json"])
def test_policy_in_a_folder_that_cannot_be_written_is_a_one_line_error(
    place, drip, calibrate_options, tmp_path
):
    (tmp_path / "file").write_text("not a folder")
    calibrate_options[-1] = tmp_path / place
    result = drip(*calibrate_options)
    assert result.code == 1
    assert result.error
    assert "Traceback" not in result.err


def test_store_that_is_not_a_database_is_an_error_and_unchanged(drip, run_options, tmp_path):
    (tmp_path / "kept.db").write_text("a shopping list\n" * 100)
    result = drip(*run_options)
    assert result.code == 1
    assert "kept.db" in result.err
    assert (tmp_path / "kept.db").read_text().startswith("a shopping list")


def test_interrupted_run_continues_without_loss_or_duplicate(
    drip, run_options, production, tmp_path, monkeypatch
):
    """A put is interrupted in the middle of the stream; the same command continues."""
    real, calls = RetentionStore.put, []

    def put(self, sample, observation, decision):
        calls.append(sample.id)
        if len(calls) == 45:
            raise KeyboardInterrupt
        real(self, sample, observation, decision)

    monkeypatch.setattr(RetentionStore, "put", put)
    result = drip(*run_options, "--batch-size", "8")
    assert result.code == 130
    assert "the same command continues" in result.err
    monkeypatch.setattr(RetentionStore, "put", real)
    found = json.loads(drip(*run_options, "--batch-size", "8", "--json").out)
    assert found["run"]["n_seen"] == N_PRODUCTION - 40
    assert found["store"]["seen"] == N_PRODUCTION
    assert found["store"]["redelivered"] == 0
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        got = [row.sample_id for row in store.audit()]
        assert store.check().ok
    assert got == sorted(path.relative_to(production).as_posix() for path in production.glob("*/*.png"))
