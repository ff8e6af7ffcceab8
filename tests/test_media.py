"""Bytes to inputs: the contract by hand computation, and nothing but InputError on bad bytes."""

import io
import json
import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drip.errors import InputError
from drip.media import MEDIA_TYPES, NPY, SUFFIXES, InputContract, decode_npy, encode_npy, encode_png

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (12, 10), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(60) * 2, np.arange(90)).astype(np.uint8)
TONE = (0.5 * np.sin(np.arange(400) / 7)).astype(np.float32)
GREY_CONTRACT = InputContract(shape=(1, 12, 10))
COLOUR_CONTRACT = InputContract(shape=(3, 12, 10))


def encoded(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return buffer.getvalue()


def sound(values, rate=16_000, form="WAV", subtype="PCM_16"):
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_declaring(width, height, *, bits=8, colour=0, rows=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows, 9))
        + png_chunk(b"IEND", b"")
    )


def npy_declaring(shape, data=b"", descr="<f4", fortran_order=False):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": fortran_order, "shape": shape}
    )
    return buffer.getvalue() + data


def refused(contract, data, media_type):
    with pytest.raises(InputError) as caught:
        contract.prepare(data, media_type)
    return str(caught.value)


# -- images --------------------------------------------------------------------------------------------


def test_grey_png_is_scaled_to_one_and_gets_a_channel_axis():
    got = GREY_CONTRACT.prepare(encode_png(GREY), "image/png")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, GREY[None] / 255.0, rtol=1e-6)


def test_colour_png_has_channels_first():
    got = COLOUR_CONTRACT.prepare(encode_png(COLOUR), "image/png")
    for channel in range(3):
        np.testing.assert_allclose(got[channel], COLOUR[:, :, channel] / 255.0, rtol=1e-6)


def test_mean_and_std_are_per_channel_after_scaling():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    contract = InputContract((3, 12, 10), mean=mean, std=std)
    got = contract.prepare(encode_png(COLOUR), "image/png")
    for channel in range(3):
        expected = (COLOUR[:, :, channel] / 255.0 - mean[channel]) / std[channel]
        np.testing.assert_allclose(got[channel], expected, rtol=1e-5, atol=1e-6)


def test_one_mean_serves_all_channels():
    contract = InputContract((3, 12, 10), mean=(0.5,), std=(0.25,))
    got = contract.prepare(encode_png(COLOUR), "image/png")
    np.testing.assert_allclose(got, (COLOUR.transpose(2, 0, 1) / 255.0 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)


def test_colour_becomes_grey_by_the_usual_luma():
    got = GREY_CONTRACT.prepare(encode_png(COLOUR), "image/png")
    np.testing.assert_allclose(got[0] * 255, COLOUR @ np.array([0.299, 0.587, 0.114]), atol=0.6)


def test_grey_becomes_three_equal_channels():
    got = COLOUR_CONTRACT.prepare(encode_png(GREY), "image/png")
    for channel in range(3):
        np.testing.assert_allclose(got[channel], GREY / 255.0, rtol=1e-6)


@pytest.mark.parametrize("depth_type", [np.uint16, np.int32])
def test_sixteen_bit_grey_keeps_its_high_byte_and_is_not_clipped_to_white(depth_type):
    values = RNG.integers(0, 65536, (12, 10)).astype(depth_type)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    got = GREY_CONTRACT.prepare(png_declaring(10, 12, bits=16, rows=rows), "image/png")
    np.testing.assert_allclose(got[0], (values >> 8) / 255.0, rtol=1e-6)


def test_palette_image_gives_its_colours():
    picture = Image.fromarray(COLOUR).quantize(16)
    got = COLOUR_CONTRACT.prepare(encoded(picture, "PNG"), "image/png")
    palette = np.array(picture.getpalette()).reshape(-1, 3)
    np.testing.assert_allclose(got, palette[np.asarray(picture)].transpose(2, 0, 1) / 255.0, rtol=1e-6)


def test_palette_image_with_transparency_gives_its_colours_without_a_warning():
    picture = Image.fromarray(COLOUR).quantize(16)
    plain = COLOUR_CONTRACT.prepare(encoded(picture, "PNG"), "image/png")
    transparent = encoded(picture, "PNG", transparency=bytes(range(16)))
    np.testing.assert_array_equal(COLOUR_CONTRACT.prepare(transparent, "image/png"), plain)


def test_alpha_is_ignored():
    alpha = RNG.integers(0, 256, (12, 10, 1), dtype=np.uint8)
    data = encode_png(np.concatenate([COLOUR, alpha], axis=2))
    got = COLOUR_CONTRACT.prepare(data, "image/png")
    np.testing.assert_allclose(got, COLOUR.transpose(2, 0, 1) / 255.0, rtol=1e-6)


def test_cmyk_jpeg_is_read_as_colour():
    picture = Image.fromarray(np.full((12, 10, 3), (200, 30, 90), np.uint8)).convert("CMYK")
    got = COLOUR_CONTRACT.prepare(encoded(picture, "JPEG", quality=100), "image/jpeg")
    np.testing.assert_allclose(got[:, 5, 5] * 255, (200, 30, 90), atol=4)


def test_one_bit_image_is_black_and_white():
    picture = Image.fromarray(GREY).convert("1")
    got = GREY_CONTRACT.prepare(encoded(picture, "PNG"), "image/png")
    assert set(np.unique(got)) == {0.0, 1.0}


def test_orientation_tag_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(GREY), "JPEG", exif=exif, quality=100)
    np.testing.assert_allclose(GREY_CONTRACT.prepare(data, "image/jpeg")[0] * 255, GREY, atol=6)


