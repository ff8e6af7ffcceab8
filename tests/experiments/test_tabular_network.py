"""Networks trained side by side against torch's own layers, loss and optimiser, one network at a time."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from experiments.tabular_network import Networks, Recipe, Rows

WIDTHS = (4, 6, 5, 3)
PLAIN = Recipe(hidden=(6, 5), batch_size=8, dropout=0.0, learning_rate=0.01)
WEIGHTS = np.array([0.5, 1.0, 3.0])


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, n)
    values = rng.normal(codes[:, None] * np.array([1.0, -1.0, 0.5, 0.0]), 0.7).astype(np.float32)
    return Rows(values, codes)


def torch_network(networks, number):
    """A torch network with these weights."""
    layers, at = [], 0
    for fan_in, fan_out in pairwise(WIDTHS):
        size = (fan_in + 1) * fan_out
        block = torch.tensor(networks.weights[number, at : at + size]).reshape(fan_in + 1, fan_out)
        linear = nn.Linear(fan_in, fan_out)
        linear.weight.data, linear.bias.data = block[:-1].T.clone(), block[-1].clone()
        layers += [linear, nn.ReLU()]
        at += size
    return nn.Sequential(*layers[:-1])


def logits(model, values):
    with torch.no_grad():
        return model(torch.tensor(values)).numpy()


def test_logits_are_those_of_torchs_layers():
    networks = Networks(WIDTHS, 2, seed=3)
    values = rows(20).values
    for number, found in enumerate(networks.logits(values)):
        np.testing.assert_allclose(found, logits(torch_network(networks, number), values), atol=1e-6)


def test_first_weights_are_drawn_as_torch_draws_them():
    networks = Networks((400, 300, 3), 1, seed=0)
    drawn = networks.weights[0, : 401 * 300]
    assert np.abs(drawn).max() <= 1 / 20
    torch.manual_seed(0)
    theirs = nn.Linear(400, 300)
    assert drawn.std() == pytest.approx(float(theirs.weight.detach().std()), rel=0.01)


@pytest.mark.parametrize("decays", [False, True])
def test_training_is_that_of_torchs_adam_on_its_weighted_cross_entropy(decays):
    recipe = Recipe((6, 5), 8, 0.0, 0.01, decays=decays)
    sets = [rows(8, 1), rows(5, 2)]  # a batch is a whole set here, so its order does not matter
    networks = Networks(WIDTHS, 2, seed=0)
    models = [torch_network(networks, number) for number in range(2)]
    networks.train(sets, [40, 40], recipe, WEIGHTS)
    for model, own, found in zip(models, sets, networks.logits(rows(30, 9).values), strict=True):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        # The schedule is constant or half a cosine down to zero.
        loss_of = nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS, dtype=torch.float32))
        for step in range(40):
            if decays:
                optimizer.param_groups[0]["lr"] = 0.01 * (1 + np.cos(np.pi * step / 40)) / 2
            optimizer.zero_grad()
            loss_of(model(torch.tensor(own.values)), torch.tensor(own.codes)).backward()
            optimizer.step()
        np.testing.assert_allclose(found, logits(model, rows(30, 9).values), atol=2e-3)


def test_dropout_scales_what_it_keeps_and_its_gradients_are_those_of_torch():
    recipe = Recipe((6, 5), 8, 0.25, 0.01)
    networks = Networks(WIDTHS, 1, seed=0)
    model, own = torch_network(networks, 0), rows(8, 1)
    networks.train([own], [1], recipe, WEIGHTS)
    order = np.random.default_rng([0, 1, 0, 8]).permutation(8)
    drawn = np.frombuffer(np.random.default_rng([0, 2, 0]).bytes(8 * 11), np.uint8)
    masks = [torch.tensor((part >= 64) / 0.75, dtype=torch.float32) for part in np.split(drawn, [48])]
    assert 0 < sum(int((mask == 0).sum()) for mask in masks) < 88
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    hidden = torch.tensor(own.values[order])
    for layer, mask in zip((model[0], model[2]), masks, strict=True):
        hidden = torch.relu(layer(hidden)) * mask.reshape(8, -1)
    loss_of = nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS, dtype=torch.float32))
    loss_of(model[4](hidden), torch.tensor(own.codes[order])).backward()
    optimizer.step()
    np.testing.assert_allclose(
        networks.logits(own.values)[0], logits(model, own.values), atol=1e-5, rtol=1e-5
    )


def test_an_epoch_shows_every_row_once_and_the_last_batch_is_what_is_left(monkeypatch):
    seen = []
    from experiments import tabular_network

    inner = tabular_network._Pass.__call__

    def watched(self, values, codes, counts, drops):
        seen.append((values[0, :, 0].copy(), counts[0].copy()))
        inner(self, values, codes, counts, drops)

    monkeypatch.setattr(tabular_network._Pass, "__call__", watched)
    own = rows(20)
    Networks(WIDTHS, 1, seed=0).train([own], [6], PLAIN, WEIGHTS)
    assert [int(counts.sum()) for _, counts in seen] == [8, 8, 4] * 2
    for epoch in (seen[:3], seen[3:]):
        shown = np.concatenate([values[counts] for values, counts in epoch])
        assert sorted(shown) == sorted(own.values[:, 0])
    assert not np.array_equal(seen[0][0], seen[3][0])


def test_a_network_does_not_depend_on_those_beside_it():
    sets = [rows(n, n) for n in (20, 33, 20, 9)]
    steps = [30, 12, 7, 30]
    together = Networks(WIDTHS, 4, seed=5)
    together.train(sets, steps, PLAIN, WEIGHTS)
    values = rows(10, 50).values
    for number in range(4):
        alone = Networks(WIDTHS, 1, seed=5)
        alone.train([sets[number]], [steps[number]], PLAIN, WEIGHTS)
        np.testing.assert_allclose(together.logits(values)[number], alone.logits(values)[0], atol=1e-4)


def test_training_in_two_parts_continues_weights_and_optimiser():
    recipe = Recipe((6, 5), 20, 0.0, 0.01)  # one batch is all rows
    whole, parts = Networks(WIDTHS, 1, seed=1), Networks(WIDTHS, 1, seed=1)
    whole.train([rows(20)], [20], recipe, WEIGHTS)
    parts.train([rows(20)], [12], recipe, WEIGHTS)
    branches = parts.copies(2)
    branches.train([rows(20), rows(9)], [8, 8], recipe, WEIGHTS)
    values = rows(10, 50).values
    found = branches.logits(values)
    np.testing.assert_allclose(found[0], whole.logits(values)[0], atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert (parts.n_steps, branches.n_steps) == (12, 20)


def test_epochs_are_counted_and_the_weights_of_the_moment_are_there():
    networks, held = Networks(WIDTHS, 1, seed=1), []
    networks.train([rows(20)], [9], PLAIN, WEIGHTS, on_epoch=lambda: held.append(networks.weights.copy()))
    assert len(held) == 3
    assert np.array_equal(held[-1], networks.weights)
    assert not np.array_equal(held[0], held[1])


def test_a_network_learns_what_can_be_told_apart():
    networks = Networks((4, 30, 10, 3), 1, seed=1)
    recipe = Recipe((30, 10), dropout=0.25)
    networks.train([rows(600, 1)], [recipe.steps(600, 40)], recipe, np.ones(3))
    test = rows(500, 2)
    assert (networks.logits(test.values)[0].argmax(1) == test.codes).mean() > 0.75
