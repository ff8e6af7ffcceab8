"""The situations on made-up features: what each of them promises of its streams."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.bank import Bank
from experiments.cells import Unit
from experiments.situation_full import FULL_KEEP, FULL_PLACES
from experiments.situation_study import (
    ARMS,
    CURVE,
    FINALISTS,
    KEEP,
    PAIR_KEEP,
    PAIR_PLACES,
    PLACES,
    Bench,
    cells,
    score,
    select,
)
from experiments.situation_verdicts import plan
from experiments.situations import (
    FIRST_DEVELOPMENT_SEED,
    N_CALIBRATION,
    NEW_SHARE,
    PAIRS,
    SITUATIONS,
    Items,
    LinearHead,
    build,
    fit,
    pool,
)

N, N_CLASSES, DEPTH = 6000, 10, 24


def view(centres, labels, seed, shift=0.0):
    draw = np.random.default_rng(seed)
    maps = (centres[labels] + draw.normal(size=(len(labels), DEPTH)) + shift).astype(np.float16)
    return Bank(("view",), (maps[:, :, None, None],), (maps.astype(np.float32),))


@pytest.fixture(scope="module")
def items():
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(N_CLASSES, DEPTH))
    # Groups of up to 30 rows with few rows each, and some speakers with many.
    groups = np.where(np.arange(N) < 3000, np.arange(N) // 40, 100 + np.arange(N) // 3)
    labels = draw.integers(0, N_CLASSES, N)
    scene_rows = np.repeat(draw.permutation(N)[:700], 9)
    banks = {"clean": view(centres, labels, 1)}
    for name in ("camera", "camera-development", "telephone", "telephone-development"):
        banks[name] = view(centres, labels, 2, shift=2.0)
    banks["scenes"] = view(centres, labels[scene_rows], 3)
    banks["foreign"] = view(centres, draw.integers(0, N_CLASSES, 2000), 4, shift=5.0)
    return Items(banks, labels, groups, scene_rows, np.repeat(np.arange(700), 9))


def clean_rows(items, found):
    """The clean row that an item shows, -1 for junk."""
    rows = np.full(len(found), -1)
    for name in items.banks:
        local = found - items.start(name)
        mine = (local >= 0) & (local < items.banks[name].n_rows)
        rows[mine] = (
            {"scenes": items.scene_rows}.get(name, np.arange(N))[local[mine]] if name != "foreign" else -1
        )
    return rows


@pytest.mark.parametrize("seed", [0, 3, FIRST_DEVELOPMENT_SEED])
@pytest.mark.parametrize("name", [*SITUATIONS, *PAIRS])
def test_no_group_is_in_two_parts_of_a_run(name, seed, items):
    scene = build(name, items, seed)
    used = {
        part: clean_rows(items, getattr(scene, part)) for part in ("train", "calibration", "stream", "test")
    }
    allowed = set(pool(items, seed).tolist())
    for rows in used.values():
        assert set(rows[rows >= 0].tolist()) <= allowed
    groups = {part: set(items.groups[rows[rows >= 0]].tolist()) for part, rows in used.items()}
    assert not groups["test"] & (groups["train"] | groups["stream"] | groups["calibration"])
    for one, other in (("train", "stream"), ("train", "calibration"), ("calibration", "stream")):
        assert not set(used[one].tolist()) & set(used[other][used[other] >= 0].tolist())


def test_the_pools_of_development_and_decision_share_no_group(items):
    decides, develops = pool(items, 0), pool(items, FIRST_DEVELOPMENT_SEED)
    assert not set(items.groups[decides].tolist()) & set(items.groups[develops].tolist())
    assert len(decides) + len(develops) == N


@pytest.mark.parametrize("name", [*SITUATIONS, *PAIRS])
def test_labels_are_those_of_the_rows_except_where_the_situation_says_so(name, items):
    scene = build(name, items, 0)
    rows = clean_rows(items, scene.stream)
    true = np.where(rows >= 0, items.labels[rows], -1)
    wrong = scene.labels != true
    assert wrong.mean() == pytest.approx(0.2 if "wrong-labels" in name else 0.0, abs=0.03)
    assert (items.labels[clean_rows(items, scene.test)] == scene.test_labels).all()
    assert len(scene.calibration) <= N_CALIBRATION


def test_the_marked_part_of_each_stream_is_as_large_as_it_says(items):
    marked = {name: build(name, items, 0).marked.mean() for name in SITUATIONS}
    for name in ("new-camera", "telephone", "new-speakers"):
        assert marked[name] == pytest.approx(NEW_SHARE, abs=0.03)
    assert marked["junk"] == pytest.approx(0.3, abs=0.03)
    assert marked["unknown-class"] == pytest.approx(0.02, abs=0.005)
    assert marked["camera-from-a-day"] == pytest.approx(2 / 3, abs=0.01)
    assert marked["mixed"] == marked["scenes"] == marked["long-tail"] == 0


def test_a_tail_has_one_rare_row_for_a_hundred_frequent_ones(items):
    scene = build("long-tail", items, 0)
    for labels in (scene.train_labels, scene.labels):
        counts = np.sort(np.bincount(labels, minlength=N_CLASSES))
        assert counts[-1] > 20 * max(counts[0], 1)


def test_scenes_come_in_runs(items):
    scene = build("scenes", items, 0)
    rows = clean_rows(items, scene.stream)
    changes = np.count_nonzero(np.diff(rows)) + 1
    assert changes == len(np.unique(rows))


def test_junk_comes_between_the_arrivals_of_another_situation_which_keep_their_order(items):
    pair = build("scenes+junk", items, 0)
    is_junk = pair.labels < 0
    assert is_junk.mean() == pytest.approx(0.3, abs=0.01)
    rows = clean_rows(items, pair.stream)[~is_junk]
    assert np.count_nonzero(np.diff(rows)) + 1 == len(np.unique(rows))
    mixed = build("new-camera+junk", items, 0)
    assert mixed.marked[mixed.labels >= 0].mean() == pytest.approx(NEW_SHARE, abs=0.03)
    assert not mixed.marked[mixed.labels < 0].any()


def test_an_accepted_camera_is_kept_more_often_from_then_on(items):
    one = Bench(items, build("new-camera", items, 0))
    n, marked = len(one.scene.stream), one.scene.marked
    # Without the gate for near-duplicates: the made-up cameras differ by less than its step.
    arm = replace(ARMS["adaptive-margin.accepting"], params=(("gates", ("populations",)),))
    asking, accepting = (
        select(replace(arm, accepts=after), 0.2, round(0.2 * n), one) for after in (None, 30)
    )
    answered = np.flatnonzero(asking & marked)[30]
    assert (asking[:answered] == accepting[:answered]).all()
    assert np.count_nonzero((accepting & marked)[answered:]) > 1.2 * np.count_nonzero(
        (asking & marked)[answered:]
    )


def test_the_head_is_the_minimum_of_the_loss():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 300)
    inputs = (np.eye(3, 8)[labels] * 2 + draw.normal(size=(300, 8))).astype(np.float32)
    found = fit(inputs, labels, 3, steps=500)
    warm = fit(inputs, labels, 3, LinearHead(found.weight + 0.1, found.bias), steps=500)
    assert warm.logits(inputs) - warm.logits(inputs).mean(1, keepdims=True) == pytest.approx(
        found.logits(inputs) - found.logits(inputs).mean(1, keepdims=True), abs=0.02
    )
    assert (found.logits(inputs).argmax(1) == labels).mean() > 0.8


def test_every_metric_on_a_perfect_and_on_a_constant_answer(items):
    for name in ("mixed", "long-tail", "unknown-class"):
        scene = build(name, items, 0)
        assert score(np.eye(N_CLASSES)[scene.test_labels], scene) == 1.0
        assert (
            score(np.eye(N_CLASSES)[np.zeros(len(scene.test), int)], scene) < 0.2 or name == "unknown-class"
        )


def test_the_grid_has_every_situation_and_a_curve_of_random_choices():
    named = {situation for places in PLACES.values() for situation, _ in places}
    assert named == set(SITUATIONS)
    assert set(KEEP) <= set(CURVE)
    assert "adaptive-margin" in ARMS


def test_the_whole_network_is_trained_in_the_situations_of_the_plan():
    assert plan()["full"]["in"] == dict(FULL_PLACES)
    for dataset in PLACES:
        found = list(cells(Unit("situations", "full", dataset, 0)))
        assert {cell.get("situation") for cell in found} <= {FULL_PLACES.get(dataset)}
        assert len(found) == (2 + 2 * len(FULL_KEEP) if dataset in FULL_PLACES else 0)
    assert plan()["full"]["keep"] in FULL_KEEP


def test_only_rules_that_may_become_the_default_meet_two_situations_at_once():
    rules = plan()["rules"]
    assert (rules["candidate"], *rules["challengers"]) == FINALISTS
    found = [
        cell for cell in cells(Unit("situations", "head", "tomato", 0)) if cell.get("situation") in PAIRS
    ]
    assert {cell.arm for cell in found} == {"baseline", "all", "random", *FINALISTS}
    assert len(found) == len(PAIR_PLACES) * (2 + len(CURVE) + len(FINALISTS) * len(PAIR_KEEP))
