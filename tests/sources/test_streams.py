"""Sources: folders and data sets in a fixed order, positions of one source only, URLs."""

import importlib
import os
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
from support import require_module

import drip.sources.mqtt.address
from drip.datasets import ImageDataset
from drip.errors import SourceError
from drip.media import MEDIA_TYPES
from drip.sources import SCHEMES, DatasetSource, FolderSource, open_source
from drip.testing import check_source

SMALL = ImageDataset(
    "small",
    np.random.default_rng(0).integers(0, 256, (9, 4, 4), dtype=np.uint8),
    np.arange(9) % 3,
    ("a", "b", "c"),
)


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "a/1.png", "a/10.png", "top.WAV", "b/deep/er/3.npy"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def ids(source, max_samples=100):
    return [sample.id for batch in source.batches(max_samples) for sample in batch]


ALL = ["a/1.png", "a/10.png", "b/2.png", "b/deep/er/3.npy", "top.WAV"]


# -- folders -------------------------------------------------------------------------------------------


def test_folder_is_a_source(folder):
    check_source(lambda: FolderSource(folder))


def test_files_of_all_depths_are_in_the_order_of_their_paths(folder):
    source = FolderSource(folder)
    assert ids(source) == ALL
    assert len(source) == 5
    assert source.subfolders == ("a", "b", "er")


def test_sample_carries_bytes_type_and_time(folder):
    os.utime(folder / "top.WAV", (1_600_000_000.5, 1_600_000_000.5))
    *_, last = next(FolderSource(folder).batches(10))
    assert last.data == b"top.WAV"
    assert last.media_type == "audio/wav"
    assert last.time_s == 1_600_000_000.5
    assert last.label is None


def test_every_known_suffix_is_read_in_any_case(tmp_path):
    for suffix in MEDIA_TYPES:
        (tmp_path / f"x{suffix}").write_bytes(b"1")
        (tmp_path / f"y{suffix.upper()}").write_bytes(b"1")
    (batch,) = FolderSource(tmp_path).batches(100)
    assert [sample.media_type for sample in batch[: len(MEDIA_TYPES)]] == [
        MEDIA_TYPES[suffix] for suffix in sorted(MEDIA_TYPES)
    ]
    assert len(batch) == 2 * len(MEDIA_TYPES)


