"""Whatever is done to a model before or after its scorer is built, the score is right or there is an error."""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from heads import HEADS, assert_routes_equal, build, oracle, score_of
from torch import nn
from torch.nn.modules import module as global_hooks

from drip.errors import ModelError
from drip.scoring import TorchScorer

CLOSED = ("gap_linear", "flatten_fc")
"""Heads whose scores come from the closed form."""


def linear_of(model):
    return next(module for module in model.modules() if isinstance(module, nn.Linear))


def assert_scores_follow_autograd(scorer, model, batch, layer="0"):
    expected = score_of(oracle(model, layer, batch)[0])
    assert_routes_equal(scorer.score(batch).scores, expected)
    assert_routes_equal(scorer.score(batch[:1]).scores, expected[:1])


@pytest.mark.parametrize("head", CLOSED)
def test_a_module_whose_hook_dictionaries_were_replaced_is_scored(head):
    model, batch, layer = build(head)
    scorer = TorchScorer(model, layer=layer, example=batch)
    for module in model.modules():
        module._forward_hooks = OrderedDict()
        module._forward_pre_hooks = OrderedDict()
    assert_scores_follow_autograd(scorer, model, batch, layer)
    assert not any(module._forward_hooks for module in model.modules())


def halve_output(module):
    module.register_forward_hook(lambda _module, _inputs, output: output * 0.5)


def halve_output_in_place(module):
    def hook(_module, _inputs, output):
        output *= 0.5

    module.register_forward_hook(hook)


def halve_input(module):
    module.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 0.5,))


def halve_gradient(module):
    def hook(_module, inputs, _outputs):
        return None if inputs[0] is None else (inputs[0] * 0.5,)

    module.register_full_backward_hook(hook)


def treble_gradient(module):
    module.register_full_backward_pre_hook(lambda _module, outputs: (outputs[0] * 3,))


def weight_norm(module):
    if isinstance(module, nn.Linear):
        nn.utils.parametrizations.weight_norm(module)
        module.parametrizations.weight.original0.data.mul_(3)
    else:
        halve_output(module)


def replace_forward(module):
    forward = module.forward
    module.forward = lambda x: forward(x) * 0.5


def replace_class(module):
    class Halved(type(module)):
        def forward(self, x):
            return super().forward(x) * 0.5

    module.__class__ = Halved


CHANGES = (
    halve_output,
    halve_output_in_place,
    halve_input,
    halve_gradient,
    treble_gradient,
    weight_norm,
    replace_forward,
    replace_class,
)


def places(model):
    """Every module from the target's on, and the model itself."""
    return ["", "0", "1", *(f"1.{index}" for index in range(len(model[1])))]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("head", CLOSED)
def test_a_changed_head_is_scored_as_by_autograd(head, change, when):
    for place in places(build(head)[0]):
        model, batch, layer = build(head)
        scorer = TorchScorer(model, layer=layer)
        if when == "after":
            scorer.score(batch)
        change(model.get_submodule(place))
        try:
            expected = score_of(oracle(model, layer, batch)[0])
        except RuntimeError as error:  # autograd has no answer where a ReLU's result is edited
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
            with pytest.raises(ModelError, match="modified by an inplace operation"):
                scorer.score(batch)
            continue
        assert_routes_equal(scorer.score(batch).scores, expected)
        assert_routes_equal(scorer.score(batch[:1]).scores, expected[:1])


class _Linear(nn.Linear):
    """Its forward can rescale its output or its weight."""

    scale, weight_scale = 1.0, 1.0

    def forward(self, x):
        weight = self.weight if self.weight_scale == 1.0 else self.weight * self.weight_scale
        y = nn.functional.linear(x, weight, self.bias)
        return y if self.scale == 1.0 else y * self.scale


