"""How the texts of options become values, and what is refused as wrong usage."""

import pytest
import typer

from drip.cli.arguments import (
    check_input_spec,
    class_names_of,
    parse_bytes,
    parse_input_spec,
    parse_rate,
    parse_score,
)
from drip.media import InputSpec

IMAGENET = InputSpec((3, 224, 224), "stretch", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3x96x96", InputSpec((3, 96, 96))),
        ("400", InputSpec((400,))),
        (" 1x16000   rate=16000 ", InputSpec((1, 16_000), sample_rate_hz=16_000)),
        ("3x8x8 resize=crop mean=0.5 std=0.25", InputSpec((3, 8, 8), "crop", (0.5,), (0.25,))),
        (
            "3x224x224 std=0.229,0.224,0.225 mean=0.485,0.456,0.406 resize=stretch",
            InputSpec((3, 224, 224), "stretch", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ),
    ],
)
def test_an_input_spec_is_a_shape_and_words(text, expected):
    assert parse_input_spec(text) == expected


def test_every_field_has_a_word():
    text = (
        "3x224x224 resize=crop shorter=256 interpolation=bicubic order=bgr range=0,255 fill=114 mean=104,117,123 std=1 "
        "rate=16000 resample=yes mix=no"
    )
    assert parse_input_spec(text) == InputSpec(
        (3, 224, 224), "crop", (104.0, 117.0, 123.0), (1.0,), 16_000, value_range=(0.0, 255.0), channel_order="bgr",
        interpolation="bicubic", shorter_side=256, fill=114, resample=True,
    )  # fmt: skip
    assert parse_input_spec(InputSpec((3, 8, 8), "letterbox", fill=9).describe()).fill == 9


def test_without_a_shape_that_of_the_default_is_used():
    assert parse_input_spec("mean=0.5", IMAGENET) == InputSpec((3, 224, 224), "stretch", (0.5,), IMAGENET.std)
    assert check_input_spec("mean=0.5") == "mean=0.5"
    for text in ("mean=a", "colour=1", "3x8x8 shorter=4", "3,3"):
        with pytest.raises(typer.BadParameter):
            check_input_spec(text)


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("l.txt", "cat\n\n dog \n", ("cat", "dog")), ("l.json", '["cat", "a, b"]', ("cat", "a, b")),
        ("l.json", '{"1": "dog", "0": "cat"}', ("cat", "dog")),
        ("config.json", '{"id2label": {"0": "cat", "10": "dog", "2": "cow"}}', ("cat", "cow", "dog")),
    ],
)  # fmt: skip
def test_class_names_from_a_file(name, content, names, tmp_path):
    (tmp_path / name).write_text(content)
    assert class_names_of("", tmp_path / name) == names


@pytest.mark.parametrize(
    ("name", "content"),
    [("l.txt", "cat\ncat"), ("l.txt", ""), ("l.json", "{"), ("l.json", "[1]"), ("l.json", '{"a": "b"}')],
)  # fmt: skip
def test_a_file_without_class_names_is_wrong_usage(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(typer.BadParameter):
        class_names_of("", tmp_path / name)


def test_class_names_are_given_once(tmp_path):
    (tmp_path / "l.txt").write_text("cat")
    with pytest.raises(typer.BadParameter, match="only one"):
        class_names_of("cat", tmp_path / "l.txt")
    assert class_names_of("cat, dog", None) == ("cat", "dog")


def test_words_that_are_missing_are_those_of_the_default():
    spec = parse_input_spec("3x96x96 resize=crop", IMAGENET)
    assert spec == InputSpec((3, 96, 96), "crop", IMAGENET.mean, IMAGENET.std)


def test_a_mean_for_other_channels_is_not_inherited():
    assert parse_input_spec("1x28x28", IMAGENET) == InputSpec((1, 28, 28), "stretch")
    assert parse_input_spec("1x28x28 mean=0.5", IMAGENET).mean == (0.5,)


@pytest.mark.parametrize(
    "text",
    [
        "3x8x8 rate=2147483648", f"3x8x8 rate={'9' * 5000}", "9" * 5000,
        "", "resize=crop", "3,96,96", "3x", "ax8x8", "3x-8x8", "0x8x8", "3x8x8 crop", "3x8x8 resize=tall",
        "3x8x8 resize=", "3x8x8 mean=a", "3x8x8 mean=nan", "3x8x8 mean=1,2", "3x8x8 std=0", "3x8x8 std=-1",
        "3x8x8 rate=-1", "3x8x8 rate=fast", "3x8x8 resample=1", "3x8x8 order=bgrx", "3x8x8 range=1",
        "1x8x8 order=bgr", "3x8x8 mean=0 mean=0", "3x8x8 colour=1", "3x60000x60000",
        "3x999999999999x999999999999999999999999",
    ],
)  # fmt: skip
def test_an_input_spec_that_no_model_has_is_wrong_usage(text):
    with pytest.raises(typer.BadParameter):
        parse_input_spec(text)


def test_a_score_is_words():
    assert parse_score("") == {}
    assert parse_score("layer=features.6 heatmap=normalised method=gradcam++") == {
        "layer": "features.6", "heatmap": "normalised", "method": "gradcam++",
    }  # fmt: skip
    assert parse_score("layer='block 3'") == {"layer": "block 3"}
    assert parse_score("layer=a=b") == {"layer": "a=b"}


@pytest.mark.parametrize(
    "text", ["raw", "layer=", "heatmap=blue", "method=vargrad", "layer=a layer=b", "depth=3", "layer='a"]
)
def test_a_score_that_does_not_exist_is_wrong_usage(text):
    with pytest.raises(typer.BadParameter):
        parse_score(text)


def test_the_words_of_a_score_are_those_of_the_scorer():
    from typing import get_args

    from drip.cli.arguments import _CAM_METHODS, _HEATMAPS
    from drip.scoring.cam import MAPS
    from drip.scoring.scorer import Heatmap

    assert get_args(Heatmap) == _HEATMAPS
    assert set(MAPS) == set(_CAM_METHODS)


@pytest.mark.parametrize("text", ["0", "1", "-0.1", "1.5", "nan", "inf", "", "60%", "0,6", "1e-320", "1e-17"])
def test_a_rate_outside_its_range_is_wrong_usage(text):
    with pytest.raises(typer.BadParameter):
        parse_rate(text)


def test_a_rate_is_a_number_between_0_and_1():
    assert parse_rate("0.6") == 0.6
    assert parse_rate("1e-9") == 1e-9


def test_a_size_has_a_unit():
    assert parse_bytes("500MB") == 500_000_000
    assert parse_bytes(" 2 GiB ") == 2 * 2**30
    for text in ("", "MB", "-1", "1e9", "1.5.2", "5 XB", "iB", "7i"):
        with pytest.raises(typer.BadParameter):
            parse_bytes(text)
