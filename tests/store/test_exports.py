"""Exports: readable by the real tools, deterministic, complete or absent, and never outside their folder."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest
from making import keep, observation, put, refused, sample
from support import require_module

from drip.errors import ExportError, InputError, StoreError
from drip.media import MEDIA_TYPES, SUFFIXES
from drip.store import RetentionStore, export_image_folder, export_webdataset
from drip.store.exports import extension_of, file_stem, record_json
from drip.types import Decision, Observation, Sample

EVIL = [
    "../../etc/passwd",
    "..",
    ".",
    "/abs",
    "a/b\\c",
    ".hidden",
    "nul\0byte",
    "ü b.c.tar",
    "x" * 500,
    "con:1",
]


@pytest.fixture
def store(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=1_000_000) as opened:
        opened.put(sample("a", label=0), observation(1), keep())
        opened.put(sample("b", label=1), observation(1), keep(float("inf")))
        put(opened, "c", predicted_class=0)
        opened.set_label("c", 1, annotator="ada")
        yield opened


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("true", ["cat/000000001-a.png", "dog/000000002-b.png"]),
        ("human", ["dog/000000003-c.png"]),
        ("predicted", ["cat/000000003-c.png", "dog/000000001-a.png", "dog/000000002-b.png"]),
    ],
)
def test_an_image_folder_has_a_folder_per_class(store, tmp_path, labels, expected):
    target = tmp_path / "out"
    assert export_image_folder(store, target, labels=labels, class_names=["cat", "dog"]) == len(expected)
    written = files(target)
    lines = [json.loads(line) for line in written.pop("records.jsonl").splitlines()]
    assert sorted(written) == expected == sorted(line["file"] for line in lines)
    assert all(data == b"data of " + name[-5:-4].encode() for name, data in written.items())


def test_class_numbers_name_the_folders_without_names(store, tmp_path):
    export_image_folder(store.samples(), tmp_path / "out", labels="predicted")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "1", "records.jsonl"]


def test_ids_cannot_leave_the_folder(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=1_000_000) as store:
        for i, name in enumerate(EVIL):
            store.put(Sample(name, bytes([i]), "../png"), observation(0), keep())
        (tmp_path / "x").mkdir()
        export_image_folder(store, tmp_path / "x" / "out", labels="predicted")
        export_webdataset(store, str(tmp_path / "x" / "s%d.tar"), labels="predicted")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["out", "s0.tar"]
    written = files(tmp_path / "x" / "out")
    assert len(written) == len(EVIL) + 1
    assert all(name.startswith(("0/0000000", "records")) for name in written)
    with tarfile.open(tmp_path / "x" / "s0.tar") as tar:
        for name in tar.getnames():
            assert name.count(".") == 1
            assert not set(name) & set("/\\\0")


@pytest.mark.parametrize(
    "bad", [["a"], ["a/b", "c"], ["..", "c"], ["a", "A"], ["", "b"], ["records.jsonl", "b"]]
)
def test_bad_class_names_are_refused_and_leave_nothing(store, tmp_path, bad):
    with refused((InputError, ExportError), "labels-invalid"):
        export_image_folder(store, tmp_path / "out", labels="true", class_names=bad)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_an_export_that_fails_half_way_leaves_nothing(store, tmp_path):
    def records():
        yield next(iter(store))
        message = "lost"
        raise StoreError(message)

    out = tmp_path / "here"
    out.mkdir()
    with pytest.raises(StoreError):
        export_image_folder(records(), out / "folder", labels="true")
    with pytest.raises(StoreError):
        export_webdataset(records(), str(out / "s%d.tar"), labels="true")
    assert list(out.iterdir()) == []


def test_existing_targets_and_bad_arguments_are_refused(store, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with refused(ExportError, "path-exists", tmp_path / "full"):
        export_image_folder(store, tmp_path / "full", labels="true")
    with refused(ExportError, "path-missing", f"{tmp_path / 'no'} does not exist"):
        export_image_folder(store, tmp_path / "no" / "out", labels="true")
    with refused(ExportError, "path-missing", "s0.tar", f"{tmp_path / 'no'} does not exist"):
        export_webdataset(store, str(tmp_path / "no" / "s%d.tar"), labels="true")
    (tmp_path / "s0.tar").touch()
    with refused(ExportError, "path-exists", "s0.tar"):
        export_webdataset(store, str(tmp_path / "s%d.tar"), labels="true")
    for pattern in ("fixed.tar", "%s%s.tar", "%d%d", "%"):
        with refused(InputError, "bad-argument", "pattern"):
            export_webdataset(store, pattern, labels="true")
    with refused(InputError, "bad-argument", "labels='best'"):
        export_webdataset(store, "s%d.tar", labels="best")
    for bad in (0, -1, 1.5, True):
        with refused(InputError, "bad-argument", "max_count"):
            export_webdataset(store, "s%d.tar", labels="true", max_count=bad)


def test_shards_have_at_most_max_count_samples_and_equal_bytes_for_equal_samples(store, tmp_path):
    first = export_webdataset(store, str(tmp_path / "a%03d.tar"), labels="predicted", max_count=2)
    second = export_webdataset(store, str(tmp_path / "b%03d.tar"), labels="predicted", max_count=2)
    assert [path.name for path in first] == ["a000.tar", "a001.tar"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with tarfile.open(first[0]) as tar:
        names = tar.getnames()
        assert names == sorted(names)
        assert names == [
            f"{stem}.{end}" for stem in ("000000001-a", "000000002-b") for end in ("cls", "json", "png")
        ]
        about = json.load(io.BytesIO(tar.extractfile("000000002-b.json").read()))
    assert (about["priority"], about["scores"], about["id"], about["class"]) == ("inf", {"drip": 0.5}, "b", 1)


def test_the_json_of_a_record_has_everything_but_the_data(store):
    record = next(iter(store))
    named = dataclasses.replace(
        record,
        sample=Sample("a", b"1", "image/png", 0, 2.5, {"k": "v"}),
        decision=Decision(True, -float("inf"), 0.25, "margin"),
        scores={"drip": 0.5, "odd": float("inf")},
        policy_digest="digest",
        human_label=1,
        annotator="ada",
    )
    assert record_json(named, "human") == {
        "annotator": "ada",
        "class": 1,
        "class_name": None,
        "content_hash": record.content_hash,
        "human_label": 1,
        "id": "a",
        "keep_probability": 0.25,
        "key": 1,
        "label_state": "human",
        "media_type": "image/png",
        "meta": {"k": "v"},
        "policy_digest": "digest",
        "predicted_class": 1,
        "priority": "-inf",
        "reason": "margin",
        "scores": {"drip": 0.5, "odd": "inf"},
        "time_s": 2.5,
        "true_label": 0,
    }


@pytest.mark.parametrize(
    ("labels", "expected"), [("true", ["a cat", "dog", None]), ("human", [None, None, "dog"])]
)
def test_shards_have_the_names_of_the_classes(store, tmp_path, labels, expected):
    (path,) = export_webdataset(store, str(tmp_path / "s%d.tar"), labels=labels, class_names=["a cat", "dog"])
    with tarfile.open(path) as tar:
        members = [name for name in tar.getnames() if name.endswith(".json")]
        assert [json.load(tar.extractfile(name))["class_name"] for name in members] == expected


def test_a_class_without_a_name_stops_the_shards_and_leaves_nothing(store, tmp_path):
    with refused(ExportError, "labels-invalid"):
        export_webdataset(store, str(tmp_path / "s%d.tar"), labels="predicted", class_names=["cat"])
    assert list(tmp_path.glob("s*.tar*")) == []


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("XaX", "000000001-XaX"),
        ("-a/b--c-", "000000001-a-b--c"),
        ("..", "000000001"),
        ("ü b.c", "000000001-b-c"),
        ("x" * 81, "000000001-" + "x" * 80),
    ],
)
def test_a_file_is_named_by_key_and_readable_part_of_the_id(store, name, stem):
    record = next(iter(store))
    assert file_stem(dataclasses.replace(record, sample=Sample(name, b"", "image/png"))) == stem


@pytest.mark.parametrize(
    ("media_type", "extension"),
    [("image/png", "png"), (" IMAGE/JPEG ; q=1", "jpg"), ("application/json", "data.json"), ("x", "bin")],
)
def test_a_media_type_gives_the_usual_extension(media_type, extension):
    assert extension_of(media_type) == extension


@pytest.mark.parametrize("media_type", sorted(SUFFIXES))
def test_a_media_type_that_sources_read_gets_a_suffix_that_sources_read(media_type):
    assert MEDIA_TYPES[f".{extension_of(media_type)}"] == media_type


def test_lines_of_an_export_have_sorted_keys_and_the_class(store, tmp_path):
    export_image_folder(store, tmp_path / "out", labels="predicted")
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    contents = [json.loads(line) for line in lines]
    assert [content["class"] for content in contents] == [1, 1, 0]
    assert lines == [json.dumps(content, sort_keys=True) for content in contents]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_an_unfinished_export_is_hidden_beside_its_target(store, tmp_path):
    (tmp_path / "here").mkdir()
    seen = []

    def records():
        yield from store
        seen.extend(path.name for path in (tmp_path / "here").iterdir())

    export_image_folder(records(), tmp_path / "here" / "out", labels="predicted")
    (name,) = seen
    assert name.startswith(".out.")
    assert name.endswith(".part")


def test_members_of_a_shard_have_constant_modes_times_and_sorted_json(store, tmp_path):
    (path,) = export_webdataset(store, str(tmp_path / "s%d.tar"), labels="true")
    with tarfile.open(path) as tar:
        assert {(entry.mode, entry.mtime, entry.uid, entry.uname) for entry in tar} == {(0o444, 0, 0, "")}
        text = tar.extractfile("000000001-a.json").read().decode()
        classes = {entry.name: tar.extractfile(entry).read() for entry in tar if entry.name.endswith("cls")}
    assert text == json.dumps(json.loads(text), sort_keys=True)
    assert classes == {"000000001-a.cls": b"0", "000000002-b.cls": b"1"}


def test_an_export_to_a_failing_disk_leaves_nothing_and_names_the_target(store, tmp_path, monkeypatch):
    def fail(*_):
        message = "no space"
        raise OSError(message)

    out = tmp_path / "here"
    out.mkdir()
    monkeypatch.setattr("os.fsync", fail)
    with refused(ExportError, "path-not-writable") as caught:
        export_image_folder(store, out / "folder", labels="true")
    assert str(caught.value) == (
        f"{out / 'folder'}: writing failed (no space); free some space or choose another path"
    )
    with refused(ExportError, "path-not-writable", out / "s0.tar", "no space"):
        export_webdataset(store, str(out / "s%d.tar"), labels="true")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0b"])
def test_a_class_name_that_cannot_be_a_folder_is_refused_by_name(store, tmp_path, name):
    with refused(InputError, "labels-invalid", repr(name)):
        export_image_folder(store, tmp_path / "out", labels="true", class_names=["fine", name])


def test_a_class_without_a_name_is_refused_with_both_numbers(store, tmp_path):
    with refused(ExportError, "labels-invalid", "1 names", "class 1"):
        export_image_folder(store, tmp_path / "out", labels="true", class_names=["cat"])
    with refused(InputError, "labels-invalid", "['a', 'A']"):
        export_image_folder(store, tmp_path / "out", labels="true", class_names=["a", "A"])


def test_an_empty_folder_is_filled_and_a_file_in_its_place_is_not_replaced(store, tmp_path):
    (tmp_path / "out").mkdir()
    assert export_image_folder(store, tmp_path / "out", labels="true") == 2
    (tmp_path / "file").touch()
    with refused(ExportError, "path-exists"):
        export_image_folder(store, tmp_path / "file", labels="true")
    assert (tmp_path / "file").is_file()


@pytest.mark.parametrize(("labels", "classes"), [("true", [0, 1]), ("human", [1]), ("predicted", [1, 1, 0])])
def test_every_line_has_the_class_of_the_chosen_labels(store, tmp_path, labels, classes):
    export_image_folder(store, tmp_path / "out", labels=labels)
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["class"] for line in lines] == classes


def test_shards_of_one_sample_are_gnu_tars(store, tmp_path):
    paths = export_webdataset(store, str(tmp_path / "s%d.tar"), labels="true", max_count=1)
    assert [path.name for path in paths] == ["s0.tar", "s1.tar", "s2.tar"]
    assert {path.read_bytes()[257:265] for path in paths} == {b"ustar  \0"}


# webdataset leaves the closing of its shards to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_real_webdataset_reads_the_shards(store, tmp_path):
    webdataset = require_module("webdataset", "pip install webdataset")
    paths = export_webdataset(store, str(tmp_path / "s%d.tar"), labels="true", max_count=2)
    dataset = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
    rows = {row["__key__"]: row for row in dataset}
    assert {key: row["png"] for key, row in rows.items()} == {
        "000000001-a": b"data of a",
        "000000002-b": b"data of b",
        "000000003-c": b"data of c",
    }
    assert [row.get("cls") for row in rows.values()] == [b"0", b"1", None]


def test_an_empty_store_exports_nothing(tmp_path):
    with RetentionStore.open(tmp_path / "s", budget_bytes=1_000_000) as store:
        store.put(sample(), Observation(0, observation().logits, {}), Decision(False, 0.0, None, "x"))
        assert export_webdataset(store, str(tmp_path / "s%d.tar"), labels="true") == []
        assert export_image_folder(store, Path(tmp_path / "out"), labels="true") == 0
    assert not (tmp_path / "out").exists()
