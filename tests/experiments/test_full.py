"""The full regime on few rows: trainings repeat and are found again; scores are the network's Grad-CAM."""

import functools
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from support import require_data

from drip.datasets import load
from drip.errors import InputError, ModelError
from drip.models import EfficientNetB0, SmallCNN
from experiments import longer
from experiments.cells import Unit
from experiments.full import Backbone, FullRegime, _leveled, pretrained
from experiments.recipes import RECIPES, Augmentation, Recipe, augmented
from experiments.views import network_inputs
from experiments.workspace import Workspace

pytestmark = pytest.mark.slow

ROWS = np.arange(24)
LOAD = functools.cache(load)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.full.load", LOAD)
        yield tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tomato(cache):
    require_data("plantvillage_tomato10_128.zip")
    require_data("mobilenet_v2_imagenet_features.npz")
    return regime("tomato", cache)


@pytest.fixture(scope="module")
def speech(cache):
    require_data("speech_commands_9words.zip")
    return regime("speech_commands", cache)


def regime(dataset, cache, **options):
    recipe = replace(RECIPES[dataset], epochs=1, batch_size=8)
    return FullRegime.of(dataset, cache=cache, recipe=recipe, limit=40, **options)


def fit(regime, **options):
    return regime.fit(ROWS, regime.labels[ROWS], seed=3, **options)


