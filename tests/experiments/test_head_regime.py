"""Linear heads on frozen features: training, scores, and banks that survive a kill."""

import numpy as np
import pytest
import torch
from made_up import made_up_regime
from support import require_data
from torch import nn

from experiments.bank import build_bank
from experiments.head import Head, HeadRecipe, head_regime


@pytest.fixture(scope="module", params=["mnist", "cifar10"])
def real(request, tmp_path_factory):
    """A flattening head on digits and a pooling one on pictures, few rows."""
    require_data("mobilenet_v2_imagenet_features.npz")
    require_data({"mnist": "mnist", "cifar10": "cifar10_lossless_webp.tar"}[request.param])
    torch.set_num_threads(1)
    return head_regime(request.param, tmp_path_factory.mktemp("cache"), n_rows=300)


@pytest.fixture(params=[False, True], ids=["pool", "flatten"])
def made_up(request):
    return made_up_regime(600, 5, flatten=request.param, epochs=5)


def test_equal_seeds_give_equal_heads_and_other_seeds_others(made_up):
    rows = np.arange(300)
    one, two, other = (made_up.fit(rows, made_up.labels[rows], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)
    assert not torch.equal(one.weight, other.weight)


def test_a_head_learns_and_wrong_labels_make_it_worse(made_up):
    rows, rest = np.arange(400), np.arange(400, 600)

    def accuracy(labels):
        head = made_up.fit(rows, labels, seed=0)
        return (made_up.logits(head, rest).argmax(1) == made_up.labels[rest]).mean()

    good = accuracy(made_up.labels[rows])
    assert good > 0.6
    assert accuracy(np.random.default_rng(0).integers(0, 5, 400)) < good - 0.3


def test_training_minimises_the_cross_entropy():
    """Long training reaches what a general optimiser finds, so the gradient is the right one."""
    regime = made_up_regime(200, 3, epochs=1)
    regime.recipe = HeadRecipe(epochs=1500, batch_size=200, weight_decay=0.0)
    labels = np.random.default_rng(0).permutation(regime.labels)  # nothing to learn: a finite optimum
    rows = np.arange(200)
    head = regime.fit(rows, labels, seed=0)
    inputs = torch.from_numpy(regime.bank.take_inputs(rows)).double()
    truth = torch.from_numpy(labels)
    weight = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9)

    def loss():
        optimiser.zero_grad()
        value = nn.functional.cross_entropy(inputs @ weight.T + bias, truth)
        value.backward()
        return value

    optimiser.step(loss)
    ours = nn.functional.cross_entropy(inputs @ head.weight.double().T + head.bias.double(), truth)
    assert float(ours) == pytest.approx(float(loss().detach()), abs=2e-4)


def test_equal_steps_are_the_steps_of_the_full_set(made_up):
    few, many = np.arange(100), np.arange(400)
    usual = made_up.fit(few, made_up.labels[few], seed=0)
    longer = made_up.fit(few, made_up.labels[few], seed=0, full_rows=400)
    full = made_up.fit(many, made_up.labels[many], seed=0)
    assert made_up.steps(usual) == 5 * round(100 / 32)
    assert made_up.steps(longer) == made_up.steps(full) == 5 * round(400 / 32)


def autograd_scores(regime, head, rows):
    """Grad-CAM of the predicted class and of the two best, by differentiating the head itself."""
    weight, bias = head.weight.double(), head.bias.double()
    maps = torch.from_numpy(regime.bank.take_maps(rows)).double().requires_grad_()
    pooled = maps.flatten(1) if regime.bank.flatten else maps.mean((2, 3))
    logits = pooled @ weight.T + bias
    best = logits.topk(2, dim=1).indices
    scores = {}
    for name, y in (
        ("drip", logits.gather(1, best[:, :1])),
        ("contrast", logits.gather(1, best[:, :1]) - logits.gather(1, best[:, 1:])),
    ):
        (gradient,) = torch.autograd.grad(y.sum(), maps, retain_graph=True)
        heat = torch.relu((gradient.mean((2, 3), keepdim=True) * maps).sum(1)).detach()
        scores[name] = heat.mean((1, 2)).numpy()
        if name == "drip":
            low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
            extent = ((heat - low) / (high - low).clamp_min(1e-30)).mean((1, 2))
            scores["drip_normalised"] = extent.numpy()
    return best[:, 0].numpy(), logits.detach().numpy(), scores


