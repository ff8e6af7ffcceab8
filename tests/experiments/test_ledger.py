"""Result files: kills, second processes, edited lines."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drip.errors import InputError
from experiments.cells import Unit
from experiments.ledger import RESULTS, SHARED, Ledger, Record

ROOT = Path(__file__).parents[2]
UNIT = Unit("table1", "head", "mnist", 3)


def record(arm="margin", accuracy=0.5, unit=UNIT, **settings):
    cell = unit.cell(arm, **settings)
    return Record(
        cell, {"recipe": "r", "views": ["a", "b"]}, {"accuracy": accuracy, "fit_s": 1.0}, {"x": [1, 2]}
    )


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def child(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_what_is_appended_is_read_back(ledger):
    wanted = [record("margin", retention=0.3), record("drip", retention=0.1, mode="online")]
    for one in wanted:
        ledger.append(one)
    assert list(ledger.records()) == wanted
    assert list(ledger.records("table1-head-mnist")) == wanted
    assert list(ledger.records("table1-full-*")) == []
    assert ledger.hashes(UNIT) == {one.cell.id: one.config_hash for one in wanted}


def test_a_torn_last_line_is_ignored_and_cut_at_the_next_append(ledger):
    ledger.append(record("margin"))
    path = ledger.path(UNIT)
    whole = path.read_bytes()
    ledger.append(record("drip"))
    line = path.read_bytes()[len(whole) : -1]
    for length in (1, len(line) // 2, len(line)):  # the last lacks only its end
        path.write_bytes(whole + line[:length])
        assert [one.cell.arm for one in ledger.records()] == ["margin"]
        ledger.append(record("entropy"))
        assert path.read_bytes().startswith(whole)
        assert [one.cell.arm for one in Ledger(path.parent).records()] == ["margin", "entropy"]


def test_a_file_that_is_one_torn_line_is_empty_and_goes_on(ledger):
    path = ledger.path(UNIT)
    path.write_bytes(b'{"series": "tab')
    assert list(ledger.records()) == []
    ledger.append(record())
    assert list(ledger.records()) == [record()]


@pytest.mark.parametrize("length", [0, 1, 40, -1])
def test_a_kill_between_the_shared_file_and_the_line_loses_only_that_line(ledger, tmp_path, length):
    """A kill leaves a whole or torn shared line, and no result line that needs it."""
    ledger.append(record("margin"))
    shared = tmp_path / SHARED
    before = shared.read_bytes()
    results = ledger.path(UNIT).read_bytes()
    ledger.append(record("drip"))
    added = shared.read_bytes()[len(before) :]
    shared.write_bytes(before + added[:length])
    ledger.path(UNIT).write_bytes(results)
    again = Ledger(tmp_path)
    assert list(again.records()) == [record("margin")]
    again.append(record("drip"))
    assert list(Ledger(tmp_path).records()) == [record("margin"), record("drip")]
    assert shared.read_bytes() == before + added


def test_what_lines_share_is_stored_once(ledger, tmp_path):
    for seed in range(50):
        ledger.append(record(unit=Unit("table1", "head", "mnist", seed)))
    # The configuration, the names of the metrics, the versions and the series.
    assert len((tmp_path / SHARED).read_text().splitlines()) == 4
    assert "recipe" not in ledger.path(UNIT).read_text()
    assert [one.cell.unit.seed for one in Ledger(tmp_path).records()] == list(range(50))


def test_the_committed_results_are_under_ten_megabytes_and_repeat_no_configuration():
    assert sum(path.stat().st_size for path in RESULTS.rglob("*.jsonl")) < 10_000_000
    for folder in (RESULTS, RESULTS / "smoke"):
        lines = (folder / SHARED).read_text().splitlines()
        assert len(set(lines)) == len(lines)


def test_the_later_of_two_lines_of_one_id_is_used(ledger):
    for accuracy in (0.1, 0.2, 0.3):
        ledger.append(record(accuracy=accuracy))
    assert [one.metrics["accuracy"] for one in ledger.records()] == [0.3]


def edit(path, number, change):
    """Change one line of a file."""
    lines = path.read_text().splitlines()
    lines[number] = change(lines[number])
    path.write_text("".join(line + "\n" for line in lines))


@pytest.mark.parametrize("change", [{"series": "0" * 16}, {"seed": -1}, {"seed": "3"}, {"metrics": [0.5]}])
def test_an_edited_line_is_reported_with_its_place(ledger, change):
    ledger.append(record("drip"))
    ledger.append(record())
    edit(ledger.path(UNIT), 1, lambda line: json.dumps({**json.loads(line), **change}))
    with pytest.raises(InputError, match=r"table1-head-mnist\.jsonl, line 2: not a result line"):
        list(ledger.records())


@pytest.mark.parametrize(("old", "new"), [('"r"', '"s"'), ("drip", "margin"), ("fit_s", "fit"), ("{", "[")])
def test_an_edited_shared_line_is_reported_with_its_place(ledger, tmp_path, old, new):
    ledger.append(record("drip"))
    lines = (tmp_path / SHARED).read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if old in line)
    edit(tmp_path / SHARED, number, lambda line: line.replace(old, new))
    with pytest.raises(InputError, match=rf"configurations\.jsonl, line {number + 1}: (edited|damaged)"):
        list(Ledger(tmp_path).records())


@pytest.mark.parametrize("line", ["", "null", "[]", "{}", "{", '{"seed": 3}', '{"series": "abc", "seed": 3}'])
def test_a_line_that_is_no_record_is_reported(ledger, line):
    ledger.path(UNIT).write_text(line + "\n")
    with pytest.raises(InputError, match=r"line 1: not a result line .* remove it"):
        list(ledger.records())


@pytest.mark.parametrize("value", ["0.5", None, float("nan"), float("inf"), True, [0.5]])
def test_a_metric_that_is_no_number_is_reported_with_its_place(ledger, value):
    ledger.append(record())
    edit(ledger.path(UNIT), 0, lambda line: json.dumps({**json.loads(line), "metrics": [value, 1.0]}))
    with pytest.raises(InputError, match=r"line 1: .*not a finite number: .*'accuracy'"):
        list(ledger.records())


def test_a_number_that_json_does_not_know_is_rejected_before_anything_is_written(ledger, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        ledger.append(record(accuracy=float("nan")))
    assert list(tmp_path.iterdir()) == []


APPENDS = """
import sys
from pathlib import Path
from experiments.cells import Unit
from experiments.ledger import Ledger, Record
ledger = Ledger(Path(sys.argv[1]))
for number in range(200):
    cell = Unit("dpw", "head", "tomato", 0).cell(sys.argv[2], number=number)
    ledger.append(Record(cell, {"c": "x" * 3000}, {"accuracy": 0.5}))
"""


def test_two_processes_that_append_at_once_lose_no_line(ledger, tmp_path):
    children = [child(APPENDS, tmp_path, name) for name in ("one", "two")]
    assert [(each.communicate(), each.returncode)[1] for each in children] == [0, 0]
    text = ledger.path(Unit("dpw", "head", "tomato", 0)).read_text()
    assert len(text.splitlines()) == 400
    held = [(one.cell.arm, one.cell.get("number")) for one in ledger.records()]
    assert sorted(held) == sorted((arm, number) for arm in ("one", "two") for number in range(200))


CLAIMS = """
import sys, time
from pathlib import Path
from experiments.cells import Unit
from experiments.ledger import Ledger
with Ledger(Path(sys.argv[1])).claim(Unit("table1", "head", "mnist", 3)) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def test_a_claim_keeps_others_off_and_ends_with_its_process(ledger, tmp_path):
    holder = child(CLAIMS, tmp_path)
    try:
        assert holder.stdout.readline() == "True\n"
        with ledger.claim(UNIT) as mine:
            assert not mine
        with ledger.claim(Unit("table1", "head", "mnist", 4)) as other:
            assert other
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    for _ in range(2):  # and again after a block that ended by itself
        with ledger.claim(UNIT) as mine:
            assert mine
