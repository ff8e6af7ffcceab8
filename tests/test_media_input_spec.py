"""The input spec itself, and mutated bytes of every media type."""

import json

import numpy as np
import pytest
from encoded_samples import COLOUR, GREY, TONE, encoded, sound
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drip.errors import InputError
from drip.media import MEDIA_TYPES, NPY, SUFFIXES, InputSpec, encode_npy, encode_png


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
        ({"shape": (3, 4, 4), "value_range": (1.0, 0.0)}, "value_range"),
        ({"shape": (3, 4, 4), "value_range": (1.0,)}, "value_range"),
        ({"shape": (3, 4, 4), "value_range": (0.0, np.inf)}, "value_range"),
        ({"shape": (3, 4, 4), "channel_order": "grb"}, "channel_order"),
        ({"shape": (1, 4, 4), "channel_order": "bgr"}, "three channels"),
        ({"shape": (3, 4, 4), "interpolation": "cubic"}, "interpolation"),
        ({"shape": (3, 4, 4), "shorter_side": 8}, "crop"),
        ({"shape": (3, 4, 4), "resize": "crop", "shorter_side": 3}, "from 4"),
        ({"shape": (3, 4, 4), "resize": "crop", "shorter_side": 10**6}, "16384"),
        ({"shape": (3, 4, 4), "fill": 256}, "fill"),
        ({"shape": (3, 4, 4), "mix": "yes"}, "mix"),
        ({"shape": (3, 4, 4), "resample": 1}, "resample"),
        ({"shape": (3, 4, 4), "hop": 2}, "hop"),
        ({"shape": (1, 400), "hop": 200}, "sample rate"),
        ({"shape": (1, 400), "hop": -1, "sample_rate_hz": 8000}, "hop"),
    ],
)
def test_field_outside_its_range_is_an_error_with_its_name(fields, word):
    with pytest.raises(InputError, match=word) as caught:
        InputSpec(**fields)
    assert caught.value.code == "input-spec-invalid"


def test_json_round_trip_is_exact():
    spec = InputSpec((3, 12, 10), "crop", (0.1, 0.2, 0.3), (0.5,), 0, 10**6)
    assert InputSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_new_fields_are_written_only_where_they_are_used():
    """Policies and files of earlier versions keep their digests, and earlier versions read what they understand."""
    assert list(InputSpec((3, 4, 4)).to_json()) == [
        "shape", "resize", "mean", "std", "sample_rate_hz", "max_values",
    ]  # fmt: skip
    spec = InputSpec(
        (3, 12, 10), "crop", value_range=(-1.0, 1.0), channel_order="bgr", interpolation="bicubic", shorter_side=14,
        fill=7, resample=True, mix=True,
    )  # fmt: skip
    assert InputSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.describe() == (
        "3x12x10 resize=crop shorter=14 interpolation=bicubic fill=7 order=bgr range=-1,1 mean=0 std=1 "
        "resample=yes mix=yes"
    )


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
        {"shape": [3, 60_000, 11_000]},  # 7.4 GiB an input
        {"shape": [3, 4, 4], "mean": [10**400]},
        [],
        None,
    ],
)
def test_malformed_json_is_an_error(content):
    with pytest.raises(InputError) as caught:
        InputSpec.from_json(content)
    assert caught.value.code == "input-spec-invalid"


def test_every_media_type_has_a_suffix_to_write_and_to_read():
    assert {MEDIA_TYPES[suffix] for suffix in SUFFIXES.values()} == set(MEDIA_TYPES.values())
    assert SUFFIXES["image/jpeg"] == ".jpg"


# -- fuzz ----------------------------------------------------------------------------------------------

SEEDS = {
    "image/png": (InputSpec((1, 12, 10), max_values=100_000), encode_png(GREY)),
    "image/jpeg": (
        InputSpec((3, 12, 10), "crop", max_values=100_000),
        encoded(Image.fromarray(COLOUR), "JPEG"),
    ),
    "image/webp": (
        InputSpec((3, 12, 10), "stretch", max_values=100_000),
        encoded(Image.fromarray(COLOUR), "WEBP"),
    ),
    "image/bmp": (
        InputSpec((3, 12, 10), "crop", max_values=100_000),
        encoded(Image.fromarray(COLOUR), "BMP"),
    ),
    "audio/wav": (InputSpec((1, 400), "crop", sample_rate_hz=16_000, max_values=100_000), sound(TONE)),
    "audio/flac": (
        InputSpec((1, 400), "crop", sample_rate_hz=16_000, max_values=100_000),
        sound(TONE, form="FLAC"),
    ),
    NPY: (InputSpec((3, 4), mean=(0.5,), max_values=100_000), encode_npy(np.ones((3, 4), np.float32))),
}


@pytest.mark.parametrize("media_type", sorted(SEEDS))
@settings(max_examples=150)
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=5)), max_size=6
    ),
    cut=st.none() | st.floats(0, 1),
    head=st.booleans(),
)
def test_mutated_bytes_give_a_whole_input_or_an_input_error(media_type, edits, cut, head):
    spec, seed = SEEDS[media_type]
    data = bytearray(seed)
    for place, content in edits:
        start = int(place * (min(len(data), 64) if head else len(data)))
        data[start : start + len(content)] = content
    if cut is not None:
        del data[int(cut * len(data)) :]
    try:
        got = spec.prepare(bytes(data), media_type)
    except InputError:
        return
    assert got.shape == spec.shape
    assert got.dtype == np.float32
    assert np.isfinite(got).all()


@pytest.mark.parametrize("media_type", sorted(SEEDS))
@settings(max_examples=60)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_give_an_input_error(media_type, data):
    with pytest.raises(InputError):
        SEEDS[media_type][0].prepare(data, media_type)
