"""A fifth of a stream is of another kind: the run says so, a person answers, the next run obeys."""

import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from drip.datasets import load_mnist
from drip.media import encode_png
from drip.models import load_model
from drip.onnx import OnnxScorer, export_onnx
from drip.policy import Policy
from drip.store import RetentionStore
from drip.workflow import RunOptions, RunStatus, calibrate_file, run_url

START_S = 1_772_366_400  # 2026-03-01 12:00 UTC
N_FIRST, N_SECOND = 1500, 1000


def write_stream(folder, digits, start, n):
    """Digits in a folder, a fifth of them inverted; one arrives every second. Returns which are inverted."""
    strange = np.random.default_rng(start).random(n) < 0.2
    folder.mkdir(exist_ok=True)
    for i in range(n):
        number, image = start + i, digits.images[3000 + start + i]
        path = folder / f"{number:05}.png"
        path.write_bytes(encode_png(255 - image if strange[i] else image))
        os.utime(path, (START_S + number, START_S + number))
    return {f"{start + i:05}.png" for i in np.flatnonzero(strange)}


@pytest.fixture(scope="module")
def first(digits, tmp_path_factory):
    """A model file, its policy, and a store after a run in which a fifth was of another kind."""
    root = tmp_path_factory.mktemp("populations")
    whole = load_mnist()
    packaged = replace(whole, images=whole.images[-10_000:], labels=whole.labels[-10_000:])
    model = load_model("drip.models:SmallCNN", digits.weights)
    example = packaged.inputs(np.arange(2))
    export_onnx(model, None, example, root / "model.onnx", spec=packaged.spec)
    policy = calibrate_file(
        OnnxScorer(root / "model.onnx"), digits.calibration, rule="adaptive-margin", retention=0.3
    )
    policy.save(root / "policy.json")
    strange = write_stream(root / "stream", packaged, 0, N_FIRST)
    found = []
    with RunStatus(None) as status:
        run_url(
            OnnxScorer(root / "model.onnx"), policy, str(root / "stream"), root / "kept.db", RunOptions(),
            status=status, on_progress=lambda *_: None, stop=lambda: False, on_population=found.append,
        )  # fmt: skip
    assert [each["number"] for each in found] == [2]
    strange |= write_stream(root / "stream", packaged, N_FIRST, N_SECOND)
    return SimpleNamespace(
        root=root, model=root / "model.onnx", policy=root / "policy.json", stream=root / "stream",
        store=root / "kept.db", strange=strange,
    )  # fmt: skip


@pytest.fixture
def kept(first, tmp_path):
    """A copy of the store after the first run."""
    return shutil.copy(first.store, tmp_path / "kept.db")


def run(first, store, policy=None):
    options = [] if policy is None else ["--policy", policy]
    return ["run", first.model, *options, "--source", first.stream, "--store", store]


def part_of_kept(store, strange, after):
    """Part of the later kept samples that is of the other kind, and their keep rate."""
    with RetentionStore.open_readonly(store) as held:
        rows = [row for row in held.audit() if row.sample_id >= f"{after:05}"]
    chosen = [row.sample_id in strange for row in rows if row.decision.retain]
    return np.mean(chosen), len(chosen) / len(rows)


def test_the_run_announces_a_population_once_and_counts_it(first, drip, tmp_path):
    store, status = tmp_path / "kept.db", tmp_path / "status.json"
    command = [*run(first, store, first.policy), "--status-file", status]
    result = drip(*command)
    assert result.code == 0
    (line,) = [line for line in result.err.splitlines() if "new kind of input" in line]
    assert line.startswith("note: a new kind of input since 2026-03-01 12:")
    assert "population 2" in line
    told = json.loads(status.read_text())
    listed = json.loads(drip("populations", store, "--json").out)["populations"]
    assert told["populations"] == listed
    assert [each["number"] for each in listed] == [1, 2]
    n_strange = len(first.strange)
    assert listed[1]["arrivals"] == pytest.approx(n_strange, rel=0.15)
    assert listed[1]["share"] == pytest.approx(0.2, abs=0.05)
    assert listed[1]["since_s"] == START_S + listed[1]["since"] - 1
    assert sum(each["arrivals"] for each in listed) == N_FIRST + N_SECOND
    with RetentionStore.open_readonly(store) as held:
        rows = list(held.audit())
        assert sum(each["kept"] for each in listed) == sum(row.decision.retain for row in rows)
    mine = [row.sample_id in first.strange for row in rows if row.decision.reason == "population-2"]
    assert np.mean(mine) > 0.98
    assert json.loads(drip("store", "stats", store, "--json").out)["discarded_by_reason"]["population-2"] > 50
    noted = {entry["what"]: entry["value"] for entry in told["adaptations"]}
    assert noted["population-number"] == 2
    again = drip(*command)
    assert again.code == 0
    assert "new kind of input" not in again.err


