"""Command lines that no run can follow: one line that says why, and nothing left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from digits import MODEL

from drip.cli.arguments import MAX_BATCH_SIZE, MAX_BYTES, MAX_THREADS
from drip.errors import CODES
from drip.store import RetentionStore

META_MODEL = """
import torch
from drip.models import SmallCNN

def build():
    with torch.device("meta"):
        return SmallCNN()

class Forgetful(SmallCNN):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.empty(3, device="meta"))
"""


ENDLESS_MODEL = """
import pathlib, time
from drip.models import SmallCNN

class Endless(SmallCNN):
    def forward(self, x):
        pathlib.Path("begun").touch()
        time.sleep(300)
"""


@pytest.fixture
def refused(drip, tmp_path):
    """Runs a command line that must fail with a code; gives its one line, and looks for leftovers.

    The code ``usage`` means exit code 2, any other one exit code 1 with that error code.
    """

    def call(*arguments, code):
        before = sorted(tmp_path.iterdir())
        result = drip(*arguments)
        assert result.code == (2 if code == "usage" else 1), result.err
        assert result.out == ""
        if code != "usage":
            codes = code if isinstance(code, tuple) else (code,)
            assert set(codes) <= set(CODES)
            assert result.error in codes, result.err
            assert len(result.err.splitlines()) == 1
        assert sorted(tmp_path.iterdir()) == before
        return result.err

    return call


# -- numbers beyond reason -----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", ["99999999999", "-1", "0", str(MAX_THREADS + 1), "1e3", ""])
@pytest.mark.parametrize("command", ["run", "calibrate"])
def test_threads_that_no_device_has_are_refused(command, threads, board, refused, run_options, tmp_path):
    calibrate = ["calibrate", board.bare.path, "--data", board.calibration, "--out", tmp_path / "policy.json"]
    base = run_options if command == "run" else calibrate
    assert "--threads" in refused(*base, "--threads", threads, code="usage")


@pytest.mark.parametrize("names", ["a,a", "a,b,", "a,,b", ",", "zero, zero"])
@pytest.mark.parametrize("command", ["calibrate", "export", "store"])
def test_class_names_that_are_empty_or_come_twice_are_refused(names, command, digits, refused, tmp_path):
    model = [MODEL, "--weights", digits.weights, "--input-spec", "1x28x28", "--class-names", names]
    commands = {
        "calibrate": ["calibrate", *model, "--data", digits.calibration, "--out", tmp_path / "policy.json"],
        "export": ["model", "export", *model, "--out", tmp_path / "model.onnx"],
        "store": ["store", "export", tmp_path / "kept.db", "--to", tmp_path / "out", "--class-names", names],
    }
    assert "names" in refused(*commands[command], code="usage")


@pytest.mark.parametrize("size", ["-1", "0", str(MAX_BATCH_SIZE + 1), "9" * 30])
def test_a_batch_that_no_memory_holds_is_refused(size, refused, run_options):
    assert "--batch-size" in refused(*run_options, "--batch-size", size, code="usage")


def test_the_largest_batch_runs(drip, run_options):
    found = json.loads(drip(*run_options, "--batch-size", str(MAX_BATCH_SIZE), "--json").out)
    assert found["run"]["n_seen"] == 150


@pytest.mark.parametrize(
    "budget", ["0", "0.4", "-5", "1e400GB", "999999999999TB", "17TB", "9" * 14, "nan", "inf", ""]
)
def test_a_budget_that_no_store_has_is_refused(budget, refused, run_options):
    assert "--budget" in refused(*run_options, "--budget", budget, code="usage")


@pytest.mark.parametrize("budget", ["1", "10kB", "100kB"])
def test_a_budget_below_the_least_is_refused_with_the_least(budget, refused, run_options):
    line = refused(*run_options, "--budget", budget, code="store-budget")
    assert not re.search(r"-\d", line)  # no negative number of bytes


def test_the_greatest_budget_is_one_that_a_store_takes(drip, run_options, tmp_path):
    assert drip(*run_options, "--budget", f"{MAX_BYTES}").code == 0
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        assert store.budget_bytes == MAX_BYTES
        assert store.check().ok


@pytest.mark.parametrize("shape", ["3x60000x11000", "1x9000x9000", "3x999999999999x999999999999999999999999"])
@pytest.mark.parametrize("command", ["export", "calibrate"])
def test_a_shape_that_no_memory_holds_is_refused(command, shape, board, refused, tmp_path):
    export = ["model", "export", MODEL, "--out", tmp_path / "model.onnx"]
    calibrate = ["calibrate", MODEL, "--data", board.calibration, "--out", tmp_path / "policy.json"]
    base = export if command == "export" else calibrate
    assert "--input-spec" in refused(*base, "--input-spec", shape, code="usage")


def test_too_little_memory_is_one_line(drip, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 2.00 GiB")

    monkeypatch.setattr("drip.onnx.export_onnx", fail)
    result = drip("model", "export", MODEL, "--input-spec", "1x28x28")
    (line,) = result.err.splitlines()
    assert "Unable to allocate 2.00 GiB" in line
    assert (result.code, result.error) == (1, "out-of-memory")


@pytest.mark.parametrize("option", [["--seed", "-1"], ["--seed", "9" * 20], ["--epochs", "0"]])
def test_a_demo_that_cannot_be_is_refused(option, refused, tmp_path):
    assert option[0] in refused("demo", "--out", tmp_path / "demo", *option, code="usage")


# -- ends --------------------------------------------------------------------------------------------------


def test_an_output_that_is_full_is_one_line():
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-c", "from drip.cli import main; main()", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error[os-error]: No space left on device\n"


@pytest.mark.slow
def test_an_interrupted_calibration_leaves_nothing_and_no_traceback(digits, tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS_MODEL)
    command = [
        # a shell's background job would hand down that interrupts are ignored
        sys.executable, "-c", ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from drip.cli import main; main()"), "calibrate", "endless:Endless",
        "--data", digits.calibration, "--input-spec", "1x28x28",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (tmp_path / "policy.json").exists()


# -- files to write ------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path):
    """What is neither file nor folder, as /dev/null is; a root user could rename a file over it."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("option", ["--store", "--status-file"])
