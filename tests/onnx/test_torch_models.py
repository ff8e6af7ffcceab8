"""The exported file equals autograd through the whole PyTorch model, for every kind of head."""

import numpy as np
import onnx
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
from networks import SqueezeNet, lively, noise
from torch import nn

from drip.errors import DripError, ExportError, PolicyError
from drip.models import EfficientNetB0, MobileNetV2, SmallCNN
from drip.onnx import export_onnx, model_file_digest, read_metadata
from drip.onnx.files import run_file
from drip.onnx.torch_model import require_equal
from drip.policy import Policy, Provenance
from drip.scoring import TorchScorer, model_digest


def exported(model, x, path, **options):
    export_onnx(model, None, x[:2], path, contrast=True, **options)
    return run_file(path.read_bytes(), x)


def assert_equal_to_oracle(found, model, layer, x, *, normalised=False):
    maps, logits, activations = oracle(model, layer, x)
    assert_routes_equal(found["logits"], logits)
    assert (found["predicted_class"] == logits.argmax(1)).all()
    assert_routes_equal(found["drip_score"], score_of(maps, normalised=normalised))
    contrast = score_of(oracle(model, layer, x, rival=True)[0])
    scale = max(contrast.max(), score_of(maps).max())  # it is a difference of two scores
    assert np.abs(found["drip_contrast"] - contrast).max() <= 1e-5 * scale
    assert_routes_equal(found["features"], activations.mean(tuple(range(2, activations.ndim))))
    assert found["retain"].all()


@pytest.fixture(scope="module", params=HEADS)
def head(request, tmp_path_factory):
    """A head's model, its layer and shape, and the exported file's path."""
    model, batch, layer = build(request.param)
    path = tmp_path_factory.mktemp("head") / "model.onnx"
    export_onnx(model, None, batch[:2], path, layer=layer, contrast=True)
    return request.param, model, layer, batch.shape[1:], path


@pytest.mark.parametrize("n_rows", [1, 2, 7, 32])
def test_every_head_equals_full_autograd_at_every_batch_size(head, n_rows):
    _, model, layer, shape, path = head
    x = noise(shape, n_rows, n_rows)
    assert_equal_to_oracle(run_file(path.read_bytes(), x), model, layer, x)


def test_the_batch_axis_is_free_except_for_tokens(head):
    name, *_, path = head
    batch = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_value == 1 if name == "tokens" else batch.dim_param == "batch"


def test_names_types_and_order_are_those_of_the_format(head):
    *_, path = head
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [item.name for item in model.graph.input] == ["input"]
    assert [(item.name, item.type.tensor_type.elem_type) for item in model.graph.output] == [
        ("logits", 1), ("predicted_class", 7), ("drip_score", 1), ("retain", 9), ("drip_contrast", 1),
        ("features", 1),
    ]  # fmt: skip


def test_metadata_name_the_model_and_the_score(head):
    _, model, layer, shape, path = head
    metadata = read_metadata(path)
    assert metadata.parent_digest == model_digest(model)
    assert metadata.digest == model_file_digest(onnx.load(path))
    example = noise(shape, 2)
    definition = TorchScorer(model, layer=layer, example=example).score_definition
    for key in ("method", "heatmap", "layer", "layer_shape"):
        assert metadata.score[key] == definition[key]
    assert metadata.spec.shape == shape
    assert metadata.policy is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gap_linear", "squeeze_head"])
def test_normalised_heatmaps(name, tmp_path):
    model, batch, layer = build(name)
    found = exported(model, batch, tmp_path / "m.onnx", layer=layer, heatmap="normalised")
    assert_equal_to_oracle(found, model, layer, batch, normalised=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: EfficientNetB0(10), (3, 64, 64)),
        (lambda: MobileNetV2(10), (3, 32, 32)),
        (lambda: SmallCNN(1, 4, width=4), (1, 28, 28)),
    ],
    ids=["EfficientNetB0", "MobileNetV2 of one position", "SmallCNN"],
)
def test_shipped_models_equal_full_autograd(make, shape, tmp_path):
    torch.manual_seed(0)
    model, x = lively(make()), noise(shape, 16)
    assert_equal_to_oracle(exported(model, x, tmp_path / "m.onnx"), model, "features", x)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["classifier.2", "features.12"])
