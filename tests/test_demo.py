"""The demonstration on a part of the digits: its files, its arms, its words, and its folder."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import drip.demo
from drip.cli.demo import print_report, report_facts
from drip.datasets import load_mnist
from drip.demo import DemoConfig, gallery_positions, run_demo
from drip.errors import InputError
from drip.models import load_model
from drip.policy import Policy
from drip.report import findings, write_html
from drip.rules import RECOMMENDED
from drip.scoring import model_digest
from drip.store import RetentionStore

pytestmark = pytest.mark.slow

ARMS = ["baseline", "all-data", "drip", "random", "margin", RECOMMENDED]


@pytest.fixture(scope="module")
def part():
    """The first 1,500 packaged digits."""
    whole = load_mnist()
    return replace(
        whole, name="1,500 digits", images=whole.images[-10_000:-8_500], labels=whole.labels[-10_000:-8_500]
    )


@pytest.fixture(scope="module")
def demonstration(part, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("demo") / "out"
    stages = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drip.demo, "load_mnist", lambda: part)
        report = run_demo(DemoConfig(out, seed=3, epochs=2), lambda stage, *_: stages.append(stage))
    write_html(report, out / "report.html")
    return report, out, stages


def test_folder_has_model_policy_store_and_report(demonstration):
    _, out, _ = demonstration
    assert {path.name for path in out.iterdir()} >= {"model.pt", "policy.json", "kept.db", "report.html"}
    page = (out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html")
    assert "1,500 digits" in page


def test_the_policy_belongs_to_the_saved_model(demonstration):
    _, out, _ = demonstration
    model = load_model("drip.models:SmallCNN", out / "model.pt")
    Policy.load(out / "policy.json").require(model_digest(model))


def test_selecting_arms_keep_exactly_the_same_number(demonstration):
    report, _, _ = demonstration
    arms = {arm.name: arm for arm in report.arms}
    assert list(arms) == ARMS
    assert len({arms[name].n_kept for name in ARMS[2:]}) == 1
    assert 0 < arms["drip"].n_kept < report.n_seen == arms["all-data"].n_kept == 600
    assert arms["baseline"].n_kept == arms["baseline"].bytes_kept == 0
    n_train = report.split["train"]
    assert [arm.n_train for arm in report.arms] == [n_train + arm.n_kept for arm in report.arms]
    assert arms["all-data"].bytes_kept == report.bytes_seen
    assert all(len(arm.correct) == report.n_test for arm in report.arms)
    assert all(arm.accuracy == pytest.approx(arm.correct.mean()) for arm in report.arms)


def test_the_parts_are_the_papers_split_with_calibration_held_out_from_training(demonstration):
    report, _, _ = demonstration
    assert report.split == {"train": 480, "calibration": 120, "production": 600, "test": 300}


def test_the_store_is_sound_and_contains_what_the_policy_keeps(demonstration, part):
    report, out, _ = demonstration
    policy = Policy.load(out / "policy.json")
    with RetentionStore.open_readonly(out / "kept.db") as store:
        assert store.check().ok
        rows = list(store.audit())
        kept = {stored.sample.id: stored.sample for stored in store}
    expected = policy.retains(
        np.array([row.scores["drip"] for row in rows]), np.array([row.predicted_class for row in rows])
    )
    assert [row.decision.retain for row in rows] == expected.tolist()
    assert len(rows) == 600
    arm = next(arm for arm in report.arms if arm.name == "drip")
    assert arm.n_kept == len(kept) == expected.sum()
    assert arm.bytes_kept == sum(len(sample.data) for sample in kept.values())
    assert all(sample.label == part.labels[int(name)] for name, sample in kept.items())


def test_counts_by_class_add_up(demonstration):
    report, _, _ = demonstration
    assert report.class_counts_seen.sum() == 600
    assert report.class_counts_kept.sum() == next(a.n_kept for a in report.arms if a.name == "drip")
    assert (report.class_counts_kept <= report.class_counts_seen).all()


def test_the_gallery_shows_kept_and_discarded_digits_once(demonstration):
    report, _, _ = demonstration
    assert {item.retained for item in report.gallery} == {True, False}
    pictures = {item.image.tobytes() for item in report.gallery}
    assert len(pictures) == len(report.gallery)


def test_stages_are_reported_in_order(demonstration):
    *_, stages = demonstration
    order = list(dict.fromkeys(stages))
    assert order.index("training the model to deploy") < order.index("streaming")
    assert order.index("streaming") < order.index("retraining: drip")
    assert "calibrating" in order


def test_the_facts_of_the_report_are_json(demonstration):
    report, _, _ = demonstration
    facts = json.loads(json.dumps(report_facts(report)))
    assert [arm["name"] for arm in facts["arms"]] == ARMS
    assert facts["findings"]
    assert facts["decision_ms_median"] > 0


def test_the_words_do_not_depend_on_the_luck_of_one_machine(demonstration, capsys):
    """The same samples kept, but models that err elsewhere, as another machine would train them."""
    report, *_ = demonstration
    texts = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        arms = [
            replace(arm, correct=correct, accuracy=float(correct.mean()))
            for arm in report.arms
            for correct in [rng.random(report.n_test) < 0.97]
        ]
        changed = replace(report, arms=arms)
        print_report(changed, Path("report.html"))
        printed = " ".join(capsys.readouterr().out.split())
        assert not re.search(r"\b(ahead|behind|better than|worse than|is equal|gains|loses)\b", printed)
        texts.add(re.sub(r"[+\u2212]?\d[\d.,]*", "#", " ".join([printed, *findings(changed)])))
    assert len(texts) == 1


# -- its folder ----------------------------------------------------------------------------------------


class StopError(Exception):
    pass


def prepared(folder, part):
    """Go as far as the folder, no further."""
    drip.demo._Demo(DemoConfig(folder), part, lambda *_: None).prepare_folder()


def test_an_earlier_demonstration_is_replaced(part, tmp_path):
    prepared(tmp_path, part)
    for name in ("model.pt", "policy.json", "kept.db", "kept.db-wal", "report.html"):
        (tmp_path / name).write_text("old")
    prepared(tmp_path, part)
    assert [path.name for path in tmp_path.iterdir()] == [".drip-demo"]


def test_a_users_files_with_the_names_of_a_demonstration_stay(part, tmp_path):
    for name in ("policy.json", "kept.db"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=r"kept\.db") as caught:
        prepared(tmp_path, part)
    assert caught.value.code == "path-exists"
    assert {path.name for path in tmp_path.iterdir()} == {"policy.json", "kept.db"}


def test_a_folder_with_other_files_is_rejected_and_left_alone(part, tmp_path):
    prepared(tmp_path, part)
    (tmp_path / "policy.json").write_text("of the demonstration")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        prepared(tmp_path, part)
    assert {path.name for path in tmp_path.iterdir()} == {".drip-demo", "policy.json", "thesis.tex"}


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/demo"])
def test_a_folder_that_cannot_be_created_is_rejected(place, part, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError) as caught:
        prepared(tmp_path / place, part)
    assert caught.value.code == "path-not-writable"


def test_a_new_folder_is_created_with_its_parents(part, tmp_path):
    prepared(tmp_path / "a" / "b", part)
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("epochs", [0, -1])
def test_epochs_below_one_are_rejected(epochs, part, tmp_path):
    with pytest.raises(InputError, match="epochs"):
        drip.demo._Demo(DemoConfig(tmp_path, epochs=epochs), part, lambda *_: None)


def test_an_invalid_keep_rate_is_rejected_before_any_training(part, tmp_path, monkeypatch):
    def train(*_, **__):
        raise StopError

    monkeypatch.setattr(drip.demo, "load_mnist", lambda: part)
    monkeypatch.setattr(drip.demo, "train", train)
    with pytest.raises(InputError, match="retention"):
        run_demo(DemoConfig(tmp_path / "out", retention=-0.5))


# -- the gallery ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept_share", [0.0, 0.1, 0.5, 1.0])
def test_the_gallery_shows_kept_then_discarded_samples_and_no_row_twice(kept_share):
    rng = np.random.default_rng(2)
    retain, wrong, distance = rng.random(200) < kept_share, rng.random(200) < 0.2, rng.random(200)
    rows = gallery_positions(retain, wrong, distance, seed=0)
    assert len(set(rows)) == len(rows)
    shown = [bool(retain[row]) for row in rows]
    assert shown == sorted(shown, reverse=True)
    assert sum(shown) <= 12
    assert len(shown) - sum(shown) <= 12
