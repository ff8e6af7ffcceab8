"""The scorer leaves the model unchanged, whatever the caller's modes are, also after an error."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from heads import HEADS, assert_routes_equal, build, oracle, score_of
from torch import nn

from drip.errors import DripError
from drip.models import SmallCNN
from drip.scoring import TorchScorer


def snapshot(model):
    hooks = [
        (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for module in model.modules()
    ]
    flags = [module.training for module in model.modules()]
    parameters = [
        (parameter.detach().clone(), parameter.requires_grad, parameter.grad)
        for parameter in model.parameters()
    ]
    buffers = [buffer.clone() for buffer in model.buffers()]
    return hooks, flags, parameters, buffers


def assert_same(before, after):
    assert before[0] == after[0]
    assert before[1] == after[1]
    for (value, required, grad), (value_after, required_after, grad_after) in zip(
        before[2], after[2], strict=True
    ):
        assert torch.equal(value, value_after)
        assert required == required_after
        assert grad is grad_after
    for value, value_after in zip(before[3], after[3], strict=True):
        assert torch.equal(value, value_after)


@pytest.mark.parametrize("head", HEADS)
def test_nothing_of_the_model_changes(head):
    model, batch, layer = build(head)
    model.train()
    next(model.children()).eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad = index % 2 == 0
    before = snapshot(model)
    scorer = TorchScorer(model, layer=layer, contrast=True)
    scorer.score(batch)
    scorer.score(batch)
    scorer.heatmap(batch)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_neither_matters_nor_changes(head, mode):
    model, batch, layer = build(head)
    expected = TorchScorer(model, layer=layer, contrast=True).score(batch)
    with mode():
        modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        scorer = TorchScorer(model, layer=layer, contrast=True, example=torch.from_numpy(batch) * 1)
        found = scorer.score(torch.from_numpy(batch) * 1)
        assert modes == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    for name, column in expected.named_scores.items():
        assert np.allclose(found.named_scores[name], column, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_training_mode_and_frozen_weights_do_not_change_the_scores(head):
    model, batch, layer = build(head)
    expected = TorchScorer(model, layer=layer).score(batch).scores
    model.train().requires_grad_(requires_grad=False)
    found = TorchScorer(model, layer=layer).score(batch).scores
    assert np.array_equal(found, expected)


class Breaks(nn.Module):
    """Raises on demand, after the target layer."""

    def __init__(self):
        super().__init__()
        self.net = SmallCNN(1, 3, width=2)
        self.broken = False

    def forward(self, x):
        if self.broken:
            self.net(x)
            raise RuntimeError("the sensor bus is down")
        return self.net(x)


def test_an_exception_restores_everything():
    model = Breaks().train()
    batch = np.zeros((2, 1, 8, 8), dtype=np.float32)
    scorer = TorchScorer(model, example=batch)
    before = snapshot(model)
    model.broken = True
    with pytest.raises(DripError, match="the sensor bus is down"):
        scorer.score(batch)
    with pytest.raises(DripError, match="the sensor bus is down"):
        TorchScorer(model, example=batch)
    assert torch.is_grad_enabled()
    assert_same(before, snapshot(model))


def test_a_hooks_exception_leaves_no_hook_of_the_scorer():
    model, batch, layer = build("flatten_fc")
    scorer = TorchScorer(model, layer=layer, example=batch)
    before = snapshot(model)
    expected = scorer.score(batch).scores
    last = model[1][4]
    handle = last.register_forward_pre_hook(lambda _module, inputs: inputs[1])
    with pytest.raises(DripError, match="IndexError"):
        scorer.score(batch)
    handle.remove()
    assert_same(before, snapshot(model))
    assert np.array_equal(scorer.score(batch).scores, expected)


def test_the_users_own_hooks_run_before_the_score_is_taken():
    model, batch, layer = build("flatten_fc")
    scorer = TorchScorer(model, layer=layer, example=batch)
    handle = model[0].register_forward_hook(lambda _module, _inputs, output: 2 * output)
    found = [scorer.score(rows).scores for rows in (batch, batch[:1])]
    maps = oracle(model, layer, batch)[0]
    handle.remove()
    assert_routes_equal(found[0], score_of(maps))
    assert_routes_equal(found[1], score_of(maps[:1]))


@pytest.mark.parametrize("head", ["gap_linear", "flatten_fc", "hardswish_mlp"])
def test_threads_that_share_a_scorer_get_their_own_scores(head):
    model, batch, layer = build(head)
    scorer = TorchScorer(model.train(), layer=layer, example=batch)
    parts = [batch[row % 6 : row % 6 + 1 + row % 3] for row in range(60)]
    expected = [scorer.score(part) for part in parts]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(scorer.score, parts))
    for got, want in zip(found, expected, strict=True):
        assert np.array_equal(got.scores, want.scores)
        assert np.array_equal(got.logits, want.logits)
        assert np.array_equal(got.features, want.features)
    assert all(module.training for module in model.modules())


def test_no_tensor_of_a_pass_is_kept_and_results_are_not_overwritten():
    model, batch, layer = build("flatten_fc")
    scorer = TorchScorer(model, layer=layer, example=batch)
    first = scorer.score(batch[:1])
    columns = [first.scores.copy(), first.logits.copy(), first.features.copy()]
    assert scorer.plan.tap._outputs == scorer.plan.tap._calls == scorer.plan.tap._versions == []
    scorer.score(batch[1:2])
    for kept, now in zip(columns, (first.scores, first.logits, first.features), strict=True):
        assert np.array_equal(kept, now)


@pytest.mark.slow
def test_preparing_does_not_load_sympy():
    code = (
        "import sys, numpy as np; from drip.models import SmallCNN; from drip.scoring import TorchScorer; "
        "batch = np.zeros((1, 1, 8, 8), np.float32); before = 'sympy' in sys.modules; "
        "scorer = TorchScorer(SmallCNN(1, 3), example=batch); scorer.score(batch); scorer.heatmap(batch); "
        "assert before or 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_new_weights_in_the_same_layers_are_used_at_once():
    torch.manual_seed(0)
    model = SmallCNN(1, 3, width=2)
    batch = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    scorer = TorchScorer(model, example=batch)
    first = scorer.score(batch).scores
    with torch.no_grad():
        model.classifier.weight.data.copy_(model.classifier.weight * 2)
        model.classifier.bias.zero_()
    assert np.allclose(scorer.score(batch).scores, TorchScorer(model).score(batch).scores)
    assert not np.allclose(scorer.score(batch).scores, first)


@pytest.mark.parametrize("n_rows", [1, 6, 12])
def test_any_change_of_a_weight_is_used_however_it_was_made(n_rows):
    model, batch, layer = build("flatten_fc")
    batch = np.concatenate([batch, batch])[:n_rows]
    scorer = TorchScorer(model, layer=layer, example=batch)
    first = scorer.score(batch).scores
    model[1][2].weight.data[:, 1::2] = 0  # .data: torch does not count this edit
    found = scorer.score(batch).scores
    assert not np.allclose(found, first)
    assert_routes_equal(found, score_of(oracle(model, layer, batch)[0]))


@pytest.mark.parametrize(
    "flaw",
    [
        "read only", "reversed", "float64", "long double", "big-endian", "transposed", "inference", "tensor",
    ],
)  # fmt: skip
def test_any_ordinary_float_batch_is_accepted(flaw):
    model, batch, layer = build("gap_linear")
    scorer = TorchScorer(model, layer=layer)
    expected = scorer.score(batch.copy()).scores
    given = batch
    if flaw == "read only":
        given.flags.writeable = False
    elif flaw == "reversed":
        given = batch[:, :, ::-1].copy()[:, :, ::-1]
    elif flaw == "float64":
        given = batch.astype(np.float64)
    elif flaw == "long double":
        given = batch.astype(np.longdouble)
    elif flaw == "big-endian":
        given = batch.astype(">f4")
    elif flaw == "inference":
        with torch.inference_mode():
            given = torch.from_numpy(batch) * 1
    elif flaw == "transposed":
        given = np.ascontiguousarray(batch.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    else:
        given = torch.from_numpy(batch).requires_grad_()
    assert np.allclose(scorer.score(given).scores, expected, rtol=1e-6)


def test_results_are_plain_arrays_of_documented_types():
    model, batch, _ = build("gap_linear")
    scorer = TorchScorer(model, contrast=True)
    observations = scorer.score(batch)
    assert observations.classes.dtype == np.int64
    assert observations.logits.dtype == np.float64
    assert observations.features.dtype == np.float32
    assert all(column.dtype == np.float64 for column in observations.named_scores.values())
    assert scorer.provides == {"logits", "features", "drip", "contrast", "contrast_mean", "contrast_abs"}
    assert set(observations.named_scores) == scorer.provides - {"logits", "features"}
    observations.scores[0] = 1.0  # no view into torch's memory that refuses writing


@pytest.mark.parametrize("prepared", [True, False])
def test_an_empty_batch_gives_empty_columns(prepared):
    model, batch, _ = build("gap_linear")
    scorer = TorchScorer(model, contrast=True, example=batch if prepared else None)
    observations = scorer.score(batch[:0])
    assert len(observations) == 0
    assert observations.logits.shape == (0, 5)
    assert observations.features.shape == (0, 8)
    assert observations.scores.shape == (0,)
    assert scorer.heatmap(batch[:0]).shape == (0, 9, 11)


def test_other_input_sizes_are_scored_if_the_model_accepts_them():
    model, batch, _ = build("gap_linear")
    scorer = TorchScorer(model, example=batch)
    larger = np.random.default_rng(3).normal(size=(2, 3, 20, 16)).astype(np.float32)
    assert np.allclose(scorer.score(larger).scores, TorchScorer(model).score(larger).scores, rtol=1e-6)


def test_the_definition_names_what_was_scored():
    model, batch, _ = build("gap_linear")
    scorer = TorchScorer(model, contrast=True, heatmap="normalised", method="layercam", example=batch)
    assert scorer.score_definition == {
        "name": "contrast",
        "method": "layercam",
        "heatmap": "normalised",
        "contrast": True,
        "layer": "0",
        "layer_shape": [8, 9, 11],
    }
    text = scorer.describe()
    for word in (
        "target layer  0 (Sequential, 8 x 9 x 11)",
        "closed form",
        "head VJP",
        " ms ",
    ):
        assert word in text
