"""Audio to inputs: whole or rejected."""

import math

import numpy as np
import pytest
from encoded_samples import TONE, error_of, sound
from scipy.signal import resample_poly

from drip.errors import InputError
from drip.media import InputSpec, resampled

AUDIO = InputSpec((1, 400), sample_rate_hz=16_000)


@pytest.mark.parametrize(("form", "media_type"), [("WAV", "audio/wav"), ("FLAC", "audio/flac")])
def test_audio_is_scaled_to_plus_minus_one(form, media_type):
    got = AUDIO.prepare(sound(TONE, form=form), media_type)
    assert got.shape == (1, 400)
    np.testing.assert_allclose(got[0], TONE, atol=1 / 32768)


def test_channels_of_audio_come_first():
    stereo = np.stack([TONE, -TONE / 2], axis=1)
    got = InputSpec((2, 400), sample_rate_hz=16_000).prepare(sound(stereo), "audio/wav")
    np.testing.assert_allclose(got, stereo.T, atol=1 / 32768)


def test_audio_of_another_rate_is_rejected_with_both_rates():
    error = error_of(AUDIO, sound(TONE, rate=8_000), "audio/wav")
    assert error.code == "sample-shape"
    assert str(error).startswith("the audio is sampled at 8000 Hz, but the input spec says 16000 Hz")


def test_audio_with_another_number_of_channels_is_rejected():
    assert error_of(AUDIO, sound(np.stack([TONE, TONE], axis=1)), "audio/wav").code == "sample-shape"


def test_channels_are_averaged_or_repeated_on_request():
    stereo = np.stack([TONE, -TONE / 2], axis=1)
    mono = InputSpec((1, 400), sample_rate_hz=16_000, mix=True)
    got = mono.prepare(sound(stereo, subtype="FLOAT"), "audio/wav")
    np.testing.assert_allclose(got[0], stereo.astype(np.float32).mean(1), atol=1e-7)
    two = InputSpec((2, 400), sample_rate_hz=16_000, mix=True).prepare(
        sound(TONE, subtype="FLOAT"), "audio/wav"
    )
    np.testing.assert_array_equal(two[0], two[1])
    three = sound(np.stack([TONE] * 3, axis=1))
    assert (
        error_of(InputSpec((2, 400), sample_rate_hz=16_000, mix=True), three, "audio/wav").code
        == "sample-shape"
    )