def test_a_table_lists_the_populations_also_beside_a_run(first, drip, kept):
    with RetentionStore.open(kept):  # as a run holds it
        table = drip("populations", kept).out
    for word in ("since", "arrivals", "kept", "answer", "1 (calibration)", "2026-03-01 12:0"):
        assert word in table
    assert first.store.exists()


@pytest.mark.parametrize("embedded", [False, True])
def test_answers_change_what_the_next_run_keeps_of_the_population(first, drip, tmp_path, embedded):
    shares = {}
    for answer in (None, "accept", "ignore"):
        store = shutil.copy(first.store, tmp_path / f"{answer}.db")
        policy = tmp_path / f"{answer}.json"
        if answer is None:
            shutil.copy(first.policy, policy)
        else:
            result = drip(
                "populations", store, answer, "2", "--policy", first.policy, "--out", policy, "--json"
            )
            assert result.code == 0, result.err
            assert json.loads(result.out)["answers"] == {"2": answer}
        command = run(first, store, policy)
        if embedded:
            model = tmp_path / f"{answer}.onnx"
            assert drip("model", "set-policy", first.model, policy, "--out", model).code == 0
            command = ["run", model, "--source", first.stream, "--store", store]
        result = drip(*command, "--json")
        assert result.code == 0, result.err
        assert "new kind of input" not in result.err
        assert json.loads(result.out)["run"]["n_seen"] == N_SECOND
        shares[answer], rate = part_of_kept(store, first.strange, N_FIRST)
        assert rate == pytest.approx(0.3, abs=0.03)
        listed = json.loads(drip("populations", store, "--json").out)["populations"]
        assert [each["answer"] for each in listed] == [None, answer]
        # Goes on counting; a few rows may be of a stranger that is not yet recognised.
        counted = listed[0]["arrivals"] + listed[1]["arrivals"]
        assert N_FIRST + N_SECOND - 20 <= counted <= N_FIRST + N_SECOND
        with RetentionStore.open_readonly(store) as held:
            progress = held.load_progress()
            assert progress.rule_state["arrivals"] == N_FIRST + N_SECOND
            assert progress.policy_digest == Policy.load(policy).digest
            assert held.check().ok
    assert shares[None] == pytest.approx(0.4, abs=0.08)
    assert shares["accept"] > shares[None] + 0.1
    assert shares["ignore"] <= 0.02


def test_another_device_obeys_an_answer_from_its_first_arrivals_on(first, drip, tmp_path):
    answered, other = tmp_path / "answered.json", tmp_path / "other.db"
    drip("populations", first.store, "ignore", "2", "--policy", first.policy, "--out", answered)
    result = drip(*run(first, other, answered))
    assert result.code == 0
    assert "new kind of input" not in result.err
    share, _ = part_of_kept(other, first.strange, 0)
    assert share <= 0.02
    _, mine = json.loads(drip("populations", other, "--json").out)["populations"]
    assert (mine["number"], mine["answer"]) == (2, "ignore")
    assert mine["arrivals"] == pytest.approx(len(first.strange), rel=0.05)


def test_an_answer_replaces_the_policy_and_may_change_or_be_taken_back(first, drip, kept, tmp_path):
    policy = shutil.copy(first.policy, tmp_path / "policy.json")
    before = Policy.load(policy)
    assert drip("populations", kept, "ignore", "2", "--policy", policy).code == 0
    ignoring = Policy.load(policy)
    assert ignoring.family == before.family == before.digest != ignoring.digest
    assert ignoring.rule.state == before.rule.state
    (answer,) = ignoring.rule.params["answers"]
    assert (answer["number"], answer["answer"]) == (2, "ignore")
    assert drip(*run(first, kept, policy)).code == 0
    result = drip("populations", kept, "accept", "2", "--policy", policy)
    assert result.code == 0, result.err
    assert "accept" in result.out
    assert Policy.load(policy).rule.params["answers"] == [{**answer, "answer": "accept"}]
    # Back to the policy without answers: the state goes on as well.
    assert drip(*run(first, kept, first.policy)).code == 0
    with RetentionStore.open_readonly(kept) as held:
        assert held.load_progress().policy_digest == before.digest
        assert held.load_progress().rule_state["arrivals"] == N_FIRST + N_SECOND