def test_first_frame_of_an_animation_counts():
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    got = COLOUR_CONTRACT.prepare(data, "image/webp")
    np.testing.assert_allclose(got, COLOUR.transpose(2, 0, 1) / 255.0, rtol=1e-6)


def test_exact_refuses_another_size_and_says_what_to_set():
    message = refused(InputContract((1, 28, 28)), encode_png(GREY), "image/png")
    assert "28 x 28" in message
    assert "10 x 12" in message
    assert "stretch" in message


@pytest.mark.parametrize("size", [(30, 45), (90, 20), (7, 5)])
def test_stretch_resizes_both_sides(size):
    height, width = size
    contract = InputContract((1, height, width), resize="stretch")
    got = contract.prepare(encode_png(SMOOTH), "image/png")
    expected = Image.fromarray(SMOOTH).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(got[0] * 255, np.asarray(expected), atol=1e-3)


@pytest.mark.parametrize("size", [(30, 30), (24, 12), (12, 24), (60, 90), (80, 80), (1, 1)])
@pytest.mark.parametrize("pixels", [SMOOTH, SMOOTH.T, COLOUR[:, :, 0]])
def test_crop_is_the_middle_of_the_picture_with_the_shorter_side_resized(size, pixels):
    height, width = size
    got = InputContract((1, height, width), resize="crop").prepare(encode_png(pixels), "image/png")
    scale = max(width / pixels.shape[1], height / pixels.shape[0])
    whole = (max(width, round(pixels.shape[1] * scale)), max(height, round(pixels.shape[0] * scale)))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    resized = np.asarray(Image.fromarray(pixels).resize(whole, Image.Resampling.BILINEAR))
    np.testing.assert_allclose(
        got[0] * 255, resized[top : top + height, left : left + width].astype(float), atol=1.01
    )


def test_crop_of_extreme_proportions_takes_no_memory():
    data = encode_png(np.zeros((1, 60_000), np.uint8))
    got = InputContract((1, 224, 224), resize="crop").prepare(data, "image/png")
    assert got.shape == (1, 224, 224)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncated_image_is_refused_or_whole(form):
    data = encoded(Image.fromarray(COLOUR.repeat(8, 0).repeat(8, 1)), form)
    contract = InputContract((3, 96, 80))
    kind = f"image/{form.lower()}"
    whole = contract.prepare(data, kind)
    n_refused = 0
    offsets = sorted({*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 30, len(data))})
    for end in offsets:
        try:
            np.testing.assert_array_equal(contract.prepare(data[:end], kind), whole)
        except InputError:
            n_refused += 1
            assert end < len(data)
    assert n_refused >= len(offsets) - 32  # only what follows the last pixel may be missing


@pytest.mark.parametrize("media_type", sorted(SUFFIXES))
def test_no_bytes_at_all_are_refused(media_type):
    contract = InputContract((1, 400), sample_rate_hz=16_000) if "audio" in media_type else GREY_CONTRACT
    refused(contract, b"", media_type)


def test_picture_that_declares_sixty_thousand_squared_is_refused_before_memory_is_taken():
    tracemalloc.start()
    message = refused(GREY_CONTRACT, png_declaring(60_000, 60_000), "image/png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "3600000000" in message
    assert peak < 2_000_000


def test_picture_over_max_values_is_refused_by_its_header():
    contract = InputContract((1, 12, 10), max_values=119)
    assert "at most 119 pixels" in refused(contract, encode_png(GREY), "image/png")


def test_zip_bomb_in_a_small_picture_gives_its_pixels_or_an_error_but_not_its_memory():
    rows = b"\0" * 40_000_000
    data = png_declaring(10, 12, rows=rows)
    assert len(data) < 50_000
    tracemalloc.start()
    with suppress(InputError):
        assert not GREY_CONTRACT.prepare(data, "image/png").any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_text_bomb_in_a_picture_is_refused_or_ignored():
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 200_000_000, 9))
    data = encode_png(GREY)
    after_header = 8 + 25
    data = data[:after_header] + bomb + data[after_header:]
    with suppress(InputError):
        np.testing.assert_allclose(GREY_CONTRACT.prepare(data, "image/png")[0], GREY / 255.0, rtol=1e-6)