@pytest.mark.parametrize(
    ("rate", "wanted"), [(44_100, 16_000), (8_000, 16_000), (48_000, 16_000), (16_000, 44_100)]
)
def test_resampling_is_that_of_scipy(rate, wanted):
    values = np.random.default_rng(0).normal(size=(2, rate // 2)).astype(np.float32)
    divisor = math.gcd(rate, wanted)
    expected = resample_poly(values.astype(np.float64), wanted // divisor, rate // divisor, axis=1)
    np.testing.assert_allclose(resampled(values, rate, wanted), expected, atol=1e-6)


def test_resampling_in_blocks_gives_the_same(monkeypatch):
    values = np.random.default_rng(0).normal(size=(1, 4_000)).astype(np.float32)
    whole = resampled(values, 8_000, 16_000)
    monkeypatch.setattr("drip.media._BLOCK", 100)
    np.testing.assert_array_equal(resampled(values, 8_000, 16_000), whole)


def test_a_tone_keeps_its_pitch_in_a_resampled_file():
    spec = InputSpec((1, 8_000), "crop", sample_rate_hz=16_000, resample=True)
    tone = np.sin(2 * np.pi * 440 * np.arange(22_050) / 44_100).astype(np.float32)
    got = spec.prepare(sound(tone, rate=44_100, subtype="FLOAT"), "audio/wav")[0]
    expected = np.sin(2 * np.pi * 440 * np.arange(8_000) / 16_000)
    np.testing.assert_allclose(got[200:-200], expected[200:-200], atol=1e-3)


def test_rates_without_a_common_ratio_and_results_beyond_the_limit_are_rejected():
    spec = InputSpec((1, 400), "crop", sample_rate_hz=16_001, resample=True)
    assert "16001" in str(error_of(spec, sound(TONE, rate=44_100), "audio/wav"))
    spec = InputSpec((1, 400), "crop", sample_rate_hz=16_000, resample=True, max_values=1_000)
    assert error_of(spec, sound(TONE, rate=1_000), "audio/wav").code == "sample-too-large"


def test_audio_of_another_length_is_rejected_with_what_to_set():
    error = error_of(AUDIO, sound(TONE[:300]), "audio/wav")
    assert error.code == "sample-shape"
    assert all(word in str(error) for word in ("400", "300", "crop"))


@pytest.mark.parametrize("length", [1, 300, 399, 401, 900])
def test_crop_cuts_or_pads_audio_at_the_end(length):
    values = np.resize(TONE, length)
    spec = InputSpec((1, 400), resize="crop", sample_rate_hz=16_000)
    got = spec.prepare(sound(values, subtype="FLOAT"), "audio/wav")
    expected = np.zeros(400, np.float32)
    expected[: min(length, 400)] = values[:400]
    np.testing.assert_array_equal(got[0], expected)


@pytest.mark.parametrize(("form", "media_type"), [("WAV", "audio/wav"), ("FLAC", "audio/flac")])
@pytest.mark.parametrize("resize", ["exact", "crop"])
def test_truncated_audio_is_rejected_and_never_padded(form, media_type, resize):
    spec = InputSpec((1, 400), resize=resize, sample_rate_hz=16_000)
    data = sound(TONE, form=form)
    whole = spec.prepare(data, media_type)
    for end in (*range(0, len(data) - 20, 37), *range(len(data) - 20, len(data) - 1)):
        try:
            got = spec.prepare(data[:end], media_type)
        except InputError:
            continue
        np.testing.assert_array_equal(got, whole)  # only a trailing checksum was missing


def test_flac_that_declares_more_samples_than_it_has_is_rejected():
    data = bytearray(sound(TONE, form="FLAC"))
    data[21:26] = bytes([data[21] | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # total samples, 36 bits
    # Whichever comes first: the declared size is over max_values, or libsndfile cannot read that far.
    assert error_of(AUDIO, bytes(data), "audio/flac").code in ("sample-undecodable", "sample-too-large")


@pytest.mark.parametrize(("form", "subtype"), [("AIFF", "PCM_16"), ("OGG", "VORBIS"), ("FLAC", "PCM_16")])
def test_audio_of_another_format_is_rejected_as_wav(form, subtype):
    error = error_of(AUDIO, sound(TONE, form=form, subtype=subtype), "audio/wav")
    assert error.code == "sample-undecodable"
    assert "not an audio/wav file" in str(error)


def test_nan_in_audio_is_rejected():
    values = TONE.copy()
    values[7] = np.nan
    assert error_of(AUDIO, sound(values, subtype="FLOAT"), "audio/wav").code == "sample-non-finite"


def test_audio_over_max_values_is_rejected():
    spec = InputSpec((1, 400), sample_rate_hz=16_000, max_values=399)
    assert error_of(spec, sound(TONE), "audio/wav").code == "sample-too-large"


def test_audio_needs_a_shape_of_channels_and_samples():
    error = error_of(InputSpec((1, 20, 20)), sound(TONE), "audio/wav")
    assert error.code == "sample-shape"
    assert "(channels, samples)" in str(error)


# -- windows of long recordings ------------------------------------------------------------------------------

LONG = np.random.default_rng(3).uniform(-0.9, 0.9, 2_500).astype(np.float32)
HOP = InputSpec((1, 1_000), sample_rate_hz=16_000, hop=600)


@pytest.mark.parametrize(("form", "media_type"), [("WAV", "audio/wav"), ("FLAC", "audio/flac")])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_long_recording_has_windows_that_lose_nothing(form, media_type, subtype):
    data = sound(LONG, form=form, subtype=subtype)
    whole = InputSpec((1, 2_500), sample_rate_hz=16_000).prepare(data, media_type)
    found = list(HOP.windows(data, media_type))
    assert [round(start * 16_000) for start, _ in found] == [0, 600, 1_200, 1_500]
    for start, part in found:
        at = round(start * 16_000)
        np.testing.assert_array_equal(HOP.prepare(part, "audio/wav"), whole[:, at : at + 1_000])


def test_floats_and_other_rates_keep_their_values():
    data = sound(np.stack([LONG, -LONG], axis=1), rate=8_000, subtype="FLOAT")
    found = list(HOP.windows(data, "audio/wav"))
    assert [round(start * 8_000) for start, _ in found] == [0, 300, 600, 900, 1_200, 1_500, 1_800, 2_000]
    spec = InputSpec((2, 500), sample_rate_hz=8_000)
    np.testing.assert_array_equal(spec.prepare(found[1][1], "audio/wav")[0], LONG[300:800])


@pytest.mark.parametrize("case", ["short", "truncated", "noise", "image", "no hop", "too large"])
def test_whatever_has_no_windows_stays_one_sample(case):
    data, media_type, spec = sound(LONG), "audio/wav", HOP
    if case == "short":
        data = sound(LONG[:1_000])
    elif case == "truncated":
        data = data[:-100]
    elif case == "noise":
        data = b"RIFF"
    elif case == "image":
        media_type = "image/png"
    elif case == "no hop":
        spec = InputSpec((1, 1_000), sample_rate_hz=16_000)
    else:
        spec = InputSpec((1, 1_000), sample_rate_hz=16_000, hop=600, max_values=2_000)
    assert not list(spec.windows(data, media_type))
