"""Images to inputs: compared with results computed by hand, and InputError only on bad bytes."""

import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from encoded_samples import (
    COLOUR,
    COLOUR_SPEC,
    GREY,
    GREY_SPEC,
    RNG,
    SMOOTH,
    encoded,
    error_of,
    png_chunk,
    png_declaring,
)
from PIL import Image

from drip.errors import InputError
from drip.media import SUFFIXES, InputSpec, encode_png


def test_grey_png_is_scaled_to_one_and_gets_a_channel_axis():
    got = GREY_SPEC.prepare(encode_png(GREY), "image/png")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, GREY[None] / 255.0, rtol=1e-6)


def test_colour_png_has_channels_first():
    got = COLOUR_SPEC.prepare(encode_png(COLOUR), "image/png")
    for channel in range(3):
        np.testing.assert_allclose(got[channel], COLOUR[:, :, channel] / 255.0, rtol=1e-6)


def test_mean_and_std_are_per_channel_after_scaling():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = InputSpec((3, 12, 10), mean=mean, std=std)
    got = spec.prepare(encode_png(COLOUR), "image/png")
    for channel in range(3):
        expected = (COLOUR[:, :, channel] / 255.0 - mean[channel]) / std[channel]
        np.testing.assert_allclose(got[channel], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ends", [(0.0, 255.0), (-1.0, 1.0), (0.0, 1.0), (16.0, 235.0)])
def test_black_and_white_become_the_ends_of_the_range(ends):
    got = InputSpec((3, 12, 10), value_range=ends).prepare(encode_png(COLOUR), "image/png")
    expected = ends[0] + (ends[1] - ends[0]) * (COLOUR.transpose(2, 0, 1) / 255)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    if ends == (0.0, 255.0):  # whole numbers, for models of bytes
        np.testing.assert_array_equal(got, COLOUR.transpose(2, 0, 1))


def test_channels_in_the_order_of_opencv_with_a_mean_in_that_order():
    spec = InputSpec((3, 12, 10), channel_order="bgr", value_range=(0.0, 255.0), mean=(104.0, 117.0, 123.0))
    got = spec.prepare(encode_png(COLOUR), "image/png")
    np.testing.assert_array_equal(got[0], COLOUR[:, :, 2] - np.float32(104))
    np.testing.assert_array_equal(got[2], COLOUR[:, :, 0] - np.float32(123))


PHOTO = np.random.default_rng(5).integers(0, 256, (301, 427, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("turned", [False, True])
def test_the_usual_evaluation_of_imagenet_models(name, turned):
    """Shorter side to 256, longer side rounded down, the middle 224 x 224: what torchvision does."""
    image = Image.fromarray(PHOTO.transpose(1, 0, 2) if turned else PHOTO)
    size = (256, 256 * 427 // 301) if turned else (256 * 427 // 301, 256)
    resized = np.asarray(image.resize(size, getattr(Image.Resampling, name.upper())))
    top, left = (round((side - 224) / 2) for side in resized.shape[:2])
    spec = InputSpec((3, 224, 224), "crop", interpolation=name, shorter_side=256, value_range=(0.0, 255.0))
    got = spec.prepare(encode_png(np.asarray(image)), "image/png")
    np.testing.assert_array_equal(
        got, resized[top : top + 224, left : left + 224].transpose(2, 0, 1).astype(np.float32)
    )


def test_an_extreme_image_is_not_resized_as_a_whole():
    spec = InputSpec((1, 32, 32), "crop", shorter_side=40)
    data = encode_png(np.tile(np.array([[0, 255]], np.uint8), (1, 20_000)))
    tracemalloc.start()
    assert spec.prepare(data, "image/png").shape == (1, 32, 32)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(("size", "box"), [((40, 20), (0, 8, 32, 24)), ((20, 40), (8, 0, 24, 32))])
def test_letterbox_keeps_the_proportions_and_fills_the_rest(size, box):
    image = Image.new("RGB", size, (200, 100, 50))
    spec = InputSpec((3, 32, 32), "letterbox", fill=114, value_range=(0.0, 255.0))
    got = spec.prepare(encode_png(np.asarray(image)), "image/png")
    left, top, right, bottom = box
    inside = np.zeros((32, 32), bool)
    inside[top:bottom, left:right] = True
    assert (got[:, inside] == np.array([200, 100, 50])[:, None]).all()
    assert (got[:, ~inside] == 114).all()


def test_a_single_mean_applies_to_all_channels():
    spec = InputSpec((3, 12, 10), mean=(0.5,), std=(0.25,))
    got = spec.prepare(encode_png(COLOUR), "image/png")
    np.testing.assert_allclose(got, (COLOUR.transpose(2, 0, 1) / 255.0 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)


def test_colour_becomes_grey_by_the_usual_luma():
    got = GREY_SPEC.prepare(encode_png(COLOUR), "image/png")
    np.testing.assert_allclose(got[0] * 255, COLOUR @ np.array([0.299, 0.587, 0.114]), atol=0.6)


def test_grey_becomes_three_equal_channels():
    got = COLOUR_SPEC.prepare(encode_png(GREY), "image/png")
    for channel in range(3):
        np.testing.assert_allclose(got[channel], GREY / 255.0, rtol=1e-6)


@pytest.mark.parametrize("depth_type", [np.uint16, np.int32])
def test_sixteen_bit_grey_keeps_its_high_byte_and_is_not_clipped_to_white(depth_type):
    values = RNG.integers(0, 65536, (12, 10)).astype(depth_type)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    got = GREY_SPEC.prepare(png_declaring(10, 12, bits=16, rows=rows), "image/png")
    np.testing.assert_allclose(got[0], (values >> 8) / 255.0, rtol=1e-6)


def test_palette_image_gives_its_colours():
    picture = Image.fromarray(COLOUR).quantize(16)
    got = COLOUR_SPEC.prepare(encoded(picture, "PNG"), "image/png")
    palette = np.array(picture.getpalette()).reshape(-1, 3)
    np.testing.assert_allclose(got, palette[np.asarray(picture)].transpose(2, 0, 1) / 255.0, rtol=1e-6)


def test_palette_image_with_transparency_gives_its_colours_without_a_warning():
    picture = Image.fromarray(COLOUR).quantize(16)
    plain = COLOUR_SPEC.prepare(encoded(picture, "PNG"), "image/png")
    transparent = encoded(picture, "PNG", transparency=bytes(range(16)))
    np.testing.assert_array_equal(COLOUR_SPEC.prepare(transparent, "image/png"), plain)


def test_alpha_is_ignored():
    alpha = RNG.integers(0, 256, (12, 10, 1), dtype=np.uint8)
    data = encode_png(np.concatenate([COLOUR, alpha], axis=2))
    got = COLOUR_SPEC.prepare(data, "image/png")
    np.testing.assert_allclose(got, COLOUR.transpose(2, 0, 1) / 255.0, rtol=1e-6)


def test_cmyk_jpeg_is_read_as_colour():
    picture = Image.fromarray(np.full((12, 10, 3), (200, 30, 90), np.uint8)).convert("CMYK")
    got = COLOUR_SPEC.prepare(encoded(picture, "JPEG", quality=100), "image/jpeg")
    np.testing.assert_allclose(got[:, 5, 5] * 255, (200, 30, 90), atol=4)


def test_one_bit_image_is_black_and_white():
    picture = Image.fromarray(GREY).convert("1")
    got = GREY_SPEC.prepare(encoded(picture, "PNG"), "image/png")
    assert set(np.unique(got)) == {0.0, 1.0}


def test_orientation_tag_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(GREY), "JPEG", exif=exif, quality=100)
    np.testing.assert_allclose(GREY_SPEC.prepare(data, "image/jpeg")[0] * 255, GREY, atol=6)


def test_an_animation_gives_its_first_frame():
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    got = COLOUR_SPEC.prepare(data, "image/webp")
    np.testing.assert_allclose(got, COLOUR.transpose(2, 0, 1) / 255.0, rtol=1e-6)


def test_exact_rejects_another_size_and_says_what_to_set():
    error = error_of(InputSpec((1, 28, 28)), encode_png(GREY), "image/png")
    assert error.code == "sample-shape"
    assert all(word in str(error) for word in ("28 x 28", "10 x 12", "stretch"))


@pytest.mark.parametrize("size", [(30, 45), (90, 20), (7, 5)])
def test_stretch_resizes_both_sides(size):
    height, width = size
    spec = InputSpec((1, height, width), resize="stretch")
    got = spec.prepare(encode_png(SMOOTH), "image/png")
    expected = Image.fromarray(SMOOTH).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(got[0] * 255, np.asarray(expected), atol=1e-3)


@pytest.mark.parametrize("size", [(30, 30), (24, 12), (12, 24), (60, 90), (80, 80), (1, 1)])
@pytest.mark.parametrize("pixels", [SMOOTH, SMOOTH.T, COLOUR[:, :, 0]])
def test_crop_is_the_centre_of_the_image_with_the_shorter_side_resized(size, pixels):
    height, width = size
    got = InputSpec((1, height, width), resize="crop").prepare(encode_png(pixels), "image/png")
    scale = max(width / pixels.shape[1], height / pixels.shape[0])
    whole = (max(width, round(pixels.shape[1] * scale)), max(height, round(pixels.shape[0] * scale)))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    resized = np.asarray(Image.fromarray(pixels).resize(whole, Image.Resampling.BILINEAR))
    np.testing.assert_allclose(
        got[0] * 255, resized[top : top + height, left : left + width].astype(float), atol=1.01
    )


def test_crop_of_extreme_proportions_needs_no_memory():
    data = encode_png(np.zeros((1, 60_000), np.uint8))
    got = InputSpec((1, 224, 224), resize="crop").prepare(data, "image/png")
    assert got.shape == (1, 224, 224)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncated_image_is_rejected_or_whole(form):
    data = encoded(Image.fromarray(COLOUR.repeat(8, 0).repeat(8, 1)), form)
    spec = InputSpec((3, 96, 80))
    kind = f"image/{form.lower()}"
    whole = spec.prepare(data, kind)
    n_rejected, codes = 0, set()
    offsets = sorted({*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 30, len(data))})
    for end in offsets:
        try:
            np.testing.assert_array_equal(spec.prepare(data[:end], kind), whole)
        except InputError as error:
            n_rejected += 1
            codes.add(error.code)
            assert end < len(data)
    assert n_rejected >= len(offsets) - 32  # only bytes after the last pixel may be missing
    assert codes == {"sample-undecodable"}


@pytest.mark.parametrize("media_type", sorted(SUFFIXES))
def test_an_empty_file_is_rejected(media_type):
    spec = InputSpec((1, 400), sample_rate_hz=16_000) if "audio" in media_type else GREY_SPEC
    error = error_of(spec, b"", media_type)
    assert (error.code, str(error)) == ("sample-undecodable", f"the {media_type} file is empty")


def test_image_that_declares_a_huge_size_is_rejected_before_memory_is_allocated():
    tracemalloc.start()
    error = error_of(GREY_SPEC, png_declaring(60_000, 60_000), "image/png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "sample-too-large"
    assert "3600000000" in str(error)
    assert peak < 2_000_000


def test_image_over_max_values_is_rejected_by_its_header():
    spec = InputSpec((1, 12, 10), max_values=119)
    error = error_of(spec, encode_png(GREY), "image/png")
    assert error.code == "sample-too-large"
    assert "max_values" in str(error)


def test_zip_bomb_in_a_small_image_does_not_fill_the_memory():
    rows = b"\0" * 40_000_000
    data = png_declaring(10, 12, rows=rows)
    assert len(data) < 50_000
    tracemalloc.start()
    with suppress(InputError):
        assert not GREY_SPEC.prepare(data, "image/png").any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_text_bomb_in_an_image_is_rejected_or_ignored():
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 200_000_000, 9))
    data = encode_png(GREY)
    after_header = 8 + 25
    data = data[:after_header] + bomb + data[after_header:]
    with suppress(InputError):
        np.testing.assert_allclose(GREY_SPEC.prepare(data, "image/png")[0], GREY / 255.0, rtol=1e-6)


def test_webp_that_declares_a_huge_canvas_is_rejected():
    content = struct.pack("<I", 0x02) + b"\xff\xff\x00" + b"\xff\xff\x00"
    body = b"WEBPVP8X" + struct.pack("<I", len(content)) + content
    error = error_of(GREY_SPEC, b"RIFF" + struct.pack("<I", len(body)) + body, "image/webp")
    assert error.code in ("sample-undecodable", "sample-too-large")


@pytest.mark.parametrize("form", ["GIF", "JPEG", "TIFF", "WEBP", "BMP", "PPM", "ICO"])
def test_another_format_is_rejected_as_png(form):
    error = error_of(GREY_SPEC, encoded(Image.fromarray(GREY), form), "image/png")
    assert error.code == "sample-undecodable"
    assert "not an image/png file" in str(error)
    assert "0x" not in str(error)  # Pillow's own message has the address of a BytesIO object


@pytest.mark.parametrize("media_type", ["image/gif", "text/html", "", "image", "IMAGE/PNG", "image/png; q=1"])
def test_unknown_media_type_is_rejected_with_the_known_ones(media_type):
    error = error_of(GREY_SPEC, encode_png(GREY), media_type)
    assert error.code == "sample-undecodable"
    assert repr(media_type) in str(error)
    assert "image/png" in str(error)


def test_image_needs_a_shape_with_one_or_three_channels():
    for shape in ((2, 12, 10), (120,), (12, 10)):
        assert error_of(InputSpec(shape), encode_png(GREY), "image/png").code == "sample-shape"
