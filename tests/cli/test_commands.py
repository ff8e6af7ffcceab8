"""The command line end to end: calibrate, run, look, check, export; exit codes, JSON, help."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from digits import MODEL, N_PRODUCTION, SHAPE
from PIL import Image
from typer.testing import CliRunner

from drip.cli.app import app
from drip.errors import DripError
from drip.models import load_model
from drip.policy import Policy
from drip.sources import FolderSource
from drip.store import RetentionStore
from drip.workflow import run_stream


@pytest.fixture
def run_options(digits, tmp_path):
    return [
        "run", MODEL, "--weights", digits.weights, "--policy", digits.policy,
        "--source", digits.production, "--store", tmp_path / "kept.db",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """The store of a finished run, for copies."""
    path = tmp_path_factory.mktemp("finished") / "kept.db"
    with RetentionStore.open(path, budget_bytes=10**9) as store:
        run_stream(
            load_model(MODEL, digits.weights),
            Policy.load(digits.policy),
            FolderSource(digits.production),
            store,
        )
    return path


@pytest.fixture
def kept(finished, tmp_path):
    return Path(shutil.copy(finished, tmp_path / "kept.db"))


def decisions(path):
    with RetentionStore.open_readonly(path) as store:
        return {row.sample_id: (row.decision, row.outcome, row.predicted_class) for row in store.audit()}


# -- calibrate and run ---------------------------------------------------------------------------------


def test_calibrate_writes_a_policy_of_the_model_and_prints_its_windows(digits, drip, tmp_path):
    out = tmp_path / "policy.json"
    result = drip(
        "calibrate", MODEL, "--weights", digits.weights, "--data", digits.calibration, "--input-spec", SHAPE,
        "--rule", "drip", "--out", out, "--class-names", "zero,one,two,three,four,five,six,seven,eight,nine",
    )  # fmt: skip
    assert result.code == 0
    policy, expected = Policy.load(out), Policy.load(digits.policy)
    for window, other in zip(policy.windows, expected.windows, strict=True):
        assert (window.n, window.never_because) == (other.n, other.never_because)
        assert window.lower == pytest.approx(other.lower, rel=1e-5)
        assert window.upper == pytest.approx(other.upper, rel=1e-5)
    assert policy.provenance.model_digest == expected.provenance.model_digest
    assert policy.provenance.n_samples == 300
    assert policy.provenance.class_names[3] == "three"
    assert "three" in result.out
    assert "(too few" in result.out  # the note of a pooled window; the table may break it further on
    assert any(window.pooled for window in policy.windows)


def test_calibrate_prints_the_policy_as_json(digits, drip, tmp_path):
    out = tmp_path / "policy.json"
    result = drip(
        "calibrate", MODEL, "--weights", digits.weights, "--data", digits.calibration,
        "--input-spec", "1x28x28", "--out", out, "--rule", "margin", "--dpw", "0.25", "--json",
    )  # fmt: skip
    assert result.code == 0
    assert json.loads(result.out) == json.loads(out.read_text())
    assert json.loads(result.out)["rule"]["name"] == "margin"
    assert json.loads(result.out)["rule"]["params"] == {"retention": 0.75}


@pytest.mark.parametrize("rule", ["lowest-contrast", "random", "class-balanced-random", "entropy"])
def test_every_kind_of_rule_goes_from_calibration_to_a_store(rule, digits, drip, tmp_path):
    policy, store = tmp_path / "policy.json", tmp_path / "kept.db"
    model = [MODEL, "--weights", digits.weights]
    drip(
        "calibrate",
        *model,
        "--data",
        digits.calibration,
        "--input-spec",
        SHAPE,
        "--rule",
        rule,
        "--out",
        policy,
    )
    result = drip(
        "run", *model, "--policy", policy, "--source", digits.production, "--store", store, "--json"
    )
    assert result.code == 0
    assert json.loads(result.out)["store"]["seen"] == N_PRODUCTION


def test_run_decides_as_the_policy_says(digits, drip, run_options, tmp_path):
    assert drip(*run_options).code == 0
    policy = Policy.load(digits.policy)
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        rows = list(store.audit())
        kept = {stored.sample.id: stored for stored in store}
    assert [row.sample_id for row in rows] == sorted(row.sample_id for row in rows)
    assert len(rows) == N_PRODUCTION
    scores = np.array([row.scores["drip"] for row in rows])
    expected = policy.retains(scores, np.array([row.predicted_class for row in rows]))
    assert [row.decision.retain for row in rows] == expected.tolist()
    assert 0 < expected.sum() < N_PRODUCTION
    assert set(kept) == {row.sample_id for row in rows if row.decision.retain}
    for name, stored in kept.items():
        assert stored.sample.data == (digits.production / name).read_bytes()
        assert stored.policy_digest == policy.digest


def test_run_prints_numbers_that_agree(drip, run_options):
    found = json.loads(drip(*run_options, "--json").out)
    run, store = found["run"], found["store"]
    assert run["n_seen"] == store["seen"] == N_PRODUCTION
    assert run["n_retained"] == store["kept"]
    assert run["retention"] == run["n_retained"] / N_PRODUCTION
    assert not run["interrupted"]


@pytest.mark.usefixtures("kept")
def test_finished_run_started_again_says_that_nothing_is_new(drip, run_options):
    again = drip(*run_options)
    assert again.code == 0
    assert "No new samples since the last run" in again.out


@pytest.mark.usefixtures("kept")
def test_second_folder_goes_into_the_same_store_from_its_first_file(digits, drip, run_options, tmp_path):
    day_2 = tmp_path / "day-2"
    day_2.mkdir()
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(day_2 / "0.png")
    run_options[run_options.index(digits.production)] = day_2
    assert json.loads(drip(*run_options, "--json").out)["run"]["n_seen"] == 1


def test_store_keeps_its_budget_when_it_is_not_given_again(drip, run_options, tmp_path):
    drip(*run_options, "--budget", "3MB", "--eviction", "fifo")
    found = json.loads(drip(*run_options, "--json").out)
    assert found["store"]["budget_bytes"] == 3_000_000
    with RetentionStore.open(tmp_path / "kept.db") as store:
        assert store._settings().eviction == "fifo"


def test_one_sample_at_a_time_decides_alike(drip, run_options, kept, tmp_path):
    expected = decisions(kept)
    run_options[-1] = tmp_path / "single.db"
    drip(*run_options, "--batch-size", "1")
    got = decisions(tmp_path / "single.db")
    assert {name: row[0].retain for name, row in got.items()} == {
        name: row[0].retain for name, row in expected.items()
    }


# -- store ---------------------------------------------------------------------------------------------


def test_stats_are_the_stores(drip, kept):
    found = json.loads(drip("store", "stats", kept, "--json").out)
    with RetentionStore.open_readonly(kept) as store:
        stats = store.stats()
    assert (found["seen"], found["kept"]) == (stats.seen, stats.kept)
    assert found["classes"].keys() == {str(number) for number in stats.classes}
    assert f"{stats.kept}, " in drip("store", "stats", kept).out


def test_check_of_a_sound_store_ends_with_zero(drip, kept):
    result = drip("store", "check", kept, "--json")
    assert result.code == 0
    assert json.loads(result.out)["ok"] is True
    assert "no problem found" in drip("store", "check", kept).out


def test_check_of_a_damaged_store_names_the_sample_and_ends_with_one(drip, kept):
    with sqlite3.connect(kept) as connection:
        connection.execute(
            "UPDATE blobs SET data = zeroblob(length(data)) WHERE id = (SELECT min(id) FROM kept)"
        )
    connection.close()
    result = drip("store", "check", kept)
    assert result.code == 1
    assert "hash" in result.err
    as_json = drip("store", "check", kept, "--json")
    assert as_json.code == 1
    assert len(json.loads(as_json.out)["problems"]) == 1


def test_export_writes_a_folder_per_class(drip, kept, tmp_path):
    result = drip("store", "export", kept, "--to", tmp_path / "out", "--labels", "predicted", "--json")
    assert result.code == 0
    with RetentionStore.open_readonly(kept) as store:
        expected = sorted((str(s.predicted_class), s.sample.data) for s in store)
    got = sorted((path.parent.name, path.read_bytes()) for path in (tmp_path / "out").glob("*/*.png"))
    assert got == expected
    assert json.loads(result.out) == {
        "to": str(tmp_path / "out"),
        "n_written": len(expected),
        "n_left_out": 0,
    }


def test_export_says_what_had_no_label(drip, kept, tmp_path):
    result = drip("store", "export", kept, "--to", tmp_path / "out")
    assert "have no true label" in result.out


@pytest.mark.parametrize("layout", ["folder", "webdataset"])
def test_an_export_of_nothing_leaves_no_folder(layout, drip, kept, tmp_path):
    store = tmp_path / "empty.db"
    RetentionStore.open(store, budget_bytes=1_000_000).close()
    out = tmp_path / "out"
    assert drip("store", "export", store, "--to", out, "--format", layout).code == 0
    if layout == "folder":
        result = drip("store", "export", kept, "--to", out, "--labels", "human")
        assert result.code == 1
        assert result.error == "labels-invalid"
    assert not out.exists()


def test_export_writes_shards_below_any_name(drip, kept, tmp_path):
    folder = tmp_path / "100%d"
    result = drip("store", "export", kept, "--to", folder, "--format", "webdataset", "--labels", "predicted")
    assert result.code == 0
    assert [path.name for path in folder.iterdir()] == ["shard-000000.tar"]


def test_shards_name_the_classes(drip, kept, tmp_path):
    names = "zero,one,two,three,four,five,six,seven,eight,nine"
    options = ["--format", "webdataset", "--labels", "predicted", "--class-names", names]
    assert drip("store", "export", kept, "--to", tmp_path / "out", *options).code == 0
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        about = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]
    with RetentionStore.open_readonly(kept) as store:
        assert [facts["class_name"] for facts in about] == [
            names.split(",")[s.predicted_class] for s in store
        ]


@pytest.mark.parametrize("layout", ["folder", "webdataset"])
def test_an_export_with_names_missing_leaves_no_folder_of_its_own(layout, drip, kept, tmp_path):
    options = ["--format", layout, "--labels", "predicted", "--class-names", "zero"]
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    for folder in (out, mine):
        result = drip("store", "export", kept, "--to", folder, *options)
        assert result.code == 1
        assert result.error == "labels-invalid"
    assert not out.exists()
    assert list(mine.iterdir()) == []


@pytest.mark.parametrize("layout", ["folder", "webdataset"])
def test_export_into_a_file_is_refused(layout, drip, kept):
    result = drip("store", "export", kept, "--to", kept, "--format", layout)
    assert result.code == 1
    assert str(kept) in result.err


@pytest.mark.parametrize("command", ["stats", "check"])
@pytest.mark.parametrize(
    "content", [None, b"", b"no database at all" * 100, b"SQLite format 3\0" + bytes(200)]
)
def test_what_is_no_store_is_refused_in_one_line(content, command, drip, tmp_path):
    path = tmp_path / "kept.db"
    if content is not None:
        path.write_bytes(content)
    result = drip("store", command, path)
    assert result.code == 1
    assert result.error in ({"store-missing"} if content is None else {"store-invalid", "store-version"})
    assert str(path) in result.err
    assert "Traceback" not in result.err


# -- wrong usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        ["--budget", "5apples"],
        ["--on-error", "ignore"],
        ["--eviction", "lru"],
        ["--batch-size", "x"],
        ["--batch-size", "0"],
        ["--what"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_two(extra, drip, run_options, tmp_path):
    result = drip(*run_options, *extra)
    assert result.code == 2
    assert extra[0].lstrip("-") in result.err or extra[-1] in result.err
    assert not (tmp_path / "kept.db").exists()


@pytest.mark.parametrize("out", [".", "none/policy.json", "file/policy.json"])
def test_calibrate_refuses_an_out_that_cannot_be_written_before_it_reads_a_sample(
    out, digits, drip, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(FolderSource, "__init__", lambda *_: pytest.fail("the work had begun"))
    result = drip(
        "calibrate", MODEL, "--weights", digits.weights, "--data", digits.calibration, "--input-spec", SHAPE,
        "--out", tmp_path / out,
    )  # fmt: skip
    assert result.code == 1
    assert str(tmp_path / out) in result.err
    assert result.error in ("path-missing", "path-not-writable")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_error_of_a_command_is_one_of_ours_when_called_as_a_library(tmp_path):
    result = CliRunner().invoke(app, ["store", "stats", str(tmp_path / "none.db")])
    assert isinstance(result.exception, DripError)


# -- real processes ------------------------------------------------------------------------------------

SLOW_MODEL = """
import time
from drip.models import SmallCNN

