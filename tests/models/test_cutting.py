"""A network cut in two: both parts together compute its logits; names and gradients stay in place."""

import pytest
import torch

from drip.models import EfficientNetB0, MobileNetV2, cut_before_last_seven, freeze_all_but_last_seven

NETWORKS = [EfficientNetB0, MobileNetV2]


@pytest.mark.parametrize("network", NETWORKS)
def test_frozen_part_and_tail_give_the_networks_logits(network):
    torch.manual_seed(0)
    model = network(n_classes=7).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        frozen, tail = cut_before_last_seven(model)
        torch.testing.assert_close(tail(frozen(x)), expected, rtol=0, atol=0)


def test_the_tail_trains_what_the_paper_trains():
    names = {
        name for name, p in freeze_all_but_last_seven(EfficientNetB0()).named_parameters() if p.requires_grad
    }
    assert {name for name, _ in cut_before_last_seven(EfficientNetB0())[1].named_parameters()} == names


def test_mobilenets_tail_starts_with_the_14th_stage():
    names = [name for name, _ in cut_before_last_seven(MobileNetV2())[1].named_parameters()]
    assert {name.split(".")[1] for name in names} == {"14", "15", "16", "17", "18", "1"}
    assert names[-1] == "classifier.1.bias"


@pytest.mark.parametrize("network", NETWORKS)
def test_training_the_tail_does_not_change_the_frozen_part(network):
    model = network(n_classes=3)
    frozen, tail = cut_before_last_seven(model)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    tail.train()
    tail(frozen(torch.randn(4, 3, 64, 64))).sum().backward()
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert all(parameter.grad is not None for parameter in tail.parameters())
    assert not frozen.training
    for name, value in frozen.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_tails_weights_load_into_a_whole_network():
    tail = cut_before_last_seven(MobileNetV2(n_classes=3))[1]
    whole = MobileNetV2(n_classes=3)
    found = whole.load_state_dict(tail.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all(int(name.split(".")[1]) < 14 for name in found.missing_keys)
