"""The derivative in a graph is compared with finite differences before the graph is returned."""

import onnx
import pytest
from heads import build
from networks import plain_onnx

from drip.errors import ExportError
from drip.onnx import attach_score
from drip.onnx.tape import DERIVATIVES

OPS = {"flatten_fc": "Relu", "hardswish_mlp": "HardSwish", "tokens": "LayerNormalization"}


@pytest.fixture(scope="module", params=OPS)
def case(request):
    """A classifier's file, whose head goes through the tape, and an operation of that head."""
    model, batch, _ = build(request.param)
    return plain_onnx(model, batch.shape[1:], free=request.param != "tokens"), OPS[request.param]


def scaled(op, by):
    """The derivative of an operation, multiplied by a number."""
    right = DERIVATIVES[op]

    def wrong(tape, node, gradients):
        factor = tape.graph.number(by)
        return [
            None if one is None else tape.graph.add("Mul", one, factor)
            for one in right(tape, node, gradients)
        ]

    return wrong


def test_a_wrong_derivative_is_found(case, monkeypatch):
    data, op = case
    plain = onnx.load_from_string(data)
    attach_score(plain)
    monkeypatch.setitem(DERIVATIVES, op, scaled(op, 1.2))
    with pytest.raises(ExportError) as error:
        attach_score(plain)
    assert error.value.code == "export-inexact"


def test_a_graph_that_does_not_run_is_rejected(case, monkeypatch):
    data, op = case
    plain = onnx.load_from_string(data)
    monkeypatch.setitem(DERIVATIVES, op, lambda tape, _node, _gradients: [tape.graph.number([[1.0, 2.0]])])
    with pytest.raises(ExportError) as error:
        attach_score(plain)
    assert error.value.code == "export-failed"
