"""Files are whole or untouched, durable in order, and digests are stable."""

import errno
import hashlib
import os
import stat

import pytest

from drip.errors import DripError
from drip.files import atomic_writer, canonical_json, sha256_hex, sync_directory, write_atomically


def test_a_file_appears_with_its_bytes_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file.bin"
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failure_in_the_block_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117  # the block is what is tested
        with atomic_writer(path) as handle:
            handle.write(b"half")
            raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_a_reader_sees_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    with atomic_writer(path) as handle:
        handle.write(b"new")
        handle.flush()
        assert path.read_bytes() == b"old"
        (other,) = (entry for entry in tmp_path.iterdir() if entry != path)
        assert other.name.startswith(".file.bin.")
        assert other.name.endswith(".part")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_is_a_drip_error_and_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(DripError, match=r"No space left .*; free space or choose another path") as caught:
        write_atomically(path, b"new")
    assert caught.value.code == "path-not-writable"
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_bytes_are_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    path, steps = tmp_path / "file.bin", []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append((kind, os.fstat(descriptor).st_size if kind == "file" else None))
        fsync(descriptor)

    def traced_replace(*paths):
        steps.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    write_atomically(path, b"12345")
    assert steps == [("file", 5), "rename", ("folder", None)]


@pytest.mark.parametrize(("folder", "code"), [("missing", "path-missing"), ("file", "path-not-writable")])
def test_a_folder_that_is_missing_or_a_file_is_an_error(tmp_path, folder, code):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DripError) as caught:
        write_atomically(tmp_path / folder / "x.json", b"")
    assert caught.value.code == code


def test_a_path_that_is_a_folder_is_an_error(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(DripError, match=r"x\.json is a folder; choose another path") as caught:
        write_atomically(tmp_path / "x.json", b"")
    assert caught.value.code == "path-not-writable"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_syncing_a_folder_closes_what_it_opened(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208
    for _ in range(20):
        sync_directory(tmp_path)
    after = len(os.listdir("/proc/self/fd")) if before else 0  # noqa: PTH208
    assert after <= before


def test_digests_are_sha256():
    assert sha256_hex(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_equal_values_have_equal_json():
    assert canonical_json({"b": [1, 2.5], "a": None}) == canonical_json({"a": None, "b": [1, 2.5]})
    assert canonical_json({"b": "é", "a": True}) == b'{"a":true,"b":"\\u00e9"}'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_cannot_express_are_an_error(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": value})
