"""CIFAR-10: strips and the original archive give the same rows; damaged and hostile files are harmless."""

import hashlib
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import require_data

from drip.datasets import RemoteFile, load, load_cifar10
from drip.datasets.cifar10 import ARCHIVE, BATCHES, CLASS_NAMES, SOURCE, STRIPS
from drip.errors import InputError

# -- a writer of pickles as Python 2 wrote the batches -------------------------------------------------


def old_bytes(data):
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data


def old_pickle(value):
    """Protocol 2 of Python 2: strings of bytes, an array through ``numpy.core.multiarray``."""

    def write(item):
        if isinstance(item, bytes):
            return old_bytes(item)
        if isinstance(item, int):
            return b"J" + struct.pack("<i", item)
        if isinstance(item, list):
            return b"](" + b"".join(map(write, item)) + b"e"
        if isinstance(item, dict):
            return b"}(" + b"".join(write(key) + write(entry) for key, entry in item.items()) + b"u"
        assert isinstance(item, np.ndarray)
        shape = b"(" + b"".join(map(write, item.shape)) + b"t"
        dtype = b"cnumpy\ndtype\n(" + old_bytes(b"u1") + write(0) + write(1) + b"tR("
        dtype += write(3) + old_bytes(b"|") + b"NNN" + write(-1) + write(-1) + write(0) + b"tb"
        made = (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + write(0) + b"t" + old_bytes(b"b")
        )
        return made + b"tR(" + write(1) + shape + dtype + b"\x89" + old_bytes(item.tobytes()) + b"tb"

    return b"\x80\x02" + write(value) + b"."


def batch_of(images, labels, names):
    return old_pickle(
        {
            b"batch_label": b"training batch 1 of 5",
            b"labels": [int(label) for label in labels],
            b"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1),
            b"filenames": [f"{name}.png".encode() for name in names],
        }
    )


def write_tar(path, members, mode="w:gz", compresslevel=1):
    options = {"compresslevel": compresslevel} if mode == "w:gz" else {}
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def batches_of(rows_of):
    """The six members of the original archive, from the rows of each part in a shuffled order."""
    members = {f"{BATCHES}/readme.html": b"<html>", f"{BATCHES}/batches.meta": old_pickle({b"num_vis": 3072})}
    generator = np.random.default_rng(0)
    for part, batch_names in (("train", [f"data_batch_{k}" for k in range(1, 6)]), ("test", ["test_batch"])):
        images, labels, names = rows_of[part]
        shares = np.array_split(generator.permutation(len(labels)), len(batch_names))
        for name, rows in zip(batch_names, shares, strict=True):
            members[f"{BATCHES}/{name}"] = batch_of(images[rows], labels[rows], [names[row] for row in rows])
    return members


def small_rows(per_class=7):
    """Made-up images, for the tests of damaged files; names that sort across classes."""
    generator = np.random.default_rng(1)
    rows = {}
    for part in ("train", "test"):
        labels = np.repeat(np.arange(10), per_class)
        images = generator.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        rows[part] = images, labels, [f"n{k % per_class}_s_{k:06d}" for k in range(len(labels))]
    return rows


# -- the real images -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strips():
    return require_data(STRIPS)


@pytest.fixture(scope="module")
def whole(strips):
    return load_cifar10(strips.parent)


@pytest.mark.slow
def test_all_images_are_the_published_ones_in_a_fixed_order(whole):
    assert whole.images.shape == (60_000, 32, 32, 3)
    assert whole.images.dtype == np.uint8
    assert whole.class_names == CLASS_NAMES
    assert np.bincount(whole.labels[:50_000]).tolist() == [5000] * 10
    assert np.bincount(whole.labels[50_000:]).tolist() == [1000] * 10
    # Mean and deviation of the training part, as everybody normalises with.
    for channel, mean, deviation in ((0, 125.307, 62.993), (1, 122.950, 62.089), (2, 113.865, 66.705)):
        shares = np.bincount(whole.images[:50_000, ..., channel].ravel(), minlength=256) / (50_000 * 1024)
        average = shares @ np.arange(256)
        assert average == pytest.approx(mean, abs=1e-3)
        assert np.sqrt(shares @ (np.arange(256) - average) ** 2) == pytest.approx(deviation, abs=1e-3)
    digest = hashlib.sha256(whole.images.tobytes() + whole.labels.tobytes()).hexdigest()
    assert digest[:16] == "692caa931e251b59"


