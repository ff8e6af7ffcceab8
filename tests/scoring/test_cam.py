"""Algebra of the maps, on random activations and gradients."""

import numpy as np
import pytest
import torch
from heads import assert_routes_equal
from hypothesis import given
from hypothesis import strategies as st

from drip.scoring.cam import MAPS, gradcam_map, hirescam_map, layercam_map, mean_over_positions, normalise

POSITIONS = st.one_of(
    st.tuples(st.integers(1, 7)), st.tuples(st.integers(1, 4), st.integers(1, 4)), st.just((2, 2, 3))
)


@st.composite
def pairs(draw, *, constant=False):
    """Activations and gradients (N, K, *positions), with a share of zeros as after a ReLU."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), *draw(POSITIONS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    activations = rng.normal(size=shape) * (rng.random(shape) < 0.8)
    if constant:
        gradients = np.broadcast_to(rng.normal(size=(*shape[:2], *(1 for _ in shape[2:]))), shape).copy()
    else:
        gradients = rng.normal(size=shape) * (rng.random(shape) < 0.8)
    return torch.from_numpy(activations), torch.from_numpy(gradients)


@given(pairs())
def test_gradcam_is_the_loop_of_the_papers_equations(pair):
    activations, gradients = (value.numpy() for value in pair)
    n, k, *positions = activations.shape
    expected = np.zeros((n, *positions))
    for i in range(n):
        for j in range(k):
            weight = gradients[i, j].sum() / gradients[i, j].size
            expected[i] += weight * activations[i, j]
    assert np.allclose(gradcam_map(*pair).numpy(), expected)


@given(pairs())
def test_gradcam_plus_plus_is_the_loop_of_its_equations(pair):
    activations, gradients = (value.numpy() for value in pair)
    expected = np.zeros((len(activations), *activations.shape[2:]))
    for i in range(len(activations)):
        for a, g in zip(activations[i], gradients[i], strict=True):
            weight = 0.0
            for value in g.flat:
                denominator = 2 * value**2 + value**3 * a.sum()
                if denominator != 0:
                    weight += value**2 / denominator * max(value, 0.0)
            expected[i] += weight * a
    found = MAPS["gradcam++"](*pair).numpy()
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-9 * max(1.0, np.abs(expected).max()))


@given(pairs(constant=True))
def test_a_constant_gradient_may_come_with_one_position(pair):
    activations, gradients = pair
    one = gradients[(slice(None), slice(None), *(slice(0, 1) for _ in gradients.shape[2:]))]
    for name, function in MAPS.items():
        assert torch.allclose(function(activations, one), function(activations, gradients)), name
    assert torch.allclose(gradcam_map(activations, one), hirescam_map(activations, one))


@given(pairs())
def test_layercam_is_hirescam_of_the_positive_gradients(pair):
    activations, gradients = pair
    assert torch.allclose(
        layercam_map(activations, gradients.abs()), hirescam_map(activations, gradients.abs())
    )
    assert (layercam_map(activations.abs(), gradients) >= 0).all()


@given(pairs(), st.floats(0.1, 10))
def test_gradcam_is_linear_in_the_gradient(pair, factor):
    activations, gradients = pair
    for function in (gradcam_map, hirescam_map):
        assert torch.allclose(
            function(activations, factor * gradients), factor * function(activations, gradients)
        )


@given(pairs())
def test_scores_keep_the_order_of_samples_and_ignore_that_of_maps(pair):
    activations, gradients = pair
    for name, function in MAPS.items():
        maps = function(activations, gradients)
        assert torch.allclose(function(activations.flip(0), gradients.flip(0)), maps.flip(0)), name
        assert torch.allclose(function(activations.flip(1), gradients.flip(1)), maps), name


@given(pairs())
def test_normalised_maps_span_zero_to_one_and_forget_scale_and_offset(pair):
    maps = gradcam_map(*pair)
    normal = normalise(maps)
    flat = maps.flatten(1)
    ranged = flat.amax(1) > flat.amin(1)
    assert (normal.flatten(1).amin(1) == 0).all()
    assert torch.equal(normal.flatten(1).amax(1), ranged.to(normal.dtype))
    shifted = normalise(4.0 * maps)
    assert torch.allclose(shifted, normal, atol=1e-9)
    assert ((mean_over_positions(normal) >= 0) & (mean_over_positions(normal) <= 1)).all()


def test_a_constant_map_normalises_to_zeros():
    assert torch.equal(normalise(torch.full((2, 3, 3), 7.0)), torch.zeros(2, 3, 3))
    assert torch.equal(normalise(torch.tensor([[5.0]])), torch.zeros(1, 1))


def test_normalisation_hides_no_nan():
    assert normalise(torch.tensor([[1.0, torch.nan, 2.0]])).isnan().any()


@pytest.mark.parametrize("name", MAPS)
def test_zero_gradients_give_zero_maps(name):
    activations = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(MAPS[name](activations, torch.zeros(2, 3, 4)), torch.zeros(2, 4))


def test_upsampling_by_a_whole_factor_leaves_the_score_unchanged():
    maps = torch.rand(4, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    larger = torch.nn.functional.interpolate(maps[:, None], scale_factor=4, mode="bilinear")[:, 0]
    assert_routes_equal(mean_over_positions(larger).numpy(), mean_over_positions(maps).numpy())
