"""Every plan equals autograd through the whole model, on six kinds of heads and EfficientNet-B0."""

import numpy as np
import pytest
import torch
from heads import (
    HEADS,
    SATURATING,
    AttentionPooling,
    SharedLinear,
    assert_routes_equal,
    build,
    oracle,
    saturating,
    score_of,
)
from support import require_module
from torch import nn

from drip.models import AudioCNN, EfficientNetB0, MobileNetV2, SmallCNN
from drip.scoring import TorchScorer
from drip.scoring.cam import MAPS
from drip.scoring.gradient import ClosedForm, HeadVjp

METHODS = tuple(MAPS)
# Not HiResCAM for tokens: the last block normalises them first, so their gradient is orthogonal to them and the
# map is zero up to rounding.
CASES = [(head, method) for head in HEADS for method in METHODS if (head, method) != ("tokens", "hirescam")]


@pytest.mark.parametrize(("head", "method"), CASES)
def test_scores_equal_full_autograd(head, method):
    model, batch, layer = build(head)
    scorer = TorchScorer(model, layer=layer, method=method)
    observations = scorer.score(batch)
    maps, logits, activations = oracle(model, layer, batch, method)
    assert_routes_equal(observations.scores, score_of(maps))
    assert_routes_equal(observations.logits, logits)
    assert_routes_equal(observations.features, activations.mean(tuple(range(2, activations.ndim))))
    assert (observations.classes == logits.argmax(1)).all()


@pytest.mark.parametrize(("head", "method"), CASES)
def test_normalised_scores_equal_full_autograd(head, method):
    model, batch, layer = build(head)
    found = TorchScorer(model, layer=layer, method=method, heatmap="normalised").score(batch).scores
    expected = score_of(oracle(model, layer, batch, method)[0], normalised=True)
    assert_routes_equal(found, expected)


@pytest.mark.parametrize(("head", "method"), CASES)
def test_contrastive_scores_equal_full_autograd(head, method):
    model, batch, layer = build(head)
    observations = TorchScorer(model, layer=layer, method=method, contrast=True).score(batch)
    maps = oracle(model, layer, batch, method, rival=True)[0].reshape(len(batch), -1)
    assert_routes_equal(observations.scores, np.maximum(maps, 0).mean(1))
    assert_routes_equal(observations.named_scores["contrast_mean"], maps.mean(1))
    assert_routes_equal(observations.named_scores["contrast_abs"], np.abs(maps).mean(1))
    plain = oracle(model, layer, batch, method)[0]
    assert_routes_equal(observations.named_scores["drip"], score_of(plain))
    assert observations.primary == "contrast"


@pytest.mark.parametrize("head", HEADS)
def test_every_plan_that_applies_gives_the_same_scores(head):
    model, batch, layer = build(head)
    scorer = TorchScorer(model, layer=layer, example=batch)
    fixed = scorer._prepared
    expected = score_of(oracle(model, layer, batch)[0])
    plans = [HeadVjp(model, fixed.target), scorer.plan]
    for plan in plans:
        with torch.no_grad():
            run = plan.run(torch.from_numpy(batch))
            maps = MAPS["gradcam"](run.activations, run.gradients(run.logits.argmax(1), None))
        assert_routes_equal(score_of(np.asarray(maps)), expected)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("gap_linear", ClosedForm),
        ("flatten_fc", ClosedForm),
        ("hardswish_mlp", None),
        ("before_max_pool", None),
    ],
)
def test_the_closed_form_is_used_for_exactly_the_heads_it_covers(head, kind):
    model, batch, layer = build(head)
    scorer = TorchScorer(model, layer=layer, example=batch)
    exact = scorer._prepared.choice.errors
    assert ("closed form" in exact) == (kind is ClosedForm)
    assert all(error <= 1e-5 for error in exact.values())


@pytest.mark.parametrize("head", [name for name in HEADS if name != "before_max_pool"])
def test_the_target_is_found_without_help(head):
    model, batch, layer = build(head)
    found = TorchScorer(model, example=batch).layer
    # the squeeze-and-excitation head has a convolution of its own, which is the last activation
    assert found in ({layer, "1.conv"} if head == "squeeze_head" else {layer})


