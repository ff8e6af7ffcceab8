"""How the texts of options become values, and what is refused as wrong usage."""

import pytest
import typer

from drip.cli.arguments import parse_bytes, parse_input_spec, parse_rate, parse_score
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
        "3x8x8 rate=-1", "3x8x8 rate=fast", "3x8x8 mean=0 mean=0", "3x8x8 colour=1", "3x60000x60000",
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
