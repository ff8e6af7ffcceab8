"""Forgetting events of a torch training: counted by definition, and without a trace in the training."""

import numpy as np
import pytest
import torch
from tables import fails
from torch import nn

from drip.reduction import ForgettingEvents
from drip.reduction.torch_forgetting import TorchForgetting
from drip.scoring import model_digest
from drip.training import Examples, TrainConfig, train


class Noisy(nn.Sequential):
    """Dropout and batch normalisation: what a careless look would change."""

    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def examples():
    rng = np.random.default_rng(0)
    return Examples(rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 3, 60))


def trained(data, on_epoch):
    made = []

    def factory():
        made.append(Noisy())
        return made[0]

    config = TrainConfig(epochs=6, batch_size=10, seed=4)
    return train(factory, data, config=config, on_epoch=lambda *_: on_epoch(made[0]))


def test_events_are_those_of_the_definition_and_the_training_is_not_disturbed():
    data, history = examples(), []
    forgetting = TorchForgetting(data.inputs, data.labels, batch_size=7)

    def look(model):
        share = forgetting.update(model)
        assert model.training
        assert all(module.training for module in model.modules())
        with torch.no_grad():
            model.eval()
            history.append(model(torch.from_numpy(data.inputs)).argmax(1).numpy() == data.labels)
            model.train()
        assert share == pytest.approx(history[-1].mean())

    watched = trained(data, look)
    assert model_digest(watched) == model_digest(trained(data, lambda model: None))  # noqa: ARG005
    right = np.stack([np.zeros(60, dtype=bool), *history])
    expected = (right[:-1] & ~right[1:]).sum(axis=0)
    expected[~right.any(axis=0)] = len(history)
    assert forgetting.tracker.counts().tolist() == expected.tolist()
    assert expected.sum() > 0
    kept = ForgettingEvents(0.2, random_state=0).fit(data.inputs, data.labels, events=expected)
    assert len(kept.sample_indices_) == 12


def test_frozen_parts_keep_their_mode():
    data, model = examples(), Noisy()
    model[1].eval()
    TorchForgetting(data.inputs, data.labels).update(model)
    assert [module.training for module in model] == [True, False, True, True, True]


def test_a_model_that_fails_has_its_modes_back():
    data, model = examples(), Noisy()
    with pytest.raises(RuntimeError):
        TorchForgetting(data.inputs[:, :3], data.labels).update(model)
    assert model.training


@pytest.mark.parametrize("labels", [[0, 1], np.zeros(60), np.zeros((60, 1), dtype=int)])
def test_labels_that_do_not_fit_are_rejected(labels):
    with fails("labels-invalid"):
        TorchForgetting(examples().inputs, labels)


def test_no_rows_are_rejected():
    with fails():
        TorchForgetting(np.zeros((0, 4), np.float32), np.zeros(0, int))