@pytest.mark.parametrize(
    ("make", "shape", "shape_of_layer"),
    [
        (lambda: SmallCNN(3, 10, width=4), (3, 32, 32), [16, 8, 8]),
        (lambda: AudioCNN(5, n_samples=4000, width=4, hidden=8), (1, 4000), [32, 3]),
        (lambda: MobileNetV2(7), (3, 64, 64), [1280, 2, 2]),
        (lambda: EfficientNetB0(10), (3, 64, 64), [1280, 2, 2]),
    ],
    ids=["SmallCNN", "AudioCNN", "MobileNetV2", "EfficientNetB0"],
)
def test_shipped_models_equal_full_autograd(make, shape, shape_of_layer):
    torch.manual_seed(0)
    model = make()
    batch = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    scorer = TorchScorer(model.eval(), contrast=True, example=batch)
    assert scorer.layer == "features"
    assert scorer.score_definition["layer_shape"] == shape_of_layer
    observations = scorer.score(batch)
    assert_routes_equal(observations.named_scores["drip"], score_of(oracle(model, "features", batch)[0]))
    contrast = oracle(model, "features", batch, rival=True)[0]
    assert_routes_equal(observations.scores, score_of(contrast))


@pytest.mark.parametrize("head", ["gap_linear", "flatten_fc", "hardswish_mlp", "squeeze_head"])
def test_scores_equal_captum(head):
    attr = require_module("captum.attr", "pip install captum")
    model, batch, layer = build(head)
    scores = TorchScorer(model, layer=layer).score(batch)
    cam = attr.LayerGradCam(model, model.get_submodule(layer))
    maps = cam.attribute(
        torch.from_numpy(batch), target=torch.from_numpy(scores.classes), relu_attributions=True
    )
    assert_routes_equal(scores.scores, maps.detach().flatten(1).double().mean(1).numpy())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("heatmap", ["raw", "normalised"])
def test_a_batch_scores_as_its_samples_one_by_one(head, heatmap):
    model, batch, layer = build(head)
    scorer = TorchScorer(model, layer=layer, heatmap=heatmap, contrast=True, example=batch)
    together = scorer.score(batch)
    for row in range(len(batch)):
        alone = scorer.score(batch[row : row + 1])
        for name, column in together.named_scores.items():
            assert alone.named_scores[name][0] == pytest.approx(column[row], rel=1e-4, abs=1e-6)


def test_the_score_of_pooled_linear_heads_is_the_logit_without_its_bias():
    model, batch, _ = build("gap_linear")
    observations = TorchScorer(model, contrast=True).score(batch)
    bias = model[1][3].bias.detach().double().numpy()
    n_positions = 9 * 11
    maps = oracle(model, "0", batch)[0]
    best = observations.classes
    expected = (observations.logits[np.arange(len(batch)), best] - bias[best]) / n_positions
    assert_routes_equal(maps.reshape(len(batch), -1).mean(1), expected)
    order = np.argsort(-observations.logits, axis=1, kind="stable")
    first, second = order[:, 0], order[:, 1]
    rows = np.arange(len(batch))
    margin = observations.logits[rows, first] - observations.logits[rows, second]
    expected = (margin - (bias[first] - bias[second])) / n_positions
    assert_routes_equal(observations.named_scores["contrast_mean"], expected)


def test_gradcam_and_hirescam_are_equal_on_pooled_linear_heads():
    model, batch, _ = build("gap_linear")
    gradcam = TorchScorer(model, method="gradcam").score(batch).scores
    hirescam = TorchScorer(model, method="hirescam").score(batch).scores
    assert_routes_equal(hirescam, gradcam)


def test_hirescam_of_tokens_before_a_normalisation_is_zero():
    model, batch, layer = build("tokens")
    hirescam = TorchScorer(model, layer=layer, method="hirescam").score(batch).scores
    gradcam = TorchScorer(model, layer=layer, method="gradcam").score(batch).scores
    assert hirescam.max() < 1e-4 * gradcam.max()


def test_layercam_equals_them_without_negative_weights():
    model, batch, _ = build("gap_linear")
    with torch.no_grad():
        model[1][3].weight.abs_()
    gradcam = TorchScorer(model, method="gradcam").score(batch).scores
    layercam = TorchScorer(model, method="layercam").score(batch).scores
    assert_routes_equal(layercam, gradcam)


def test_heatmaps_explain_the_requested_classes():
    model, batch, layer = build("gap_linear")
    scorer = TorchScorer(model)
    classes = np.array([4, 0, 1, 2, 3, 0])
    maps = oracle(model, layer, batch, classes=classes)[0]
    assert_routes_equal(scorer.heatmap(batch, classes), np.maximum(maps, 0))
    predicted = oracle(model, layer, batch)[0]
    assert_routes_equal(scorer.heatmap(batch), np.maximum(predicted, 0))


def test_tied_logits_take_the_lowest_indices():
    model, batch, layer = build("gap_linear")
    with torch.no_grad():
        model[1][3].weight[1:] = model[1][3].weight[1]
        model[1][3].bias[:] = torch.tensor([-50.0, 1.0, 1.0, 1.0, 1.0])
    observations = TorchScorer(model, layer=layer, contrast=True).score(batch)
    assert (observations.classes == 1).all()
    assert (observations.named_scores["contrast_abs"] == 0).all()
    with torch.no_grad():
        model[1][3].weight[2] += 0.1  # the second of the tied classes, at a lowered bias
        model[1][3].bias[:] = torch.tensor([-50.0, 100.0, 50.0, 50.0, 50.0])
    maps = oracle(model, layer, batch, rival=True)[0]
    found = TorchScorer(model, layer=layer, contrast=True).score(batch).named_scores["contrast_mean"]
    assert_routes_equal(found, maps.reshape(len(batch), -1).mean(1))


