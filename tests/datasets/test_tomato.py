"""Tomato leaves: the small archive, the originals and their download, groups of photographs of one leaf."""

import csv
import hashlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from support import require_data

from drip.datasets import load, load_tomato, split_rows
from drip.datasets.tomato import (
    ARCHIVE,
    ORIGINALS,
    SOURCE,
    LeafSource,
    blob_sha1,
    leaf_groups,
    packaged_index,
)
from drip.errors import DripError, InputError

FIELDS = ("file", "source_path", "source_blob_sha1", "plantvillage_name")
CLASSES = [
    "Bacterial_spot",
    "Early_blight",
    "Late_blight",
    "Leaf_Mold",
    "Septoria_leaf_spot",
    "Spider_mites",
    "Target_Spot",
    "Yellow_Leaf_Curl_Virus",
    "healthy",
    "mosaic_virus",
]


def index_of(rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([FIELDS, *rows])
    return text.getvalue().encode()


# -- the real photographs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive():
    return require_data(ARCHIVE)


@pytest.fixture(scope="module")
def whole(archive):
    return load_tomato(archive.parent)


@pytest.mark.slow
def test_all_photographs_are_there_in_a_fixed_order(whole, archive):
    assert whole.images.shape == (5773, 128, 128, 3)
    assert whole.class_names == tuple(CLASSES)
    assert np.bincount(whole.labels).tolist() == [600] * 9 + [373]
    assert (np.diff(whole.labels) >= 0).all()
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith(".jpg"))
        assert [opened.read(name) for name in names] == list(whole.encoded)


def test_samples_are_the_original_files(whole):
    rows = [0, 700, 5772]
    samples = list(whole.samples(rows))
    assert {sample.media_type for sample in samples} == {"image/jpeg"}
    prepared = [whole.spec.prepare(sample.data, sample.media_type) for sample in samples]
    np.testing.assert_array_equal(whole.inputs(rows), np.stack(prepared))
    assert whole.encoded_sizes(range(5773)).tolist() == [len(data) for data in whole.encoded]


def test_groups_are_leaves_or_blocks_and_no_photograph_occurs_twice(whole):
    sizes = np.bincount(whole.groups)
    assert len(sizes) == 3080
    assert sizes.max() == 32
    unnamed = [CLASSES.index(name) for name in ("Bacterial_spot", "Spider_mites", "Target_Spot")]
    assert (sizes[whole.groups[np.isin(whole.labels, unnamed)]] == 1).all()
    for group in np.flatnonzero(sizes > 1)[::50]:
        assert len(set(whole.labels[whole.groups == group].tolist())) == 1
    assert len({image.tobytes() for image in whole.images}) == 5773


def test_a_split_keeps_groups_whole_and_sizes_near_the_shares(whole):
    parts = split_rows(len(whole), (0.4, 0.2, 0.4), 0, whole.groups)
    sides = [set(whole.groups[part].tolist()) for part in parts]
    assert sum(map(len, sides)) == 3080
    for part, share in zip(parts, (0.4, 0.2, 0.4), strict=True):
        assert abs(len(part) / 5773 - share) < 0.01


def test_the_packaged_list_is_that_of_the_archive(archive):
    with zipfile.ZipFile(archive) as opened:
        assert opened.read("index.csv") == packaged_index()


# -- the list ------------------------------------------------------------------------------------------