@pytest.mark.parametrize("place", ["pipe", "."])
def test_a_run_replaces_neither_device_nor_folder(place, option, pipe, refused, run_options, tmp_path):
    refused(*run_options, option, tmp_path / place, code="path-not-writable")
    assert pipe.is_fifo()
    assert not list(tmp_path.parent.glob("*-lock"))


def test_a_policy_replaces_no_device(board, pipe, refused):
    refused(
        "calibrate", board.bare.path, "--data", board.calibration, "--out", pipe, code="path-not-writable"
    )
    refused("model", "set-policy", board.model.path, board.policy, "--out", pipe, code="path-not-writable")
    assert pipe.is_fifo()


def test_a_status_file_replaces_no_store(drip, refused, run_options, tmp_path):
    assert drip(*run_options).code == 0
    for path in (tmp_path / "kept.db", run_options[1]):
        content = path.read_bytes()
        refused(*run_options, "--status-file", path, code="path-not-writable")
        assert path.read_bytes() == content
    status = tmp_path / "status.json"
    status.touch()
    for _ in range(2):
        assert drip(*run_options, "--status-file", status).code == 0


def test_what_is_written_replaces_nothing_that_is_read(board, digits, refused):
    model = [MODEL, "--weights", digits.weights]
    for path, arguments in (
        (board.bare.path, ["calibrate", board.bare.path, "--data", board.calibration]),
        (digits.weights, ["calibrate", *model, "--data", digits.calibration, "--input-spec", "1x28x28"]),
        (digits.policy, ["model", "export", *model, "--policy", digits.policy]),
        (board.bare.path, ["model", "export", board.bare.path]),
        (board.bare.path, ["model", "quantize", board.bare.path, "--data", board.calibration]),
    ):
        content = path.read_bytes()
        assert "also an input" in refused(*arguments, "--out", path, code="path-not-writable")
        assert path.read_bytes() == content


