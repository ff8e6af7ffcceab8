"""A score depends on its sample only: not on other rows, earlier passes or chance."""

import numpy as np
import pytest
import torch
from support import raises
from torch import nn
from torch.nn import functional as F  # noqa: N812  # torch's own custom

from drip.errors import ModelError
from drip.scoring import TorchScorer, model_digest

IMAGES = np.random.default_rng(0).normal(size=(6, 1, 12, 12)).astype(np.float32)


class Small(nn.Module):
    """A network with hooks for a fault: ``before`` changes the input, ``middle`` the maps."""

    def __init__(self, middle=None, before=None):
        super().__init__()
        torch.manual_seed(0)
        self.f = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), middle or nn.Identity(), nn.ReLU())
        self.fc = nn.Linear(8, 4)
        self.before = before

    def forward(self, x):
        return self.fc(self.f(x if self.before is None else self.before(x)).mean((2, 3)))


@pytest.mark.parametrize(
    "model",
    [
        Small(nn.BatchNorm2d(8, track_running_stats=False)),
        Small(before=lambda x: x / x.abs().max()),
        Small(before=lambda x: x - x.mean(0, keepdim=True) * (len(x) > 1)),
        Small(before=lambda x: torch.cat([x[:1], x[1:] + x[:1]])),
    ],
    ids=["batch normalisation", "maximum", "mean", "first row"],
)
def test_rows_that_influence_each_other_are_scored_alone(model):
    scorer = TorchScorer(model.eval(), example=IMAGES)
    together = scorer.score(IMAGES)
    alone = [scorer.score(row[None]) for row in IMAGES]
    np.testing.assert_array_equal(together.scores, np.concatenate([one.scores for one in alone]))
    np.testing.assert_array_equal(together.logits, np.concatenate([one.logits for one in alone]))
    np.testing.assert_array_equal(together.features, np.concatenate([one.features for one in alone]))
    np.testing.assert_array_equal(
        scorer.heatmap(IMAGES, np.zeros(6, int)),
        np.concatenate([scorer.heatmap(row[None], np.zeros(1, int)) for row in IMAGES]),
    )
    assert "influence each other" in scorer.describe()


def test_ordinary_models_have_no_such_note():
    assert "note" not in TorchScorer(Small(nn.BatchNorm2d(8)).eval(), example=IMAGES).describe()


@pytest.mark.parametrize(
    "model",
    [Small(before=lambda x: F.dropout(x, 0.3)), Small(before=lambda x: x + 0.1 * torch.randn_like(x))],
    ids=["dropout", "noise"],
)
def test_random_results_are_refused(model):
    with raises(ModelError, "model-impure"):
        TorchScorer(model.eval(), example=IMAGES)


def test_a_memory_outside_of_buffers_is_refused():
    seen = []

    def moving(x):
        seen.append(x)
        return x + 0.1 * len(seen)

    with raises(ModelError, "model-impure"):
        TorchScorer(Small(before=moving).eval(), example=IMAGES)


class Writing(Small):
    """A network whose forward writes a buffer, in eval mode too."""

    def __init__(self, write):
        super().__init__()
        self.register_buffer("state", torch.zeros(()))
        self.write = write

    def forward(self, x):
        self.write(self)
        return super().forward(x + 0.1 * self.state)


def _replace(model):
    model.state = model.state + 1


@pytest.mark.parametrize("write", [lambda model: model.state.add_(1), _replace], ids=["in place", "replaced"])
def test_buffers_are_set_back_after_every_pass(write):
    model = Writing(write).eval()
    digest = model_digest(model)
    scorer = TorchScorer(model, example=IMAGES)
    first = scorer.score(IMAGES).scores
    np.testing.assert_array_equal(scorer.score(IMAGES).scores, first)
    np.testing.assert_allclose(scorer.score(IMAGES[:1]).scores, first[:1], rtol=1e-5)
    assert model_digest(model) == digest
    assert not model._forward_pre_hooks
    assert "state" in scorer.describe()


@pytest.mark.parametrize(
    "front",
    [
        torch.log,
        lambda x: torch.log(x / (20 - x)),
        lambda x: nn.Embedding(20, 1, _weight=torch.arange(20.0)[:, None].sin())(x.long())[..., 0],
    ],
    ids=["log", "odds", "ids"],
)
def test_models_for_which_noise_is_no_input_are_scored(front):
    x = np.random.default_rng(1).integers(1, 20, (5, 1, 9, 9)).astype(np.float32)
    scorer = TorchScorer(Small(before=front).eval(), example=x)
    assert np.isfinite(scorer.score(x).scores).all()
