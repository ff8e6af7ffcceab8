"""What each stream promises, on made-up features."""

import numpy as np
import pytest
from made_up import made_up_regime

from experiments import streams
from experiments.cells import Unit
from experiments.protocol import Split
from experiments.streams import ARRIVALS, SCENARIOS, StreamWorkspace, scenario, stored_once

N_ROWS, N_CLASSES = 2600, 10
VIEWS = streams._VIEWS


@pytest.fixture(scope="module")
def regime():
    return made_up_regime(N_ROWS, N_CLASSES, VIEWS)


@pytest.fixture(scope="module")
def split():
    return Split(np.zeros(N_ROWS, np.int64), seed=0)


@pytest.fixture
def scene(regime, split):
    return lambda name, seed=0: scenario(name, split, regime, np.random.default_rng(seed))


def rows_of(items):
    return items % N_ROWS


def view_of(items):
    return np.array(VIEWS)[items // N_ROWS]


@pytest.mark.parametrize("name", SCENARIOS)
def test_ten_thousand_or_more_arrive_all_of_data_set_3_or_junk(name, scene, split, regime):
    made = scene(name)
    assert len(made.items) == len(made.labels)
    if name == "duplicates":  # every row comes five times, no more
        assert len(made.items) == 5 * len(split.d3)
    else:
        assert ARRIVALS <= len(made.items) <= 1.3 * (ARRIVALS + len(split.d3))
    known = made.labels >= 0
    assert np.isin(rows_of(made.items[known]), split.d3).all()
    np.testing.assert_array_equal(made.labels[known], regime.labels[rows_of(made.items[known])])
    never = np.concatenate([split.d1, split.d2_for_calibration])
    if name != "foreign":  # its junk stands at any row: it is another data set's
        assert not np.isin(rows_of(made.items), never).any()
    assert np.isin(made.d1_fit, made.d1).all()
    assert not np.isin(made.d1c, made.d1_fit).any()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_repeats_and_another_run_has_another(name, scene):
    np.testing.assert_array_equal(scene(name).items, scene(name).items)
    assert not np.array_equal(scene(name, 1).items, scene(name, 0).items)


def test_bursts_have_fifty_of_one_class_on_average(scene):
    lengths = []
    for seed in range(3):
        labels = scene("bursts", seed).labels
        ends = np.flatnonzero(np.diff(labels))
        lengths += np.diff(np.concatenate([[-1], ends, [len(labels) - 1]])).tolist()
    # A burst is followed by one of the same class once in ten times: 50 / 0.9; the last of a class are cut.
    assert 45 < np.mean(lengths) < 65
    assert max(lengths) > 100


def test_bursts_lose_and_invent_nothing(scene, split):
    counts = np.bincount(rows_of(scene("bursts").items), minlength=N_ROWS)
    assert set(counts[split.d3].tolist()) == {-(-ARRIVALS // len(split.d3))}


def test_the_most_frequent_class_comes_a_hundred_times_as_often_as_the_rarest(scene, regime, split):
    made = scene("longtail")
    arrived = np.bincount(made.labels, minlength=N_CLASSES)
    there = np.bincount(regime.labels[split.d3], minlength=N_CLASSES)
    shares = np.sort(arrived / there)[::-1]
    assert shares[0] / shares[-1] == pytest.approx(100, rel=0.3)  # the rarest has one row of about a hundred
    np.testing.assert_allclose(shares[:6] / shares[0], 100 ** (-np.arange(6) / 9), atol=0.02)
    assert len({int(np.argmax(np.bincount(scene("longtail", seed).labels))) for seed in range(6)}) > 1


def test_a_fifth_is_foreign_and_has_no_label(scene):
    made = scene("foreign")
    foreign = view_of(made.items) == "foreign"
    assert foreign.mean() == pytest.approx(0.2, abs=0.002)
    np.testing.assert_array_equal(made.labels == -1, foreign)
    assert set(view_of(made.items[~foreign])) == {"clean"}
    thirds = [part.mean() for part in np.array_split(foreign, 3)]
    np.testing.assert_allclose(thirds, 0.2, atol=0.04)


@pytest.mark.parametrize("name", ["foreign", "heldout"])
def test_junk_comes_round_as_often_as_the_rest(scene, name):
    made = scene(name)
    rounds = []
    for part in (made.labels >= 0, made.labels < 0):
        _, counts = np.unique(made.items[part], return_counts=True)
        assert counts.max() - counts.min() <= 1
        rounds.append(counts.mean())
    assert rounds[0] == pytest.approx(rounds[1], rel=0.1)
    # So a rule that draws at each arrival, and one that draws among different pictures, store junk alike.
    different = np.unique(made.items, return_index=True)[1]
    assert (made.labels[different] < 0).mean() == pytest.approx(0.2, abs=0.02)


def test_a_foreign_picture_is_another_picture_than_the_row_of_its_number():
    bench = StreamWorkspace(Unit("streams", "head", "cifar10", 0), made_up_regime(1000, 5, VIEWS))
    cell = next(
        cell
        for cell in streams.cells(bench.unit)
        if (cell.arm, cell.get("scenario")) == ("keep-all", "foreign")
    )
    assert streams.run(cell, bench).metrics["unique_kept"] == 1.0


def test_held_out_classes_are_a_fifth_of_the_stream_and_nowhere_else(scene, regime, split):
    made = scene("heldout")
    junk = made.labels == -1
    assert junk.mean() == pytest.approx(0.2, abs=0.002)
    unknown = set(regime.labels[rows_of(made.items[junk])].tolist())
    assert len(unknown) == 2
    with split.scoring():
        tested = made.test(split.d2)["clean"]
    assert len(tested) > 0.6 * len(split.d2_for_calibration)
    for rows in (made.d1, made.d1_fit, made.d1c, tested, rows_of(made.items[~junk])):
        assert not unknown & set(regime.labels[rows].tolist())


def test_drift_comes_in_five_steps_and_all_of_them_are_tested(scene):
    made = scene("drift")
    views = view_of(made.items)
    changes = np.flatnonzero(views[1:] != views[:-1]) + 1
    assert views[[0, *changes]].tolist() == ["clean", "drift1", "drift2", "drift3", "drift4"]
    assert np.diff([0, *changes, len(views)]).std() <= 1
    tested = made.test(np.array([5, 6]))
    assert list(tested) == ["clean", "drift1", "drift2", "drift3", "drift4"]
    for view, items in tested.items():
        assert rows_of(items).tolist() == [5, 6]
        assert set(view_of(items)) == {view}
    assert set(view_of(made.d1)) == {"clean"}


def test_every_row_comes_five_times_within_its_stretch(scene, split):
    made = scene("duplicates")
    order = np.argsort(rows_of(made.items), kind="stable")
    places = order.reshape(-1, 5)  # positions of the five, ascending
    assert sorted(rows_of(made.items[places[:, 0]]).tolist()) == sorted(split.d3.tolist())
    for row in places:
        assert set(view_of(made.items[row])) == {"clean", "repeat1", "repeat2", "repeat3", "repeat4"}
    spans = places.max(1) - places.min(1)
    assert spans.max() <= 200 + 5 * np.sqrt(200)
    assert spans.mean() == pytest.approx(200 * 4 / 6, rel=0.1)  # the range of five uniform draws


def test_equal_items_are_stored_once_and_every_rule_stores_as_many_as_drip():
    bench = StreamWorkspace(Unit("streams", "head", "cifar10", 0), made_up_regime(1000, 5, VIEWS))
    for name in ("bursts", "foreign"):
        counts = set()
        for arm in ("drip", "random", "margin", "lowest-drip", "keep-all"):
            kept = bench.keep(name, streams.rules()[arm])
            stored = bench.scenario(name).items[kept.positions]
            assert len(np.unique(stored)) == len(stored)
            counts.add(len(stored))
        native = bench.arrivals(name, streams.rules()["drip"]).decisions.retain
        assert counts == {len(stored_once(native, bench.scenario(name).items))}


def test_junk_never_trains_and_every_cell_has_its_numbers():
    unit = Unit("streams", "head", "cifar10", 0)
    bench = StreamWorkspace(unit, made_up_regime(1000, 5, VIEWS))
    for cell in streams.cells(unit):
        if cell.arm not in ("baseline", "all", "drip", "random"):
            continue
        outcome = streams.run(cell, bench)
        scene = bench.scenario(cell.get("scenario"))
        assert 0 < outcome.metrics["accuracy"] <= 1
        if cell.arm == "baseline":
            assert outcome.metrics["n_train"] == len(scene.d1)
        elif cell.arm == "all":
            known = np.unique(scene.items[scene.labels >= 0])
            assert outcome.metrics["n_train"] == len(scene.d1) + len(known)
        else:
            junk = round(outcome.metrics["junk_kept"] * outcome.metrics["n_kept"])
            assert outcome.metrics["n_train"] == len(scene.d1) + outcome.metrics["n_kept"] - junk
            assert len(outcome.extra["retention_by_tenth"]) == 10