@pytest.mark.parametrize("name", SATURATING)
def test_heads_that_saturate_equal_full_autograd_on_bright_samples_too(name):
    model, batch = saturating(name)
    scorer = TorchScorer(model, layer="0", contrast=True, example=batch[:2])
    assert scorer.plan.name == "head VJP"
    observations = scorer.score(batch)
    for found, rival in ((observations.named_scores["drip"], False), (observations.scores, True)):
        expected = score_of(oracle(model, "0", batch, rival=rival)[0])
        for row in range(len(batch)):  # or the bright samples' scale would hide the others
            assert found[row] == pytest.approx(expected[row], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    "pool",
    [
        lambda a: a.mean((2, 3)),
        lambda a: a.flatten(2).mean(-1),
        lambda a: nn.functional.adaptive_avg_pool2d(a, 1).squeeze(-1).squeeze(-1),
        lambda a: a.permute(0, 2, 3, 1).mean((1, 2)),
    ],
)
def test_every_way_to_write_global_average_pooling_has_a_closed_form(pool):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 6, 3), nn.Linear(6, 4)

        def forward(self, x):
            return self.fc(pool(self.conv(x)))

    torch.manual_seed(0)
    model = Pooled().eval()
    batch = np.random.default_rng(0).normal(size=(4, 1, 9, 9)).astype(np.float32)
    scorer = TorchScorer(model, layer="conv", example=batch)
    assert "closed form" in scorer._prepared.choice.errors
    larger = np.random.default_rng(1).normal(size=(4, 1, 12, 15)).astype(np.float32)
    for given in (batch, larger):
        assert_routes_equal(scorer.score(given).scores, score_of(oracle(model, "conv", given)[0]))


def test_a_pooling_window_as_large_as_the_example_is_not_the_mean_of_larger_inputs():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())
    model = nn.Sequential(features, nn.AvgPool2d(6), nn.Flatten(), nn.Linear(6, 4)).eval()
    rng = np.random.default_rng(0)
    scorer = TorchScorer(model, layer="0", example=rng.normal(size=(2, 1, 8, 8)).astype(np.float32))
    larger = rng.normal(size=(4, 1, 11, 11)).astype(np.float32)
    assert_routes_equal(scorer.score(larger).scores, score_of(oracle(model, "0", larger)[0]))


@pytest.mark.parametrize(
    ("model", "shape"), [(SharedLinear, (1, 9, 9)), (AttentionPooling, (1, 30))], ids=str
)
def test_a_layer_that_runs_twice_and_attention_pooling_equal_full_autograd(model, shape):
    torch.manual_seed(0)
    model = model().eval()
    batch = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    scorer = TorchScorer(model, example=batch)
    assert scorer.layer == "features"
    assert scorer.plan.name == "head VJP"
    assert_routes_equal(scorer.score(batch).scores, score_of(oracle(model, "features", batch)[0]))


@pytest.mark.parametrize("n_rows", [1, 8, 9, 20])
def test_flattening_heads_give_the_same_for_few_and_many_rows(n_rows):
    model, batch, layer = build("flatten_fc")
    batch = np.concatenate([batch] * 4)[:n_rows]
    found = TorchScorer(model, layer=layer, example=batch).score(batch).scores
    assert_routes_equal(found, score_of(oracle(model, layer, batch)[0]))


class _BranchesOnBrightness(nn.Module):
    """Bright samples use another linear layer, which the graph of an ordinary sample does not show."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())
        self.dim, self.bright = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        pooled = self.features(x).mean((2, 3))
        return (self.bright if pooled.max() > 30 else self.dim)(pooled)


@pytest.mark.parametrize("factor", [1, 1000])
def test_a_head_that_chooses_its_layer_by_brightness_equals_full_autograd(factor):
    torch.manual_seed(0)
    model = _BranchesOnBrightness().eval()
    batch = np.random.default_rng(0).normal(size=(4, 1, 9, 9)).astype(np.float32)
    scorer = TorchScorer(model, example=batch)
    expected = score_of(oracle(model, "features", factor * batch)[0])
    assert_routes_equal(scorer.score(factor * batch).scores, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pooled_heads_of_every_precision_have_a_closed_form(dtype):
    model, batch, _ = build("gap_linear")
    assert "closed form" in TorchScorer(model.to(dtype), example=batch)._prepared.choice.errors