def test_a_window_method_of_a_rule_without_windows_is_refused(board, refused):
    options = ["--data", board.calibration, "--rule", "margin", "--rule-option", "method=min_std"]
    refused("calibrate", board.bare.path, *options, code="rule-arguments")


# -- paths that do not exist -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{missing}.onnx", "--source", "{data}", "--store", "{out}"],
        ["run", "{factory}", "--weights", "{missing}", "--source", "{data}", "--store", "{out}"],
        ["run", "{model}", "--policy", "{missing}", "--source", "{data}", "--store", "{out}"],
        ["run", "{model}", "--source", "{missing}", "--store", "{out}"],
        ["run", "{model}", "--source", "watch:{missing}", "--store", "{out}"],
        ["calibrate", "{missing}.onnx", "--data", "{data}", "--out", "{out}"],
        ["calibrate", "{factory}", "--weights", "{missing}", "--data", "{data}", "--input-spec", "3x8x8"],
        ["calibrate", "{model}", "--data", "{missing}", "--out", "{out}"],
        ["calibrate", "{model}", "--data", "{data}", "--out", "{missing}/policy.json"],
        ["replay", "{missing}", "{policy}"],
        ["replay", "{policy}", "{missing}"],
        ["store", "stats", "{missing}"],
        ["store", "check", "{missing}"],
        ["store", "export", "{missing}", "--to", "{out}"],
        ["model", "export", "{missing}.onnx", "--out", "{out}"],
        ["model", "export", "{factory}", "--weights", "{missing}", "--input-spec", "3x8x8", "--out", "{out}"],
        ["model", "export", "{model}", "--policy", "{missing}", "--out", "{out}"],
        ["model", "set-policy", "{missing}", "{policy}"],
        ["model", "set-policy", "{model}", "{missing}"],
        ["model", "quantize", "{missing}", "--data", "{data}", "--out", "{out}"],
        ["model", "quantize", "{model}", "--data", "{missing}", "--out", "{out}"],
        ["model", "check", "{missing}"],
        ["--config", "{missing}", "demo"],
    ],
    ids=" ".join,
)
def test_a_path_that_does_not_exist_is_named(arguments, board, drip, tmp_path):
    places = {
        "missing": tmp_path / "missing", "out": tmp_path / "out", "data": board.calibration, "factory": MODEL,
        "model": board.model.path, "policy": board.policy,
    }  # fmt: skip
    result = drip(*(argument.format(**places) for argument in arguments))
    assert result.code == 1
    assert result.error in ("path-missing", "store-missing")
    assert str(tmp_path / "missing") in result.err
    assert "does not exist" in result.err
    assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{model}", "--source", "{data}", "--store", ""],
        ["run", "{model}", "--source", "{data}", "--store", "{out}", "--policy", ""],
        ["calibrate", "{model}", "--data", ""],
        ["calibrate", "{model}", "--data", "{data}", "--out", ""],
        ["store", "stats", ""],
        ["model", "check", ""],
        ["reduce", "images", "", "--out", "{out}"],
        ["reduce", "table", "{model}", "--out", ""],
        ["demo", "--out", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_wrong_usage(arguments, board, refused, tmp_path):
    places = {"out": tmp_path / "out", "data": board.calibration, "model": board.model.path}
    refused(*(argument.format(**places) for argument in arguments), code="usage")


@pytest.mark.parametrize("kind", ["folder", "pipe"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{it}.onnx", "--source", "{data}", "--store", "{out}"],
        ["run", "{model}", "--policy", "{it}.onnx", "--source", "{data}", "--store", "{out}"],
        ["calibrate", "{factory}", "--weights", "{it}.onnx", "--data", "{data}", "--input-spec", "3x8x8"],
        ["model", "check", "{it}.onnx"],
        ["model", "set-policy", "{model}", "{it}.onnx"],
        ["model", "export", "{it}.onnx", "--out", "{out}"],
        ["model", "quantize", "{it}.onnx", "--data", "{data}", "--out", "{out}"],
        ["replay", "{model}", "{it}.onnx"],
        ["reduce", "table", "{it}.onnx", "--out", "{out}"],
        ["reduce", "images", "{data}", "--weights", "{it}.onnx", "--out", "{out}"],
        ["reduce", "images", "{data}", "--model", "{it}.onnx", "--out", "{out}"],
        ["reduce", "images", "{data}", "--annotations", "{it}.onnx", "--out", "{out}"],
        ["--config", "{it}.onnx", "demo"],
    ],
    ids=" ".join,
)
def test_a_folder_or_a_pipe_is_not_a_file(arguments, kind, board, refused, tmp_path):
    path = tmp_path / "it.onnx"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    places = {
        "it": tmp_path / "it", "out": tmp_path / "out", "data": board.calibration, "factory": MODEL,
        "model": board.model.path,
    }  # fmt: skip
    code = "config-invalid" if "--config" in arguments else "path-missing"
    assert kind in refused(*(argument.format(**places) for argument in arguments), code=code)


def test_two_outputs_are_two_files(refused, run_options, tmp_path):
    place = tmp_path / "kept.db"
    refused(*run_options, "--status-file", tmp_path / "." / place.name, code="usage")
    assert not place.exists()


def test_images_are_not_copied_to_the_path_of_their_list(board, refused, tmp_path):
    out = tmp_path / "out"
    base = ["reduce", "images", board.calibration, "--model", MODEL, "--input-spec", "1x8x8"]
    assert "--copy-to" in refused(*base, "--out", out, "--copy-to", out, code="usage")


def test_a_name_that_is_not_utf_8_is_one_line(refused, run_options, tmp_path):
    refused(*run_options, "--store", tmp_path / "\udcff", code="bad-argument")


def test_a_list_of_images_replaces_no_input(board, digits, refused):
    base = ["reduce", "images", board.calibration, "--model", MODEL, "--weights", digits.weights]
    refused(*base, "--out", digits.weights, "--overwrite", code="path-not-writable")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--keep", "0"), ("--keep", "nan"), ("--keep", ""), ("--n-samples", "0"), ("--n-samples", "nan"),
        ("--epsilon", "nan"), ("--epsilon", "inf"), ("--watts", "nan"), ("--watts", "1e400"),
        ("--watts", "0"), ("--seed", "9" * 5000),
    ],
)  # fmt: skip
def test_a_reduction_option_outside_its_range_is_wrong_usage(option, value, board, refused, tmp_path):
    base = ["reduce", "table", board.policy, "--out", tmp_path / "kept.csv"]
    assert option in refused(*base, option, value, code="usage")


