"""What a frozen network sees of a row."""

import numpy as np
import pytest
import torch
from support import require_data

from drip.datasets import AudioDataset, ImageDataset, load
from drip.errors import InputError
from experiments.views import VIEWS, log_mel, network_inputs

MEAN, STD = (np.array(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
CHANGED = [name for name in VIEWS if name != "clean"]


def pictures(n=12, side=32, colours=True, seed=0):
    rng = np.random.default_rng(seed)
    shape = (n, side, side, 3) if colours else (n, side, side)
    coarse = rng.integers(0, 256, (n, 4, 4, 3) if colours else (n, 4, 4), dtype=np.uint8)
    fine = coarse.repeat(side // 4, 1).repeat(side // 4, 2)
    assert fine.shape == shape
    return ImageDataset("made up", fine, np.arange(n) % 3, ("a", "b", "c"))


def seen(data, rows, view, size=32):
    """Inputs with ImageNet's normalisation taken back."""
    return network_inputs(data, np.asarray(rows), view, size).numpy() * STD + MEAN


@pytest.mark.parametrize("colours", [True, False])
def test_the_clean_view_is_the_data_sets_own_pixels(colours):
    data = pictures(colours=colours)
    wanted = np.broadcast_to(data.inputs(np.arange(12)), (12, 3, 32, 32))
    np.testing.assert_allclose(seen(data, np.arange(12), "clean"), wanted, atol=1e-6)


def test_a_larger_input_is_the_same_picture_scaled():
    found = seen(pictures(), [0], "clean", 64)
    assert found.shape == (1, 3, 64, 64)
    own = pictures().inputs([0])
    np.testing.assert_allclose(found[..., 3::8, 3::8], own[..., 1::4, 1::4], atol=0.3)
    assert abs(found.mean() - own.mean()) < 1e-3


def test_real_pictures_come_through_unchanged():
    require_data("mnist")
    data = load("mnist")
    rows = np.array([5, 60_123])
    found = seen(data, rows, "clean", 28)
    np.testing.assert_allclose(found[:, 0] * 255, data.images[rows], atol=1e-3)


@pytest.mark.parametrize("view", CHANGED)
def test_a_changed_row_always_looks_the_same_whatever_is_beside_it(view):
    data = pictures()
    together = seen(data, np.arange(12), view)
    np.testing.assert_allclose(seen(data, [7], view)[0], together[7], atol=1e-6)
    np.testing.assert_allclose(seen(data, [9, 7, 7], view), together[[9, 7, 7]], atol=1e-6)


@pytest.mark.parametrize("view", CHANGED)
def test_values_stay_in_0_to_1_and_differ_from_the_clean_picture(view):
    data = pictures()
    found, clean = seen(data, np.arange(12), view), seen(data, np.arange(12), "clean")
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6
    assert (np.abs(found - clean).mean((1, 2, 3)) > 1e-3).all()


def test_no_two_views_and_no_two_rows_share_their_noise():
    grey = ImageDataset("grey", np.full((6, 32, 32, 3), 128, np.uint8), np.zeros(6, np.int64), ("a",))
    noise = {view: (seen(grey, np.arange(6), view) - 128 / 255).reshape(6, -1) for view in CHANGED}
    stacked = np.concatenate(list(noise.values()))
    correlation = np.corrcoef(stacked - stacked.mean(1, keepdims=True)) - np.eye(len(stacked))
    assert np.abs(correlation).max() < 0.12  # 3,072 values


def test_noise_has_the_papers_deviation():
    grey = ImageDataset("grey", np.full((20, 32, 32), 128, np.uint8), np.zeros(20, np.int64), ("a",))
    found = seen(grey, np.arange(20), "noise")[:, 0]
    # N(0.502, 0.5) clipped to [0, 1]: as much at 0 as below -1 deviation.
    assert (found < 1e-5).mean() == pytest.approx(0.158, abs=0.01)
    middle = found[(found > 0.25) & (found < 0.75)]
    assert len(middle) / found.size == pytest.approx(0.383, abs=0.01)


def test_what_cannot_be_seen_is_refused():
    with pytest.raises(InputError, match="unknown; choose one of clean"):
        network_inputs(pictures(), np.arange(2), "sepia", 32)
    with pytest.raises(InputError, match="not for sound"):
        network_inputs(sound(), np.arange(2), "noise", 96)


def sound(n=3, seconds=1):
    """Tones of 500, 1000 and 2000 Hz."""
    time = np.arange(16_000 * seconds) / 16_000
    clips = [np.sin(2 * np.pi * hertz * time) * 8000 for hertz in (500, 1000, 2000)[:n]]
    return AudioDataset("tones", np.array(clips, np.int16), 16_000, np.arange(n), ("a", "b", "c"))


def test_a_spectrogram_shows_a_tone_at_its_place_in_mel():
    data = sound()
    found = log_mel(torch.from_numpy(data.inputs(np.arange(3))[:, 0]), 16_000).numpy()
    assert found.shape == (3, 1, 64, 101)
    assert found.min() == 0
    assert found.max() == 1
    top = 2595 * np.log10(1 + 8000 / 700)
    bottom = 2595 * np.log10(1 + 20 / 700)
    for picture, hertz in zip(found[:, 0, :, 20:80], (500, 1000, 2000), strict=True):
        mel = 2595 * np.log10(1 + hertz / 700)
        place = (mel - bottom) / (top - bottom) * 65 - 1
        assert abs(picture.mean(1).argmax() - place) <= 1


def test_sound_becomes_a_wide_picture_of_whole_cells():
    assert network_inputs(sound(), np.arange(2), "clean", 96).shape == (2, 3, 96, 160)
