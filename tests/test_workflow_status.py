"""The status of a run: rates by a clock that never jumps, a file that is whole and written seldom."""

import json
from types import SimpleNamespace

import pytest

from drip.errors import StoreError
from drip.pipeline import Tally
from drip.store import RetentionStore
from drip.workflow import RunStatus


class Clocks:
    """Time that the test sets."""

    def __init__(self):
        self.now, self.day = 100.0, 1_700_000_000.0

    def pass_(self, seconds):
        self.now += seconds
        self.day += seconds


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def store(tmp_path):
    with RetentionStore.open(tmp_path / "kept.db", budget_bytes=10**6) as kept:
        yield kept


def status_of(path, clocks):
    return RunStatus(path, clock=lambda: clocks.now, wall=lambda: clocks.day)


def read(path):
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def test_the_file_is_written_once_a_second_at_most(tmp_path, clocks, store, monkeypatch):
    path, writes = tmp_path / "status.json", []
    monkeypatch.setattr("drip.workflow.status.write_atomically", lambda *what: writes.append(what))
    with status_of(path, clocks) as status:
        for number in range(1000):
            status.update(Tally(n_seen=number), store)
            clocks.pass_(0.01)
    assert len(writes) == 1 + 10 + 1


def test_a_slow_look_at_the_store_is_taken_less_often(clocks):
    looks = []

    def stats():
        looks.append(clocks.now)
        clocks.pass_(0.5)

    with status_of(None, clocks) as status:
        for number in range(100):
            status.update(Tally(n_seen=number), SimpleNamespace(stats=stats))
            clocks.pass_(0.5)
    assert 4 <= len(looks) <= 7


def test_the_rate_is_of_the_last_ten_seconds(tmp_path, clocks, store):
    path = tmp_path / "status.json"
    with status_of(path, clocks) as status:
        assert status.content("running", "")["samples_per_s"] is None
        for number in range(100):
            clocks.pass_(0.5)
            status.update(Tally(n_seen=2 * number), store)
        assert read(path)["samples_per_s"] == pytest.approx(4.0)
        for _ in range(40):  # nothing arrives
            clocks.pass_(0.5)
            status.update(Tally(n_seen=198), store)
        assert read(path)["samples_per_s"] == 0.0
        assert len(status._history) < 150


def test_a_clock_of_the_day_that_jumps_back_changes_no_rate(tmp_path, clocks, store):
    path = tmp_path / "status.json"
    with status_of(path, clocks) as status:
        for number in range(30):
            clocks.pass_(1.0)
            clocks.day -= 3600.0 if number == 15 else 0.0
            status.update(Tally(n_seen=number, last_id="s", last_time_s=1_700_000_000.0 + number), store)
        found = read(path)
    assert found["samples_per_s"] == pytest.approx(1.0)
    assert found["running_for_s"] == pytest.approx(30.0)
    assert found["last_sample_age_s"] == 0.0  # never negative


@pytest.mark.parametrize("time_s", [None, float("nan"), float("inf")])
def test_times_that_are_none_leave_the_file_json(time_s, tmp_path, clocks, store):
    path = tmp_path / "status.json"
    with status_of(path, clocks) as status:
        status.update(Tally(n_seen=1, last_id="\udcff", last_time_s=time_s), store)
        assert read(path)["last_sample_age_s"] is None
        assert read(path)["last_sample_time_s"] is None
        assert status.line(Tally()).endswith("of 1.00 MB")


@pytest.mark.parametrize(
    ("error", "state", "reason", "code"),
    [
        (None, "stopped", "the source ended", None),
        (KeyboardInterrupt(), "stopped", "interrupted at once", None),
        (RuntimeError("the disk is full"), "failed", "the disk is full", "error"),
        (StoreError("busy", code="store-busy"), "failed", "busy", "store-busy"),
        (OSError("no space"), "failed", "no space", "os-error"),
        (MemoryError(), "failed", "MemoryError", "out-of-memory"),
    ],
)
def test_the_end_is_in_the_file(error, state, reason, code, tmp_path, clocks, store):
    path = tmp_path / "status.json"

    def run():
        with status_of(path, clocks) as status:
            status.update(Tally(n_seen=3), store)
            assert read(path)["state"] == "running"
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    found = read(path)
    assert (found["state"], found["reason"], found["code"]) == (state, reason, code)
    assert found["n_seen"] == 3
    assert found["store_counts"]["budget_bytes"] == 10**6


def test_the_line_says_what_matters(clocks, store):
    status = status_of(None, clocks)
    tally = Tally(n_seen=4, n_retained=1, n_discarded=2, n_quarantined=1, last_time_s=clocks.day - 12)
    status.update(tally, store)
    line = status.line(tally)
    assert line.startswith("33.3% kept, ")
    assert line.endswith("of 1.00 MB, 1 in quarantine, last 12 s old")
    tally.last_time_s = clocks.day - 1e6
    assert "old" not in status.line(tally)