def test_no_image_occurs_twice_so_there_are_no_groups(whole):
    assert whole.groups is None
    assert len({image.tobytes() for image in whole.images}) == 60_000


def test_inputs_are_the_samples_as_the_input_spec_prepares_them(whole):
    rows = [0, 4_999, 59_999]
    samples = list(whole.samples(rows))
    prepared = [whole.spec.prepare(sample.data, sample.media_type) for sample in samples]
    np.testing.assert_array_equal(whole.inputs(rows), np.stack(prepared))
    assert whole.inputs(rows).shape == (3, 3, 32, 32)
    assert whole.encoded_sizes(rows).tolist() == [len(sample.data) for sample in samples]
    assert [sample.label for sample in samples] == [0, 0, 9]


@pytest.fixture(scope="module")
def real_rows(strips, whole):
    """All rows with their original names, by part."""
    with tarfile.open(strips) as archive:
        names = json.load(archive.extractfile("names.json"))["names"]
    ends = {"train": slice(0, 50_000), "test": slice(50_000, 60_000)}
    return {
        part: (
            whole.images[rows],
            whole.labels[rows],
            [name for class_name in CLASS_NAMES for name in names[f"{part}/{class_name}"]],
        )
        for part, rows in ends.items()
    }


@pytest.mark.slow
def test_the_original_archive_gives_the_same_rows(whole, real_rows, tmp_path):
    write_tar(tmp_path / ARCHIVE, batches_of(real_rows), compresslevel=0)  # 180 MB: compressing takes longest
    original = load_cifar10(tmp_path)
    np.testing.assert_array_equal(original.images, whole.images)
    np.testing.assert_array_equal(original.labels, whole.labels)
    assert original.name == whole.name


