"""Speech Commands: the subset, the original archives and their download, speakers, damaged files."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
import soundfile
from support import require_data

from drip.datasets import RemoteFile, load, load_speech_commands, split_rows
from drip.datasets.speech_commands import ARCHIVES, SOURCES, SUBSET
from drip.errors import InputError

WORDS = ("down", "eight", "five", "go", "left", "one", "right", "up", "zero")


def sound(clip, kind="WAV", rate=16_000):
    buffer = io.BytesIO()
    soundfile.write(buffer, clip, rate, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        folder = tarfile.TarInfo(".")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def noise(seed, n=16_000):
    return np.random.default_rng(seed).integers(-3000, 3000, n).astype(np.int16)


def original(n=4):
    """Members as in the original archives: words, noise, lists."""
    members = {
        "./README.md": b"text",
        "./_background_noise_/pink_noise.wav": sound(noise(99, 50_000)),
        "./testing_list.txt": b"bed/0a7c2a8d_nohash_0.wav",
    }
    for word in ("yes", "bed"):
        for k in reversed(range(n)):
            members[f"./{word}/{k % 3:08x}_nohash_{k}.wav"] = sound(noise(k + len(word)))
    return members


# -- the real clips ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subset():
    return require_data(SUBSET)


@pytest.fixture(scope="module")
def whole(subset):
    return load_speech_commands(folder=subset.parent)


@pytest.mark.slow
def test_all_clips_are_there_in_a_fixed_order(whole, subset):
    assert whole.clips.shape == (3600, 16_000)
    assert whole.clips.dtype == np.int16
    assert whole.sample_rate == 16_000
    assert whole.class_names == WORDS
    assert np.bincount(whole.labels).tolist() == [400] * 9
    with zipfile.ZipFile(subset) as opened:
        names = sorted(opened.namelist())
        assert [opened.read(name) for name in names] == list(whole.encoded)
    speakers = np.array([name.split("/")[1].split("_nohash_")[0] for name in names])
    assert len(np.unique(whole.groups)) == len(set(speakers)) == 449
    assert len({*zip(speakers.tolist(), whole.groups.tolist(), strict=True)}) == 449


def test_samples_are_the_files_as_they_were_found(whole):
    rows = [0, 1_000, 3_599]
    samples = list(whole.samples(rows))
    assert {sample.media_type for sample in samples} == {"audio/flac"}
    prepared = [whole.spec.prepare(sample.data, sample.media_type) for sample in samples]
    np.testing.assert_array_equal(whole.inputs(rows), np.stack(prepared))
    assert whole.inputs(rows).shape == (3, 1, 16_000)
    assert whole.encoded_sizes(rows).tolist() == [len(sample.data) for sample in samples]


def test_no_clip_occurs_twice(whole):
    assert len({clip.tobytes() for clip in whole.clips}) == 3600


def test_some_words_are_the_same_rows_in_the_same_order(whole, subset):
    some = load_speech_commands(("up", "go"), folder=subset.parent)
    assert some.class_names == ("go", "up")
    rows = np.isin(whole.labels, [WORDS.index("go"), WORDS.index("up")])
    np.testing.assert_array_equal(some.clips, whole.clips[rows])
    assert load_speech_commands("go", folder=subset.parent).class_names == ("go",)


def test_a_split_keeps_speakers_on_one_side(whole):
    parts = split_rows(len(whole), (0.4, 0.2, 0.4), 0, whole.groups)
    assert sum(len(np.unique(whole.groups[part])) for part in parts) == 449
    for part, share in zip(parts, (0.4, 0.2, 0.4), strict=True):
        assert abs(len(part) / 3600 - share) < 0.02


def test_the_original_format_gives_the_same_clips_and_speakers(whole, subset, server, cache):
    rows = np.arange(0, 3600, 40)
    with zipfile.ZipFile(subset) as opened:
        names = np.array(sorted(opened.namelist()))[rows]
    members = {
        f"./{name.replace('.flac', '.wav')}": sound(whole.clips[row])
        for name, row in zip(names.tolist(), rows, strict=True)
    }
    write_tar(server.folder / ARCHIVES["0.01"], dict(reversed(members.items())))
    data = (server.folder / ARCHIVES["0.01"]).read_bytes()
    source = RemoteFile(
        server.url + ARCHIVES["0.01"], ARCHIVES["0.01"], len(data), hashlib.sha256(data).hexdigest()
    )
    server.cuts = [len(data) // 3]
    some = load_speech_commands(version="0.01", download=True, cache=cache, sources={"0.01": source})
    assert len(server.requests) == 2
    np.testing.assert_array_equal(some.clips, whole.clips[rows])
    np.testing.assert_array_equal(some.labels, whole.labels[rows])
    same = some.groups[:, None] == some.groups[None]
    np.testing.assert_array_equal(same, whole.groups[rows][:, None] == whole.groups[rows][None])
    # Without the network, and as FLAC without loss.
    again = load("speech_commands", cache=cache)
    assert len(server.requests) == 2
    decoded, _ = soundfile.read(io.BytesIO(next(again.samples([5])).data), dtype="int16")
    np.testing.assert_array_equal(decoded, again.clips[5])


# -- formats -------------------------------------------------------------------------------------------


def test_words_are_read_from_an_original_archive_and_nothing_else(tmp_path):
    write_tar(tmp_path / ARCHIVES["0.02"], original())
    dataset = load_speech_commands(folder=tmp_path)
    assert dataset.class_names == ("bed", "yes")
    assert "speech_commands_v0.02" in dataset.name
    assert len(dataset) == 8
    np.testing.assert_array_equal(dataset.clips[0], noise(3))
    # 00000000_nohash_0, 00000000_nohash_3, 00000001_nohash_1, 00000002_nohash_2, of both words
    assert dataset.groups.tolist() == [0, 0, 1, 2] * 2
    assert dataset.encoded is None


def test_short_clips_are_padded_and_long_ones_cut(tmp_path):
    members = {"yes/0_nohash_0.wav": sound(noise(0, 9_000)), "yes/0_nohash_1.wav": sound(noise(1, 17_000))}
    write_tar(tmp_path / ARCHIVES["0.01"], members)
    dataset = load_speech_commands(folder=tmp_path)
    np.testing.assert_array_equal(dataset.clips[0], np.pad(noise(0, 9_000), (0, 7_000)))
    np.testing.assert_array_equal(dataset.clips[1], noise(1, 17_000)[:16_000])
    prepared = [dataset.spec.prepare(data, "audio/wav") for data in members.values()]
    np.testing.assert_array_equal(dataset.inputs([0, 1]), np.stack(prepared))


def test_an_archive_with_all_words_is_preferred_to_an_earlier_one_without(tmp_path):
    with zipfile.ZipFile(tmp_path / SUBSET, "w") as opened:
        opened.writestr("go/0_nohash_0.flac", sound(noise(0), "FLAC"))
    write_tar(tmp_path / ARCHIVES["0.01"], original())
    assert load_speech_commands(folder=tmp_path).class_names == ("go",)
    assert load_speech_commands(["bed"], folder=tmp_path).class_names == ("bed",)
    assert load_speech_commands(version="0.01", folder=tmp_path).class_names == ("bed", "yes")
    with pytest.raises(
        InputError, match=r"9words\.zip without bed, no; .*v0\.01\.tar\.gz without go, no"
    ) as caught:
        load_speech_commands(["bed", "go", "no"], folder=tmp_path)
    assert caught.value.code == "dataset-missing"


def test_the_search_order_is_the_data_folder_then_the_cache(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("DRIP_DATA", str(tmp_path / "data"))
    write_tar(tmp_path / "cache" / ARCHIVES["0.02"], original(2))
    assert len(load_speech_commands(cache=tmp_path / "cache")) == 4
    monkeypatch.setenv("DRIP_CACHE", str(tmp_path / "cache"))
    assert len(load("speech_commands")) == 4
    write_tar(tmp_path / "data" / ARCHIVES["0.02"], original(3))
    assert len(load_speech_commands()) == 6
    with pytest.raises(InputError, match=f"does not exist in {tmp_path}") as caught:
        load_speech_commands(folder=tmp_path)
    assert caught.value.code == "dataset-missing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": "0.03"}, "version must be one of 0.01, 0.02 or None, got '0.03'"),
        ({"words": []}, "words is empty; name at least one word"),
        ({}, r'load\("speech_commands", download=True\) downloads it \(2429 MB'),
        ({"version": "0.01"}, r"downloads it \(1489 MB"),
    ],
)
def test_arguments_that_cannot_be_satisfied_are_an_error(arguments, message, cache):
    with pytest.raises(InputError, match=message):
        load_speech_commands(cache=cache, **arguments)


@pytest.mark.parametrize(
    "members",
    [
        {"yes/0_nohash_0.wav": b"RIFF"},
        {"yes/0_nohash_0.wav": sound(noise(0), rate=8_000)},
        {"yes/0_nohash_0.wav": sound(np.stack([noise(0), noise(1)], axis=1))},
    ],
)
def test_a_damaged_clip_is_an_error_with_the_path(members, tmp_path):
    write_tar(tmp_path / ARCHIVES["0.02"], members)
    with pytest.raises(InputError) as caught:
        load_speech_commands(folder=tmp_path)
    assert caught.value.code == "dataset-damaged"
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", [SUBSET, ARCHIVES["0.02"]])
def test_a_truncated_archive_is_an_error(name, tmp_path):
    members = {f"yes/0_nohash_{k}.{'flac' if 'zip' in name else 'wav'}": noise(k) for k in range(5)}
    if "zip" in name:
        with zipfile.ZipFile(tmp_path / name, "w") as opened:
            for member, clip in members.items():
                opened.writestr(member, sound(clip, "FLAC"))
    else:
        write_tar(tmp_path / name, {member: sound(clip) for member, clip in members.items()})
    data = (tmp_path / name).read_bytes()
    for keep in (len(data) // 2, len(data) - 30, 5, 0):
        (tmp_path / name).write_bytes(data[:keep])
        with pytest.raises(InputError) as caught:
            load_speech_commands(folder=tmp_path)
        assert caught.value.code == "dataset-damaged"


def test_hostile_member_names_are_neither_read_nor_written(tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    hostile = {"../yes/0_nohash_0.wav": b"x", "/yes/0_nohash_1.wav": b"x", "yes/../../0_nohash_2.wav": b"x"}
    write_tar(folder / ARCHIVES["0.02"], {**hostile, **original(1)})
    assert len(load_speech_commands(folder=folder)) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", ARCHIVES["0.02"]]


def test_the_sources_are_the_published_ones():
    assert SOURCES["0.02"].n_bytes == 2_428_923_189
    assert SOURCES["0.01"].url == "http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz"