def test_an_answer_can_be_written_into_a_model_file(first, drip, kept, tmp_path):
    model = tmp_path / "model.onnx"
    assert drip("model", "set-policy", first.model, first.policy, "--out", model).code == 0
    assert drip("populations", kept, "ignore", "2", "--policy", model).code == 0
    assert [each["answer"] for each in OnnxScorer(model).policy.rule.params["answers"]] == ["ignore"]
    out = tmp_path / "out.json"
    assert drip("populations", kept, "accept", "2", "--policy", model, "--out", out).code == 0
    assert [each["answer"] for each in Policy.load(out).rule.params["answers"]] == ["accept"]
    result = drip("populations", kept, "ignore", "2", "--policy", first.model)
    assert (result.code, result.error) == (1, "policy-missing")


def test_wrong_usage_is_refused_and_changes_nothing(first, board, drip, kept, tmp_path):
    policy = shutil.copy(first.policy, tmp_path / "policy.json")
    before = policy.read_bytes()
    other = Policy.load(policy)
    replace(other, n_classes=10, provenance=replace(other.provenance, data="elsewhere")).save(
        tmp_path / "other.json"
    )
    for arguments, code, error in [
        (["ignore"], 2, ""),
        (["ban", "2"], 2, ""),
        (["ignore", "two"], 2, ""),
        (["ignore", "1"], 2, ""),
        (["ignore", "2"], 2, ""),  # no policy
        (["--policy", policy], 2, ""),
        (["ignore", "2", "--policy", policy, "--out", tmp_path / "x.onnx"], 2, ""),
        (["ignore", "3", "--policy", policy], 1, "population-unknown"),
        (["ignore", "2", "--policy", tmp_path / "missing.json"], 1, "path-missing"),
        (["ignore", "2", "--policy", tmp_path / "other.json"], 1, "policy-other-run"),
        (["ignore", "2", "--policy", board.policy], 1, "policy-other-run"),
        (["ignore", "2", "--policy", policy, "--out", kept], 1, "path-not-writable"),
    ]:
        result = drip("populations", kept, *arguments)
        assert (result.code, result.error) == (code, error), arguments
        assert "Traceback" not in result.err
    assert policy.read_bytes() == before
    assert drip("populations", tmp_path / "none.db").error == "store-missing"
    assert not (tmp_path / "none.db").exists()


def test_a_list_ignores_a_policy_of_the_configuration(first, drip, kept, tmp_path):
    policy = shutil.copy(first.policy, tmp_path / "policy.json")
    config = tmp_path / "drip.toml"
    config.write_text(f"[populations]\npolicy = {str(policy)!r}\n")
    assert drip("--config", config, "populations", kept).code == 0
    assert drip("--config", config, "populations", kept, "ignore", "2").code == 0
    assert Policy.load(policy).rule.params["answers"][0]["answer"] == "ignore"


def test_a_store_without_a_run_says_so(drip, tmp_path):
    RetentionStore.open(tmp_path / "new.db", budget_bytes=10**6).close()
    assert drip("populations", tmp_path / "new.db").error == "population-unknown"


def test_a_rule_without_populations_says_so(drip, run_options):
    assert drip(*run_options).code == 0
    assert drip("populations", run_options[-1]).error == "population-unknown"


def test_damaged_populations_in_a_store_are_reported(drip, kept):
    with RetentionStore.open(kept) as store:
        progress = store.load_progress()
        progress.rule_state["population"]["numbered"][0]["share"] = 7
        store.save_progress(progress)
    assert drip("populations", kept).error == "rule-state"


@pytest.mark.parametrize(
    "change", [{"mean": "AAAA"}, {"mean": 5}, {"answer": "ban"}, {"number": 1}, {"spread": None}]
)
def test_a_policy_with_an_edited_answer_is_refused(first, drip, kept, tmp_path, change):
    policy = tmp_path / "policy.json"
    drip("populations", kept, "ignore", "2", "--policy", first.policy, "--out", policy)
    content = json.loads(policy.read_text())
    content["rule"]["params"]["answers"][0] |= change
    policy.write_text(json.dumps(content))
    result = drip(*run(first, kept, policy))
    assert (result.code, result.error) == (1, "rule-arguments")
    assert "Traceback" not in result.err