def test_squeezenet_is_scored_at_its_class_maps_or_before_its_classifier(layer, tmp_path):
    torch.manual_seed(0)
    model, x = SqueezeNet(9).eval(), noise((3, 64, 64), 5)
    options = {} if layer == "classifier.2" else {"layer": layer}
    assert_equal_to_oracle(exported(model, x, tmp_path / "m.onnx", **options), model, layer, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", SATURATING)
def test_saturating_heads_equal_full_autograd(name, tmp_path):
    model, x = saturating(name)
    assert_equal_to_oracle(exported(model, x, tmp_path / "m.onnx", layer="0"), model, "0", x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape"), [(AttentionPooling, (1, 20)), (SharedLinear, (1, 9, 9))], ids=["attention", "shared"]
)
def test_heads_that_branch_or_share(make, shape, tmp_path):
    torch.manual_seed(1)
    model, x = make().eval(), noise(shape, 6)
    found = exported(model, x, tmp_path / "m.onnx", layer="features")
    assert_equal_to_oracle(found, model, "features", x)


class _Functional(nn.Module):
    """The activation is the result of functions in ``forward``."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 6, 3), nn.Linear(6 * 9, 4)

    def forward(self, x):
        return self.fc(torch.nn.functional.max_pool2d(self.conv(x).relu(), 2).flatten(1))


@pytest.mark.slow
def test_functions_in_forward_belong_to_the_target(tmp_path):
    torch.manual_seed(1)
    model, x = _Functional().eval(), noise((1, 8, 8), 6)
    found = exported(model, x, tmp_path / "m.onnx")
    expected = TorchScorer(model, example=x).score(x)
    assert read_metadata(tmp_path / "m.onnx").score["layer"] == "conv+relu+max_pool2d"
    assert_routes_equal(found["drip_score"], expected.scores)


@pytest.mark.slow
def test_the_model_is_not_changed(tmp_path):
    model, batch, _ = build("gap_linear")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, None, batch, tmp_path / "m.onnx")
    assert all(module.training for module in model.modules())
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def policy_for(model, batch, layer, **changes):
    scorer = TorchScorer(model, layer=layer, example=batch)
    x = noise(batch.shape[1:], 400, 5)
    found = scorer.score(x)
    provenance = Provenance(
        model_digest=model_digest(model), layer=scorer.layer, score={**scorer.score_definition, **changes}
    )
    n_classes = found.logits.shape[1]
    return Policy.fit(found.scores, found.classes, n_classes=n_classes, retention=0.6, provenance=provenance)


def test_decisions_are_those_of_the_policy(tmp_path):
    model, batch, layer = build("gap_linear")
    policy = policy_for(model, batch, layer)
    export_onnx(model, policy, batch, tmp_path / "m.onnx")
    x = noise(batch.shape[1:], 2000, 6)
    found = run_file((tmp_path / "m.onnx").read_bytes(), x)
    assert (found["retain"] == policy.retains(found["drip_score"], found["predicted_class"])).all()
    assert 0.2 < found["retain"].mean() < 0.9
    from_torch = TorchScorer(model, layer=layer, example=batch).score(x)
    assert (found["retain"] != policy.retains(from_torch.scores, from_torch.classes)).mean() <= 1e-3
    assert read_metadata(tmp_path / "m.onnx").policy == policy


def test_a_policy_of_another_model_is_rejected_and_nothing_is_written(tmp_path):
    model, batch, layer = build("gap_linear")
    policy = policy_for(build("gap_linear", seed=1)[0], batch, layer)
    with pytest.raises(PolicyError) as error:
        export_onnx(model, policy, batch, tmp_path / "m.onnx")
    assert error.value.code == "policy-other-model"
    assert not list(tmp_path.iterdir())


def test_a_method_that_cannot_be_exported_is_rejected(tmp_path):
    model, batch, layer = build("gap_linear")
    with pytest.raises(ExportError, match="layercam"):
        export_onnx(model, policy_for(model, batch, layer, method="layercam"), batch, tmp_path / "m.onnx")


@pytest.mark.parametrize("last", [nn.LogSoftmax(1), nn.Softmax(1)], ids=["log", "plain"])
def test_the_model_s_outputs_are_differentiated_even_after_a_softmax(last, tmp_path):
    model, x, _ = build("gap_linear")
    model = nn.Sequential(model, last)
    found = exported(model, x, tmp_path / "m.onnx", layer="0.0")
    assert_equal_to_oracle(found, model, "0.0", x)


class _Sine(nn.Module):
    def forward(self, x):
        return x.sin()


@pytest.mark.slow
def test_an_operation_without_a_derivative_is_named_and_nothing_is_written(tmp_path):
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), _Sine(), nn.Linear(6, 3))
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), head).eval()
    with pytest.raises(ExportError, match=r"Sin \(node '.*sin"):
        export_onnx(model, None, noise((1, 8, 8), 2), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_deviates_is_rejected(tmp_path):
    model, batch, layer = build("gap_linear")
    path = tmp_path / "m.onnx"
    export_onnx(model, None, batch, path)
    scorer = TorchScorer(model, layer=layer, example=batch)
    require_equal(path.read_bytes(), scorer, batch)
    with torch.no_grad():
        model[1][3].weight[:, 2] *= 1.001
    with pytest.raises(ExportError, match="deviates") as error:
        require_equal(path.read_bytes(), TorchScorer(model, layer=layer, example=batch), batch)
    assert error.value.code == "export-inexact"


def test_an_unwritable_path_is_rejected(tmp_path):
    model, batch, _ = build("gap_linear")
    with pytest.raises(DripError, match="writable"):
        export_onnx(model, None, batch, tmp_path / "missing" / "m.onnx")


@pytest.mark.slow
def test_equal_models_give_equal_digests(tmp_path):
    digests = set()
    for name in "ab":
        model, batch, _ = build("gap_linear")
        digests.add(export_onnx(model, None, batch, tmp_path / name).digest)
    assert len(digests) == 1


def test_rows_do_not_depend_on_their_neighbours(head):
    *_, shape, path = head
    x = noise(shape, 3)
    together = run_file(path.read_bytes(), x)
    alone = [run_file(path.read_bytes(), row[None])["drip_score"] for row in x]
    np.testing.assert_allclose(together["drip_score"], np.concatenate(alone), rtol=1e-5, atol=1e-6)


class _Branch(nn.Module):
    """A branch that depends on the input's values, which torch cannot export."""

    def __init__(self):
        super().__init__()
        self.features, self.fc = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU()), nn.Linear(6, 4)

    def forward(self, x):
        maps = self.features(x)
        if maps.mean() > 0:
            maps = maps * 1.0
        return self.fc(maps.mean((2, 3)))


@pytest.mark.slow
def test_why_torch_cannot_export_is_told_in_one_line(tmp_path, capfd):
    with pytest.raises(ExportError, match="data-dependent") as error:
        export_onnx(_Branch().eval(), None, noise((1, 12, 12), 2), tmp_path / "m.onnx")
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)
    assert len("".join(capfd.readouterr()).splitlines()) <= 2