def test_webp_that_declares_a_huge_canvas_is_refused():
    content = struct.pack("<I", 0x02) + b"\xff\xff\x00" + b"\xff\xff\x00"
    body = b"WEBPVP8X" + struct.pack("<I", len(content)) + content
    refused(GREY_CONTRACT, b"RIFF" + struct.pack("<I", len(body)) + body, "image/webp")


@pytest.mark.parametrize("form", ["GIF", "JPEG", "TIFF", "WEBP", "BMP", "PPM", "ICO"])
def test_bytes_of_another_format_are_refused_as_png(form):
    message = refused(GREY_CONTRACT, encoded(Image.fromarray(GREY), form), "image/png")
    assert "image/png" in message
    assert "0x" not in message  # no addresses of Python objects


@pytest.mark.parametrize("media_type", ["image/gif", "text/html", "", "image", "IMAGE/PNG", "image/png; q=1"])
def test_unknown_media_type_is_refused_with_the_known_ones(media_type):
    message = refused(GREY_CONTRACT, encode_png(GREY), media_type)
    assert repr(media_type) in message
    assert "image/png" in message


def test_image_needs_a_shape_with_one_or_three_channels():
    for shape in ((2, 12, 10), (120,), (12, 10)):
        assert "image" in refused(InputContract(shape), encode_png(GREY), "image/png")


# -- arrays --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
        np.arange(12, dtype=">i2").reshape(3, 4),
        np.arange(12).reshape(3, 4) % 2 == 0,
        np.zeros((3, 0, 4)),
        np.float32(7).reshape(()),
    ],
)
def test_npy_comes_back_as_it_was(values):
    got = decode_npy(encode_npy(values))
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)
    got[...] = 0  # writable


def test_array_is_taken_as_it_is_and_normalised_per_first_axis():
    values = RNG.normal(size=(2, 3, 4))
    contract = InputContract((2, 3, 4), mean=(1.0, 2.0), std=(2.0, 4.0))
    got = contract.prepare(encode_npy(values), NPY)
    np.testing.assert_allclose(got[1], (values[1] - 2) / 4, rtol=1e-5, atol=1e-6)


def test_array_of_another_shape_is_refused():
    assert "(3, 4)" in refused(InputContract((4, 3)), encode_npy(np.zeros((3, 4))), NPY)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300, -1e300])
def test_values_that_are_no_finite_float32_are_refused(bad):
    values = np.zeros((3, 4))
    values[1, 2] = bad
    assert "finite" in refused(InputContract((3, 4)), encode_npy(values), NPY)


def test_values_that_normalisation_makes_infinite_are_refused():
    contract = InputContract((1, 2), std=(1e-6,))
    assert "finite" in refused(contract, encode_npy(np.full((1, 2), 3e38)), NPY)


def test_pickled_array_is_refused_and_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Harmful()], dtype=object), allow_pickle=True)
    assert "numbers" in refused(InputContract((1,)), buffer.getvalue(), NPY)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("descr", ["<U4", "<c8", "<M8[s]", [("a", "<f4")], "|V4", "|S3"])
def test_arrays_of_anything_but_real_numbers_are_refused(descr):
    assert "numbers" in refused(InputContract((1,)), npy_declaring((1,), bytes(16), descr), NPY)


@pytest.mark.parametrize(
    "shape",
    [
        (10**12,),
        (2**40, 2**40),
        (0, 2**70),
        (-1,),
        (-1, -1),
        (-4, -1, 1),
        (1,) * 70,
        (60_000_000,),
        (2**63, 0),
    ],
)
def test_header_that_lies_about_its_shape_is_refused_without_memory(shape):
    tracemalloc.start()
    message = refused(InputContract((1,)), npy_declaring(shape, bytes(4)), NPY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "got" in message
    assert peak < 2_000_000


def test_truncated_or_longer_npy_is_refused_at_every_offset():
    data = encode_npy(np.arange(6.0))
    for end in range(len(data)):
        with pytest.raises(InputError):
            decode_npy(data[:end])
    with pytest.raises(InputError, match="complete"):
        decode_npy(data + b"\0")


def test_array_over_max_values_is_refused():
    with pytest.raises(InputError, match="at most 5 values"):
        decode_npy(encode_npy(np.zeros(6)), max_values=5)


@pytest.mark.parametrize(
    "header",
    [b"{" * 60, b"(" * 5000, b"'''", b"{'descr': '<f4'}", b"\xff" * 20, b"1" * 5000, b"{'a': 1L,\n (\n}"],
)
def test_npy_with_a_nonsense_header_is_refused(header):
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)
    with pytest.raises(InputError):
        decode_npy(data)


