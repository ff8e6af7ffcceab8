"""`drip run --decisions` against a real Mosquitto: all are published, and no broker costs a sample."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "sources"))
from broker import Broker

from drip.sources import open_source
from drip.store import RetentionStore


@pytest.fixture
def broker(tmp_path, monkeypatch):
    monkeypatch.setattr("drip.sources.mqtt.source._HEARTBEAT_S", 0.2)
    folder = tmp_path / "broker"
    folder.mkdir()
    running = Broker(folder).start()
    yield running
    running.stop()


@pytest.fixture
def run_options(board, broker, tmp_path):
    return [
        "run", board.model.path, "--source", board.production, "--store", tmp_path / "kept.db",
        "--decisions", f"mqtt://127.0.0.1:{broker.port}/decisions", "--status-file", tmp_path / "status.json",
        "--json",
    ]  # fmt: skip


def audit(path):
    with RetentionStore.open_readonly(path) as store:
        assert store.check().ok
        return {row.sample_id: row.decision.retain for row in store.audit()}


@pytest.mark.parametrize("extra", [[], ["--shadow"]])
def test_a_run_publishes_what_its_audit_says(extra, broker, drip, run_options, tmp_path):
    batches = open_source(broker.url("decisions", client="reader")).batches(1000)
    next(batches)
    result = drip(*run_options, *extra)
    assert result.code == 0, result.err
    found = []
    while len(found) < 150:
        found += [json.loads(sample.data) for sample in next(batches)]
    batches.close()
    rows = audit(tmp_path / "kept.db")
    assert len(rows) == len(found) == 150
    assert {content["id"]: content["retain"] for content in found} == rows
    run = json.loads(result.out)["run"]
    assert (run["n_published"], run["n_unpublished"]) == (150, 0)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["decisions"] == {"published": 150, "waiting": 0, "dropped": 0, "problem": ""}


def test_a_run_whose_broker_is_away_keeps_every_sample_and_counts(broker, drip, run_options, tmp_path):
    broker.stop()
    result = drip(*run_options)
    assert result.code == 0, result.err
    assert len(audit(tmp_path / "kept.db")) == 150
    run = json.loads(result.out)["run"]
    assert (run["n_seen"], run["n_published"], run["n_unpublished"]) == (150, 0, 150)
    decisions = json.loads((tmp_path / "status.json").read_text())["decisions"]
    assert (decisions["published"], decisions["waiting"], decisions["dropped"]) == (0, 0, 150)
    assert "cannot reach the broker" in decisions["problem"]
    (tmp_path / "kept.db").unlink()
    assert "150 decisions were not published" in drip(*run_options[:-1]).out


def test_a_broker_that_dies_in_the_middle_stops_no_run(broker, drip, run_options, tmp_path, monkeypatch):
    from drip.sources.mqtt.decisions import DecisionPublisher

    add = DecisionPublisher.add

    def add_and_kill(self, messages):
        add(self, messages)
        if self.n_published >= 40 and broker.pid:
            broker.kill()

    monkeypatch.setattr(DecisionPublisher, "add", add_and_kill)
    result = drip(*run_options, "--batch-size", "8")
    assert result.code == 0, result.err
    rows = audit(tmp_path / "kept.db")
    run = json.loads(result.out)["run"]
    assert len(rows) == run["n_seen"] == 150
    assert (run["n_published"], run["n_unpublished"]) == (40, 110)


@pytest.mark.parametrize(
    "url", ["", "stdin:", "frames/", "mqtt://host", "mqtt://host/a/+", "mqtt://[bad", "mqtt://u:p@host/a"]
)
def test_decisions_to_nowhere_are_refused_before_a_store_is_made(url, drip, run_options, tmp_path):
    run_options[7] = url
    if not url:
        assert drip(*run_options).code == 0  # none are published
        return
    result = drip(*run_options)
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "kept.db").exists()