def test_the_packaged_list_names_every_original_with_its_digest():
    leaves = SOURCE.leaves()
    assert len(leaves) == len({leaf.source_path for leaf in leaves}) == 5773
    assert all(len(bytes.fromhex(leaf.source_blob_sha1)) == 20 for leaf in leaves)
    assert sum(not leaf.plantvillage_name for leaf in leaves) == 2174
    assert "44edec4dd8b81469abd30f28cf935d30b352b9d8" in SOURCE.base_url


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["U___GHLB_PS Leaf 46.2 Day 18.jpg", "U___GHLB_PS Leaf 46 Day 13.jpg"], [0, 0]),
        (["U___GHLB2 Leaf 124.2.JPG", "U___GHLB2ES Leaf 124.1.JPG", "U___GHLB2 Leaf 124.JPG"], [0, 1, 0]),
        (["U___GH_HL Leaf 380.1JPG.JPG", "U___GH_HL Leaf 380.JPG"], [0, 0]),
        (["U___GHLB_PS Leaf 27 day 13.jpg", "U___GHLB_PS Leaf 27.4 Day 13.jpg"], [0, 0]),
        (["U___RS_Erly.B 6336.JPG", "U___RS_Erly.B 6367.JPG", "U___RS_Erly.B 6368.JPG"], [0, 0, 1]),
        (["U___RS_HL 0032.JPG", "U___RS_HL 63.JPG", "U___RS_Late.B 0033.JPG"], [0, 0, 1]),
        (["U___2700323949_95aa2eaa01_o.jpg", "", "", "U___2700323949_95aa2eaa01_o.jpg"], [0, 1, 2, 3]),
    ],
)
def test_groups_follow_the_leaf_or_counter_in_the_name(names, groups):
    assert leaf_groups([("a", name) for name in names]).tolist() == groups


def test_photographs_of_two_classes_are_never_one_leaf():
    assert leaf_groups([("a", "RS_HL 1.JPG"), ("b", "RS_HL 1.JPG")]).tolist() == [0, 1]


# -- the originals -------------------------------------------------------------------------------------


@pytest.fixture
def originals():
    """Files of 256 x 256 in folders as in the source repository, with the list of them."""
    generator = np.random.default_rng(0)
    files, rows = {}, []
    for number in range(12):
        class_name = f"Tomato___{CLASSES[number // 4]}"
        small = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=95)
        path = f"augmented set/{class_name}/img_{number}.jpg"
        files[path] = buffer.getvalue()
        name = f"U___RS_HL {number:04d}.JPG" if number % 2 else ""
        rows.append((f"{class_name}/{number % 4:04d}.jpg", path, blob_sha1(buffer.getvalue()), name))
    return files, index_of(rows)


def write_files(folder, files):
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def test_originals_in_a_folder_are_downscaled(originals, tmp_path):
    files, index = originals
    write_files(tmp_path / "checkout", files)
    dataset = load_tomato(tmp_path / "checkout", source=LeafSource("http://nowhere.invalid/", index))
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(np.unique(dataset.groups)) == 9
    for row, data in enumerate(files.values()):
        small = Image.open(io.BytesIO(data)).resize((128, 128), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=90)
        assert dataset.encoded[row] == buffer.getvalue()
        difference = dataset.images[row].astype(int) - np.asarray(small)
        assert abs(difference).mean() < 8


def test_originals_are_downloaded_over_one_connection_into_the_small_archive(originals, server, cache):
    files, index = originals
    write_files(server.folder, files)
    source = LeafSource(server.url, index)
    with pytest.raises(InputError, match=r'load\("tomato", download=True\) downloads it'):
        load_tomato(cache=cache, source=source)
    calls = []
    first = load_tomato(download=True, cache=cache, source=source, progress=lambda *call: calls.append(call))
    assert len(server.requests) == 12
    assert server.connections == 1
    assert calls[-1] == (sum(map(len, files.values())),) * 2
    assert sorted(path.name for path in cache.iterdir()) == [f".{ARCHIVE}.lock", ARCHIVE]
    again = load("tomato", cache=cache, download=True)
    assert len(server.requests) == 12
    assert again.encoded == first.encoded
    np.testing.assert_array_equal(again.groups, first.groups)