# -- audio ---------------------------------------------------------------------------------------------

AUDIO = InputContract((1, 400), sample_rate_hz=16_000)


@pytest.mark.parametrize(("form", "media_type"), [("WAV", "audio/wav"), ("FLAC", "audio/flac")])
def test_audio_is_scaled_to_plus_minus_one(form, media_type):
    got = AUDIO.prepare(sound(TONE, form=form), media_type)
    assert got.shape == (1, 400)
    np.testing.assert_allclose(got[0], TONE, atol=1 / 32768)


def test_channels_of_audio_come_first():
    stereo = np.stack([TONE, -TONE / 2], axis=1)
    got = InputContract((2, 400), sample_rate_hz=16_000).prepare(sound(stereo), "audio/wav")
    np.testing.assert_allclose(got, stereo.T, atol=1 / 32768)


def test_audio_of_another_rate_is_refused():
    message = refused(AUDIO, sound(TONE, rate=8_000), "audio/wav")
    assert "16000 Hz" in message
    assert "8000 Hz" in message


def test_audio_with_other_channels_is_refused():
    assert "1 channels" in refused(AUDIO, sound(np.stack([TONE, TONE], axis=1)), "audio/wav")


def test_audio_of_another_length_is_refused_unless_it_may_be_cropped():
    message = refused(AUDIO, sound(TONE[:300]), "audio/wav")
    assert "400" in message
    assert "300" in message
    assert "crop" in message


@pytest.mark.parametrize("length", [1, 300, 399, 401, 900])
def test_crop_cuts_or_pads_audio_at_the_end(length):
    values = np.resize(TONE, length)
    contract = InputContract((1, 400), resize="crop", sample_rate_hz=16_000)
    got = contract.prepare(sound(values, subtype="FLOAT"), "audio/wav")
    expected = np.zeros(400, np.float32)
    expected[: min(length, 400)] = values[:400]
    np.testing.assert_array_equal(got[0], expected)


@pytest.mark.parametrize(("form", "media_type"), [("WAV", "audio/wav"), ("FLAC", "audio/flac")])
@pytest.mark.parametrize("resize", ["exact", "crop"])
def test_truncated_audio_is_refused_and_never_padded(form, media_type, resize):
    contract = InputContract((1, 400), resize=resize, sample_rate_hz=16_000)
    data = sound(TONE, form=form)
    whole = contract.prepare(data, media_type)
    for end in (*range(0, len(data) - 20, 37), *range(len(data) - 20, len(data) - 1)):
        try:
            got = contract.prepare(data[:end], media_type)
        except InputError:
            continue
        np.testing.assert_array_equal(got, whole)  # only a trailing checksum was missing


def test_flac_that_declares_more_than_it_has_is_refused():
    data = bytearray(sound(TONE, form="FLAC"))
    data[21:26] = bytes([data[21] | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # total samples, 36 bits
    refused(AUDIO, bytes(data), "audio/flac")


@pytest.mark.parametrize(("form", "subtype"), [("AIFF", "PCM_16"), ("OGG", "VORBIS"), ("FLAC", "PCM_16")])
def test_audio_of_another_format_is_refused_as_wav(form, subtype):
    assert "audio/wav" in refused(AUDIO, sound(TONE, form=form, subtype=subtype), "audio/wav")


def test_nan_in_audio_is_refused():
    values = TONE.copy()
    values[7] = np.nan
    assert "finite" in refused(AUDIO, sound(values, subtype="FLOAT"), "audio/wav")


def test_audio_over_max_values_is_refused():
    contract = InputContract((1, 400), sample_rate_hz=16_000, max_values=399)
    assert "at most 399" in refused(contract, sound(TONE), "audio/wav")


def test_audio_needs_a_shape_of_channels_and_samples():
    assert "(channels, samples)" in refused(InputContract((1, 20, 20)), sound(TONE), "audio/wav")


# -- the contract itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"shape": ()}, "shape"),
        ({"shape": (3, 0, 4)}, "shape"),
        ({"shape": (3, -1)}, "shape"),
        ({"shape": (3, 4.5, 4)}, "shape"),
        ({"shape": (True, 4)}, "shape"),
        ({"shape": (3, 4, 4), "resize": "squash"}, "resize"),
        ({"shape": (3, 4, 4), "mean": (0.1, 0.2)}, "mean"),
        ({"shape": (3, 4, 4), "mean": ()}, "mean"),
        ({"shape": (3, 4, 4), "mean": (np.nan,)}, "mean"),
        ({"shape": (3, 4, 4), "mean": (1e300,)}, "mean"),
        ({"shape": (3, 4, 4), "std": (0.0,)}, "std"),
        ({"shape": (3, 4, 4), "std": (1e-300,)}, "std"),
        ({"shape": (3, 4, 4), "std": (-1.0,)}, "std"),
        ({"shape": (3, 4, 4), "std": (np.inf,)}, "std"),
        ({"shape": (3, 4, 4), "sample_rate_hz": -1}, "sample_rate_hz"),
        ({"shape": (3, 4, 4), "max_values": 0}, "max_values"),
        ({"shape": (3, 4, 4), "max_values": "many"}, "max_values"),
    ],
)
def test_field_outside_its_range_is_refused_by_name(fields, word):
    with pytest.raises(InputError, match=word):
        InputContract(**fields)