def models(cache):
    return set((cache / "models").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tomato", "speech"])
def test_equal_seeds_give_equal_models_and_a_cached_one_is_found_again(
    name, request, cache, monkeypatch, tmp_path
):
    regime = request.getfixturevalue(name)
    first = fit(regime)
    before = models(cache)
    monkeypatch.setattr(regime, "_models", tmp_path)
    again = fit(regime)
    np.testing.assert_array_equal(regime.logits(again, ROWS), regime.logits(first, ROWS))
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr("experiments.full.train", lambda *_, **__: pytest.fail("trained again"))
        found = fit(regime)
    np.testing.assert_array_equal(regime.logits(found, ROWS), regime.logits(first, ROWS))
    assert models(cache) == before
    assert not found.network.training
    other = regime.fit(ROWS, regime.labels[ROWS], seed=4)
    assert not np.array_equal(regime.logits(other, ROWS), regime.logits(first, ROWS))


def test_other_labels_rows_or_order_are_other_models(speech, monkeypatch, tmp_path):
    monkeypatch.setattr(speech, "_models", tmp_path)
    labels = speech.labels[ROWS]
    for rows, given in ((ROWS, labels), (ROWS, labels[::-1]), (ROWS[::-1], labels), (ROWS[:-1], labels[:-1])):
        speech.fit(rows, given, seed=3)
    assert len(list(tmp_path.iterdir())) == 4


def grad_cam(network, layer, x):
    """Mean of the rectified map of the predicted class, by autograd through the whole network."""
    kept = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    logits = network(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.max(1).values.sum(), kept)
    positions = tuple(range(2, gradient.dim()))
    weights = gradient.mean(positions, keepdim=True)
    maps = (weights * kept[0]).sum(1).relu().flatten(1)
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    normalised = (maps - low) / (high - low).clamp_min(1e-12)
    return maps.mean(1).detach(), normalised.mean(1).detach(), logits.detach()


def test_scores_are_grad_cam_of_the_whole_network(tomato):
    model, rows = fit(tomato), np.arange(6)
    seen = tomato.observe(model, rows)
    whole = pretrained("mobilenet_v2", 10, None, None)()
    kept = whole.load_state_dict(model.network.state_dict(), strict=False)
    assert not kept.unexpected_keys
    x = clean_inputs(rows)
    raw, normalised, logits = grad_cam(whole.eval(), whole.features[18], x)
    # the frozen part's outputs are kept in half precision
    np.testing.assert_allclose(seen.scores, raw, rtol=5e-3)
    np.testing.assert_allclose(seen.named_scores["drip_normalised"], normalised, rtol=1e-2)
    np.testing.assert_allclose(seen.logits, logits, atol=5e-3 * float(logits.abs().max()))
    rounded = whole.features[:14](x).half().float()
    raw, normalised, logits = grad_cam(model.network, model.network.features, rounded)
    np.testing.assert_allclose(seen.scores, raw, rtol=2e-5)
    np.testing.assert_allclose(seen.named_scores["drip_normalised"], normalised, rtol=2e-4)
    np.testing.assert_allclose(seen.logits, tomato.logits(model, rows), atol=1e-5)
    assert seen.primary == "drip"
    assert seen.features.shape == (6, 1280)
    np.testing.assert_array_equal(seen.n_bytes, tomato.sizes[rows])


def clean_inputs(rows):
    data = LOAD("tomato")
    chosen = np.sort(np.random.default_rng(0).choice(len(data), 40, replace=False))
    return network_inputs(data, chosen[rows], "clean", 128)


def test_scores_of_sound_are_grad_cam_through_the_fully_connected_head(speech):
    model, rows = fit(speech), np.arange(6)
    seen = speech.observe(model, rows)
    x = torch.from_numpy(speech._backbone.inputs(rows))
    raw, normalised, logits = grad_cam(model.network, model.network.features, x)
    np.testing.assert_allclose(seen.scores, raw, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen.named_scores["drip_normalised"], normalised, rtol=1e-3)
    np.testing.assert_allclose(seen.logits, logits, atol=1e-5)
    assert set(seen.named_scores) == {"drip", "drip_normalised", "contrast"}


def test_no_rows_give_no_observations(speech):
    assert len(speech.observe(fit(speech), ROWS[:0])) == 0


def test_training_leaves_the_frozen_part_as_it_is(tomato, cache):
    bank = {path: path.read_bytes() for path in cache.glob("bank-*")}
    model = fit(tomato)
    assert {name.split(".")[1] for name in model.network.state_dict()} == {"14", "15", "16", "17", "18", "1"}
    assert bank == {path: path.read_bytes() for path in cache.glob("bank-*")}
    again = regime("tomato", cache)
    assert again.config == tomato.config
    np.testing.assert_array_equal(again.logits(model, ROWS), tomato.logits(model, ROWS))


def test_flips_are_a_second_view_of_the_training_rows_and_take_no_more_steps(cache, tomato):
    recipe = replace(tomato.recipe, flips=True)
    flipping = FullRegime.of("tomato", cache=cache, recipe=recipe, limit=40)
    rows = np.array([5, 2])
    seen = flipping._backbone.training(rows)[np.arange(4)]
    np.testing.assert_array_equal(seen[:2], tomato._backbone.inputs(rows))
    frozen = pretrained("mobilenet_v2", 10, None, cache)().features[:14].eval()
    with torch.no_grad():
        expected = frozen(clean_inputs(rows).flip(3))
    np.testing.assert_allclose(seen[2:], expected, rtol=2e-3, atol=2e-3)
    model = fit(flipping)
    assert flipping.steps(model) == 3
    assert not np.array_equal(flipping.logits(model, rows), tomato.logits(fit(tomato), rows))
    assert flipping.config != tomato.config


def test_sound_is_brought_to_one_level(speech):
    inputs = speech._backbone.inputs(ROWS)
    np.testing.assert_allclose(np.sqrt(np.square(inputs).mean((1, 2))), 0.1, rtol=1e-4)
    np.testing.assert_array_equal(_leveled(np.zeros((2, 1, 9), np.float32), 0.1), np.zeros((2, 1, 9)))


def test_equal_steps_are_those_of_the_full_set(tomato):
    assert tomato.steps(fit(tomato)) == 3
    model = fit(tomato, full_rows=40)
    assert tomato.steps(model) == 5
    counted = model.network.get_submodule("features.14.conv.0.1").num_batches_tracked
    start = (
        pretrained("mobilenet_v2", 10, None, None)().get_submodule("features.14.conv.0.1").num_batches_tracked
    )
    assert counted - start == 5


def test_the_papers_network_runs_from_a_torchvision_file(cache):
    require_data("plantvillage_tomato10_128.zip")
    torch.manual_seed(0)
    weights = cache / "efficientnet.pth"
    torch.save(EfficientNetB0().state_dict(), weights)
    recipe = replace(RECIPES["tomato"], epochs=1, batch_size=4)
    small = FullRegime.of(
        "tomato", cache=cache, backbone="efficientnet_b0", weights=weights, recipe=recipe, limit=8
    )
    rows = np.arange(8)
    model = small.fit(rows, small.labels, seed=0)
    seen = small.observe(model, rows)
    assert seen.features.shape == (8, 1280)
    assert {name.split(".")[1] for name in model.network.state_dict()} == {"5", "6", "7", "8", "1"}
    assert small.config["backbone"].startswith("EfficientNetB0:")
    assert small.config["recipe"]["backbone"] == "efficientnet_b0"
    raw, _, _ = grad_cam(
        model.network, model.network.features, torch.from_numpy(small._backbone.inputs(rows)).requires_grad_()
    )
    np.testing.assert_allclose(seen.scores, raw, rtol=1e-4, atol=1e-6)


def test_what_is_unknown_or_does_not_fit_is_refused(cache, tmp_path):
    with pytest.raises(InputError, match=r"data set .* unknown"):
        FullRegime.of("lena", cache=cache)
    with pytest.raises(InputError, match=r"backbone .* unknown"):
        pretrained("resnet", 10, None, cache)
    with pytest.raises(InputError, match="efficientnet_b0: no weights"):
        pretrained("efficientnet_b0", 10, None, cache)
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="not the weights of torchvision's efficientnet_b0"):
        pretrained("efficientnet_b0", 10, tmp_path / "other.pth", cache)


