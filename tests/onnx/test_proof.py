"""What is attached to a graph is compared with finite differences before it is given away."""

import onnx
import pytest
from heads import build
from networks import plain_onnx

from drip.errors import ExportError
from drip.onnx import attach_score
from drip.onnx.tape import RULES

OPS = {"flatten_fc": "Relu", "hardswish_mlp": "HardSwish", "tokens": "LayerNormalization"}


@pytest.fixture(params=OPS)
def case(request):
    """A classifier with a head that goes through the tape, and an operation that its derivative needs."""
    model, batch, _ = build(request.param)
    data = plain_onnx(model, batch.shape[1:], free=request.param != "tokens")
    return onnx.load_from_string(data), OPS[request.param]


def scaled(op, by):
    """The rule of an operation, its result times a number."""
    right = RULES[op]

    def wrong(tape, node, gradients):
        factor = tape.graph.number(by)
        return [
            None if one is None else tape.graph.add("Mul", one, factor)
            for one in right(tape, node, gradients)
        ]

    return wrong


def test_a_rule_that_is_wrong_is_noticed(case, monkeypatch):
    plain, op = case
    attach_score(plain)
    monkeypatch.setitem(RULES, op, scaled(op, 1.2))
    with pytest.raises(ExportError, match="finite differences"):
        attach_score(plain)


def test_a_graph_that_does_not_run_is_refused(case, monkeypatch):
    plain, op = case
    monkeypatch.setitem(RULES, op, lambda tape, _node, _gradients: [tape.graph.number([[1.0, 2.0]])])
    with pytest.raises(ExportError, match="ONNX Runtime"):
        attach_score(plain)
