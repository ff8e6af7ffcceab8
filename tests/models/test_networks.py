"""Shapes, parameter counts and key names of the networks, against published numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import require_data
from torch import nn

from drip.errors import ModelError
from drip.models import (
    AudioCNN,
    EfficientNetB0,
    MobileNetV2,
    SmallCNN,
    freeze_all_but_last_seven,
    load_features,
)
from drip.scoring import model_digest

KEYS = (Path(__file__).parent / "efficientnet_b0_keys.txt").read_text().split()


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_efficientnet_b0_has_torchvisions_360_keys_in_order():
    assert len(KEYS) == 360
    assert list(EfficientNetB0().state_dict()) == KEYS


def test_efficientnet_b0_has_the_published_tensor_sizes():
    # the first rows of the parameter table that torchvision's model prints
    sizes = [864, 32, 32, 288, 32, 32, 256, 8, 256, 32, 512, 16, 16, 1536, 96, 96, 864, 96, 96, 384, 4, 384]
    model = EfficientNetB0()
    assert [parameter.numel() for parameter in model.parameters()][: len(sizes)] == sizes
    assert count(model) == 5_288_548


def test_mobilenet_v2_has_torchvisions_keys_and_size():
    model = MobileNetV2()
    keys = list(model.state_dict())
    assert len(keys) == 314
    assert keys[0] == "features.0.0.weight"
    for key in (
        "features.1.conv.0.0.weight",  # the first block has no expansion
        "features.1.conv.1.weight",
        "features.1.conv.2.running_mean",
        "features.2.conv.2.weight",
        "features.17.conv.3.num_batches_tracked",
        "features.18.0.weight",
        "classifier.1.bias",
    ):
        assert key in keys
    assert count(model) == 3_504_872
    assert count(MobileNetV2(first_expansion=True)) == 3_504_872 + 32 * 32 + 64


@pytest.mark.parametrize(
    ("model", "shape", "n_positions"),
    [
        (lambda: EfficientNetB0(7), (3, 96, 96), 9),
        (lambda: MobileNetV2(7), (3, 96, 96), 9),
        (lambda: SmallCNN(1, 7), (1, 28, 28), 49),
        (lambda: SmallCNN(3, 7), (3, 32, 32), 64),
        (lambda: AudioCNN(7), (1, 16_000), 15),
    ],
    ids=["EfficientNetB0", "MobileNetV2", "SmallCNN grey", "SmallCNN colour", "AudioCNN"],
)
def test_forward_gives_one_logit_per_class(model, shape, n_positions):
    torch.manual_seed(0)
    network = model().eval()
    with torch.no_grad():
        x = torch.randn(2, *shape)
        assert network(x).shape == (2, 7)
        assert network.features(x).shape[2:].numel() == n_positions


@pytest.mark.parametrize("n_samples", [1020, 1023, 1024, 4000, 8000, 16_000, 16_001, 22_050])
def test_audio_networks_accept_the_length_they_were_built_for(n_samples):
    assert AudioCNN(4, n_samples=n_samples, width=2, hidden=4)(torch.zeros(2, 1, n_samples)).shape == (2, 4)


def test_audio_network_has_the_papers_parts():
    kinds = [type(module).__name__ for module in AudioCNN().modules() if not list(module.children())]
    assert kinds[:16] == ["Conv1d", "BatchNorm1d", "ReLU", "MaxPool1d"] * 4
    assert kinds[16:] == ["Flatten", "Dropout", "Linear", "ReLU", "Linear"]


def test_too_short_audio_is_rejected():
    with pytest.raises(ModelError, match="n_samples is 1000") as caught:
        AudioCNN(4, n_samples=1000)
    assert caught.value.code == "bad-argument"


def test_only_the_last_seven_submodules_train():
    model = freeze_all_but_last_seven(EfficientNetB0(10))
    trained = {
        name.rsplit(".", 2)[0].split(".block")[0] for name, p in model.named_parameters() if p.requires_grad
    }
    stages = {".".join(name.split(".")[:2]) for name in trained}
    assert stages == {"features.5", "features.6", "features.7", "features.8", "classifier"}
    assert all(p.requires_grad for p in model.features[8].parameters())


def test_stochastic_depth_drops_branches_in_training_only():
    torch.manual_seed(0)
    model = EfficientNetB0(3, stochastic_depth=0.9, dropout=0.0)
    depths = [m.p for m in model.modules() if type(m).__name__ == "StochasticDepth"]
    assert depths == pytest.approx([0.9 * index / 16 for index in range(16)])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


def test_features_load_from_npz_if_they_fit(tmp_path):
    torch.manual_seed(0)
    source = MobileNetV2(5, first_expansion=True)
    state = {
        name: value.numpy()
        for name, value in source.state_dict().items()
        if not name.startswith("classifier") and "num_batches" not in name
    }
    path = tmp_path / "weights.npz"
    np.savez(path, **state)
    target = MobileNetV2(9, first_expansion=True)
    load_features(target, path)
    assert all(
        torch.equal(target.state_dict()[name], torch.from_numpy(value)) for name, value in state.items()
    )
    with pytest.raises(ModelError, match=r"not in the file.*first_expansion=True"):
        load_features(MobileNetV2(5), path)
    with pytest.raises(ModelError, match="not in the file"):
        load_features(EfficientNetB0(5), path)
    untouched = MobileNetV2(5, in_channels=1, first_expansion=True)
    before = model_digest(untouched)
    with pytest.raises(ModelError, match=r"1 names with another shape, such as features\.0\.0\.weight"):
        load_features(untouched, path)
    assert model_digest(untouched) == before
    path.write_bytes(b"not an archive")
    with pytest.raises(ModelError, match=r"weights\.npz: not a readable npz file"):
        load_features(target, path)
    np.savez(path, **{"features.0.0.weight": np.array(["code"], dtype=object)})
    with pytest.raises(ModelError, match=r"weights\.npz: not a readable npz file"):
        load_features(target, path)
    with pytest.raises(ModelError, match="does not exist") as caught:
        load_features(target, tmp_path / "none.npz")
    assert caught.value.code == "path-missing"


def test_the_imagenet_features_load():
    weights = require_data("mobilenet_v2_imagenet_features.npz")
    model = MobileNetV2(10, first_expansion=True).eval()
    load_features(model, weights)
    # statistics of trained weights differ from random ones: the stem's channels are far from unit variance
    assert model.features[0][1].running_var.max() > 1.5 * model.features[0][1].running_var.median()
    with torch.no_grad():
        assert torch.isfinite(model(torch.zeros(1, 3, 224, 224))).all()