def test_augmentation_stays_within_its_limits_and_moves_every_clip():
    waves = torch.zeros(64, 1, 100)
    waves[:, :, 50] = 1
    torch.manual_seed(0)
    moved = augmented(waves, Augmentation(shift=10, gain=0.3, noise=0.0))
    places = moved[:, 0].argmax(1)
    assert 40 <= int(places.min()) < 45
    assert 55 < int(places.max()) <= 60
    peaks = moved.amax((1, 2))
    assert 0.7 <= float(peaks.min()) < 0.8
    assert 1.2 < float(peaks.max()) <= 1.3
    assert int((moved != 0).sum()) == 64
    noisy = augmented(waves, Augmentation(shift=0, gain=0.0, noise=0.1))
    assert 0.02 < float((noisy - waves).std()) < 0.1


def test_longer_training_lengthens_the_deployed_model_and_every_arm_on_the_same_split(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    images = (rng.standard_normal((200, 1, 8, 8)) + labels[:, None, None, None]).astype(np.float32)
    backbone = Backbone(lambda: SmallCNN(1, 2, 4), lambda rows: images[rows], lambda rows: images[rows], {})
    recipe = Recipe("small_cnn", epochs=2, batch_size=8, learning_rate=1e-2)
    usual = FullRegime(labels, 2, backbone, recipe, lambda: np.full(200, 64), tmp_path)
    unit = Unit("longer", "full", "cifar10", 0)
    bench = longer.workspace(unit, usual)
    for cell in longer.cells(unit):
        metrics = longer.run(cell, bench).metrics
        assert metrics["steps"] == 4 * round(metrics["n_train"] / 8)
    deployed = bench.at(4).deployed("d1")
    assert deployed.steps == 4 * 10
    assert deployed.steps == 2 * Workspace(unit, usual).deployed("d1").steps
    np.testing.assert_array_equal(bench.at(4).split.d3, Workspace(unit, usual).split.d3)
    assert longer.config(cell)["recipe"] == {**asdict(RECIPES["cifar10"]), "epochs": 4}