def test_what_is_observed_is_grad_cam_by_full_autograd_through_the_head(real):
    rows = np.arange(40)
    head = real.fit(np.arange(40, 300), real.labels[40:300], seed=0)
    found = real.observe(head, rows)
    classes, logits, scores = autograd_scores(real, head, rows)
    np.testing.assert_array_equal(found.classes, classes)
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)
    np.testing.assert_allclose(found.logits, real.logits(head, rows), atol=1e-4)
    assert (scores["drip"] > 0).sum() > 10
    for name in ("drip", "drip_normalised", "contrast"):
        np.testing.assert_allclose(
            found.named_scores[name], scores[name], atol=1e-5 * scores[name].max(), rtol=1e-4, err_msg=name
        )
    np.testing.assert_array_equal(found.n_bytes, real.sizes[rows])
    assert (real.sizes > 20).all()


def test_observing_in_another_order_gives_the_same_rows(made_up):
    head = made_up.fit(np.arange(300), made_up.labels[:300], seed=0)
    order = np.random.default_rng(0).permutation(600)  # three batches
    straight, mixed = made_up.observe(head, np.arange(600)), made_up.observe(head, order)
    for name, column in straight.named_scores.items():
        np.testing.assert_allclose(mixed.named_scores[name], column[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mixed.n_bytes, made_up.sizes[order])


def test_rows_of_another_view_are_that_views_maps():
    regime = made_up_regime(50, 5, ("clean", "noise", "blur"))
    bank = regime.bank
    index = np.concatenate([bank.index(np.array([3, 4]), "blur"), bank.index(np.array([4]))])
    np.testing.assert_array_equal(bank.rows(index), [3, 4, 4])
    np.testing.assert_array_equal(
        bank.take_inputs(index), np.stack([*bank.inputs[2][3:5], bank.inputs[0][4]])
    )
    np.testing.assert_array_equal(bank.take_maps(index)[0], bank.maps[2][3].astype(np.float32))


def test_logits_are_the_heads():
    regime = made_up_regime(20, 3)
    head = Head(torch.eye(3, 8), torch.tensor([1.0, 2.0, 3.0]), 1)
    np.testing.assert_allclose(
        regime.logits(head, np.arange(5)), regime.bank.inputs[0][:5, :3] + [1, 2, 3], rtol=1e-6
    )


class Killed(BaseException):
    """What a kill looks like from inside."""


N_ROWS = 64 * 40 + 7


def numbers(rows, view):
    base = torch.from_numpy(rows).float()[:, None, None, None] % 1000
    return base + {"clean": 0.25, "noise": 0.5}[view] + torch.arange(2 * 2 * 2).reshape(2, 2, 2)


def build(folder, inputs=numbers, views=("clean", "noise")):
    return build_bank(folder, nn.Identity(), inputs, N_ROWS, views, {"dataset": "numbers"})


def check(bank):
    rows = np.arange(N_ROWS)
    for view in bank.views:
        wanted = numbers(rows, view).numpy()
        np.testing.assert_allclose(bank.take_maps(bank.index(rows, view)), wanted, rtol=1e-3)
        np.testing.assert_allclose(bank.take_inputs(bank.index(rows, view)), wanted.mean((2, 3)), rtol=1e-3)


def test_a_bank_that_was_killed_goes_on_where_it_was(tmp_path):
    asked = []

    def counted(rows, view, limit):
        if len(asked) >= limit:
            raise Killed
        asked.append(rows[0])
        return numbers(rows, view)

    for limit in (5, 20, 35, 60):
        with pytest.raises(Killed):
            build(tmp_path, lambda rows, view, limit=limit: counted(rows, view, limit))
    check(build(tmp_path, lambda rows, view: counted(rows, view, 10**6)))
    assert len(asked) <= 2 * 41 + 4 * 16  # every kill lost at most sixteen batches
    before = len(asked)
    check(build(tmp_path, lambda rows, view: counted(rows, view, 10**6)))
    assert len(asked) == before


def test_progress_of_an_earlier_build_does_not_vouch_for_a_new_file(tmp_path):
    """Two kills: one after the maps were done and before the inputs were, one early in the second build."""
    check(build(tmp_path, views=("clean",)))
    (maps,) = tmp_path.glob("*.maps.npy")
    base = maps.with_name(maps.name.removesuffix(".maps.npy"))
    base.with_suffix(".inputs.npy").unlink()
    base.with_suffix(".done").write_text(str(N_ROWS))

    def killed_early(rows, view):
        if rows[0] >= 128:
            raise Killed
        return numbers(rows, view)

    with pytest.raises(Killed):
        build(tmp_path, killed_early, views=("clean",))
    check(build(tmp_path, views=("clean",)))


def test_other_inputs_are_another_bank(tmp_path):
    build(tmp_path, views=("clean",))
    build_bank(tmp_path, nn.Identity(), numbers, 100, ("clean",), {"dataset": "others"})
    assert len(list(tmp_path.glob("*.inputs.npy"))) == 2
