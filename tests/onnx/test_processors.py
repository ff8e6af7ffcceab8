"""One model file decides alike on processors of other kinds; `make processors` wrote the records."""

import json

import processors
import pytest

RECORDS = [json.loads(line) for line in processors.RECORDS.read_text().splitlines()]


def test_every_processor_has_a_record_of_both_files():
    pairs = sorted((line["processor"], line["file"]) for line in RECORDS)
    assert pairs == sorted((name, file) for name in processors.PROCESSORS for file in processors.FILES)
    assert len({line["digest"] for line in RECORDS}) == len(processors.FILES)


@pytest.mark.parametrize("line", RECORDS, ids=lambda line: f"{line['processor']}-{line['file']}")
def test_decisions_are_equal_except_at_the_bound_of_a_window(line):
    assert line["samples"] >= 400
    assert line["classes_differ"] == 0
    assert line["decisions_differ"] == 0
    # these may be decided either way
    assert line["near_a_bound"] <= line["samples"] / 400
    assert line["machine"] == ("aarch64" if line["processor"].startswith("Cortex") else "x86_64")
