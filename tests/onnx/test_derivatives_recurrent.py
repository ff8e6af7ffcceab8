"""Derivatives of LSTM, GRU and RNN, each compared with PyTorch's autograd."""

import numpy as np
import onnx
import pytest
import torch
from heads import assert_routes_equal
from networks import lively, noise, plain_onnx
from tape_oracle import assert_equal_to_autograd, gradient_of, node, normal
from torch import nn

from drip.errors import ExportError
from drip.onnx import attach_score
from drip.onnx.files import metadata_of, run_file

STEPS, ROWS, SIZE, HIDDEN = 6, 3, 5, 4
KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
# PyTorch's order of gates for each of ONNX's
ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}


def weights_of(layer, op, direction):
    """The weights of a PyTorch layer as ONNX has them."""
    suffixes = {"forward": [""], "bidirectional": ["", "_reverse"]}[direction]

    def gates(name):
        parts = []
        for suffix in suffixes:
            values = getattr(layer, f"{name}_l0{suffix}").detach().numpy()
            values = values.reshape(len(ORDER[op]), HIDDEN, -1)
            parts.append(np.concatenate([values[gate] for gate in ORDER[op]]))
        return np.stack(parts)

    biases = [gates(name)[:, :, 0] for name in ("bias_ih", "bias_hh")]
    return {"w": gates("weight_ih"), "r": gates("weight_hh"), "b": np.concatenate(biases, 1)}


def made(op, direction="forward"):
    torch.manual_seed(1)
    layer = KINDS[op](SIZE, HIDDEN, bidirectional=direction == "bidirectional")
    options = {"linear_before_reset": 1} if op == "GRU" else {}
    return layer, weights_of(layer, op, direction), options | {"hidden_size": HIDDEN, "direction": direction}


@pytest.mark.parametrize("op", KINDS)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("read", ["all", "last", "both"])
def test_recurrent_layers(op, direction, read):
    layer, constants, options = made(op, direction)
    outputs = {"all": ["y"], "last": ["", "h"], "both": ["y", "h"]}[read]
    ends = tuple(name for name in outputs if name)
    nodes = [node(op, "a", "w", "r", "b", outputs=outputs, **options)]

    def function(x):
        y, state = layer(x)
        h = state[0] if op == "LSTM" else state
        y = y.reshape(STEPS, ROWS, -1, HIDDEN).transpose(1, 2)
        return tuple({"y": y, "h": h}[name] for name in ends)

    assert_equal_to_autograd(nodes, constants, normal(STEPS, ROWS, SIZE), function, ends=ends)


def test_the_state_of_an_lstm_and_one_that_it_starts_with():
    layer, constants, options = made("LSTM")
    start = {"h0": normal(1, ROWS, HIDDEN), "c0": normal(1, ROWS, HIDDEN)}
    nodes = [node("LSTM", "a", "w", "r", "b", "", "h0", "c0", outputs=["y", "h", "c"], **options)]

    def function(x):
        y, state = layer(x, tuple(torch.from_numpy(start[name]) for name in ("h0", "c0")))
        return y[:, None], *state

    ends = ("y", "h", "c")
    assert_equal_to_autograd(nodes, constants | start, normal(STEPS, ROWS, SIZE), function, ends=ends)


def test_the_cell_alone_is_read():
    layer, constants, options = made("LSTM")
    nodes = [node("LSTM", "a", "w", "r", "b", outputs=["", "", "c"], **options)]
    x = normal(STEPS, ROWS, SIZE)
    assert_equal_to_autograd(nodes, constants, x, lambda x: layer(x)[1][1], ends=("c",))


def test_one_step_and_no_bias_and_the_other_direction():
    layer, constants, options = made("LSTM")
    with torch.no_grad():
        for name in ("bias_ih_l0", "bias_hh_l0"):
            getattr(layer, name).zero_()
    del constants["b"]
    nodes = [node("LSTM", "a", "w", "r", **options)]
    assert_equal_to_autograd(nodes, constants, normal(1, ROWS, SIZE), lambda x: layer(x)[0][:, None])
    nodes = [node("LSTM", "a", "w", "r", **(options | {"direction": "reverse"}))]

    def function(x):
        return layer(x.flip(0))[0].flip(0)[:, None]

    assert_equal_to_autograd(nodes, constants, normal(STEPS, ROWS, SIZE), function)


def test_a_gru_that_resets_before_its_product():
    _, constants, options = made("GRU")
    nodes = [node("GRU", "a", "w", "r", "b", **(options | {"linear_before_reset": 0}))]
    w, r, b = (torch.from_numpy(constants[name][0]) for name in ("w", "r", "b"))

    def function(x):
        h, found = torch.zeros(ROWS, HIDDEN), []
        for step in x:
            at_x = (step @ w.T + b[: 3 * HIDDEN]).split(HIDDEN, 1)
            at_h = (h @ r.T + b[3 * HIDDEN :]).split(HIDDEN, 1)
            z, reset = ((at_x[g] + at_h[g]).sigmoid() for g in (0, 1))
            inner = (reset * h) @ r[2 * HIDDEN :].T + b[5 * HIDDEN :]
            h = (1 - z) * (at_x[2] + inner).tanh() + z * h
            found.append(h)
        return torch.stack(found)[:, None]

    assert_equal_to_autograd(nodes, constants, normal(STEPS, ROWS, SIZE), function)


@pytest.mark.parametrize(
    ("options", "inputs"),
    [({"clip": 1.0}, ()), ({}, ("lengths",)), ({}, ("", "a"))],
    ids=["clip", "lengths", "state"],
)
def test_unusual_recurrent_layers_are_rejected(options, inputs):
    _, constants, usual = made("LSTM")
    constants["lengths"] = np.full(ROWS, STEPS, np.int32)
    nodes = [node("LSTM", "a", "w", "r", "b", *inputs, **(usual | options))]
    x = normal(1, ROWS, HIDDEN) if "a" in inputs else normal(STEPS, ROWS, SIZE)
    if "a" in inputs:
        constants["w"] = constants["w"][:, :, :HIDDEN].copy()
    with pytest.raises(ExportError, match="steps of one length") as error:
        gradient_of(nodes, constants, x, 18)
    assert error.value.code == "export-unsupported"


class OverConvolutions(nn.Module):
    """A recurrent layer that reads the maps of a convolution, as in keyword spotting."""

    def __init__(self, kind, bidirectional):
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(9, 16, 5, stride=2), nn.ReLU())
        self.layer = kind(16, 12, batch_first=True, bidirectional=bidirectional)
        self.fc = nn.Linear(24 if bidirectional else 12, 4)

    def classify(self, a):
        return self.fc(self.layer(a.transpose(1, 2))[0][:, -1])

    def forward(self, x):
        return self.classify(self.features(x))


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_recurrent_head_over_convolutions(op, bidirectional):
    torch.manual_seed(0)
    model = lively(OverConvolutions(KINDS[op], bidirectional))
    x = noise((9, 40), 5)
    finished = attach_score(onnx.load_from_string(plain_onnx(model, (9, 40))))
    found = run_file(finished.SerializeToString(), x)
    a = model.features(torch.from_numpy(x)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.classify(a).amax(1).sum(), a)
    wanted = torch.relu((gradient.mean(2, keepdim=True) * a).sum(1)).mean(1).detach().numpy()
    assert_routes_equal(found["drip_score"], wanted)
    assert metadata_of(finished).score["layer_shape"] == [16, 18]