def test_hidden_files_hidden_folders_and_unknown_suffixes_are_skipped(folder):
    for name in (".hidden.png", ".cache/thumb.png", "a/.more/x.png", "notes.txt", "a/clip.gif", "png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert ids(FolderSource(folder)) == ALL


def test_labels_are_the_names_of_the_folders(folder):
    (batch,) = FolderSource(folder, class_names=("b", "a")).batches(10)
    assert {sample.id: sample.label for sample in batch} == {
        "a/1.png": 1,
        "a/10.png": 1,
        "b/2.png": 0,
        "b/deep/er/3.npy": None,
        "top.WAV": None,
    }


def test_links_to_files_are_read_and_links_to_folders_are_not_followed(folder):
    (folder / "a" / "link.png").symlink_to(folder / "b" / "2.png")
    (folder / "loop").symlink_to(folder)
    source = FolderSource(folder)
    assert ids(source) == ["a/1.png", "a/10.png", "a/link.png", *ALL[2:]]
    (batch,) = FolderSource(folder).batches(10)
    assert batch[2].data == b"b/2.png"


def test_dangling_link_is_skipped(folder):
    (folder / "a" / "gone.png").symlink_to(folder / "nowhere.png")
    assert ids(FolderSource(folder)) == ALL


def test_a_pipe_is_skipped_and_does_not_block(folder):
    os.mkfifo(folder / "pipe.png")
    assert ids(FolderSource(folder)) == ALL


def test_a_file_that_would_fill_the_memory_is_rejected_and_the_others_are_read(folder):
    with (folder / "a" / "11.png").open("wb") as file:
        file.write(b"\x89PNG")
        file.truncate(2**40)
    *_, bad, _, _, _ = next(FolderSource(folder).batches(10))
    assert bad.id.startswith("a/11.png/")
    assert bad.data == b"\x89PNG" + bytes(1020)
    assert bad.rejected == "the file has 1099511627776 bytes, more than 268435456"


def test_long_path_has_a_unique_id_that_fits_into_a_store(tmp_path):
    deep = tmp_path.joinpath(*["d" * 200] * 3)
    deep.mkdir(parents=True)
    for name in ("1.png", "2.png"):
        (deep / name).write_bytes(b"x")
    first, second = ids(FolderSource(tmp_path))
    assert first != second
    assert len(first.encode()) <= 512
    assert first.endswith("1.png")


def test_file_that_vanished_is_an_error_after_the_batches_before_it(folder):
    source = FolderSource(folder)
    batches = source.batches(2)
    assert [sample.id for sample in next(batches)] == ALL[:2]
    (folder / "b" / "2.png").unlink()
    with pytest.raises(SourceError, match=r"cannot read .*2\.png") as caught:
        next(batches)
    assert caught.value.code == "source-unavailable"


def test_files_are_read_only_when_their_batch_is_requested(folder):
    batches = FolderSource(folder).batches(1)
    next(batches)
    (folder / "a" / "10.png").write_bytes(b"changed")
    assert next(batches)[0].data == b"changed"


def test_names_that_are_not_utf8_become_printable_ids(folder):
    raw = os.fsencode(folder / "a") + b"/\xff\xfe.png"
    Path(os.fsdecode(raw)).write_bytes(b"odd")
    source = FolderSource(folder)
    (batch,) = source.batches(10)
    odd = next(sample for sample in batch if sample.data == b"odd")
    assert odd.id == "a/\\xff\\xfe.png"
    assert source.cursor.encode()
    check_source(lambda: FolderSource(folder))


def test_position_names_the_folder_and_the_last_file(folder):
    source = FolderSource(folder)
    assert source.cursor is None
    batches = source.batches(2)
    next(batches)
    assert source.cursor == f"{folder.resolve()}//a/10.png"


def test_position_of_another_folder_starts_at_the_first_file(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("day-2")
    (other / "a").mkdir()
    (other / "a" / "1.png").write_bytes(b"new")
    first = FolderSource(folder)
    ids(first)
    second = FolderSource(other)
    second.seek(first.cursor)
    assert ids(second) == ["a/1.png"]


def test_position_survives_another_spelling_of_the_folder(folder, monkeypatch):
    source = FolderSource(folder)
    next(source.batches(2))
    monkeypatch.chdir(folder.parent)
    again = FolderSource(folder.name)
    again.seek(source.cursor)
    assert ids(again) == ALL[2:]


def test_position_at_a_deleted_file_continues_at_the_next(folder):
    source = FolderSource(folder)
    next(source.batches(2))
    (folder / "a" / "10.png").unlink()
    again = FolderSource(folder)
    again.seek(source.cursor)
    assert ids(again) == ALL[2:]


def test_new_files_that_sort_after_the_position_are_read(folder):
    source = FolderSource(folder)
    ids(source)
    (folder / "z.png").write_bytes(b"new")
    again = FolderSource(folder)
    again.seek(source.cursor)
    assert ids(again) == ["z.png"]


@pytest.mark.parametrize(
    ("name", "message", "code"),
    [
        ("missing", "missing does not exist", "path-missing"),
        ("file.png", "file.png is not a folder", "source-unavailable"),
        ("a\0b", "cannot open", "source-unavailable"),
    ],
)
@pytest.mark.parametrize("scheme", ["", "watch:"])
def test_a_path_that_is_not_a_folder_is_an_error(name, message, code, scheme, tmp_path):
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(SourceError, match=message) as caught:
        open_source(f"{scheme}{tmp_path / name}")
    assert caught.value.code == code


def test_folder_without_samples_is_an_error_with_the_suffixes(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(SourceError, match=r"\.png") as caught:
        FolderSource(tmp_path)
    assert caught.value.code == "source-empty"


def test_folder_that_cannot_be_listed_is_an_error_and_not_a_gap(folder, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match=r"cannot list .*deep") as caught:
        FolderSource(folder)
    assert caught.value.code == "source-unavailable"


# -- data sets -----------------------------------------------------------------------------------------


def test_data_set_is_a_source():
    check_source(lambda: DatasetSource(SMALL))
    check_source(lambda: DatasetSource(SMALL, [5, 1, 8, 0]))


def test_rows_are_in_the_given_order_with_their_labels():
    source = DatasetSource(SMALL, [5, 1, 8])
    (batch,) = source.batches(10)
    assert [(sample.id, sample.label) for sample in batch] == [("000005", 2), ("000001", 1), ("000008", 2)]
    assert len(source) == 3
    assert source.cursor.startswith("3 of small (")


def position(text):
    """The cursor of all rows of the small set at this position."""
    return DatasetSource(SMALL).cursor.replace("0 of", f"{text} of", 1)


def test_position_of_another_source_or_of_other_rows_starts_at_the_first_row():
    source = DatasetSource(SMALL)
    other_rows = DatasetSource(SMALL, [1, 2, 3, 4, 5])
    next(other_rows.batches(3))
    for cursor in ("3 of another set", "/data//a.png", other_rows.cursor):
        source.seek(position(4))
        assert source.cursor == position(4)
        source.seek(cursor)
        assert source.cursor == position(0)


@pytest.mark.parametrize("text", ["10", "-1", "x", ""])
def test_position_outside_the_data_set_is_an_error(text):
    with pytest.raises(SourceError, match="0 to 9"):
        DatasetSource(SMALL).seek(position(text))


def test_data_set_by_name():
    assert len(DatasetSource.by_name("mnist")) in (10_000, 70_000)
    with pytest.raises(SourceError, match=r"'cifar'; use mnist") as caught:
        DatasetSource.by_name("cifar")
    assert caught.value.code == "source-url"


# -- URLs ----------------------------------------------------------------------------------------------


def test_a_path_and_a_file_url_open_the_same_folder(folder):
    blank = folder / "with blank"
    blank.mkdir()
    (blank / "x.png").write_bytes(b"x")
    for url in (str(blank), blank.as_uri()):
        assert "%" in blank.as_uri()
        assert ids(open_source(url)) == ["x.png"]


def test_a_data_set_url_opens_the_data_set():
    for url in ("dataset:mnist", "dataset://mnist"):
        assert isinstance(open_source(url), DatasetSource)


@pytest.mark.parametrize("url", ["amqp://host/topic", "http://host/x.png", "s3://bucket"])
def test_unknown_scheme_is_an_error_with_the_known_ones(url):
    with pytest.raises(SourceError) as caught:
        open_source(url)
    assert caught.value.code == "source-url"
    assert all(f"{name}:" in str(caught.value) for name in SCHEMES)
    assert url in str(caught.value)


# -- documentation -------------------------------------------------------------------------------------


def test_every_source_states_its_delivery_and_the_page_of_streams_has_its_scheme():
    require_module("paho.mqtt", 'pip install "drip-edge[mqtt]"')
    for found in pkgutil.iter_modules(drip.sources.__path__):
        module = importlib.import_module(f"drip.sources.{found.name}")
        for name, value in vars(module).items():
            if name.endswith("Source") and isinstance(value, type) and value.__module__ == module.__name__:
                assert "Delivery: at" in value.__doc__, name
    page = (Path(__file__).parents[2] / "docs" / "reference" / "streams.md").read_text()
    for scheme in SCHEMES:
        assert f"`{scheme}:" in page, scheme


def test_page_of_streams_has_every_option():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "streams.md").read_text()
    for option in drip.sources.mqtt.address._DEFAULTS:
        assert f"`{option}`" in page, option
    for url in ("watch:.?nonsense=1", "stdin:?nonsense=1"):
        with pytest.raises(SourceError) as caught:
            open_source(url)
        options = re.findall(r"(\w+)=", str(caught.value))
        assert len(options) >= 2
        for option in options:
            assert f"{option}=" in page, option


@pytest.mark.parametrize("url", ["", "file:", "file://", "watch:", "watch:?poll=1"])
def test_an_empty_folder_is_not_the_current_folder(url, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"an image")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"write '\.' for the current") as caught:
        open_source(url)
    assert caught.value.code == "source-url"


@pytest.mark.parametrize("url", ["photos", "file:photos", "file://photos", "watch:photos", "watch://photos"])
def test_a_folder_may_be_relative(url, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"an image")
    monkeypatch.chdir(tmp_path)
    (sample,) = next(
        batch for batch in open_source(url).batches(10) if batch
    )  # a watched folder yields empty ones first
    assert (sample.id, sample.data, sample.media_type) == ("a.png", b"an image", "image/png")


@pytest.mark.parametrize(
    "start", ["file://localhost", "file://LOCALHOST", "watch://localhost", "file://", ""]
)
def test_a_folder_of_this_machine_is_named_in_any_usual_way(start, tmp_path):
    (tmp_path / "a.png").write_bytes(b"an image")
    (sample,) = next(batch for batch in open_source(f"{start}{tmp_path}").batches(10) if batch)
    assert sample.data == b"an image"


def test_a_data_set_has_no_options():
    with pytest.raises(SourceError, match="no option 'seed'") as refused:
        open_source("dataset:mnist?seed=1")
    assert refused.value.code == "source-url"
