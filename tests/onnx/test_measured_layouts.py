"""Where the channels are, and which tokens have a position, is measured on the head of an ONNX file."""

import numpy as np
import onnx
import pytest
import torch
from heads import assert_routes_equal
from networks import lively, noise, plain_onnx
from torch import nn

from drip.onnx import attach_score
from drip.onnx.files import metadata_of, run_file


class ChannelsLastBlock(nn.Module):
    """A residual block in (N, H, W, C) before the pooling, as in MambaOut and Swin."""

    shape, axes, skipped = (3, 32, 40), (1, 2), 0

    def __init__(self, width=24):
        super().__init__()
        self.stem, self.act, self.head = nn.Conv2d(3, width, 8, 8), nn.Identity(), nn.Linear(width, 5)
        self.norm, self.a, self.b = nn.LayerNorm(width), nn.Linear(width, 48), nn.Linear(48, width)

    def features(self, x):
        tokens = self.stem(x).permute(0, 2, 3, 1)
        return tokens + self.b(nn.functional.gelu(self.a(self.norm(tokens))))

    def classify(self, a):
        return self.head(a.mean((1, 2)))

    def forward(self, x):
        return self.classify(self.features(x))


class NormalisedTokens(ChannelsLastBlock):
    """(N, T, C) tokens whose last normalisation is a BatchNorm1d on flattened tokens, as in LeViT."""

    axes = (1,)

    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(24, 24), nn.BatchNorm1d(24)

    def features(self, x):
        tokens = self.fc(self.stem(x).flatten(2).transpose(1, 2))
        return nn.functional.hardswish(self.bn(tokens.flatten(0, 1)).reshape_as(tokens))

    def classify(self, a):
        return self.head(a.mean(1))


class Steps(ChannelsLastBlock):
    """A sequence whose steps are averaged: no class token, whatever their number."""

    axes, n_steps = (1,), 10

    def __init__(self):
        super().__init__()
        self.shape = (9, 4 * self.n_steps)
        self.stem = nn.Conv1d(9, 24, 4, 4)

    def features(self, x):
        return self.norm(nn.functional.gelu(self.stem(x).transpose(1, 2)))

    def classify(self, a):
        return self.head(a.mean(1))


class FiveSteps(Steps):
    n_steps = 5


class ThirtyTwoSteps(Steps):
    n_steps = 32


class PrefixTokens(Steps):
    """Three tokens before the steps; the head reads the first after an attention over all of them."""

    n_steps, skipped = 11, 3

    def __init__(self):
        super().__init__()
        self.extra = nn.Parameter(torch.randn(1, 3, 24))
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))

    def features(self, x):
        return torch.cat([self.extra.expand(len(x), -1, -1), super().features(x)], 1)

    def classify(self, a):
        weights = (self.q(a[:, :3]) @ self.k(a).transpose(1, 2)).softmax(2)
        mixed = (weights @ self.v(a)).flatten(1)
        return self.head(mixed[:, :24] + 2 * mixed[:, 24:48] - mixed[:, 48:])


class FlattenedSteps(Steps):
    """A head in which every place matters, so every step has a position."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(24 * self.n_steps, 5)

    def classify(self, a):
        return self.head(a.flatten(1))


def truth(model, x):
    a = model.features(torch.from_numpy(x)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.classify(a).amax(1).sum(), a)
    if model.skipped:
        a, gradient = a[:, model.skipped :], gradient[:, model.skipped :]
    weights = gradient.mean(model.axes, keepdim=True)
    return torch.relu((weights * a).sum(-1)).flatten(1).mean(1).detach().numpy()


@pytest.mark.parametrize(
    "make",
    [ChannelsLastBlock, NormalisedTokens, Steps, FiveSteps, ThirtyTwoSteps, PrefixTokens, FlattenedSteps],
)
def test_a_graph_has_the_score_of_autograd(make):
    torch.manual_seed(0)
    model = lively(make())
    x = noise(model.shape, 4)
    finished = attach_score(onnx.load_from_string(plain_onnx(model, model.shape, free=not model.skipped)))
    found = run_file(finished.SerializeToString(), x)
    assert_routes_equal(found["drip_score"], truth(model, x))
    assert_routes_equal(found["logits"], model(torch.from_numpy(x)).detach().numpy())
    shape = model.features(torch.from_numpy(x)).shape
    n_maps, *positions = metadata_of(finished).score["layer_shape"]
    assert n_maps == shape[-1]
    assert np.prod(positions) == np.prod(shape[1:-1]) - model.skipped


def test_the_input_of_a_model_without_maps_can_be_its_layer():
    """As in wake words on a sequence of embeddings, where no tensor after the first layer has positions."""
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.Flatten(), nn.Linear(16 * 12, 20), nn.ReLU(), nn.Linear(20, 4)))
    x = noise((16, 12), 5)
    plain = onnx.load_from_string(plain_onnx(model, (16, 12)))
    name = plain.graph.input[0].name
    finished = attach_score(plain, layer=name, layout="tokens")
    a = torch.from_numpy(x).requires_grad_()
    (gradient,) = torch.autograd.grad(model(a).amax(1).sum(), a)
    wanted = torch.relu((gradient.mean(1, keepdim=True) * a).sum(2)).mean(1).detach().numpy()
    assert_routes_equal(run_file(finished.SerializeToString(), x)["drip_score"], wanted)
    assert metadata_of(finished).score["layer"] == name