def test_the_archive_is_downloaded_once_and_read_in_place(real_rows, server, cache):
    some = {part: (rows[0][::500], rows[1][::500], rows[2][::500]) for part, rows in real_rows.items()}
    write_tar(server.folder / ARCHIVE, batches_of(some))
    data = (server.folder / ARCHIVE).read_bytes()
    source = RemoteFile(server.url + ARCHIVE, ARCHIVE, len(data), hashlib.sha256(data).hexdigest())
    server.cuts = [len(data) // 2]
    with pytest.raises(InputError, match=r'load\("cifar10", download=True\) downloads it'):
        load_cifar10(cache=cache, source=source)
    first = load_cifar10(download=True, cache=cache, source=source)
    assert len(server.requests) == 2
    np.testing.assert_array_equal(first.images, np.concatenate([some["train"][0], some["test"][0]]))
    np.testing.assert_array_equal(load("cifar10", cache=cache).images, first.images)
    assert len(server.requests) == 2
    assert sorted(path.name for path in cache.iterdir()) == [f".{ARCHIVE}.lock", ARCHIVE]


# -- formats and damage --------------------------------------------------------------------------------


def sorted_rows(rows):
    images, labels = [], []
    for part in ("train", "test"):
        order = sorted(range(len(rows[part][1])), key=lambda k: (rows[part][1][k], rows[part][2][k]))
        images.append(rows[part][0][order])
        labels.append(rows[part][1][order])
    return np.concatenate(images), np.concatenate(labels)


def test_rows_are_sorted_by_part_class_and_name_in_every_format(tmp_path):
    rows = small_rows()
    images, labels = sorted_rows(rows)
    members = batches_of(rows)
    write_tar(tmp_path / ARCHIVE, members)
    from_archive = load_cifar10(tmp_path)
    for name, data in members.items():
        path = tmp_path / "unpacked" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    strips, names = {}, {}
    for part, (start, _) in {"train": (0, 70), "test": (70, 140)}.items():
        for label, class_name in enumerate(CLASS_NAMES):
            block = images[start + 7 * label : start + 7 * label + 7]
            buffer = io.BytesIO()
            Image.fromarray(block.reshape(-1, 32, 3)).save(buffer, format="WEBP", lossless=True, exact=True)
            strips[f"{part}_{class_name}_00.webp"] = buffer.getvalue()
            names[f"{part}/{class_name}"] = [""] * 7
    (tmp_path / "strips").mkdir()
    write_tar(
        tmp_path / "strips" / STRIPS, {"names.json": json.dumps({"names": names}).encode(), **strips}, "w"
    )
    for dataset in (from_archive, load_cifar10(tmp_path / "unpacked"), load_cifar10(tmp_path / "strips")):
        np.testing.assert_array_equal(dataset.images, images)
        np.testing.assert_array_equal(dataset.labels, labels)


def test_images_that_occur_twice_share_a_group(tmp_path):
    rows = small_rows()
    rows["test"][0][:3] = rows["train"][0][5]
    write_tar(tmp_path / ARCHIVE, batches_of(rows))
    dataset = load_cifar10(tmp_path)
    copies = np.flatnonzero((dataset.images == rows["train"][0][5]).all((1, 2, 3)))
    assert len(copies) == 4
    assert len(set(dataset.groups[copies].tolist())) == 1
    assert len(np.unique(dataset.groups)) == 137


class Bomb:
    def __reduce__(self):
        return (Path.write_text, (Path("pwned"), "x"))


@pytest.mark.parametrize(
    "hostile",
    [
        pickle.dumps(Bomb(), protocol=2),
        b"cos\nsystem\n(S'touch pwned'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x05ctypeslib.load_library\x93.",
        pickle.dumps([1, 2]),
        b"",
        b"\x80",
    ],
)
def test_a_hostile_pickle_runs_nothing_and_is_an_error(hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = {**batches_of(small_rows()), f"{BATCHES}/data_batch_3": hostile}
    write_tar(tmp_path / ARCHIVE, members)
    with pytest.raises(InputError) as caught:
        load_cifar10(tmp_path)
    assert caught.value.code == "dataset-damaged"
    assert not (tmp_path / "pwned").exists()


def test_hostile_members_of_the_archive_are_not_written_anywhere(tmp_path):
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    members = {"../x": b"x", "/tmp/drip-x": b"x", f"{BATCHES}/../../y": b"y", **batches_of(small_rows())}
    write_tar(folder / ARCHIVE, members)
    load_cifar10(folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [ARCHIVE, "data", "deep"]
    assert not Path("/tmp/drip-x").exists()


def test_a_link_in_place_of_a_batch_is_not_followed(tmp_path):
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as archive:
        for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
            link = tarfile.TarInfo(f"{BATCHES}/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    with pytest.raises(InputError, match="'data_batch_1'") as caught:
        load_cifar10(tmp_path)
    assert caught.value.code == "dataset-damaged"


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9])
def test_a_truncated_archive_is_an_error_with_its_path(keep, tmp_path):
    write_tar(tmp_path / ARCHIVE, batches_of(small_rows()))
    data = (tmp_path / ARCHIVE).read_bytes()
    (tmp_path / ARCHIVE).write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(InputError) as caught:
        load_cifar10(tmp_path)
    assert caught.value.code == "dataset-damaged"
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "labels", "names", "range", "shape"])
def test_batches_that_do_not_fit_are_an_error(damage, tmp_path):
    images, labels, names = (part[:20] for part in small_rows()["train"])
    members = batches_of(small_rows())
    if damage == "missing":
        del members[f"{BATCHES}/test_batch"]
    elif damage == "shape":
        members[f"{BATCHES}/data_batch_1"] = old_pickle(
            {b"data": images[0, 0], b"labels": [], b"filenames": []}
        )
    else:
        changed = {
            "labels": (labels[:19], names),
            "names": (labels, names[:19]),
            "range": (labels + 5 * (labels == labels.max()) + 9, names),
        }[damage]
        members[f"{BATCHES}/data_batch_1"] = batch_of(images, *changed)
    write_tar(tmp_path / ARCHIVE, members)
    with pytest.raises(InputError) as caught:
        load_cifar10(tmp_path)
    assert caught.value.code == "dataset-damaged"


def test_the_source_is_the_published_one():
    assert SOURCE.url == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert SOURCE.n_bytes == 170_498_071