def test_an_interrupted_download_continues_with_the_missing_files(originals, server, cache):
    files, index = originals
    write_files(server.folder, files)
    source = LeafSource(server.url, index)

    def stop(*_):
        if len(server.requests) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_tomato(download=True, cache=cache, source=source, progress=stop)
    assert not (cache / ARCHIVE).exists()
    assert len(list((cache / ORIGINALS).rglob("*.jpg"))) == 5
    assert len(load_tomato(download=True, cache=cache, source=source)) == 12
    assert len(server.requests) == 12
    assert not (cache / ORIGINALS).exists()


def test_an_original_with_another_content_is_an_error_and_not_kept(originals, server, cache):
    files, index = originals
    bad = list(files)[3]
    write_files(server.folder, {**files, bad: files[bad] + b"\0"})
    source = LeafSource(server.url, index)
    with pytest.raises(DripError, match=r"img_3\.jpg") as caught:
        load_tomato(download=True, cache=cache, source=source)
    assert caught.value.code == "download-damaged"
    assert len(list((cache / ORIGINALS).rglob("*.jpg"))) == 3
    write_files(server.folder, files)
    assert len(load_tomato(download=True, cache=cache, source=source)) == 12


def test_a_damaged_original_in_a_folder_is_an_error(originals, tmp_path):
    files, index = originals
    write_files(tmp_path, {path: data[:-5] for path, data in files.items()})
    with pytest.raises(InputError) as caught:
        load_tomato(tmp_path, source=LeafSource("http://nowhere.invalid/", index))
    assert caught.value.code == "dataset-damaged"


def test_a_list_that_leads_out_of_the_cache_writes_nothing(originals, server, cache, tmp_path):
    data = next(iter(originals[0].values()))
    (server.folder.parent / "x.jpg").write_bytes(data)
    index = index_of([("a/0.jpg", "../x2.jpg", blob_sha1(data), "")])
    with pytest.raises(InputError, match="below the cache"):
        load_tomato(download=True, cache=cache / "deep", source=LeafSource(server.url, index))
    assert not list(tmp_path.rglob("x2.jpg"))


# -- damaged archives ----------------------------------------------------------------------------------


def write_archive(place, members):
    with zipfile.ZipFile(place / ARCHIVE, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)


def jpeg(side):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, format="JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"a/0.jpg": jpeg(128)},
        {"index.csv": index_of([("a/0.jpg", "s", "0" * 40, "")])},
        {"index.csv": b"file\na/0.jpg\n", "a/0.jpg": jpeg(128)},
        {"index.csv": index_of([("a/0.jpg", "s", "0" * 40, "")]), "a/0.jpg": jpeg(127)},
        {"index.csv": index_of([("a/0.jpg", "s", "0" * 40, "")]), "a/0.jpg": jpeg(1)},
        {"index.csv": index_of([("a/0.jpg", "s", "0" * 40, "")]), "a/0.jpg": jpeg(128)[:300]},
        {"index.csv": index_of([("a/0.jpg", "s", "0" * 40, "")]), "a/0.jpg": b"GIF89a"},
        {"index.csv": b"\xff\xfe"},
    ],
)
def test_a_damaged_archive_is_an_error_with_its_path(members, tmp_path):
    write_archive(tmp_path, members)
    with pytest.raises(InputError) as caught:
        load_tomato(tmp_path)
    assert caught.value.code == "dataset-damaged"
    assert str(tmp_path) in str(caught.value)


def test_a_truncated_archive_is_an_error(tmp_path):
    write_archive(tmp_path, {"index.csv": index_of([("a/0.jpg", "s", "0" * 40, "")]), "a/0.jpg": jpeg(128)})
    data = (tmp_path / ARCHIVE).read_bytes()
    (tmp_path / ARCHIVE).write_bytes(data[:-40])
    with pytest.raises(InputError) as caught:
        load_tomato(tmp_path)
    assert caught.value.code == "dataset-damaged"


def test_the_digest_is_that_of_git():
    assert blob_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert hashlib.sha1(b"blob 6\0hello\n").hexdigest() == blob_sha1(b"hello\n")
