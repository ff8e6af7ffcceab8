"""Scores of trained ONNX files equal an independent autograd; `make trained` wrote the records."""

import json

import numpy as np
import pytest
import torch
import trained
from test_any_onnx import BACKBONE, CONSTANTS, HEAD, by_hand, graph_of

RECORDS = [json.loads(line) for line in trained.RECORDS.read_text().splitlines()]


def test_every_file_has_a_record():
    assert sorted(line["name"] for line in RECORDS) == sorted(trained.CASES)
    assert len({line["sha256"] for line in RECORDS}) >= 10
    for line in RECORDS:
        case = trained.CASES[line["name"]]
        assert (line["package"], line["file"]) == (case.package, case.file)


@pytest.mark.parametrize("line", RECORDS, ids=lambda line: line["name"])
def test_the_layer_is_the_expected_one_and_the_score_is_right(line):
    assert line["layer"] == line["expected"]
    assert line["rows"] >= 16
    assert line["largest_score"] > 0
    assert line["deviation"] <= trained.TOLERANCE


def test_the_oracle_of_the_records_is_right_for_a_graph_by_hand():
    x = np.random.default_rng(0).normal(size=(2, 6, 7)).astype(np.float32)
    model = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    case = trained.Case("", "", "", "a")
    assert trained.truth(model, x, "a", case) == pytest.approx(float(by_hand(x[None])[1][0]), rel=1e-5)
    values = trained.every_tensor(model, x)
    a = torch.from_numpy(values["a"].astype(np.float64))
    found = trained.head_of(model, values, "a", "", a).numpy()
    np.testing.assert_allclose(found, by_hand(x[None])[0], rtol=1e-5)
