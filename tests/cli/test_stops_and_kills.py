"""Runs of a model file that are stopped, killed, or wait for what arrives."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from device_runs import N_PRODUCTION, Watcher, audit, n_decided, start, wait_until

from drip.store import Outcome, RetentionStore


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


@pytest.mark.slow
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
    output, errors = process.communicate()
    assert process.returncode == 130
    assert "the same command continues" in errors
    n_before = json.loads(output)["run"]["n_seen"]
    stopped = json.loads(status.read_text())
    assert (stopped["state"], stopped["reason"]) == ("stopped", "asked to stop")
    assert stopped["n_seen"] == n_before == len(audit(path)) < 900
    process = start(arguments, tmp_path)
    output, errors = process.communicate()
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


@pytest.mark.slow
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
    output, errors = process.communicate()
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


@pytest.mark.slow
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
    content = (board.production / "0000.jpg").read_bytes()
    for name, data in (("again.jpg", content), ("new.jpg", content + b"other")):
        (folder / f".{name}").write_bytes(data)  # hidden until it is whole
        (folder / f".{name}").rename(folder / name)
    wait_until(lambda: n_decided(path) == N_PRODUCTION + 2, process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 130
    assert json.loads(status.read_text())["state"] == "stopped"
    with RetentionStore.open_readonly(path) as store:
        assert store.check().ok
        assert store.stats().seen == N_PRODUCTION + 2


def test_a_stream_in_which_nothing_came_says_so_without_numbers_of_nothing(board, tmp_path):
    folder, status = tmp_path / "empty", tmp_path / "status.json"
    folder.mkdir()
    options = ["--source", f"watch:{folder}", "--store", tmp_path / "kept.db", "--status-file", status]
    process = start(["run", board.model.path, *options], tmp_path)
    wait_until(lambda: status.exists() and json.loads(status.read_text())["reason"] != "starting", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert "No sample arrived before the run was stopped." in output
    assert "nan" not in output
