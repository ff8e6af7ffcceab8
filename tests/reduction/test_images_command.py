"""`drip reduce images`: class folders, YOLO and COCO; pairs by name, and every omission is reported."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from drip.media import MEDIA_TYPES
from drip.reduction.images import IMAGE_SUFFIXES

NETWORK = ("--model", "drip.models:SmallCNN", "--input-spec", "1x28x28 mean=0 std=1")


def draw(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def class_folders(tmp_path):
    for number in range(24):
        draw(tmp_path / "set" / ["ant", "bee", "cow"][number % 3] / f"{number:02d}.png", number)
    return tmp_path / "set"


@pytest.fixture
def yolo(tmp_path):
    """Twenty images in two folders, with one or two boxes; the last two without a label."""
    for number in range(20):
        name = f"{'day' if number % 2 else 'night'}/{number:02d}"
        draw(tmp_path / "set" / "images" / f"{name}.jpg", number)
        label = tmp_path / "set" / "labels" / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        if number < 18:
            lines = [f"{number % 3} 0.5 0.5 0.25 {0.1 + number / 100}"] * (1 + number % 2)
            label.write_text("\n".join(lines) + "\n")
    (tmp_path / "set" / "labels" / "classes.txt").write_text("person\ndog\nbike\n")
    return tmp_path / "set"


def lines_of(path):
    return path.read_text().splitlines()


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_class_folders_are_reduced_by_class_and_copied_as_they_are(class_folders, drip, tmp_path):
    out, copy = tmp_path / "kept.txt", tmp_path / "fewer"
    options = ["--keep", "0.25", "--out", out, "--copy-to", copy, "--report", tmp_path / "r.html"]
    result = drip("reduce", "images", class_folders, *NETWORK, *options)
    assert result.code == 0, result.err
    kept = lines_of(out)
    assert [sum(name.startswith(kind) for name in kept) for kind in ("ant", "bee", "cow")] == [2, 2, 2]
    assert tree(copy) == kept == sorted(kept)
    for name in kept:
        assert (copy / name).read_bytes() == (class_folders / name).read_bytes()
    page = (tmp_path / "r.html").read_text()
    assert "6 of 24 images" in page
    assert "computing their features took" in page


@pytest.mark.parametrize("below", ["", "images"])
def test_yolo_pairs_go_together_into_a_yolo_tree(below, yolo, drip, tmp_path):
    out, copy = tmp_path / "kept.txt", tmp_path / "fewer"
    options = ["--n-samples", "8", "--min-images", "1", "--out", out, "--copy-to", copy, "--json"]
    found = json.loads(drip("reduce", "images", yolo / below, *NETWORK, *options).out)
    names = {part["name"]: part["n"] for part in found["classes"]}
    assert names == {
        "person, one": 3, "dog, one": 3, "bike, one": 3, "person, several": 3, "dog, several": 3,
        "bike, several": 3, "no boxes": 2,
    }  # fmt: skip
    assert found["overall"]["n_kept"] == 8
    assert found["coverage"]["n_kept"] == found["coverage"]["n_classes"] == 3
    kept = [name.removeprefix("images/") for name in lines_of(out)]
    labelled = [name for name in kept if int(name[-6:-4]) < 18]
    expected = [f"images/{name}" for name in kept]
    expected += [f"labels/{name.replace('.jpg', '.txt')}" for name in labelled]
    assert tree(copy) == sorted([*expected, "classes.txt"])
    for name in labelled:
        text = (copy / "labels" / name).with_suffix(".txt").read_bytes()
        assert text == (yolo / "labels" / name).with_suffix(".txt").read_bytes()
    missing = [problem for problem in found["problems"] if "no label file" in problem]
    assert len(missing) == 2


def test_a_part_of_a_yolo_set_is_not_blamed_for_the_labels_of_the_others(yolo, drip, tmp_path):
    options = ["--n-samples", "5", "--out", tmp_path / "kept.txt", "--json"]
    found = json.loads(drip("reduce", "images", yolo / "images" / "day", *NETWORK, *options).out)
    assert found["overall"]["n"] == 10
    assert [problem[:6] for problem in found["problems"]] == ["19.jpg"]


def test_what_does_not_pair_or_cannot_be_read_is_named_and_left_where_it_is(yolo, drip, tmp_path):
    (yolo / "images" / "day" / "01.jpg").write_bytes(b"\xff\xd8 no picture")
    (yolo / "labels" / "day" / "99.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    out, copy = tmp_path / "kept.txt", tmp_path / "fewer"
    result = drip("reduce", "images", yolo, *NETWORK, "--keep", "1", "--out", out, "--copy-to", copy)
    assert result.code == 0, result.err
    printed = "".join(result.out.split())  # lines break anywhere in a path
    assert "images/day/01.jpg:cannotberead" in printed
    assert "99.txt:noimageofthisname" in printed
    assert len(lines_of(out)) == 19
    assert "images/day/01.jpg" not in tree(copy)
    assert (yolo / "images" / "day" / "01.jpg").exists()
    assert (yolo / "labels" / "day" / "99.txt").exists()


def test_coco_boxes_become_a_yolo_tree_with_the_shares_of_the_image(drip, tmp_path):
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "guide\ndog"}, {"id": 3, "name": "ant"}],
    }
    for number in range(8):
        draw(tmp_path / "set" / f"{number}.png", number)
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": 24, "height": 20})
        box = {"image_id": number, "category_id": 7 if number < 4 else 3, "bbox": [6, 5, 12, 10]}
        content["annotations"].append(box)
    content["annotations"] += [
        {"image_id": 0, "category_id": 3, "bbox": [20, 10, 100, 100], "iscrowd": 0},
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"image_id": 2, "category_id": 3, "bbox": [30, 0, 9, 9]},
        {"image_id": 777, "category_id": 3, "bbox": [1, 1, 9, 9]},
    ]
    content["images"].append({"id": 99, "file_name": "gone.png", "width": 9, "height": 9})
    notes = tmp_path / "instances.json"
    notes.write_text(json.dumps(content))
    draw(tmp_path / "set" / "extra.png", 50)
    out, copy = tmp_path / "kept.txt", tmp_path / "fewer"
    options = ["--annotations", notes, "--keep", "1", "--min-images", "1", "--copy-to", copy, "--json"]
    found = json.loads(drip("reduce", "images", tmp_path / "set", *NETWORK, *options, "--out", out).out)
    sizes = {part["name"]: part["n"] for part in found["classes"]}
    assert sizes == {"ant + guide dog, several": 1, "guide dog, one": 3, "ant, one": 4, "no boxes": 1}
    assert (copy / "classes.txt").read_text() == "ant\nguide dog\n"
    first = (copy / "labels" / "0.txt").read_text().splitlines()
    assert first[0] == "1 0.500000 0.500000 0.500000 0.500000"
    assert first[1] == "0 0.916667 0.750000 0.166667 0.500000"  # cut at the border
    assert not (copy / "labels" / "extra.txt").exists()
    words = " ".join(found["problems"])
    for problem in (
        "1 annotations belong to images that instances.json does not list",
        "gone.png: listed",
        "2.png: a box without area",
        "extra.png: not listed",
    ):
        assert problem in words


@pytest.mark.parametrize("method", ["srs", "protodash", "rkmeans", "clc", "nrmd"])
def test_other_methods_reduce_images(method, yolo, drip, tmp_path):
    options = ["--method", method, "--n-samples", "6", "--out", tmp_path / "kept.txt", "--no-check"]
    result = drip("reduce", "images", yolo, *NETWORK, *options)
    assert result.code == 0, result.err
    assert len(lines_of(tmp_path / "kept.txt")) >= 6


def test_cover_adds_the_fewest_images_that_bring_lost_classes_back(yolo, drip, tmp_path):
    (yolo / "labels" / "day" / "03.txt").write_text("7 0.5 0.5 0.1 0.1\n8 0.5 0.5 0.1 0.1\n")
    (yolo / "labels" / "day" / "05.txt").write_text("8 0.5 0.5 0.1 0.1\n9 0.5 0.5 0.1 0.1\n")
    options = ["--method", "srs", "--n-samples", "2", "--min-images", "100", "--json"]
    torch.manual_seed(0)  # the network draws its weights
    plain = json.loads(
        drip("reduce", "images", yolo, *NETWORK, *options, "--out", tmp_path / "plain.txt").out
    )
    assert plain["coverage"]["lost"]
    torch.manual_seed(0)
    found = json.loads(
        drip("reduce", "images", yolo, *NETWORK, *options, "--cover", "--out", tmp_path / "kept.txt").out
    )
    assert found["coverage"]["lost"] == []
    assert found["coverage"]["n_kept"] == found["coverage"]["n_classes"] == 6
    added = set(found["kept"]) - set(plain["kept"])
    assert set(plain["kept"]) < set(found["kept"])
    assert {"images/day/03.jpg", "images/day/05.jpg"} <= set(found["kept"])
    assert len(added) <= 5
    assert found["overall"]["n_kept"] == len(found["kept"])
    assert f"{len(added)} images were added" in found["notes"][0]
    assert found["overall"]["epsilon_euclidean"] <= plain["overall"]["epsilon_euclidean"]


def test_images_without_labels_are_one_class(class_folders, drip, tmp_path):
    options = ["--n-samples", "3", "--out", tmp_path / "kept.txt", "--json"]
    found = json.loads(drip("reduce", "images", class_folders / "ant", *NETWORK, *options).out)
    assert found["overall"]["n_kept"] == 3
    assert found["coverage"] is None


def break_label(folder):
    (folder / "labels" / "day" / "01.txt").write_text("0 0.5 0.5\n")


def break_class(folder):
    (folder / "labels" / "day" / "01.txt").write_text("cat 0.5 0.5 0.1 0.1\n")


def same_stem(folder):
    draw(folder / "images" / "day" / "01.png", 1)


def other_stems(folder):
    for path in sorted((folder / "labels").rglob("[0-9]*.txt")):
        path.rename(path.with_name(f"x{path.name}"))


def line_break(folder):
    (folder / "images" / "day" / "01.jpg").rename(folder / "images" / "day" / "01\n.jpg")


def other_bytes(folder):
    (folder / "images" / "day" / "01.jpg").rename(folder / "images" / "day" / os.fsdecode(b"\xff01.jpg"))


def no_image(folder):
    for path in (folder / "images").rglob("*.jpg"):
        path.unlink()


def no_readable(folder):
    for path in (folder / "images").rglob("*.jpg"):
        path.write_bytes(b"")


BAD = {
    "a short label line": break_label,
    "a class that is not a number": break_class,
    "two images with one label": same_stem,
    "labels with other names": other_stems,
    "a name with a line break": line_break,
    "a name that is not UTF-8": other_bytes,
    "no image": no_image,
    "no image that can be decoded": no_readable,
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_set_is_rejected_in_one_line_and_nothing_is_written(case, yolo, drip, tmp_path):
    BAD[case](yolo)
    options = ["--out", tmp_path / "kept.txt", "--copy-to", tmp_path / "fewer"]
    result = drip("reduce", "images", yolo, *NETWORK, *options)
    assert result.code == 1
    assert "[images-invalid]" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


IMAGE = {"id": 1, "file_name": "a.png", "width": 1, "height": 1}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "[" * 100_000,
        '{"images": [], "categories": []}',
        '{"images": [{"id": 1}]}',
        '{"categories": [{"id": 1, "name": "a"}, {"id": "x", "name": "b"}], "images": [], "annotations": []}',
        '{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "images": [], "annotations": []}',
        json.dumps({"categories": [], "images": [IMAGE | {"id": [1]}], "annotations": []}),
        json.dumps({"categories": [], "images": [IMAGE, IMAGE], "annotations": []}),
    ],
    ids=range(9),
)
def test_a_file_that_is_no_coco_is_rejected(content, class_folders, drip, tmp_path):
    (tmp_path / "notes.json").write_text(content)
    options = ["--annotations", tmp_path / "notes.json", "--out", tmp_path / "kept.txt"]
    result = drip("reduce", "images", class_folders, *NETWORK, *options)
    assert (result.code, "[images-invalid]" in result.err) == (1, True)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--method", "best"], "method-unknown"),
        (["--keep", "1.5"], ""),
        (["--n-samples", "21"], "bad-argument"),
        (["--watts", "0"], ""),
    ],
)
def test_wrong_options_stop_before_the_features(options, code, yolo, drip, tmp_path):
    result = drip("reduce", "images", yolo, *NETWORK, "--out", tmp_path / "kept.txt", *options)
    assert (result.code, result.error) == (1 if code else 2, code)
    assert options[0] in result.err or code == "method-unknown"
    assert "reading images" not in result.err


def test_labels_of_editors_that_mark_utf_8_are_read(yolo, drip, tmp_path):
    label = yolo / "labels" / "day" / "01.txt"
    label.write_text(label.read_text(), encoding="utf-8-sig")
    result = drip("reduce", "images", yolo, *NETWORK, "--out", tmp_path / "kept.txt", "--keep", "1")
    assert result.code == 0, result.err


def test_options_and_places_that_do_not_fit_are_rejected(class_folders, drip, tmp_path):
    out = tmp_path / "kept.txt"

    def error(*options):
        result = drip("reduce", "images", class_folders, *options, "--out", out)
        assert result.code in (1, 2)
        return result.err

    assert drip("reduce", "images", class_folders, *NETWORK, "--label", "kind", "--out", out).code == 2
    assert "[model-not-loadable]" in error("--model", "drip.models:Nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert "[path-exists]" in error(*NETWORK, "--copy-to", tmp_path / "full")
    for option in (["--cover"], ["--min-images", "2"]):
        assert "[images-invalid]" in error(*NETWORK, *option)
    out.write_text("mine")
    assert "[path-exists]" in error(*NETWORK)
    draw(class_folders / "loose.png", 1)
    assert "[images-invalid]" in error(*NETWORK, "--overwrite")
    assert out.read_text() == "mine"


def test_a_missing_folder_does_not_exist(drip, tmp_path):
    result = drip("reduce", "images", tmp_path / "no", *NETWORK, "--out", tmp_path / "kept.txt")
    assert (result.code, "does not exist" in result.err) == (1, True)


def test_the_wing_reads_the_images_that_the_network_can_decode():
    kinds = {suffix for suffix, kind in MEDIA_TYPES.items() if kind.startswith("image/")}
    assert set(IMAGE_SUFFIXES) == kinds
