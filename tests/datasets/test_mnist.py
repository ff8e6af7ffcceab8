"""MNIST: the packaged digits, the full set if its files are there, damaged files."""

import gzip
import io
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image
from support import require_data

from drip.datasets import CACHE_VARIABLE, DATA_VARIABLE, LOADERS, ImageDataset, RemoteFile, load, load_mnist
from drip.datasets.mnist import SOURCES
from drip.errors import DripError, InputError, SourceError
from drip.files import sha256_hex
from drip.sources import DatasetSource

MNIST_FILES = [
    f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]


@pytest.fixture
def packaged(monkeypatch, tmp_path):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "no-cache"))
    return load_mnist()


def test_packaged_digits_are_the_test_part_of_mnist(packaged):
    assert packaged.images.shape == (10_000, 28, 28)
    assert packaged.images.dtype == np.uint8
    assert packaged.labels.dtype == np.int64
    assert "10,000" in packaged.name
    # Class counts of the published test set.
    assert np.bincount(packaged.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert packaged.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_samples_are_png_files_with_the_true_label(packaged):
    samples = list(packaged.samples([3, 9_999]))
    assert [sample.id for sample in samples] == ["000003", "009999"]
    for sample, row in zip(samples, (3, 9_999), strict=True):
        assert sample.label == packaged.labels[row]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample.data))), packaged.images[row])


def test_inputs_are_the_samples_as_the_input_spec_prepares_them(packaged):
    rows = [0, 17, 4_242]
    prepared = [packaged.spec.prepare(s.data, s.media_type) for s in packaged.samples(rows)]
    np.testing.assert_array_equal(packaged.inputs(rows), np.stack(prepared))


def test_colour_data_set_has_three_channels():
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    dataset = ImageDataset("colours", images, np.arange(4), tuple("abcd"))
    assert len(dataset) == 4
    assert dataset.spec.shape == (3, 6, 5)
    prepared = [dataset.spec.prepare(s.data, s.media_type) for s in dataset.samples(range(4))]
    np.testing.assert_array_equal(dataset.inputs(range(4)), np.stack(prepared))


@pytest.fixture
def mnist_folder():
    return require_data("mnist")


def test_full_set_is_training_part_then_test_part(mnist_folder, packaged, monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(mnist_folder.parent))
    full = load_mnist()
    assert full.images.shape == (70_000, 28, 28)
    np.testing.assert_array_equal(full.images[60_000:], packaged.images)
    np.testing.assert_array_equal(full.labels[60_000:], packaged.labels)
    assert full.labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_data_folder_without_mnist_gives_the_packaged_part(monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "no-cache"))
    assert len(load_mnist()) == 10_000


def test_folder_without_one_of_the_files_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz does not exist") as caught:
        load_mnist(tmp_path)
    assert caught.value.code == "dataset-missing"


def original(name):
    return (files("drip") / "data" / f"{name}.gz").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda data: b"no gzip" + data,
        lambda data: data[:2000] + b"\0\0\0\0" + data[2004:],
        lambda data: gzip.compress(gzip.decompress(data)[:-1] + b"\xff"),
    ],
    ids=["truncated", "empty", "no-gzip", "flipped", "another-content"],
)
def test_damaged_file_is_an_error_with_its_path(damage, tmp_path):
    from drip.datasets.mnist import _read_idx

    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        data = original(name)
        (tmp_path / f"{name}.gz").write_bytes(damage(data) if "labels" in name else data)
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte") as caught:
        _read_idx(tmp_path, "t10k-labels-idx1-ubyte", 8)
    assert caught.value.code == "dataset-damaged"
    assert str(tmp_path) in str(caught.value)


# -- the download --------------------------------------------------------------------------------------


def sources_of(server, folder):
    made = []
    for name in MNIST_FILES:
        data = (folder / name).read_bytes()
        (server.folder / name).write_bytes(data)
        made.append(RemoteFile(server.url + name, f"mnist/{name}", len(data), sha256_hex(data)))
    return made


@pytest.mark.slow
def test_all_digits_are_downloaded_once(mnist_folder, server, cache, packaged, monkeypatch):
    sources = sources_of(server, mnist_folder)
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    server.cuts = [1_000_000]
    calls = []
    full = load_mnist(download=True, cache=cache, sources=sources, progress=lambda *call: calls.append(call))
    assert full.images.shape == (70_000, 28, 28)
    np.testing.assert_array_equal(full.images[60_000:], packaged.images)
    total = sum(source.n_bytes for source in sources)
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)
    assert len(server.requests) == 5
    assert len(load_mnist(download=True, cache=cache, sources=sources)) == 70_000
    assert len(load("mnist", cache=cache)) == 70_000
    assert len(server.requests) == 5


def test_an_incomplete_download_is_not_used(mnist_folder, server, cache, monkeypatch):
    sources = sources_of(server, mnist_folder)
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    (server.folder / MNIST_FILES[2]).unlink()
    with pytest.raises(DripError, match="HTTP 404"):
        load_mnist(download=True, cache=cache, sources=sources)
    assert len(load_mnist(cache=cache)) == 10_000


def test_files_in_a_named_folder_are_not_downloaded(mnist_folder, cache):
    assert len(load_mnist(mnist_folder, download=True, cache=cache, sources=())) == 70_000
    assert len(load_mnist(mnist_folder.parent, cache=cache)) == 70_000


def test_the_sources_are_the_original_files():
    assert [source.n_bytes for source in SOURCES] == [9_912_422, 28_881, 1_648_877, 4_542]
    assert {len(source.sha256) for source in SOURCES} == {64}
    assert [source.path for source in SOURCES] == [f"mnist/{name}" for name in MNIST_FILES]


# -- by name -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "mnist"])
def test_a_missing_set_is_an_error_with_the_call_that_downloads_it(name, cache):
    with pytest.raises(InputError, match=rf'load\("{name}", download=True\) downloads it \(\d+ MB') as caught:
        load(name, cache=cache)
    assert caught.value.code == "dataset-missing"
    assert str(cache) in str(caught.value)


def test_an_unknown_name_is_an_error_with_the_known_ones():
    with pytest.raises(InputError, match="'imagenet'; use mnist, cifar10, tomato, speech_commands"):
        load("imagenet")


@pytest.mark.usefixtures("cache")
def test_a_stream_by_name_is_that_set_or_an_error_with_what_is_missing():
    assert len(DatasetSource.by_name("mnist")) == 10_000
    with pytest.raises(SourceError) as caught:
        DatasetSource.by_name("cifar10")
    assert caught.value.code == "dataset-missing"
    with pytest.raises(SourceError) as caught:
        DatasetSource.by_name("imagenet")
    assert caught.value.code == "source-url"


def test_columns_of_different_lengths_are_an_error(packaged):
    for change in ({"labels": packaged.labels[:5]}, {"groups": packaged.labels[:5]}, {"encoded": (b"x",)}):
        with pytest.raises(InputError, match="entries for 10000 samples"):
            replace(packaged, **change)


def test_encoded_sizes_are_those_of_the_samples(packaged):
    sizes = packaged.encoded_sizes([5, 6])
    assert sizes.dtype == np.int64
    assert sizes.tolist() == [len(sample.data) for sample in packaged.samples([5, 6])]