class Slow(SmallCNN):
    def forward(self, x):
        if len(x) == 3:  # the batch size of the runs below; choosing a plan takes two
            time.sleep(0.05)
        return super().forward(x)
"""


def start(arguments, folder):
    command = [sys.executable, "-c", "from drip.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_decisions(path, count, process):
    while True:
        assert process.poll() is None, process.stderr.read()
        if path.exists():
            try:
                with RetentionStore.open_readonly(path) as store:
                    if store.stats().seen >= count:
                        return
            except DripError:
                pass  # being made at this moment
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["term", "int", "kill"],
)
def test_run_that_is_stopped_continues_with_the_same_command(number, code, run_options, kept, tmp_path):
    expected = decisions(kept)
    (tmp_path / "slow.py").write_text(SLOW_MODEL)
    run_options[1], run_options[-1] = "slow:Slow", tmp_path / "stopped.db"
    process = start([*run_options, "--batch-size", "3"], tmp_path)
    wait_for_decisions(tmp_path / "stopped.db", 6, process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert "the same command continues" in errors
    n_before = len(decisions(tmp_path / "stopped.db"))
    assert 6 <= n_before < N_PRODUCTION
    process = start([*run_options, "--batch-size", "3", "--json"], tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    found = json.loads(output)
    assert found["run"]["n_seen"] == N_PRODUCTION - n_before
    assert found["store"]["seen"] == N_PRODUCTION
    assert found["store"]["redelivered"] == 0
    got = decisions(tmp_path / "stopped.db")
    assert list(got) == list(expected)
    assert {k: (v[0].retain, v[1:]) for k, v in got.items()} == {
        k: (v[0].retain, v[1:]) for k, v in expected.items()
    }
    with RetentionStore.open_readonly(tmp_path / "stopped.db") as store:
        assert store.check().ok


@pytest.mark.slow
def test_second_signal_ends_at_once_and_loses_nothing(run_options, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_MODEL.replace("0.05", "0.5"))
    run_options[1] = "slow:Slow"
    process = start([*run_options, "--batch-size", "3"], tmp_path)
    wait_for_decisions(tmp_path / "kept.db", 1, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        assert store.check().ok


def test_installed_command_prints_help_without_loading_torch(tmp_path):
    process = start(["--help"], tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 0
    for name in ("demo", "calibrate", "run", "store"):
        assert name in output


def test_closed_pipe_is_no_traceback(kept, tmp_path):
    process = start(["store", "stats", kept, "--json"], tmp_path)
    process.stdout.close()
    process.wait()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_an_empty_file_becomes_a_store(drip, run_options, tmp_path):
    (tmp_path / "kept.db").touch()
    assert drip(*run_options).code == 0
    assert drip("store", "check", tmp_path / "kept.db").code == 0