def test_contract_survives_json():
    contract = InputContract((3, 12, 10), "crop", (0.1, 0.2, 0.3), (0.5,), 0, 10**6)
    assert InputContract.from_json(json.loads(json.dumps(contract.to_json()))) == contract


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"shape": "abc"},
        {"shape": None},
        {"shape": [3, 4.5, 4]},
        {"shape": [3, 4, 4], "mean": ["a"]},
        {"shape": [3, 4, 4], "mean": 0.5},
        {"shape": [3, 4, 4], "colour": "blue"},
        {"shape": [3, 4, 4], "resize": ["crop"]},
        {"shape": [[3], 4]},
        {"shape": [3, 10**6, 10**6]},
        {"shape": [3, 4, 4], "mean": [10**400]},
        [],
        None,
    ],
)
def test_malformed_contract_is_refused(content):
    with pytest.raises(InputError):
        InputContract.from_json(content)


def test_every_media_type_has_a_suffix_to_write_and_to_read():
    assert {MEDIA_TYPES[suffix] for suffix in SUFFIXES.values()} == set(MEDIA_TYPES.values())
    assert SUFFIXES["image/jpeg"] == ".jpg"


# -- fuzz ----------------------------------------------------------------------------------------------

SEEDS = {
    "image/png": (InputContract((1, 12, 10), max_values=100_000), encode_png(GREY)),
    "image/jpeg": (
        InputContract((3, 12, 10), "crop", max_values=100_000),
        encoded(Image.fromarray(COLOUR), "JPEG"),
    ),
    "image/webp": (
        InputContract((3, 12, 10), "stretch", max_values=100_000),
        encoded(Image.fromarray(COLOUR), "WEBP"),
    ),
    "image/bmp": (
        InputContract((3, 12, 10), "crop", max_values=100_000),
        encoded(Image.fromarray(COLOUR), "BMP"),
    ),
    "audio/wav": (InputContract((1, 400), "crop", sample_rate_hz=16_000, max_values=100_000), sound(TONE)),
    "audio/flac": (
        InputContract((1, 400), "crop", sample_rate_hz=16_000, max_values=100_000),
        sound(TONE, form="FLAC"),
    ),
    NPY: (InputContract((3, 4), mean=(0.5,), max_values=100_000), encode_npy(np.ones((3, 4), np.float32))),
}


@pytest.mark.parametrize("media_type", sorted(SEEDS))
@settings(max_examples=150, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=5)), max_size=6
    ),
    cut=st.none() | st.floats(0, 1),
    head=st.booleans(),
)
def test_mutated_bytes_give_a_whole_input_or_an_input_error(media_type, edits, cut, head):
    contract, seed = SEEDS[media_type]
    data = bytearray(seed)
    for place, content in edits:
        start = int(place * (min(len(data), 64) if head else len(data)))
        data[start : start + len(content)] = content
    if cut is not None:
        del data[int(cut * len(data)) :]
    try:
        got = contract.prepare(bytes(data), media_type)
    except InputError:
        return
    assert got.shape == contract.shape
    assert got.dtype == np.float32
    assert np.isfinite(got).all()


@pytest.mark.parametrize("media_type", sorted(SEEDS))
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_give_an_input_error(media_type, data):
    with pytest.raises(InputError):
        SEEDS[media_type][0].prepare(data, media_type)