class _Knobs(nn.Module):
    """A head whose Python state rescales at any of its steps, in place or not."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())
        self.first, self.last = _Linear(6, 8), nn.Linear(8, 4)
        self.knob = ""

    def forward(self, x):
        pooled = self.features(x).mean((2, 3))
        pooled = 0.5 * pooled if self.knob == "pooled" else pooled
        hidden = self.first(pooled)
        if self.knob == "hidden in place":
            hidden *= 0.5
        hidden = hidden.clamp(0, 0.1) if self.knob == "hidden" else hidden.relu()
        logits = self.last(input=hidden) if self.knob == "keyword" else self.last(hidden)
        if self.knob == "logits in place":
            logits /= 2
        if self.knob == "another":
            return self.last(hidden) + logits
        return logits / 2 if self.knob == "logits" else logits


@pytest.mark.parametrize(
    "knob",
    ["pooled", "hidden", "hidden in place", "logits", "logits in place", "keyword", "another", "scale"],
)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("contrast", [False, True])
def test_a_change_of_the_heads_own_state_is_followed(knob, when, contrast):
    torch.manual_seed(0)
    model = _Knobs().eval()
    batch = np.random.default_rng(0).normal(size=(5, 1, 9, 9)).astype(np.float32)
    scorer = TorchScorer(model, layer="features", contrast=contrast)
    if when == "after":
        scorer.score(batch)
    model.knob, model.first.weight_scale = knob, 0.5 if knob == "scale" else 1.0
    expected = score_of(oracle(model, "features", batch)[0])
    assert_routes_equal(scorer.score(batch).named_scores["drip"], expected)
    assert_routes_equal(scorer.score(batch[:1]).named_scores["drip"], expected[:1])


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("head", CLOSED)
def test_hooks_of_all_modules_are_followed(head, when):
    model, batch, layer = build(head)
    scorer = TorchScorer(model, layer=layer)
    if when == "after":
        scorer.score(batch)

    def halve(module, _inputs, output):
        return output * 0.5 if isinstance(module, nn.Linear) else None

    handle = global_hooks.register_module_forward_hook(halve)
    try:
        assert_scores_follow_autograd(scorer, model, batch, layer)
    finally:
        handle.remove()


def test_a_hook_that_only_observes_changes_no_score():
    model, batch, layer = build("flatten_fc")
    seen = []
    scorer = TorchScorer(model, layer=layer, example=batch)
    linear_of(model).register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    assert_scores_follow_autograd(scorer, model, batch, layer)
    assert seen


@pytest.mark.parametrize("head", CLOSED)
def test_a_linear_layer_replaced_later_is_followed(head):
    model, batch, layer = build(head)
    scorer = TorchScorer(model, layer=layer, example=batch)
    model[1][-1] = nn.Linear(model[1][-1].in_features, 7)
    assert_scores_follow_autograd(scorer, model, batch, layer)


def test_dropout_added_later_is_off():
    model, batch, layer = build("gap_linear")
    scorer = TorchScorer(model, layer=layer, example=batch)
    model[1][2] = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)).train()
    found = scorer.score(batch).scores
    assert all(module.training for module in model[1][2])
    model.eval()
    assert_routes_equal(found, score_of(oracle(model, layer, batch)[0]))


@pytest.mark.parametrize("head", [*CLOSED, "hardswish_mlp"])
def test_scorers_of_one_model_and_of_a_wrapper_in_threads_get_their_own_scores(head):
    model, batch, layer = build(head)
    wrapper = nn.Sequential(model)
    scorers = [
        TorchScorer(model.train(), layer=layer, example=batch),
        TorchScorer(wrapper, layer=f"0.{layer}", example=batch),
        TorchScorer(model, layer=layer, contrast=True, example=batch),
    ]
    jobs = [(scorers[i % 3], batch[i % 6 : i % 6 + 1 + i % 3]) for i in range(240)]
    expected = [scorer.score(part).named_scores["drip"] for scorer, part in jobs]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda job: job[0].score(job[1]).named_scores["drip"], jobs))
    assert all(np.array_equal(got, want) for got, want in zip(found, expected, strict=True))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("head", [*CLOSED, "hardswish_mlp"])
def test_a_model_that_another_thread_runs_at_the_same_time_is_scored(head):
    model, batch, layer = build(head)
    scorer = TorchScorer(model, layer=layer, example=batch)
    expected = scorer.score(batch).scores

    def forward(_):
        with torch.no_grad():
            logits = model(torch.from_numpy(batch))
        assert not logits.requires_grad

    with ThreadPoolExecutor(3) as threads:
        forwards = threads.map(forward, range(200))
        found = [scorer.score(batch).scores for _ in range(200)]
        assert len(list(forwards)) == 200
    assert all(np.array_equal(got, expected) for got in found)


class _Editing(nn.Module):
    """Scales its input in place where it is not scaled yet."""

    def __init__(self):
        super().__init__()
        self.features, self.fc = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU()), nn.Linear(6, 4)
        self.knob = 1.0

    def forward(self, x):
        if x.max() > 2:
            x /= 2
        return self.fc(self.features(x).mean((2, 3))) * self.knob


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("knob", [1.0, 2.0])
def test_a_model_that_edits_its_input_does_not_change_the_callers_array(kind, knob):
    torch.manual_seed(0)
    model = _Editing().eval()
    batch = np.random.default_rng(0).uniform(0, 2, size=(4, 1, 9, 9)).astype(np.float32)
    scorer = TorchScorer(model, layer="features", example=batch)
    model.knob = knob
    given = 8 * batch
    expected = score_of(oracle_of_copy(model, given))
    for _ in range(2):
        rows = given if kind == "array" else torch.from_numpy(given)
        assert_routes_equal(scorer.score(rows).scores, expected)
        scorer.heatmap(rows)
        assert np.array_equal(given, 8 * batch)
    assert_routes_equal(TorchScorer(model, layer="features").score(given).scores, expected)
    assert np.array_equal(given, 8 * batch)


def oracle_of_copy(model, batch):
    """The maps of a model that edits its input; autograd does not allow that for a leaf of the graph."""

    class Copying(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x.clone())

    return oracle(Copying(), "model.features", batch)[0]


@pytest.fixture
def _same_attention_without_graph():
    """Without a graph torch uses another attention kernel, which rounds bfloat16 at other places."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.usefixtures("_same_attention_without_graph")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_autocast_is_followed(head, when):
    model, batch, layer = build(head)
    scorer = TorchScorer(model, layer=layer)
    if when == "after":
        scorer.score(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scorer.score(batch)
        maps = low_precision_maps(model, layer, torch.from_numpy(batch))
    assert_routes_equal(found.scores, score_of(maps))
    assert found.features.dtype == np.float32


@pytest.mark.parametrize("head", ["gap_linear", "flatten_fc", "hardswish_mlp", "squeeze_head"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_precision_models_are_computed_in_single(head, dtype):
    model, batch, layer = build(head)
    model = model.to(dtype)
    found = TorchScorer(model, layer=layer).score(batch).scores
    assert_routes_equal(found, score_of(low_precision_maps(model, layer, torch.from_numpy(batch).to(dtype))))


def low_precision_maps(model, layer, x):
    """Maps from activations and gradients in the model's precision, computed in float64."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
    logits = model(x.clone().requires_grad_())
    handle.remove()
    rows = torch.arange(len(x))
    (gradient,) = torch.autograd.grad(logits[rows, logits.argmax(1)].sum(), kept[0])
    a, g = (t.detach().double().numpy() for t in (kept[0], gradient))
    if a.ndim == 3 and a.shape[1] == 17:
        a, g = (t[:, 1:].transpose(0, 2, 1) for t in (a, g))
    axes = tuple(range(2, a.ndim))
    return (g.mean(axes, keepdims=True) * a).sum(1)
