"""Exports: readable by the real tools, deterministic, complete or absent, and never outside their folder."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from making import keep, observation, put, sample
from support import require_module

from drip.errors import ExportError, InputError, StoreError
from drip.store import RetentionStore, export_image_folder, export_webdataset
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
    with RetentionStore(tmp_path / "s", budget_bytes=1_000_000) as opened:
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
    with RetentionStore(tmp_path / "s", budget_bytes=1_000_000) as store:
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
    with pytest.raises((InputError, ExportError), match="class_names"):
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
    with pytest.raises(ExportError, match="new or empty folder"):
        export_image_folder(store, tmp_path / "full", labels="true")
    with pytest.raises(ExportError, match="writable place"):
        export_image_folder(store, tmp_path / "no" / "out", labels="true")
    (tmp_path / "s0.tar").touch()
    with pytest.raises(ExportError, match="must not exist yet"):
        export_webdataset(store, str(tmp_path / "s%d.tar"), labels="true")
    for pattern in ("fixed.tar", "%s%s.tar", "%d%d", "%"):
        with pytest.raises(InputError, match="pattern"):
            export_webdataset(store, pattern, labels="true")
    with pytest.raises(InputError, match="labels must be one of"):
        export_webdataset(store, "s%d.tar", labels="best")
    for bad in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="max_count"):
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
    with RetentionStore(tmp_path / "s", budget_bytes=1_000_000) as store:
        store.put(sample(), Observation(0, observation().logits, {}), Decision(False, 0.0, None, "x"))
        assert export_webdataset(store, str(tmp_path / "s%d.tar"), labels="true") == []
        assert export_image_folder(store, Path(tmp_path / "out"), labels="true") == 0
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "records.jsonl"]
