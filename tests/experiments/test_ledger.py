"""Result files: kills, second processes, edited lines."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drip.errors import InputError
from experiments.cells import Unit
from experiments.ledger import Ledger, Record

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


def test_a_torn_last_line_does_not_count_and_is_cut_at_the_next_append(ledger):
    ledger.append(record("margin"))
    path = ledger.path(UNIT)
    whole = path.read_bytes()
    line = record("drip").to_json().encode()
    for length in (1, len(line) // 2, len(line)):  # the last lacks only its end
        path.write_bytes(whole + line[:length])
        assert [one.cell.arm for one in ledger.records()] == ["margin"]
        ledger.append(record("entropy"))
        assert path.read_bytes() == whole + record("entropy").to_json().encode() + b"\n"


def test_a_file_that_is_one_torn_line_is_empty_and_taken_up_again(ledger):
    path = ledger.path(UNIT)
    path.write_bytes(b'{"id": "tab')
    assert list(ledger.records()) == []
    ledger.append(record())
    assert list(ledger.records()) == [record()]


def test_of_one_id_the_later_line_counts(ledger):
    for accuracy in (0.1, 0.2, 0.3):
        ledger.append(record(accuracy=accuracy))
    assert [one.metrics["accuracy"] for one in ledger.records()] == [0.3]


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"recipe": "another"}},
        {"config_hash": "0" * 16},
        {"arm": "drip"},
        {"seed": 4},
        {"settings": {"retention": 0.9}},
        {"id": "table1/head/mnist//margin/0004"},
    ],
)
def test_an_edited_line_is_refused_with_its_place(ledger, change):
    ledger.append(record("drip"))
    ledger.append(record())
    path = ledger.path(UNIT)
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n" + json.dumps({**json.loads(second), **change}) + "\n")
    with pytest.raises(InputError, match=r"table1-head-mnist\.jsonl, line 2: .*edited"):
        list(ledger.records())


@pytest.mark.parametrize("line", ["", "null", "[]", "{}", "{", '{"id": 3}'])
def test_a_line_that_is_no_record_is_refused(ledger, line):
    ledger.path(UNIT).write_text(line + "\n")
    with pytest.raises(InputError, match=r"line 1: a result line is needed"):
        list(ledger.records())


@pytest.mark.parametrize("value", ["0.5", None, float("nan"), float("inf"), True, [0.5]])
def test_a_metric_that_is_no_number_is_refused_with_its_place(ledger, value):
    ledger.append(record())
    line = json.loads(ledger.path(UNIT).read_text())
    line["metrics"]["accuracy"] = value
    ledger.path(UNIT).write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"line 1: metrics must be finite numbers, got .*'accuracy'"):
        list(ledger.records())


def test_the_error_of_a_spoilt_line_says_what_to_do(ledger):
    ledger.path(UNIT).write_text('{"id": "tab\n')
    with pytest.raises(InputError, match="remove the line, and its cell is measured again"):
        list(ledger.records())


def test_a_number_that_json_does_not_know_is_refused_before_it_is_written(ledger):
    with pytest.raises(ValueError, match="JSON"):
        ledger.append(record(accuracy=float("nan")))
    assert not ledger.path(UNIT).exists() or ledger.path(UNIT).read_bytes() == b""


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
    assert [(each.communicate(timeout=60), each.returncode)[1] for each in children] == [0, 0]
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
    time.sleep(60)
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