@pytest.mark.parametrize("value", ["nan", "-inf", "-1.1", "1.1", ""])
def test_a_kappa_outside_its_range_is_wrong_usage(value, board, refused, tmp_path):
    base = ["model", "quantize", board.bare.path, "--data", board.calibration, "--out", tmp_path / "q.onnx"]
    assert "--min-kappa" in refused(*base, "--min-kappa", value, code="usage")


def test_an_output_that_exists_names_the_option_that_replaces_it(drip, tmp_path):
    (tmp_path / "t.csv").write_text("a\n1\n2\n")
    (tmp_path / "kept.csv").touch()
    result = drip("reduce", "table", tmp_path / "t.csv", "--out", tmp_path / "kept.csv")
    assert (result.error, "--overwrite" in result.err) == ("path-exists", True)


# -- sources -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://[bad",
        "mqtt://me:hunter2@[bad/a?client=c",
        "http://[::1",
        "file://[",
        "watch://[x",
        "mqtt://me:hunter2@℀.com/a?client=c",
        "mqtt://a#]/t?client=c",
    ],
)
def test_a_malformed_url_is_refused_and_not_repeated(url, refused, run_options):
    run_options[3] = url
    assert "hunter2" not in refused(*run_options, code="source-url")


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://..../a?client=c",
        f"mqtt://{'é' * 70}/a?client=c",
        "mqtt://\udcff/a?client=c",
        "mqtt://h/a%00b?client=c",
        f"mqtt://h/{'a' * 65_536}?client=c",
        "mqtt://h/\udcff?client=c",
        "mqtt://h/a?client=%00",
        "mqtt://h/a?client=c&client=d",
        "dataset:",
        "dataset:mnist#x",
        "dataset://mnist/x",
        "stdin:?format=x",
        "stdin:nope",
        "stdin://host",
        "stdin:#x",
        "file:///tmp?x=1",
        "file:///tmp#x",
        "watch:/tmp#x",
        "",
        "\0",
    ],
)
def test_an_address_that_leads_nowhere_is_refused(url, refused, run_options):
    run_options[3] = url
    refused(*run_options, code=("source-url", "path-missing", "source-unavailable"))


