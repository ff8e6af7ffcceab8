"""Features of images are averages of a network's last maps, whatever the network's form."""

import numpy as np
import pytest

from drip.errors import DripError, InputError, ModelError
from drip.media import InputSpec
from drip.workflow.features import of_torch, open_backbone

SPEC = InputSpec((1, 28, 28))


@pytest.fixture
def network():
    import torch
    from torch import nn

    from drip.models import SmallCNN

    torch.manual_seed(0)
    model: nn.Module = SmallCNN().eval()
    return model


def test_a_classifier_and_its_backbone_give_the_average_of_the_last_maps(network):
    import torch

    batch = np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32)
    with torch.inference_mode():
        expected = network.features(torch.from_numpy(batch)).mean(dim=(2, 3)).numpy()
    for model in (network, network.features):
        found = of_torch(model, SPEC, "small").features(batch)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_network_for_other_inputs_is_refused(network):
    with pytest.raises(ModelError) as caught:
        of_torch(network, InputSpec((3, 28, 28)), "small")
    assert caught.value.code == "input-spec-invalid"


def test_default_weights_are_needed_and_must_be_some(tmp_path):
    with pytest.raises(InputError, match="--weights"):
        open_backbone(None)
    with pytest.raises(DripError) as caught:
        open_backbone(None, tmp_path / "none.pt")
    assert caught.value.code == "path-missing"
    for name in ("w.npz", "w.pt"):
        (tmp_path / name).write_bytes(b"none")
        with pytest.raises(ModelError):
            open_backbone(None, tmp_path / name)


@pytest.mark.slow
def test_the_default_network_takes_both_forms_of_weights(tmp_path):
    import torch

    from drip.models import MobileNetV2

    small = InputSpec((3, 32, 32))
    batch = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    for expansion in (False, True):
        torch.manual_seed(1)
        state = MobileNetV2(first_expansion=expansion).state_dict()
        arrays = {name: values.numpy() for name, values in state.items() if "classifier" not in name}
        np.savez(tmp_path / "w.npz", **arrays)
        assert open_backbone(None, tmp_path / "w.npz", small).features(batch).shape == (1, 1280)
    torch.save(MobileNetV2().state_dict(), tmp_path / "w.pt")
    assert open_backbone(None, tmp_path / "w.pt", small).features(batch).shape == (1, 1280)


def test_a_model_file_answers_for_its_weights_and_needs_features(board):
    with pytest.raises(ModelError) as caught:
        open_backbone(str(board.bare.path))
    assert caught.value.code == "model-outputs"
    with pytest.raises(InputError, match="leave out"):
        open_backbone(str(board.bare.path), board.bare.path)


@pytest.mark.slow
def test_a_model_file_gives_the_features_of_its_network(network, tmp_path):
    from drip.onnx import export_onnx

    batch = np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32)
    export_onnx(network, None, batch, tmp_path / "m.onnx", spec=SPEC)
    found = open_backbone(str(tmp_path / "m.onnx"))
    assert found.spec == SPEC
    expected = of_torch(network, SPEC, "small").features(batch)
    np.testing.assert_allclose(found.features(batch), expected, rtol=1e-4, atol=1e-5)