# -- models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["absent:build", "absent:Forgetful"])
def test_a_model_on_the_meta_device_is_refused(factory, board, drip, tmp_path, monkeypatch):
    (tmp_path / "absent.py").write_text(META_MODEL)
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["calibrate", factory, "--data", board.calibration, "--input-spec", "3x8x8"],
        ["model", "export", factory, "--input-spec", "1x28x28"],
    ):
        result = drip(*arguments)
        assert (result.code, result.error) == (1, "model-not-loadable")
        assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.glob("*.json")) + list(tmp_path.glob("*.onnx"))
    assert torch.get_default_device() == torch.device("cpu")


@pytest.mark.parametrize("command", ["calibrate", "export", "images"])
def test_a_model_for_other_inputs_has_one_code(command, board, digits, refused, tmp_path):
    model = ["--weights", digits.weights, "--input-spec", "3x8x8"]
    commands = {
        "calibrate": ["calibrate", MODEL, "--data", board.calibration],
        "export": ["model", "export", MODEL],
        "images": ["reduce", "images", board.calibration, "--model", MODEL],
    }
    refused(*commands[command], *model, "--out", tmp_path / "out", code="input-spec-invalid")


def test_wrong_weights_of_the_default_network_are_one_short_line(board, digits, refused, tmp_path):
    base = ["reduce", "images", board.calibration, "--out", tmp_path / "kept.txt"]
    for weights in (board.policy, digits.weights):
        line = refused(*base, "--weights", weights, code="model-not-loadable")
        assert "weights_only" not in line
        assert len(line) < 600


def test_weights_that_are_none_are_refused_without_advice_to_run_them(board, digits, refused):
    options = ["--weights", board.policy, "--data", digits.calibration, "--input-spec", "1x28x28"]
    assert "weights_only" not in refused("calibrate", MODEL, *options, code="model-not-loadable")


def test_an_empty_file_is_no_store(refused, tmp_path):
    (tmp_path / "empty.db").touch()
    refused("store", "stats", tmp_path / "empty.db", code="store-invalid")


@pytest.mark.parametrize("layout", ["folder", "webdataset"])
def test_an_export_into_a_missing_folder_says_so(layout, drip, run_options, tmp_path):
    assert drip(*run_options).code == 0
    to = tmp_path / "none" / "deeper"
    options = ["--to", to, "--format", layout, "--labels", "predicted"]
    assert drip("store", "export", tmp_path / "kept.db", *options).error == "path-missing"
    assert not to.parent.exists()
